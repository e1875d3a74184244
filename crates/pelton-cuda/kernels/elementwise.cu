#include "activation.cuh"
// Ops on single elements, and rows moved whole. Each element has one thread: no order to keep.

extern "C" __global__ void add(float* __restrict__ x, const float* __restrict__ y, int n) {
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] += y[i];
}
KERNEL(add)

// x = cap * tanh(x / cap)
extern "C" __global__ void softcap(float* __restrict__ x, float cap, int n) {
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = cap * tanhf(x[i] / cap);
}
KERNEL(softcap)

// out (rows, ffn) = activation(x[.., ..ffn]) * x[.., ffn..]; kind 0: silu, 1: gelu (tanh).
extern "C" __global__ void gate(const float* __restrict__ x, float* __restrict__ out, int ffn, int kind) {
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= ffn) return;
  const float* row = x + (size_t)blockIdx.y * 2 * ffn;
  out[(size_t)blockIdx.y * ffn + i] = gated(kind, row[i], row[ffn + i]);
}
KERNEL(gate)

// out[r] = x[rows[r]], (n, cols)
extern "C" __global__ void gather_rows(const float* __restrict__ x, const int* __restrict__ rows, float* __restrict__ out,
                                       int cols) {
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < cols) out[(size_t)blockIdx.y * cols + i] = x[(size_t)rows[blockIdx.y] * cols + i];
}
KERNEL(gather_rows)

// One page of every layer onto another; grid (chunks, layers), 16 bytes a thread.
extern "C" __global__ void copy_page(uint4* __restrict__ pool, unsigned long long layer_len, unsigned long long page_len,
                                     int from, int to) {
  wait_for_predecessor();
  const unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  uint4* layer = pool + blockIdx.y * layer_len;
  if (i < page_len) layer[to * page_len + i] = layer[from * page_len + i];
}
KERNEL(copy_page)
