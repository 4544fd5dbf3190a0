"""Find or make what a backend needs for a checkpoint: calibration and exported graphs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt.calibration import Calibration, CalibrationError
from pi05_ros.backends.tensorrt.export import QUANTISED, export_all, read_export
from pi05_ros.backends.tensorrt.identity import canonical
from pi05_ros.backends.tensorrt.shapes import StageShapes
from pi05_ros.backends.tensorrt.store import model_folder
from pi05_ros.model import Pi05

log = logging.getLogger(__name__)


def find_calibration(
    weights: str, directory: str | Path | None, root: Path | None = None
) -> Calibration:
    """The named calibration, or the newest FP8 one of this checkpoint.

    Raises:
        BackendError: none there, damaged, or made for other weights.

    """
    if directory is None:
        folder = model_folder(weights, root) / "quant"
        newest = sorted(folder.glob("*/calibration.json"), key=lambda p: p.stat().st_mtime)
        found = [path for path in newest if _is_fp8(path)]
        if not found:
            raise BackendError(
                f"fp8 needs a calibration and there is none in {folder}; make one from recorded "
                "observations with: pi05 quantize"
            )
        directory = found[-1].parent
    try:
        calibration = Calibration.load(Path(directory))
    except CalibrationError as error:
        raise BackendError(str(error)) from None
    made_for = calibration.info.get("weights")
    if made_for != weights:
        raise BackendError(
            f"the calibration in {directory} was made for weights {str(made_for)[:23]}..., not "
            f"for {weights[:23]}...; make one for this checkpoint with: pi05 quantize"
        )
    return calibration


def _is_fp8(path: Path) -> bool:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["preset"]).startswith("fp8")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def graphs_for(
    model: Pi05,
    weights: str,
    shapes: StageShapes,
    activation: str,
    calibration: Calibration | None,
    directory: Path | None,
    root: Path | None = None,
    quantised_stages: Sequence[str] = QUANTISED,
    layout: str = "stages",
) -> tuple[Path, dict[str, Any]]:
    """Folder of exported graphs and their ``export.json``; exported now if not there yet.

    Raises:
        BackendError: a given folder holds graphs of other weights, shapes or types.

    """
    if directory is not None:
        document = read_export(directory)
        wanted = {"weights": weights, "shapes": shapes.as_dict(), "activation": activation}
        for name, value in wanted.items():
            if document[name] != value:
                raise BackendError(
                    f"the graphs in {directory} have {name} {document[name]}, needed: {value}; "
                    "export again with: pi05 export"
                )
        return directory, document
    identity = {
        "shapes": shapes.as_dict(),
        "activation": activation,
        "calibration": calibration.digest if calibration else None,
        "quantised_stages": list(quantised_stages) if calibration else [],
        "layout": layout,
    }
    name = hashlib.sha256(canonical(identity)).hexdigest()[:16]
    folder = model_folder(weights, root) / "onnx" / name
    try:
        document = read_export(folder)
        if all(document.get(key) == value for key, value in identity.items()):
            return folder, document
    except BackendError:
        pass
    log.info("exporting graphs into %s", folder)
    document = export_all(
        model,
        weights,
        shapes,
        folder,
        activation=activation,
        calibration=calibration,
        quantised_stages=quantised_stages,
        layout=layout,
    )
    return folder, document
