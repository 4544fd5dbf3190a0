"""A stand-in for the module `tensorrt` with exactly the surface of typings/tensorrt.

Engines are ONNX Runtime sessions that read and write the addresses they were given, so the code
around them (binding, scratch memory, streams, keys, reports) runs as it does on a GPU. What goes
wrong can be chosen with `Faults`. test_surface.py holds this surface against the real bindings.
"""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fake_graph import Faults, Graph
from fake_types import (
    BuilderFlag,
    DataType,
    ErrorCodeTRT,
    ExecutionContextAllocationStrategy,
    IErrorRecorder,
    IHostMemory,
    ILayer,
    ILogger,
    INetworkDefinition,
    IProgressMonitor,
    ITensor,
    ITimingCache,
    IUnaryLayer,
    LayerInformationFormat,
    LayerType,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ParserError,
    ProfilingVerbosity,
    TensorIOMode,
    UnaryOperation,
    report,
)


def make_fake(version: str, faults: Faults) -> ModuleType:
    """Build the module; each call gives fresh classes bound to ``faults``."""
    trt = ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    trt.__spec__ = ModuleSpec("tensorrt", None)

    class IBuilderConfig:
        def __init__(self) -> None:
            self.profiling_verbosity: Any = None
            self.builder_optimization_level = 3
            self.progress_monitor: Any = None
            self._cleared: set[Any] = set()
            self._cache: ITimingCache | None = None

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            faults.calls.append(f"workspace {pool_size}")

        def clear_flag(self, flag: Any) -> None:
            self._cleared.add(flag)

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            if faults.damaged_timing_cache and serialized_timing_cache:
                return ITimingCache(b"")  # an empty one; the real ones log errors
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if faults.stale_timing_cache and cache.blob:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger
            self.error_recorder: Any = None
            if faults.builder_is_null:
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> IHostMemory | None:
            assert network.flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            assert trt.BuilderFlag.TF32 in config._cleared  # type: ignore[attr-defined]
            assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
            if config.progress_monitor is not None:
                monitor = config.progress_monitor
                monitor.phase_start("Building engine", None, 2)
                for step in range(2):  # phases are nested, and come again under one name
                    monitor.phase_start("Computing costs", "Building engine", 1)
                    assert monitor.step_complete("Computing costs", 0)
                    monitor.phase_finish("Computing costs")
                    assert monitor.step_complete("Building engine", step)
                monitor.phase_finish("Building engine")
            if faults.build_returns_none:
                text = "IBuilder::buildSerializedNetwork: no implementation for node MatMul"
                report(self.error_recorder, self._logger, ErrorCodeTRT.UNSPECIFIED_ERROR, text)
                return None
            content = {"path": network.path, "version": version}
            content["level"] = config.builder_optimization_level
            text = json.dumps(content).encode()
            return IHostMemory(b"PLAN" + len(text).to_bytes(4, "little") + text)

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network = network
            self._logger = logger

        @property
        def num_errors(self) -> int:
            return len(faults.parser_errors)

        def get_error(self, index: int) -> ParserError:
            return ParserError(*faults.parser_errors[index])

        def parse_from_file(self, model: str) -> bool:
            self._network.path = model
            for node, text in faults.parser_errors:
                self._logger.log(ILogger.Severity.ERROR, f"While parsing {node}: {text}")
            return not faults.parser_errors

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._addresses: dict[str, int] = {}
            self._memory = (0, 0)
            faults.live_contexts += 1

        def __del__(self) -> None:
            faults.live_contexts -= 1

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name == faults.refuse_address_of:
                return False
            self._addresses[name] = memory
            return True

        def set_device_memory(self, memory: int, size: int) -> None:
            self._memory = (memory, size)

        def infer_shapes(self) -> list[str]:
            return faults.missing_shapes

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert isinstance(stream_handle, int)
            assert self._memory[1] >= self._engine.device_memory_size_v2
            faults.calls.append(f"execute {self._engine._graph.stage}")
            broken = self._engine._graph.level >= faults.execute_fails_from_level
            if faults.execute_returns_false or broken:
                engine, code = self._engine, ErrorCodeTRT.FAILED_EXECUTION
                report(engine._recorder, engine._logger, code, "Cask: an illegal access")
                return False
            self._engine._graph.execute(self._addresses)
            return True

    class EngineInspector:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine

        def get_engine_information(self, format: Any) -> str:
            return self._engine._graph.layers()

    class ICudaEngine:
        def __init__(self, path: str, level: int, logger: Any, recorder: Any) -> None:
            self._logger = logger
            self._recorder = recorder
            self._graph = Graph(path, level, faults, version)

        @property
        def num_io_tensors(self) -> int:
            return len(self._graph.tensors)

        @property
        def device_memory_size_v2(self) -> int:
            return 4096

        def get_tensor_name(self, index: int) -> str:
            return list(self._graph.tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode[self._graph.tensors[name][2]]

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[self._graph.tensors[name][0]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._graph.tensors[name][1]

        def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
            assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
            return None if faults.context_is_none else IExecutionContext(self)

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            if faults.runtime_is_null:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger
            self.engine_host_code_allowed = True
            self.error_recorder: Any = None

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            assert not self.engine_host_code_allowed
            blob = bytes(serialized_engine)
            length = int.from_bytes(blob[4:8], "little")
            whole = blob[:4] == b"PLAN" and len(blob) == 8 + length
            content = json.loads(blob[8:]) if whole else {}
            if faults.deserialize_returns_none or content.get("version") != version:
                text = "Serialization assertion failed"
                report(self.error_recorder, self._logger, ErrorCodeTRT.UNSPECIFIED_ERROR, text)
                return None
            return ICudaEngine(
                content["path"], content["level"], self._logger, self.error_recorder
            )

    for item in (
        BuilderFlag,
        DataType,
        ExecutionContextAllocationStrategy,
        LayerInformationFormat,
        MemoryPoolType,
        NetworkDefinitionCreationFlag,
        ProfilingVerbosity,
        TensorIOMode,
        LayerType,
        UnaryOperation,
        ILayer,
        IUnaryLayer,
        ITensor,
        ErrorCodeTRT,
        IErrorRecorder,
        ILogger,
        IProgressMonitor,
        IHostMemory,
        ITimingCache,
        INetworkDefinition,
        IBuilderConfig,
        Builder,
        ParserError,
        OnnxParser,
        IExecutionContext,
        EngineInspector,
        ICudaEngine,
        Runtime,
    ):
        setattr(trt, item.__name__, item)
    return trt
