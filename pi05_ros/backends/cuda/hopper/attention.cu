// Attention of the action rows in one launch: a cluster of blocks shares ROWS query rows.
//
// Each block takes a slice of the keys (of the prefix and of the tail), computes S' = K Q' and
// O' = V' P' of its slice with wgmma, and sends its part of O to the block that owns those columns of
// the head, and the largest logit and the sum of each row to all. The owner weights the parts, adds
// them and quantizes: an exchange through distributed shared memory instead of a second kernel.
// Prefix keys and values are in shared memory before the kernel in front has finished. Sums run in a
// fixed order, so replays are equal bit for bit.
//
// Everything on the way from the wait to the last store runs once per launch, so short code counts:
// sizes are compile-time constants, addresses are computed above the wait.
//
// Constants from the compiler's command line:
//   ROWS     query rows of a cluster: 16, 32 or 64
//   CLUSTER  blocks of a cluster: 4, 8 or 16
//   KEYS     room for keys in a block, a multiple of 16, at least ROWS, at most 64 GROUPS
//   GROUPS   warpgroups of a block: 2 or 4
//   OUT      0: bf16 rows; 1: e4m3 rows; 2: e4m3 image (layout.cuh); 3: bf16 image
//   MONITOR  1: keep the largest magnitude of the output
//   TRIGGER  release the kernel behind 0: at entry, 1: after the wait, 2: after the products
#include "attention.cuh"
#include "layout.cuh"
#include "ptx.cuh"

// For measurements: cycles at points of the way, thread 0 of each block, 16 per block.
#ifdef STAMPS
#define STAMP(i) stamp[i] = clock64()
#define STAMP_NS(i) asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(stamp[i]))
#else
#define STAMP(i)
#define STAMP_NS(i)
#endif

// q [rows, 256] bf16, scaled by log2(e) / 16, row = action row * 8 + head; k, v [*, 256] bf16:
// rows [0, length) are final before this launch, [length, length + extra) come from the kernel in
// front; out: row and column as q, in the layout OUT; amax: see MONITOR.
// Grid: (CLUSTER, row blocks), clusters along x.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attend(const u8* q, const u8* k, const u8* v, const int* length_ptr, u8* out,
           const float* scale_ptr, int* amax, int rows, int extra
#ifdef STAMPS
           ,
           long long* stamps
#endif
    ) {
#ifdef STAMPS
  long long stamp[16];
#endif
  STAMP(0);
#if TRIGGER == 0
  grid_trigger();
#endif
  extern __shared__ __align__(1024) u8 memory[];
  const int length = *length_ptr;
  const float inverse = reciprocal(*scale_ptr);
  const int thread = threadIdx.x, lane = thread & 31;
  const int warp = __shfl_sync(~0u, thread >> 5, 0), group = warp >> 2;  // uniform
  const u32 rank = cluster_rank();
  const int first_row = blockIdx.y * ROWS;

  // Shared memory. S takes the place of K once that is in registers, P that of Q once S is done,
  // and the parts of O that of S once P is done.
  const u32 s_q = shared_address(memory);
  const u32 s_k = s_q + ROWS * ROW_BYTES;
  const u32 s_v = s_k + KEYS * ROW_BYTES;
  const u32 s_p = s_q;
  const u32 s_logits = s_k, s_parts = s_k;
  const u32 s_stats = s_v + KEYS * ROW_BYTES;         // [CLUSTER, ROWS] largest logit and sum
  const u32 s_weight = s_stats + CLUSTER * ROWS * 8;  // [CLUSTER, ROWS]
  const u32 stats_barrier = s_weight + CLUSTER * ROWS * 4;
  const u32 parts_barrier = stats_barrier + 8;
  if (thread == 0) {
    barrier_init(stats_barrier, 1);
    barrier_init(parts_barrier, 1);
    barrier_init_fence();
    barrier_expect(stats_barrier, CLUSTER * ROWS * 8);
    barrier_expect(parts_barrier, ROWS * ROW_BYTES);
  }
  __syncwarp();
  cluster_arrive_relaxed();

  // This block's keys: slots [0, prefix) of the prefix, [prefix, keys) of the tail, then zeros in
  // V. A tile is four chunks of 64 columns; a warp takes row warp, warp + WARPS, ..., a lane 16 bytes,
  // whose place in the line is permuted by the row (128-byte swizzle).
  const int share = (length + CLUSTER - 1) / CLUSTER, first_key = min((int)rank * share, length);
  const int prefix = min(share, length - first_key);
  const int tail_share = (extra + CLUSTER - 1) / CLUSTER;
  const int first_tail = min((int)rank * tail_share, extra);
  const int tail = min(tail_share, extra - first_tail), keys = prefix + tail;
  const u32 unit = ((lane ^ warp) & 7) << 4;
  {
    const size_t from = (size_t)(first_key + warp) * ROW_BYTES + lane * 16;
    const u32 to = ((lane >> 3) * KEYS + warp) * LINE + unit;
#pragma unroll
    for (int i = 0; i < KEYS / WARPS; ++i)
      if (warp + i * WARPS < prefix)
        copy16(s_k + to + i * WARPS * LINE, k + from + i * WARPS * ROW_BYTES, true);
    copy_commit();
#pragma unroll
    for (int i = 0; i < KEYS / WARPS; ++i) {
      const int slot = warp + i * WARPS;
      if (slot < prefix || slot >= keys)  // zeros read nothing
        copy16(s_v + to + i * WARPS * LINE, v + from + i * WARPS * ROW_BYTES, slot < prefix);
    }
    copy_commit();
  }
  cluster_wait();

  // Addresses of what follows.
  const int first_slot = warp * 16, operand_row = first_slot + (lane & 15);
  u32 operand_line = s_k + operand_row * LINE + (((lane >> 4) ^ (operand_row & 7)) << 4);
  const int value_unit = (warp & 3) * 2 + ((lane >> 3) & 1);  // 8 columns, of 8 + 8 keys
  u32 values_line = s_v + (group * TURNS * KEYS + (lane >> 4) * 8 + (lane & 7)) * LINE +
                    ((value_unit ^ (lane & 7)) << 4);
  early(operand_line);
  early(values_line);
  const int g = lane >> 2, pair = lane & 3;  // fragment: row g (and g + 8), columns 2 pair, + 1
  const int row = thread / PER_ROW, t = thread % PER_ROW;  // of the softmax
  u32 logits_to = s_logits + (2 * pair * STRIDE + first_slot + g) * 4;
  u32 logits_from = s_logits - s_q + row * STRIDE * 4 + t * 8;  // offsets in `memory`
  u32 live_keys = keys - 2 * t;  // how far this thread's keys, 2 PER_ROW apart, count
  u32 p_to = s_p + row * LINE + ((4 * t) ^ ((row & 7) << 4));
  u32 stats_to = remote_address(s_stats + (rank * ROWS + row) * 8, t % CLUSTER);
  u32 stats_there = remote_address(stats_barrier, t % CLUSTER);
  u32 part_to[TURNS], part_there[TURNS];
#pragma unroll
  for (int c = 0; c < TURNS; ++c) {
    const u32 column16 = (group * TURNS + c) * 4 + (warp & 3);
    const u32 owner = column16 / SLOTS, slot = column16 % SLOTS;
    part_to[c] = remote_address(s_parts, owner) + (rank * SLOTS + slot) * (VECTORS * 512) + lane * 16;
    part_there[c] = remote_address(parts_barrier, owner);
    early(part_to[c]);
    early(part_there[c]);
  }
  early(logits_to);
  early(logits_from);
  early(live_keys);
  early(p_to);
  early(stats_to);
  early(stats_there);
  const bool odd = lane & 1, upper = lane & 2;
  u32 sum_from[TURNS_OF_SUM], weight_from[TURNS_OF_SUM], sum_to[TURNS_OF_SUM];
  int sum_row[TURNS_OF_SUM];
#pragma unroll
  for (int i = 0; i < TURNS_OF_SUM; ++i) {
    const int task = i * WARPS + warp;
    const int quad = task & 1, vector = (task >> 1) % VECTORS, slot = (task >> 1) / VECTORS;
    const int two = (lane >> 2) & 3, tile = lane >> 4, from = quad * 4 + (lane & 3);
    const int word = (from * 4 + two) * 4 + (tile ^ ((from >> 1) & 1)) * 2;
    const int local = vector * 16 + tile * 8 + 2 * two;  // first of two rows
    const int to_row = first_row + local + odd;
    const int column = ((int)rank * SLOTS + slot) * 16 + upper * 8 + quad * 4;
    sum_from[i] = s_parts - s_q + (slot * VECTORS + vector) * 512 + word * 4;
    weight_from[i] = s_weight - s_q + local * 4;
    sum_row[i] = first_row + local;
#if OUT == 0
    sum_to[i] = to_row * ROW_BYTES + column * 2;
#elif OUT == 1
    sum_to[i] = to_row * HEAD_DIM + column;
#else
    sum_to[i] =
        activation_offset(to_row / HEADS, ((to_row % HEADS) * HEAD_DIM + column) * (OUT == 3 ? 2 : 1));
#endif
    early(sum_from[i]);
    early(weight_from[i]);
    early(sum_to[i]);
  }
  STAMP(1);
  grid_wait();
#if TRIGGER == 1
  grid_trigger();
#endif
  STAMP(2);
  STAMP_NS(11);

  {
    const u8* from = q + (size_t)(first_row + warp) * ROW_BYTES + lane * 16;
    const u32 to = s_q + ((lane >> 3) * ROWS + warp) * LINE + unit;
#pragma unroll
    for (int i = 0; i < ROWS / WARPS; ++i) {
      const bool live = first_row + warp + i * WARPS < rows;
      copy16(to + i * WARPS * LINE, from + i * WARPS * ROW_BYTES, live);
    }
    const size_t tail_from = (size_t)(length + first_tail + warp) * ROW_BYTES + lane * 16;
    const int slot = prefix + warp;  // WARPS is a multiple of 8: the swizzle is that of every slot
    const u32 tail_to = ((lane >> 3) * KEYS + slot) * LINE + (((lane ^ slot) & 7) << 4);
#pragma unroll
    for (int i = 0; i < (TAIL + WARPS - 1) / WARPS; ++i)
      if (warp + i * WARPS < tail)
        copy16(s_k + tail_to + i * WARPS * LINE, k + tail_from + i * WARPS * ROW_BYTES, true);
#pragma unroll
    for (int i = 0; i < (TAIL + WARPS - 1) / WARPS; ++i)
      if (warp + i * WARPS < tail)
        copy16(s_v + tail_to + i * WARPS * LINE, v + tail_from + i * WARPS * ROW_BYTES, true);
    copy_commit();
  }
  // Each warp's 16 keys as operands in registers: those of the prefix while queries and tail come.
  u32 k_operand[HEAD_DIM / 16][4];
  copy_wait<2>();
  __syncthreads();
  if (first_slot + 16 <= prefix) load_keys(k_operand, operand_line);
  copy_wait<0>();
  shared_fence();
  __syncthreads();
  STAMP(3);
  if (first_slot < keys && first_slot + 16 > prefix) load_keys(k_operand, operand_line);
  __syncthreads();  // K is read: S may take its place

  // S' = K Q', 64 keys per warpgroup. Slots behind the keys hold anything and are not used.
  u32 v_operand[TURNS][KEYS / 16][4];
  if (group < BLOCKS) {
    float acc[ACC];
    const u64 b = matrix_descriptor(s_q);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; ++i)
      product(acc, k_operand[i], b + (i >> 2) * (ROWS * LINE / 16) + (i & 3) * 2, i > 0);
    wgmma_commit();
    // While it runs: the values as operands of the second product. (With four warpgroups a thread
    // has no registers for both operands.)
    if (GROUPS == 2) load_values(v_operand, values_line);
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < ACC; ++i)
      store4(logits_to + (((i >> 2) * 8 + (i & 1)) * STRIDE + ((i >> 1) & 1) * 8) * 4,
             __float_as_uint(acc[i]));
  }
  if (GROUPS != 2 || group >= BLOCKS) load_values(v_operand, values_line);
  STAMP(4);
  __syncthreads();
  STAMP(5);

  // Softmax within the slice: PER_ROW threads for each query row.
  float top = NONE, sum = 0.0f;
  {
    float2 x[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; ++i)
      x[i] = *(const float2*)(memory + logits_from + i * PER_ROW * 8);
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      x[i].x = i * 2 * PER_ROW < (int)live_keys ? x[i].x : -__int_as_float(0x7f800000);
      x[i].y = i * 2 * PER_ROW + 1 < (int)live_keys ? x[i].y : -__int_as_float(0x7f800000);
      top = fmaxf(top, fmaxf(x[i].x, x[i].y));
    }
#pragma unroll
    for (int n = PER_ROW / 2; n; n >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const float a = exp2_fast(x[i].x - top), b = exp2_fast(x[i].y - top);
      sum += a + b;
      // PER_ROW * 4 bytes on: the lines' permutation touches bits 4 to 6
      if (KEYS % (2 * PER_ROW) == 0 || i * 2 * PER_ROW + 2 * t < KEYS)
        store4((p_to ^ (i * PER_ROW * 4 % LINE)) + i * PER_ROW * 4 / LINE * (ROWS * LINE),
               to_bf16x2(a, b));
    }
    shared_fence();
  }
  __syncthreads();
  cluster_arrive_relaxed();
  STAMP(6);

  // O' = V' P', 64 columns at a time.
  float acc[TURNS][ACC];
#pragma unroll
  for (int c = 0; c < TURNS; ++c) {
    const u64 b = matrix_descriptor(s_p);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i)
      product(acc[c], v_operand[c][i], b + (i >> 2) * (ROWS * LINE / 16) + (i & 3) * 2, i > 0);
    wgmma_commit();
  }
  // Meanwhile: tell the others the largest logit and the sum of each row.
#pragma unroll
  for (int n = PER_ROW / 2; n; n >>= 1) sum += __shfl_xor_sync(~0u, sum, n);
  if (PER_ROW <= CLUSTER || t < CLUSTER) remote_store(stats_to, top, sum, stats_there);
#pragma unroll
  for (int to = PER_ROW; to < CLUSTER; to += PER_ROW)
    remote_store(remote_address(s_stats + (rank * ROWS + row) * 8, to + t), top, sum,
                 remote_address(stats_barrier, to + t));
  __syncwarp();
  cluster_wait();  // everybody is past its softmax: the place of the parts is free

  // Send each part to the block that owns these 16 columns. Lanes whose bit 3 is set swap the halves
  // of their vectors, which keeps the reader free of bank conflicts.
#pragma unroll
  for (int c = 0; c < TURNS; ++c) {
    if (c == TURNS - 1)
      wgmma_wait<0>();
    else
      wgmma_wait<TURNS - 1>();
    const bool swap = lane & 8;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
      const float* a = acc[c] + 8 * i;
      const u32 w0 = to_bf16x2(a[0], a[1]), w1 = to_bf16x2(a[2], a[3]);
      const u32 w2 = to_bf16x2(a[4], a[5]), w3 = to_bf16x2(a[6], a[7]);
      remote_store16(part_to[c] + i * 512, swap ? w2 : w0, swap ? w3 : w1, swap ? w0 : w2,
                     swap ? w1 : w3, part_there[c]);
    }
    if (c == 0) STAMP(7);
  }
#if TRIGGER == 2
  grid_trigger();
#endif
  STAMP(8);

  // While they travel: the weight of each slice in each row.
  barrier_wait(stats_barrier, 0);
#pragma unroll
  for (int i = 0; i < (ROWS * CLUSTER + THREADS - 1) / THREADS; ++i) {
    const int item = i * THREADS + thread, of = item / CLUSTER, source = item % CLUSTER;
    if (ROWS * CLUSTER % THREADS == 0 || warp < ROWS * CLUSTER / 32) {
      const float2 stats = *(const float2*)(memory + (s_stats - s_q) + (source * ROWS + of) * 8);
      float highest = stats.x;
#pragma unroll
      for (int n = CLUSTER / 2; n; n >>= 1)
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, n));
      const float fade = exp2_fast(stats.x - highest);
      float total = fade * stats.y;
#pragma unroll
      for (int n = CLUSTER / 2; n; n >>= 1) total += __shfl_xor_sync(~0u, total, n);
      store4(s_weight + (source * ROWS + of) * 4, __float_as_uint(__fdividef(fade, total)));
    }
  }
  __syncthreads();
  barrier_wait(parts_barrier, 0);
  STAMP(9);

  // Add the parts. A warp takes 16 rows (lane bits 2 to 4, and the pair in a word) and 4 columns (bits
  // 0, 1), twice: the two words of a read are 8 columns apart.
#pragma unroll
  for (int i = 0; i < TURNS_OF_SUM; ++i) {
    if (TASKS % WARPS != 0 && i * WARPS + warp >= TASKS) break;
    float x[2][2] = {};  // [columns, rows]
#pragma unroll
    for (int source = 0; source < CLUSTER; ++source) {
      const uint2 part = *(const uint2*)(memory + sum_from[i] + source * (SLOTS * VECTORS * 512));
      const float2 weight = *(const float2*)(memory + weight_from[i] + source * ROWS * 4);
      x[0][0] += bf16_low(part.x) * weight.x;
      x[0][1] += bf16_high(part.x) * weight.y;
      x[1][0] += bf16_low(part.y) * weight.x;
      x[1][1] += bf16_high(part.y) * weight.y;
    }
    const bool live = sum_row[i] + odd < rows;
#if MONITOR
    float largest = 0.0f;
    if (sum_row[i] < rows) largest = fmaxf(fabsf(x[0][0]), fabsf(x[1][0]));
    if (sum_row[i] + 1 < rows)
      largest = fmaxf(largest, fmaxf(fabsf(x[0][1]), fabsf(x[1][1])));
#pragma unroll
    for (int n = 16; n; n >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, n));
    if (lane == 0) atomicMax(amax, __float_as_int(largest));
#endif
    // Of four lanes, 0 and 2 gather the first row, 1 and 3 the second; 2 and 3 the columns 8 on.
#if OUT == 0 || OUT == 3
    u32 columns[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 mine = to_bf16x2(x[h][0], x[h][1]), beside = __shfl_xor_sync(~0u, mine, 1);
      columns[h] = odd ? permute_bytes(beside, mine, 0x7632) : permute_bytes(mine, beside, 0x5410);
    }
    const u32 next = __shfl_xor_sync(~0u, upper ? columns[0] : columns[1], 2);
    if (live)
      *(uint2*)(out + sum_to[i]) =
          upper ? make_uint2(next, columns[1]) : make_uint2(columns[0], next);
#else
    const u32 mine = to_e4m3x2(x[0][0] * inverse, x[0][1] * inverse) |
                     to_e4m3x2(x[1][0] * inverse, x[1][1] * inverse) << 16;
    const u32 beside = __shfl_xor_sync(~0u, mine, 1);
    const u32 columns =
        odd ? permute_bytes(beside, mine, 0x7351) : permute_bytes(mine, beside, 0x6240);
    const u32 next = __shfl_xor_sync(~0u, columns, 2);
    if (live)
      *(u32*)(out + sum_to[i]) =
          upper ? permute_bytes(next, columns, 0x7632) : permute_bytes(columns, next, 0x5410);
#endif
  }
  STAMP(10);
  STAMP_NS(12);
#ifdef STAMPS
  if (thread == 0)
    for (int i = 0; i < 13; ++i) stamps[(blockIdx.y * CLUSTER + blockIdx.x) * 16 + i] = stamp[i];
#endif
}
