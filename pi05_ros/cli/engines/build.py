"""`pi05 build CHECKPOINT`: export, compile with TensorRT, check, keep the report."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress, TaskID

from pi05_ros.backends.quantization.calibration import Calibration
from pi05_ros.cli.engines.check import PASSED, REFUSED, Golden, check_engines, golden_samples
from pi05_ros.cli.engines.engine_options import (
    add_model_arguments,
    add_sample_arguments,
    add_steps_argument,
    guarded,
    load_subject,
)
from pi05_ros.cli.engines.export import add_precision_arguments, export_subject, quantized_by

LADDER = (3, 2)  # some releases build broken norm kernels at 3 and above


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_precision_arguments(parser)
    add_sample_arguments(parser)
    parser.add_argument(
        "--optimization-level",
        type=int,
        help="0 to 5; default 3, and 2 if the check refuses that (after that, unless --prefill is "
        "given, the prefill in fp16)",
    )
    parser.add_argument("--workspace-mib", type=int, default=0, help="scratch memory limit")
    add_steps_argument(parser)
    parser.add_argument("--no-check", action="store_true", help="engines stay unusable until then")


def run(args: argparse.Namespace) -> int:
    """Build; exit code 0 proven (or built with --no-check), 1 built and refused, 2 not built."""
    return guarded(lambda: _run(args))


@dataclass(frozen=True)
class Attempt:
    """One rung of the ladder: what to build when the rung before was refused.

    Attributes:
        level: TensorRT's optimization level.
        prefill: precision of the prefill; None takes that of the whole build.
        note: why it is not what was asked for; empty for the first.

    """

    level: int
    prefill: str | None
    note: str = ""


def ladder(args: argparse.Namespace) -> list[Attempt]:
    """Optimization level 3, then 2, then the prefill in FP16; what the user fixed stays fixed."""
    levels = LADDER if args.optimization_level is None else (args.optimization_level,)
    rungs = [Attempt(levels[0], args.prefill)]
    for above, level in itertools.pairwise(levels):
        note = f"optimization level {level}: {above} was refused by its check"
        rungs.append(Attempt(level, args.prefill, note))
    if args.precision == "fp8" and args.prefill is None:
        tried = " and ".join(map(str, levels))
        note = f"prefill in FP16: quantized it was refused by its check at level {tried}"
        rungs.append(Attempt(levels[-1], "fp16", note))
    return rungs


def needs_fp8(args: argparse.Namespace) -> bool:
    """Whether the engines need a GPU with FP8; those of an INT8 calibration do not."""
    if not quantized_by(args):
        return False
    return args.calibration is None or Calibration.load(args.calibration).choice.weights == "fp8"


class _Bar:
    """TensorRT's build phases as progress bars."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, stage: str, phase: str, step: int, steps: int) -> None:
        key = (stage, phase)
        if key not in self.tasks:
            self.tasks[key] = self.progress.add_task(f"{stage}: {phase}", total=steps)
        self.progress.update(self.tasks[key], completed=step, visible=step < steps)


def _run(args: argparse.Namespace) -> int:
    from pi05_ros.backends.tensorrt import require_gpu
    from pi05_ros.backends.tensorrt.binding import require_tensorrt

    version = require_tensorrt()
    named = re.fullmatch(r"cuda(:\d+)?", args.device)
    device = require_gpu(fp8=needs_fp8(args), near=torch.device(args.device) if named else None)
    from pi05_ros.backends.tensorrt.compile import BuildFlags
    from pi05_ros.backends.tensorrt.engine_store import build_engines

    subject = load_subject(args, "fp32")
    result = REFUSED
    golden: Golden | None = None
    for rung in ladder(args):
        if rung.note:
            print(f"RETRY, {rung.note}")
        flags = BuildFlags(optimization_level=rung.level, workspace_mib=args.workspace_mib)
        given = argparse.Namespace(**{**vars(args), "prefill": rung.prefill})
        export, document = export_subject(given, subject, None)
        if golden is None and not args.no_check:  # missing ones must show before the long part
            golden = golden_samples(args, subject, document["calibration"])
        print(f"TensorRT {version}, optimization level {rung.level}, graphs {export}")
        with Progress(transient=True) as progress:
            bar: Any = _Bar(progress)
            engines = build_engines(export, flags, device, root=args.cache, progress=bar)
        print((engines.folder / "build.log").read_text(encoding="utf-8"), file=sys.stderr)
        print(f"built {engines.folder}")
        if golden is None:
            print("not checked: nothing will load these engines until `pi05 check` has passed")
            return PASSED
        result = check_engines(args, subject, engines, export, golden, rung.note)
        if result == PASSED:
            if rung.note:
                print(f"NOTE: these engines are a second choice, {rung.note}")
            return result
    print("refused, all of it. Try --precision fp16; the reports say which stage is off")
    return result
