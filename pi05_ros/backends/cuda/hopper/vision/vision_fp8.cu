// Products of SigLIP, W8A8 with FP32 accumulation: out = x @ w.T times the scales, with bias, and for fc1
// with GELU and quantization. How they are divided is told in vision.cuh. The warps that neither ask for
// data nor multiply fetch the scales and biases of the tile.

#define CODED 1
#include "vision.cuh"

namespace {

constexpr int AFFINE = BEHIND;                                    // float2 {factor, bias} per column
constexpr int CODE_PITCH = COLS % 32 ? COLS : COLS + 16;          // bytes, an odd multiple of 16

// x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). tanh.approx is good to 2^-11, e4m3 to 2^-4.
__device__ __forceinline__ float gelu(float x) {
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(x * fmaf(x * x, 0.035677408f, 0.79788456f)));
  const float half = 0.5f * x;
  return fmaf(half, tanh, half);
}

}  // namespace

// x [rows, K], w [columns, K] by tensor maps in boxes of 128 columns and 128 or COLS / 2 rows, zeros
// behind their ends; K is `chunks` chunks of 128 columns. Without `out_scale` out is bf16
// [splits][rows][columns], bias may be null; with it gelu(..) / out_scale in e4m3 [rows][columns].
extern "C" __global__ void __maxnreg__(REGISTERS)
vision_product(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
               const float* weight_scale, const float* x_scale, const float* bias, u8* out,
               const float* out_scale, float* amax, int rows, int columns, int chunks, int tiles,
               int splits) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  const Place at(chunks, tiles, splits);
  prepare(base, x_map, w_map);
  if (threadIdx.x < WARPGROUP) {
    if (threadIdx.x == 0) produce(base, x_map, w_map, at);
    if (threadIdx.x >= 32) {
      float2* affine = reinterpret_cast<float2*>(smem + AFFINE);
      const float scale = *x_scale;
      for (int i = threadIdx.x - 32; i < COLS; i += HELPERS) {
        const int column = at.column0 + i;
        const bool live = column < columns;
        affine[i] = make_float2(live ? scale * weight_scale[column] : 0.0f,
                                live && bias ? bias[column] : 0.0f);
      }
      asm volatile("bar.arrive 1, %0;" ::"n"(CONSUMERS + HELPERS) : "memory");
    }
    __syncwarp();
    cluster_arrive_relaxed();
  } else {
    const int thread = threadIdx.x % WARPGROUP, group = threadIdx.x / WARPGROUP - 1;
    const int lane = thread % 32, quad = lane % 4, row = 16 * (thread / 32) + lane / 4;
    const float step = out_scale ? *out_scale : 1.0f, quantize = 1.0f / step;
    float d[COLS / 2];
    multiply(base, group, thread, at.count, d);
    meet<1, CONSUMERS + HELPERS>();  // nobody reads operands any more, and the scales are there
    const float4* affine = reinterpret_cast<const float4*>(smem + AFFINE) + quad;
    u8* own = smem + group * 64 * PITCH;
    if (out_scale) {
      const bool odd = quad & 1;
      u8* staged = own + row * CODE_PITCH + 4 * (quad / 2) + 8 * odd;
      float largest = 0.0f;
#pragma unroll
      for (int j = 0; j < COLS / 8; j += 2)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          u32 codes[2];
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const float4 f = affine[4 * (j + h)];
            const float low = gelu(fmaf(d[4 * (j + h) + 2 * i], f.x, f.y));
            const float high = gelu(fmaf(d[4 * (j + h) + 2 * i + 1], f.z, f.w));
            largest = fmaxf(largest, fmaxf(fabsf(low), fabsf(high)));
            codes[h] = to_e4m3x2(low * quantize, high * quantize);
          }
          // Neighbors swap, so that each has four columns of one of both j.
          const u32 got = __shfl_xor_sync(~0u, odd ? codes[0] : codes[1], 1);
          *reinterpret_cast<u32*>(staged + 8 * i * CODE_PITCH + 8 * j) =
              odd ? got | codes[1] << 16 : codes[0] | got << 16;
        }
      if (amax) {
        const int bits = __reduce_max_sync(~0u, __float_as_int(largest));
        if (lane == 0) atomicMax(reinterpret_cast<int*>(amax), bits);
      }
    } else {
      u8* staged = own + row * PITCH + 4 * quad;
#pragma unroll
      for (int j = 0; j < COLS / 8; j++) {
        const float4 f = affine[4 * j];
#pragma unroll
        for (int i = 0; i < 2; i++)
          *reinterpret_cast<u32*>(staged + 8 * i * PITCH + 16 * j) = to_bf16x2(
              fmaf(d[4 * j + 2 * i], f.x, f.y), fmaf(d[4 * j + 2 * i + 1], f.z, f.w));
      }
    }
    if (group)
      meet<3, WARPGROUP>();
    else
      meet<2, WARPGROUP>();
    const size_t first = (size_t)at.split * rows + at.row0 + 64 * group;
    const int live = columns - at.column0;
    if (out_scale)
      store_rows<COLS / 16, CODE_PITCH>(out + first * columns + at.column0, columns, own, live / 16,
                                        thread);
    else
      store_rows<COLS / 8, PITCH>(out + 2 * (first * columns + at.column0), 2 * columns, own, live / 8,
                                  thread);
  }
  // Nobody leaves while the other block may still send data or arrivals.
  __syncwarp();
  cluster_wait();
}
