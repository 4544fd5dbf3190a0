"""FP8 activation scales of the cuda backend from observations."""

from __future__ import annotations

from pathlib import Path

from pi05_ros.backends import BackendError
from pi05_ros.backends.cuda.scales import default_path, files_of
from pi05_ros.backends.engine import Precision
from pi05_ros.workflows.engine_requests import CudaCalibrationRequest, Say
from pi05_ros.workflows.observations import collect_samples, require_bag_reader
from pi05_ros.workflows.subject import load_subject

SHOWN = 5


def calibrate_cuda(
    request: CudaCalibrationRequest, say: Say = print, warn: Say = lambda text: None
) -> Path:
    """Record the largest input of every FP8 product and save it; returns the safetensors file.

    Raises:
        BackendError, CalibrationError: no GPU, or no usable observations.

    """
    from pi05_ros.backends import cuda

    ok, why = cuda.usable()
    if not ok:
        raise BackendError(
            f"--for cuda runs the cuda backend: {why}; --for tensorrt and --for onnx run anywhere"
        )
    require_bag_reader(request.samples)
    subject = load_subject(request.model)
    samples = collect_samples(request.samples, subject, warn)
    engine = cuda.create(
        subject.model,
        Precision(request.vision, "fp8", "fp8"),
        horizon=subject.shapes.horizon,
        max_prompt_tokens=subject.shapes.prompt_tokens,
    )
    for _ in range(2):  # the second pass runs with the scales that the first one found
        engine.start_calibration()
        for sample in samples:
            engine.observe(sample.images, sample.tokens, sample.noise, request.samples.steps)
        made = engine.calibration(len(samples))
        engine.use_calibration(made)
    out = request.out or default_path(made.fingerprint)
    made.save(out)
    largest = sorted(zip(made.amax.tolist(), made.sites, strict=True), reverse=True)[:SHOWN]
    say(f"{len(samples)} observations, {len(made.sites)} sites; largest inputs:")
    for value, site in largest:
        say(f"  {site}: {value:.4g}")
    if any(sample.synthetic for sample in samples):
        say("made from synthetic observations: for dry runs only")
    say(f"written to {files_of(out)[0]} and .json")
    if request.out:
        say("engines take it with the option calibration=NAME")
    return files_of(out)[0]
