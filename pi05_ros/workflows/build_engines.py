"""Export, compile with TensorRT, check; fall back to a safer build where the check refuses."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.backends.tensorrt.flavor import (
    RTX,
    WORDS,
    Capability,
    Flavor,
    parse_targets,
    require_any,
    require_fp4_target,
    require_fp8_targets,
    sm,
    usable_flavor,
)
from pi05_ros.backends.verification.judgment import Judge, judge_kernels
from pi05_ros.small_files import read_text
from pi05_ros.workflows.check_engines import check_engines
from pi05_ros.workflows.engine_requests import BuildRequest, CheckRequest, GraphRequest, Outlets
from pi05_ros.workflows.export_graphs import export_subject
from pi05_ros.workflows.golden import Golden, golden_samples
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


def build_attempts(request: BuildRequest, flavor: Flavor) -> list[BuildAttempt]:
    """Optimization level 3, then 2, then the prefill in FP16; what the user fixed stays fixed.

    TensorRT for RTX has no levels: the prefill in FP16 is its only other attempt.
    """
    level, graphs = request.optimization_level, request.graphs
    levels = FALLBACK_LEVELS if level is None else (level,)
    if flavor.ahead_of_time:
        levels = levels[:1]
    attempts = [BuildAttempt(levels[0], graphs.prefill)]
    for above, level in itertools.pairwise(levels):
        note = f"optimization level {level}: {above} was refused by its check"
        attempts.append(BuildAttempt(level, graphs.prefill, note))
    if graphs.precision == "fp8" and graphs.prefill is None:
        tried = "" if flavor.ahead_of_time else f" at level {' and '.join(map(str, levels))}"
        note = f"prefill in FP16: quantized it was refused by its check{tried}"
        attempts.append(BuildAttempt(levels[-1], "fp16", note))
    return attempts


@dataclass(frozen=True)
class BuildTarget:
    """Where engines are for.

    Attributes:
        flavor: which TensorRT builds them.
        device: the GPU they can be checked on; the CPU if it is not here.
        target: compute capability; None for full TensorRT.
        here: whether the device is what they are for.

    """

    flavor: Flavor
    device: torch.device
    target: Capability | None
    here: bool = True


def build_targets(request: BuildRequest) -> list[BuildTarget]:
    """What to build for: the GPU of this machine, or the targets that were named.

    Raises:
        BackendError: no such TensorRT, GPU or target, or a GPU without FP8 where it is needed.

    """
    from pi05_ros.backends import tensorrt
    from pi05_ros.backends.tensorrt.binding import capability_of

    named = re.fullmatch(r"cuda(:\d+)?", request.model.device)
    near = torch.device(request.model.device) if named else None
    fp8, fp4 = needs_fp8(request.graphs), needs_fp4(request.graphs)
    if request.targets:
        RTX.require()
        targets = parse_targets(",".join(request.targets))
        if fp8:
            require_fp8_targets(targets)
        for target in targets if fp4 else ():
            require_fp4_target(RTX, target)
        cpu = torch.device("cpu")
        there = torch.cuda.is_available()
        device = tensorrt.require_gpu(fp8=False, near=near) if there else cpu
        capability = capability_of(device)
        here = {target: target == capability for target in targets}
        return [BuildTarget(RTX, device if here[t] else cpu, t, here[t]) for t in targets]
    if request.flavor == "auto":
        require_any()
    else:
        WORDS[request.flavor].require()
    try:
        device = tensorrt.require_gpu(fp8=fp8, near=near)
    except BackendError as error:
        if request.flavor == "rtx" and not torch.cuda.is_available():
            raise BackendError(
                f"{error}. {RTX.title} compiles without one for a GPU that you name: --target "
                + ", ".join(map(sm, RTX.targets))
            ) from None
        raise
    capability = capability_of(device)
    auto = request.flavor == "auto"
    flavor = usable_flavor(capability) if auto else WORDS[request.flavor]
    if flavor.ahead_of_time and capability not in flavor.targets:
        raise BackendError(
            f"{flavor.title} does not run on {sm(capability)}; this GPU needs --flavor tensorrt"
        )
    if fp4:
        require_fp4_target(flavor, capability)
    return [BuildTarget(flavor, device, capability if flavor.ahead_of_time else None)]


def needs_fp8(graphs: GraphRequest) -> bool:
    """Whether the engines need a GPU with FP8; those of an INT8 calibration do not."""
    if not graphs.quantized_stages:
        return False
    return (
        graphs.calibration is None or Calibration.load(graphs.calibration).choice.weights == "fp8"
    )


def needs_fp4(graphs: GraphRequest) -> bool:
    """Whether the engines have NVFP4 products; only a calibration that is named can ask for it."""
    if graphs.calibration is None:
        return False
    choice = Calibration.load(graphs.calibration).choice
    return any(stage in choice.fp4_mlp_stages for stage in graphs.quantized_stages)


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
    results = [_build_for(where, request, outlets, phases) for where in build_targets(request)]
    return all(results)


def _build_for(
    where: BuildTarget,
    request: BuildRequest,
    outlets: Outlets,
    phases: Callable[[], AbstractContextManager[Phases]],
) -> bool:
    from pi05_ros.backends.tensorrt.engine_store import build_engines
    from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags

    flavor, model = where.flavor, request.model
    version = flavor.require()
    subject = load_subject(model, "fp32")
    golden: Golden | None = None
    for attempt in build_attempts(request, flavor):
        if attempt.note:
            outlets.say(f"RETRY, {attempt.note}")
        flags = BuildFlags(attempt.level, request.workspace_mib, flavor, where.target)
        graphs = replace(request.graphs, prefill=attempt.prefill)
        check = CheckRequest(model, graphs, request.samples)
        export, document = export_subject(model, graphs, subject)
        # Missing observations must show before the long part.
        if golden is None and request.check and where.here:
            golden = golden_samples(check, subject, document["calibration"], outlets)
        how = f"for {sm(where.target)}" if where.target else f"optimization level {attempt.level}"
        outlets.say(f"{flavor.title} {version}, {how}, graphs {export}")
        with phases() as show:
            engines = build_engines(export, flags, where.device, root=model.cache, progress=show)
        outlets.warn(read_text(engines.folder / "build.log"))
        outlets.say(f"built {engines.folder}")
        if golden is None:
            if _kernels_refused(engines, export, outlets):
                continue
            outlets.say(
                "not checked: nothing will load these engines until `pi05 check` has passed"
                + ("" if where.here else f" on a machine with {sm(where.target or (0, 0))}")
            )
            return True
        if check_engines(check, subject, engines, export, golden, outlets, attempt.note):
            if attempt.note:
                outlets.say(f"NOTE: these engines are a second choice, {attempt.note}")
            return True
    outlets.say("refused, all of it. Try --precision fp16; the reports say which stage is off")
    return False


def _kernels_refused(engines: Any, export: Path, outlets: Outlets) -> bool:
    """Judge what can be judged without the GPU: the kernels of the engines."""
    from pi05_ros.backends.tensorrt.engine_report import kernel_facts

    judge = Judge()
    judge_kernels(judge, kernel_facts(engines, export))
    refused = [finding for finding in judge.findings if not finding.ok]
    for finding in refused:
        outlets.say(f"REFUSED: {finding.item}: {finding.value:.6g}, limit {finding.limit:g}")
    return bool(refused)
