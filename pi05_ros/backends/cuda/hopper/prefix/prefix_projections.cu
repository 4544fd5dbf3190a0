// The two small products of a prefix layer, W8A8 with FP32 accumulation, for hundreds of rows:
//
//   prefix_qkv  projection -> scales -> RoPE -> queries, and keys and values in the cache
//   prefix_out  projection of what attention left, without scales, which the next norm applies
//
// Built as the products of prefill.cu (prefix.cuh), with half as many rows of weights per block and
// narrower tiles, so that all blocks run at the same time; with up to 8 stages most of the weights are
// on their way before the wait. Registers are capped, so that blocks find room beside the norm in front.
//
// Rows 2p and 2p + 1 of the weights of prefix_qkv are columns d and d + HEAD_DIM / 2 of a head: one
// thread has both halves of a rotated pair. Results go through shared memory, where the operands were,
// so that each thread reads angles and writes columns in pieces of 16 bytes.
//
// Dependent launch: above grid_wait only weights, scales and angles are read; nothing is written before
// rows of the prefix have come, which is behind the wait.
//
// Constants from the compiler's command line: COLS, CLUSTER, STAGES, COLUMNS (of K).

#define PIECES 2
#include "prefix.cuh"

namespace {

constexpr int HEAD_DIM = 256, HALF_HEAD = HEAD_DIM / 2;
constexpr int K_CHUNKS = COLUMNS / CHUNK_COLUMNS;
constexpr int REGISTERS = 64 + COLS / 2;
constexpr int PAIRS = BLOCK_ROWS / 2;          // rotated pairs of a block
constexpr int UNITS = PAIRS / 8;               // of 8 pairs
constexpr int PAIR_PITCH = BLOCK_ROWS + 4;     // floats from row to row; no bank conflicts
constexpr int PITCH = BLOCK_ROWS * 2 + 16;     // bytes, same

static_assert(PIECES == 2 && HALF_HEAD % PAIRS == 0, "a block has pairs of one head");
static_assert(COLS * PAIR_PITCH * 4 <= STAGES * STAGE_BYTES, "the result lies where the operands lay");

__device__ __forceinline__ void prefetch_line(const void* at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

__device__ __forceinline__ void load8(float (&to)[8], const float* from) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float4 four = reinterpret_cast<const float4*>(from)[i];
    to[4 * i] = four.x;
    to[4 * i + 1] = four.y;
    to[4 * i + 2] = four.z;
    to[4 * i + 3] = four.w;
  }
}

__device__ __forceinline__ void store8(u16* to, const float (&x)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(to_bf16x2(x[0], x[1]), to_bf16x2(x[2], x[3]),
                                             to_bf16x2(x[4], x[5]), to_bf16x2(x[6], x[7]));
}

}  // namespace

// Rows of weights: `heads` query heads (0 where only keys and values are wanted), one of keys, one of
// values. q [rows][heads][HEAD_DIM], times q_scale; k, v [rows][HEAD_DIM]; angles [rows][HALF_HEAD].
extern "C" __global__ void __maxnreg__(REGISTERS)
prefix_qkv(const u8* image, int image_rows, const u8* weight, const float* weight_scale,
           const float* image_scale, const float* cosines, const float* sines, u16* q, u16* k, u16* v,
           float q_scale, int rows, int items, int groups, int heads) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  prepare<0>(base);
  if (threadIdx.x < WARPGROUP) {
    if (threadIdx.x == 0) produce<0, K_CHUNKS, 1>(base, weight, image, image_rows, items, groups);
    sent_all();
  } else {
    const int thread = threadIdx.x - WARPGROUP, lane = thread % 32;
    const int pair = thread / WARPGROUP * (ROW_CAP / 2) + 8 * (thread % WARPGROUP / 32) + lane / 4;
    const Item item(blockIdx.x / CLUSTER, groups, 1);
    const int row0 = (item.group * CLUSTER + (int)cluster_rank()) * COLS;
    const int head = item.tile * PAIRS / HALF_HEAD, d0 = item.tile * PAIRS % HALF_HEAD;
    const bool rotate = head <= heads;
    if (rotate)
      for (int i = thread; i < COLS * 4; i += CONSUMERS)
        if (row0 + i / 4 < rows)
          prefetch_line((i & 2 ? sines : cosines) + (size_t)(row0 + i / 4) * HALF_HEAD + d0 +
                        (i & 1) * 32);
    const float2 two =
        *reinterpret_cast<const float2*>(weight_scale + item.tile * BLOCK_ROWS + 2 * pair);
    const float scale = *image_scale * (head < heads ? q_scale : 1.0f);
    float d[HALF][COLS / 2];
    int done = 0;
    multiply<0, true>(base, K_CHUNKS, done, d);
    sent_all();
    consumers_meet();
    float* staged = reinterpret_cast<float*>(smem);
#pragma unroll
    for (int j = 0; j < COLS / 8; j++)
#pragma unroll
      for (int b = 0; b < 2; b++) {
        float* to = staged + (8 * j + 2 * (lane % 4) + b) * PAIR_PITCH + pair;
        to[0] = d[0][4 * j + b] * (two.x * scale);
        to[PAIRS] = d[0][4 * j + 2 + b] * (two.y * scale);
      }
    consumers_meet();
    u16* out = head < heads ? q + head * HEAD_DIM : head == heads ? k : v;
    const size_t stride = head < heads ? heads * HEAD_DIM : HEAD_DIM;
#pragma unroll 3
    for (int i = thread; i < COLS * UNITS; i += CONSUMERS) {
      const int row = row0 + i / UNITS, column = d0 + i % UNITS * 8;
      if (row >= rows) break;
      float first[8], second[8];
      load8(first, staged + i / UNITS * PAIR_PITCH + i % UNITS * 8);
      load8(second, staged + i / UNITS * PAIR_PITCH + PAIRS + i % UNITS * 8);
      if (rotate) {
        float c[8], s[8];
        load8(c, cosines + (size_t)row * HALF_HEAD + column);
        load8(s, sines + (size_t)row * HALF_HEAD + column);
#pragma unroll
        for (int e = 0; e < 8; e++) {
          const float x = first[e];
          first[e] = x * c[e] - second[e] * s[e];
          second[e] = second[e] * c[e] + x * s[e];
        }
      }
      u16* to = out + row * stride + column;
      store8(to, first);
      store8(to + HALF_HEAD, second);
    }
  }
  __syncwarp();
  cluster_wait();
}

// out [rows][width] = image @ weight.T, without scales.
extern "C" __global__ void __maxnreg__(REGISTERS)
prefix_out(const u8* image, int image_rows, const u8* weight, u16* out, int width, int rows, int items,
           int groups) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  prepare<0>(base);
  if (threadIdx.x < WARPGROUP) {
    if (threadIdx.x == 0) produce<0, K_CHUNKS, 1>(base, weight, image, image_rows, items, groups);
    sent_all();
  } else {
    const int thread = threadIdx.x - WARPGROUP, lane = thread % 32;
    const int pair = 8 * (thread % WARPGROUP / 32) + lane / 4;
    const Item item(blockIdx.x / CLUSTER, groups, 1);
    float d[HALF][COLS / 2];
    int done = 0;
    multiply<0, true>(base, K_CHUNKS, done, d);
    sent_all();
    consumers_meet();
    u8* staged = smem + 2 * (lane % 4) * PITCH + 2 * (thread / WARPGROUP * ROW_CAP + 2 * pair);
#pragma unroll
    for (int j = 0; j < COLS / 8; j++)
#pragma unroll
      for (int b = 0; b < 2; b++)
        *reinterpret_cast<u32*>(staged + (8 * j + b) * PITCH) =
            to_bf16x2(d[0][4 * j + b], d[0][4 * j + 2 + b]);
    consumers_meet();
    const int row0 = (item.group * CLUSTER + (int)cluster_rank()) * COLS;
    for (int i = thread; i < COLS * (BLOCK_ROWS / 8); i += CONSUMERS) {
      const int row = i / (BLOCK_ROWS / 8), unit = i % (BLOCK_ROWS / 8);
      if (row0 + row < rows)
        *reinterpret_cast<uint4*>(out + (size_t)(row0 + row) * width + item.tile * BLOCK_ROWS +
                                  8 * unit) =
            *reinterpret_cast<const uint4*>(smem + row * PITCH + 16 * unit);
    }
  }
  __syncwarp();
  cluster_wait();
}
