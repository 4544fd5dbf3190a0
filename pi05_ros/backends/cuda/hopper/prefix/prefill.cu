// The two large products of a prefix layer, W8A8 with FP32 accumulation, for hundreds of rows:
//
//   prefix_gate_up  gate and up projection -> GeGLU -> e4m3
//   prefix_down     down projection, K divided among blocks -> BF16 parts, added by the next norm
//
// Weights are the first operand of wgmma, rows of the prefix the second, because the second may have
// any multiple of 8 rows: 544 rows are four tiles of 136, where tiles of 128 would compute 640. A block
// computes 256 rows of weights times COLS rows of the prefix. The CLUSTER blocks that work on the same
// weights fetch a share each and send it to all (multicast), so that L2 delivers weights once per
// cluster. One thread asks for data, STAGES chunks of 128 columns ahead; two warpgroups multiply, 128
// rows of weights each.
//
// Both operands lie in memory as the matrix unit reads them from shared memory (layout.cuh): weights
// as tiles of 64 rows, the prefix as chunks of `image_rows` x 128 bytes. A tile of gate_up is then one
// piece of the image that down reads, and leaves by a single bulk store.
//
// Dependent launch as in products.cu: above grid_wait only weights and scales are read; nothing is
// written before rows of the prefix have come, which is behind the wait.
//
// Constants from the compiler's command line: COLS (rows of the prefix in a tile, multiple of 8),
// CLUSTER, STAGES, WIDTH, MLP, SPLITS (blocks that divide K of down); see Tiles in prefill.py.

#define PIECES 4
#include "prefix.cuh"

namespace {

// x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). tanh.approx is good to 2^-11, e4m3 to 2^-4.
__device__ __forceinline__ float gelu_tanh(float x) {
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(x * fmaf(x * x, 0.035677408f, 0.79788456f)));
  const float half = 0.5f * x;
  return fmaf(half, tanh, half);
}

__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
}

__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
}

}  // namespace

// gelu(gate) * up -> image of MLP columns; a tile of weights is 128 pairs of gate and up rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
prefix_gate_up(const u8* image, int image_rows, const u8* weight, const float* weight_scale,
               const float* image_scale, u8* out, const float* out_scale, float* amax, int rows,
               int items, int groups) {
  constexpr int STAGED = COLS * CHUNK_COLUMNS, K_CHUNKS = WIDTH / CHUNK_COLUMNS;
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  prepare<STAGED>(base);
  if (threadIdx.x < WARPGROUP) {
    fewer_registers();
    if (threadIdx.x == 0)
      produce<STAGED, K_CHUNKS, 1>(base, weight, image, image_rows, items, groups);
  } else {
    more_registers();
    const int thread = threadIdx.x - WARPGROUP, lane = thread % 32;
    const int pair = 8 * (thread % WARPGROUP / 32) + lane / 4;  // of a tile of 64 rows
    const int first = thread / WARPGROUP * HALF;
    const float scale = *image_scale, quantize = 1.0f / *out_scale;
    u8* staged = smem + STAGES * STAGE_BYTES + 2 * (lane % 4) * CHUNK_COLUMNS;
    float largest = 0.0f;
    int done = 0;
    for (int index = blockIdx.x / CLUSTER; index < items; index += gridDim.x / CLUSTER) {
      const Item item(index, groups, 1);
      float gate_scale[HALF], up_scale[HALF];
#pragma unroll
      for (int i = 0; i < HALF; i++) {
        const float2 two = *reinterpret_cast<const float2*>(
            weight_scale + item.tile * BLOCK_ROWS + (first + i) * ROW_CAP + 2 * pair);
        gate_scale[i] = two.x * scale;
        up_scale[i] = two.y * scale * quantize;
      }
      float d[HALF][COLS / 2];
      multiply<STAGED, false>(base, K_CHUNKS, done, d);
      const int row0 = (item.group * CLUSTER + (int)cluster_rank()) * COLS;
      if (thread == 0) bulk_store_wait_read();
      consumers_meet();
#pragma unroll
      for (int i = 0; i < HALF; i++) {
        const int column = (first + i) * (ROW_CAP / 2) + pair, swizzle = lane % 4 << 5;
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
          const float low = gelu_tanh(d[i][4 * j] * gate_scale[i]) * (d[i][4 * j + 2] * up_scale[i]);
          const float high =
              gelu_tanh(d[i][4 * j + 1] * gate_scale[i]) * (d[i][4 * j + 3] * up_scale[i]);
          if (amax) {
            const int row = row0 + 8 * j + 2 * (lane % 4);
            if (row < rows) largest = fmaxf(largest, fabsf(low));
            if (row + 1 < rows) largest = fmaxf(largest, fabsf(high));
          }
          const u32 both = to_e4m3x2(low, high);
          staged[j * 8 * CHUNK_COLUMNS + (column ^ swizzle)] = both;
          staged[(j * 8 + 1) * CHUNK_COLUMNS + (column ^ swizzle ^ 16)] = both >> 8;
        }
      }
      shared_fence();
      consumers_meet();
      if (thread == 0)
        bulk_store(out + ((size_t)item.tile * image_rows + row0) * CHUNK_COLUMNS,
                   base + STAGES * STAGE_BYTES, STAGED);
    }
    if (amax) {
      const int bits = __reduce_max_sync(~0u, __float_as_int(largest * *out_scale));
      if (lane == 0) atomicMax(reinterpret_cast<int*>(amax), bits);
    }
    if (thread == 0) bulk_store_wait();
  }
  leave_together();
}

// Parts [SPLITS][rows][WIDTH] of image @ weight.T, without scales.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
prefix_down(const u8* image, int image_rows, const u8* weight, u16* parts, int rows, int items,
            int groups) {
  constexpr int K_CHUNKS = MLP / CHUNK_COLUMNS;
  constexpr int PITCH = BLOCK_ROWS * 2 + 16;  // bytes; no bank conflicts
  static_assert(COLS * PITCH <= STAGES * STAGE_BYTES, "the result lies where the operands lay");
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  prepare<0>(base);
  if (threadIdx.x < WARPGROUP) {
    fewer_registers();
    if (threadIdx.x == 0)
      produce<0, K_CHUNKS, SPLITS>(base, weight, image, image_rows, items, groups);
    sent_all();
  } else {
    more_registers();
    const int thread = threadIdx.x - WARPGROUP, lane = thread % 32;
    const int pair = 8 * (thread % WARPGROUP / 32) + lane / 4;
    const Item item(blockIdx.x / CLUSTER, groups, SPLITS);
    constexpr int EACH = (K_CHUNKS + SPLITS - 1) / SPLITS;
    float d[HALF][COLS / 2];
    int done = 0;
    multiply<0, true>(base, min(EACH, K_CHUNKS - item.split * EACH), done, d);
    sent_all();
    consumers_meet();
    u8* staged = smem + 2 * (lane % 4) * PITCH;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      const int column = (thread / WARPGROUP * HALF + i) * ROW_CAP + 2 * pair;
#pragma unroll
      for (int j = 0; j < COLS / 8; j++)
#pragma unroll
        for (int b = 0; b < 2; b++)
          *reinterpret_cast<u32*>(staged + (8 * j + b) * PITCH + 2 * column) =
              to_bf16x2(d[i][4 * j + b], d[i][4 * j + 2 + b]);
    }
    consumers_meet();
    const int row0 = (item.group * CLUSTER + (int)cluster_rank()) * COLS;
    u16* out = parts + ((size_t)item.split * rows + row0) * WIDTH + item.tile * BLOCK_ROWS + 8 * lane;
    for (int row = thread / 32; row < min(COLS, rows - row0); row += CONSUMERS / 32)
      *reinterpret_cast<uint4*>(out + (size_t)row * WIDTH) =
          *reinterpret_cast<const uint4*>(smem + row * PITCH + 16 * lane);
  }
  __syncwarp();
  cluster_wait();
}
