// The four products of an expert layer for at most 64 action rows, W8A8 with FP32 accumulation:
//
//   qkv_rope       (adaRMS) q, k, v -> rope -> q buffer, tail of the K/V cache
//   out_residual   output projection: x += gate * y; leaves the input of the next product behind
//   gate_up        (adaRMS) gate and up projection -> GeGLU -> e4m3
//   down_residual  down projection, as out_residual
//
// The mathematics is that of kernels/denoise.py (adaRMS folded into neighbours, modulation looked up
// per row). What differs is the way data takes:
//
// - Weights are the first operand (64 rows of the result per block), action rows the second: 10 rows
//   cost 16, not 64.
// - Each block asks for its whole slab of weights (16 to 64 KB) before it waits for the kernel in
//   front. After the wait only activations have to come, 128 columns at a time, and the matrix units
//   start with the first 128.
// - K is divided over the blocks of a cluster. Block t mod SPLIT reads all partial sums of action row
//   t from the others' shared memory and adds them in a fixed order: replays are equal bit for bit.
//
// Dependent launch: every kernel lets the next one start at entry. A kernel that is past grid_wait
// knows that all kernels in front are complete (each of them was past its own wait before), so
// nothing it overwrites can still be read, and nothing it reads is still missing. Above grid_wait
// only weights, scales, tables, angles and lengths are read, none of which the chain writes. Its
// first kernel (euler_step, entry) is launched without dependent launch.
//
// Constants from the compiler's command line: ROWS (action rows, multiple of 8), WIDTH, MLP, HEADS,
// HEAD_DIM, QKV_SPLIT, OUT_SPLIT, DOWN_SPLIT.

#include "layout.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"

namespace {

constexpr int THREADS = 128;           // one warpgroup
constexpr int WARPS = THREADS / 32;
constexpr int TILE = 64;               // rows of weights of a block
constexpr int QUADS = TILE / 4;        // four columns of the result per thread in an epilogue
constexpr int ROWS_AT_ONCE = THREADS / QUADS;
constexpr int PARTS = WIDTH / TILE;    // partial row sums of x * x, one per tile of columns
constexpr int ACT_CHUNK = ROWS * CHUNK_COLUMNS;
constexpr int ROW_PAD = TILE + 8;      // floats between rows of the exchange: no bank conflicts
constexpr float EPSILON = 1e-6f;

static_assert(ROWS % 8 == 0 && ROWS >= 8 && ROWS <= ROW_CAP, "action rows");
static_assert(WIDTH % 128 == 0 && MLP % 128 == 0 && HEAD_DIM % TILE == 0, "sizes of the expert");

__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float2 load2(const float* p) { return *reinterpret_cast<const float2*>(p); }

__device__ __forceinline__ float4 scaled(float4 a, float s) {
  return make_float4(a.x * s, a.y * s, a.z * s, a.w * s);
}

// Four floats into another block's shared memory; they count on its barrier.
__device__ __forceinline__ void remote_store4(u32 to, float a, float b, float c, float d,
                                              u32 barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::
          "r"(to), "r"(__float_as_uint(a)), "r"(__float_as_uint(b)), "r"(__float_as_uint(c)),
      "r"(__float_as_uint(d)), "r"(barrier) : "memory");
}

// Orders no memory; `release` makes every thread wait for its stores to reach L2 (1000 cycles).
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Exact for powers of two, which scales are.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Shared memory of a block: weights, activations, the exchange, a barrier per chunk;
// shared_bytes in products.py is the same sum.
template <int CHUNKS, int SPLIT, int EXTRA_BYTES = 0>
struct Shared {
  static constexpr int ACT = CHUNKS * CHUNK_BYTES;
  static constexpr int EXCHANGE = ACT + CHUNKS * ACT_CHUNK;
  static constexpr int ROWS_HERE = ROWS / SPLIT;  // action rows that a block finishes
  static constexpr int FACTORS = EXCHANGE + (EXTRA_BYTES ? EXTRA_BYTES : ROWS * ROW_PAD * 4);
  static constexpr int BARRIERS = FACTORS + 3 * ROW_CAP * 4;
  static_assert(ROWS % SPLIT == 0 && 8 % SPLIT == 0, "blocks of a cluster");

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
        barrier_expect(exchange, SPLIT * live * TILE * 4);
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
    for (int i = 0; i < TURNS; i++) {
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
        if (i * WARPS + threadIdx.x / 32 < CHUNKS)
          bulk_load(to[i], from[i], horizon * CHUNK_COLUMNS, barrier[i]);
    }
    __syncwarp();
  }

  // d = weights times activations over the K of this block; complete after wgmma_wait<0>.
  static __device__ __forceinline__ void multiply(u32 base, float (&d)[ROWS / 2]) {
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      barrier_wait(base + BARRIERS + 8 * c, 0);
      const u64 a = matrix_descriptor(base + c * CHUNK_BYTES);
      const u64 b = matrix_descriptor(base + ACT + c * ACT_CHUNK);
#pragma unroll
      for (int k = 0; k < 4; k++) wgmma(d, a + 2 * k, b + 2 * k, c + k > 0);
    }
    wgmma_commit();
  }

  // Send the partial sums of action row t to block t mod SPLIT and wait for those of the others.
  //
  // Lanes g and g ^ 1 (rows 2 pair and 2 pair + 1 each) swap, so that each sends four columns of one
  // action row: 16 bytes, on the receiver's barrier.
  static __device__ __forceinline__ void exchange(u8* smem, u32 base, u32 rank, int horizon,
                                                  const float (&d)[ROWS / 2]) {
    const int lane = threadIdx.x % 32, pair = 8 * (threadIdx.x / 32) + lane / 4;
    if constexpr (SPLIT == 1) {
      float* to = reinterpret_cast<float*>(smem + EXCHANGE) + 2 * (lane % 4) * ROW_PAD + 2 * pair;
#pragma unroll
      for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
        for (int b = 0; b < 2; b++)
          *reinterpret_cast<float2*>(to + (8 * j + b) * ROW_PAD) =
              make_float2(d[4 * j + b], d[4 * j + 2 + b]);
      __syncthreads();
    } else {
      const bool odd = (lane >> 2) & 1;
      const int t = 2 * (lane % 4) + odd, owner = t % SPLIT;
      const u32 to = remote_address(
          base + EXCHANGE + 4 * ((rank * ROWS_HERE + t / SPLIT) * ROW_PAD + 2 * (pair & ~1)), owner);
      const u32 barrier = remote_address(base + BARRIERS + 8 * CHUNKS, owner);
      __syncwarp();
      cluster_wait();  // everybody's barrier is ready
#pragma unroll
      for (int j = 0; j < ROWS / 8; j++) {
        const float own0 = odd ? d[4 * j + 1] : d[4 * j], own1 = odd ? d[4 * j + 3] : d[4 * j + 2];
        const float other0 = __shfl_xor_sync(~0u, odd ? d[4 * j] : d[4 * j + 1], 4);
        const float other1 = __shfl_xor_sync(~0u, odd ? d[4 * j + 2] : d[4 * j + 3], 4);
        if (8 * j + t < horizon)
          remote_store4(to + j * (8 / SPLIT) * ROW_PAD * 4, odd ? other0 : own0,
                        odd ? other1 : own1, odd ? own0 : other0, odd ? own1 : other1, barrier);
      }
      barrier_wait_cluster(base + BARRIERS + 8 * CHUNKS, 0);
    }
  }

  // Sum over the blocks, always in the same order: columns 4 quad .. of this block's row `row`.
  static __device__ __forceinline__ float4 collect(const u8* smem, int row, int quad) {
    const float* from = reinterpret_cast<const float*>(smem + EXCHANGE) + row * ROW_PAD + 4 * quad;
    float4 sum = load4(from);
#pragma unroll
    for (int s = 1; s < SPLIT; s++) {
      const float4 more = load4(from + s * ROWS_HERE * ROW_PAD);
      sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    return sum;
  }
};

// A value that was loaded early, not to be waited for before this point.
__device__ __forceinline__ float not_before(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

// 1 / rms of each action row into factors [64], from the sums of squares that all threads loaded
// before; partial [2][64] is room to add them. Ends with all threads in step.
struct RowSums {
  float squares[PARTS / 2];

  __device__ __forceinline__ void load(const float* sums) {
#pragma unroll
    for (int p = 0; p < PARTS / 2; p++)
      squares[p] = __ldcg(sums + (threadIdx.x / ROW_CAP * (PARTS / 2) + p) * ROW_CAP +
                          threadIdx.x % ROW_CAP);
  }

  __device__ __forceinline__ void factors(float* partial, float* factors) const {
    float square = 0.0f;
#pragma unroll
    for (int p = 0; p < PARTS / 2; p++) square += not_before(squares[p]);
    partial[threadIdx.x] = square;
    __syncthreads();
    if (threadIdx.x < ROW_CAP)
      factors[threadIdx.x] = rsqrtf(
          (partial[threadIdx.x] + partial[ROW_CAP + threadIdx.x]) * (1.0f / WIDTH) + EPSILON);
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

extern "C" __global__ void __launch_bounds__(THREADS)
qkv_rope(const u8* mirror, const u8* weight, const float* weight_scale, const float* mirror_scale,
         const float* sums, const float* bias, int bias_stride, const int* frozen,
         const float* cosines, const float* sines, const int* length, u16* q, u16* k, u16* v,
         int step, int steps, int horizon, float q_scale) {
  constexpr int SPLIT = QKV_SPLIT, CHUNKS = WIDTH / CHUNK_COLUMNS / SPLIT;
  using Block = Shared<CHUNKS, SPLIT>;
  constexpr int ROUNDS = (Block::ROWS_HERE + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  constexpr int HALF = HEAD_DIM / 2;
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  const int tile = blockIdx.x / SPLIT;
  const int rank = SPLIT > 1 ? cluster_rank() : 0;
  const int first = tile % CHUNKS;
  Block::start(base, weight + (size_t)blockIdx.x * CHUNKS * CHUNK_BYTES, first, horizon);

  const int n0 = tile * TILE, head = n0 / HEAD_DIM;
  const int quad = threadIdx.x % QUADS;
  const int pair = (n0 % HEAD_DIM) / 2 + 2 * quad;
  const int prefix = *length, clean = *frozen;
  const float4 scale = scaled(load4(weight_scale + n0 + 4 * quad), *mirror_scale);
  float4 shift[ROUNDS];
  float2 cosine[ROUNDS], sine[ROUNDS];
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int t = (threadIdx.x / QUADS + i * ROWS_AT_ONCE) * SPLIT + rank;
    shift[i] = load4(bias + (t < clean ? steps : step) * bias_stride + n0 + 4 * quad);
    cosine[i] = make_float2(1.0f, 1.0f);
    sine[i] = make_float2(0.0f, 0.0f);
    if (head <= HEADS && t < horizon) {  // q heads and k are rotated, v is not
      cosine[i] = load2(cosines + (prefix + t) * HALF + pair);
      sine[i] = load2(sines + (prefix + t) * HALF + pair);
    }
  }
  float d[ROWS / 2] = {};
  Block::wait_and_fetch(base, mirror + rank * CHUNKS * CHUNK_BYTES, first, horizon);
  RowSums row_sums;
  row_sums.load(sums);
  Block::multiply(base, d);
  float* factors = reinterpret_cast<float*>(smem + Block::FACTORS);
  row_sums.factors(factors + ROW_CAP, factors);
  wgmma_wait<0>();
  Block::exchange(smem, base, rank, horizon, d);

#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int t = (threadIdx.x / QUADS + i * ROWS_AT_ONCE) * SPLIT + rank;
    if (t >= horizon) continue;
    const float4 y = Block::collect(smem, threadIdx.x / QUADS + i * ROWS_AT_ONCE, quad);
    const float r = factors[t];
    const float a0 = y.x * r * scale.x + shift[i].x, b0 = y.y * r * scale.y + shift[i].y;
    const float a1 = y.z * r * scale.z + shift[i].z, b1 = y.w * r * scale.w + shift[i].w;
    float first0 = a0 * cosine[i].x - b0 * sine[i].x, second0 = b0 * cosine[i].x + a0 * sine[i].x;
    float first1 = a1 * cosine[i].y - b1 * sine[i].y, second1 = b1 * cosine[i].y + a1 * sine[i].y;
    u16* out;
    if (head < HEADS) {
      out = q + (t * HEADS + head) * HEAD_DIM;
      first0 *= q_scale, second0 *= q_scale, first1 *= q_scale, second1 *= q_scale;
    } else {
      out = (head == HEADS ? k : v) + (prefix + t) * HEAD_DIM;
    }
    *reinterpret_cast<u32*>(out + pair) = to_bf16x2(first0, first1);
    *reinterpret_cast<u32*>(out + HALF + pair) = to_bf16x2(second0, second1);
  }
}

namespace {

// x += gate * (image @ weight.T); then the mirror x (1 + s) of the next norm as an image, and the
// row sums of x * x over this tile. x float32 [64, WIDTH], sums float32 [PARTS, 64].
template <int K, int SPLIT>
__device__ __forceinline__ void residual(
    const u8* image, const u8* weight, const float* weight_scale, const float* image_scale,
    const float* gates, const float* next_scales, int mod_stride, const int* frozen, float* x,
    u8* mirror, const float* mirror_scale, float* sums, float* amax, int step, int steps,
    int horizon) {
  constexpr int CHUNKS = K / CHUNK_COLUMNS / SPLIT;
  using Block = Shared<CHUNKS, SPLIT>;
  constexpr int ROUNDS = (Block::ROWS_HERE + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  const int tile = blockIdx.x / SPLIT;
  const int rank = SPLIT > 1 ? cluster_rank() : 0;
  const int first = tile % CHUNKS;
  Block::start(base, weight + (size_t)blockIdx.x * CHUNKS * CHUNK_BYTES, first, horizon);

  const int quad = threadIdx.x % QUADS;
  const int column = tile * TILE + 4 * quad;
  const int clean = *frozen;
  const float4 scale = scaled(load4(weight_scale + column), *image_scale);
  const float quantise = 1.0f / *mirror_scale;
  float4 gate[ROUNDS], next[ROUNDS];
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int t = (threadIdx.x / QUADS + i * ROWS_AT_ONCE) * SPLIT + rank;
    const int entry = (t < clean ? steps : step) * mod_stride + column;
    gate[i] = load4(gates + entry);
    gate[i] = make_float4(gate[i].x * scale.x, gate[i].y * scale.y, gate[i].z * scale.z,
                          gate[i].w * scale.w);
    next[i] = load4(next_scales + entry);
  }
  float d[ROWS / 2] = {};
  Block::wait_and_fetch(base, image + rank * CHUNKS * CHUNK_BYTES, first, horizon);
  float4 before[ROUNDS];
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int t = (threadIdx.x / QUADS + i * ROWS_AT_ONCE) * SPLIT + rank;
    before[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (t < horizon) before[i] = __ldcg(reinterpret_cast<const float4*>(x + t * WIDTH + column));
  }
  Block::multiply(base, d);
  wgmma_wait<0>();
  Block::exchange(smem, base, rank, horizon, d);

  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int t = (threadIdx.x / QUADS + i * ROWS_AT_ONCE) * SPLIT + rank;
    const bool live = t < horizon;
    float4 sum = before[i];
    if (live) {
      const float4 y = Block::collect(smem, threadIdx.x / QUADS + i * ROWS_AT_ONCE, quad);
      sum.x += gate[i].x * y.x;
      sum.y += gate[i].y * y.y;
      sum.z += gate[i].z * y.z;
      sum.w += gate[i].w * y.w;
      const float m0 = sum.x * next[i].x, m1 = sum.y * next[i].y;
      const float m2 = sum.z * next[i].z, m3 = sum.w * next[i].w;
      const u32 low = to_e4m3x2(m0 * quantise, m1 * quantise);
      const u32 high = to_e4m3x2(m2 * quantise, m3 * quantise);
      *reinterpret_cast<u32*>(mirror + activation_offset(t, column)) = low | high << 16;
      *reinterpret_cast<float4*>(x + t * WIDTH + column) = sum;
      largest = fmaxf(fmaxf(fmaxf(largest, fabsf(m0)), fmaxf(fabsf(m1), fabsf(m2))), fabsf(m3));
    }
    const float square =
        row_sum(sum.x * sum.x + sum.y * sum.y + sum.z * sum.z + sum.w * sum.w);
    if (live && quad == 0) sums[tile * ROW_CAP + t] = square;
  }
  if (amax) record(amax, largest);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
out_residual(const u8* image, const u8* weight, const float* weight_scale,
             const float* image_scale, const float* gates, const float* next_scales,
             int mod_stride, const int* frozen, float* x, u8* mirror, const float* mirror_scale,
             float* sums, float* amax, int step, int steps, int horizon) {
  residual<HEADS * HEAD_DIM, OUT_SPLIT>(image, weight, weight_scale, image_scale, gates,
                                             next_scales, mod_stride, frozen, x, mirror,
                                             mirror_scale, sums, amax, step, steps, horizon);
}

extern "C" __global__ void __launch_bounds__(THREADS)
down_residual(const u8* image, const u8* weight, const float* weight_scale,
              const float* image_scale, const float* gates, const float* next_scales,
              int mod_stride, const int* frozen, float* x, u8* mirror, const float* mirror_scale,
              float* sums, float* amax, int step, int steps, int horizon) {
  residual<MLP, DOWN_SPLIT>(image, weight, weight_scale, image_scale, gates, next_scales,
                                mod_stride, frozen, x, mirror, mirror_scale, sums, amax, step,
                                steps, horizon);
}

// gelu(gate) * up of the action rows as an image of MLP columns.
extern "C" __global__ void __launch_bounds__(THREADS)
gate_up(const u8* mirror, const u8* weight, const float* weight_scale, const float* mirror_scale,
        const float* sums, const float* bias, int bias_stride, const int* frozen, u8* out,
        const float* out_scale, float* amax, int step, int steps, int horizon) {
  constexpr int CHUNKS = WIDTH / CHUNK_COLUMNS;
  constexpr int HIDDEN = TILE / 2;  // columns of the output of a block
  constexpr int OUT_PAD = HIDDEN + 16;
  using Block = Shared<CHUNKS, 1, ROWS * OUT_PAD>;
  extern __shared__ __align__(1024) u8 smem[];
  u8* staged = smem + Block::EXCHANGE;  // [ROWS][OUT_PAD]
  float* factors = reinterpret_cast<float*>(smem + Block::FACTORS);
  const u32 base = shared_address(smem);
  const int tid = threadIdx.x;
  grid_trigger();
  const int first = blockIdx.x % CHUNKS;
  Block::start(base, weight + (size_t)blockIdx.x * CHUNKS * CHUNK_BYTES, first, horizon);

  const int pair = 8 * (tid / 32) + tid % 32 / 4;
  const int n = blockIdx.x * TILE + 2 * pair;
  const int clean = *frozen;
  const float2 weights = load2(weight_scale + n);
  const float2 scale = make_float2(weights.x * *mirror_scale, weights.y * *mirror_scale);
  const float2 shift_now = load2(bias + step * bias_stride + n);
  const float2 shift_clean = load2(bias + steps * bias_stride + n);
  const float quantise = 1.0f / *out_scale;
  float d[ROWS / 2] = {};
  Block::wait_and_fetch(base, mirror, first, horizon);
  RowSums row_sums;
  row_sums.load(sums);
  Block::multiply(base, d);
  row_sums.factors(factors + ROW_CAP, factors);
  wgmma_wait<0>();

  const int low = 2 * (tid % 4);
  float hidden[ROWS / 4], largest = 0.0f;
#pragma unroll
  for (int j = 0; j < ROWS / 8; j++) {
    const float2 r = load2(factors + 8 * j + low);
    hidden[2 * j] = r.x;
    hidden[2 * j + 1] = r.y;
  }
#pragma unroll
  for (int i = 0; i < ROWS / 4; i++) {
    const int e = 4 * (i / 2) + i % 2, t = 8 * (i / 2) + low + i % 2;
    const float2 shift = t < clean ? shift_clean : shift_now;
    const float gate = d[e] * hidden[i] * scale.x + shift.x;
    const float up = d[e + 2] * hidden[i] * scale.y + shift.y;
    hidden[i] = gelu_tanh(gate) * up;
  }
#pragma unroll
  for (int i = 0; i < ROWS / 4; i++) {
    const int t = 8 * (i / 2) + low + i % 2;
    if (t < horizon) largest = fmaxf(largest, fabsf(hidden[i]));
    staged[t * OUT_PAD + pair] = to_e4m3x2(hidden[i] * quantise, 0.0f);
  }
  __syncthreads();
  const int t = tid / 2;
  if (t < horizon) {
    const int column = blockIdx.x * HIDDEN + 16 * (tid % 2);
    *reinterpret_cast<uint4*>(out + activation_offset(t, column)) =
        *reinterpret_cast<const uint4*>(staged + t * OUT_PAD + 16 * (tid % 2));
  }
  if (amax) record(amax, largest);
}
