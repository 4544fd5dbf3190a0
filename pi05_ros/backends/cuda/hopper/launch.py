"""Load cubins and launch their kernels on PyTorch's current stream through the CUDA driver.

    module = launch.load("products.cu", {"ROWS": 56})
    kernel = module.kernel("gate_up", shared=120_000)
    kernel.launch((128,), 128, (tensor, tensor, 3, 0.5), cluster=4, dependent=True)

A launch can be captured into a CUDA graph. `dependent` is programmatic dependent launch: the
kernel may start before the one in front has finished, and must execute griddepcontrol.wait before
it reads what that one writes.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper.compile import KernelError

Argument = Tensor | int | float | ctypes.Structure | None

# CUfunction_attribute, CUlaunchAttributeID (cuda.h)
_MAX_DYNAMIC_SHARED, _SHARED_CARVEOUT, _NON_PORTABLE_CLUSTER = 8, 9, 14
_CLUSTER_DIMENSION, _PROGRAMMATIC_SERIALIZATION = 4, 6
PORTABLE_CLUSTER = 8


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise KernelError(f"the CUDA driver cannot be loaded: {error}") from error


def _call(name: str, *args: object) -> None:
    driver = _driver()
    code = getattr(driver, name)(*args)
    if code:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        raise KernelError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


def _enter(device: int) -> None:
    """Make PyTorch's context of `device` current in this thread (it may have made no call yet)."""
    torch.cuda.init()
    current, ordinal, primary = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(ordinal), device)
    flags, active = ctypes.c_uint(), ctypes.c_int()
    _call("cuDevicePrimaryCtxGetState", ordinal, ctypes.byref(flags), ctypes.byref(active))
    if not active.value:
        torch.cuda.synchronize(device)  # PyTorch makes its context with its first call
    _call("cuCtxGetCurrent", ctypes.byref(current))
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(primary), ordinal)
    _call("cuDevicePrimaryCtxRelease_v2", ordinal)  # PyTorch holds it for as long as it lives
    if current.value != primary.value:
        _call("cuCtxSetCurrent", primary)


def pack_arguments(args: Sequence[Argument]) -> list[ctypes._SimpleCData | ctypes.Structure]:
    """Kernel arguments as C values: tensors and None are pointers, int is int32, float float32."""
    packed: list[ctypes._SimpleCData | ctypes.Structure] = []
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            packed.append(ctypes.c_void_p(value.data_ptr()))
        elif value is None:
            packed.append(ctypes.c_void_p(0))
        elif isinstance(value, ctypes.Structure):
            packed.append(value)
        elif isinstance(value, float):
            packed.append(ctypes.c_float(value))
        elif isinstance(value, int) and -(2**31) <= value < 2**31:
            packed.append(ctypes.c_int(value))
        else:
            raise KernelError(f"argument {position} is {value!r}; accepted: tensor, int32, float")
    return packed


class Kernel:
    """One kernel of a loaded module."""

    def __init__(self, name: str, function: ctypes.c_void_p, shared: int, device: int) -> None:
        self.name = name
        self.shared = shared
        self.device = device
        self._function = function
        self._sizes = self._parameter_sizes()
        self._cluster = PORTABLE_CLUSTER
        # The limit belongs to the loaded function: another Kernel of it may need more already.
        if shared > self.attribute(_MAX_DYNAMIC_SHARED):
            self._set(_MAX_DYNAMIC_SHARED, shared)
        # One split of the L1 for all kernels: where it changed, a kernel could not start on a
        # processor before the one in front has left it.
        self._set(_SHARED_CARVEOUT, 100)

    def _set(self, attribute: int, value: int) -> None:
        _call("cuFuncSetAttribute", self._function, attribute, value)

    def _parameter_sizes(self) -> list[int] | None:
        """Bytes of each parameter; None with drivers before 12.4, which cannot say."""
        if not hasattr(_driver(), "cuFuncGetParamInfo"):
            return None
        sizes: list[int] = []
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        while not _driver().cuFuncGetParamInfo(
            self._function, ctypes.c_size_t(len(sizes)), ctypes.byref(offset), ctypes.byref(size)
        ):
            sizes.append(size.value)
        return sizes

    def attribute(self, which: int) -> int:
        """A CUfunction_attribute: 4 is registers per thread, 3 local bytes, 1 static shared."""
        value = ctypes.c_int()
        _call("cuFuncGetAttribute", ctypes.byref(value), which, self._function)
        return value.value

    def _config(
        self,
        grid: Sequence[int],
        block: int,
        cluster: int,
        dependent: bool,
        stream: torch.cuda.Stream | None,
    ) -> _Config:
        if cluster > self._cluster:
            self._set(_NON_PORTABLE_CLUSTER, 1)
            self._cluster = 16
        attributes = (_Attribute * 2)()
        count = 0
        if dependent:
            attributes[count].id = _PROGRAMMATIC_SERIALIZATION
            attributes[count].value[0] = 1
            count += 1
        attributes[count].id = _CLUSTER_DIMENSION
        attributes[count].value[0:3] = (cluster, 1, 1)
        count += 1
        x, y, z = (*grid, 1, 1)[:3]
        handle = ctypes.c_void_p(stream.cuda_stream if stream is not None else 0)
        return _Config((x, y, z), (block, 1, 1), self.shared, handle, attributes, count)

    def resident_clusters(self, block: int, cluster: int) -> int:
        """How many clusters of `cluster` blocks of `block` threads the device holds at a time."""
        _enter(self.device)
        config = self._config((cluster,), block, cluster, False, None)
        count = ctypes.c_int()
        _call(
            "cuOccupancyMaxActiveClusters",
            ctypes.byref(count),
            self._function,
            ctypes.byref(config),
        )
        return count.value

    def launch(
        self,
        grid: Sequence[int],
        block: int,
        args: Sequence[Argument],
        *,
        cluster: int = 1,
        dependent: bool = False,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Enqueue the kernel.

        Args:
            grid: thread blocks, up to three dimensions.
            block: threads of a block.
            args: see `pack_arguments`; tensors must outlive every replay of a captured launch.
            cluster: blocks of a cluster along x.
            dependent: start before the kernel in front has finished.
            stream: PyTorch's current one where None.

        Raises:
            KernelError: arguments that do not fit the kernel, or what the driver reports.

        """
        values = pack_arguments(args)
        if self._sizes is not None and [ctypes.sizeof(v) for v in values] != self._sizes:
            raise KernelError(
                f"{self.name} takes parameters of {self._sizes} bytes, got "
                f"{[ctypes.sizeof(v) for v in values]}"
            )
        if stream is None:
            stream = torch.cuda.current_stream(self.device)
        config = self._config(grid, block, cluster, dependent, stream)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        _enter(self.device)
        _call("cuLaunchKernelEx", ctypes.byref(config), self._function, pointers, None)


class Module:
    """A cubin on one device."""

    def __init__(self, image: bytes, device: int) -> None:
        self.device = device
        _enter(device)
        self._handle = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._handle), image)

    def kernel(self, name: str, shared: int = 0) -> Kernel:
        """The kernel `name` with `shared` bytes of dynamic shared memory.

        Raises:
            KernelError: there is no such kernel, or the device has less shared memory.

        """
        _enter(self.device)
        function = ctypes.c_void_p()
        _call("cuModuleGetFunction", ctypes.byref(function), self._handle, name.encode())
        return Kernel(name, function, shared, self.device)


def probe(device: torch.device) -> None:
    """Compile and load an empty kernel: whether compiler and driver get along on a device.

    Raises:
        KernelError: no NVRTC, or the driver is too old for what it makes.

    """
    text = 'extern "C" __global__ void nothing() {}'
    image = compiler.nvrtc().compile("probe.cu", text, {}, compiler.OPTIONS)
    Module(image, torch.cuda.current_device() if device.index is None else device.index)


_LOADED: dict[tuple[str, tuple[tuple[str, int], ...], int], Module] = {}
_LOCK = threading.Lock()


def load(
    source: str, defines: Mapping[str, int] | None = None, device: torch.device | None = None
) -> Module:
    """Compile (or take from the cache) and load; once per source, defines and device.

    Raises:
        KernelError: no NVRTC, the source does not compile, or the driver refuses the cubin.

    """
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    key = (source, tuple(sorted((defines or {}).items())), index)
    with _LOCK:
        if key not in _LOADED:
            _LOADED[key] = Module(compiler.cubin(source, defines), index)
        return _LOADED[key]
