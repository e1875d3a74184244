#include "terms.cuh"
// Matrices of floats of 16, 8 and 4 bits times few rows, on tensor cores: bound by reading the weights.
//
// A block makes 16 columns of the answer for 8 TILES rows; warp w takes the chunks of class w. Where `experts` are given:
// block y is slot y; its weights are those of experts[picks[y]], its input row y / share; an expert without weights in this
// layout is left to another launch.
template <class W, int TILES>
__device__ __forceinline__ void matmul_terms(const uint8_t* weights, const uint8_t* const* experts, const float* const* biases,
                                             const int* picks, int share, const uint8_t* x, const float* bias, float* out, int n,
                                             int n_chunks, int per_group, int tokens, int width, int column) {
  SHARED(float, classes, [4][16][8 * TILES + 1]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int to = blockIdx.y * (experts ? 1 : 8 * TILES), n_tokens = experts ? 1 : min(8 * TILES, tokens - to);
  int from = to;
  if (experts) {
    weights = experts[picks[blockIdx.y]];
    if (!weights) return;
    bias = biases[picks[blockIdx.y]];
    from = blockIdx.y / share;
  }
  const uint8_t* tiles = weights + (size_t)blockIdx.x * n_chunks * 2 * BYTES<W>;
  const uint4* rows[TILES];
#pragma unroll
  for (int i = 0; i < TILES; i++)
    // Rows past the last repeat it: their answers are dropped.
    rows[i] = reinterpret_cast<const uint4*>(x + (size_t)(from + min(8 * i + g, n_tokens - 1)) * n_chunks * 256) + 2 * t;
  float acc[TILES][4];
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) acc[i][e] = 0.f;
#pragma unroll 2
  for (int chunk = warp; chunk < n_chunks; chunk += 4) {
    uint32_t words[2][2][W::WORDS];
#pragma unroll
    for (int tile = 0; tile < 2; tile++) load_tile<W, true>(words[tile], tiles + (size_t)(2 * chunk + tile) * BYTES<W>, lane);
    float scale[2];
    load_scales<W>(scale, weights, n, n_chunks, per_group, blockIdx.x, chunk);
    float c[TILES][4] = {};
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
      uint32_t a[2][W::TERMS][4];
      W::terms(a[0], words[tile][0]);
      W::terms(a[1], words[tile][1]);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        const uint4 hi = rows[i][chunk * 16 + tile * 8], lo = rows[i][chunk * 16 + tile * 8 + 1];
        multiply_step<W>(c[i], a[0], 0, hi, lo);
        multiply_step<W>(c[i], a[1], 1, hi, lo);
      }
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) add_chunk<W>(acc[i], c[i], scale);
  }
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) classes[warp][g + 8 * (e >> 1)][8 * i + 2 * t + (e & 1)] = acc[i][e];
  __syncthreads();
  for (int at = threadIdx.x; at < 16 * 8 * TILES; at += 128) {
    const int r = at & 15, i = at >> 4, row = blockIdx.x * 16 + r;
    if (row >= n || i >= n_tokens) continue;
    float v = ((classes[0][r][i] + classes[1][r][i]) + classes[2][r][i]) + classes[3][r][i];
    if (bias) v += bias[row];
    out[(size_t)(to + i) * width + column + row] = v;
  }
}

__device__ __forceinline__ bool is_finite(bf16_t h) { return (h.u & 0x7f80) != 0x7f80; }

// Cuts rows into terms: x (rows, cols) f32 -> (rows, n_chunks, 2, 4, [hi 8, lo 8]) bf16, zeros past the last column. One
// thread for 8 columns.
extern "C" __global__ void __launch_bounds__(128) split_rows(const float* __restrict__ x, uint4* __restrict__ out, int cols, int n_chunks) {
  wait_for_predecessor();
  const int i = blockIdx.x * 128 + threadIdx.x;
  if (i >= n_chunks * 8) return;
  uint32_t hi[4] = {0, 0, 0, 0}, lo[4] = {0, 0, 0, 0};
#pragma unroll
  for (int e = 0; e < 8; e++) {
    const float v = 8 * i + e < cols ? x[(size_t)blockIdx.y * cols + 8 * i + e] : 0.f;
    bf16_t first = f2b(v), second;
    second.u = 0;
    // What is rounded up to infinity becomes the largest number; infinity and what is no number have no second term.
    if (!is_finite(first) && fabsf(v) < INFINITY) first.u -= 1;
    if (is_finite(first)) second = f2b(v - b2f(first));
    hi[e >> 1] |= (uint32_t)first.u << (16 * (e & 1));
    lo[e >> 1] |= (uint32_t)second.u << (16 * (e & 1));
  }
  uint4* to = out + ((size_t)blockIdx.y * n_chunks * 8 + i) * 2;
  to[0] = uint4{hi[0], hi[1], hi[2], hi[3]};
  to[1] = uint4{lo[0], lo[1], lo[2], lo[3]};
}
KERNEL(split_rows)

#define MATMUL(name, W, TILES)                                                                                             \
  extern "C" __global__ void __launch_bounds__(128) name(                                                                  \
      const uint8_t* weights, const uint8_t* const* experts, const float* const* biases, const int* picks, int share,      \
      const uint8_t* x, const float* bias, float* out, int n, int n_chunks, int per_group, int tokens, int width, int column) {           \
    wait_for_predecessor();                                                                                                \
    matmul_terms<W, TILES>(weights, experts, biases, picks, share, x, bias, out, n, n_chunks, per_group, tokens, width, column);      \
  }                                                                                                                        \
  KERNEL(name)
#define OF_TYPE(low, W)         \
  MATMUL(terms_##low##_8, W, 1)  \
  MATMUL(terms_##low##_16, W, 2) \
  MATMUL(terms_##low##_32, W, 4)
OF_TYPE(bf16, Bf16)
OF_TYPE(f16, F16)
OF_TYPE(e4m3, E4m3)
OF_TYPE(nf4, Nf4)
OF_TYPE(fp4, Fp4)
