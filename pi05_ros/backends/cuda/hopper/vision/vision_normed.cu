// A product of SigLIP in BF16 behind a LayerNorm that has no kernel of its own: out = gelu(LN(x) @ w.T + bias).
//
// With the norm's factor in the columns of w (`pack_model.py`), c the sums of the rows of w and b what is
// left of shift and bias, it is rstd (x @ w.T - mean c) + b. The matrix unit takes x as it is; mean and rstd of
// a row come from the moments that vision_narrow.cu left, c and b from a table. c belongs to the weights as
// they are rounded, so a large mean leaves nothing behind. The warps that neither ask for data nor multiply
// prepare both while the products run. How products are divided is told in vision.cuh.

#define CODED 0
#include "vision.cuh"

namespace {

constexpr int AFFINE = BEHIND;                // float2 {c, b} per column
constexpr int MOMENTS = AFFINE + 8 * COLS;    // float2 {mean, rstd} per row

// Mean and 1 / deviation of a row from the moments of its tiles, `rows` apart, of `step` columns but the last.
__device__ __forceinline__ float2 combine(const float2* moments, int rows, int width, int step) {
  // About the mean of the first tile, which is within a few deviations of that of the row.
  const float2 first = __ldcg(moments);
  float sum = 0.0f, squares = first.y;
#pragma unroll 8
  for (int column = step; column < width; column += step) {
    moments += rows;
    const float2 tile = __ldcg(moments);
    const float count = min(step, width - column), offset = tile.x - first.x;
    sum = fmaf(count, offset, sum);
    squares += fmaf(count * offset, offset, tile.y);
  }
  const float share = 1.0f / width, offset = sum * share;
  const float variance = fmaxf(fmaf(squares, share, -offset * offset), 0.0f);
  return make_float2(first.x + offset, rsqrtf(variance + 1e-6f));
}

}  // namespace

// x [rows, width], w [columns, width] by tensor maps in boxes of 64 columns and 128 or COLS / 2 rows;
// affine [columns] {c, b}; moments [tiles][rows] of tiles of `step` columns of x; out [rows][columns].
extern "C" __global__ void __maxnreg__(REGISTERS)
vision_normed(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
              const float2* affine, const float2* moments, u16* out, int rows, int columns, int chunks,
              int tiles, int width, int step) {
  extern __shared__ __align__(1024) u8 smem[];
  const u32 base = shared_address(smem);
  const Place at(chunks, tiles, 1);
  prepare(base, x_map, w_map);
  if (threadIdx.x < WARPGROUP) {
    if (threadIdx.x == 0) produce(base, x_map, w_map, at);
    if (threadIdx.x >= 32) {
      const int helper = threadIdx.x - 32;
      float2* table = reinterpret_cast<float2*>(smem + AFFINE);
      for (int i = helper; i < COLS; i += HELPERS)
        table[i] = at.column0 + i < columns ? affine[at.column0 + i] : make_float2(0.0f, 0.0f);
      grid_wait();
      table = reinterpret_cast<float2*>(smem + MOMENTS);
      for (int i = helper; i < ROWS; i += HELPERS)
        table[i] = combine(moments + at.row0 + i, rows, width, step);
      asm volatile("bar.arrive 1, %0;" ::"n"(CONSUMERS + HELPERS) : "memory");
    }
    __syncwarp();
    cluster_arrive_relaxed();
  } else {
    const int thread = threadIdx.x % WARPGROUP, group = threadIdx.x / WARPGROUP - 1;
    const int lane = thread % 32, quad = lane % 4, row = 16 * (thread / 32) + lane / 4;
    float d[COLS / 2];
    multiply(base, group, thread, at.count, d);
    meet<1, CONSUMERS + HELPERS>();  // nobody reads operands any more, and both tables are there
    const float4* table = reinterpret_cast<const float4*>(smem + AFFINE) + quad;
    const float2* row_table = reinterpret_cast<const float2*>(smem + MOMENTS) + 64 * group + row;
    const float2 norm[2] = {row_table[0], row_table[8]};
    u8* own = smem + group * 64 * PITCH;
    u8* staged = own + row * PITCH + 4 * quad;
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) {
      const float4 f = table[4 * j];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float low = fmaf(norm[i].y, fmaf(-norm[i].x, f.x, d[4 * j + 2 * i]), f.y);
        const float high = fmaf(norm[i].y, fmaf(-norm[i].x, f.z, d[4 * j + 2 * i + 1]), f.w);
        *reinterpret_cast<u32*>(staged + 8 * i * PITCH + 16 * j) = to_bf16x2(gelu(low), gelu(high));
      }
    }
    if (group)
      meet<3, WARPGROUP>();
    else
      meet<2, WARPGROUP>();
    u16* to = out + ((size_t)at.row0 + 64 * group) * columns + at.column0;
    store_rows<COLS / 8, PITCH>(reinterpret_cast<u8*>(to), 2 * (size_t)columns, own,
                                (columns - at.column0) / 8, thread);
  }
  // Nobody leaves while the other block may still send data or arrivals.
  __syncwarp();
  cluster_wait();
}
