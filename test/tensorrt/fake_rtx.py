"""A stand-in for what the real `tensorrt_rtx` cannot do without a GPU: load plans and run them.

It is the stand-in of `tensorrt` with the names that only TensorRT for RTX has. Kernels "compiled"
for a plan are counted, so that a test sees whether a cache was taken.
"""

from __future__ import annotations

import enum
from types import ModuleType
from typing import Any

from fake_graph import Faults
from fake_tensorrt import make_fake

RTX_NAMES = {
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "BuilderFlag": ("TF32", "REQUIRE_USER_ALLOCATION"),
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability", "set_flag"),
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "set_runtime_cache",
        "set_execution_context_allocation_strategy",
    ),
    "IRuntimeCache": ("serialize", "deserialize"),
    "IExecutionContext": ("is_stream_capturable",),
}


class ComputeCapability(enum.Enum):
    SM89 = 89
    SM120 = 120


class BuilderFlag(enum.Enum):
    TF32 = 6
    REQUIRE_USER_ALLOCATION = 20


class IRuntimeCache:
    """Kernels by plan; ``accepts`` is False for a cache of another machine."""

    accepts = True

    def __init__(self) -> None:
        self.kernels = b""

    def serialize(self) -> bytes:
        return self.kernels

    def deserialize(self, blob: bytes) -> bool:
        if not self.accepts or not bytes(blob).startswith(b"KERNELS"):
            return False
        self.kernels = bytes(blob)
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cache: IRuntimeCache | None = None
        self.strategy: Any = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


def make_fake_rtx(faults: Faults, compiled: list[str]) -> ModuleType:
    """Build the module; ``compiled`` gets a line for each plan whose kernels were not cached."""
    rtx = make_fake("1.7.1.116", faults)
    rtx.__name__ = "tensorrt_rtx"
    rtx.ComputeCapability = ComputeCapability  # type: ignore[attr-defined]
    rtx.BuilderFlag = BuilderFlag  # type: ignore[attr-defined]

    def set_compute_capability(self: Any, capability: ComputeCapability, index: int) -> bool:
        assert (self.num_compute_capabilities, index) == (1, 0)
        self.capability = capability
        return True

    def set_flag(self: Any, flag: BuilderFlag) -> None:
        assert flag is BuilderFlag.REQUIRE_USER_ALLOCATION

    rtx.IBuilderConfig.set_compute_capability = set_compute_capability
    rtx.IBuilderConfig.set_flag = set_flag
    plain = rtx.ICudaEngine.create_execution_context

    def create_execution_context(self: Any, config: IRuntimeConfig) -> Any:
        assert isinstance(config, IRuntimeConfig)
        assert config.cache is not None
        kernel = b" " + self._graph.stage.encode()
        if kernel not in config.cache.kernels:
            compiled.append(self._graph.stage)
            config.cache.kernels = (config.cache.kernels or b"KERNELS") + kernel
        return plain(self, config.strategy)

    rtx.ICudaEngine.create_execution_context = create_execution_context
    rtx.ICudaEngine.create_runtime_config = lambda self: IRuntimeConfig()
    rtx.IExecutionContext.is_stream_capturable = lambda self, stream: True
    return rtx
