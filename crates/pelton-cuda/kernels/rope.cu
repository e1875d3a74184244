#include "prelude.cuh"
// Rotary embedding: the angles of a step, then norms, rotation and the writing of keys and values, fused.
//
// A page of one layer is n_kv_heads blocks, each: keys [32][stride], values [32][stride], and for 8-bit types the
// keys' scales [32] f32, the values' scales [32] f32. stride: head_dim to a whole number of 16 bytes.

// angles: (rows, half) of (cos, sin), scaled; one thread each.
extern "C" __global__ void rope_angles(const int* __restrict__ positions, const float* __restrict__ inv_freq,
                                       float2* __restrict__ angles, int half, float scale) {
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= half) return;
  const float angle = (float)positions[blockIdx.y] * inv_freq[i];
  float2 v;
  v.x = cosf(angle) * scale;
  v.y = sinf(angle) * scale;
  angles[(size_t)blockIdx.y * half + i] = v;
}
KERNEL(rope_angles)

// e4m3: 448 is the largest, 2^-9 the smallest step; round half to even. |v| <= 448 is the caller's.
__device__ __forceinline__ uint8_t to_fp8(float v) {
  const uint32_t bits = __float_as_uint(v), sign = bits >> 24 & 0x80;
  const float a = fabsf(v);
  if (a < 0.015625f) return (uint8_t)(sign | (uint32_t)__float2int_rn(a * 512.f));
  uint32_t m = bits & 0x7fffffff;
  m += 0x7ffff + (m >> 20 & 1);
  return (uint8_t)(sign | ((m >> 20) - (120 << 3)));
}

enum { KV_F32, KV_F16, KV_BF16, KV_INT8, KV_FP8 };

// One warp for each head of a row: n_heads queries, then n_kv_heads keys, then n_kv_heads values.
//   qkv (rows, width); row r goes to page rows_page[r], slot rows_slot[r]
template <int KV>
__device__ __forceinline__ void rope_store(float* __restrict__ qkv, const float2* __restrict__ angles,
                                           const int* __restrict__ page_of, const int* __restrict__ positions,
                                           const float* __restrict__ norm_q, const float* __restrict__ norm_k, float eps,
                                           unsigned char* __restrict__ layer, int n_heads, int n_kv_heads, int dim, int half,
                                           int stride) {
  SHARED(float, heads, [4][256]);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = blockIdx.x, head = blockIdx.y * 4 + warp;
  const int n = n_heads + 2 * n_kv_heads;
  // Whole warps leave; no barrier of the block follows.
  if (head >= n) return;
  float* from = qkv + ((size_t)row * n + head) * dim;
  float* v = heads[warp];
  for (int i = lane; i < dim; i += 32) v[i] = from[i];
  __syncwarp();
  const bool is_query = head < n_heads, is_value = head >= n_heads + n_kv_heads;
  if (!is_value) {
    const float* norm = is_query ? norm_q : norm_k;
    if (norm) {
      float sum = 0.f;
      for (int i = lane; i < dim; i += 32) sum = __fmaf_rn(v[i], v[i], sum);
      const float scale = 1.f / sqrtf(warp_sum(sum) / dim + eps);
      for (int i = lane; i < dim; i += 32) v[i] = v[i] * scale * norm[i];
      __syncwarp();
    }
    for (int i = lane; i < half; i += 32) {
      const float2 angle = angles[(size_t)row * half + i];
      const float a = v[i], b = v[i + half];
      v[i] = a * angle.x - b * angle.y;
      v[i + half] = a * angle.y + b * angle.x;
    }
    __syncwarp();
  }
  if (is_query) {
    for (int i = lane; i < dim; i += 32) from[i] = v[i];
    return;
  }
  const int kv_head = is_value ? head - n_heads - n_kv_heads : head - n_heads, slot = positions[row] & 31;
  const int element = KV == KV_F32 ? 4 : KV == KV_F16 || KV == KV_BF16 ? 2 : 1;
  const size_t head_bytes = (size_t)64 * stride * element + (element == 1 ? 256 : 0);
  unsigned char* block = layer + ((size_t)page_of[row] * n_kv_heads + kv_head) * head_bytes;
  unsigned char* to = block + ((size_t)(is_value ? 32 : 0) + slot) * stride * element;
  float scale = 1.f;
  if (element == 1) {
    float largest = 0.f;
    for (int i = lane; i < dim; i += 32) largest = fmaxf(largest, fabsf(v[i]));
    scale = warp_max(largest) / (KV == KV_INT8 ? 127.f : 448.f);
    float* scales = reinterpret_cast<float*>(block + (size_t)64 * stride);
    if (lane == 0) scales[(is_value ? 32 : 0) + slot] = scale;
  }
  // The padding too: it is multiplied by zeros, so it must be finite.
  for (int i = lane; i < stride; i += 32) {
    const float x = i < dim ? v[i] : 0.f;
    if (KV == KV_F32) reinterpret_cast<float*>(to)[i] = x;
    if (KV == KV_F16) reinterpret_cast<half_t*>(to)[i] = f2h(x);
    if (KV == KV_BF16) reinterpret_cast<bf16_t*>(to)[i] = f2b(x);
    if (KV == KV_INT8) reinterpret_cast<int8_t*>(to)[i] = (int8_t)(scale > 0.f ? __float2int_rn(x / scale) : 0);
    if (KV == KV_FP8) to[i] = scale > 0.f ? to_fp8(fminf(448.f, fmaxf(-448.f, x / scale))) : 0;
  }
}

#define ROPE_STORE(name, KV)                                                                                             \
  extern "C" __global__ void __launch_bounds__(128) name(                                                               \
      float* qkv, const float2* angles, const int* page_of, const int* positions, const float* norm_q,                  \
      const float* norm_k, float eps, unsigned char* layer, int n_heads, int n_kv_heads, int dim, int half, int stride) { \
    wait_for_predecessor();                                                                                               \
    rope_store<KV>(qkv, angles, page_of, positions, norm_q, norm_k, eps, layer, n_heads, n_kv_heads, dim, half, stride); \
  }                                                                                                                     \
  KERNEL(name)
ROPE_STORE(rope_store_f32, KV_F32)
ROPE_STORE(rope_store_f16, KV_F16)
ROPE_STORE(rope_store_bf16, KV_BF16)
ROPE_STORE(rope_store_int8, KV_INT8)
ROPE_STORE(rope_store_fp8, KV_FP8)
