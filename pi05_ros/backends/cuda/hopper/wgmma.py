"""Text of `wgmma.cuh`: one definition per number of columns, which the instruction spells out."""

from __future__ import annotations

MOST_COLUMNS = 256

_INTRODUCTION = """\
// wgmma on e4m3 operands in shared memory: 64 rows of A times n rows of B, 32 columns, into FP32.
//
// Thread t holds d[4 j + 2 i + b] = D[16 (t / 32) + 8 i + t % 32 / 4][8 j + 2 (t % 4) + b].
// One definition per n = 8, 16 .. 256, chosen by the length of d; accumulate = 0 starts from zero.
#pragma once

#include "ptx.cuh"
"""


def definition(columns: int) -> str:
    """``wgmma(d, a, b, accumulate)`` for `columns` rows of B, a multiple of 8."""
    count = columns // 2
    places = ", ".join(f"%{i}" for i in range(count))
    registers = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return f"""
__device__ __forceinline__ void wgmma(float (&d)[{count}], u64 a, u64 b, int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 2}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{columns}k32.f32.e4m3.e4m3 "
      "{{{places}}}, %{count}, %{count + 1}, p, 1, 1;\\n}}"
      : {registers}
      : "l"(a), "l"(b), "r"(accumulate));
}}
"""


def header() -> str:
    """The whole file."""
    return _INTRODUCTION + "".join(definition(n) for n in range(8, MOST_COLUMNS + 8, 8))
