// Layout of operands ("image"): what wgmma reads from shared memory, kept like that in global
// memory so that a plain bulk copy brings it in.
//
// A matrix of R rows (R <= 64) of K bytes (a column is one byte in e4m3, two in bf16) is K / 128 chunks of
// 64 x 128 bytes; within a chunk row r is 128 bytes, and its 16-byte units are permuted by the row (128-byte swizzle).
// Chunks are ROW_CAP rows apart whatever the horizon is; rows behind the horizon are never read
// into a result, so they may hold anything.
//
// packing.py has the same functions in Python.
#pragma once

constexpr int ROW_CAP = 64;                      // rows of a chunk
constexpr int CHUNK_COLUMNS = 128;               // bytes of a row within a chunk
constexpr int CHUNK_BYTES = ROW_CAP * CHUNK_COLUMNS;

// Offset of byte `at` of a row of an activation image.
__device__ __forceinline__ int activation_offset(int row, int at) {
  return (at >> 7) * CHUNK_BYTES + row * CHUNK_COLUMNS + ((at & 127) ^ ((row & 7) << 4));
}
