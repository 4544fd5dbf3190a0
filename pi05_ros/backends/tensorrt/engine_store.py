"""Build engines, keep them, find those that may be used, and load them."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pi05_ros.backends.cache import private_folder, require_private
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.export.export_document import (
    DTYPES,
    read_export,
    stage_precision,
    verify_export,
)
from pi05_ros.backends.files import (
    model_folder,
    sha256_file,
    whole_folder,
    write_atomically,
)
from pi05_ros.backends.identity import engine_key, key_document, machine_facts
from pi05_ros.backends.staged.shapes import StageShapes, graphs_of, stage_spec
from pi05_ros.backends.tensorrt.binding import on_device
from pi05_ros.backends.tensorrt.engine_report import require_verified
from pi05_ros.backends.tensorrt.engine_set import (
    HOW_TO,
    EngineSet,
    UnverifiedEngineError,
    open_set,
    require_fit,
    require_match,
)
from pi05_ros.backends.tensorrt.flavor import TENSORRT, sm
from pi05_ros.backends.tensorrt.kernel_cache import KERNELS, KernelCache
from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags, Plan, command_line, compile_plan
from pi05_ros.backends.tensorrt.preflight import require_room
from pi05_ros.backends.tensorrt.runtime import PlanFile, Scratch, TrtRunner
from pi05_ros.small_files import MIB, read_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedPlans:
    """Runners by graph name, and the kernels that were compiled for them, if any."""

    runners: dict[str, TrtRunner]
    kernels: KernelCache | None


def build_engines(
    export: Path,
    flags: BuildFlags,
    device: torch.device,
    *,
    root: Path | None = None,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> EngineSet:
    """Compile the stages of an export, for this machine or for a target of TensorRT for RTX.

    Args:
        export: folder with ``export.json``.
        flags: build flags, flavor and target.
        device: the GPU; the CPU where a target is compiled on a machine without one.
        root: cache root.
        progress: called with (stage, phase, step, steps).

    Returns:
        The engines, all of them; if one fails nothing is kept. They have no report yet, so
        nothing will load them for a robot.

    Raises:
        BackendError: TensorRT missing or unable, graphs altered, no room.

    """
    flavor = flags.flavor
    version = flavor.require()
    source = read_export(export)
    verify_export(export, source)
    document = key_document(
        graph_hash=source["graph_hash"],
        weights=source["weights"],
        shapes=source["shapes"],
        flavor=flavor.name,
        tensorrt=version,
        target="" if flags.target is None else sm(flags.target),
        # Plans for a target load on every machine with such a GPU; the report names the one.
        machine={} if flavor.ahead_of_time else machine_facts(device),
        flags={
            **flags.as_dict(),
            "activation": source["activation"],
            "preset": source["preset"],
            "precision": stage_precision(source),
            "layout": source["layout"],
        },
    )
    key = engine_key(document)
    base = private_folder(model_folder(source["weights"], root))
    folder = base / "engines" / key
    if folder.exists():
        require_private(folder)
    require_room(export, source, base, device, on_gpu=not flavor.ahead_of_time)
    cache_path = base / "timing.cache"
    lines = [f"engine key {key}", json.dumps(document, indent=1, sort_keys=True)]
    plans: dict[str, str] = {}
    with whole_folder(folder, "key.json", mode=0o700) as part:
        for stage in graphs_of(source["layout"], source["shapes"]["depth"]):
            onnx, target = export / f"{stage}.onnx", part / f"{stage}.plan"
            lines.append(command_line(onnx, folder / target.name, flags))
            log.info("building %s; the same by hand: %s", stage, lines[-1])
            report = None if progress is None else functools.partial(progress, stage)
            timing = read_bytes(cache_path, 256 * MIB) if cache_path.is_file() else b""
            with on_device(device):
                plan = compile_plan(onnx, flags, timing_cache=timing, progress=report)
            write_atomically(target, plan.data)
            if plan.timing_cache:
                write_atomically(cache_path, plan.timing_cache)
            size = target.stat().st_size
            lines += [f"{stage}: {size} bytes in {plan.seconds:.1f} s", *plan.messages]
            layers = plan.layers if flavor.ahead_of_time else _inspected(target, plan, device)
            write_atomically(part / f"layers_{stage}.json", layers.encode())
            plans[stage] = sha256_file(target)
        lines.append(time.strftime("finished %Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        write_atomically(part / "build.log", ("\n".join(lines) + "\n").encode())
        content = {
            "key": key, "document": document, "plans": plans, "export": str(export.resolve()),
        }  # fmt: skip
        text = json.dumps(content, indent=1, sort_keys=True)
        write_atomically(part / "key.json", text.encode())
        (folder / "check.json").unlink(missing_ok=True)
    return EngineSet(folder, document)


def _inspected(path: Path, plan: Plan, device: torch.device) -> str:
    """Kernels as the engine inspector gives them, with the facts of the parsed network."""
    with on_device(device):
        document = json.loads(PlanFile(path, TENSORRT).layers_json())
    if isinstance(document, dict):
        document["Network"] = json.loads(plan.layers)["Network"]
    return json.dumps(document)


def find_verified(
    weights: str,
    shapes: StageShapes,
    precision: Precision,
    device: torch.device,
    root: Path | None = None,
) -> EngineSet:
    """The newest verified engines for a policy.

    Raises:
        UnverifiedEngineError: none, with the reason of the newest that nearly fits.

    """
    folder = model_folder(weights, root) / "engines"
    newest = sorted(
        (path for path in folder.glob("[!.]*") if path.is_dir()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    reasons: list[str] = []
    for path in newest:
        try:
            engines = open_set(path)
            require_match(engines, weights, device)
            require_fit(engines, shapes, precision)
            require_verified(engines, device)
        except UnverifiedEngineError as error:
            reasons.append(str(error))
            continue
        return engines
    if reasons:
        raise UnverifiedEngineError(
            f"none of {len(reasons)} engine sets may be used; the newest: {reasons[0]}"
        )
    raise UnverifiedEngineError(f"no engines of this checkpoint in {folder}; {HOW_TO}")


def load_runners(engines: EngineSet, device: torch.device) -> LoadedPlans:
    """Deserialize the plans with one scratch memory between them.

    TensorRT for RTX compiles their kernels here, for the GPU at hand, unless the kernels kept
    beside the plans are of this GPU, driver and release.
    """
    flavor = engines.flavor
    dtype = DTYPES[engines.document["flags"]["activation"]]
    kernels = KernelCache(engines.folder / KERNELS) if flavor.ahead_of_time else None
    with on_device(device):
        plans = {
            stage: PlanFile(engines.folder / f"{stage}.plan", flavor) for stage in engines.graphs
        }
        scratch = Scratch(device)
        scratch.reserve(max(plan.engine.device_memory_size_v2 for plan in plans.values()))
        runners = {}
        for index, (stage, plan) in enumerate(plans.items(), 1):
            if kernels is not None:
                log.info("kernels of %s for this GPU (%d of %d)", stage, index, len(plans))
            spec = stage_spec(stage, engines.shapes, dtype)
            runners[stage] = TrtRunner(plan, spec, scratch, kernels)
    return LoadedPlans(runners, kernels)
