"""Compile one ONNX file into an engine plan, with TensorRT or TensorRT for RTX.

Networks are strongly typed and TF32 is off, so the arithmetic is that of the graph: weakly typed
FP16 builds of this very model have given actions with a cosine of -0.55 to the right ones.
"""

from __future__ import annotations

import json
import shlex
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.identity import parse_version
from pi05_ros.backends.tensorrt.callbacks import callbacks_of
from pi05_ros.backends.tensorrt.flavor import TENSORRT, Capability, Flavor, sm
from pi05_ros.backends.tensorrt.network import network_facts
from pi05_ros.backends.verification.kernels import kernels_in_log

if TYPE_CHECKING:
    import tensorrt as trt

_DEAD: list[Any] = []  # objects that must never be destroyed, see `require_alive`


@dataclass(frozen=True)
class BuildFlags:
    """Everything of a build that changes the engine; part of the engine key.

    Attributes:
        optimization_level: 0 to 5, TensorRT's default is 3. Some Thor releases build broken
            kernels for norms at 3 and above; the build retries lower when the check fails.
            TensorRT for RTX ignores it.
        workspace_mib: scratch memory that tactics may use; 0 leaves TensorRT's limit.
        flavor: which TensorRT.
        target: compute capability to compile for; None is the GPU of this machine.

    """

    optimization_level: int = 3
    workspace_mib: int = 0
    flavor: Flavor = TENSORRT
    target: Capability | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise BackendError(
                f"optimization level {self.optimization_level}: accepted are 0 to 5"
            )
        if self.workspace_mib < 0:
            raise BackendError(f"workspace {self.workspace_mib} MiB: accepted are 0 and more")
        if self.target is not None and self.target not in self.flavor.targets:
            known = ", ".join(map(sm, self.flavor.targets)) or "only the GPU of this machine"
            raise BackendError(
                f"{self.flavor.title} does not compile for {sm(self.target)}; accepted: {known}"
            )
        if self.flavor.ahead_of_time and self.target is None:
            raise BackendError(f"{self.flavor.title} needs a target to compile for")

    def as_dict(self) -> dict[str, int | bool]:
        """For the engine key; flavor and target have places of their own there."""
        return {
            "optimization_level": self.optimization_level,
            "workspace_mib": self.workspace_mib,
            "strongly_typed": True,
            "tf32": False,
        }


@dataclass(frozen=True)
class Plan:
    """A compiled engine as bytes, and what came with it.

    Attributes:
        data: the plan.
        timing_cache: measurements for the next build; empty where the flavor has none.
        seconds: of parsing and building.
        messages: warnings and errors.
        layers: JSON of the kernels as the builder listed them, in the form of the engine inspector
            (empty list if it did not), with types of the parsed network under "Network".

    """

    data: memoryview
    timing_cache: bytes
    seconds: float
    messages: list[str]
    layers: str


def command_line(onnx: Path, plan: Path, flags: BuildFlags) -> str:
    """The command that builds the same engine with NVIDIA's own tool."""
    words = [f"--onnx={onnx}", f"--saveEngine={plan}"]
    if flags.flavor.ahead_of_time:
        assert flags.target is not None
        words = ["tensorrt_rtx", *words, f"--computeCapabilities={sm(flags.target)[2:]}"]
    else:
        words = ["trtexec", *words, "--noTF32"]
        if parse_version(flags.flavor.load().__version__) < (11, 0):
            words.insert(3, "--stronglyTyped")
        words.append(f"--builderOptimizationLevel={flags.optimization_level}")
    words += ["--profilingVerbosity=detailed", "--skipInference"]
    if flags.workspace_mib:
        words.append(f"--memPoolSize=workspace:{flags.workspace_mib}")
    return shlex.join(words)


def require_alive(made: Any, logger: Any, what: str, flavor: Flavor) -> None:
    """Refuse a builder or runtime that reported an error while it was made.

    Without a usable driver TensorRT 11 returns a runtime that crashes at any use, destruction
    included; it is kept for ever.

    Raises:
        BackendError: with TensorRT's reason.

    """
    if any(not line.startswith("WARNING") for line in logger.kept):
        _DEAD.append(made)
        raise BackendError(
            f"{flavor.title} {flavor.load().__version__} cannot create a {what}: "
            f"{logger.last_errors()}. The usual reasons are a driver too old for it or no GPU"
        )


def _builder(flavor: Flavor, logger: Any) -> trt.Builder:
    module = flavor.load()
    try:
        builder: trt.Builder = module.Builder(logger)
    except TypeError:  # pybind11: the factory returned nullptr
        raise BackendError(
            f"{flavor.title} {module.__version__} cannot create a builder: "
            f"{logger.last_errors()}. The usual reasons are a driver too old for it or no GPU"
        ) from None
    if not flavor.ahead_of_time:  # which needs neither a GPU nor a driver to compile
        require_alive(builder, logger, "builder", flavor)
    return builder


def _parse(parser: trt.OnnxParser, path: Path, title: str) -> None:
    if parser.parse_from_file(str(path)):
        return
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = ""
        if error.node() >= 0:  # else the file as a whole
            name = error.node_name() or f"node {error.node()}"
            node = f"{name} ({error.node_operator()}): "
        lines.append(f"{node}{error.desc()}")
    listed = "\n  ".join(lines) or "no reason given"
    raise BackendError(f"{title} cannot parse {path.name}:\n  {listed}")


def compile_plan(
    onnx: Path,
    flags: BuildFlags,
    *,
    timing_cache: bytes = b"",
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Build one engine.

    Args:
        onnx: the graph; external weights lie next to it.
        flags: build flags, flavor and target.
        timing_cache: of an earlier build on this machine, to skip measuring again; flavors that
            compile ahead of time measure nothing.
        progress: called with (phase, step, steps).

    Raises:
        BackendError: no builder, parser errors (all of them), or no engine, with TensorRT's
            own reasons.

    """
    classes = callbacks_of(flags.flavor.load())
    logger = classes.logger()
    recorder = classes.error_recorder(logger)
    monitor = classes.progress(progress) if progress is not None else None
    # All three outlive whatever TensorRT makes in there: it keeps plain pointers to them, and its
    # parser and timing cache still use the recorder while they are destroyed.
    try:
        return _compile(onnx, flags, timing_cache, monitor, logger, recorder)
    except BaseException as error:
        # The traceback would keep those objects longer than logger and recorder live.
        traceback.clear_frames(error.__traceback__)
        raise


def _compile(
    onnx: Path,
    flags: BuildFlags,
    timing_cache: bytes,
    monitor: Any,
    logger: Any,
    recorder: Any,
) -> Plan:
    started = time.perf_counter()
    flavor = flags.flavor
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = flavor.load()
    title = f"{flavor.title} {trt.__version__}"
    builder = _builder(flavor, logger)
    # Required up to 10.x, where networks are weakly typed otherwise; the only kind in 11.x.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # After create_network: a network made later inherits the recorder, and the parser, which dies
    # after the network, then puts it back into freed memory.
    builder.error_recorder = recorder
    parser = trt.OnnxParser(network, logger)
    _parse(parser, onnx, title)
    facts = network_facts(network, trt)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if flags.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, flags.workspace_mib << 20)
    if monitor is not None:
        config.progress_monitor = monitor
    if flavor.ahead_of_time:
        _set_target(config, trt, flags)
    else:
        config.builder_optimization_level = flags.optimization_level
        _set_timing_cache(config, timing_cache)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise BackendError(f"{title} could not build {onnx.name}: {logger.last_errors()}")
    filled = None if flavor.ahead_of_time else config.get_timing_cache()
    layers = {"Layers": kernels_in_log(logger.kernels), "Network": facts}
    return Plan(
        data=memoryview(memory),
        timing_cache=bytes(filled.serialize()) if filled is not None else b"",
        seconds=time.perf_counter() - started,
        messages=list(logger.kept),
        layers=json.dumps(layers),
    )


def _set_target(config: Any, rtx: Any, flags: BuildFlags) -> None:
    """One capability, so that the builder's list of kernels is that of the plan."""
    assert flags.target is not None
    config.num_compute_capabilities = 1
    capability = getattr(rtx.ComputeCapability, sm(flags.target).upper())
    config.set_compute_capability(capability, 0)
    # Asked for by NVIDIA where contexts get their memory from the caller and are captured.
    config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)


def _set_timing_cache(config: trt.IBuilderConfig, timing_cache: bytes) -> None:
    cache = config.create_timing_cache(timing_cache)
    if timing_cache and (cache is None or not config.set_timing_cache(cache, False)):
        # Damaged, or from another GPU or release: start a new one.
        cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, False)
