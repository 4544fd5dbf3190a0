"""What an engine belongs to: these weights, this graph, this machine, these build flags."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi05_ros.backends.errors import BackendError
from pi05_ros.model import Pi05

KEY_SCHEMA = 2  # 1: engines without flavor and target
_KNOWN: weakref.WeakKeyDictionary[Pi05, tuple[Any, str]] = weakref.WeakKeyDictionary()


def parse_version(text: str, package: str = "TensorRT") -> tuple[int, int]:
    """Major and minor of "10.13.3.9".

    Raises:
        BackendError: not a version.

    """
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise BackendError(f"cannot read the {package} version {text!r}")
    return int(match[1]), int(match[2])


def weights_id(model: Pi05) -> str:
    """Hash of all parameters and of how rotary angles are computed, "sha256:<hex>".

    Values are rounded to bfloat16 first, so that a checkpoint has one identity whether it was
    loaded in float32 or in bfloat16. The answer is kept while no parameter is written to.
    """
    state_of = tuple((p.data_ptr(), p._version) for p in model.parameters())
    known = _KNOWN.get(model)
    if known is not None and known[0] == state_of:
        return known[1]
    state = hashlib.sha256(model.config.rope.encode())
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().to(torch.bfloat16).cpu().contiguous().view(torch.uint8)
        state.update(f"{name} {tuple(parameter.shape)}".encode())
        state.update(values.numpy().data)
    result = f"sha256:{state.hexdigest()}"
    _KNOWN[model] = (state_of, result)
    return result


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return ""


def machine_facts(device: torch.device) -> dict[str, Any]:
    """GPU, driver and system, as far as an engine depends on them."""
    facts: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "driver": _first_line("/proc/driver/nvidia/version"),
        "l4t": _first_line("/etc/nv_tegra_release"),
        "cuda": torch.version.cuda or "",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
        }
    else:
        facts |= {"gpu": device.type, "compute_capability": "", "multiprocessors": 0}
    return facts


def key_document(
    *,
    graph_hash: str,
    weights: str,
    shapes: dict[str, Any],
    flavor: str,
    tensorrt: str,
    target: str,
    machine: dict[str, Any],
    flags: dict[str, Any],
) -> dict[str, Any]:
    """Everything an engine depends on; equal documents mean interchangeable engines.

    Args:
        graph_hash: of the export.
        weights: `weights_id` of the checkpoint.
        shapes: `StageShapes.as_dict`.
        flavor: "tensorrt" or "tensorrt_rtx".
        tensorrt: its release.
        target: compute capability ("sm89") of a plan that was compiled for another machine; empty
            if it was built on the GPU it is for.
        machine: `machine_facts`; empty for plans that every machine with such a GPU can load.
        flags: build flags, preset, precision, layout.

    """
    return {
        "schema": KEY_SCHEMA,
        "graph_hash": graph_hash,
        "weights": weights,
        "shapes": shapes,
        "flavor": flavor,
        "tensorrt": tensorrt,
        "target": target,
        "machine": machine,
        "flags": flags,
    }


def canonical(document: dict[str, Any]) -> bytes:
    """One spelling per document."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def engine_key(document: dict[str, Any]) -> str:
    """sha256 of the canonical key document."""
    return hashlib.sha256(canonical(document)).hexdigest()


class Fingerprint:
    """Hash of a model's weights that costs milliseconds: a sample of every matrix."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, weight: Tensor) -> None:
        """Take the shape and a strided sample of `weight` (in the type it was loaded in)."""
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)][:256].float().cpu().contiguous()
        self._hash.update(f"{name}{tuple(weight.shape)}".encode())
        self._hash.update(sample.numpy().tobytes())

    def hexdigest(self) -> str:
        """64 hex digits."""
        return self._hash.hexdigest()
