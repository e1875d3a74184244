#include "packed.cuh"
#include "ring.cuh"
// Block-quantized matrices times many rows (prompts) on tensor cores: bound by arithmetic. A unit is a superblock.
//
// The integers are those of matmul_few.cu: fragments as they lie in memory, sums over a sub-block by the instruction, scales
// by multiply-add; once a superblock the sum becomes a float (add_superblock). Only the products of minima differ, which are
// exact integers too, and a small matrix product of their own.
//
// A stage of the ring:
//   [16 row blocks] of a half's tile: words, pairs, bits and scales of the half; with the second half all minima and units
//   [64 rows] codes, ROW_BYTES
//   [64 rows] units; sums (formats with minima): with the second half

constexpr int STAGES = 3;

template <class F>
struct Stage {
  // Within a half's tile.
  static constexpr int AT_PAIRS = F::AT_PAIRS / 2, AT_BITS = F::AT_BITS / 2, AT_SCALES = F::AT_SCALES / 2;
  static constexpr int AT_MINIMA = AT_SCALES + F::SCALES_BYTES / 2, AT_UNITS = AT_MINIMA + (F::AFFINE ? F::SCALES_BYTES : 0);
  static constexpr int TILE = AT_UNITS + (F::BYTES - F::AT_UNITS);
  // Within a stage.
  static constexpr int AT_CODES = COLUMNS / 8 * TILE, AT_X_UNITS = AT_CODES + ROWS * ROW_BYTES, AT_SUMS = AT_X_UNITS + ROWS * 4;
  static constexpr int BYTES = AT_SUMS + (F::AFFINE ? ROWS * 32 : 0);
  // Pieces of 16 bytes of a half's tile besides the words: those of both halves, and all.
  static constexpr int OF_BOTH = (AT_MINIMA - AT_PAIRS) / 16, PIECES = (TILE - AT_PAIRS) / 16;
  static_assert(PIECES <= 32, "a lane has one piece");
};

// What one thread copies of weights, sums and units: addresses at superblock 0.
template <class F>
struct Copier {
  using S = Stage<F>;
  const uint8_t* tiles[2];
  const uint8_t* others;  // sums or units, by thread
  int piece, step;        // where a lane's piece lies in a tile, and how much further in the second half

  __device__ __forceinline__ Copier(const uint8_t* weights, Rounded x, int n, int n_sb, const Group& group) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, i = threadIdx.x;
    const int blocks = (n + 7) >> 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int block = min((int)blockIdx.y * (COLUMNS / 8) + 2 * warp + r, blocks - 1);
      tiles[r] = weights + (size_t)block * n_sb * F::BYTES;
    }
    others = i < 128 ? reinterpret_cast<const uint8_t*>(x.sums + (size_t)group.row(i >> 1) * n_sb * 16 + 8 * (i & 1))
                     : reinterpret_cast<const uint8_t*>(x.units + (size_t)group.row(i & 63) * n_sb);
    constexpr int PAIRS = (S::AT_BITS - S::AT_PAIRS) / 16, BITS = (S::AT_SCALES - S::AT_PAIRS) / 16;
    if (lane < PAIRS) piece = F::AT_PAIRS, step = 16 * PAIRS;
    else if (lane < BITS) piece = F::AT_BITS - 16 * PAIRS, step = 16 * (BITS - PAIRS);
    else if (lane < S::OF_BOTH) piece = F::AT_SCALES - 16 * BITS, step = F::SCALES_BYTES / 2;
    else piece = F::AT_MINIMA - 16 * S::OF_BOTH, step = 0;
    piece += 16 * lane;
  }

  __device__ __forceinline__ void issue(unsigned char* stage, Position p) const {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, i = threadIdx.x, h = p.half;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t* tile = tiles[r] + (size_t)p.unit * F::BYTES;
      unsigned char* to = stage + (2 * warp + r) * S::TILE;
#pragma unroll
      for (int at = 0; at < S::AT_PAIRS; at += 512) copy_async16(to + at + 16 * lane, tile + h * S::AT_PAIRS + at + 16 * lane, true);
      if (lane < (h ? S::PIECES : S::OF_BOTH)) copy_async16(to + S::AT_PAIRS + 16 * lane, tile + piece + h * step, true);
    }
    if (h == 0) return;
    if (i < 128) {
      if constexpr (F::AFFINE) copy_async16(stage + S::AT_SUMS + 16 * i, others + (size_t)p.unit * 32, true);
    } else if (i < 192) {
      copy_async4(stage + S::AT_X_UNITS + 4 * (i & 63), others + (size_t)p.unit * 4);
    }
  }
};

// The minima of a superblock times the sums of activations: a product of 8 or 16 whole numbers, on tensor cores too. Sums
// are 128 high + low, both within 8 bits; minima of narrow formats have 8 bits. Fragments of 16 rows' minima:
template <class F>
__device__ __forceinline__ void load_minima(uint32_t (&a)[2], const unsigned char* tiles, int g, int t) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const uint32_t* at = reinterpret_cast<const uint32_t*>(tiles + r * Stage<F>::TILE + Stage<F>::AT_MINIMA);
    a[r] = F::SUB == 16 ? at[((t >> 1) * 8 + g) * 2 + (t & 1)] : t < 2 ? at[t * 8 + g] : 0;
  }
}

// The digits of a row's sums: of columns 64 t.. by 16, or 128 t.. by 32 (where t is below 2; those beyond meet zeros).
template <class F>
__device__ __forceinline__ void digits(const unsigned char* sums, int t, uint32_t& high, uint32_t& low) {
  uint32_t pairs[2];
  if constexpr (F::SUB == 16) {
    const uint2 v = reinterpret_cast<const uint2*>(sums)[t];
    pairs[0] = v.x;
    pairs[1] = v.y;
  } else {
    const uint4 v = reinterpret_cast<const uint4*>(sums)[t & 1];
    // The upper halves are the sums of both.
    pairs[0] = __byte_perm(v.x + (v.x << 16), v.y + (v.y << 16), 0x7632);
    pairs[1] = __byte_perm(v.z + (v.z << 16), v.w + (v.w << 16), 0x7632);
  }
  low = __byte_perm(pairs[0], pairs[1], 0x6420) & 0x7f7f7f7fu;
  high = __byte_perm(pairs[0] << 1, pairs[1] << 1, 0x7531);
}

// Minima of 16 bits, one by one: of weights' row g of a tile and one row's sums.
template <class F>
__device__ __forceinline__ int wide_minimum(const unsigned char* tile, int g, const unsigned char* sums) {
  int sum = 0;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    Scales<F> minima;
    minima.load(tile + Stage<F>::AT_MINIMA, h, g);
    const uint4 packed = reinterpret_cast<const uint4*>(sums)[h];
    const uint32_t pair[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int j = 0; j < 4; j++) sum += minima.v[j] * ((int16_t)pair[j] + ((int)pair[j] >> 16));
  }
  return sum;
}

// Adds a half's products to the sums of a superblock: the warp's two tiles times all rows of the stage.
template <class F>
__device__ __forceinline__ void multiply_half(Sums<1, int>& sum, const unsigned char* tiles, const unsigned char* x) {
  using S = Stage<F>;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  // Fragments of the half: for each 32 columns rows g and g + 8, columns 4t.. of both, then 16 + 4t...
  uint32_t a[4][4];
  Scales<F> scales[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const unsigned char* tile = tiles + r * S::TILE;
    Codes<F> codes;
#pragma unroll
    for (int at = 0; at < S::AT_PAIRS; at += 512) {
      const uint4 v = *reinterpret_cast<const uint4*>(tile + at + 16 * lane);
      uint32_t* words = codes.words + at / 128;
      words[0] = v.x; words[1] = v.y; words[2] = v.z; words[3] = v.w;
    }
    if constexpr (F::HAS_PAIRS) {
      const uint2 v = reinterpret_cast<const uint2*>(tile + S::AT_PAIRS)[lane];
      codes.pairs[0] = v.x; codes.pairs[1] = v.y;
    }
    if constexpr (F::HAS_BITS) codes.bits = reinterpret_cast<const uint32_t*>(tile + S::AT_BITS)[lane];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int p = 0; p < 2; p++) a[j][2 * p + r] = codes.four(j, p);
    scales[r].load(tile + S::AT_SCALES, 0, g);
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int4* xs = reinterpret_cast<const int4*>(x + (8 * i + g) * ROW_BYTES + 32 * t);
    const int4 near = xs[0], far = xs[1];
    const int lows[4] = {near.x, near.z, far.x, far.z}, highs[4] = {near.y, near.w, far.y, far.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if constexpr (F::SUB == 32) {
        int c[4] = {0, 0, 0, 0};
        mma_s8_k32(c, a[j], lows[j], highs[j]);
#pragma unroll
        for (int e = 0; e < 4; e++) sum[0][i][e] += scales[e >> 1].v[j] * c[e];
      } else {
        int c[4] = {0, 0, 0, 0}, d[4] = {0, 0, 0, 0};
        mma_s8_k16(c, a[j][0], a[j][1], lows[j]);
        mma_s8_k16(d, a[j][2], a[j][3], highs[j]);
#pragma unroll
        for (int e = 0; e < 4; e++)
          sum[0][i][e] += scales[e >> 1].v[2 * j % F::PER_HALF] * c[e] + scales[e >> 1].v[(2 * j + 1) % F::PER_HALF] * d[e];
      }
    }
  }
}

// Adds a superblock to the sums of its class. `stage` holds its second half.
template <class F>
__device__ __forceinline__ void add_sums(Sums<1>& acc, const Sums<1, int>& sum, const unsigned char* stage, const unsigned char* tiles) {
  using S = Stage<F>;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const float* x_units = reinterpret_cast<const float*>(stage + S::AT_X_UNITS);
  const unsigned char* sums = stage + S::AT_SUMS;
  float unit[2], unit_of_minima[2];
#pragma unroll
  for (int r = 0; r < 2; r++) load_units<F>(tiles + r * S::TILE + S::AT_UNITS - F::AT_UNITS, g, unit[r], unit_of_minima[r]);
  uint32_t a[2];
  if constexpr (F::AFFINE && !F::WIDE) load_minima<F>(a, tiles, g, t);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    int c[4] = {0, 0, 0, 0};
    if constexpr (F::AFFINE && !F::WIDE) {
      uint32_t high, low;
      digits<F>(sums + (8 * i + g) * 32, t, high, low);
      mma_s8_k16(c, a[0], a[1], high);
#pragma unroll
      for (int e = 0; e < 4; e++) c[e] *= 128;
      mma_s8_k16(c, a[0], a[1], low);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int r = e >> 1, at = 8 * i + 2 * t + (e & 1);
      if constexpr (F::AFFINE && F::WIDE) c[e] = wide_minimum<F>(tiles + r * S::TILE, g, sums + at * 32);
      acc[0][i][e] = add_superblock<F>(acc[0][i][e], unit[r], unit_of_minima[r], x_units[at], sum[0][i][e], c[e]);
    }
  }
}

template <class F>
__device__ __forceinline__ void matmul_many(const uint8_t* weights, Experts experts, Rounded x, const float* bias,
                                            float* __restrict__ out, int n, int n_sb, int tokens, int width, int column) {
  using S = Stage<F>;
  DYNAMIC_SHARED(ring);
  SHARED(Answers, answers, [1]);
  Group group;
  if (!find_group(group, answers[0], experts, tokens, weights, bias)) return;
  const Copier<F> copier(weights, x, n, n_sb, group);
  const Rows rows(x.codes, n_sb, group);
  const Part<1> part;
  Sums<1> total;
  Sums<1, int> sum;
  walk<1, STAGES, S::BYTES, F::SUB == 16 ? 1 : 2>(
      total, ring, n_sb,
      [&](unsigned char* stage, Position p) {
        copier.issue(stage, p);
        rows.issue(stage + S::AT_CODES, p);
      },
      [&](Sums<1>& acc, const unsigned char* stage, Position p) {
        if (p.half == 0) {
#pragma unroll
          for (int i = 0; i < 32; i++) sum[0][i >> 2][i & 3] = 0;
        }
        const unsigned char* tiles = stage + part.column / 8 * S::TILE;
        multiply_half<F>(sum, tiles, stage + S::AT_CODES);
        if (p.half == 1) add_sums<F>(acc, sum, stage, tiles);
      });
  store<1>(total, part, answers[0], out, n, width, column);
}

#define MATMUL(name, F)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(256) name(                                                                    \
      const uint8_t* weights, const uint8_t* const* experts, const float* const* biases, const int4* groups, const int* order,\
      int share, const int8_t* codes, const float* units, const int16_t* sums, const float* bias, float* out, int n,         \
      int n_sb, int tokens, int width, int column) {                                                                         \
    wait_for_predecessor();                                                                                                  \
    matmul_many<F>(weights, Experts{experts, biases, groups, order, share}, Rounded{codes, units, sums}, bias, out, n, n_sb, tokens, width,\
                   column);                                                                                                  \
  }                                                                                                                          \
  KERNEL(name)
#define OF_FORMAT(low, F) MATMUL(matmul_##low##_many, F)
EACH_FORMAT(OF_FORMAT)
