// What the products of SigLIP share (vision.cu, vision_fp8.cu): out = x @ w.T.
//
// A camera has 256 rows, two tiles of 128, which are exact; so rows are the first operand of wgmma and
// weights the second, which may have any number of rows (COLS). COLS is chosen so that all tiles run
// at the same time on the device. A cluster is the two tiles of one camera: each block fetches half of
// the weights and sends it to both (multicast). One thread asks for data, STAGES chunks of 128 bytes of
// a row ahead; two warpgroups multiply, 64 rows each. Where there are few tiles, K is divided among
// blocks, which leave BF16 parts that the next LayerNorm adds in a fixed order.
//
// Dependent launch as in products.cu: above grid_wait only weights, biases and scales are read; nothing
// is written before rows of x have come, which is behind the wait. Registers are capped, so that the small
// kernels in front and behind find room; with EARLY = 0 those behind start when the products are done.
//
// CODED is defined before this file, 1 where operands are e4m3, 0 where they are bf16; GROUPS may be, 1 where
// one warpgroup multiplies tiles of 64 rows. Constants from the compiler's command line: COLS (rows of weights
// in a tile, multiple of 16), STAGES, EARLY.
#pragma once

#ifndef GROUPS
#define GROUPS 2
#endif

#include "ptx.cuh"
#if CODED
#include "wgmma.cuh"
#else
#include "wgmma_bf16.cuh"
#endif

namespace {

constexpr int WARPGROUP = 128, CONSUMERS = GROUPS * WARPGROUP, THREADS = WARPGROUP + CONSUMERS;
constexpr int ROWS = 64 * GROUPS;      // of x in a tile
constexpr int LINE = 128;              // bytes of a swizzled line
constexpr int CHUNK = CODED ? LINE : LINE / 2;  // columns of it
constexpr int CLUSTER = 2;
constexpr int X_BYTES = ROWS * LINE, HALF_BYTES = COLS / 2 * LINE;
constexpr int STAGE_BYTES = X_BYTES + COLS * LINE;
constexpr int FULL = STAGES * STAGE_BYTES, EMPTY = FULL + 8 * STAGES;  // offsets of the barriers
constexpr int BEHIND = EMPTY + 8 * STAGES;                             // what is free
constexpr int HELPERS = WARPGROUP - 32;  // threads that neither ask for data nor multiply
constexpr int REGISTERS = 56 + COLS / 2;  // room for small kernels beside it
constexpr int PITCH = COLS * 2 + 16;   // bytes between rows of a bf16 result; no bank conflicts

static_assert(COLS % 16 == 0 && COLS >= 16 && COLS <= 208, "rows of weights in a tile");
static_assert(ROWS * PITCH <= FULL, "the result lies where the operands lay");

struct alignas(64) TensorMap {
  u64 opaque[16];
};

__device__ __forceinline__ void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A chunk of some rows of a matrix, swizzled.
__device__ __forceinline__ void box_load(u32 to, const TensorMap& map, int column, int row,
                                         u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// The same into both blocks of the cluster, completing on the barrier of each.
__device__ __forceinline__ void box_load_both(u32 to, const TensorMap& map, int column, int row,
                                              u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(&map), "r"(column),
      "r"(row), "r"(barrier), "h"((u16)3) : "memory");
}

__device__ __forceinline__ void remote_arrive(u32 barrier, u32 rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                   remote_address(barrier, rank)) : "memory");
}

template <int BARRIER, int THREADS_OF_IT>
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS_OF_IT) : "memory");
}

// What this block computes: `count` chunks of K, from `first` on, of a tile.
struct Place {
  int rank, split, row0, column0, first, count;
  __device__ __forceinline__ Place(int chunks, int tiles, int splits) : rank(cluster_rank()) {
    const int index = blockIdx.x / CLUSTER, tile = index % tiles;
    split = index / tiles % splits;
    row0 = (index / (tiles * splits) * CLUSTER + rank) * ROWS;
    column0 = tile * COLS;
    const int each = (chunks + splits - 1) / splits;
    first = split * each;
    count = min(each, chunks - first);
  }
};

__device__ __forceinline__ void prepare(u32 base, const TensorMap& x_map, const TensorMap& w_map) {
  if (threadIdx.x == 0) {
    prefetch(x_map);
    prefetch(w_map);
    for (int s = 0; s < STAGES; s++) {
      barrier_init(base + FULL + 8 * s, 1);
      barrier_init(base + EMPTY + 8 * s, GROUPS * CLUSTER);
    }
    barrier_init_fence();
  }
  if (EARLY) grid_trigger();
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

// One thread: chunk after chunk, as soon as both blocks have room for it.
__device__ __forceinline__ void produce(u32 base, const TensorMap& x_map, const TensorMap& w_map,
                                        const Place& at) {
  auto ask_weights = [&](int chunk, int stage) {
    const u32 full = base + FULL + 8 * stage;
    barrier_expect(full, STAGE_BYTES);
    box_load_both(base + stage * STAGE_BYTES + X_BYTES + at.rank * HALF_BYTES, w_map,
                  (at.first + chunk) * CHUNK, at.column0 + at.rank * (COLS / 2), full);
  };
  auto ask_rows = [&](int chunk, int stage) {
    box_load(base + stage * STAGE_BYTES, x_map, (at.first + chunk) * CHUNK, at.row0,
             base + FULL + 8 * stage);
  };
  const int ahead = min(STAGES, at.count);
  for (int s = 0; s < ahead; s++) ask_weights(s, s);
  grid_wait();
  for (int s = 0; s < ahead; s++) ask_rows(s, s);
  for (int chunk = ahead; chunk < at.count; chunk++) {
    const int stage = chunk % STAGES;
    barrier_wait(base + EMPTY + 8 * stage, (chunk / STAGES - 1) & 1);
    ask_weights(chunk, stage);
    ask_rows(chunk, stage);
  }
}

// A warpgroup: d = its 64 rows times the weights.
__device__ __forceinline__ void multiply(u32 base, int group, int thread, int count,
                                         float (&d)[COLS / 2]) {
  for (int chunk = 0; chunk < count; chunk++) {
    const int stage = chunk % STAGES;
    barrier_wait(base + FULL + 8 * stage, chunk / STAGES & 1);
    const u32 data = base + stage * STAGE_BYTES;
    const u64 a = matrix_descriptor(data + group * 64 * LINE);
    const u64 b = matrix_descriptor(data + X_BYTES);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
#if CODED
      wgmma(d, a + 2 * k, b + 2 * k, chunk + k > 0);
#else
      wgmma_bf16(d, a + 2 * k, b + 2 * k, chunk + k > 0);
#endif
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (chunk > 0 && thread < CLUSTER)
      remote_arrive(base + EMPTY + 8 * ((chunk - 1) % STAGES), thread);
  }
  wgmma_wait<0>();
  cluster_arrive_relaxed();  // no more data or arrivals for the other block
  if (!EARLY) grid_trigger();
}

#if !CODED
// Tanh approximation: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).
__device__ __forceinline__ float gelu(float x) {
  const float e = exp2_fast(x * fmaf(x * x, -0.10294324f, -2.3022082f));
  return __fdividef(x, 1.0f + e);
}
#endif

// Rows of a result, staged by all threads of a warpgroup, to their place; 16-byte pieces, the first `live` of
// UNITS in a row.
template <int UNITS, int STAGED_PITCH>
__device__ __forceinline__ void store_rows(u8* to, size_t pitch, const u8* staged, int live, int thread) {
  for (int i = thread; i < 64 * UNITS; i += WARPGROUP) {
    const int row = i / UNITS, unit = i % UNITS;
    if (unit < live)
      *reinterpret_cast<uint4*>(to + row * pitch + 16 * unit) =
          *reinterpret_cast<const uint4*>(staged + row * STAGED_PITCH + 16 * unit);
  }
}

}  // namespace
