// What the products of the prefix share (prefill.cu, prefix_projections.cu): weights are the first operand
// of wgmma, rows of the prefix the second; a block computes PIECES tiles of 64 rows of weights times COLS
// rows of the prefix, K in chunks of 128 columns, STAGES of them in shared memory.
//
// PIECES is defined before this file; constants from the compiler's command line: COLS, CLUSTER, STAGES.
#pragma once

#include "layout.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"

namespace {

constexpr int BLOCK_ROWS = PIECES * ROW_CAP;         // rows of weights
constexpr int WARPGROUP = 128, CONSUMERS = 2 * WARPGROUP, THREADS = WARPGROUP + CONSUMERS;
constexpr int HALF = PIECES / 2;                     // tiles of a warpgroup
constexpr int WEIGHT_BYTES = PIECES * CHUNK_BYTES;
constexpr int STAGE_BYTES = WEIGHT_BYTES + COLS * CHUNK_COLUMNS;

static_assert(COLS % 8 == 0 && COLS >= 8 && COLS <= 256, "rows of the prefix in a tile");
static_assert(PIECES % 2 == 0, "two warpgroups divide the tiles of weights");
static_assert(PIECES % CLUSTER == 0, "blocks of a cluster share the tiles of weights");

// Offsets in shared memory; shared_bytes in prefill.py and prefix_projections.py are the same sum.
template <int STAGED_BYTES>
struct Room {
  static constexpr int STAGED = STAGES * STAGE_BYTES;
  static constexpr int FULL = STAGED + STAGED_BYTES;
  static constexpr int EMPTY = FULL + 8 * STAGES;
  static constexpr int READY = EMPTY + 8 * STAGES;  // a result lies in STAGED
  static constexpr int FREE = READY + 8;            // and has left it
};

__device__ __forceinline__ void remote_arrive(u32 barrier, u32 rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                   remote_address(barrier, rank)) : "memory");
}

// Shared to global memory; the thread that asked waits for its own stores.
__device__ __forceinline__ void bulk_store(void* to, u32 from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

__device__ __forceinline__ void bulk_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

__device__ __forceinline__ void bulk_store_wait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ void consumers_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

// Which product a cluster works on: `groups` clusters share 256 rows of weights, `splits` divide K.
struct Item {
  int tile, group, split;
  __device__ Item(int index, int groups, int splits)
      : tile(index / (groups * splits)), group(index / splits % groups), split(index % splits) {}
};

template <int STAGED_BYTES>
__device__ __forceinline__ void prepare(u32 base) {
  using At = Room<STAGED_BYTES>;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(base + At::FULL + 8 * s, 1);
      barrier_init(base + At::EMPTY + 8 * s, 2 * CLUSTER);
    }
    if (STAGED_BYTES) {
      barrier_init(base + At::READY, CONSUMERS / 32);
      barrier_init(base + At::FREE, 1);
    }
    barrier_init_fence();
  }
  __syncwarp();
  cluster_arrive_relaxed();  // behind the fence of barrier_init_fence
  cluster_wait();
}

// Chunk after chunk of every item of this cluster, as soon as all blocks have room for it.
template <int STAGED_BYTES, int K_CHUNKS, int PARTS>
__device__ __forceinline__ void produce(u32 base, const u8* weight, const u8* image, int image_rows,
                                        int items, int groups) {
  using At = Room<STAGED_BYTES>;
  constexpr int EACH = (K_CHUNKS + PARTS - 1) / PARTS, SHARE = PIECES / CLUSTER;
  static_assert(K_CHUNKS - (PARTS - 1) * EACH >= STAGES, "columns of an item");
  const int rank = cluster_rank();
  int filled = 0;
  for (int index = blockIdx.x / CLUSTER; index < items; index += gridDim.x / CLUSTER) {
    const Item item(index, groups, PARTS);
    const int chunks = min(EACH, K_CHUNKS - item.split * EACH);
    const u8* pieces = weight + ((size_t)(item.tile * PIECES + rank * SHARE) * K_CHUNKS +
                                 item.split * EACH) * CHUNK_BYTES;
    const u8* rows = image + ((size_t)item.split * EACH * image_rows +
                              (item.group * CLUSTER + rank) * COLS) * CHUNK_COLUMNS;
    auto ask_weights = [&](int chunk, int stage) {
      const u32 full = base + At::FULL + 8 * stage;
      barrier_expect(full, STAGE_BYTES);
#pragma unroll
      for (int p = 0; p < SHARE; p++) {
        const u32 to = base + stage * STAGE_BYTES + (rank * SHARE + p) * CHUNK_BYTES;
        const u8* from = pieces + ((size_t)p * K_CHUNKS + chunk) * CHUNK_BYTES;
        if (CLUSTER > 1)
          bulk_load_multicast(to, from, CHUNK_BYTES, full, (1 << CLUSTER) - 1);
        else
          bulk_load(to, from, CHUNK_BYTES, full);
      }
    };
    auto ask_rows = [&](int chunk, int stage) {
      bulk_load(base + stage * STAGE_BYTES + WEIGHT_BYTES,
                rows + (size_t)chunk * image_rows * CHUNK_COLUMNS, COLS * CHUNK_COLUMNS,
                base + At::FULL + 8 * stage);
    };
    int chunk = 0;
    if (filled == 0) {
      for (int s = 0; s < STAGES; s++) ask_weights(s, s);
      grid_wait();
      for (int s = 0; s < STAGES; s++) ask_rows(s, s);
      chunk = filled = STAGES;
    }
    for (; chunk < chunks; chunk++, filled++) {
      const int stage = filled % STAGES;
      barrier_wait(base + At::EMPTY + 8 * stage, (filled / STAGES - 1) & 1);
      ask_weights(chunk, stage);
      ask_rows(chunk, stage);
    }
  }
}

// One item: d = weights times rows of the prefix. `done` counts the chunks of all items so far; ONLY: there
// are no more.
template <int STAGED_BYTES, bool ONLY>
__device__ __forceinline__ void multiply(u32 base, int chunks, int& done,
                                         float (&d)[HALF][COLS / 2]) {
  using At = Room<STAGED_BYTES>;
  const int group = threadIdx.x / WARPGROUP - 1, thread = threadIdx.x % WARPGROUP;
  for (int chunk = 0; chunk < chunks; chunk++, done++) {
    const int stage = done % STAGES;
    barrier_wait(base + At::FULL + 8 * stage, done / STAGES & 1);
    const u32 data = base + stage * STAGE_BYTES;
    const u64 b = matrix_descriptor(data + WEIGHT_BYTES);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int i = 0; i < HALF; i++)
        wgmma(d[i], matrix_descriptor(data + (HALF * group + i) * CHUNK_BYTES) + 2 * k, b + 2 * k,
              chunk + k > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (chunk > 0 && thread < CLUSTER)
      remote_arrive(base + At::EMPTY + 8 * ((done - 1) % STAGES), thread);
  }
  wgmma_wait<0>();
  if (!ONLY && thread < CLUSTER) remote_arrive(base + At::EMPTY + 8 * ((done - 1) % STAGES), thread);
}

// This warp sends no more data or arrivals to others; who has called it waits with cluster_wait before it
// leaves. Stores are not waited for.
__device__ __forceinline__ void sent_all() {
  __syncwarp();
  cluster_arrive_relaxed();
}

// Nobody leaves while others may still send data or arrivals.
__device__ __forceinline__ void leave_together() {
  sent_all();
  cluster_wait();
}

}  // namespace
