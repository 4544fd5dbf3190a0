// What products read, in bf16 or e4m3: how a value becomes an operand in an image (layout.cuh).
//
// CODED is from the compiler's command line: 1 where operands are e4m3, 0 where they are bf16.
#pragma once

#include "layout.cuh"
#include "ptx.cuh"

namespace {

constexpr int SIZE = CODED ? 1 : 2;  // bytes of an operand

// What values are multiplied by on their way into an image; `scale` is not read where it is bf16.
__device__ __forceinline__ float quantizer(const float* scale) { return CODED ? 1.0f / *scale : 1.0f; }

// One operand.
__device__ __forceinline__ void store_operand(u8* at, float value, float quantize) {
  if (CODED)
    *at = static_cast<u8>(to_e4m3x2(value * quantize, 0.0f));
  else
    *reinterpret_cast<u16*>(at) = static_cast<u16>(to_bf16x2(value, 0.0f));
}

// Four columns of a row of an image, `column` a multiple of 4.
__device__ __forceinline__ void store_operands(u8* image, int row, int column, float a, float b,
                                               float c, float d, float quantize) {
  u8* at = image + activation_offset(row, column * SIZE);
  if (CODED)
    *reinterpret_cast<u32*>(at) = to_e4m3x2(a * quantize, b * quantize) |
                                  to_e4m3x2(c * quantize, d * quantize) << 16;
  else
    *reinterpret_cast<uint2*>(at) = make_uint2(to_bf16x2(a, b), to_bf16x2(c, d));
}

}  // namespace
