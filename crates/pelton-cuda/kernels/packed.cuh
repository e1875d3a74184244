// How block-quantized weights lie in memory, and the codes of one lane.
//
// A matrix (n, k) is tiles of 8 rows x 256 columns (one superblock of each row), row blocks first:
// tile (rb, sb) is at (rb * n_sb + sb) * BYTES. Lane 4 g + t of a warp owns, of row g and each half h (128 columns) of a
// superblock, in each of its four sub-blocks j of 32 columns, columns 4t.. and 16 + 4t.. : what the instruction mma
// calls the fragment of that lane, and what dp4a takes four at a time.
//
//   nibbles [2 h][32 lanes] 16 bytes   4-, 5-, 6-bit codes: word j: columns 4t+i in the low half of byte i, 16+4t+i in
//                                      the high half. By levels: columns 4t+i in nibble i, 16+4t+i in nibble 4+i.
//   bytes   [2 h][2 p][32 lanes] 16    8-bit codes: word j: columns 16p + 4t..
//   pairs   [2 h][32 lanes] 8 bytes    two (higher) bits of 2-, 3-, 6-bit codes: word p, byte i, bits 2j
//   bits    [2 h][32 lanes] 4 bytes    the highest bit of 3- and 5-bit codes: byte i, bit 2j + p
//   scales  [2 h][8 g][1 to 8]         whole numbers, int8 or (WIDE) int16: one for each STORED columns
//   minima  the same                   where the format has them
//   units   [8 g] f32; [8 g] f32 more for minima; narrow formats with minima: [8 g] (f16, f16)
//
// A weight is unit * scale * code - unit of minima * minimum. Where scales and minima have ONE_UNIT, a minimum is its
// scale times a zero point: a code at its zero point is exactly 0. Within a superblock all sums are exact integers:
// |scale * code| is at most 2^16, so 256 products with int8 fit 32 bits. The order of additions there is free.
#pragma once
#include "prelude.cuh"

// Unevenly spaced levels, four to a word.
struct NoLevels { static constexpr bool ANY = false; static constexpr uint32_t A = 0, B = 0, C = 0, D = 0; };
// IQ4_NL and IQ4_XS: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
struct NonLinear { static constexpr bool ANY = true; static constexpr uint32_t A = 0xbfad9881, B = 0xf6eaddcf, C = 0x26190d01, D = 0x71594535; };
// Twice the 4-bit floats of MXFP4: 0 1 2 3 4 6 8 12 and their negatives.
struct HalfFloats { static constexpr bool ANY = true; static constexpr uint32_t A = 0x03020100, B = 0x0c080604, C = 0xfdfeff00, D = 0xf4f8fafc; };

// Four codes less an offset, as signed bytes; the codes are below 128.
__device__ __forceinline__ uint32_t less(uint32_t codes, uint32_t offset) {
  return ((codes | 0x80808080u) - offset * 0x01010101u) ^ 0x80808080u;
}
// Four levels by four nibbles of the low half of `s`.
template <class L>
__device__ __forceinline__ uint32_t levels_of(uint32_t s) {
  return pick_bytes(L::A, L::B, L::C, L::D, s);
}

// SUB: columns that are added up before they are scaled; STORED, a multiple of it: columns that share a scale in memory.
template <int BITS_, int SUB_, bool AFFINE_, bool WIDE_, int OFFSET_, class LEVELS_ = NoLevels, int STORED_ = SUB_,
          bool ONE_UNIT_ = false>
struct Packed {
  static constexpr int BITS = BITS_, SUB = SUB_, OFFSET = OFFSET_, STORED = STORED_;
  static constexpr bool AFFINE = AFFINE_, WIDE = WIDE_, ONE_UNIT = ONE_UNIT_;
  static_assert(STORED == SUB || (WIDE && SUB == 32), "scales of more columns are int16");
  using Levels = LEVELS_;
  static constexpr bool HAS_NIBBLES = BITS == 4 || BITS == 5 || BITS == 6, HAS_BYTES = BITS == 8;
  static constexpr bool HAS_PAIRS = BITS == 2 || BITS == 3 || BITS == 6, HAS_BITS = BITS == 3 || BITS == 5;
  static constexpr int PER_HALF = 128 / SUB;  // scales of a row's half
  static constexpr int AT_PAIRS = HAS_NIBBLES ? 1024 : HAS_BYTES ? 2048 : 0;
  static constexpr int AT_BITS = AT_PAIRS + (HAS_PAIRS ? 512 : 0);
  static constexpr int AT_SCALES = AT_BITS + (HAS_BITS ? 256 : 0);
  static constexpr int SCALES_BYTES = 16 * (128 / STORED) * (WIDE ? 2 : 1);
  static constexpr int AT_MINIMA = AT_SCALES + SCALES_BYTES;
  static constexpr int AT_UNITS = AT_MINIMA + (AFFINE ? SCALES_BYTES : 0);
  static constexpr int BYTES = AT_UNITS + (AFFINE && WIDE && !ONE_UNIT ? 64 : 32);
};

// The codes of one lane in one half of a superblock.
template <class F>
struct Codes {
  uint32_t words[F::HAS_BYTES ? 8 : 4];
  uint32_t pairs[2];
  uint32_t bits;

  __device__ __forceinline__ void load(const uint8_t* tile, int half, int lane) {
    if constexpr (F::HAS_NIBBLES) {
      const uint4 v = load_once(reinterpret_cast<const uint4*>(tile) + half * 32 + lane);
      words[0] = v.x; words[1] = v.y; words[2] = v.z; words[3] = v.w;
    }
    if constexpr (F::HAS_BYTES) {
      const uint4* p = reinterpret_cast<const uint4*>(tile) + half * 64 + lane;
      const uint4 v = load_once(p), u = load_once(p + 32);
      words[0] = v.x; words[1] = v.y; words[2] = v.z; words[3] = v.w;
      words[4] = u.x; words[5] = u.y; words[6] = u.z; words[7] = u.w;
    }
    if constexpr (F::HAS_PAIRS) {
      const uint2 v = reinterpret_cast<const uint2*>(tile + F::AT_PAIRS)[half * 32 + lane];
      pairs[0] = v.x; pairs[1] = v.y;
    }
    if constexpr (F::HAS_BITS) bits = reinterpret_cast<const uint32_t*>(tile + F::AT_BITS)[half * 32 + lane];
  }

  // Four signed codes: columns 32 j + 16 p + 4 t.. of the half.
  __device__ __forceinline__ uint32_t four(int j, int p) const {
    if constexpr (F::Levels::ANY) return levels_of<typename F::Levels>(words[j] >> (16 * p));
    uint32_t v = 0;
    if constexpr (F::HAS_BYTES) v = words[4 * p + j];
    if constexpr (F::HAS_NIBBLES) v = words[j] >> (4 * p) & 0x0f0f0f0fu;
    if constexpr (F::HAS_PAIRS) v |= (pairs[p] >> (2 * j) & 0x03030303u) << (F::HAS_NIBBLES ? 4 : 0);
    if constexpr (F::HAS_BITS) v |= (bits >> (2 * j + p) & 0x01010101u) << (F::HAS_NIBBLES ? 4 : 2);
    if constexpr (F::OFFSET > 0) v = less(v, F::OFFSET);
    return v;
  }
};

// Scales (or minima) of row g's half: n whole numbers.
template <class F>
struct Scales {
  int v[F::PER_HALF];
  __device__ __forceinline__ void load(const uint8_t* at, int half, int g) {
    const int first = (half * 8 + g) * (128 / F::STORED);
    if constexpr (F::STORED == 128) {
      v[0] = v[1] = v[2] = v[3] = reinterpret_cast<const int16_t*>(at)[first];
    } else if constexpr (F::STORED == 64) {
      const uint32_t w = *reinterpret_cast<const uint32_t*>(reinterpret_cast<const int16_t*>(at) + first);
      v[0] = v[1] = (int16_t)w;
      v[2] = v[3] = (int)w >> 16;
    } else if constexpr (F::WIDE) {
      const int16_t* p = reinterpret_cast<const int16_t*>(at) + first;
#pragma unroll
      for (int i = 0; i < F::PER_HALF; i += 4) {
        const uint2 w = *reinterpret_cast<const uint2*>(p + i);
        v[i] = (int16_t)w.x; v[i + 1] = (int)w.x >> 16;
        v[i + 2] = (int16_t)w.y; v[i + 3] = (int)w.y >> 16;
      }
    } else {
      const uint8_t* p = at + first;
#pragma unroll
      for (int i = 0; i < F::PER_HALF; i += 4) {
        const uint32_t w = *reinterpret_cast<const uint32_t*>(p + i);
        v[i] = (int8_t)w; v[i + 1] = (int8_t)(w >> 8);
        v[i + 2] = (int8_t)(w >> 16); v[i + 3] = (int)w >> 24;
      }
    }
  }
};

template <class F>
__device__ __forceinline__ void load_units(const uint8_t* tile, int g, float& unit, float& unit_of_minima) {
  const uint8_t* at = tile + F::AT_UNITS;
  unit_of_minima = 0.f;
  if constexpr (F::AFFINE && !F::WIDE) {
    const uint32_t both = reinterpret_cast<const uint32_t*>(at)[g];
    half_t a, b;
    a.u = (uint16_t)both; b.u = (uint16_t)(both >> 16);
    unit = h2f(a);
    unit_of_minima = h2f(b);
  } else {
    unit = reinterpret_cast<const float*>(at)[g];
    if constexpr (F::AFFINE && !F::ONE_UNIT) unit_of_minima = reinterpret_cast<const float*>(at)[8 + g];
  }
}

// Rows of int8 activations: per superblock 256 codes in the order [2 h][4 t][4 j][2 p][4], so that lane t reads 32 bytes,
// of which 8 are its fragment of an mma; their unit; and their sums over 16 columns each, [16].
struct Rounded {
  const int8_t* codes;
  const float* units;
  const int16_t* sums;
};

// One superblock's part of a row's answer, in the one order in which every kernel adds.
template <class F>
__device__ __forceinline__ float add_superblock(float acc, float unit, float unit_of_minima, float x_unit, int sum, int minima) {
  if constexpr (F::ONE_UNIT) return __fmaf_rn(__fmul_rn(unit, x_unit), __int2float_rn(sum - minima), acc);
  acc = __fmaf_rn(__fmul_rn(unit, x_unit), __int2float_rn(sum), acc);
  if constexpr (F::AFFINE) acc = __fmaf_rn(-__fmul_rn(unit_of_minima, x_unit), __int2float_rn(minima), acc);
  return acc;
}

using Q4_0 = Packed<4, 32, false, true, 8>;
using Q4_1 = Packed<4, 32, true, true, 0>;
using Q5_0 = Packed<5, 32, false, true, 16>;
using Q5_1 = Packed<5, 32, true, true, 0>;
using Q8_0 = Packed<8, 32, false, true, 0>;
using Q2_K = Packed<2, 16, true, false, 0>;
using Q3_K = Packed<3, 16, false, false, 4>;
using Q4_K = Packed<4, 32, true, false, 0>;
using Q5_K = Packed<5, 32, true, false, 0>;
using Q6_K = Packed<6, 16, false, false, 32>;
using IQ4_NL = Packed<4, 32, false, true, 0, NonLinear>;
using IQ4_XS = Packed<4, 32, false, false, 0, NonLinear>;
using MXFP4 = Packed<4, 32, false, true, 0, HalfFloats>;
// Integers in groups of columns: about the middle of their range, or (Z) with zero points. Groups of 32 and 64 columns about
// the middle are Q4_0 and Q8_0.
using INT4_128 = Packed<4, 32, false, true, 8, NoLevels, 128>;
using INT8_128 = Packed<8, 32, false, true, 0, NoLevels, 128>;
using INT2Z_128 = Packed<2, 32, true, true, 0, NoLevels, 128, true>;
using INT3Z_128 = Packed<3, 32, true, true, 0, NoLevels, 128, true>;
using INT4Z_32 = Packed<4, 32, true, true, 0, NoLevels, 32, true>;
using INT4Z_64 = Packed<4, 32, true, true, 0, NoLevels, 64, true>;
using INT4Z_128 = Packed<4, 32, true, true, 0, NoLevels, 128, true>;
using INT8Z_32 = Packed<8, 32, true, true, 0, NoLevels, 32, true>;
using INT8Z_128 = Packed<8, 32, true, true, 0, NoLevels, 128, true>;

#define EACH_FORMAT(X) \
  X(q4_0, Q4_0) X(q4_1, Q4_1) X(q5_0, Q5_0) X(q5_1, Q5_1) X(q8_0, Q8_0) X(q2_k, Q2_K) X(q3_k, Q3_K) X(q4_k, Q4_K) \
  X(q5_k, Q5_K) X(q6_k, Q6_K) X(iq4_nl, IQ4_NL) X(iq4_xs, IQ4_XS) X(mxfp4, MXFP4) X(int4_128, INT4_128)                  \
  X(int8_128, INT8_128) X(int2z_128, INT2Z_128) X(int3z_128, INT3Z_128) X(int4z_32, INT4Z_32) X(int4z_64, INT4Z_64)      \
  X(int4z_128, INT4Z_128) X(int8z_32, INT8Z_32) X(int8z_128, INT8Z_128)
