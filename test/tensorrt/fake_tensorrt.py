"""A stand-in for the module `tensorrt` with exactly the surface of typings/tensorrt.

Engines are ONNX Runtime sessions that read and write the addresses they were given, so the code
around them (binding, scratch memory, streams, keys, reports) runs as it does on a GPU. What goes
wrong can be chosen with `Faults`. test_surface.py holds this surface against the real bindings.
"""

from __future__ import annotations

import ctypes
import enum
import json
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


@dataclass
class Faults:
    """What the fake does wrong; all off at first."""

    builder_is_null: bool = False
    runtime_is_null: bool = False
    build_returns_none: bool = False
    deserialize_returns_none: bool = False
    context_is_none: bool = False
    execute_returns_false: bool = False
    refuse_address_of: str = ""
    missing_shapes: list[str] = field(default_factory=list)
    parser_errors: list[tuple[str, str]] = field(default_factory=list)
    wrong_dtype_of: str = ""
    wrong_shape_of: str = ""
    extra_tensor: str = ""
    drop_fp8: bool = False
    half_softmax: bool = False
    no_layer_details: bool = False
    perturb: float = 0.0  # of all outputs from optimisation level 3 on
    perturb_fp8_prefill: float = 0.0
    stale_timing_cache: bool = False
    calls: list[str] = field(default_factory=list)
    live_contexts: int = 0


_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}


def make_fake(version: str, faults: Faults) -> ModuleType:
    """Build the module; each call gives fresh classes bound to ``faults``."""
    import onnx
    import onnxruntime

    trt = ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    trt.__spec__ = ModuleSpec("tensorrt", None)

    class BuilderFlag(enum.Enum):
        TF32 = 0

    class DataType(enum.Enum):
        FLOAT = 0
        HALF = 1
        INT32 = 3

    class ExecutionContextAllocationStrategy(enum.Enum):
        USER_MANAGED = 2

    class LayerInformationFormat(enum.Enum):
        JSON = 1

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 0

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class ProfilingVerbosity(enum.Enum):
        DETAILED = 2

    class TensorIOMode(enum.Enum):
        INPUT = 1
        OUTPUT = 2

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3
            VERBOSE = 4

        def __init__(self) -> None: ...

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    class ErrorCodeTRT(enum.IntEnum):
        FAILED_EXECUTION = 5
        INTERNAL_ERROR = 2

    class IErrorRecorder:
        def __init__(self) -> None: ...

        def report_error(self, arg0: Any, arg1: str) -> bool:
            raise NotImplementedError

        def num_errors(self) -> int:
            raise NotImplementedError

        def get_error_code(self, arg0: int) -> Any:
            raise NotImplementedError

        def get_error_desc(self, arg0: int) -> str:
            raise NotImplementedError

        def has_overflowed(self) -> bool:
            raise NotImplementedError

        def clear(self) -> None:
            raise NotImplementedError

    def report(recorder: Any, logger: Any, code: Any, text: str) -> None:
        """Errors go to the recorder, and to the log only where there is none."""
        if recorder is None:
            logger.log(ILogger.Severity.ERROR, text)
        else:
            assert isinstance(recorder, IErrorRecorder)
            assert recorder.report_error(code, text)
            assert recorder.get_num_errors() > 0  # the name that C++ looks up

    class IProgressMonitor:
        def __init__(self) -> None: ...

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            raise NotImplementedError

        def step_complete(self, phase_name: str, step: int) -> bool:
            raise NotImplementedError

        def phase_finish(self, phase_name: str) -> None:
            raise NotImplementedError

    class IHostMemory(bytes):
        @property
        def nbytes(self) -> int:
            return len(self)

    class ITimingCache:
        def __init__(self, blob: bytes) -> None:
            self.blob = blob

        def serialize(self) -> IHostMemory:
            return IHostMemory(self.blob or b"measured")

    class INetworkDefinition:
        def __init__(self, flags: int) -> None:
            self.flags = flags
            self.path = ""

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

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
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
            assert BuilderFlag.TF32 in config._cleared
            assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("Building engine", None, 2)
                for step in range(2):
                    assert config.progress_monitor.step_complete("Building engine", step)
                config.progress_monitor.phase_finish("Building engine")
            if faults.build_returns_none:
                text = "no implementation for node MatMul"
                report(self.error_recorder, self._logger, ErrorCodeTRT.INTERNAL_ERROR, text)
                return None
            content = {"path": network.path, "version": version}
            content["level"] = config.builder_optimization_level
            text = json.dumps(content).encode()
            return IHostMemory(b"PLAN" + len(text).to_bytes(4, "little") + text)

    class ParserError:
        def __init__(self, node: str, text: str) -> None:
            self._node, self._text = node, text

        def desc(self) -> str:
            return self._text

        def node(self) -> int:
            return 7

        def node_name(self) -> str:
            return self._node

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network = network

        @property
        def num_errors(self) -> int:
            return len(faults.parser_errors)

        def get_error(self, index: int) -> ParserError:
            return ParserError(*faults.parser_errors[index])

        def parse_from_file(self, model: str) -> bool:
            self._network.path = model
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
            faults.calls.append(f"execute {self._engine._stage}")
            if faults.execute_returns_false:
                engine, code = self._engine, ErrorCodeTRT.FAILED_EXECUTION
                report(engine._recorder, engine._logger, code, "Cask: an illegal access")
                return False
            return self._engine._execute(self._addresses)

    class EngineInspector:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine

        def get_engine_information(self, format: Any) -> str:
            return self._engine._layers()

    class ICudaEngine:
        def __init__(self, path: str, level: int, logger: Any, recorder: Any) -> None:
            self._logger = logger
            self._recorder = recorder
            self._level = level
            self._stage = Path(path).stem
            self._path = path
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(path, options)
            graph = onnx.load(path, load_external_data=False).graph
            self._fp8 = any(node.op_type == "DequantizeLinear" for node in graph.node)
            self._tensors: dict[str, tuple[str, tuple[int, ...], Any]] = {}
            for values, mode in (
                (graph.input, TensorIOMode.INPUT),
                (graph.output, TensorIOMode.OUTPUT),
            ):
                for value in values:
                    kind = value.type.tensor_type
                    shape = tuple(d.dim_value for d in kind.shape.dim)
                    if value.name == faults.wrong_shape_of:
                        shape = (*shape[:-1], shape[-1] + 1)
                    name = _TYPES[kind.elem_type]
                    if value.name == faults.wrong_dtype_of:
                        name = "INT32" if name != "INT32" else "FLOAT"
                    self._tensors[value.name] = (name, shape, mode)
            if faults.extra_tensor:
                self._tensors[faults.extra_tensor] = ("FLOAT", (1,), TensorIOMode.INPUT)

        @property
        def num_io_tensors(self) -> int:
            return len(self._tensors)

        @property
        def device_memory_size_v2(self) -> int:
            return 4096

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return self._tensors[name][2]

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[self._tensors[name][0]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._tensors[name][1]

        def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
            assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
            return None if faults.context_is_none else IExecutionContext(self)

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self)

        def _view(self, name: str, address: int) -> np.ndarray:
            kind, shape, _ = self._tensors[name]
            dtype = np.dtype(_NUMPY[kind])
            size = int(np.prod(shape)) * dtype.itemsize
            raw = (ctypes.c_uint8 * size).from_address(address)
            return np.frombuffer(raw, dtype=dtype).reshape(shape)

        def _execute(self, addresses: dict[str, int]) -> bool:
            names = [n for n, t in self._tensors.items() if t[2] is TensorIOMode.OUTPUT]
            feeds = {
                name: self._view(name, addresses[name])
                for name, tensor in self._tensors.items()
                if tensor[2] is TensorIOMode.INPUT
            }
            for name, value in zip(names, self._session.run(names, feeds), strict=True):
                noise = faults.perturb if self._level >= 3 else 0.0
                if self._fp8 and self._stage == "prefill":
                    noise += faults.perturb_fp8_prefill
                value = value + np.asarray(
                    noise
                    * np.sin(np.arange(value.size)).reshape(value.shape)
                    * np.abs(value).max(),
                    dtype=value.dtype,
                )
                np.copyto(self._view(name, addresses[name]), value)
            return True

        def _layers(self) -> str:
            if faults.no_layer_details:
                return json.dumps({"Layers": ["a kernel", "another"]})
            graph = onnx.load(self._path, load_external_data=False).graph
            quantised = {
                value
                for node in graph.node
                if node.op_type == "DequantizeLinear"
                for value in node.output
            }
            layers = []
            for node in graph.node:
                if node.op_type == "MatMul":
                    fp8 = bool(quantised & set(node.input)) and not faults.drop_fp8
                    word = "Row major linear FP8 format" if fp8 else "Row major linear FP16 format"
                    layers.append(_layer(node.name, "gemm", word, version))
                if node.op_type == "Softmax":
                    half = "Row major linear FP16 format"
                    word = half if faults.half_softmax else "Row major linear FP32"
                    layers.append(_layer(node.name, "SoftMax", word, version))
            return json.dumps({"Layers": layers, "Bindings": list(self._tensors)})

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
                report(self.error_recorder, self._logger, ErrorCodeTRT.INTERNAL_ERROR, text)
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


def _layer(name: str, kind: str, word: str, version: str) -> dict[str, Any]:
    """One inspector entry in the form of 10.x or of 11.x."""
    if version.startswith("10."):
        tensor: dict[str, Any] = {"Name": "t", "Format/Datatype": word}
    else:
        tensor = {"Name": "t", "Format": "Row major linear", "Datatype": word.split()[3]}
    return {
        "Name": f"kernel_{name}",
        "LayerType": kind,
        "Inputs": [tensor],
        "Outputs": [tensor],
        "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: {name}_dq]",
    }
