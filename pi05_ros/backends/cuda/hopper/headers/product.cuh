// What the products of products.cu share: a tile of 64 columns of the result per block, its way through
// shared memory, and the exchange of a cluster that has divided K.
#pragma once

#include "layout.cuh"
#include "operands.cuh"
#include "ptx.cuh"
#if CODED
#include "wgmma.cuh"
#else
#include "wgmma_bf16.cuh"
#endif

namespace {

constexpr int THREADS = 128;           // one warpgroup
constexpr int WARPS = THREADS / 32;
constexpr int TILE = 64;               // rows of weights of a block
constexpr int QUADS = TILE / 4;        // four columns of the result per thread in an epilogue
constexpr int ROWS_AT_ONCE = THREADS / QUADS;
constexpr int PARTS = WIDTH / TILE;    // partial row sums of x * x, one per tile of columns
constexpr int FACTOR_BYTES = 3 * ROW_CAP * 4;  // see RowSums
constexpr int QKV_ROWS = (ROWS / 8 + QKV_GROUPS - 1) / QKV_GROUPS * 8;  // action rows of a block
constexpr int QKV_BLOCKS = (ROWS + QKV_ROWS - 1) / QKV_ROWS;            // that share a tile
constexpr int ROW_PAD = TILE + 8;      // floats between rows of the exchange: no bank conflicts
constexpr float EPSILON = 1e-6f;

// Room for what the blocks of a cluster send to one of them: 16 columns in bf16 per row and warp.
constexpr int exchange_bytes(int split, int rows) {
  return split == 1 ? 0 : split * WARPS * (rows / split | 1) * 32;
}

static_assert(ROWS % 8 == 0 && ROWS >= 8 && ROWS <= ROW_CAP, "action rows");
static_assert(WIDTH % 128 == 0 && MLP % 128 == 0 && HEAD_DIM % TILE == 0, "sizes of the expert");

__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float2 load2(const float* p) { return *reinterpret_cast<const float2*>(p); }

// Four outputs' scales of weights times that of the input; operands in bf16 have none.
__device__ __forceinline__ float4 scales4(const float* of_weights, const float* of_input) {
  if (!CODED) return make_float4(1.0f, 1.0f, 1.0f, 1.0f);
  const float4 a = load4(of_weights);
  const float s = *of_input;
  return make_float4(a.x * s, a.y * s, a.z * s, a.w * s);
}

// Shared memory of a block: weights, activations, the exchange, a barrier per chunk;
// shared_bytes in products.py is the same sum.
//
// CHUNKS of K, after SPLIT blocks of a cluster have divided it; LOADED action rows; room for SLOTS
// chunks of them, which the others follow as it is free; DELAY: cycles before the weights are asked for,
// which leaves the way to activations of the kernels in front.
template <int CHUNKS, int SPLIT, int LOADED, int EXCHANGE_BYTES, int SLOTS, int DELAY = 0>
struct Shared {
  static constexpr int ACT = CHUNKS * CHUNK_BYTES;
  static constexpr int ACT_CHUNK = LOADED * CHUNK_COLUMNS;
  static constexpr int EXCHANGE = ACT + SLOTS * ACT_CHUNK;
  static constexpr int FACTORS = EXCHANGE + EXCHANGE_BYTES;
  static constexpr int BARRIERS = FACTORS + FACTOR_BYTES;
  static_assert(8 % SPLIT == 0, "blocks of a cluster");
  static_assert(SLOTS == CHUNKS || (SLOTS >= 2 && SLOTS < CHUNKS), "room for activations");

  static constexpr int ROWS_HERE = LOADED / SPLIT;            // action rows that a block finishes
  static constexpr int SENT_ROWS = ROWS_HERE | 1;             // room for them: no bank conflicts
  static constexpr int TURNS = (CHUNKS + WARPS - 1) / WARPS;  // chunks that a warp asks for

  // Slot c holds chunk (c + first) mod CHUNKS: blocks begin with different chunks, so that not all of
  // them want the same lines at the same time.
  static __device__ __forceinline__ int chunk(int slot, int first) {
    const int c = slot + first;
    return c < CHUNKS ? c : c - CHUNKS;
  }

  // Above the wait: barriers, and the weights start to come. Every warp serves its own slots.
  static __device__ __forceinline__ void start(u32 base, const u8* weights, int first, int horizon) {
    const u32 exchange = base + BARRIERS + 8 * CHUNKS;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < TURNS; i++) {
        const int c = i * WARPS + threadIdx.x / 32;
        if (c < CHUNKS) barrier_init(base + BARRIERS + 8 * c, 1);
      }
      if (SPLIT > 1 && threadIdx.x == 0) barrier_init(exchange, 1);
      barrier_init_fence();
      if (SPLIT > 1 && threadIdx.x == 0) {
        const int live = (horizon - (int)cluster_rank() + SPLIT - 1) / SPLIT;  // rows of this block
        barrier_expect(exchange, SPLIT * live * TILE * 2);
      }
      if (DELAY > 0) {
        const long long begin = clock64();
        while (clock64() - begin < DELAY) {
        }
      }
#pragma unroll
      for (int i = 0; i < TURNS; i++) {
        const int c = i * WARPS + threadIdx.x / 32;
        if (c < CHUNKS) {
          barrier_expect(base + BARRIERS + 8 * c, CHUNK_BYTES + horizon * CHUNK_COLUMNS);
          bulk_load_once(base + c * CHUNK_BYTES, weights + chunk(c, first) * CHUNK_BYTES,
                         CHUNK_BYTES, base + BARRIERS + 8 * c);
        }
      }
    }
    __syncthreads();
    if (SPLIT > 1) cluster_arrive_relaxed();
  }

  // Around the wait: the activations start to come. Addresses are ready before it.
  static __device__ __forceinline__ void wait_and_fetch(u32 base, const u8* image, int first,
                                                        int horizon) {
    const u8* from[TURNS];
    u32 to[TURNS], barrier[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {  // those behind SLOTS are not used
      const int c = i * WARPS + threadIdx.x / 32;
      from[i] = image + chunk(c, first) * CHUNK_BYTES;
      to[i] = base + ACT + c * ACT_CHUNK;
      barrier[i] = base + BARRIERS + 8 * c;
      asm volatile("" : "+l"(from[i]), "+r"(to[i]), "+r"(barrier[i]));
    }
    grid_wait();
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < TURNS; i++)
        if (i * WARPS + threadIdx.x / 32 < SLOTS)
          bulk_load(to[i], from[i], horizon * CHUNK_COLUMNS, barrier[i]);
    }
    __syncwarp();
  }

  // d = weights times activations over the K of this block; complete after wgmma_wait<0>. Chunks that
  // had no room are asked for when the one before the last that was begun is done; `image`, `first` and
  // `horizon` as for wait_and_fetch.
  static __device__ __forceinline__ void multiply(u32 base, const u8* image, int first, int horizon,
                                                  float (&d)[LOADED / 2]) {
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      barrier_wait(base + BARRIERS + 8 * c, 0);
      const u64 a = matrix_descriptor(base + c * CHUNK_BYTES);
      const u64 b = matrix_descriptor(base + ACT + c % SLOTS * ACT_CHUNK);
#pragma unroll
      for (int k = 0; k < 4; k++) {
#if CODED
        wgmma(d, a + 2 * k, b + 2 * k, c + k > 0);
#else
        wgmma_bf16(d, a + 2 * k, b + 2 * k, c + k > 0);
#endif
      }
      const int next = c - 1 + SLOTS;  // takes the room of chunk c - 1
      if (c > 0 && next < CHUNKS) {
        wgmma_commit();
        wgmma_wait<1>();
        __syncthreads();  // all warps are done with it
        if (threadIdx.x == 0)
          bulk_load(base + ACT + (c - 1) % SLOTS * ACT_CHUNK, image + chunk(next, first) * CHUNK_BYTES,
                    horizon * CHUNK_COLUMNS, base + BARRIERS + 8 * next);
        __syncwarp();
      } else if (c == 0 && SLOTS < CHUNKS) {
        wgmma_commit();
      }
    }
    wgmma_commit();
  }

  // Send the partial sums of action row t to block t mod SPLIT and wait for those of the others, in
  // bf16: what a block can send per cycle is the limit here.
  //
  // A thread has columns 2 pair and 2 pair + 1 of rows 8 j + 2 (lane % 4) + b. Lanes that differ in
  // bits 2 and 3 swap until each has eight columns of one row, of one of two j: 16 bytes, on the
  // receiver's barrier. Rows of one owner and 16 columns lie together, so that stores of a warp do.
  static __device__ __forceinline__ void exchange(u32 base, u32 rank, int horizon,
                                                  const float (&d)[LOADED / 2]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool odd = lane & 4, high = lane & 8;
    const int t = 2 * (lane % 4) + odd + 8 * high, owner = t % SPLIT;
    const int place = ((rank * WARPS + warp) * SENT_ROWS + t / SPLIT) * 16 + 8 * (lane / 16);
    constexpr int PITCH = 32;
    const u32 to = remote_address(base + EXCHANGE + 2 * place, owner);
    const u32 barrier = remote_address(base + BARRIERS + 8 * CHUNKS, owner);
    __syncwarp();
    cluster_wait();  // everybody's barrier is ready
#pragma unroll
    for (int j = 0; j < LOADED / 8; j += 2) {
      u32 pairs[2][2];  // [j, j + 1][columns of the lane with bit 2 clear, set]
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int k = j + h < LOADED / 8 ? j + h : j;  // behind the last: not sent
        const u32 even_row = to_bf16x2(d[4 * k], d[4 * k + 2]);
        const u32 odd_row = to_bf16x2(d[4 * k + 1], d[4 * k + 3]);
        const u32 own = odd ? odd_row : even_row;
        const u32 other = __shfl_xor_sync(~0u, odd ? even_row : odd_row, 4);
        pairs[h][0] = odd ? other : own;
        pairs[h][1] = odd ? own : other;
      }
      const u32 own0 = high ? pairs[1][0] : pairs[0][0], own1 = high ? pairs[1][1] : pairs[0][1];
      const u32 other0 = __shfl_xor_sync(~0u, high ? pairs[0][0] : pairs[1][0], 8);
      const u32 other1 = __shfl_xor_sync(~0u, high ? pairs[0][1] : pairs[1][1], 8);
      if (8 * j + t < horizon)
        remote_store16(to + j * (8 / SPLIT) * PITCH, high ? other0 : own0, high ? other1 : own1,
                       high ? own0 : other0, high ? own1 : other1, barrier);
    }
    barrier_wait_cluster(base + BARRIERS + 8 * CHUNKS, 0);
  }

  // Without a cluster: the result over the place of the weights, for `collect`.
  static __device__ __forceinline__ void lay_down(u8* smem, const float (&d)[LOADED / 2]) {
    static_assert(SPLIT > 1 || CHUNKS * CHUNK_BYTES >= LOADED * ROW_PAD * 4, "room for the result");
    const int lane = threadIdx.x % 32, pair = 8 * (threadIdx.x / 32) + lane / 4;
    float* to = reinterpret_cast<float*>(smem) + 2 * (lane % 4) * ROW_PAD + 2 * pair;
    __syncthreads();  // everybody's matrix unit is done with the weights
#pragma unroll
    for (int j = 0; j < LOADED / 8; j++)
#pragma unroll
      for (int b = 0; b < 2; b++)
        *reinterpret_cast<float2*>(to + (8 * j + b) * ROW_PAD) =
            make_float2(d[4 * j + b], d[4 * j + 2 + b]);
    __syncthreads();
  }

  // The result of this block to where `collect` finds it.
  static __device__ __forceinline__ void join(u8* smem, u32 base, u32 rank, int horizon,
                                              const float (&d)[LOADED / 2]) {
    if constexpr (SPLIT > 1)
      exchange(base, rank, horizon, d);
    else
      lay_down(smem, d);
  }

  // Sum over the blocks, always in the same order: columns 4 quad .. of this block's row `row`.
  static __device__ __forceinline__ float4 collect(const u8* smem, int row, int quad) {
    if constexpr (SPLIT == 1) {
      return load4(reinterpret_cast<const float*>(smem) + row * ROW_PAD + 4 * quad);
    } else {
      const u8* from = smem + EXCHANGE + (quad / 4 * SENT_ROWS + row) * 32 + quad % 4 * 8;
      constexpr int STEP = WARPS * SENT_ROWS * 32;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int s = 0; s < SPLIT; s++) {
        const uint2 part = *reinterpret_cast<const uint2*>(from + s * STEP);
        sum.x += bf16_low(part.x), sum.y += bf16_high(part.x);
        sum.z += bf16_low(part.y), sum.w += bf16_high(part.y);
      }
      return sum;
    }
  }
};

// L2 takes in this block's BYTES of the weights of a kernel behind.
template <int BYTES>
__device__ __forceinline__ void look_ahead(const u8* weights) {
  constexpr int SHARE = BYTES / WARPS;
  static_assert(SHARE % 16 == 0, "whole units");
  if (threadIdx.x % 32 == 0)
    bulk_prefetch(weights + (size_t)blockIdx.x * BYTES + threadIdx.x / 32 * SHARE, SHARE);
  __syncwarp();
}

// A value that was loaded early, not to be waited for before this point.
__device__ __forceinline__ float not_before(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

// 1 / rms of each action row into factors [64], from sums of squares that all threads load before;
// `room` [2][64] is to add them. Ends with all threads in step.
struct RowSums {
  static constexpr int SHARES = THREADS / ROW_CAP;
  static constexpr int EACH = (PARTS + SHARES - 1) / SHARES;
  float squares[EACH];

  __device__ __forceinline__ void load(const float* sums) {
    const int share = threadIdx.x / ROW_CAP, t = threadIdx.x % ROW_CAP;
#pragma unroll
    for (int p = 0; p < EACH; p++) {
      const int part = share * EACH + p;
      squares[p] = part < PARTS ? __ldcg(sums + part * ROW_CAP + t) : 0.0f;
    }
  }

  __device__ __forceinline__ void finish(float* factors, float* room) const {
    float square = 0.0f;
#pragma unroll
    for (int p = 0; p < EACH; p++) square += not_before(squares[p]);
    room[threadIdx.x] = square;
    __syncthreads();
    if (threadIdx.x < ROW_CAP) {
      float total = room[threadIdx.x];
#pragma unroll
      for (int i = 1; i < SHARES; i++) total += room[threadIdx.x + i * ROW_CAP];
      factors[threadIdx.x] = rsqrtf(total * (1.0f / WIDTH) + EPSILON);
    }
    __syncthreads();
  }
};

// Sum over the 16 threads of an action row, the same bits in each of them.
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
  for (int step = 1; step < QUADS; step *= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// The largest magnitude at a site, where the caller wants it: bits of floats >= 0 order as integers.
__device__ __forceinline__ void record(float* amax, float value) {
  const int largest = __reduce_max_sync(~0u, __float_as_int(value));
  if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<int*>(amax), largest);
}

// x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)); the constants carry log2(e).
__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = x * fmaf(x * x, -0.10294324f, -2.30220820f);
  return x * reciprocal(1.0f + exp2_fast(inner));
}

}  // namespace
