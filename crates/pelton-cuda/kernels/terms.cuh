// How 16-bit floats lie in memory for tensor cores, and what they are multiplied by.
//
// A matrix (n, k) is tiles of 16 rows x 32 columns, row blocks first; rows are padded with zeros to 16, columns to 64: tile
// (rb, kt) at (rb * n_kt + kt) * BYTES. Lane 4 g + t of a warp owns columns 8t.. of rows g and g + 8, four of them in each of
// two steps: the fragment of that lane in one m16n8k16, whose columns stand for ours in an order of their own, the same for
// weights and activations. [2 steps][32 lanes] 16 bytes: columns 8t + 4s.. (two) of row g, the same of g + 8, then the two
// columns after these of both.
//
// Activations are cut into two terms of bf16, x = hi + lo, some 2^-17 off: for each 32 columns of a row [4 t][hi 8, lo 8].
// Weights are one term (bf16) or two (f16: 11 bits are 8 and 3), exact. All kernels add in one order:
//
//   a chunk is 64 columns:  c = 0;  for each tile, step and term w of weights:  c += w hi;  c += w lo     mma, f32
//   chunk i belongs to class i % 4:  acc += c, chunks in order
//   answer = ((class 0 + class 1) + class 2) + class 3, then the bias
//
// so that the instruction's own sums are short, and the number of rows changes no bit.
#pragma once
#include "prelude.cuh"

struct Bf16 {
  static constexpr int BYTES = 1024, TERMS = 1;
  // The fragments of a step from what lies in memory.
  static __device__ __forceinline__ void terms(uint32_t (&a)[TERMS][4], const uint4& v) {
    a[0][0] = v.x; a[0][1] = v.y; a[0][2] = v.z; a[0][3] = v.w;
  }
};
struct F16 {
  static constexpr int BYTES = 1024, TERMS = 2;
  static __device__ __forceinline__ void terms(uint32_t (&a)[TERMS][4], const uint4& v) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int r = 0; r < 4; r++) {
      half_t h[2];
      h[0].u = (uint16_t)words[r];
      h[1].u = (uint16_t)(words[r] >> 16);
      uint32_t first[2], rest[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float w = h2f(h[e]);
        first[e] = __float_as_uint(w);
        rest[e] = __float_as_uint(w - __uint_as_float(first[e] & 0xffff0000u));
      }
      a[0][r] = __byte_perm(first[0], first[1], 0x7632);
      a[1][r] = __byte_perm(rest[0], rest[1], 0x7632);
    }
  }
};

// c += one tile of weights times 8 rows of activations: `hi` and `lo` are this lane's 8 columns of its row.
template <class W>
__device__ __forceinline__ void multiply_step(float (&c)[4], const uint32_t (&a)[W::TERMS][4], int step, const uint4& hi, const uint4& lo) {
#pragma unroll
  for (int w = 0; w < W::TERMS; w++) {
    mma_bf16(c, a[w], step ? hi.z : hi.x, step ? hi.w : hi.y);
    mma_bf16(c, a[w], step ? lo.z : lo.x, step ? lo.w : lo.y);
  }
}
