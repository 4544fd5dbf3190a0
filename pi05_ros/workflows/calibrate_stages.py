"""Ranges for the backends onnx and tensorrt from observations, with a report per layer."""

from __future__ import annotations

from pathlib import Path

from pi05_ros.backends.files import (
    make_model_folder,
    model_folder,
    require_writable,
    whole_folder,
)
from pi05_ros.backends.quantization.calibrate import calibrate, require_intent
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.quantization.modelopt_quantizers import modelopt_version
from pi05_ros.backends.quantization.presets import preset
from pi05_ros.backends.quantization.samples import save_samples
from pi05_ros.workflows.engine_requests import Outlets, Say, StageCalibrationRequest
from pi05_ros.workflows.observations import collect_samples
from pi05_ros.workflows.subject import load_subject

LAYERS_SHOWN = 5


def calibrate_stages(request: StageCalibrationRequest, outlets: Outlets = Outlets()) -> Path:
    """Calibrate and keep ranges, samples and report; returns their folder.

    Raises:
        BackendError, CalibrationError: packages are missing, or no usable observations.

    """
    modelopt_version()
    choice = preset(request.preset)
    require_intent(choice, experimental=request.experimental)
    model = request.model
    subject = load_subject(model, "fp32")
    folder = request.out or model_folder(subject.weights, model.cache) / "quant"
    require_writable(folder)
    samples = collect_samples(request.samples, subject, outlets.warn)
    outlets.say(f"{len(samples)} observations, preset {request.preset}")
    calibration = calibrate(
        subject.model,
        subject.weights,
        samples,
        request.preset,
        shapes=subject.shapes,
        steps=request.samples.steps,
        allow_synthetic=request.samples.allow_synthetic,
        experimental=request.experimental,
        progress=outlets.progress,
    )
    if request.out is None:
        make_model_folder(subject.weights, model.cache)
        folder /= calibration.digest[:16]
    with whole_folder(folder, "calibration.json") as part:
        calibration.save(part)
        save_samples(part / "golden.safetensors", samples)
    _tell(calibration, outlets.say)
    if choice.experimental:
        outlets.say(
            f"preset {choice.name} is EXPERIMENTAL: no engine can be built from it; its accuracy:"
        )
        outlets.say(f"  pi05 check {model.checkpoint} --backend simulated --calibration {folder}")
    outlets.say(f"written to {folder}")
    return folder


def _tell(calibration: Calibration, say: Say) -> None:
    layers = calibration.info["layers"]
    inputs = [item for item in layers.items() if "amax" in item[1]]  # none where weights alone are
    worst = sorted(inputs, key=lambda item: -item[1].get("clipped", 0.0))
    beyond = "; inputs with most values beyond their range:" if worst else ""
    say(f"{len(calibration.amax)} quantizers{beyond}")
    for name, row in worst[:LAYERS_SHOWN]:
        say(
            f"  {name}: amax {row['amax']:.4g}, "
            f"clipped {100 * row.get('clipped', 0.0):.4f} %, "
            f"flushed to zero {100 * row.get('flushed', 0.0):.4f} %"
        )
    for name, value in calibration.info["near_half_limit"].items():
        say(f"  warning: {name} reaches {value:.3g}; float16 ends at 65504")
    if calibration.info["synthetic"]:
        say("made from synthetic observations: for dry runs only")
