#include "prelude.cuh"
// Matrices of f32 times f32 rows, in f32.
//
// Rows of weights are zero-padded to `stride` columns, a multiple of 64; so are those of x. Columns are cut in chunks of
// 64; chunk c belongs to class c % 16. A class adds its products in order, one accumulator; the classes are added as
//   warp sums s_w = ((class 4w + class 4w+1) + class 4w+2) + class 4w+3,   then ((s_0 + s_1) + s_2) + s_3, then the bias
// in both kernels below, so that the number of rows changes no bit.

// 8 columns of the answer a block; lane 4 g + t of warp w: row g, class 4 w + t. Experts as in matvec.cu.
template <int TOKENS>
__device__ __forceinline__ void float_matvec(const uint8_t* weights, const uint8_t* const* experts, const float* const* biases, const int* picks, int share,
                                             const float* x, const float* bias, float* out, int n, int stride, int tokens,
                                             int width, int column) {
  SHARED(float, warps, [4][TOKENS][8]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  int from = blockIdx.y * TOKENS;
  const int to = from, n_tokens = min(TOKENS, tokens - to);
  if (experts) {
    weights = experts[picks[blockIdx.y]];
    if (!weights) return;
    bias = biases[picks[blockIdx.y]];
    from = blockIdx.y / share;
  }
  // Rows past the last repeat it: their answers are dropped.
  const int row = min((int)blockIdx.x * 8 + g, n - 1);
  const float* w = reinterpret_cast<const float*>(weights) + (size_t)row * stride;
  float acc[TOKENS];
#pragma unroll
  for (int i = 0; i < TOKENS; i++) acc[i] = 0.f;
  for (int chunk = warp * 4 + t; chunk * 64 < stride; chunk += 16) {
#pragma unroll 4
    for (int k = chunk * 64; k < chunk * 64 + 64; k += 4) {
      const uint4 v = load_once(reinterpret_cast<const uint4*>(w + k));
#pragma unroll
      for (int i = 0; i < TOKENS; i++) {
        if (i >= n_tokens) continue;
        const float4 y = *reinterpret_cast<const float4*>(x + (size_t)(from + i) * stride + k);
        acc[i] = __fmaf_rn(__uint_as_float(v.x), y.x, acc[i]);
        acc[i] = __fmaf_rn(__uint_as_float(v.y), y.y, acc[i]);
        acc[i] = __fmaf_rn(__uint_as_float(v.z), y.z, acc[i]);
        acc[i] = __fmaf_rn(__uint_as_float(v.w), y.w, acc[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < TOKENS; i++) {
    float sum = __shfl_sync(ALL_LANES, acc[i], lane & ~3);
#pragma unroll
    for (int q = 1; q < 4; q++) sum += __shfl_sync(ALL_LANES, acc[i], (lane & ~3) + q);
    if (t == 0) warps[warp][i][g] = sum;
  }
  __syncthreads();
  const int i = threadIdx.x >> 3, r = threadIdx.x & 7, at = blockIdx.x * 8 + r;
  if (i >= n_tokens || at >= n) return;
  float v = ((warps[0][i][r] + warps[1][i][r]) + warps[2][i][r]) + warps[3][i][r];
  if (bias) v += bias[at];
  out[(size_t)(to + i) * width + column + at] = v;
}

// 64 columns of the answer x 64 rows a block, 4 x 4 a thread; chunks in the order of their classes.
__device__ __forceinline__ void float_matmul(const uint8_t* weights, const float* __restrict__ x, const float* __restrict__ bias,
                                             float* __restrict__ out, int n, int stride, int tokens, int width, int column) {
  // [column of the chunk][row]; a pad so that neither writing nor reading meets a bank twice.
  SHARED(float, ws, [64][65]);
  SHARED(float, xs, [64][65]);
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4, row0 = blockIdx.x * 64, token0 = blockIdx.y * 64;
  const int chunks = stride / 64;
  float total[4][4];
  for (int warp = 0; warp < 4; warp++) {
    float sum[4][4];
    for (int t = 0; t < 4; t++) {
      float acc[4][4];
#pragma unroll
      for (int a = 0; a < 4; a++)
#pragma unroll
        for (int b = 0; b < 4; b++) acc[a][b] = 0.f;
      for (int chunk = warp * 4 + t; chunk < chunks; chunk += 16) {
        __syncthreads();
        for (int i = threadIdx.x; i < 64 * 16; i += 256) {
          const int r = i >> 4, c = (i & 15) * 4;
          const float* from = reinterpret_cast<const float*>(weights) + (size_t)min(row0 + r, n - 1) * stride + chunk * 64 + c;
          const float4 v = *reinterpret_cast<const float4*>(from);
          ws[c][r] = v.x;
          ws[c + 1][r] = v.y;
          ws[c + 2][r] = v.z;
          ws[c + 3][r] = v.w;
        }
        for (int i = threadIdx.x; i < 64 * 16; i += 256) {
          const int r = i >> 4, c = (i & 15) * 4;
          const float4 v = *reinterpret_cast<const float4*>(x + (size_t)min(token0 + r, tokens - 1) * stride + chunk * 64 + c);
          xs[c][r] = v.x;
          xs[c + 1][r] = v.y;
          xs[c + 2][r] = v.z;
          xs[c + 3][r] = v.w;
        }
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < 64; k++)
#pragma unroll
          for (int a = 0; a < 4; a++)
#pragma unroll
            for (int b = 0; b < 4; b++) acc[a][b] = __fmaf_rn(ws[k][tx + 16 * a], xs[k][ty + 16 * b], acc[a][b]);
      }
#pragma unroll
      for (int a = 0; a < 4; a++)
#pragma unroll
        for (int b = 0; b < 4; b++) sum[a][b] = t == 0 ? acc[a][b] : sum[a][b] + acc[a][b];
    }
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
      for (int b = 0; b < 4; b++) total[a][b] = warp == 0 ? sum[a][b] : total[a][b] + sum[a][b];
  }
#pragma unroll
  for (int a = 0; a < 4; a++)
#pragma unroll
    for (int b = 0; b < 4; b++) {
      const int row = row0 + tx + 16 * a, token = token0 + ty + 16 * b;
      if (row < n && token < tokens) out[(size_t)token * width + column + row] = bias ? total[a][b] + bias[row] : total[a][b];
    }
}

// x (rows, cols) -> (rows, stride), zeros after the last column.
extern "C" __global__ void pad_rows(const float* __restrict__ x, float* __restrict__ out, int cols, int stride) {
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < stride) out[(size_t)blockIdx.y * stride + i] = i < cols ? x[(size_t)blockIdx.y * cols + i] : 0.f;
}
KERNEL(pad_rows)

#define MATVEC(name, TOKENS)                                                                                           \
  extern "C" __global__ void __launch_bounds__(128, TOKENS == 1 ? 6 : 3) name(const uint8_t* weights, const uint8_t* const* experts,           \
                                                         const float* const* biases, const int* picks, int share, const float* x, const float* bias,  \
                                                         float* out, int n, int stride, int tokens, int width, int column) { \
    wait_for_predecessor();                                                                                              \
    float_matvec<TOKENS>(weights, experts, biases, picks, share, x, bias, out, n, stride, tokens, width, column);              \
  }                                                                                                                       \
  KERNEL(name)
MATVEC(matvec_f32_1, 1)
MATVEC(matvec_f32_4, 4)

extern "C" __global__ void __launch_bounds__(256, 2) matmul_f32(const uint8_t* weights, const float* x, const float* bias, float* out,
                                                                int n, int stride, int tokens, int width, int column) {
  wait_for_predecessor();
  float_matmul(weights, x, bias, out, n, stride, tokens, width, column);
}
KERNEL(matmul_f32)
