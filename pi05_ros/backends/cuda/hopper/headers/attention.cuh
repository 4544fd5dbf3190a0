// Sizes of attention.cu, its matrix products and copies.
#pragma once

#include "ptx.cuh"

namespace {

constexpr int HEAD_DIM = 256;
[[maybe_unused]] constexpr int HEADS = 8;
constexpr int ROW_BYTES = 2 * HEAD_DIM;
constexpr int MAX_HORIZON = 64;
constexpr int THREADS = GROUPS * 128;
constexpr int WARPS = THREADS / 32;
constexpr int LINE = 128;                        // bytes of a swizzled line: 64 elements
constexpr int BLOCKS = (KEYS + 63) / 64;         // 64 keys each, one warpgroup's product
constexpr int TAIL = MAX_HORIZON / CLUSTER;      // most keys of the tail in a block
constexpr int TURNS = 4 / GROUPS;                // 64 columns of O each
constexpr int ACC = ROWS / 2;                    // accumulator registers of a 64 x ROWS product
constexpr int STRIDE = BLOCKS * 64 + 4;          // floats from row to row of S, no bank conflicts
constexpr int PER_ROW = THREADS / ROWS;          // threads of the softmax per query row
constexpr int PASSES = (KEYS + 2 * PER_ROW - 1) / (2 * PER_ROW);  // two keys each
constexpr int SLOTS = 16 / CLUSTER;              // units of 16 columns whose sum a block owns
constexpr int VECTORS = ROWS / 16;               // 16-byte vectors of a thread's part
constexpr int TASKS = SLOTS * VECTORS * 2;       // of the sum, one warp each
constexpr int TURNS_OF_SUM = (TASKS + WARPS - 1) / WARPS;
constexpr float NONE = -1e30f;                   // largest logit of an empty slice

static_assert(KEYS % 16 == 0 && KEYS >= ROWS && BLOCKS <= GROUPS, "keys of a block");
static_assert(ROWS * STRIDE * 4 <= KEYS * ROW_BYTES, "S does not fit in the place of K");
static_assert(PER_ROW <= 32, "rows do not fit the softmax");

#define A8(a, i)                                                                              \
  "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]), \
      "+f"(a[i + 6]), "+f"(a[i + 7])
// The accumulator, then A and B, then whether to add.
#if ROWS == 16
#define SHAPE "m64n16k16"
#define RESULT "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define REST "{%8,%9,%10,%11}, %12"
#define FLAG "%13"
#define OPERANDS(a) A8(a, 0)
#elif ROWS == 32
#define SHAPE "m64n32k16"
#define RESULT "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define REST "{%16,%17,%18,%19}, %20"
#define FLAG "%21"
#define OPERANDS(a) A8(a, 0), A8(a, 8)
#else
#define SHAPE "m64n64k16"
#define RESULT                                              \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define REST "{%32,%33,%34,%35}, %36"
#define FLAG "%37"
#define OPERANDS(a) A8(a, 0), A8(a, 8), A8(a, 16), A8(a, 24)
#endif

// acc (+)= A B: A 64 x 16 in registers, B ROWS x 16 in shared memory, both K-major.
__device__ __forceinline__ void product(float (&acc)[ACC], const u32 (&a)[4], u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, " FLAG ", 0;\n"
      "wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 " RESULT ", " REST ", p, 1, 1, 0;\n}\n"
      : OPERANDS(acc) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// Operand A as wgmma has it in registers: 16 rows of a tile (keys), all columns. `line` is the
// address of this lane's row in the first chunk, its 16 bytes permuted.
__device__ __forceinline__ void load_keys(u32 (&a)[HEAD_DIM / 16][4], u32 line) {
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 16; ++i)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[i][0]), "=r"(a[i][1]), "=r"(a[i][2]), "=r"(a[i][3])
                 : "r"((line ^ ((i & 3) << 5)) + (i >> 2) * (KEYS * LINE)) : "memory");
}

// The same of the transposed tile: 16 columns of each chunk that a warpgroup takes, all keys.
__device__ __forceinline__ void load_values(u32 (&a)[TURNS][KEYS / 16][4], u32 line) {
#pragma unroll
  for (int c = 0; c < TURNS; ++c)
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a[c][i][0]), "=r"(a[c][i][1]), "=r"(a[c][i][2]), "=r"(a[c][i][3])
                   : "r"(line + (c * KEYS + i * 16) * LINE) : "memory");
}

// 16 bytes to shared memory, or zeros.
__device__ __forceinline__ void copy16(u32 to, const u8* from, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(live ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int Pending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

__device__ __forceinline__ void store4(u32 to, u32 value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

// Have a value computed here, not where it is used: address arithmetic belongs above the wait.
__device__ __forceinline__ void early(u32& value) { asm volatile("" : "+r"(value)); }

}  // namespace
