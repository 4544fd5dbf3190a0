"""msgpack with numpy arrays in the dialects that clients of openpi's protocol use.

- ``openpi``: maps with the byte keys ``__ndarray__``, ``data``, ``dtype``, ``shape`` (scalars
  ``__npgeneric__``), as openpi-client packs them.
- ``openpi-text``: the same with text keys, as clients in other languages write it.
- ``msgpack-numpy``: maps with the byte keys ``nd``, ``type``, ``kind``, ``shape``, ``data``.
- ``msgpack-numpy-text``: the same with text keys.

Only arrays of booleans, integers and floats are decoded. Object arrays, which msgpack-numpy
pickles, structured, complex and text arrays are refused. Nothing here calls pickle.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.remote.large_values import LARGE, cut_out, stand_ins

DIALECTS = ("openpi", "openpi-text", "msgpack-numpy", "msgpack-numpy-text")
MAX_DIMENSIONS = 8
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])|bool|u?int(8|16|32|64)|float(16|32|64)")

_COMMON = {name: np.dtype(name) for name in ("|u1", "<f8", "<f4", "<i8")}


@dataclass(frozen=True)
class Decoded:
    """A frame as Python objects.

    Attributes:
        value: maps, lists, text, numbers, numpy arrays (read-only views of the frame).
        dialect: of its arrays; "openpi" if it has none.

    """

    value: Any
    dialect: str


class _Keys:
    """The keys of arrays, as text or as bytes."""

    def __init__(self, key: Callable[[str], Any], suffix: str) -> None:
        self.ndarray, self.npgeneric = key("__ndarray__"), key("__npgeneric__")
        self.nd, self.type, self.kind = key("nd"), key("type"), key("kind")
        self.dtype, self.shape, self.data = key("dtype"), key("shape"), key("data")
        self.complex = key("complex")
        self.openpi, self.msgpack_numpy = f"openpi{suffix}", f"msgpack-numpy{suffix}"


_KEYS = (_Keys(str.encode, ""), _Keys(str, "-text"))


class _Hook:
    """`object_hook` of one frame; remembers the dialect it has seen."""

    def __init__(self) -> None:
        self.dialect: str | None = None

    def __call__(self, found: dict[Any, Any]) -> Any:
        for keys in _KEYS:
            if keys.ndarray in found:
                return self._array(found, keys, keys.openpi, keys.dtype)
            if keys.npgeneric in found:
                return self._scalar(found, keys, keys.openpi, keys.dtype)
            if keys.nd in found and keys.type in found:
                form = self._array if found[keys.nd] else self._scalar
                return form(found, keys, keys.msgpack_numpy, keys.type)
            if keys.complex in found and keys.data in found:
                raise WireError(f"complex numbers are not accepted; accepted: {_accepted()}")
        return found

    def _array(
        self, found: dict[Any, Any], keys: _Keys, dialect: str, dtype_key: Any
    ) -> np.ndarray:
        self.dialect = self.dialect or dialect
        _check_kind(found, keys)
        dtype = _dtype(found.get(dtype_key))
        shape = _shape(found.get(keys.shape))
        data = found.get(keys.data)
        if not isinstance(data, (bytes, memoryview)):
            raise WireError(f"array data is {type(data).__name__}; accepted: binary")
        size = math.prod(shape) * dtype.itemsize
        if len(data) != size:
            raise WireError(
                f"array {dtype} {list(shape)} has {len(data)} bytes of data; accepted: {size}"
            )
        array = np.frombuffer(data, dtype).reshape(shape)
        return array if array.flags.aligned else array.copy()

    def _scalar(
        self, found: dict[Any, Any], keys: _Keys, dialect: str, dtype_key: Any
    ) -> np.generic:
        self.dialect = self.dialect or dialect
        _check_kind(found, keys)
        dtype = _dtype(found.get(dtype_key))
        data = found.get(keys.data)
        if isinstance(data, bytes):  # msgpack-numpy
            if len(data) != dtype.itemsize:
                raise WireError(f"scalar {dtype} has {len(data)} bytes of data")
            value = np.frombuffer(data, dtype)[0]
        elif isinstance(data, (bool, int, float)):
            try:
                value = dtype.type(data)
            except (OverflowError, ValueError) as error:
                raise WireError(f"{data!r:.40} is no {dtype}") from error
        else:
            raise WireError(f"scalar data is {type(data).__name__}; accepted: a number")
        assert isinstance(value, np.generic)
        return value


def unpack(frame: bytes | memoryview) -> Decoded:
    """Decode one frame.

    Raises:
        WireError: it is no msgpack, is nested too deeply, or holds an array that is not accepted.

    """
    hook = _Hook()
    cut = cut_out(memoryview(frame).toreadonly()) if len(frame) > LARGE else None
    try:
        if cut is None:
            value = msgpack.unpackb(frame, object_hook=hook, raw=False, strict_map_key=True)
        else:
            value = msgpack.unpackb(
                cut[0], object_hook=hook, ext_hook=stand_ins(cut[1]), raw=False,
                strict_map_key=True,
            )  # fmt: skip
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise WireError(f"the frame is no valid msgpack: {_reason(error)}") from error
    except msgpack.UnpackException as error:
        raise WireError(f"the frame is no valid msgpack: {_reason(error)}") from error
    return Decoded(value, hook.dialect or "openpi")


def pack(value: Any, dialect: str = "openpi") -> bytes:
    """Encode maps, lists, text, numbers and numpy arrays in one of DIALECTS."""
    packed = msgpack.packb(value, default=_form(dialect), use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


class FramePacker:
    """Encodes one frame after the other into memory that it keeps, as `pack` does."""

    def __init__(self, dialect: str = "openpi") -> None:
        self._form = _form(dialect)
        self._packer = self._empty()

    def _empty(self) -> msgpack.Packer:
        return msgpack.Packer(
            default=self._form, use_bin_type=True, autoreset=False, buf_size=64 * 1024
        )

    def pack(self, value: Any) -> memoryview:
        """Encode a value into the same memory again, or into new where a view of it is held.

        The error of a connection that broke while sending holds one for as long as it lives.
        """
        try:
            self._packer.reset()
        except BufferError:
            self._packer = self._empty()
        self._packer.pack(value)
        return memoryview(self._packer.getbuffer())


def _form(dialect: str) -> Callable[[Any], dict[Any, Any]]:
    """What arrays and scalars become in a dialect."""
    if dialect not in DIALECTS:
        raise WireError(f"dialect is {dialect!r}; accepted: {', '.join(DIALECTS)}")
    key: Any = str if dialect.endswith("-text") else _key

    def default(found: Any) -> dict[Any, Any]:
        if not isinstance(found, (np.ndarray, np.generic)):
            raise WireError(f"{type(found).__name__} cannot be packed")
        if found.dtype.kind not in "biuf":
            raise WireError(f"dtype {found.dtype} cannot be packed; accepted: {_accepted()}")
        array = isinstance(found, np.ndarray)
        if dialect.startswith("openpi"):
            mark = "__ndarray__" if array else "__npgeneric__"
            parts = {mark: True, "data": _bytes(found) if array else found.item()}
            parts |= {"dtype": found.dtype.str, "shape": found.shape} if array else {
                "dtype": found.dtype.str
            }  # fmt: skip
        else:
            parts = {"nd": array, "type": found.dtype.str, "data": _bytes(found)}
            if array:
                parts |= {"kind": b"", "shape": found.shape}
        return {key(name): part for name, part in parts.items()}

    return default


def _bytes(found: np.ndarray | np.generic) -> bytes | memoryview:
    """Data in row-major order; not copied where that is a picture's own memory."""
    if isinstance(found, np.ndarray) and found.flags.c_contiguous and found.nbytes > 4096:
        return found.reshape(-1).view(np.uint8).data
    return found.tobytes()


def _key(name: str) -> bytes:
    return name.encode()


def _check_kind(found: dict[Any, Any], keys: _Keys) -> None:
    kind = found.get(keys.kind, b"")
    if kind not in (b"", ""):
        raise WireError(f"array of kind {kind!r:.20} is not accepted; accepted: {_accepted()}")


def _dtype(name: Any) -> np.dtype[Any]:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    known = _COMMON.get(name) if isinstance(name, str) else None
    if known is not None:
        return known
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"dtype {name!r:.40} is not accepted; accepted: {_accepted()}")
    return np.dtype(name)


def _shape(shape: Any) -> tuple[int, ...]:
    good = isinstance(shape, (list, tuple)) and len(shape) <= MAX_DIMENSIONS
    if not good or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise WireError(
            f"array shape is {shape!r:.60}; accepted: up to {MAX_DIMENSIONS} sizes of 0 or more"
        )
    return tuple(shape)


def _accepted() -> str:
    return "bool, int8 to int64, uint8 to uint64, float16 to float64"


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
