// Products of SigLIP in BF16 that are not divided along K, in tiles of 64 rows: out = x @ w.T + bias + residual,
// and for the LayerNorm behind what it must know of each row, a pair of numbers per tile.
//
// Half as many rows in a tile let K stay whole where the result has few columns (1152): a block then has
// final values, so no kernel must add parts behind it. The warps that neither ask for data nor multiply fetch
// the residual while the products run. How products are divided otherwise is told in vision.cuh.

#define CODED 0
#define GROUPS 1
#include "vision.cuh"

namespace {

constexpr int STAGED = BEHIND;  // rows of PITCH bytes: the residual, then the result

__device__ __forceinline__ void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Over the four threads that share a row of the result.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

}  // namespace

// x [rows, K], w [columns, K] by tensor maps in boxes of 64 columns and 64 or COLS / 2 rows; out and residual
// [rows][columns], the same memory or not. K is `chunks` chunks of 64 columns. moments [tiles][rows]: mean, and
// sum of squares about it, of the rounded result in the columns of a tile.
extern "C" __global__ void __maxnreg__(REGISTERS)
vision_narrow(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
              const u16* bias, const u16* residual, u16* out, float2* moments, int rows, int columns,
              int chunks, int tiles) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  const Place at(chunks, tiles, 1);
  const int live = min(COLS, columns - at.column0);  // columns of the tile, a multiple of 8
  const size_t first = (size_t)at.row0 * columns + at.column0;
  prepare(base, x_map, w_map);
  if (threadIdx.x < WARPGROUP) {
    if (threadIdx.x == 0) produce(base, x_map, w_map, at);
    if (threadIdx.x >= 32) {
      grid_wait();
      for (int i = threadIdx.x - 32; i < ROWS * (COLS / 8); i += HELPERS) {
        const int row = i / (COLS / 8), unit = i % (COLS / 8);
        const int to = STAGED + row * PITCH + 16 * unit;
        if (8 * unit < live)
          copy16(base + to, residual + first + (size_t)row * columns + 8 * unit);
        else
          *reinterpret_cast<uint4*>(smem + to) = make_uint4(0, 0, 0, 0);
      }
      asm volatile("cp.async.wait_all;" ::: "memory");
      asm volatile("bar.arrive 1, %0;" ::"n"(CONSUMERS + HELPERS) : "memory");
    }
    __syncwarp();
    cluster_arrive_relaxed();
  } else {
    const int thread = threadIdx.x - WARPGROUP, lane = thread % 32, quad = lane % 4;
    const int row = 16 * (thread / 32) + lane / 4;
    u32 biases[COLS / 8];
#pragma unroll
    for (int j = 0; j < COLS / 8; j++)
      biases[j] = 8 * j < live
                      ? *reinterpret_cast<const u32*>(bias + at.column0 + 8 * j + 2 * quad)
                      : 0;
    float d[COLS / 2];
    multiply(base, 0, thread, at.count, d);
    meet<1, CONSUMERS + HELPERS>();  // the residual is there
    u8* staged = smem + STAGED + row * PITCH + 4 * quad;
    float sum[2] = {};
#pragma unroll
    for (int j = 0; j < COLS / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        u32* place = reinterpret_cast<u32*>(staged + 8 * i * PITCH + 16 * j);
        const u32 rest = *place;
        float &low = d[4 * j + 2 * i], &high = d[4 * j + 2 * i + 1];
        const u32 rounded = to_bf16x2(low + bf16_low(biases[j]) + bf16_low(rest),
                                      high + bf16_high(biases[j]) + bf16_high(rest));
        *place = rounded;
        low = bf16_low(rounded);
        high = bf16_high(rounded);
        if (8 * j < live) sum[i] += low + high;
      }
    meet<2, WARPGROUP>();
    store_rows<COLS / 8, PITCH>(reinterpret_cast<u8*>(out + first), 2 * (size_t)columns, smem + STAGED,
                                live / 8, thread);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float mean = row_sum(sum[i]) / live;
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < COLS / 8; j++) {
        const float low = d[4 * j + 2 * i] - mean, high = d[4 * j + 2 * i + 1] - mean;
        if (8 * j < live) squares = fmaf(low, low, fmaf(high, high, squares));
      }
      squares = row_sum(squares);
      if (quad == 0)
        moments[(size_t)(at.column0 / COLS) * rows + at.row0 + row + 8 * i] = make_float2(mean, squares);
    }
  }
  // Nobody leaves while the other block may still send data or arrivals.
  __syncwarp();
  cluster_wait();
}
