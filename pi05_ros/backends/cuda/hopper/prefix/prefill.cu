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

__device__ __forceinline__ float tanh_fast(float x) {
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(x));
  return tanh;
}

// gelu(gate) * up of products without scales, which are in the constants: 7 instructions, where
// x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) of scaled ones has 9. tanh.approx is good to 2^-11,
// e4m3 to 2^-4.
struct GeGlu {
  float linear, cubic, both;
  __device__ GeGlu(float gate_scale, float up_scale)
      : linear(0.79788456f * gate_scale),
        cubic(0.035677408f * gate_scale * gate_scale * gate_scale),
        both(0.5f * gate_scale * up_scale) {}
  __device__ __forceinline__ float operator()(float gate, float up) const {
    const float tanh = tanh_fast(gate * fmaf(gate * gate, cubic, linear));
    return fmaf(gate, tanh, gate) * (up * both);
  }
};

__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
}

__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
}

}  // namespace

// gelu(gate) * up -> image of MLP columns. A tile of weights is 128 pairs of gate and up rows; pair
// 64 g + 2 p + i of it is pair p of the tile of 64 rows 2 g + i (packing.pack_pairs), so that a thread
// has columns 2 p and 2 p + 1 of the image. One warp sends results away, while the next are multiplied.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
prefix_gate_up(const u8* image, int image_rows, const u8* weight, const float* weight_scale,
               const float* image_scale, u8* out, const float* out_scale, float* amax, int rows,
               int items, int groups) {
  constexpr int STAGED = COLS * CHUNK_COLUMNS, K_CHUNKS = WIDTH / CHUNK_COLUMNS;
  using At = Room<STAGED>;
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  prepare<STAGED>(base);
  if (threadIdx.x < WARPGROUP) {
    fewer_registers();
    if (threadIdx.x == 0) {
      produce<STAGED, K_CHUNKS, 1>(base, weight, image, image_rows, items, groups);
    } else if (threadIdx.x == 32) {
      int stored = 0;
      for (int index = blockIdx.x / CLUSTER; index < items; index += gridDim.x / CLUSTER, stored++) {
        const Item item(index, groups, 1);
        const int row0 = (item.group * CLUSTER + (int)cluster_rank()) * COLS;
        barrier_wait(base + At::READY, stored & 1);
        bulk_store(out + ((size_t)item.tile * image_rows + row0) * CHUNK_COLUMNS, base + At::STAGED,
                   STAGED);
        bulk_store_wait_read();
        barrier_arrive(base + At::FREE);
      }
      bulk_store_wait();
    }
  } else {
    more_registers();
    static_assert(HALF == 2, "a thread has two pairs");
    const int thread = threadIdx.x - WARPGROUP, lane = thread % 32;
    const int column = thread / WARPGROUP * 64 + 2 * (8 * (thread % WARPGROUP / 32) + lane / 4);
    const float scale = *image_scale, quantize = 1.0f / *out_scale;
    u8* staged = smem + At::STAGED + 2 * (lane % 4) * CHUNK_COLUMNS;
    u8* even = staged + (column ^ lane % 4 << 5);  // of two rows
    u8* odd = staged + CHUNK_COLUMNS + (column ^ lane % 4 << 5 ^ 16);
    float largest = 0.0f;
    int done = 0, computed = 0;
    for (int index = blockIdx.x / CLUSTER; index < items;
         index += gridDim.x / CLUSTER, computed++) {
      const Item item(index, groups, 1);
      const float4 scales = *reinterpret_cast<const float4*>(weight_scale + item.tile * BLOCK_ROWS +
                                                             2 * column);
      float d[2][COLS / 2];
      multiply<STAGED, false>(base, K_CHUNKS, done, d);
      const int row0 = (item.group * CLUSTER + (int)cluster_rank()) * COLS + 2 * (lane % 4);
      const GeGlu first(scales.x * scale, scales.y * scale * quantize);
      const GeGlu second(scales.z * scale, scales.w * scale * quantize);
      if (computed) barrier_wait(base + At::FREE, (computed - 1) & 1);
#pragma unroll
      for (int j = 0; j < COLS / 8; j++)
#pragma unroll
        for (int b = 0; b < 2; b++) {
          const float x = first(d[0][4 * j + b], d[0][4 * j + 2 + b]);
          const float y = second(d[1][4 * j + b], d[1][4 * j + 2 + b]);
          if (amax && row0 + 8 * j + b < rows) largest = fmaxf(largest, fmaxf(fabsf(x), fabsf(y)));
          *reinterpret_cast<u16*>((b ? odd : even) + j * 8 * CHUNK_COLUMNS) = to_e4m3x2(x, y);
        }
      shared_fence();
      __syncwarp();
      if (lane == 0) barrier_arrive(base + At::READY);
    }
    if (amax) {
      const int bits = __reduce_max_sync(~0u, __float_as_int(largest * *out_scale));
      if (lane == 0) atomicMax(reinterpret_cast<int*>(amax), bits);
    }
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
