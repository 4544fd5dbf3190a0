"""Run engine plans on torch's stream.

Buffers are allocated once and their addresses bound once; a call copies its inputs in and hands
out the output buffers. The stages run one after the other and share one scratch memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.staged.shapes import StageSpec
from pi05_ros.backends.tensorrt.binding import EngineFailedError, on_device
from pi05_ros.backends.tensorrt.callbacks import callbacks_of
from pi05_ros.backends.tensorrt.flavor import Flavor
from pi05_ros.backends.tensorrt.kernel_cache import KernelCache
from pi05_ros.backends.tensorrt.plan_compiler import require_alive

if TYPE_CHECKING:
    import tensorrt as trt

# FP8 stays inside engines (trt.nptype knows no FP8 either); these are all types of our I/O.
TORCH_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "INT32": torch.int32}


class Scratch:
    """Device memory that contexts running in sequence share."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffer = torch.empty(0, dtype=torch.uint8, device=device)

    def reserve(self, size: int) -> None:
        """Make room for the largest context; before any context is bound to it."""
        if size > self.buffer.numel():
            self.buffer = torch.empty(size, dtype=torch.uint8, device=self.device)


class PlanFile:
    """A deserialized engine with its runtime, logger and error recorder, which must outlive it."""

    def __init__(self, path: Path, flavor: Flavor) -> None:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = flavor.load()
        title = f"{flavor.title} {trt.__version__}"
        classes = callbacks_of(flavor.load())
        self.trt: Any = trt
        self.logger = classes.logger()
        try:
            runtime = trt.Runtime(self.logger)
        except TypeError:
            raise BackendError(
                f"{title} cannot create a runtime: {self.logger.last_errors()}"
            ) from None
        require_alive(runtime, self.logger, "runtime", flavor)
        self.runtime = runtime
        self.recorder = classes.error_recorder(self.logger)
        self.runtime.error_recorder = self.recorder  # engine and contexts inherit it
        # Plans with host code could run anything; ours have none.
        self.runtime.engine_host_code_allowed = False
        engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineFailedError(
                f"{title} cannot load {path}: {self.logger.last_errors()}. Plans only load on the "
                "release and GPU that they were built for; build again: pi05 build"
            )
        self.engine: trt.ICudaEngine = engine
        self.path = path

    def layers_json(self) -> str:
        """The inspector's description of all layers."""
        inspector = self.engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def create_context(self, kernels: KernelCache | None) -> trt.IExecutionContext | None:
        """Context with scratch memory of the caller; with a kernel cache, that of RTX."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if kernels is None:
            return self.engine.create_execution_context(strategy)
        engine: Any = self.engine
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        kernels.attach(config)
        context: trt.IExecutionContext | None = engine.create_execution_context(config)
        return context


class TrtRunner:
    """One stage as an engine; a `StageRunner`.

    Args:
        plan: the engine.
        spec: inputs and outputs it must have.
        scratch: shared with the other stages, large enough already.
        kernels: of TensorRT for RTX, shared with the other stages.

    """

    def __init__(
        self,
        plan: PlanFile,
        spec: StageSpec,
        scratch: Scratch,
        kernels: KernelCache | None = None,
    ) -> None:
        self.plan = plan
        self.device = scratch.device
        self.buffers = self._allocate(spec)
        self.inputs = tuple(tensor.name for tensor in spec.inputs)
        self.outputs = tuple(tensor.name for tensor in spec.outputs)
        context = plan.create_context(kernels)
        if context is None:
            raise EngineFailedError(
                f"no execution context for {plan.path.name}: {plan.logger.last_errors()}"
            )
        self.context: trt.IExecutionContext | None = context
        size = plan.engine.device_memory_size_v2
        if size > scratch.buffer.numel():
            raise BackendError(
                f"{plan.path.name} needs {size} bytes of scratch memory, "
                f"{scratch.buffer.numel()} are reserved"
            )
        self.scratch = scratch
        context.set_device_memory(scratch.buffer.data_ptr(), size)
        for name, buffer in self.buffers.items():
            if not context.set_tensor_address(name, buffer.data_ptr()):
                raise EngineFailedError(f"{plan.path.name} refuses the address of {name}")
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"{plan.path.name} lacks shapes of {', '.join(missing)}")

    def _allocate(self, spec: StageSpec) -> dict[str, torch.Tensor]:
        """Buffers by name; the engine's I/O must be exactly that of the stage."""
        engine, trt = self.plan.engine, self.plan.trt
        dtypes = {getattr(trt.DataType, name): dtype for name, dtype in TORCH_DTYPES.items()}
        wanted = {t.name: (t, trt.TensorIOMode.INPUT) for t in spec.inputs}
        wanted |= {t.name: (t, trt.TensorIOMode.OUTPUT) for t in spec.outputs}
        found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if found != set(wanted):
            raise BackendError(
                f"{self.plan.path.name} has tensors {sorted(found)}, this stage has "
                f"{sorted(wanted)}; build again: pi05 build"
            )
        buffers = {}
        for name, (tensor, mode) in wanted.items():
            shape = tuple(engine.get_tensor_shape(name))
            dtype = dtypes.get(engine.get_tensor_dtype(name))
            if (shape, dtype, engine.get_tensor_mode(name)) != (tensor.shape, tensor.dtype, mode):
                raise BackendError(
                    f"{name} of {self.plan.path.name} is {engine.get_tensor_dtype(name)} {shape}, "
                    f"this stage has {tensor.dtype} {tensor.shape}; build again: pi05 build"
                )
            buffers[name] = torch.zeros(shape, dtype=dtype, device=self.device)
        return buffers

    def _stream(self) -> int:
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def enqueue(self) -> None:
        """Run on the current stream with what is in the input buffers.

        Raises:
            EngineFailedError: TensorRT reports a failure.

        """
        if self.context is None:
            raise BackendError(f"{self.plan.path.name} is closed")
        with on_device(self.device):
            done = self.context.execute_async_v3(self._stream())
        if not done:
            raise EngineFailedError(
                f"{self.plan.path.name} failed to run: {self.plan.logger.last_errors()}"
            )

    def capturable(self, stream: int) -> bool:
        """Whether a CUDA graph may capture this engine on a stream; TensorRT does not tell."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def load(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Copy inputs into the buffers; shapes and types must be exact."""
        for name in self.inputs:
            value, buffer = inputs[name], self.buffers[name]
            if value.shape != buffer.shape or value.dtype != buffer.dtype:
                raise BackendError(
                    f"{name} is {value.dtype} {list(value.shape)}, {self.plan.path.name} takes "
                    f"{buffer.dtype} {list(buffer.shape)}"
                )
            if value.data_ptr() != buffer.data_ptr():
                buffer.copy_(value, non_blocking=True)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run once; the outputs are the engine's own buffers, overwritten by the next call."""
        self.load(inputs)
        self.enqueue()
        return {name: self.buffers[name] for name in self.outputs}

    def close(self) -> None:
        """Free the context; CUDA graphs that captured it must be gone by now."""
        if self.context is None:
            return
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):
                torch.cuda.synchronize(self.device)
        with on_device(self.device):
            self.context = None
        self.buffers.clear()
