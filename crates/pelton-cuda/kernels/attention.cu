#include "attention.cuh"
// Paged attention on tensor cores, for pools of bf16, int8 and fp8: prefill, decode and verification alike.
//
// The query heads that share a KV head are rows of one tile, so that keys and values are read once for all of them: tile
// row f of a span is its query f / group, head f % group of the group. A warp has 16 tile rows; a block's warps share the
// pages that they read. One page (32 positions) at a time:
//
//   S = Q K^T            mma, bf16 (8-bit keys are whole numbers or 8-bit floats, exact in bf16; their scale multiplies S)
//   p = exp(S - m)       m: largest score of the chunk so far; what was there is scaled to it
//   O = O + p V          mma, p in bf16 (times the value's scale)
//
// Each chunk of 128 positions starts anew and is joined to what came before (attention.cuh): either by the block that
// walks through all chunks of its rows, or, where there are few rows and long contexts, by join_chunks after one block for
// each chunk. Masked positions enter no sum, pages without any change nothing: so a row's bits depend on its own keys and
// values alone, not on the tile, the block or the mode.

enum { KV_BF16, KV_INT8, KV_FP8 };

template <int KV>
__device__ __forceinline__ bf16_t code_value(uint8_t code) {
  if (KV == KV_INT8) return f2b((float)(int8_t)code);
  // e4m3: sign, 4 bits of exponent (7 is 2^0), 3 of mantissa.
  const uint32_t magnitude = code & 0x7f;
  const float v = magnitude < 8 ? (float)magnitude * 0.001953125f : __uint_as_float((magnitude << 20) + (120u << 23));
  return f2b(code & 0x80 ? -v : v);
}

__device__ __forceinline__ uint32_t pack(float a, float b) { return (uint32_t)f2b(a).u | (uint32_t)f2b(b).u << 16; }

struct AttentionShape {
  int n_heads, n_kv_heads, dim, stride;  // stride: elements of a stored vector
  int max_chunks;                        // 0: the block walks through all chunks; else it computes chunk blockIdx.z
  int window;
  float scale, cap;
};

// tiles[x]: first row of the span, first tile row, tile rows of the span, position of the span's first row.
template <int KV, int DP, int WARPS>
__device__ __forceinline__ void attend(const float* __restrict__ qkv, const unsigned char* __restrict__ layer,
                                       const int4* __restrict__ tiles, const int* __restrict__ table_of, const int* __restrict__ pages,
                                       float* __restrict__ out, float* __restrict__ parts_o, float2* __restrict__ parts_ml,
                                       AttentionShape s) {
  constexpr int LD = DP + 8;  // 16 bytes more: rows of ldmatrix meet different banks
  constexpr int STAGES = KV == KV_BF16 ? 2 : 1;
  constexpr int THREADS = 32 * WARPS;
  DYNAMIC_SHARED(memory);
  bf16_t* queries = reinterpret_cast<bf16_t*>(memory);   // [16 WARPS][LD]
  bf16_t* vectors = queries + 16 * WARPS * LD;           // [STAGES][keys 32, values 32][LD]
  uint8_t* raw = reinterpret_cast<uint8_t*>(vectors + STAGES * 64 * LD);  // 8-bit types: [2][64][DP], then [2][64] scales
  float* scales = reinterpret_cast<float*>(raw + 2 * 64 * DP);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, kv_head = blockIdx.y;
  const int group = s.n_heads / s.n_kv_heads, width = (s.n_heads + 2 * s.n_kv_heads) * s.dim;
  const int4 tile = load_here(tiles + blockIdx.x);
  const int end = min(tile.z, tile.y + 16 * WARPS);
  const int first = first_seen(tile.w + tile.y / group, s.window), last = tile.w + (end - 1) / group;
  int chunk = first / CHUNK, chunk_end = last / CHUNK + 1;
  if (s.max_chunks) {
    chunk += blockIdx.z;
    if (chunk >= chunk_end) return;
    chunk_end = chunk + 1;
  }

  for (int i = threadIdx.x; i < 16 * WARPS * LD; i += THREADS) {
    const int f = tile.y + i / LD, c = i % LD;
    float v = 0.f;
    if (f < end && c < s.dim) v = qkv[(size_t)(tile.x + f / group) * width + (kv_head * group + f % group) * s.dim + c];
    queries[i] = f2b(v);
  }
  // Columns that no copy writes are multiplied by zeros: they must be numbers.
  for (int i = threadIdx.x; i < STAGES * 64 * LD; i += THREADS)
    if (i % LD >= s.stride) vectors[i] = f2b(0.f);

  const int* table = pages + table_of[tile.x];
  const size_t element = KV == KV_BF16 ? 2 : 1;
  const size_t head_bytes = 64 * s.stride * element + (KV == KV_BF16 ? 0 : 256);
  const int pieces = (int)(s.stride * element / 16);
  auto issue = [&](int page, int stage) {
    const unsigned char* from = layer + ((size_t)table[page] * s.n_kv_heads + kv_head) * head_bytes;
    for (int i = threadIdx.x; i < 64 * pieces; i += THREADS) {
      const int r = i / pieces, c = i % pieces;
      // Slots that are not written yet hold anything: zeros instead.
      const bool is_written = page * 32 + (r & 31) <= last;
      void* to = KV == KV_BF16 ? (void*)(vectors + (stage * 64 + r) * LD + c * 8) : (void*)(raw + (stage * 64 + r) * DP + c * 16);
      copy_async16(to, from + (size_t)i * 16, is_written);
    }
    if (KV != KV_BF16)
      for (int i = threadIdx.x; i < 16; i += THREADS) copy_async16(scales + stage * 64 + i * 4, from + (size_t)64 * s.stride + i * 16, true);
  };

  int position[2], seen_from[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int f = tile.y + warp * 16 + g + 8 * r;
    position[r] = f < end ? tile.w + f / group : -1;
    seen_from[r] = f < end ? first_seen(position[r], s.window) : 0;
  }
  const bool is_busy = tile.y + warp * 16 < end;
  float o[DP / 8][4], m[2], l[2];
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  auto restart = [&]() {
#pragma unroll
    for (int i = 0; i < DP / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[i][e] = 0.f;
    m[0] = m[1] = -INFINITY;
    l[0] = l[1] = 0.f;
  };
  restart();

  const int page_begin = max(chunk * (CHUNK / 32), first / 32), page_end = min(chunk_end * (CHUNK / 32), last / 32 + 1);
  issue(page_begin, page_begin & 1);
  copy_async_commit();
  for (int page = page_begin; page < page_end; page++) {
    if (page + 1 < page_end) issue(page + 1, (page + 1) & 1);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const bf16_t* keys = vectors + (STAGES == 2 ? (page & 1) * 64 * LD : 0);
    if (KV != KV_BF16) {
      const uint8_t* from = raw + (page & 1) * 64 * DP;
      for (int i = threadIdx.x; i < 64 * s.stride; i += THREADS) {
        const int r = i / s.stride, c = i % s.stride;
        vectors[r * LD + c] = code_value<KV>(from[r * DP + c]);
      }
      __syncthreads();
    }
    const bf16_t* values = keys + 32 * LD;
    const float* scale = scales + (page & 1) * 64;
    if (is_busy) {
      float score[4][4];
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) score[n][e] = 0.f;
#pragma unroll
      for (int k = 0; k < DP; k += 16) {
        uint32_t a[4], b[4];
        ldmatrix_x4(a, queries + (warp * 16 + (lane & 15)) * LD + k + (lane >> 4) * 8);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          ldmatrix_x4(b, keys + (n * 16 + (lane & 7) + (lane >> 4) * 8) * LD + k + (lane >> 3 & 1) * 8);
          mma_bf16(score[2 * n], a, b[0], b[1]);
          mma_bf16(score[2 * n + 1], a, b[2], b[3]);
        }
      }
      float most[2] = {m[0], m[1]};
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int slot = n * 8 + 2 * t + (e & 1), at = page * 32 + slot, r = e >> 1;
          const bool is_seen = at <= position[r] && at >= seen_from[r];
          const float dot = KV == KV_BF16 ? score[n][e] : __fmul_rn(score[n][e], scale[slot]);
          score[n][e] = is_seen ? score_of(dot, s.scale, s.cap) : -INFINITY;
          most[r] = fmaxf(most[r], score[n][e]);
        }
      float keep[2], base[2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        most[r] = fmaxf(most[r], __shfl_xor_sync(ALL_LANES, most[r], 1));
        most[r] = fmaxf(most[r], __shfl_xor_sync(ALL_LANES, most[r], 2));
        base[r] = most[r] == -INFINITY ? 0.f : most[r];
        keep[r] = m[r] == -INFINITY ? 1.f : exp2f(m[r] - base[r]);
        m[r] = most[r];
      }
      float part[2] = {0.f, 0.f};
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int r = e >> 1;
          const float p = score[n][e] == -INFINITY ? 0.f : exp2f(score[n][e] - base[r]);
          part[r] += p;
          // The scale of a slot that nobody wrote is anything.
          score[n][e] = KV == KV_BF16 || p == 0.f ? p : __fmul_rn(p, scale[32 + n * 8 + 2 * t + (e & 1)]);
        }
#pragma unroll
      for (int r = 0; r < 2; r++) l[r] = __fmaf_rn(l[r], keep[r], part[r]);
#pragma unroll
      for (int i = 0; i < DP / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[i][e] = __fmul_rn(o[i][e], keep[e >> 1]);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const uint32_t a[4] = {pack(score[2 * j][0], score[2 * j][1]), pack(score[2 * j][2], score[2 * j][3]),
                               pack(score[2 * j + 1][0], score[2 * j + 1][1]), pack(score[2 * j + 1][2], score[2 * j + 1][3])};
#pragma unroll
        for (int d = 0; d < DP / 16; d++) {
          uint32_t b[4];
          ldmatrix_x4_trans(b, values + (j * 16 + (lane & 15)) * LD + d * 16 + (lane >> 4) * 8);
          mma_bf16(o[2 * d], a, b[0], b[1]);
          mma_bf16(o[2 * d + 1], a, b[2], b[3]);
        }
      }
      if ((page & 3) == 3 || page + 1 == page_end) {
        const bool is_last = page + 1 == page_end;
#pragma unroll
        for (int r = 0; r < 2; r++) {
          l[r] += __shfl_xor_sync(ALL_LANES, l[r], 1);
          l[r] += __shfl_xor_sync(ALL_LANES, l[r], 2);
          const int f = tile.y + warp * 16 + g + 8 * r;
          if (f >= end) continue;
          const int row = tile.x + f / group, head = kv_head * group + f % group;
          if (s.max_chunks) {
            const int from = seen_from[r] / CHUNK;
            if (chunk < from || chunk * CHUNK > position[r]) continue;
            const size_t slot = ((size_t)row * s.n_heads + head) * s.max_chunks + chunk - from;
            if (t == 0) {
              float2 ml;
              ml.x = m[r];
              ml.y = l[r];
              parts_ml[slot] = ml;
            }
#pragma unroll
            for (int i = 0; i < DP / 8; i++)
#pragma unroll
              for (int e = 0; e < 2; e++) {
                const int c = i * 8 + 2 * t + e;
                if (c < s.dim) parts_o[slot * s.dim + c] = o[i][2 * r + e];
              }
            continue;
          }
          const bool is_first = largest[r] == -INFINITY;
          const Join j = join(largest[r], sum[r], m[r], l[r]);
          float* to = out + ((size_t)row * s.n_heads + head) * s.dim;
#pragma unroll
          for (int i = 0; i < DP / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const int c = i * 8 + 2 * t + e;
              if (c >= s.dim) continue;
              const float v = join_value(j, is_first ? 0.f : to[c], o[i][2 * r + e]);
              to[c] = is_last ? v / sum[r] : v;
            }
        }
        restart();
      }
    }
    __syncthreads();
  }
}

#define ATTEND(name, KV, DP, WARPS, BOUNDS)                                                                                \
  extern "C" __global__ void __launch_bounds__ BOUNDS name(                                                               \
      const float* qkv, const unsigned char* layer, const int4* tiles, const int* table_of, const int* pages, float* out,  \
      float* parts_o, float2* parts_ml, int n_heads, int n_kv_heads, int dim, int stride, int max_chunks, int window,      \
      float scale, float cap) {                                                                                            \
    wait_for_predecessor();                                                                                                \
    attend<KV, DP, WARPS>(qkv, layer, tiles, table_of, pages, out, parts_o, parts_ml,                                      \
                          AttentionShape{n_heads, n_kv_heads, dim, stride, max_chunks, window, scale, cap});               \
  }                                                                                                                        \
  KERNEL(name)
#define OF_WIDTH(low, KV, DP, MANY)       \
  ATTEND(attend_##low##_##DP##_1, KV, DP, 1, (32, 8)) \
  ATTEND(attend_##low##_##DP##_many, KV, DP, MANY, (32 * MANY))
#define OF_TYPE(low, KV)      \
  OF_WIDTH(low, KV, 32, 4)    \
  OF_WIDTH(low, KV, 64, 4)    \
  OF_WIDTH(low, KV, 96, 4)    \
  OF_WIDTH(low, KV, 128, 4)   \
  OF_WIDTH(low, KV, 256, 2)
OF_TYPE(bf16, KV_BF16)
OF_TYPE(int8, KV_INT8)
OF_TYPE(fp8, KV_FP8)
