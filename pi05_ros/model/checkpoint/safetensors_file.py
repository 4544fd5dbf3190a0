"""Reading and writing safetensors files without trusting them.

The header is checked completely before a byte of data is read or a tensor is allocated: lengths,
offsets, shapes and dtypes must describe exactly the bytes that are there. Data is then read
(not mapped) straight into the memory where it stays, through a small staging buffer where a
dtype or device changes: mapped pages would count as resident memory, and a file that shrinks
while mapped kills the process instead of raising an error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi05_ros.model.errors import CheckpointError
from pi05_ros.small_files import parse_json

MAX_HEADER = 16 * 2**20  # bytes; the published model needs 0.1 MB
MAX_RANK = 8
STAGING = 4 * 2**20  # bytes
READ = 2**30  # bytes per system call, below Linux's limit of 2 GiB

FLOAT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
ITEM_SIZE = {
    **{name: dtype.itemsize for name, dtype in FLOAT_DTYPES.items()},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
}
DTYPE_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies."""

    file: Path
    dtype: str  # as in the header: "F32", "BF16", ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * ITEM_SIZE[self.dtype]


def read_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Tensors and metadata of a safetensors file; no tensor data is read.

    Raises:
        CheckpointError: the file is unreadable or its header does not describe it exactly.

    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if total < 10 or not 2 <= length <= total - 8:
                raise CheckpointError(
                    f"{path}: not a safetensors file, or cut off in its header: it claims a "
                    f"header of {length} bytes and has {total} bytes in all"
                )
            if length > MAX_HEADER:
                raise CheckpointError(
                    f"{path}: header of {length} bytes; accepted: at most {MAX_HEADER}"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = parse_json(text.decode("utf-8"), "it")
    except ValueError as error:
        raise CheckpointError(f"{path}: its safetensors header is not valid: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ in its header is not a JSON object")
    entries = {name: _entry(path, name, info, 8 + length) for name, info in header.items()}
    _check_extent(path, entries, 8 + length, total)
    return entries, metadata


def _entry(path: Path, name: str, info: Any, start: int) -> TensorEntry:
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{path}: header entry {name[:200]!r} must have dtype, shape and data_offsets"
        )
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise CheckpointError(f"{path}: {name[:200]!r} has the unknown dtype {dtype!r:.100}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(f"{path}: {name[:200]!r} has the impossible shape {shape!r:.100}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: {name[:200]!r} has bad data_offsets {offsets!r:.100}")
    entry = TensorEntry(path, dtype, tuple(shape), start + offsets[0])
    if offsets[1] - offsets[0] != entry.nbytes:
        raise CheckpointError(
            f"{path}: {name[:200]!r} ({dtype} {shape!r:.100}) needs {entry.nbytes} bytes but its "
            f"data_offsets span {offsets[1] - offsets[0]}"
        )
    return entry


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63
        for item in value
    )


def _check_extent(path: Path, entries: Mapping[str, TensorEntry], start: int, end: int) -> None:
    """The tensors must fill the file from `start` to `end` without overlap or hole."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != position:
            kind = "overlaps another tensor" if entry.offset < position else "leaves a hole"
            raise CheckpointError(f"{path}: {name[:200]!r} {kind} in the file")
        position += entry.nbytes
    if position > end:
        raise CheckpointError(
            f"{path}: cut off: {position - end} of {position} bytes are missing at the end"
        )
    if position < end:
        raise CheckpointError(f"{path}: {end - position} bytes after the last tensor")


def _fill(file: FileIO, entry: TensorEntry, view: memoryview, offset: int) -> None:
    """Read an open file from `offset` on into all of `view`; others may read the file as well."""
    done = 0
    while done < len(view):
        count = os.preadv(file.fileno(), [view[done : done + READ]], offset + done)
        if not count:
            raise CheckpointError(f"{entry.file}: the file became shorter while it was read")
        done += count


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


def read_tensor(
    file: FileIO, entry: TensorEntry, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Read one float tensor into its final dtype and device.

    Beyond the tensor itself at most `STAGING` bytes are used. On the meta device nothing is read.
    Several threads may read from one open file.
    """
    target = torch.empty(entry.shape, dtype=dtype, device=device)
    if device.type == "meta" or not entry.size:
        return target
    source = FLOAT_DTYPES[entry.dtype]
    if source == dtype and device.type == "cpu":
        _fill(file, entry, _bytes(target), entry.offset)
        return target
    flat = target.view(-1)
    count = min(STAGING // source.itemsize, entry.size)
    buffer = torch.empty(count, dtype=source, pin_memory=device.type == "cuda")
    for start in range(0, entry.size, buffer.numel()):
        part = buffer[: entry.size - start]
        _fill(file, entry, _bytes(part), entry.offset + start * source.itemsize)
        flat[start : start + part.numel()].copy_(part)
    return target


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write float tensors in the order given; `path` appears only when it is complete."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES or tensor.is_meta:
            raise ValueError(f"{name}: {tensor.dtype} on {tensor.device} cannot be written")
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                if tensor.numel():
                    file.write(_bytes(tensor.detach().cpu().contiguous()))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
