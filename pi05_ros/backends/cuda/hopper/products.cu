// The four products of an expert layer for at most 64 action rows, in W8A8 or BF16, with FP32 accumulation:
//
//   qkv_rope       (adaRMS) q, k, v -> rope -> q buffer, tail of the K/V cache
//   out_residual   output projection: x += gate * y; leaves the input of the next product behind
//   gate_up        (adaRMS) gate and up projection -> GeGLU -> input of the next
//   down_residual  down projection, as out_residual
//
// The mathematics is that of kernels/denoise.py (adaRMS folded into neighbors, modulation looked up
// per row). What differs is the way that data takes:
//
// - Weights are the first operand (64 rows of the result per block), action rows the second: 10 rows
//   cost 16, not 64.
// - Each block asks for its whole slab of weights (16 to 128 KB) before it waits for the kernel in
//   front. After the wait only activations have to come, 128 bytes of a row at a time, and the matrix
//   units start with the first 128. Where not all of them find room, the rest follow as it is free.
// - out and down: K is divided over the blocks of a cluster. Each sends its partial sums of action
//   row t to block t mod SPLIT, which adds them in a fixed order, so replays are equal bit for bit.
//   Parts travel in bf16, whose rounding is small beside that of e4m3 operands and like that of bf16.
//   The stores count on a barrier of the receiver. (Plain stores and a cluster barrier would not do:
//   without release it lets blocks read too early, with release it costs 1000 cycles.)
// - qkv: the blocks of a tile divide the action rows, which needs no exchange; in bf16 K too.
//
// Dependent launch. Every kernel lets the next one start at entry, so several may be under way. Who
// is past grid_wait knows that all kernels in front are complete: the last one is, and it was past its
// own wait before. All writes stand below grid_wait, and so do all reads of what the chain writes:
//
//   mirror       euler_step, out, down -> qkv, gate_up         x       the same -> out, down, euler_step
//   sums         euler_step, down -> qkv; out -> gate_up       q       qkv -> attention
//   K/V tail     qkv -> attention                              images  attention -> out; gate_up -> down
//
// so no buffer is overwritten while it is read. Above grid_wait only what the chain never writes is
// read: weights, scales, tables, angles, lengths, prefix keys. The chain's first kernel (entry of
// euler_step) is launched without dependent launch and so comes behind everything older. What other
// blocks wrote is read with the copy engine or __ldcg, past L1.
//
// Constants from the compiler's command line: CODED (operands are e4m3, else bf16), ROWS (action rows,
// multiple of 8), WIDTH, MLP, HEADS, HEAD_DIM, QKV_GROUPS, QKV_SPLIT, OUT_SPLIT, DOWN_SPLIT, GATE_DELAY,
// LOOK_AHEAD (see ProductOptions in products.py), QKV_SLOTS, OUT_SLOTS, GATE_UP_SLOTS, DOWN_SLOTS (see Shared).

#include "product.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
qkv_rope(const u8* mirror, const u8* weight, const float* weight_scale, const float* mirror_scale,
         const float* sums, const float* bias, int bias_stride, const int* frozen,
         const float* cosines, const float* sines, const int* length, u16* q, u16* k, u16* v,
         int step, int steps, int horizon, float q_scale) {
  constexpr int CHUNKS = WIDTH * SIZE / CHUNK_COLUMNS / QKV_SPLIT;
  using Block =
      Shared<CHUNKS, QKV_SPLIT, QKV_ROWS, exchange_bytes(QKV_SPLIT, QKV_ROWS), QKV_SLOTS>;
  constexpr int ROUNDS = (Block::ROWS_HERE + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  constexpr int HALF = HEAD_DIM / 2;
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  grid_trigger();
  const u32 unit = blockIdx.x / QKV_SPLIT, rank = QKV_SPLIT > 1 ? cluster_rank() : 0;
  const int tile = unit / QKV_BLOCKS, row0 = unit % QKV_BLOCKS * QKV_ROWS;
  const int first = unit % CHUNKS, live = min(QKV_ROWS, horizon - row0);
  Block::start(base, weight + (size_t)(tile * QKV_SPLIT + rank) * CHUNKS * CHUNK_BYTES, first, live);

  const int n0 = tile * TILE, head = n0 / HEAD_DIM;
  const int quad = threadIdx.x % QUADS;
  const int pair = (n0 % HEAD_DIM) / 2 + 2 * quad;
  const int prefix = *length, clean = *frozen;
  const float4 scale = scales4(weight_scale + n0 + 4 * quad, mirror_scale);
  float4 shift[ROUNDS];
  float2 cosine[ROUNDS], sine[ROUNDS];
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int row = (threadIdx.x / QUADS + i * ROWS_AT_ONCE) * QKV_SPLIT + rank, t = row0 + row;
    shift[i] = load4(bias + (t < clean ? steps : step) * bias_stride + n0 + 4 * quad);
    cosine[i] = make_float2(1.0f, 1.0f);
    sine[i] = make_float2(0.0f, 0.0f);
    if (head <= HEADS && row < live) {  // q heads and k are rotated, v is not
      cosine[i] = load2(cosines + (prefix + t) * HALF + pair);
      sine[i] = load2(sines + (prefix + t) * HALF + pair);
    }
  }
  float d[QKV_ROWS / 2] = {};
  const u8* image = mirror + row0 * CHUNK_COLUMNS + rank * CHUNKS * CHUNK_BYTES;
  Block::wait_and_fetch(base, image, first, live);
  RowSums row_sums;
  row_sums.load(sums);
  Block::multiply(base, image, first, live, d);
  float* factors = reinterpret_cast<float*>(smem + Block::FACTORS);
  row_sums.finish(factors, factors + ROW_CAP);
  wgmma_wait<0>();
  Block::join(smem, base, rank, live, d);

#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int own = threadIdx.x / QUADS + i * ROWS_AT_ONCE, row = own * QKV_SPLIT + rank;
    const int t = row0 + row;
    if (row >= live) continue;
    const float4 y = Block::collect(smem, own, quad);
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
template <int K, int SPLIT, int SLOTS>
__device__ __forceinline__ void residual(
    const u8* image, const u8* weight, const float* weight_scale, const float* image_scale,
    const float* gates, const float* next_scales, int mod_stride, const int* frozen, float* x,
    u8* mirror, const float* mirror_scale, float* sums, float* amax, int step, int steps,
    int horizon) {
  constexpr int CHUNKS = K * SIZE / CHUNK_COLUMNS / SPLIT;
  using Block = Shared<CHUNKS, SPLIT, ROWS, exchange_bytes(SPLIT, ROWS), SLOTS>;
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
  const float4 scale = scales4(weight_scale + column, image_scale);
  const float quantize = quantizer(mirror_scale);
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
  const u8* own_image = image + rank * CHUNKS * CHUNK_BYTES;
  Block::wait_and_fetch(base, own_image, first, horizon);
  float4 before[ROUNDS];
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    const int t = (threadIdx.x / QUADS + i * ROWS_AT_ONCE) * SPLIT + rank;
    before[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (t < horizon) before[i] = __ldcg(reinterpret_cast<const float4*>(x + t * WIDTH + column));
  }
  Block::multiply(base, own_image, first, horizon, d);
  wgmma_wait<0>();
  Block::join(smem, base, rank, horizon, d);

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
      store_operands(mirror, t, column, m0, m1, m2, m3, quantize);
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
  residual<HEADS * HEAD_DIM, OUT_SPLIT, OUT_SLOTS>(
      image, weight, weight_scale, image_scale, gates, next_scales, mod_stride, frozen, x, mirror,
      mirror_scale, sums, amax, step, steps, horizon);
}

extern "C" __global__ void __launch_bounds__(THREADS)
down_residual(const u8* image, const u8* weight, const float* weight_scale,
              const float* image_scale, const float* gates, const float* next_scales,
              int mod_stride, const int* frozen, float* x, u8* mirror, const float* mirror_scale,
              float* sums, float* amax, int step, int steps, int horizon) {
  residual<MLP, DOWN_SPLIT, DOWN_SLOTS>(
      image, weight, weight_scale, image_scale, gates, next_scales, mod_stride, frozen, x, mirror,
      mirror_scale, sums, amax, step, steps, horizon);
}

// gelu(gate) * up of the action rows as an image of MLP columns. following: weights of the down projection.
extern "C" __global__ void __launch_bounds__(THREADS)
gate_up(const u8* mirror, const u8* weight, const float* weight_scale, const float* mirror_scale,
        const float* sums, const float* bias, int bias_stride, const int* frozen, u8* out,
        const float* out_scale, float* amax, const u8* following, int step, int steps,
        int horizon) {
  constexpr int CHUNKS = WIDTH * SIZE / CHUNK_COLUMNS;
  constexpr int OUT_BYTES = TILE / 2 * SIZE;  // of a row of the output of a block
  constexpr int OUT_PAD = OUT_BYTES + 16, UNITS = OUT_BYTES / 16;
  using Block = Shared<CHUNKS, 1, ROWS, ROWS * OUT_PAD, GATE_UP_SLOTS, GATE_DELAY>;
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
  float2 scale = make_float2(1.0f, 1.0f);
  if (CODED) {
    const float2 weights = load2(weight_scale + n);
    scale = make_float2(weights.x * *mirror_scale, weights.y * *mirror_scale);
  }
  const float2 shift_now = load2(bias + step * bias_stride + n);
  const float2 shift_clean = load2(bias + steps * bias_stride + n);
  const float quantize = quantizer(out_scale);
  float d[ROWS / 2] = {};
  Block::wait_and_fetch(base, mirror, first, horizon);
  if (LOOK_AHEAD) look_ahead<WIDTH * MLP * SIZE / (2 * MLP / TILE)>(following);
  RowSums row_sums;
  row_sums.load(sums);
  Block::multiply(base, mirror, first, horizon, d);
  row_sums.finish(factors, factors + ROW_CAP);
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
    if (t >= horizon) continue;
    largest = fmaxf(largest, fabsf(hidden[i]));
    store_operand(staged + (t * OUT_PAD + pair * SIZE), hidden[i], quantize);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < (ROWS * UNITS + THREADS - 1) / THREADS; i++) {
    const int t = i * (THREADS / UNITS) + tid / UNITS;
    if (t < horizon) {
      const int at = blockIdx.x * OUT_BYTES + 16 * (tid % UNITS);
      *reinterpret_cast<uint4*>(out + activation_offset(t, at)) =
          *reinterpret_cast<const uint4*>(staged + t * OUT_PAD + 16 * (tid % UNITS));
    }
  }
  if (amax) record(amax, largest);
}
