"""Export, compile with TensorRT, check; fall back to a safer build where the check refuses."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.workflows.check_engines import check_engines
from pi05_ros.workflows.engine_requests import BuildRequest, CheckRequest, GraphRequest
from pi05_ros.workflows.export_graphs import export_subject
from pi05_ros.workflows.golden import Golden, golden_samples
from pi05_ros.workflows.outlets import Outlets
from pi05_ros.workflows.subject import load_subject

FALLBACK_LEVELS = (3, 2)  # some releases build broken norm kernels at 3 and above

Phases = Callable[[str, str, int, int], None]
"""Takes stage, phase of TensorRT's build, step and number of steps."""


@dataclass(frozen=True)
class BuildAttempt:
    """One try of the fallback: what to build when the try before was refused.

    Attributes:
        level: TensorRT's optimization level.
        prefill: precision of the prefill; None takes that of the whole build.
        note: why it is not what was asked for; empty for the first.

    """

    level: int
    prefill: str | None
    note: str = ""


def build_attempts(request: BuildRequest) -> list[BuildAttempt]:
    """Optimization level 3, then 2, then the prefill in FP16; what the user fixed stays fixed."""
    level, graphs = request.optimization_level, request.graphs
    levels = FALLBACK_LEVELS if level is None else (level,)
    attempts = [BuildAttempt(levels[0], graphs.prefill)]
    for above, level in itertools.pairwise(levels):
        note = f"optimization level {level}: {above} was refused by its check"
        attempts.append(BuildAttempt(level, graphs.prefill, note))
    if graphs.precision == "fp8" and graphs.prefill is None:
        tried = " and ".join(map(str, levels))
        note = f"prefill in FP16: quantized it was refused by its check at level {tried}"
        attempts.append(BuildAttempt(levels[-1], "fp16", note))
    return attempts


def needs_fp8(graphs: GraphRequest) -> bool:
    """Whether the engines need a GPU with FP8; those of an INT8 calibration do not."""
    if not graphs.quantized_stages:
        return False
    return (
        graphs.calibration is None or Calibration.load(graphs.calibration).choice.weights == "fp8"
    )


def _no_phases() -> AbstractContextManager[Phases]:
    return contextlib.nullcontext(lambda stage, phase, step, steps: None)


def build(
    request: BuildRequest,
    outlets: Outlets = Outlets(),
    phases: Callable[[], AbstractContextManager[Phases]] = _no_phases,
) -> bool:
    """Build; True if the engines are verified, or built without a check on request.

    Args:
        request: what to build.
        outlets: for results, warnings (TensorRT's log) and the progress of the check.
        phases: makes what shows the progress of one build.

    Raises:
        BackendError, CalibrationError: not built.

    """
    from pi05_ros.backends.tensorrt import require_gpu
    from pi05_ros.backends.tensorrt.binding import require_tensorrt

    version = require_tensorrt()
    model = request.model
    named = re.fullmatch(r"cuda(:\d+)?", model.device)
    near = torch.device(model.device) if named else None
    device = require_gpu(fp8=needs_fp8(request.graphs), near=near)
    from pi05_ros.backends.tensorrt.compile import BuildFlags
    from pi05_ros.backends.tensorrt.engine_store import build_engines

    subject = load_subject(model, "fp32")
    passed = False
    golden: Golden | None = None
    for attempt in build_attempts(request):
        if attempt.note:
            outlets.say(f"RETRY, {attempt.note}")
        flags = BuildFlags(optimization_level=attempt.level, workspace_mib=request.workspace_mib)
        graphs = replace(request.graphs, prefill=attempt.prefill)
        check = CheckRequest(model, graphs, request.samples)
        export, document = export_subject(model, graphs, subject)
        if golden is None and request.check:  # missing ones must show before the long part
            golden = golden_samples(check, subject, document["calibration"], outlets)
        outlets.say(f"TensorRT {version}, optimization level {attempt.level}, graphs {export}")
        with phases() as show:
            engines = build_engines(export, flags, device, root=model.cache, progress=show)
        outlets.warn((engines.folder / "build.log").read_text(encoding="utf-8"))
        outlets.say(f"built {engines.folder}")
        if golden is None:
            outlets.say(
                "not checked: nothing will load these engines until `pi05 check` has passed"
            )
            return True
        passed = check_engines(check, subject, engines, export, golden, outlets, attempt.note)
        if passed:
            if attempt.note:
                outlets.say(f"NOTE: these engines are a second choice, {attempt.note}")
            return True
    outlets.say("refused, all of it. Try --precision fp16; the reports say which stage is off")
    return passed
