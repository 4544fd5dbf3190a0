// Attention of the action rows in one launch: a cluster of CLUSTER blocks shares ROWS query rows.
//
// Each block takes a slice of the keys (of the prefix and of the tail), computes S' = K Q' and
// O' = V' P' of its slice with wgmma, and sends its part of O, already weighted against the other
// slices, to the block that owns those columns of the head: an exchange through distributed shared
// memory instead of a second kernel. Prefix keys and values are in shared memory before the kernel
// in front has finished. Sums run in a fixed order, so replays are equal bit for bit.
//
// Compile-time: ROWS 16, 32 or 64 query rows per cluster; CLUSTER 4, 8 or 16; OUT_FP8 0 or 1;
// TRIGGER 0, 1 or 2: release the kernel behind at entry, after the wait, or after the products.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

constexpr int D = 256;             // head dimension
constexpr int THREADS = 512;       // four warpgroups: 64 keys each in S, 64 columns each in O
constexpr int WARPS = THREADS / 32;
constexpr int TILES = ROWS / 8;    // n8 column tiles of an accumulator
constexpr int ACC = ROWS / 2;      // accumulator registers of m64 x ROWS
constexpr int PER_ROW = THREADS / ROWS;   // threads of the softmax per query row
constexpr int STRIDE = 2 * PER_ROW;       // keys they take at a time
constexpr int MAX_KEYS = 192;             // most keys of a slice
constexpr int SLOTS = WARPS / CLUSTER;    // warps (16 columns each) that a block owns in the sum
constexpr int VECTORS = ROWS / 16;        // 16-byte vectors per thread and part
constexpr int LINE = 128;                 // bytes of a swizzled line
constexpr float NONE = -1e30f;            // largest logit of an empty slice

#if ROWS == 16
#define REGISTERS "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define OPERANDS(a) "+f"(a[0]), "+f"(a[1]), "+f"(a[2]), "+f"(a[3]), "+f"(a[4]), "+f"(a[5]), \
    "+f"(a[6]), "+f"(a[7])
#define NEXT "%8, %9"
#define FLAG "%10"
#define SHAPE "m64n16k16"
#elif ROWS == 32
#define REGISTERS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define OPERANDS(a) "+f"(a[0]), "+f"(a[1]), "+f"(a[2]), "+f"(a[3]), "+f"(a[4]), "+f"(a[5]), \
    "+f"(a[6]), "+f"(a[7]), "+f"(a[8]), "+f"(a[9]), "+f"(a[10]), "+f"(a[11]), "+f"(a[12]), \
    "+f"(a[13]), "+f"(a[14]), "+f"(a[15])
#define NEXT "%16, %17"
#define FLAG "%18"
#define SHAPE "m64n32k16"
#elif ROWS == 64
#define REGISTERS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define OPERANDS(a) "+f"(a[0]), "+f"(a[1]), "+f"(a[2]), "+f"(a[3]), "+f"(a[4]), "+f"(a[5]), \
    "+f"(a[6]), "+f"(a[7]), "+f"(a[8]), "+f"(a[9]), "+f"(a[10]), "+f"(a[11]), "+f"(a[12]), \
    "+f"(a[13]), "+f"(a[14]), "+f"(a[15]), "+f"(a[16]), "+f"(a[17]), "+f"(a[18]), "+f"(a[19]), \
    "+f"(a[20]), "+f"(a[21]), "+f"(a[22]), "+f"(a[23]), "+f"(a[24]), "+f"(a[25]), "+f"(a[26]), \
    "+f"(a[27]), "+f"(a[28]), "+f"(a[29]), "+f"(a[30]), "+f"(a[31])
#define NEXT "%32, %33"
#define FLAG "%34"
#define SHAPE "m64n64k16"
#endif

// acc += A B (or = for the first): A from shared memory, rows or (TRANSPOSED) columns contiguous.
template <int TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&acc)[ACC], u64 a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, " FLAG ", 0;\n"
        "wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 " REGISTERS ", " NEXT
        ", p, 1, 1, %c3, 0;\n}\n"
        : OPERANDS(acc)
        : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSED));
}
