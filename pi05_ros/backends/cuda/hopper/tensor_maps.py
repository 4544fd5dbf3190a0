"""Tensor maps (CUtensorMap): how the bulk copy engine finds boxes of a matrix, swizzled."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from pi05_ros.backends.cuda.hopper import launch as cuda

LINE = 128  # bytes of a swizzled line
CHUNK = LINE // 2  # bf16 columns of it
# cuda.h: CU_TENSOR_MAP_DATA_TYPE_UINT8, _BFLOAT16; _SWIZZLE_128B, _L2_PROMOTION_L2_256B
_TYPES = {1: 0, 2: 9}  # by bytes of an element
_SWIZZLE_128, _PROMOTE_256 = 3, 3


class TensorMap(ctypes.Structure):
    """CUtensorMap; the driver wants it at a multiple of 64 bytes while it fills it in."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


def swizzled_map(
    matrix: Tensor, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]
) -> TensorMap:
    """Map of a bf16 or e4m3 tensor; what lies behind its ends is read as zeros.

    Args:
        matrix: on the device, 16-byte aligned.
        sizes: elements per dimension, innermost first.
        strides: bytes of each dimension but the innermost, multiples of 16.
        box: elements per dimension that one copy brings; the innermost is one swizzled line.

    Raises:
        KernelError: the driver refuses it.

    """
    n = len(sizes)
    room = (ctypes.c_uint8 * (ctypes.sizeof(TensorMap) + 64))()
    result = TensorMap.from_buffer(room, -ctypes.addressof(room) % 64)
    cuda._call(
        "cuTensorMapEncodeTiled",
        ctypes.byref(result),
        _TYPES[matrix.element_size()],
        n,
        ctypes.c_void_p(matrix.data_ptr()),
        (ctypes.c_uint64 * n)(*sizes),
        (ctypes.c_uint64 * (n - 1))(*strides),
        (ctypes.c_uint32 * n)(*box),
        (ctypes.c_uint32 * n)(*(1,) * n),
        0,
        _SWIZZLE_128,
        _PROMOTE_256,
        0,
    )
    return result


def line_columns(matrix: Tensor) -> int:
    """Columns of a swizzled line."""
    return LINE // matrix.element_size()


def matrix_map(matrix: Tensor, box_rows: int) -> TensorMap:
    """Rows of a contiguous ``[R, K]``, fetched as boxes of one line of `box_rows` rows."""
    rows, columns = matrix.shape
    pitch = columns * matrix.element_size()
    return swizzled_map(matrix, (columns, rows), (pitch,), (line_columns(matrix), box_rows))
