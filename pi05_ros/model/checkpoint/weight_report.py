"""What the headers of a checkpoint say, counted by stage. No tensor data is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pi05_ros.model.checkpoint.infer_config import InferredConfig, infer_config
from pi05_ros.model.checkpoint.load import check_tensors
from pi05_ros.model.checkpoint.open import open_checkpoint
from pi05_ros.model.layout import (
    EXPERT_LM_HEAD,
    LANGUAGE,
    LM_HEAD,
    PROJECTOR,
    VISION,
    openpi_layout,
)


@dataclass(frozen=True)
class WeightReport:
    """A readable, complete checkpoint.

    Attributes:
        files: weight file -> bytes.
        family: "openpi" or "lerobot".
        embedding: "tied" or "untied".
        dtypes: dtype name -> (tensors, parameters), of everything in the files.
        parameters: stage ("vision", "prefill", "denoise") -> parameters that actions depend on.
        unused: reason -> names of tensors that no action depends on.
        unused_parameters: how many parameters those are.
        inferred: the config, where it comes from, and what is assumed.
        notes: what else a reader should know.

    """

    files: Mapping[Path, int]
    family: str
    embedding: str
    dtypes: Mapping[str, tuple[int, int]]
    parameters: Mapping[str, int]
    unused: Mapping[str, tuple[str, ...]]
    unused_parameters: int
    inferred: InferredConfig
    notes: tuple[str, ...]


def stage_of(openpi_name: str) -> str:
    """Stage that reads an openpi tensor: "vision", "prefill" or "denoise"."""
    if openpi_name.startswith((VISION, PROJECTOR)):
        return "vision"
    return "prefill" if openpi_name.startswith((LANGUAGE, LM_HEAD)) else "denoise"


def describe(path: str | Path) -> WeightReport:
    """Report of a checkpoint path.

    Raises:
        CheckpointError: it would not load; the message is the same as `load_checkpoint`'s.

    """
    checkpoint = open_checkpoint(path)
    inferred = infer_config(checkpoint)
    check_tensors(checkpoint, inferred.config)

    tensors: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for entry in checkpoint.stored.values():
        tensors[entry.dtype] += 1
        elements[entry.dtype] += entry.size

    merged = sum(f.a.size + f.b.size for f in checkpoint.adapters.values())
    parameters: Counter[str] = Counter()
    unused: dict[str, list[str]] = {}
    for name, reason in checkpoint.unused.items():
        unused.setdefault(reason, []).append(name)
    tail = "only the keys and values of the last prefix block reach the actions"
    for name, spec in openpi_layout(inferred.config).items():
        if spec.inference:
            parameters[stage_of(name)] += spec.size
        elif name != EXPERT_LM_HEAD:
            unused.setdefault(tail, []).append(name)
    return WeightReport(
        files={file: file.stat().st_size for file in checkpoint.files},
        family=checkpoint.family,
        embedding="untied" if checkpoint.untied else "tied",
        dtypes={name: (tensors[name], elements[name]) for name in sorted(tensors)},
        parameters={stage: parameters[stage] for stage in ("vision", "prefill", "denoise")},
        unused={reason: tuple(sorted(names)) for reason, names in unused.items()},
        unused_parameters=sum(elements.values()) - sum(parameters.values()) - merged,
        inferred=inferred,
        notes=checkpoint.notes,
    )
