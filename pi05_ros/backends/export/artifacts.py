"""Find or make what a backend needs for a checkpoint: calibration and exported graphs."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export import export_all
from pi05_ros.backends.export.export_document import (
    GraphPlan,
    read_export,
    stage_precision,
    verify_export,
)
from pi05_ros.backends.files import (
    make_model_folder,
    model_folder,
    wait_for_writer,
)
from pi05_ros.backends.identity import canonical
from pi05_ros.backends.quantization.calibration import Calibration, CalibrationError
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.model import Pi05
from pi05_ros.small_files import read_json

log = logging.getLogger(__name__)


GOLDEN = "golden.safetensors"


def find_calibration(
    weights: str,
    directory: str | Path | None,
    root: Path | None = None,
    digest: str | None = None,
) -> Calibration:
    """The named calibration, or the newest FP8 one of this checkpoint.

    Those from recorded observations come before those of dry runs.

    Args:
        weights: of the checkpoint.
        directory: folder of a calibration; None searches the cache.
        root: cache root.
        digest: of the one that is needed, whatever its preset; None takes any.

    Raises:
        BackendError: none there, damaged, or made for other weights.

    """
    if directory is None:
        found = [folder for folder, about in _calibrations(weights, root) if _fits(about, digest)]
        if not found:
            what = "an FP8 calibration" if digest is None else f"calibration {digest[:16]}"
            raise BackendError(
                f"{what} is needed and there is none in {model_folder(weights, root) / 'quant'}; "
                "make one from recorded observations with: pi05 calibrate --for tensorrt, or name "
                "its folder with --calibration"
            )
        directory = found[-1]
    try:
        calibration = Calibration.load(Path(directory))
    except CalibrationError as error:
        raise BackendError(str(error)) from None
    made_for = calibration.info.get("weights")
    if made_for != weights:
        raise BackendError(
            f"the calibration in {directory} was made for weights {str(made_for)[:23]}..., not "
            f"for {weights[:23]}...; make one for this checkpoint with: "
            "pi05 calibrate --for tensorrt"
        )
    if digest not in (None, calibration.digest):
        raise BackendError(
            f"the calibration in {directory} is not the one that was exported ({digest[:16]})"
        )
    if calibration.info.get("synthetic"):
        log.warning("the ranges in %s are of made-up observations: for dry runs only", directory)
    return calibration


def find_golden(
    weights: str,
    directory: Path | None,
    root: Path | None = None,
    digest: str | None = None,
) -> Path:
    """Observations to check with: those kept with a calibration, else with the best other one.

    Args:
        weights: of the checkpoint.
        directory: folder of a calibration; None searches the cache.
        root: cache root.
        digest: of the calibration of what is checked; None if it has none.

    Raises:
        BackendError: there are none.

    """
    place = directory or model_folder(weights, root) / "quant"
    folders = [directory] if directory else []
    if directory is None:
        rows = _calibrations(weights, root)
        rows.sort(key=lambda row: row[1].get("digest") == digest)  # keeps their order otherwise
        folders = [folder for folder, _ in rows]
    found = [folder / GOLDEN for folder in folders if (folder / GOLDEN).is_file()]
    if not found:
        raise BackendError(
            f"no observations to check with in {place}; give --observations or --bag, or run "
            "pi05 calibrate --for tensorrt first"
        )
    return found[-1]


def _calibrations(weights: str, root: Path | None) -> list[tuple[Path, dict[str, Any]]]:
    """Folders of a checkpoint's calibrations with their calibration.json, the best last."""
    found = []
    for path in (model_folder(weights, root) / "quant").glob("[!.]*/calibration.json"):
        try:
            about, age = read_json(path), path.stat().st_mtime
        except (OSError, ValueError):
            continue
        if isinstance(about, dict):
            found.append((not about.get("synthetic"), age, path.parent, about))
    found.sort(key=lambda row: row[:2])
    return [(folder, about) for _, _, folder, about in found]


def _fits(about: dict[str, Any], digest: str | None) -> bool:
    """Whether a calibration.json is the one that is needed: by digest, else any FP8 preset."""
    if digest is not None:
        return bool(about.get("digest") == digest)
    return str(about.get("preset")).startswith("fp8")


def given_graphs(
    directory: Path, weights: str, shapes: StageShapes, precision: Precision
) -> dict[str, Any]:
    """``export.json`` of a folder of graphs that must fit.

    Raises:
        BackendError: graphs of other weights, shapes or precision, or altered files.

    """
    document = read_export(directory)
    verify_export(directory, document)
    found = {"weights": document["weights"], "shapes": document["shapes"]}
    wanted: dict[str, Any] = {"weights": weights, "shapes": shapes.as_dict()}
    for stage, word in stage_precision(document).items():
        asked = getattr(precision, stage)
        found[f"precision.{stage}"] = word
        wanted[f"precision.{stage}"] = word if asked == "auto" else asked
    for name, value in wanted.items():
        if found[name] != value:
            raise BackendError(
                f"the graphs in {directory} have {name} {found[name]}, needed: {value}; "
                "export again with: pi05 export"
            )
    return document


def graphs_for(
    model: Pi05,
    weights: str,
    shapes: StageShapes,
    plan: GraphPlan,
    root: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Cache folder of exported graphs and their ``export.json``.

    They are exported now if they are not there yet, or not as they were written.
    """
    identity = plan.facts(shapes)
    name = hashlib.sha256(canonical(identity)).hexdigest()[:16]
    folder = model_folder(weights, root) / "onnx" / name
    kept = _kept_graphs(folder, identity)
    if kept is None and wait_for_writer(folder):
        kept = _kept_graphs(folder, identity)
    if kept is not None:
        return folder, kept
    log.info("exporting graphs into %s", folder)
    make_model_folder(weights, root)
    return folder, export_all(model, weights, shapes, folder, plan)


def _kept_graphs(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """``export.json`` of graphs in the cache; None if they are not there as they were written."""
    try:
        document = read_export(folder)
        if any(document.get(key) != value for key, value in identity.items()):
            return None
        verify_export(folder, document)
    except BackendError as error:
        log.info("%s", error)
        return None
    return document
