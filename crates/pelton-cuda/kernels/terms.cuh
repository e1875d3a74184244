// How 16-bit floats, and codes of 8 and 4 bits for floats, lie in memory for tensor cores, and what they are multiplied by.
//
// A matrix (n, k) is tiles of 16 rows x 32 columns, row blocks first; rows are padded with zeros to 16, columns to 64: tile
// (rb, kt) at (rb * n_kt + kt) * BYTES. Lane 4 g + t of a warp owns columns 8t.. of rows g and g + 8, four of them in each of
// two steps: the fragment of that lane in one m16n8k16, whose columns stand for ours in an order of their own, the same for
// weights and activations: columns 8t + 4s.. (two) of row g, the same of g + 8, then the two columns after these of both.
//   16 bits  [2 steps][32 lanes] 16 bytes
//   8 bits   [32 lanes] 16 bytes, of which the last 8 are of step 1
//   4 bits   [32 lanes] 8 bytes likewise, the first element in the lowest bits
// Behind the tiles of codes lie their scales, f32, one for each row and group of whole chunks: [row blocks][groups][16 rows].
//
// Activations are cut into two terms of bf16, x = hi + lo, some 2^-17 off: for each 32 columns of a row [4 t][hi 8, lo 8].
// Weights are one term (bf16; 8-bit floats; levels of FP4, times 12) or two (f16: 11 bits are 8 and 3; levels of NF4, to 2^-18),
// exact but for NF4. All kernels add in one order:
//
//   a chunk is 64 columns:  c = 0;  for each tile, step and term w of weights:  c += w hi;  c += w lo     mma, f32
//   chunk i belongs to class i % 4:  acc += c, or acc = fma(scale, c, acc), chunks in order
//   answer = ((class 0 + class 1) + class 2) + class 3, then the bias
//
// so that the instruction's own sums are short, and the number of rows changes no bit.
#pragma once
#include "prelude.cuh"

// Element types: WORDS of a lane in a step, and how they become fragments, one for each term.
struct Bf16 {
  static constexpr int WORDS = 4, TERMS = 1;
  static constexpr bool SCALED = false;
  static __device__ __forceinline__ void terms(uint32_t (&a)[TERMS][4], const uint32_t (&words)[WORDS]) {
#pragma unroll
    for (int r = 0; r < 4; r++) a[0][r] = words[r];
  }
};
struct F16 {
  static constexpr int WORDS = 4, TERMS = 2;
  static constexpr bool SCALED = false;
  static __device__ __forceinline__ void terms(uint32_t (&a)[TERMS][4], const uint32_t (&words)[WORDS]) {
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

// A sign, 4 bits of exponent, 3 of mantissa: at their places in a bf16 they are 2^-120 of the number. (No code is no number:
// packing makes the scale none.)
struct E4m3 {
  static constexpr int WORDS = 2, TERMS = 1;
  static constexpr bool SCALED = true;
  static __device__ __forceinline__ void terms(uint32_t (&a)[TERMS][4], const uint32_t (&words)[WORDS]) {
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const uint32_t codes = __byte_perm(words[r >> 1], 0, r & 1 ? 0x3424 : 0x1404);
      a[0][r] = multiply_bf16x2((codes & 0x80008000u) | (codes >> 4 & 0x07f007f0u), 0x7b807b80u);
    }
  }
};
// Sixteen levels as numbers of bf16, a term after the other: bytes, four to a word; the lower ones, then the upper ones.
struct Nf4Levels {
  static constexpr int TERMS = 2;
  static __device__ __forceinline__ constexpr uint32_t low(int term, int i) {
    constexpr uint32_t words[2][4] = {{0xca063280, 0x00ba3d92, 0xad7c25a3, 0x803910e2}, {0xcad66700, 0x0071553b, 0xce9c5420, 0x009ef537}};
    return words[term][i];
  }
  static __device__ __forceinline__ constexpr uint32_t high(int term, int i) {
    constexpr uint32_t words[2][4] = {{0xbebfbfbf, 0x00bdbebe, 0x3e3e3e3d, 0x3f3f3f3e}, {0xb9baba00, 0x00b9b93a, 0x3737b9b7, 0x003938ba}};
    return words[term][i];
  }
};
// Twelve times the levels: 0 1/16 8 12 4 6 2 3 and their negatives.
struct Fp4Levels {
  static constexpr int TERMS = 1;
  static __device__ __forceinline__ constexpr uint32_t low(int, int i) { return i & 1 ? 0x4000c080 : 0x40008000; }
  static __device__ __forceinline__ constexpr uint32_t high(int, int i) { return (i & 1 ? 0x40404040 : 0x41413d00) | (i == 3 ? 0x80808080 : i == 2 ? 0x80808000 : 0); }
};
template <class L>
struct Levels {
  static constexpr int WORDS = 1, TERMS = L::TERMS;
  static constexpr bool SCALED = true;
  static __device__ __forceinline__ void terms(uint32_t (&a)[TERMS][4], const uint32_t (&words)[WORDS]) {
#pragma unroll
    for (int w = 0; w < TERMS; w++)
#pragma unroll
      for (int r = 0; r < 4; r += 2) {
        const uint32_t s = words[0] >> (8 * r);
        const uint32_t low = pick_bytes(L::low(w, 0), L::low(w, 1), L::low(w, 2), L::low(w, 3), s);
        const uint32_t high = pick_bytes(L::high(w, 0), L::high(w, 1), L::high(w, 2), L::high(w, 3), s);
        a[w][r] = __byte_perm(low, high, 0x5140);
        a[w][r + 1] = __byte_perm(low, high, 0x7362);
      }
  }
};
using Nf4 = Levels<Nf4Levels>;
using Fp4 = Levels<Fp4Levels>;

// Bytes of a tile.
template <class W>
constexpr int BYTES = 256 * W::WORDS;

// A lane's part of a tile in global or shared memory.
template <class W, bool IS_GLOBAL>
__device__ __forceinline__ void load_tile(uint32_t (&words)[2][W::WORDS], const uint8_t* tile, int lane) {
  if constexpr (W::WORDS == 1) {
    const uint2 v = reinterpret_cast<const uint2*>(tile)[lane];
    words[0][0] = v.x;
    words[1][0] = v.y;
  } else {
    uint4 v[W::WORDS / 2];
#pragma unroll
    for (int i = 0; i < W::WORDS / 2; i++) {
      const uint4* at = reinterpret_cast<const uint4*>(tile) + 32 * i + lane;
      v[i] = IS_GLOBAL ? load_once(at) : *at;
    }
#pragma unroll
    for (int i = 0; i < 2 * W::WORDS; i++) words[i / W::WORDS][i % W::WORDS] = (&v[i / 4].x)[i % 4];
  }
}

// Scales of rows g and g + 8 of a row block, for the group of a chunk.
template <class W>
__device__ __forceinline__ void load_scales(float (&scale)[2], const uint8_t* weights, int n, int n_chunks, int per_group, int block, int chunk) {
  if constexpr (W::SCALED) {
    const int n_groups = (n_chunks + per_group - 1) / per_group, g = (threadIdx.x & 31) >> 2;
    const float* scales = reinterpret_cast<const float*>(weights + (size_t)((n + 15) >> 4) * n_chunks * 2 * BYTES<W>);
    const float* at = scales + ((size_t)block * n_groups + chunk / per_group) * 16 + g;
    scale[0] = at[0];
    scale[1] = at[8];
  }
}

// Adds a chunk's sums to those of its class; element e of a fragment is of row g or g + 8.
template <class W>
__device__ __forceinline__ void add_chunk(float (&acc)[4], const float (&c)[4], const float (&scale)[2]) {
#pragma unroll
  for (int e = 0; e < 4; e++) acc[e] = W::SCALED ? __fmaf_rn(scale[e >> 1], c[e], acc[e]) : acc[e] + c[e];
}

// c += one tile of weights times 8 rows of activations: `hi` and `lo` are this lane's 8 columns of its row.
template <class W>
__device__ __forceinline__ void multiply_step(float (&c)[4], const uint32_t (&a)[W::TERMS][4], int step, const uint4& hi, const uint4& lo) {
#pragma unroll
  for (int w = 0; w < W::TERMS; w++) {
    mma_bf16(c, a[w], step ? hi.z : hi.x, step ? hi.w : hi.y);
    mma_bf16(c, a[w], step ? lo.z : lo.x, step ? lo.w : lo.y);
  }
}
