// Layout of FP8 operands ("image"): what wgmma reads from shared memory, kept like that in global
// memory so that a plain bulk copy brings it in.
//
// A matrix of R rows (R <= 64) and K columns of one byte is K / 128 chunks of 64 x 128 bytes; within
// a chunk row r is 128 bytes, and its 16-byte units are permuted by the row (128-byte swizzle).
// Chunks are ROW_CAP rows apart whatever the horizon is; rows behind the horizon are never read
// into a result, so they may hold anything.
//
// hopper/packing.py has the same functions in Python.
#pragma once

constexpr int ROW_CAP = 64;                      // rows of a chunk
constexpr int CHUNK_COLUMNS = 128;               // bytes of a row within a chunk
constexpr int CHUNK_BYTES = ROW_CAP * CHUNK_COLUMNS;

// Byte offset of (row, column) of an activation image.
__device__ __forceinline__ int activation_offset(int row, int column) {
  return (column >> 7) * CHUNK_BYTES + row * CHUNK_COLUMNS + ((column & 127) ^ ((row & 7) << 4));
}
