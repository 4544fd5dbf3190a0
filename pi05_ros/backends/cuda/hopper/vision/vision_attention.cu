// Attention of SigLIP: 256 tokens of a camera, heads of 72, softmax in FP32, in one launch per layer.
//
// A block is one warpgroup with 64 query rows of one head. All of its keys and values (74 KB) are asked
// for at once, so there is one latency to wait for: the copy engine brings columns 0 to 63 (128-byte
// swizzle), the threads themselves columns 64 to 71. The four blocks of a head are a cluster: each asks for
// 64 keys and values and sends them to all (multicast), so that L2 delivers them once. S = Q K' stays in registers, so that the largest
// logit is known before the first exponential and nothing is ever rescaled; the product with the first
// half of the values runs under the exponentials of the second.
//
// The matrix unit takes 16 columns at a time: of the last 16, the second 8 are zeros in Q, and K has its
// first 8 there again, as zero times anything finite adds nothing.
//
// Dependent launch: above grid_wait nothing but the scale is read and only shared memory is written.
//
// Constant from the compiler's command line: CODED, 1 where the result is e4m3, 0 where it is bf16.

#include "ptx.cuh"
#include "wgmma_bf16.cuh"

struct alignas(64) TensorMap {
  u64 opaque[16];
};

namespace {

constexpr int TOKENS = 256, HEAD_DIM = 72, MAIN = 64, TAIL = HEAD_DIM - MAIN;
constexpr int THREADS = 128, TILE = 64, TILES = TOKENS / TILE;
constexpr int LINE = 128, TAIL_LINE = 2 * TAIL;      // bytes of a row of each part
constexpr int BOX = TILE * LINE;                     // bytes: 64 columns of 64 rows
constexpr int HALF = TOKENS / 2;                     // keys of a product
constexpr int STEPS = HALF / 16;

// Offsets in shared memory; SHARED_BYTES in vision_attention.py is the same sum.
constexpr int Q = 0, K = BOX, V = K + TILES * BOX;
constexpr int Q_TAIL = V + TILES * BOX, ZEROS = Q_TAIL + TILE * TAIL_LINE;
constexpr int K_TAIL = ZEROS + TILE * TAIL_LINE, V_TAIL = K_TAIL + TOKENS * TAIL_LINE;
constexpr int KEYS_CAME = V_TAIL + TOKENS * TAIL_LINE;  // a barrier for each half of the keys,
constexpr int VALUES_CAME = KEYS_CAME + 16;             // one for all values

// 64 columns of 64 rows of one head, swizzled.
__device__ __forceinline__ void box_load(u32 to, const TensorMap& map, int slot, int row, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to), "l"(&map), "r"(0), "r"(slot), "r"(row),
      "r"(barrier) : "memory");
}

// The same into all blocks of the cluster, completing on the barrier of each.
__device__ __forceinline__ void box_load_all(u32 to, const TensorMap& map, int slot, int row,
                                             u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to), "l"(&map), "r"(0),
      "r"(slot), "r"(row), "r"(barrier), "h"((u16)((1 << TILES) - 1)) : "memory");
}

__device__ __forceinline__ void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Operands without swizzle: 8 rows of 16 bytes lie together, groups of 8 rows 128 bytes apart; `next` bytes
// lead to the other 8 columns of a step (rows are queries or keys), or 8 keys further (values).
__device__ __forceinline__ u64 plain_descriptor(u32 address, u32 next) {
  return (u64)((address & 0x3ffff) >> 4) | (u64)(next >> 4) << 16 | 8ull << 32;
}

// o += P V: 64 query rows, 16 keys, 64 columns; V has columns side by side.
__device__ __forceinline__ void values(float (&o)[MAIN / 2], const u32 (&p)[4], u64 v, int add) {
#define O8(i)                                                                                 \
  "+f"(o[i]), "+f"(o[i + 1]), "+f"(o[i + 2]), "+f"(o[i + 3]), "+f"(o[i + 4]), "+f"(o[i + 5]), \
      "+f"(o[i + 6]), "+f"(o[i + 7])
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}\n"
      : O8(0), O8(8), O8(16), O8(24)
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v), "r"(add));
#undef O8
}

// The same for the last 8 columns.
__device__ __forceinline__ void tail_values(float (&o)[TAIL / 2], const u32 (&p)[4], u64 v, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, "
      "{%4,%5,%6,%7}, %8, p, 1, 1, 1;\n}\n"
      : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3])
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v), "r"(add));
}

// Registers that the matrix unit wrote are read below this point only.
template <int N>
__device__ __forceinline__ void ready(float (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(a[i])::"memory");
}

#if CODED
// Rows 0 and 8 of `to`, times `factor` of each, divided by `step`: lanes that are neighbors swap, so that each has
// four columns of one of two groups of eight.
__device__ __forceinline__ void store_codes(u8* to, int pitch, const float (&o)[MAIN / 2],
                                            const float (&rest)[TAIL / 2], const float (&factor)[2],
                                            float step, float* amax) {
  const int quad = threadIdx.x % 4, odd = quad & 1;
  const float quantize = reciprocal(step);
  float largest = 0.0f;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    u8* row = to + (size_t)(8 * r) * pitch;
    const float scale = factor[r] * quantize;
    auto codes = [&](float low, float high) {
      low *= scale;
      high *= scale;
      largest = fmaxf(largest, fmaxf(fabsf(low), fabsf(high)));
      return to_e4m3x2(low, high);
    };
#pragma unroll
    for (int j = 0; j < MAIN / 8; j += 2) {
      const u32 here = codes(o[4 * j + 2 * r], o[4 * j + 2 * r + 1]);
      const u32 next = codes(o[4 * j + 4 + 2 * r], o[4 * j + 5 + 2 * r]);
      const u32 got = __shfl_xor_sync(~0u, odd ? here : next, 1);
      *reinterpret_cast<u32*>(row + 8 * (j + odd) + 4 * (quad / 2)) =
          odd ? got | next << 16 : here | got << 16;
    }
    *reinterpret_cast<u16*>(row + MAIN + 2 * quad) = codes(rest[2 * r], rest[2 * r + 1]);
  }
  if (amax) {
    const int bits = __reduce_max_sync(~0u, __float_as_int(largest * step));
    if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<int*>(amax), bits);
  }
}
#endif

}  // namespace

// qkv [rows][3][heads][72] by a map of [72][3 heads][rows] in boxes of 64 columns and 64 rows, and as it
// is; out [rows][heads][72], in e4m3 divided by `out_scale`; its largest magnitude goes to `amax` if that is
// not null. `scale`: log2(e) / sqrt(72). Grid: 64 rows (a cluster), heads, cameras.
extern "C" __global__ void __launch_bounds__(THREADS)
attend_vision(const __grid_constant__ TensorMap map, const u16* qkv, u8* out, const float* out_scale,
              float* amax, int heads, float scale) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  const int thread = threadIdx.x, lane = thread % 32, head = blockIdx.y;
  const int first = blockIdx.z * TOKENS, row0 = first + blockIdx.x * TILE;
  const int pitch = 3 * heads * HEAD_DIM;
  if (thread == 0) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
    for (int i = 0; i < 3; i++) barrier_init(base + KEYS_CAME + 8 * i, 1);
    barrier_init_fence();
    barrier_expect(base + KEYS_CAME, BOX + TILES / 2 * BOX);
    barrier_expect(base + KEYS_CAME + 8, TILES / 2 * BOX);
    barrier_expect(base + VALUES_CAME, TILES * BOX);
  }
  if (thread < TILE) *reinterpret_cast<uint4*>(smem + ZEROS + thread * TAIL_LINE) = make_uint4(0, 0, 0, 0);
  const float step = CODED ? *out_scale : 1.0f;
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // the barriers of all blocks are ready
  grid_wait();
  const int share = cluster_rank();
  if (thread == 0) {
    box_load(base + Q, map, head, row0, base + KEYS_CAME);
    box_load_all(base + K + share * BOX, map, heads + head, first + share * TILE,
                 base + KEYS_CAME + share / (TILES / 2) * 8);
  }
  if (thread == 32)
    box_load_all(base + V + share * BOX, map, 2 * heads + head, first + share * TILE,
                 base + VALUES_CAME);
  __syncwarp();
  const u16* tail = qkv + (size_t)(first + thread) * pitch + head * HEAD_DIM + MAIN;
#pragma unroll
  for (int i = 0; i < TOKENS; i += THREADS) {
    const u16* from = tail + (size_t)i * pitch + heads * HEAD_DIM;
    copy16(base + K_TAIL + (thread + i) * TAIL_LINE, from);
    copy16(base + V_TAIL + (thread + i) * TAIL_LINE, from + heads * HEAD_DIM);
  }
  if (thread < TILE)
    copy16(base + Q_TAIL + thread * TAIL_LINE, tail + (size_t)(row0 - first) * pitch);
  asm volatile("cp.async.wait_all;" ::: "memory");
  shared_fence();
  __syncthreads();

  float s[2][HALF / 2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    barrier_wait(base + KEYS_CAME + 8 * half, 0);
    const u64 q = matrix_descriptor(base + Q), k = matrix_descriptor(base + K + half * HALF * LINE);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < MAIN / 16; i++) wgmma_bf16(s[half], q + 2 * i, k + 2 * i, i > 0);
    wgmma_bf16(s[half], plain_descriptor(base + Q_TAIL, ZEROS - Q_TAIL),
               plain_descriptor(base + K_TAIL + half * HALF * TAIL_LINE, 0), 1);
    wgmma_commit();
  }
  wgmma_wait<1>();
  ready(s[0]);
  float high[2] = {s[0][0], s[0][2]}, sum[2] = {};
#pragma unroll
  for (int i = 0; i < HALF / 2; i++) high[i >> 1 & 1] = fmaxf(high[i >> 1 & 1], s[0][i]);
  wgmma_wait<0>();
  ready(s[1]);
  grid_trigger();
#pragma unroll
  for (int i = 0; i < HALF / 2; i++) high[i >> 1 & 1] = fmaxf(high[i >> 1 & 1], s[1][i]);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 1));
    high[r] = scale * fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 2));
  }
  float o[MAIN / 2], rest[TAIL / 2];
  u32 p[2][STEPS][4];
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int i = 0; i < HALF / 2; i += 2) {
      const int r = i >> 1 & 1;
      const float low = exp2_fast(fmaf(s[half][i], scale, -high[r]));
      const float up = exp2_fast(fmaf(s[half][i + 1], scale, -high[r]));
      sum[r] += low + up;
      p[half][i / 8][i / 2 % 4] = to_bf16x2(low, up);
    }
    if (half == 0) barrier_wait(base + VALUES_CAME, 0);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      const int key = half * HALF + 16 * i;
      values(o, p[half][i], matrix_descriptor(base + V + key * LINE), half + i > 0);
      tail_values(rest, p[half][i], plain_descriptor(base + V_TAIL + key * TAIL_LINE, 8 * TAIL_LINE),
                  half + i > 0);
    }
    wgmma_commit();
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    sum[r] = 1.0f / sum[r];
  }
  const size_t first_value = (size_t)(row0 + thread / 32 * 16 + lane / 4) * heads * HEAD_DIM + head * HEAD_DIM;
  wgmma_wait<0>();
  ready(o);
  ready(rest);
#if CODED
  store_codes(out + first_value, heads * HEAD_DIM, o, rest, sum, step, amax);
#else
  u16* to = reinterpret_cast<u16*>(out) + first_value + 2 * (lane % 4);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    u16* row = to + (size_t)(8 * r) * heads * HEAD_DIM;
#pragma unroll
    for (int j = 0; j < MAIN / 8; j++)
      *reinterpret_cast<u32*>(row + 8 * j) =
          to_bf16x2(o[4 * j + 2 * r] * sum[r], o[4 * j + 2 * r + 1] * sum[r]);
    *reinterpret_cast<u32*>(row + MAIN) = to_bf16x2(rest[2 * r] * sum[r], rest[2 * r + 1] * sum[r]);
  }
#endif
}
