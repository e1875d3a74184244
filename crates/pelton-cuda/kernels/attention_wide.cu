#include "attention.cuh"
// Attention over keys and values of 32 and 16 bits that want f32 products, and the joining of chunks for all types.
//
// One block for each (chunk, query head, row): a thread scores one position, then owns columns of the answer. Plain, not
// fast: F32 and F16 pools are for checks. attention.cu has the types that models run on.

template <class T> __device__ __forceinline__ float wide(T v);
template <> __device__ __forceinline__ float wide<float>(float v) { return v; }
template <> __device__ __forceinline__ float wide<half_t>(half_t v) { return h2f(v); }

// qkv (rows, width); parts_o (row, head, max_chunks, dim), parts_ml the same with (m, l).
template <class T>
__device__ __forceinline__ void attend_chunk(const float* __restrict__ qkv, const unsigned char* __restrict__ layer,
                                             const int* __restrict__ positions, const int* __restrict__ table_of,
                                             const int* __restrict__ pages, float* __restrict__ parts_o, float2* __restrict__ parts_ml,
                                             int row0, int n_heads, int n_kv_heads, int dim, int stride, int max_chunks, int window,
                                             float scale, float cap) {
  SHARED(float, weights, [CHUNK]);
  SHARED(float, reduced, [8]);
  const int row = row0 + blockIdx.z, head = blockIdx.y, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int position = positions[row], first = first_seen(position, window);
  const int chunk = first / CHUNK + blockIdx.x;
  if (chunk * CHUNK > position) return;
  const int kv_head = head / (n_heads / n_kv_heads);
  const float* q = qkv + (size_t)row * (n_heads + 2 * n_kv_heads) * dim + (size_t)head * dim;
  const int* table = pages + table_of[row];
  const size_t head_bytes = (size_t)64 * stride * sizeof(T);
  auto vector = [&](int at, int which) {
    const unsigned char* block = layer + ((size_t)table[at >> 5] * n_kv_heads + kv_head) * head_bytes;
    return reinterpret_cast<const T*>(block) + (size_t)(which * 32 + (at & 31)) * stride;
  };
  const int at = chunk * CHUNK + tid;
  const bool is_seen = at >= first && at <= position;
  float score = -INFINITY;
  if (is_seen) {
    const T* key = vector(at, 0);
    float dot = 0.f;
    for (int i = 0; i < dim; i++) dot = __fmaf_rn(q[i], wide<T>(key[i]), dot);
    score = score_of(dot, scale, cap);
  }
  float m = warp_max(score);
  if (lane == 0) reduced[warp] = m;
  __syncthreads();
  m = fmaxf(fmaxf(reduced[0], reduced[1]), fmaxf(reduced[2], reduced[3]));
  const float weight = is_seen ? exp2f(score - m) : 0.f;
  weights[tid] = weight;
  const float part = warp_sum(weight);
  if (lane == 0) reduced[4 + warp] = part;
  __syncthreads();
  const size_t slot = ((size_t)blockIdx.z * n_heads + head) * max_chunks + blockIdx.x;
  if (tid == 0) {
    float2 ml;
    ml.x = m;
    ml.y = ((reduced[4] + reduced[5]) + reduced[6]) + reduced[7];
    parts_ml[slot] = ml;
  }
  const int begin = max(first, chunk * CHUNK), end = min(position, chunk * CHUNK + CHUNK - 1);
  for (int c = tid; c < dim; c += 128) {
    float sum = 0.f;
    for (int p = begin; p <= end; p++) sum = __fmaf_rn(weights[p - chunk * CHUNK], wide<T>(vector(p, 1)[c]), sum);
    parts_o[slot * dim + c] = sum;
  }
}

#define ATTEND(name, T)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(128) name(                                                                  \
      const float* qkv, const unsigned char* layer, const int* positions, const int* table_of, const int* pages,            \
      float* parts_o, float2* parts_ml, int row0, int n_heads, int n_kv_heads, int dim, int stride, int max_chunks,         \
      int window, float scale, float cap) {                                                                                 \
    wait_for_predecessor();                                                                                                 \
    attend_chunk<T>(qkv, layer, positions, table_of, pages, parts_o, parts_ml, row0, n_heads, n_kv_heads, dim, stride,      \
                    max_chunks, window, scale, cap);                                                                        \
  }                                                                                                                         \
  KERNEL(name)
ATTEND(attend_f32, float)
ATTEND(attend_f16, half_t)

// Joins the chunks of each head: grid (n_heads, rows). out (rows, n_heads * dim)
extern "C" __global__ void __launch_bounds__(128) join_chunks(const float* __restrict__ parts_o, const float2* __restrict__ parts_ml,
                                                              const int* __restrict__ positions, float* __restrict__ out, int row0,
                                                              int dim, int max_chunks, int window) {
  wait_for_predecessor();
  const int head = blockIdx.x, n_heads = gridDim.x, row = row0 + blockIdx.y, position = positions[row];
  const int n = position / CHUNK - first_seen(position, window) / CHUNK + 1;
  const size_t slot = ((size_t)blockIdx.y * n_heads + head) * max_chunks;
  for (int c = threadIdx.x; c < dim; c += 128) {
    float largest = -INFINITY, sum = 0.f, value = 0.f;
    for (int i = 0; i < n; i++) {
      const float2 ml = parts_ml[slot + i];
      const Join j = join(largest, sum, ml.x, ml.y);
      value = join_value(j, value, parts_o[(slot + i) * dim + c]);
    }
    out[((size_t)row * n_heads + head) * dim + c] = value / sum;
  }
}
KERNEL(join_chunks)
