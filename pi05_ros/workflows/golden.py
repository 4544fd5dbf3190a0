"""The observations that a check runs on."""

from __future__ import annotations

from dataclasses import dataclass

from pi05_ros.backends.quantization.samples import (
    Sample,
    edge_cases,
    load_samples,
    require_fit,
    require_real,
    set_digest,
)
from pi05_ros.workflows.engine_requests import CheckRequest, Outlets
from pi05_ros.workflows.observations import collect_samples
from pi05_ros.workflows.subject import Subject


@dataclass(frozen=True)
class Golden:
    """What a check runs on.

    Attributes:
        samples: observations, edge cases last.
        digest: of the observations.
        synthetic: some were made up.

    """

    samples: list[Sample]
    digest: str
    synthetic: bool


def golden_samples(
    request: CheckRequest, subject: Subject, digest: str | None, outlets: Outlets
) -> Golden:
    """Samples that are asked for, else those of the calibration; edge cases added.

    Args:
        request: names them.
        subject: what is checked.
        digest: of the calibration of what is checked, if it has one.
        outlets: for warnings.

    Raises:
        BackendError, CalibrationError: none, too few, made up without permission, or unfit.

    """
    from pi05_ros.backends.export.artifacts import find_golden

    if request.samples.named:
        samples = collect_samples(request.samples, subject, outlets.warn)
    else:
        path = find_golden(
            subject.weights, request.graphs.calibration, request.model.cache, digest
        )
        samples, _ = load_samples(path)
        require_fit(samples, subject.shapes, subject.model.config.vocab)
    require_real(samples, allow_synthetic=request.samples.allow_synthetic)
    return Golden(
        [*samples, *edge_cases(samples, subject.shapes.prompt_tokens)],
        set_digest(samples),
        any(sample.synthetic for sample in samples),
    )
