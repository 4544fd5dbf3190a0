// Between two steps of the flow: final adaRMS, action head, Euler step, action embedding.
//
// A cluster takes 8 action rows, each block 128 columns. Its columns of both matrices (float32) are in
// registers before the kernel in front has finished. Each block sends what its columns add to the
// velocities to all of them, which add in a fixed order and go on with the same state; then each
// computes its columns of the next input. The new state goes to another buffer than the old one,
// which blocks may still be reading.
//
// Frozen rows keep their state, so velocities take the tables of this step only. What the shift of
// the norm adds is in `velocity`.
//
// Constants from the compiler's command line: WIDTH (512 or 1024), CODED (the next input is e4m3, else bf16).

#include "operands.cuh"

namespace {

constexpr int COLUMNS = 128;                   // of a block
constexpr int CLUSTER = WIDTH / COLUMNS;
constexpr int ROWS = 8, ACTIONS = 32;
constexpr int THREADS = 2 * COLUMNS;
constexpr int WARPS = THREADS / 32;            // one per row while x is read
constexpr int OWN = COLUMNS / WARPS;           // columns of a warp in the first product
constexpr int PARTS = WIDTH / 64;              // sums of squares per row that the next kernel adds
constexpr int VECTORS = ROWS * ACTIONS / 4 + ROWS / 4;  // that a block sends: products, squares
constexpr float EPSILON = 1e-6f;

static_assert(WARPS == ROWS && THREADS == ROWS * ACTIONS, "a thread per value of the state");
static_assert(WIDTH == 512 || WIDTH == 1024, "width");

struct Room {
  float4 sent[CLUSTER][VECTORS];
  float scaled[ROWS][COLUMNS];        // x (1 + s)
  float parts[WARPS][ROWS][ACTIONS];
  float state[ROWS][ACTIONS];
  float squares[ROWS];
  float next_squares[WARPS][ROWS / 2];
  u64 barrier;
};

__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int n = 16; n; n >>= 1) value += __shfl_xor_sync(~0u, value, n);
  return value;
}

}  // namespace

// x float32 [64, WIDTH]; state (old), result (new), source, target float32 [64, 32]; out_w [32, WIDTH]
// and in_w [32, WIDTH] float32; velocity [steps + 1, 32]; final_table and next: 1 + scale of the final
// and the first norm of all steps, `mod_stride` floats apart; weight [64] and clock [steps, 2]: guidance.
// step -1: from `state` (noise) to the first input. Grid: CLUSTER times groups of 8 rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
euler_step(float* x, const float* state, float* result, const float* out_w, const float* velocity,
           const float* final_table, const float* in_w, const float* in_b, const float* next,
           int mod_stride, const int* frozen, u8* mirror, const float* mirror_scale, float* sums,
           float* amax, const float* target, const float* weight, const float* clock, int step,
           int steps, int horizon, float dt, int guided) {
  __shared__ Room room;
  grid_trigger();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int rank = cluster_rank(), row0 = blockIdx.x / CLUSTER * ROWS;
  const bool first = step < 0, last = step == steps - 1;
  const u32 barrier = shared_address(&room.barrier);
  if (thread == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
    barrier_expect(barrier, sizeof(room.sent));
  }
  __syncthreads();
  cluster_arrive_relaxed();

  // Constants: this warp's columns of the head (lane = action), this thread's column of the embedding.
  const int left = rank * COLUMNS;
  const int column = left + thread % COLUMNS, half = thread / COLUMNS;
  const int clean = *frozen;
  float head[OWN], embed[ACTIONS];
  float next_now = 0.0f, next_clean = 0.0f, in_bias = 0.0f, drift = 0.0f;
  float now = 0.0f, gain = 0.0f;
  float4 final_scale = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (!first) {
    final_scale = load4(final_table + step * mod_stride + left + 4 * lane);
#pragma unroll
    for (int i = 0; i < OWN; i += 4) {
      const float4 w = load4(out_w + lane * WIDTH + left + warp * OWN + i);
      head[i] = w.x, head[i + 1] = w.y, head[i + 2] = w.z, head[i + 3] = w.w;
    }
    drift = velocity[step * ACTIONS + lane];
    if (guided) now = clock[2 * step], gain = clock[2 * step + 1];
  }
  if (!last) {
#pragma unroll
    for (int a = 0; a < ACTIONS; a++) embed[a] = in_w[a * WIDTH + column];
    in_bias = in_b[column];
    next_now = next[(step + 1) * mod_stride + column];
    next_clean = next[steps * mod_stride + column];
  }
  const float quantize = quantizer(mirror_scale);
  cluster_wait();  // everybody's barrier is ready
  grid_wait();

  // A thread has a value of the state: row `warp`, action `lane`.
  const int t = row0 + warp;
  const bool live = t < horizon;
  float value = live ? __ldcg(state + t * ACTIONS + lane) : 0.0f;
  if (!first) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (live) v = __ldcg(reinterpret_cast<const float4*>(x + t * WIDTH + left + 4 * lane));
    float goal = 0.0f, tie = 0.0f;
    if (live && guided) goal = target[t * ACTIONS + lane], tie = weight[t];
    *reinterpret_cast<float4*>(&room.scaled[warp][4 * lane]) =
        make_float4(v.x * final_scale.x, v.y * final_scale.y, v.z * final_scale.z,
                    v.w * final_scale.w);
    const float square = warp_sum(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w);
    if (lane == 0) room.squares[warp] = square;
    __syncthreads();
    float sum[ROWS] = {};
#pragma unroll
    for (int i = 0; i < OWN; i += 4)
#pragma unroll
      for (int row = 0; row < ROWS; row++) {
        const float4 y = load4(&room.scaled[row][warp * OWN + i]);
        sum[row] += y.x * head[i] + y.y * head[i + 1] + y.z * head[i + 2] + y.w * head[i + 3];
      }
#pragma unroll
    for (int row = 0; row < ROWS; row++) room.parts[warp][row][lane] = sum[row];
    __syncthreads();
    for (int i = thread; i < VECTORS * CLUSTER; i += THREADS) {
      const int vector = i % VECTORS, peer = i / VECTORS;
      float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (vector < ROWS * ACTIONS / 4) {
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
          const float4 part = load4(&room.parts[w][0][0] + 4 * vector);
          total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
        }
      } else {
        total = load4(room.squares + 4 * (vector - ROWS * ACTIONS / 4));
      }
      remote_store16(remote_address(shared_address(&room.sent[rank][vector]), peer),
                     __float_as_uint(total.x), __float_as_uint(total.y), __float_as_uint(total.z),
                     __float_as_uint(total.w), remote_address(barrier, peer));
    }
    barrier_wait_cluster(barrier, 0);
    float product = 0.0f, squares = 0.0f;
#pragma unroll
    for (int from = 0; from < CLUSTER; from++) {
      const float* sent = reinterpret_cast<const float*>(room.sent[from]);
      product += sent[thread];
      squares += sent[ROWS * ACTIONS + warp];
    }
    float speed = product * rsqrtf(squares * (1.0f / WIDTH) + EPSILON) + drift;
    if (guided) speed -= gain * (tie * (goal - (value - now * speed)));
    if (t >= clean) value -= dt * speed;
  }
  if (live && rank == 0) result[t * ACTIONS + lane] = value;
  if (last) return;
  room.state[warp][lane] = value;
  __syncthreads();

  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < ROWS / 2; i++) {
    const int row = half * (ROWS / 2) + i, place = row0 + row;
    float y = in_bias;
#pragma unroll
    for (int k = 0; k < ACTIONS; k += 4) {
      const float4 s = load4(&room.state[row][k]);
      y += s.x * embed[k] + s.y * embed[k + 1] + s.z * embed[k + 2] + s.w * embed[k + 3];
    }
    if (place < horizon) {
      const float m = y * (place < clean ? next_clean : next_now);
      x[place * WIDTH + column] = y;
      store_operand(mirror + activation_offset(place, column * SIZE), m, quantize);
      largest = fmaxf(largest, fabsf(m));
    }
    const float square = warp_sum(y * y);
    if (lane == 0) room.next_squares[warp][i] = square;
  }
  __syncthreads();
  if (thread < ROWS && row0 + thread < horizon) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS / 2; w++)
      total += room.next_squares[thread / (ROWS / 2) * (WARPS / 2) + w][thread % (ROWS / 2)];
#pragma unroll
    for (int part = 0; part < PARTS; part += CLUSTER)
      sums[(part + rank) * ROW_CAP + row0 + thread] = part == 0 ? total : 0.0f;
  }
  if (amax) {
    const int bits = __reduce_max_sync(~0u, __float_as_int(largest));
    if (lane == 0) atomicMax(reinterpret_cast<int*>(amax), bits);
  }
}
