"""Compile one ONNX file into an engine plan. Importing this imports `tensorrt`.

Networks are strongly typed and TF32 is off, so the arithmetic is that of the graph: weakly typed
FP16 builds of this very model have given actions with a cosine of -0.55 to the right ones.
"""

from __future__ import annotations

import shlex
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.identity import parse_version
from pi05_ros.backends.tensorrt.callbacks import ErrorRecorder, Logger, Progress


@dataclass(frozen=True)
class BuildFlags:
    """Everything of a build that changes the engine; part of the engine key.

    Attributes:
        optimization_level: 0 to 5, TensorRT's default is 3. Some Thor releases build broken
            kernels for norms at 3 and above; the build retries lower when the check fails.
        workspace_mib: scratch memory that tactics may use; 0 leaves TensorRT's limit.

    """

    optimization_level: int = 3
    workspace_mib: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise BackendError(
                f"optimization level {self.optimization_level}: accepted are 0 to 5"
            )
        if self.workspace_mib < 0:
            raise BackendError(f"workspace {self.workspace_mib} MiB: accepted are 0 and more")

    def as_dict(self) -> dict[str, int | bool]:
        """For the engine key."""
        return {
            "optimization_level": self.optimization_level,
            "workspace_mib": self.workspace_mib,
            "strongly_typed": True,
            "tf32": False,
        }


@dataclass(frozen=True)
class Plan:
    """A compiled engine as bytes, and what came with it."""

    data: memoryview
    timing_cache: bytes
    seconds: float
    messages: list[str]


def trtexec_line(onnx: Path, plan: Path, flags: BuildFlags) -> str:
    """The command that builds the same engine with NVIDIA's own tool."""
    words = [
        "trtexec",
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        "--noTF32",
        f"--builderOptimizationLevel={flags.optimization_level}",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]
    if parse_version(trt.__version__) < (11, 0):
        words.insert(3, "--stronglyTyped")
    if flags.workspace_mib:
        words.append(f"--memPoolSize=workspace:{flags.workspace_mib}")
    return shlex.join(words)


def _builder(logger: Logger) -> trt.Builder:
    try:
        return trt.Builder(logger)
    except TypeError:  # pybind11: the factory returned nullptr
        raise BackendError(
            f"TensorRT {trt.__version__} cannot create a builder: {logger.last_errors()}. "
            "The usual reasons are a driver too old for it or no GPU"
        ) from None


def _parse(parser: trt.OnnxParser, path: Path) -> None:
    if parser.parse_from_file(str(path)):
        return
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        lines.append(f"{error.node_name() or f'node {error.node()}'}: {error.desc()}")
    listed = "\n  ".join(lines) or "no reason given"
    raise BackendError(f"TensorRT {trt.__version__} cannot parse {path.name}:\n  {listed}")


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
        flags: build flags.
        timing_cache: of an earlier build on this machine, to skip measuring again.
        progress: called with (phase, step, steps).

    Raises:
        BackendError: no builder, parser errors (all of them), or no engine, with TensorRT's
            own reasons.

    """
    logger = Logger()
    recorder = ErrorRecorder(logger)
    # Both outlive whatever TensorRT makes in there: it keeps plain pointers to them, and its
    # parser and timing cache still use the recorder while they are destroyed.
    try:
        return _compile(onnx, flags, timing_cache, progress, logger, recorder)
    except BaseException as error:
        # The traceback would keep those objects longer than logger and recorder live.
        traceback.clear_frames(error.__traceback__)
        raise


def _compile(
    onnx: Path,
    flags: BuildFlags,
    timing_cache: bytes,
    progress: Callable[[str, int, int], None] | None,
    logger: Logger,
    recorder: ErrorRecorder,
) -> Plan:
    started = time.perf_counter()
    builder = _builder(logger)
    # Required up to 10.x, where networks are weakly typed otherwise; the only kind in 11.x.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # After create_network: a network made later inherits the recorder, and the parser, which dies
    # after the network, then puts it back into freed memory.
    builder.error_recorder = recorder
    parser = trt.OnnxParser(network, logger)
    _parse(parser, onnx)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = flags.optimization_level
    if flags.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, flags.workspace_mib << 20)
    monitor = Progress(progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    cache = config.create_timing_cache(timing_cache)
    if timing_cache and (cache is None or not config.set_timing_cache(cache, False)):
        # Damaged, or from another GPU or release: start a new one.
        cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, False)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise BackendError(
            f"TensorRT {trt.__version__} could not build {onnx.name}: {logger.last_errors()}"
        )
    filled = config.get_timing_cache()
    return Plan(
        data=memoryview(memory),
        timing_cache=bytes(filled.serialize()) if filled is not None else b"",
        seconds=time.perf_counter() - started,
        messages=list(logger.kept),
    )
