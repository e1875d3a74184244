#include "activation.cuh"
#include "packed.cuh"
// Block-quantized matrices times one to four rows: bound by reading the weights.
//
// A block makes 8 columns of the answer; warp w takes superblocks w, w + 4, ... (its class), lane 4 g + t a quarter of
// row g. Classes are added in order: ((0 + 1) + 2) + 3, then the bias. matmul_few.cu and matmul_many.cu add the same
// numbers in the same order, so that the number of rows changes no bit.
//
//   for each superblock of the class:   exact integers, each lane its columns; shuffles add up the quarters
//     acc += unit * x unit * sum        add_superblock

// `n_tokens` rows from `first` on; sums of the class in acc.
template <class F, int TOKENS>
__device__ __forceinline__ void multiply_class(float (&acc)[TOKENS], const uint8_t* __restrict__ weights, Rounded x, int n_sb,
                                               int first, int n_tokens) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < TOKENS; i++) acc[i] = 0.f;
  for (int sb = threadIdx.x >> 5; sb < n_sb; sb += 4) {
    const uint8_t* tile = weights + ((size_t)blockIdx.x * n_sb + sb) * F::BYTES;
    int sum[TOKENS], minima[TOKENS];
#pragma unroll
    for (int i = 0; i < TOKENS; i++) sum[i] = minima[i] = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Codes<F> codes;
      codes.load(tile, h, lane);
      Scales<F> scales;
      scales.load(tile + F::AT_SCALES, h, g);
      int minimum[2] = {0, 0};
      if constexpr (F::AFFINE) {
        // Lane t multiplies the minima of sub-block t.
        Scales<F> all;
        all.load(tile + F::AT_MINIMA, h, g);
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (j == t) {
            minimum[0] = F::SUB == 32 ? all.v[j] : all.v[2 * j % F::PER_HALF];
            minimum[1] = F::SUB == 32 ? all.v[j] : all.v[(2 * j + 1) % F::PER_HALF];
          }
      }
#pragma unroll
      for (int i = 0; i < TOKENS; i++) {
        if (i >= n_tokens) continue;
        const size_t at = (size_t)(first + i) * n_sb + sb;
        const int4* xs = reinterpret_cast<const int4*>(x.codes + at * 256 + h * 128 + t * 32);
        const int4 near = xs[0], far = xs[1];
        const int lows[4] = {near.x, near.z, far.x, far.z}, highs[4] = {near.y, near.w, far.y, far.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int a = __dp4a((int)codes.four(j, 0), lows[j], 0);
          if constexpr (F::SUB == 32) {
            sum[i] += scales.v[j] * __dp4a((int)codes.four(j, 1), highs[j], a);
          } else {
            const int b = __dp4a((int)codes.four(j, 1), highs[j], 0);
            sum[i] += scales.v[2 * j % F::PER_HALF] * a + scales.v[(2 * j + 1) % F::PER_HALF] * b;
          }
        }
        if constexpr (F::AFFINE) {
          const int16_t* s = x.sums + at * 16 + h * 8 + t * 2;
          minima[i] += minimum[0] * s[0] + minimum[1] * s[1];
        }
      }
    }
    float unit, unit_of_minima;
    load_units<F>(tile, g, unit, unit_of_minima);
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
      sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 1);
      sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 2);
      if constexpr (F::AFFINE) {
        minima[i] += __shfl_xor_sync(ALL_LANES, minima[i], 1);
        minima[i] += __shfl_xor_sync(ALL_LANES, minima[i], 2);
      }
      if (i < n_tokens)
        acc[i] = add_superblock<F>(acc[i], unit, unit_of_minima, x.units[(size_t)(first + i) * n_sb + sb], sum[i], minima[i]);
    }
  }
}

// The classes' sums, added in order; for thread 8 i + g, of token i and row g. All threads call it.
template <int TOKENS>
__device__ __forceinline__ float add_classes(const float (&acc)[TOKENS], float (*classes)[TOKENS][8]) {
  const int lane = threadIdx.x & 31;
  if ((lane & 3) == 0) {
#pragma unroll
    for (int i = 0; i < TOKENS; i++) classes[threadIdx.x >> 5][i][lane >> 2] = acc[i];
  }
  __syncthreads();
  if (threadIdx.x >= 8 * TOKENS) return 0.f;
  const int i = threadIdx.x >> 3, g = threadIdx.x & 7;
  return ((classes[0][i][g] + classes[1][i][g]) + classes[2][i][g]) + classes[3][i][g];
}

// Grid (row blocks, groups of TOKENS rows). out (tokens, width): columns column...
// Where `experts` are given: block y is slot y, TOKENS is 1; its weights are those of experts[picks[y]], its input row
// y / share; an expert without weights in this format is left to another launch.
template <class F, int TOKENS>
__device__ __forceinline__ void matvec(const uint8_t* weights, const uint8_t* const* experts, const float* const* biases, const int* picks, int share,
                                       Rounded x, const float* bias, float* out, int n, int n_sb, int tokens, int width, int column) {
  SHARED(float, classes, [4][TOKENS][8]);
  int from = blockIdx.y * TOKENS;
  const int to = from;
  if (experts) {
    weights = experts[picks[blockIdx.y]];
    if (!weights) return;
    bias = biases[picks[blockIdx.y]];
    from = blockIdx.y / share;
  }
  const int n_tokens = min(TOKENS, tokens - to);
  float acc[TOKENS];
  multiply_class<F, TOKENS>(acc, weights, x, n_sb, from, n_tokens);
  float v = add_classes<TOKENS>(acc, classes);
  const int i = threadIdx.x >> 3, row = blockIdx.x * 8 + (threadIdx.x & 7);
  if (i >= n_tokens || row >= n) return;
  if (bias) v += bias[row];
  out[(size_t)(to + i) * width + column + row] = v;
}

// out[r] = activation(gate x + bias) * (up x + bias), one row: out (ffn,).
template <class F>
__device__ __forceinline__ void gated_matvec(const uint8_t* gate_weights, const uint8_t* up_weights, Rounded x, const float* bias,
                                             float* out, int ffn, int n_sb, int kind) {
  SHARED(float, gates, [4][1][8]);
  SHARED(float, ups, [4][1][8]);
  float acc[1];
  multiply_class<F, 1>(acc, gate_weights, x, n_sb, 0, 1);
  float g = add_classes<1>(acc, gates);
  multiply_class<F, 1>(acc, up_weights, x, n_sb, 0, 1);
  float up = add_classes<1>(acc, ups);
  const int row = blockIdx.x * 8 + threadIdx.x;
  if (threadIdx.x >= 8 || row >= ffn) return;
  if (bias) {
    g += bias[row];
    up += bias[ffn + row];
  }
  out[row] = gated(kind, g, up);
}

#define MATVEC(name, F, TOKENS)                                                                                            \
  extern "C" __global__ void __launch_bounds__(128, 6) name(                                                                 \
      const uint8_t* weights, const uint8_t* const* experts, const float* const* biases, const int* picks, int share, const int8_t* codes,             \
      const float* units, const int16_t* sums, const float* bias, float* out, int n, int n_sb, int tokens, int width,      \
      int column) {                                                                                                       \
    wait_for_predecessor();                                                                                               \
    matvec<F, TOKENS>(weights, experts, biases, picks, share, Rounded{codes, units, sums}, bias, out, n, n_sb, tokens, width, column); \
  }                                                                                                                       \
  KERNEL(name)
#define GATED(name, F)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(128, 6) name(const uint8_t* gate, const uint8_t* up, const int8_t* codes,      \
                                                         const float* units, const int16_t* sums, const float* bias,       \
                                                         float* out, int ffn, int n_sb, int kind) {                        \
    wait_for_predecessor();                                                                                                \
    gated_matvec<F>(gate, up, Rounded{codes, units, sums}, bias, out, ffn, n_sb, kind);                                   \
  }                                                                                                                       \
  KERNEL(name)
#define OF_FORMAT(low, F)             \
  MATVEC(matvec_##low##_1, F, 1)      \
  MATVEC(matvec_##low##_2, F, 2)      \
  MATVEC(matvec_##low##_4, F, 4)      \
  GATED(gated_##low, F)
EACH_FORMAT(OF_FORMAT)
