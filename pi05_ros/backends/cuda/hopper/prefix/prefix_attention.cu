// Attention of the prefix in one launch: queries of 8 heads against one shared K/V head of 256.
//
// 544 rows are 34 tiles of 128 query rows, too few for 132 processors: a cluster of SPLITS blocks
// takes a tile, each block a slice of the keys. One thread asks the copy engine for tiles of KEYS
// keys and of their values, STAGES ahead; two warpgroups of 64 query rows multiply: S = Q K' from
// shared memory, softmax in registers, O += P V with P from registers and V read transposed. The
// logits of a tile are asked for before the values of the tile before, whose product runs under the
// softmax, and the warpgroups take turns at asking, so that the softmax of one runs under the
// products of the other.
//
// Q is fetched once for the cluster (multicast). At the end each block owns some columns of the
// head: the others send it their parts of these (bf16, relative to their own largest logit), and
// the largest logit and the sum of each row, through distributed shared memory, to where Q was; it
// weights, adds and quantizes. Thread i adds what threads i of the others sent, in a fixed order,
// so replays are equal bit for bit.
//
// Keys behind the length get no weight. Values behind it are overwritten with zeros in shared
// memory, as 0 times NaN is NaN; the warps that do nothing else do that.
//
// Dependent launch: above grid_wait only the length and the scale are read. Nothing is written
// before queries have come, which is behind the wait.
//
// Constants from the compiler's command line:
//   KEYS    keys of a tile: 64, 80 or 96
//   STAGES  tiles of keys or values in shared memory, at least 2
//   SPLITS  slices of the keys, 1 to 8

#include "ptx.cuh"

struct alignas(64) TensorMap {
  u64 opaque[16];
};

namespace {

constexpr int HEADS = 8, HEAD_DIM = 256, ROW_BYTES = 2 * HEAD_DIM;
constexpr int LINE = 128, CHUNKS = ROW_BYTES / LINE;  // 64 columns are a swizzled line
constexpr int TILE = 128;                             // query rows of a block
constexpr int WARPGROUP = 128, THREADS = 3 * WARPGROUP;
constexpr int STAGE_BYTES = KEYS * ROW_BYTES;
constexpr int STEPS = KEYS / 16;
constexpr int UNITS = 8;                              // of 32 columns, that blocks own
constexpr int MOST_UNITS = (UNITS + SPLITS - 1) / SPLITS;
constexpr int VECTORS = 2 * WARPGROUP * 16;           // bytes: 16 of each thread
constexpr float NONE = -1e30f;                        // largest logit of an empty slice

// Offsets in shared memory; shared_bytes in prefix_attention.py is the same sum.
constexpr int STATS = (SPLITS - 1) * MOST_UNITS * 2 * VECTORS;  // behind the parts of others
constexpr int EXCHANGE = SPLITS > 1 ? STATS + SPLITS * TILE * 8 : 0;
constexpr int QUERIES = TILE * ROW_BYTES;
constexpr int RING = EXCHANGE > QUERIES ? (EXCHANGE + 1023) / 1024 * 1024 : QUERIES;
constexpr int Q_FULL = RING + STAGES * STAGE_BYTES;
constexpr int PARTS_FULL = Q_FULL + 8 * CHUNKS;
constexpr int STATS_FULL = PARTS_FULL + 16;  // these two: one for each warpgroup
constexpr int FIRST_HALF = STATS_FULL + 16;  // half the columns of the first keys
constexpr int LAST_COME = FIRST_HALF + 8;    // the last values, before and after
constexpr int LAST_FULL = LAST_COME + 8;     // zeros took the place of those behind the length
constexpr int FULL = LAST_FULL + 8;
constexpr int EMPTY = FULL + 8 * STAGES;

static_assert(STAGES >= 2 && SPLITS <= 8, "see the constants above");

// Which slice owns a unit of columns, and its first unit.
[[maybe_unused]] constexpr int owner(int unit) { return ((unit + 1) * SPLITS - 1) / UNITS; }
__device__ __forceinline__ int first_unit(int split) { return UNITS * split / SPLITS; }

#define A8(a, i)                                                                              \
  "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]), \
      "+f"(a[i + 6]), "+f"(a[i + 7])
// clang-format off
#if KEYS == 64
#define LOGITS_SHAPE "m64n64k16"
#define LOGITS_RESULT \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LOGITS_REST "%32, %33"
#define LOGITS_FLAG "%34"
#define LOGITS_OPERANDS(a) A8(a, 0), A8(a, 8), A8(a, 16), A8(a, 24)
#elif KEYS == 80
#define LOGITS_SHAPE "m64n80k16"
#define LOGITS_RESULT \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39"
#define LOGITS_REST "%40, %41"
#define LOGITS_FLAG "%42"
#define LOGITS_OPERANDS(a) A8(a, 0), A8(a, 8), A8(a, 16), A8(a, 24), A8(a, 32)
#elif KEYS == 96
#define LOGITS_SHAPE "m64n96k16"
#define LOGITS_RESULT \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define LOGITS_REST "%48, %49"
#define LOGITS_FLAG "%50"
#define LOGITS_OPERANDS(a) A8(a, 0), A8(a, 8), A8(a, 16), A8(a, 24), A8(a, 32), A8(a, 40)
#else
#error "KEYS: 64, 80 or 96"
#endif
#define VALUES_RESULT \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define A32(a, i) A8(a, i), A8(a, i + 8), A8(a, i + 16), A8(a, i + 24)
// clang-format on

// s (+)= Q K': 64 query rows and KEYS keys, both in shared memory with 16 columns side by side.
__device__ __forceinline__ void logits(float (&s)[KEYS / 2], u64 q, u64 k, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, " LOGITS_FLAG ", 0;\n"
      "wgmma.mma_async.sync.aligned." LOGITS_SHAPE ".f32.bf16.bf16 {" LOGITS_RESULT "}, "
      LOGITS_REST ", p, 1, 1, 0, 0;\n}\n"
      : LOGITS_OPERANDS(s) : "l"(q), "l"(k), "r"(add));
}

// o += P V: 64 query rows, 16 keys, 256 columns; V has columns side by side.
__device__ __forceinline__ void values(float (&o)[HEAD_DIM / 2], const u32 (&p)[4], u64 v) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" VALUES_RESULT "}, "
      "{%128,%129,%130,%131}, %132, p, 1, 1, 1;\n}\n"
      : A32(o, 0), A32(o, 32), A32(o, 64), A32(o, 96)
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v), "r"(1));
}

// Registers that the matrix unit wrote are read below this point only.
template <int N>
__device__ __forceinline__ void ready(float (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(a[i])::"memory");
}

// As the second operand with its rows (here columns of the head) side by side: chunks of 64 lie
// KEYS lines apart, groups of 8 keys 1024 bytes.
__device__ __forceinline__ u64 value_descriptor(u32 address) {
  return (u64)((address & 0x3ffff) >> 4) | ((u64)(KEYS * LINE / 16) << 16) | (64ull << 32) |
         (1ull << 62);
}

// A box of a tensor map into shared memory, swizzled; SHARED: of all blocks of the cluster.
template <bool SHARED>
__device__ __forceinline__ void box_load(u32 to, const TensorMap& map, int row, int chunk,
                                         u32 barrier) {
  if (SHARED)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to), "l"(&map), "r"(0),
        "r"(row), "r"(chunk), "r"(barrier), "h"((u16)((1 << SPLITS) - 1)) : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to), "l"(&map), "r"(0), "r"(row), "r"(chunk),
        "r"(barrier) : "memory");
}

__device__ __forceinline__ void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The warpgroups take turns at asking for products: wait until the other one has asked.
template <int GROUP>
__device__ __forceinline__ void turn() {
  asm volatile("bar.sync %0, %1;" ::"n"(1 + GROUP), "n"(2 * WARPGROUP) : "memory");
}

template <int GROUP>
__device__ __forceinline__ void pass() {
  asm volatile("bar.arrive %0, %1;" ::"n"(1 + GROUP), "n"(2 * WARPGROUP) : "memory");
}

// The keys of one block; where there are none, a tile of which no key counts.
struct Slice {
  int begin, keys, tiles;
  __device__ Slice(int length, int split) {
    const int share = (length + SPLITS - 1) / SPLITS;
    begin = min(split * share, length);
    keys = min(share, length - begin);
    tiles = max(1, (keys + KEYS - 1) / KEYS);
  }
};

// The n-th load of the ring: keys of tile 0, values of tile 0, keys of tile 1, ...
struct Load {
  u32 data, full, empty, parity;
  __device__ Load(u32 base, int n) {
    const int stage = n % STAGES;
    data = base + RING + stage * STAGE_BYTES;
    full = base + FULL + 8 * stage;
    empty = base + EMPTY + 8 * stage;
    parity = n / STAGES & 1;
  }
};

// The four warps that do not multiply: one thread fetches keys and values, one queries, and three
// warps write zeros.
__device__ __forceinline__ void produce(u8* memory, u32 base, const TensorMap& q_map,
                                        const TensorMap& k_map, const TensorMap& v_map,
                                        const Slice& slice, int first_row, int split) {
  const int loads = 2 * slice.tiles;
  if (threadIdx.x == 0) {
    prefetch(k_map);
    prefetch(v_map);
    grid_wait();
    for (int n = 0; n < loads; ++n) {
      const Load load(base, n);
      const int row = slice.begin + (n >> 1) * KEYS;
      if (n >= STAGES) barrier_wait(load.empty, load.parity ^ 1);
      if (n & 1) {
        const u32 full = n == loads - 1 ? base + LAST_COME : load.full;
        barrier_expect(full, STAGE_BYTES);
        box_load<false>(load.data, v_map, row, 0, full);
      } else {
        for (int half = 0; half < 2; ++half) {  // of the first keys each is waited for
          const u32 full = n == 0 && half == 0 ? base + FIRST_HALF : load.full;
          if (n == 0)
            barrier_expect(full, STAGE_BYTES / 2);
          else if (half == 0)
            barrier_expect(full, STAGE_BYTES);
          box_load<false>(load.data + half * (STAGE_BYTES / 2), k_map, row, half * (CHUNKS / 2),
                          full);
        }
      }
    }
  } else if (threadIdx.x == 32) {
    prefetch(q_map);
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
      barrier_expect(base + Q_FULL + 8 * chunk, TILE * LINE);
    grid_wait();
    for (int chunk = split; chunk < CHUNKS; chunk += SPLITS)
      box_load<(SPLITS > 1)>(base + chunk * TILE * LINE, q_map, first_row, chunk,
                             base + Q_FULL + 8 * chunk);
  }
  __syncwarp();
  // Zeros for values behind the length, by the other warps.
  if (threadIdx.x >= 32) {
    u8* data = memory + (Load(base, loads - 1).data - base);
    const int live = slice.keys - (slice.tiles - 1) * KEYS;
    barrier_wait(base + LAST_COME, 0);
    for (int i = threadIdx.x - 32; i < (KEYS - live) * 32; i += WARPGROUP - 32)
      *reinterpret_cast<uint4*>(data + (i / 8 % 4) * (KEYS * LINE) + (live + i / 32) * LINE +
                                i % 8 * 16) = make_uint4(0, 0, 0, 0);
    shared_fence();
    barrier_arrive(base + LAST_FULL);
  }
}

// What a thread leaves behind: rows `row` and `row` + 8, four lanes gather 8 columns each. These are one
// head of neighboring rows of the prefix. With image_rows they are stored as layout.cuh has it: a row of
// the prefix is `HEADS` x 256 columns, in chunks of 128 columns and image_rows rows.
struct Rows {
  u8* out;
  int image_rows, swizzle;
  bool live0, live8, monitor;
  __device__ Rows(int row, int q_rows, int image_rows, u8* start, const int* amax)
      : out(start), image_rows(image_rows), swizzle(row / HEADS % 8 << 4), live0(row < q_rows),
        live8(row + 8 < q_rows), monitor(amax) {
    out += image_rows ? ((size_t)(row % HEADS * 2) * image_rows + row / HEADS) * LINE
                      : (size_t)row * HEAD_DIM;
  }

  __device__ __forceinline__ u8* at(int unit, int next) const {
    const int column = 32 * unit + 8 * (threadIdx.x & 3);
    if (!image_rows) return out + column + next * 8 * HEAD_DIM;
    return out + (size_t)(unit >> 2) * image_rows * LINE + next * LINE +
           ((column & 127) ^ (swizzle + next * 16 & 0x70));
  }

  // Columns 32 unit + 8 i + 2 (lane % 4) + b, over the scale: x[4 i + b] in the first row,
  // x[4 i + 2 + b] in the other.
  __device__ __forceinline__ void store(const float (&x)[16], int unit, float& largest) const {
    if (monitor) {
      float high[2] = {};
#pragma unroll
      for (int i = 0; i < 16; ++i) high[i >> 1 & 1] = fmaxf(high[i >> 1 & 1], fabsf(x[i]));
      largest = fmaxf(largest, fmaxf(live0 ? high[0] : 0.0f, live8 ? high[1] : 0.0f));
    }
    u32 d[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      d[i] = to_e4m3x2(x[4 * i], x[4 * i + 1]) | to_e4m3x2(x[4 * i + 2], x[4 * i + 3]) << 16;
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    const u32 r0 = __shfl_xor_sync(~0u, odd ? d[0] : d[1], 1);
    const u32 r1 = __shfl_xor_sync(~0u, odd ? d[2] : d[3], 1);
    const u32 a0 = odd ? r0 : d[0], a1 = odd ? d[1] : r0;  // i = lane % 2, of this lane and beside
    const u32 b0 = odd ? r1 : d[2], b1 = odd ? d[3] : r1;  // i = lane % 2 + 2
    const u32 s0 = __shfl_xor_sync(~0u, upper ? a0 : b0, 2);
    const u32 s1 = __shfl_xor_sync(~0u, upper ? a1 : b1, 2);
    const u32 e0 = upper ? s0 : a0, e1 = upper ? s1 : a1;
    const u32 e2 = upper ? b0 : s0, e3 = upper ? b1 : s1;
    if (live0)
      *reinterpret_cast<uint2*>(at(unit, 0)) =
          make_uint2(permute_bytes(e0, e1, 0x5410), permute_bytes(e2, e3, 0x5410));
    if (live8)
      *reinterpret_cast<uint2*>(at(unit, 1)) =
          make_uint2(permute_bytes(e0, e1, 0x7632), permute_bytes(e2, e3, 0x7632));
  }
};

// Send the parts that others own, add those of the own columns. OWN is `split`, known to the
// compiler, because registers cannot be indexed.
template <int OWN>
__device__ __forceinline__ void join(int split, const u8* memory, u32 base, const u32 (&to)[SPLITS],
                                     int thread, int warp_row, const float (&o)[HEAD_DIM / 2],
                                     float inverse, const Rows& own, float& largest) {
  if constexpr (OWN + 1 < SPLITS) {
    if (split != OWN) {
      join<OWN + 1>(split, memory, base, to, thread, warp_row, o, inverse, own, largest);
      return;
    }
  }
  const u32 full = PARTS_FULL + 8 * (thread / WARPGROUP);
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
    const int there = owner(u), source = OWN < there ? OWN : OWN - 1;
    if (there == OWN) continue;
    const int slot = source * MOST_UNITS + u - UNITS * there / SPLITS;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* a = o + 16 * u + 8 * h;
      remote_store16(to[there] + (2 * slot + h) * VECTORS + thread * 16, to_bf16x2(a[0], a[1]),
                     to_bf16x2(a[2], a[3]), to_bf16x2(a[4], a[5]), to_bf16x2(a[6], a[7]),
                     to[there] + full);
    }
  }
  barrier_wait(base + STATS_FULL + 8 * (thread / WARPGROUP), 0);
  float weight[SPLITS][2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float2 stats[SPLITS];
    float high = NONE, total = 0.0f;
#pragma unroll
    for (int s = 0; s < SPLITS; ++s) {
      stats[s] =
          *reinterpret_cast<const float2*>(memory + STATS + (s * TILE + warp_row + 8 * r) * 8);
      high = fmaxf(high, stats[s].x);
    }
#pragma unroll
    for (int s = 0; s < SPLITS; ++s) {
      weight[s][r] = exp2_fast(stats[s].x - high);
      total += weight[s][r] * stats[s].y;
    }
    const float part = reciprocal(total) * inverse;
#pragma unroll
    for (int s = 0; s < SPLITS; ++s) weight[s][r] *= part;
  }
  barrier_wait(base + full, 0);
#pragma unroll
  for (int u = UNITS * OWN / SPLITS; u < UNITS * (OWN + 1) / SPLITS; ++u) {
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = o[16 * u + i] * weight[OWN][i >> 1 & 1];
#pragma unroll
    for (int s = 0; s < SPLITS; ++s) {
      if (s == OWN) continue;
      const int slot = (s < OWN ? s : s - 1) * MOST_UNITS + u - UNITS * OWN / SPLITS;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 four =
            *reinterpret_cast<const uint4*>(memory + (2 * slot + h) * VECTORS + thread * 16);
        const u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[8 * h + 2 * i] += bf16_low(words[i]) * weight[s][i & 1];
          x[8 * h + 2 * i + 1] += bf16_high(words[i]) * weight[s][i & 1];
        }
      }
    }
    own.store(x, u, largest);
  }
}

}  // namespace

// q [q_rows, 256], k, v [>= rows, 256] bf16 by tensor maps of [4 chunks][row][64 columns], in boxes
// of one chunk and 128 rows for q, two chunks and KEYS rows for k, four for v; out [q_rows, 256]
// e4m3, or an image where image_rows is not 0; amax may be null. Grid: a cluster of SPLITS blocks for each 128 rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attend(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
           const __grid_constant__ TensorMap v_map, const int* length_ptr, u8* out,
           const float* scale_ptr, int* amax, int rows, int q_rows, int image_rows) {
  extern __shared__ __align__(1024) u8 memory[];
  const u32 base = shared_address(memory);
  grid_trigger();
  const int split = SPLITS > 1 ? cluster_rank() : 0;
  const int first_row = blockIdx.x / SPLITS * TILE;
  const Slice slice(min(*length_ptr, rows), split);
  if (threadIdx.x == 0) {
    for (int c = 0; c < CHUNKS; ++c) barrier_init(base + Q_FULL + 8 * c, 1);
    for (int g = 0; g < 2; ++g) {
      barrier_init(base + PARTS_FULL + 8 * g, 1);
      barrier_init(base + STATS_FULL + 8 * g, 1);
    }
    barrier_init(base + FIRST_HALF, 1);
    barrier_init(base + LAST_COME, 1);
    barrier_init(base + LAST_FULL, WARPGROUP - 32);
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(base + FULL + 8 * s, 1);
      barrier_init(base + EMPTY + 8 * s, 2);
    }
    barrier_init_fence();
    if (SPLITS > 1) {
      const int units = first_unit(split + 1) - first_unit(split);
      for (int g = 0; g < 2; ++g) {
        barrier_expect(base + PARTS_FULL + 8 * g, units * (SPLITS - 1) * VECTORS);
        barrier_expect(base + STATS_FULL + 8 * g, SPLITS * TILE / 2 * 8);
      }
    }
  }
  __syncwarp();
  if (SPLITS > 1) {
    cluster_arrive_relaxed();  // barrier_init_fence has made the barriers visible
    cluster_wait();
  } else {
    __syncthreads();
  }

  if (threadIdx.x < WARPGROUP) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    produce(memory, base, q_map, k_map, v_map, slice, first_row, split);
    __syncwarp();
    if (SPLITS > 1) {
      cluster_arrive_relaxed();
      cluster_wait();
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int thread = threadIdx.x - WARPGROUP, lane = thread & 31;
  const int group = __shfl_sync(~0u, thread / WARPGROUP, 0);
  const int warp_row = thread / 32 * 16 + lane / 4;  // this thread has rows warp_row and + 8
  const float scale = *scale_ptr, inverse = reciprocal(scale);  // exact for powers of two

  float o[HEAD_DIM / 2] = {};
  float top[2] = {NONE, NONE}, sum[2] = {};
  u32 p[STEPS][4];
  const u64 q = matrix_descriptor(base + group * (TILE / 2) * LINE);
  const int loads = 2 * slice.tiles;

  // The stage of the n-th load is read; nobody waits for that unless it is used again.
  auto release = [&](int n) {
    if (thread % WARPGROUP == 0 && n + STAGES < loads) barrier_arrive(Load(base, n).empty);
  };
  auto ask_logits = [&](float(&s)[KEYS / 2], int n, bool first) {
    const Load load(base, n);
    if (!first) barrier_wait(load.full, load.parity);
    const u64 k = matrix_descriptor(load.data);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; ++i) {
      if (first && i == 0) barrier_wait(base + FIRST_HALF, 0);
      if (first && i == HEAD_DIM / 32) barrier_wait(load.full, 0);
      if (first && i % 4 == 0) barrier_wait(base + Q_FULL + 8 * (i / 4), 0);
      logits(s, q + (i >> 2) * (TILE * LINE / 16) + (i & 3) * 2,
             k + (i >> 2) * (KEYS * LINE / 16) + (i & 3) * 2, i > 0);
    }
    wgmma_commit();
  };
  auto ask_values = [&](u32 data) {
    const u64 v = value_descriptor(data);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEPS; ++i) values(o, p[i], v + i * (16 * LINE / 16));
    wgmma_commit();
  };
  // Logits of `live` keys to weights, in place; what is in `o` counts by `fade` from now on.
  auto soften = [&](float(&s)[KEYS / 2], int live, float(&fade)[2]) {
    if (live < KEYS) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; ++i)
        if (i / 4 * 8 + 2 * (lane & 3) + (i & 1) >= live) s[i] = -__int_as_float(0x7f800000);
    }
    float high[2] = {top[0], top[1]};
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) high[i >> 1 & 1] = fmaxf(high[i >> 1 & 1], s[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 1));
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 2));
      fade[r] = exp2_fast(top[r] - high[r]);
      top[r] = high[r];
      sum[r] *= fade[r];
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
      s[i] = exp2_fast(s[i] - top[i >> 1 & 1]);
      sum[i >> 1 & 1] += s[i];
    }
  };
  // Values of the tile before are added, weights of this one become the operand. Not at the end of
  // the loop: there the compiler moves the wait above the softmax.
  auto settle = [&](const float(&s)[KEYS / 2], int tile) {
    wgmma_wait<0>();
    ready(o);
    if (tile > 1) release(2 * tile - 3);
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) p[i / 4][i % 4] = to_bf16x2(s[2 * i], s[2 * i + 1]);
  };
  // Mostly the largest logit was there before: then there is nothing to do.
  auto rescale = [&](const float(&fade)[2]) {
    if (__any_sync(~0u, fade[0] != 1.0f || fade[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 2; ++i) o[i] *= fade[i >> 1 & 1];
    }
  };

  float s[KEYS / 2], fade[2];
  if (group == 1) turn<1>();
  ask_logits(s, 0, true);
  if (group == 0) pass<1>();
  wgmma_wait<0>();
  ready(s);
  release(0);
  soften(s, slice.keys, fade);
  for (int tile = 1; tile < slice.tiles; ++tile) {
    settle(s, tile);
    if (group == 1)
      turn<1>();
    else if (tile > 1)
      turn<0>();
    ask_logits(s, 2 * tile, false);
    rescale(fade);
    const Load load(base, 2 * tile - 1);
    barrier_wait(load.full, load.parity);
    ask_values(load.data);
    if (group == 0)
      pass<1>();
    else if (tile + 1 < slice.tiles)
      pass<0>();
    wgmma_wait<1>();
    ready(s);
    release(2 * tile);
    soften(s, slice.keys - tile * KEYS, fade);
  }
  settle(s, slice.tiles);
  if (SPLITS > 1) {
    __syncwarp();
    cluster_arrive_relaxed();  // this warp needs Q no more
  }
  rescale(fade);
  barrier_wait(base + LAST_FULL, 0);
  ask_values(Load(base, loads - 1).data);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
  }

  const Rows own(first_row + warp_row, q_rows, image_rows, out, amax);
  float largest = 0.0f;
  if constexpr (SPLITS == 1) {
    wgmma_wait<0>();
    ready(o);
    const float part[2] = {reciprocal(sum[0]) * inverse, reciprocal(sum[1]) * inverse};
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      float x[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) x[i] = o[16 * u + i] * part[i >> 1 & 1];
      own.store(x, u, largest);
    }
  } else {
    u32 to[SPLITS];
#pragma unroll
    for (int s = 0; s < SPLITS; ++s) to[s] = remote_address(base, s);
    cluster_wait();  // nobody needs its Q any more
    if ((lane & 3) < 2) {
      const int r = lane & 1;
#pragma unroll
      for (int s = 0; s < SPLITS; ++s)
        remote_store(to[s] + STATS + (split * TILE + warp_row + 8 * r) * 8, r ? top[1] : top[0],
                     r ? sum[1] : sum[0], to[s] + STATS_FULL + 8 * group);
    }
    wgmma_wait<0>();
    ready(o);
    join<0>(split, memory, base, to, thread, warp_row, o, inverse, own, largest);
  }
  if (amax) {
    const int bits = __reduce_max_sync(~0u, __float_as_int(largest * scale));
    if (lane == 0) atomicMax(amax, bits);
  }
}
