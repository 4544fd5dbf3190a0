// Products of SigLIP in BF16 with FP32 accumulation: out = x @ w.T, with bias and GELU if asked for.
//
// A camera has 256 rows, two tiles of 128, which are exact; so rows are the first operand of wgmma and
// weights the second, which may have any number of rows (COLS). COLS is chosen so that all tiles run
// at the same time on the device. A cluster is the two tiles of one camera: each block fetches half of
// the weights and sends it to both (multicast). One thread asks for data, STAGES chunks of 64 columns
// ahead; two warpgroups multiply, 64 rows each. Where there are few tiles, K is divided among blocks,
// which leave BF16 parts that the next LayerNorm adds in a fixed order.
//
// Dependent launch as in products.cu: above grid_wait only weights and biases are read; nothing is
// written before rows of x have come, which is behind the wait. Registers are capped and the trigger
// comes behind the products, so that the small kernels in front and behind find room.
//
// Constants from the compiler's command line: COLS (rows of weights in a tile, multiple of 16), STAGES.

#include "ptx.cuh"
#include "wgmma_bf16.cuh"

namespace {

constexpr int WARPGROUP = 128, CONSUMERS = 2 * WARPGROUP, THREADS = WARPGROUP + CONSUMERS;
constexpr int ROWS = 128;              // of x in a tile
constexpr int LINE = 128;              // bytes of a swizzled line: 64 columns
constexpr int CLUSTER = 2;
constexpr int X_BYTES = ROWS * LINE, HALF_BYTES = COLS / 2 * LINE;
constexpr int STAGE_BYTES = X_BYTES + COLS * LINE;
constexpr int FULL = STAGES * STAGE_BYTES, EMPTY = FULL + 8 * STAGES;  // offsets of the barriers
constexpr int REGISTERS = 56 + COLS / 2;  // room for small kernels beside it
constexpr int PITCH = COLS * 2 + 16;   // bytes between rows of the result; no bank conflicts

static_assert(COLS % 16 == 0 && COLS >= 16 && COLS <= 208, "rows of weights in a tile");
static_assert(ROWS * PITCH <= FULL, "the result lies where the operands lay");

struct alignas(64) TensorMap {
  u64 opaque[16];
};

__device__ __forceinline__ void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// 64 columns of some rows of a matrix, swizzled.
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

// Tanh approximation: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).
__device__ __forceinline__ float gelu(float x) {
  const float e = exp2_fast(x * fmaf(x * x, -0.10294324f, -2.3022082f));
  return __fdividef(x, 1.0f + e);
}

}  // namespace

// x [rows, K], w [columns, K] by tensor maps in boxes of 64 columns and 128 or COLS / 2 rows, zeros
// behind their ends; out [splits][rows][columns]; bias may be null. K is `chunks` chunks of 64 columns.
extern "C" __global__ void __maxnreg__(REGISTERS)
vision_product(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
               const u16* bias, u16* out, int rows, int columns, int chunks, int tiles, int splits,
               int with_gelu) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  const int rank = cluster_rank(), index = blockIdx.x / CLUSTER;
  const int tile = index % tiles, split = index / tiles % splits;
  const int row0 = (index / (tiles * splits) * CLUSTER + rank) * ROWS, column0 = tile * COLS;
  const int each = (chunks + splits - 1) / splits, first = split * each;
  const int count = min(each, chunks - first);
  if (threadIdx.x == 0) {
    prefetch(x_map);
    prefetch(w_map);
    for (int s = 0; s < STAGES; s++) {
      barrier_init(base + FULL + 8 * s, 1);
      barrier_init(base + EMPTY + 8 * s, 2 * CLUSTER);
    }
    barrier_init_fence();
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x < WARPGROUP) {
    if (threadIdx.x == 0) {
      auto ask_weights = [&](int chunk, int stage) {
        const u32 full = base + FULL + 8 * stage;
        barrier_expect(full, STAGE_BYTES);
        box_load_both(base + stage * STAGE_BYTES + X_BYTES + rank * HALF_BYTES, w_map,
                      (first + chunk) * 64, column0 + rank * (COLS / 2), full);
      };
      auto ask_rows = [&](int chunk, int stage) {
        box_load(base + stage * STAGE_BYTES, x_map, (first + chunk) * 64, row0,
                 base + FULL + 8 * stage);
      };
      const int ahead = min(STAGES, count);
      for (int s = 0; s < ahead; s++) ask_weights(s, s);
      grid_wait();
      for (int s = 0; s < ahead; s++) ask_rows(s, s);
      for (int chunk = ahead; chunk < count; chunk++) {
        const int stage = chunk % STAGES;
        barrier_wait(base + EMPTY + 8 * stage, (chunk / STAGES - 1) & 1);
        ask_weights(chunk, stage);
        ask_rows(chunk, stage);
      }
    }
    __syncwarp();
    cluster_arrive_relaxed();
  } else {
    const int thread = threadIdx.x % WARPGROUP, group = threadIdx.x / WARPGROUP - 1;
    const int lane = thread % 32;
    u32 biases[COLS / 8];
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) {
      const int column = column0 + 8 * j + 2 * (lane % 4);
      biases[j] = bias && column < columns ? *reinterpret_cast<const u32*>(bias + column) : 0;
    }
    float d[COLS / 2];
    for (int chunk = 0; chunk < count; chunk++) {
      const int stage = chunk % STAGES;
      barrier_wait(base + FULL + 8 * stage, chunk / STAGES & 1);
      const u32 data = base + stage * STAGE_BYTES;
      const u64 a = matrix_descriptor(data + group * 64 * LINE);
      const u64 b = matrix_descriptor(data + X_BYTES);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) wgmma_bf16(d, a + 2 * k, b + 2 * k, chunk + k > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (chunk > 0 && thread < CLUSTER)
        remote_arrive(base + EMPTY + 8 * ((chunk - 1) % STAGES), thread);
    }
    wgmma_wait<0>();
    cluster_arrive_relaxed();  // no more data or arrivals for the other block
    grid_trigger();            // earlier, blocks of the kernel behind would take room from ours
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");  // nobody reads operands any more
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
    asm volatile("bar.sync %0, %1;" ::"r"(2 + group), "n"(WARPGROUP) : "memory");
    u16* to = out + ((size_t)split * rows + row0 + 64 * group) * columns + column0;
    for (int i = thread; i < 64 * (COLS / 8); i += WARPGROUP) {
      const int row = i / (COLS / 8), unit = i % (COLS / 8);
      if (column0 + 8 * unit < columns)
        *reinterpret_cast<uint4*>(to + (size_t)row * columns + 8 * unit) =
            *reinterpret_cast<const uint4*>(own + row * PITCH + 16 * unit);
    }
  }
  // Nobody leaves while the other block may still send data or arrivals.
  __syncwarp();
  cluster_wait();
}
