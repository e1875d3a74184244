#include "ring.cuh"
#include "terms.cuh"
// Matrices of floats of 16, 8 and 4 bits times many rows (prompts), on tensor cores: bound by arithmetic. A unit is a chunk.
//
// A stage of the ring: [8 row blocks] a tile, [64 rows] terms of 32 columns, ROW_BYTES.

constexpr int STAGES = 4;

template <class W>
__device__ __forceinline__ void matmul_many(const uint8_t* weights, Experts experts, const uint8_t* __restrict__ x, const float* bias,
                                            float* __restrict__ out, int n, int n_chunks, int per_group, int tokens, int width, int column) {
  constexpr int AT_ROWS = COLUMNS / 16 * BYTES<W>, STAGE_BYTES = AT_ROWS + ROWS * ROW_BYTES;
  DYNAMIC_SHARED(ring);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const Part<2> part;
  SHARED(Answers, answers, [1]);
  Group group;
  if (!find_group(group, answers[0], experts, tokens, weights, bias)) return;
  const Rows rows(x, n_chunks, group);
  // Each warp copies a row block; those past the last repeat it.
  const int blocks = (n + 15) >> 4, block = min((int)blockIdx.y * (COLUMNS / 16) + warp, blocks - 1);
  const uint8_t* tiles = weights + (size_t)block * n_chunks * 2 * BYTES<W> + 16 * lane;
  Sums<2> total, c;
  float scale[2][2];
  walk<2, STAGES, STAGE_BYTES, 2>(
      total, ring, n_chunks,
      [&](unsigned char* stage, Position p) {
#pragma unroll
        for (int at = 0; at < BYTES<W>; at += 512)
          // Tiles of 4 bits are half as long.
          if (BYTES<W> >= 512 || lane < 16)
            copy_async16(stage + warp * BYTES<W> + at + 16 * lane, tiles + (size_t)(2 * p.unit + p.half) * BYTES<W> + at, true);
        rows.issue(stage + AT_ROWS, p);
      },
      [&](Sums<2>& acc, const unsigned char* stage, Position p) {
        if (p.half == 0) {
#pragma unroll
          for (int i = 0; i < 32; i++) c[i >> 4][i >> 2 & 3][i & 3] = 0.f;
          // Needed when the chunk is done.
#pragma unroll
          for (int m = 0; m < 2; m++)
            load_scales<W>(scale[m], weights, n, n_chunks, per_group, min((int)blockIdx.y * (COLUMNS / 16) + part.column / 16 + m, blocks - 1), p.unit);
        }
        uint32_t words[2][2][W::WORDS], a[2][2][W::TERMS][4];
#pragma unroll
        for (int m = 0; m < 2; m++) load_tile<W, false>(words[m], stage + (part.column / 16 + m) * BYTES<W>, lane);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
          for (int s = 0; s < 2; s++)
            W::terms(a[m][s], words[m][s]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint4* xs = reinterpret_cast<const uint4*>(stage + AT_ROWS + (part.row + 8 * i + g) * ROW_BYTES + 32 * t);
          const uint4 hi = xs[0], lo = xs[1];
#pragma unroll
          for (int s = 0; s < 2; s++)
#pragma unroll
            for (int m = 0; m < 2; m++) multiply_step<W>(c[m][i], a[m][s], s, hi, lo);
        }
        if (p.half == 1) {
#pragma unroll
          for (int i = 0; i < 8; i++) add_chunk<W>(acc[i >> 2][i & 3], c[i >> 2][i & 3], scale[i >> 2]);
        }
      });
  store<2>(total, part, answers[0], out, n, width, column);
}

#define MATMUL(name, W)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(256) name(                                                                    \
      const uint8_t* weights, const uint8_t* const* experts, const float* const* biases, const int4* groups, const int* order,\
      int share, const uint8_t* x, const float* bias, float* out, int n,                                                     \
      int n_chunks, int per_group, int tokens, int width, int column) {                                                      \
    wait_for_predecessor();                                                                                                  \
    matmul_many<W>(weights, Experts{experts, biases, groups, order, share}, x, bias, out, n, n_chunks, per_group, tokens, width,        \
                   column);                                                                                                  \
  }                                                                                                                          \
  KERNEL(name)
MATMUL(terms_bf16_many, Bf16)
MATMUL(terms_f16_many, F16)
MATMUL(terms_e4m3_many, E4m3)
MATMUL(terms_nf4_many, Nf4)
MATMUL(terms_fp4_many, Fp4)
