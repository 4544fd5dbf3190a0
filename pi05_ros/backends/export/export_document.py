"""``export.json``: what a folder of graphs was exported from, and whether it still is that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.files import sha256_file
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.presets import preset
from pi05_ros.backends.staged.shapes import StageShapes, graphs_of
from pi05_ros.small_files import FileError, MissingFileError, read_json

SCHEMA = 2  # 1: scales per channel on the weights, attention that does not fuse
QUANTIZED = ("prefill", "denoise_step")
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class GraphPlan:
    """What exported graphs hold of a model.

    Attributes:
        activation: "fp16" for the artifact, "fp32" for the numeric twin.
        calibration: scales of prefill and denoise; None exports without quantization.
        quantized_stages: of the two, those that take the calibration.
        layout: "stages", or "mlp_only" for the prefill's MLPs one by one.
        full_steps: also one graph of everything with this many steps.

    """

    activation: str = "fp16"
    calibration: Calibration | None = None
    quantized_stages: Sequence[str] = QUANTIZED
    layout: str = "stages"
    full_steps: int | None = None

    def facts(self, shapes: StageShapes) -> dict[str, Any]:
        """What of it stands in ``export.json`` and tells graphs of one checkpoint apart."""
        return {
            "shapes": shapes.as_dict(),
            "activation": self.activation,
            "calibration": self.calibration.digest if self.calibration else None,
            "quantised_stages": list(self.quantized_stages) if self.calibration else [],
            "layout": self.layout,
        }


def graph_hash(document: dict[str, Any]) -> str:
    """Identity of an export: its files, weights, shapes and calibration."""
    parts = {key: document[key] for key in ("schema", "weights", "shapes", "calibration")}
    parts["files"] = {
        stage: [entry["sha256"], entry["data_sha256"]]
        for stage, entry in document["stages"].items()
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_export(directory: Path) -> dict[str, Any]:
    """Content of ``export.json``.

    Raises:
        BackendError: missing, damaged, or from another version.

    """
    path = directory / "export.json"
    try:
        document: dict[str, Any] = read_json(path)
    except MissingFileError:
        raise BackendError(
            f"no exported graphs in {directory}; make them with: pi05 export"
        ) from None
    except FileError as error:
        raise BackendError(f"{error}; export again: pi05 export") from None
    if not isinstance(document, dict):
        raise BackendError(f"{path} is damaged (not a mapping); export again: pi05 export")
    if document.get("schema") != SCHEMA:
        raise BackendError(
            f"{path} has schema {document.get('schema')!r}, this version reads {SCHEMA}; "
            "export again: pi05 export"
        )
    try:
        _require_whole(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{path} is damaged ({type(error).__name__}: {error}); export again: pi05 export"
        ) from None
    return document


def _require_whole(document: dict[str, Any]) -> None:
    """Validate the schema of ``export.json``; raises on missing or wrong fields."""
    if document["activation"] not in DTYPES:
        raise ValueError(f"activation {document['activation']!r}")
    Precision(**stage_precision(document))
    depth = StageShapes(**document["shapes"]).depth
    stages = document["stages"]
    missing = set(graphs_of(document["layout"], depth)) - set(stages)
    if missing:
        raise ValueError(f"no {min(missing)}")
    graph_hash(document)
    texts = [document["weights"], document["graph_hash"]]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("weights or graph_hash is no text")


def verify_export(directory: Path, document: dict[str, Any]) -> None:
    """Raise BackendError unless the files are those that ``export.json`` was written for."""
    for stage, entry in document["stages"].items():
        for name, digest in ((f"{stage}.onnx", "sha256"), (f"{stage}.onnx.data", "data_sha256")):
            path = directory / name
            if not path.is_file() or sha256_file(path) != entry[digest]:
                raise BackendError(f"{path} is not what was exported; export again: pi05 export")


def holds_fp4_products(document: dict[str, Any]) -> bool:
    """Whether some graph of an export has NVFP4 products."""
    if not document["preset"]:
        return False
    choice = preset(document["preset"])
    return any(stage in choice.fp4_mlp_stages for stage in document["quantised_stages"])


def stage_precision(document: dict[str, Any]) -> dict[str, str]:
    """Precision of each stage of an export, by the names of `Precision`."""
    quantized = set(document["quantised_stages"])
    word = "fp8"
    if document["preset"] and preset(document["preset"]).weights != "fp8":
        word = document["activation"]  # INT8 presets have no word of their own in Precision
    return {
        "vision": document["activation"],
        "prefill": word if "prefill" in quantized else document["activation"],
        "denoise": word if "denoise_step" in quantized else document["activation"],
    }
