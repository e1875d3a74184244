#include "packed.cuh"
// Block-quantized matrices times some rows on tensor cores: still bound by reading the weights.
//
// A block makes 16 columns of the answer for 8 TILES rows; warps are classes of superblocks as in matvec.cu. A lane's codes
// are its fragment of the instruction as they come from memory. Sums over a sub-block are the instruction's, exact; the
// scales multiply whole numbers; once a superblock the sum becomes a float, added as everywhere (add_superblock).
//
//   A: weights, 16 rows x 32 (16) columns; B: activations, 32 (16) columns x 8 rows; C: lane 4 g + t holds rows g, g + 8
//   of the weights and rows 2t, 2t + 1 of the activations
template <class F, int TILES>
__device__ __forceinline__ void matmul_few(const uint8_t* __restrict__ weights, Rounded x, const float* __restrict__ bias,
                                           float* __restrict__ out, int n, int n_sb, int tokens, int width, int column) {
  SHARED(float, classes, [4][16][8 * TILES + 1]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int first = blockIdx.y * 8 * TILES;
  // The last block of rows may be half outside: its weights are those of the first half, its answers are dropped.
  const int blocks = (n + 7) >> 3, second = min(2 * (int)blockIdx.x + 1, blocks - 1);
  float acc[TILES][4];
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) acc[i][e] = 0.f;
  for (int sb = warp; sb < n_sb; sb += 4) {
    const uint8_t* tile[2] = {weights + ((size_t)(2 * blockIdx.x) * n_sb + sb) * F::BYTES,
                              weights + ((size_t)second * n_sb + sb) * F::BYTES};
    int sum[TILES][4], minima[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) sum[i][e] = minima[i][e] = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Codes<F> codes[2];
      Scales<F> scales[2], minimum[2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        codes[r].load(tile[r], h, lane);
        scales[r].load(tile[r] + F::AT_SCALES, h, g);
        if constexpr (F::AFFINE) minimum[r].load(tile[r] + F::AT_MINIMA, h, g);
      }
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        // Rows past the last repeat it: their answers are dropped.
        const size_t at = (size_t)min(first + 8 * i + g, tokens - 1) * n_sb + sb;
        const int4* xs = reinterpret_cast<const int4*>(x.codes + at * 256 + h * 128 + t * 32);
        const int4 near = xs[0], far = xs[1];
        const int lows[4] = {near.x, near.z, far.x, far.z}, highs[4] = {near.y, near.w, far.y, far.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          if constexpr (F::SUB == 32) {
            const uint32_t a[4] = {codes[0].four(j, 0), codes[1].four(j, 0), codes[0].four(j, 1), codes[1].four(j, 1)};
            int c[4] = {0, 0, 0, 0};
            mma_s8_k32(c, a, lows[j], highs[j]);
#pragma unroll
            for (int e = 0; e < 4; e++) sum[i][e] += scales[e >> 1].v[j] * c[e];
          } else {
            int c[4] = {0, 0, 0, 0}, d[4] = {0, 0, 0, 0};
            mma_s8_k16(c, codes[0].four(j, 0), codes[1].four(j, 0), lows[j]);
            mma_s8_k16(d, codes[0].four(j, 1), codes[1].four(j, 1), highs[j]);
#pragma unroll
            for (int e = 0; e < 4; e++)
              sum[i][e] += scales[e >> 1].v[2 * j % F::PER_HALF] * c[e] + scales[e >> 1].v[(2 * j + 1) % F::PER_HALF] * d[e];
          }
        }
        if constexpr (F::AFFINE) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const size_t row = (size_t)min(first + 8 * i + 2 * t + e, tokens - 1) * n_sb + sb;
            const uint4 packed = *reinterpret_cast<const uint4*>(x.sums + row * 16 + h * 8);
            const uint32_t pair[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
              const int a = (int16_t)pair[j], b = (int)pair[j] >> 16;
#pragma unroll
              for (int r = 0; r < 2; r++) {
                if constexpr (F::SUB == 32) minima[i][2 * r + e] += minimum[r].v[j] * (a + b);
                else minima[i][2 * r + e] += minimum[r].v[2 * j % F::PER_HALF] * a + minimum[r].v[(2 * j + 1) % F::PER_HALF] * b;
              }
            }
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float unit, unit_of_minima;
      load_units<F>(tile[r], g, unit, unit_of_minima);
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const float x_unit = x.units[(size_t)min(first + 8 * i + 2 * t + e, tokens - 1) * n_sb + sb];
          acc[i][2 * r + e] = add_superblock<F>(acc[i][2 * r + e], unit, unit_of_minima, x_unit, sum[i][2 * r + e], minima[i][2 * r + e]);
        }
    }
  }
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) classes[warp][g + 8 * (e >> 1)][8 * i + 2 * t + (e & 1)] = acc[i][e];
  __syncthreads();
  for (int at = threadIdx.x; at < 16 * 8 * TILES; at += 128) {
    const int r = at & 15, i = at >> 4, row = blockIdx.x * 16 + r;
    if (row >= n || first + i >= tokens) continue;
    float v = ((classes[0][r][i] + classes[1][r][i]) + classes[2][r][i]) + classes[3][r][i];
    if (bias) v += bias[row];
    out[(size_t)(first + i) * width + column + row] = v;
  }
}

#define MATMUL(name, F, TILES, BOUNDS)                                                                                            \
  extern "C" __global__ void __launch_bounds__ BOUNDS name(const uint8_t* weights, const int8_t* codes, const float* units, \
                                                         const int16_t* sums, const float* bias, float* out, int n,       \
                                                         int n_sb, int tokens, int width, int column) {                   \
    wait_for_predecessor();                                                                                               \
    matmul_few<F, TILES>(weights, Rounded{codes, units, sums}, bias, out, n, n_sb, tokens, width, column);                \
  }                                                                                                                       \
  KERNEL(name)
#define OF_FORMAT(low, F)           \
  MATMUL(matmul_##low##_8, F, 1, (128, 3))   \
  MATMUL(matmul_##low##_16, F, 2, (128))  \
  MATMUL(matmul_##low##_32, F, 4, (128))
EACH_FORMAT(OF_FORMAT)
