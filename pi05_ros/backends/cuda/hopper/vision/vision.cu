// Products of SigLIP in BF16 with FP32 accumulation: out = x @ w.T, with bias and GELU if asked for.
// How they are divided is told in vision.cuh.

#define CODED 0
#include "vision.cuh"

// x [rows, K], w [columns, K] by tensor maps in boxes of 64 columns and 128 or COLS / 2 rows, zeros
// behind their ends; out [splits][rows][columns]; bias may be null. K is `chunks` chunks of 64 columns.
extern "C" __global__ void __maxnreg__(REGISTERS)
vision_product(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
               const u16* bias, u16* out, int rows, int columns, int chunks, int tiles, int splits,
               int with_gelu) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  const Place at(chunks, tiles, splits);
  prepare(base, x_map, w_map);
  if (threadIdx.x < WARPGROUP) {
    if (threadIdx.x == 0) produce(base, x_map, w_map, at);
    __syncwarp();
    cluster_arrive_relaxed();
  } else {
    const int thread = threadIdx.x % WARPGROUP, group = threadIdx.x / WARPGROUP - 1;
    const int lane = thread % 32;
    u32 biases[COLS / 8];
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) {
      const int column = at.column0 + 8 * j + 2 * (lane % 4);
      biases[j] = bias && column < columns ? *reinterpret_cast<const u32*>(bias + column) : 0;
    }
    float d[COLS / 2];
    multiply(base, group, thread, at.count, d);
    meet<1, CONSUMERS>();  // nobody reads operands any more
    u8* own = smem + group * 64 * PITCH;
    u8* staged = own + (16 * (thread / 32) + lane / 4) * PITCH + 4 * (lane % 4);
#pragma unroll
    for (int j = 0; j < COLS / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float low = d[4 * j + 2 * i] + bf16_low(biases[j]);
        float high = d[4 * j + 2 * i + 1] + bf16_high(biases[j]);
        if (with_gelu) {
          low = gelu(low);
          high = gelu(high);
        }
        *reinterpret_cast<u32*>(staged + 8 * i * PITCH + 16 * j) = to_bf16x2(low, high);
      }
    if (group)
      meet<3, WARPGROUP>();
    else
      meet<2, WARPGROUP>();
    u16* to = out + ((size_t)at.split * rows + at.row0 + 64 * group) * columns + at.column0;
    store_rows<COLS / 8, PITCH>(reinterpret_cast<u8*>(to), 2 * (size_t)columns, own,
                                (columns - at.column0) / 8, thread);
  }
  // Nobody leaves while the other block may still send data or arrivals.
  __syncwarp();
  cluster_wait();
}
