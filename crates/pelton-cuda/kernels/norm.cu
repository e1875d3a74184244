#include "prelude.cuh"
// Norms: one block a row, so that the order of a row's sum depends on its width alone.
//
//   x += y                                        (add_rms_norm)
//   out = x / sqrt(mean(x^2) + eps) * weight
//
// x, y, out: (rows, cols) f32; weight: (cols,).

// The sum of each thread's value, in all threads; 256 threads.
__device__ __forceinline__ float block_sum(float v) {
  SHARED(float, parts, [8]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  v = warp_sum(v);
  if (lane == 0) parts[warp] = v;
  __syncthreads();
  float sum = parts[0];
#pragma unroll
  for (int w = 1; w < 8; w++) sum += parts[w];
  return sum;
}

extern "C" __global__ void __launch_bounds__(256) rms_norm(const float* __restrict__ x, const float* __restrict__ weight,
                                                           float* __restrict__ out, int cols, float eps) {
  wait_for_predecessor();
  const float* row = x + (size_t)blockIdx.x * cols;
  float* to = out + (size_t)blockIdx.x * cols;
  float sum = 0.f;
  for (int i = threadIdx.x; i < cols; i += 256) sum = __fmaf_rn(row[i], row[i], sum);
  const float scale = 1.f / sqrtf(block_sum(sum) / cols + eps);
  for (int i = threadIdx.x; i < cols; i += 256) to[i] = row[i] * scale * weight[i];
}
KERNEL(rms_norm)

extern "C" __global__ void __launch_bounds__(256) add_rms_norm(float* __restrict__ x, const float* __restrict__ y,
                                                               const float* __restrict__ weight, float* __restrict__ out,
                                                               int cols, float eps) {
  wait_for_predecessor();
  float* row = x + (size_t)blockIdx.x * cols;
  const float* add = y + (size_t)blockIdx.x * cols;
  float* to = out + (size_t)blockIdx.x * cols;
  float sum = 0.f;
  for (int i = threadIdx.x; i < cols; i += 256) {
    const float v = row[i] + add[i];
    row[i] = v;
    sum = __fmaf_rn(v, v, sum);
  }
  const float scale = 1.f / sqrtf(block_sum(sum) / cols + eps);
  // Each thread reads what it wrote itself.
  for (int i = threadIdx.x; i < cols; i += 256) to[i] = row[i] * scale * weight[i];
}
KERNEL(add_rms_norm)
