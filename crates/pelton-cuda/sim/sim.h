// A block-level SIMT simulator: lets the kernels' sources be compiled by a C++ compiler and run on the CPU.
//
// One fiber for each thread of a block; blocks run one after another. A fiber runs until it waits (a barrier, a warp
// collective). What makes mistakes show:
// - shared memory is full of NaN when a block begins, and each array is an allocation of its own (AddressSanitizer
//   sees what reaches past its end),
// - a copy_async arrives when it is waited for and not before,
// - warps and lanes run in an order that a seed decides,
// - of a kernel that is launched early, what the one before it wrote is NaN until the block waits for it, nothing may
//   have been written before that, and every thread has to wait,
// - lanes that wait for each other in different collectives are reported, and so are those that wait for ever.
// What it cannot show: races between blocks, the memory model, bank conflicts, time.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct half_t { uint16_t u; };
struct bf16_t { uint16_t u; };

float h2f(half_t h);
half_t f2h(float f);
inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline float b2f(bf16_t h) { return __uint_as_float((uint32_t)h.u << 16); }
inline bf16_t f2b(float f) {
  uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffff) > 0x7f800000) return {0x7fff};
  u += 0x7fff + ((u >> 16) & 1);
  return {(uint16_t)(u >> 16)};
}

inline uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  const float low = b2f({(uint16_t)a}) * b2f({(uint16_t)b}), high = b2f({(uint16_t)(a >> 16)}) * b2f({(uint16_t)(b >> 16)});
  return (uint32_t)f2b(high).u << 16 | f2b(low).u;
}

namespace sim {
constexpr size_t IN_BYTES = 32, OUT_BYTES = 16;
struct Warp;
struct CopyAsync;
struct Fiber {
  void* stack_pointer;
  unsigned char* stack;
  uint3 thread;
  int lane, state;
  bool waited;
  Warp* warp;
  CopyAsync* copies;
};
// What a collective's lanes gave and get; two sets by turns, so that a fast lane cannot overwrite what a slow one reads.
struct Exchange {
  alignas(16) unsigned char in[32][IN_BYTES];
  alignas(16) unsigned char out[32][OUT_BYTES];
};
struct Warp {
  Exchange exchange[2];
  uint32_t live, arrived;
  const char* what;
  unsigned generation;
  Fiber* lanes[32];
};
struct Block {
  uint3 index;
  dim3 block, grid;
  unsigned char* dynamic;
  int n_live, n_arrived;
};
extern Fiber* current;
extern Block block;
void* shared_array(const void* key, size_t bytes);
void sync_block();
// Deposits `bytes` of `in`; the last lane of `mask` to come runs `finish`, if any; then all go on.
using Finish = void (*)(Exchange&);
Exchange& collective(uint32_t mask, const char* what, const void* in, size_t bytes, Finish finish);
void copy_issue(void* to, const void* from, int bytes, bool valid);
void copy_commit();
void copy_wait(int n);
void wait_for_predecessor();

using Invoke = void (*)(void**);
struct Kernel {
  const char* name;
  Invoke invoke;
  int n_args;
  const size_t* sizes;
  Kernel* next;
};
void announce(Kernel*);
template <auto K> struct Invoker;
template <class... A, void (*K)(A...)>
struct Invoker<K> {
  static constexpr int n = sizeof...(A);
  static inline const size_t sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
  template <size_t... I>
  static void go(void** a, std::index_sequence<I...>) { K(*(std::remove_reference_t<A>*)a[I]...); }
  static void call(void** a) { go(a, std::index_sequence_for<A...>{}); }
};
struct Announced {
  Kernel kernel;
  Announced(const char* name, Invoke f, int n, const size_t* sizes) : kernel{name, f, n, sizes, nullptr} { announce(&kernel); }
};
void finish_mma_bf16(Exchange&);
void finish_mma_s8_k32(Exchange&);
void finish_mma_s8_k16(Exchange&);
void finish_ldmatrix(Exchange&);
void finish_ldmatrix_trans(Exchange&);
}  // namespace sim

#define KERNEL(name) \
  static ::sim::Announced sim_announced_##name(#name, &::sim::Invoker<&name>::call, ::sim::Invoker<&name>::n, ::sim::Invoker<&name>::sizes);
#define SHARED(type, name, dims)                     \
  static const char sim_key_##name = 0;              \
  using sim_type_##name = type dims;                 \
  sim_type_##name& name = *(sim_type_##name*)::sim::shared_array(&sim_key_##name, sizeof(sim_type_##name))
#define DYNAMIC_SHARED(name) unsigned char* name = ::sim::block.dynamic
#define threadIdx (::sim::current->thread)
#define blockIdx (::sim::block.index)
#define blockDim (::sim::block.block)
#define gridDim (::sim::block.grid)

using std::max;
using std::min;
inline void __syncthreads() { sim::sync_block(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { sim::collective(mask, "__syncwarp", nullptr, 0, nullptr); }
template <class T>
inline T sim_shuffle(uint32_t mask, T v, int from, const char* what) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  sim::Exchange& e = sim::collective(mask, what, &v, sizeof(T), nullptr);
  T r;
  memcpy(&r, e.in[from & 31], sizeof(T));
  return r;
}
template <class T> inline T __shfl_xor_sync(uint32_t m, T v, int o) { return sim_shuffle(m, v, sim::current->lane ^ o, "shfl_xor"); }
template <class T> inline T __shfl_sync(uint32_t m, T v, int s) { return sim_shuffle(m, v, s, "shfl"); }
template <class T> inline T __shfl_up_sync(uint32_t m, T v, int o) {
  const int s = sim::current->lane - o;
  return sim_shuffle(m, v, s < 0 ? sim::current->lane : s, "shfl_up");
}
inline uint32_t __ballot_sync(uint32_t m, int p) {
  const uint32_t u = p != 0;
  sim::Exchange& e = sim::collective(m, "ballot", &u, 4, nullptr);
  uint32_t r = 0, v;
  for (int i = 0; i < 32; i++) {
    memcpy(&v, e.in[i], 4);
    if ((m >> i & 1) && v) r |= 1u << i;
  }
  return r;
}
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> (8 * i)) * (int)(int8_t)(b >> (8 * i));
  return c;
}
// Byte i of the result is byte (s >> 4i & 7) of the eight bytes y:x, or its sign, spread, where s >> 4i & 8.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t s) {
  const uint64_t both = (uint64_t)y << 32 | x;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t k = s >> (4 * i) & 15;
    uint32_t b = (uint32_t)(both >> (8 * (k & 7))) & 255;
    if (k & 8) b = b & 128 ? 255 : 0;
    r |= b << (8 * i);
  }
  return r;
}
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline void wait_for_predecessor() { sim::wait_for_predecessor(); }
// A fiber is never interrupted in the middle of it.
inline uint32_t atomic_add(uint32_t* to, uint32_t n) { const uint32_t before = *to; *to += n; return before; }
inline float __expf(float x) { return expf(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline uint4 load_once(const uint4* p) { return *p; }
inline int4 load_here(const int4* p) { return *p; }
inline void copy_async16(void* to, const void* from, bool valid) { sim::copy_issue(to, from, 16, valid); }
inline void copy_async4(void* to, const void* from) { sim::copy_issue(to, from, 4, true); }
inline void copy_async_commit() { sim::copy_commit(); }
template <int N> inline void copy_async_wait() { sim::copy_wait(N); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  sim::Exchange& e = sim::collective(~0u, "ldmatrix", &row, 8, sim::finish_ldmatrix);
  memcpy(r, e.out[sim::current->lane], 16);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  sim::Exchange& e = sim::collective(~0u, "ldmatrix.trans", &row, 8, sim::finish_ldmatrix_trans);
  memcpy(r, e.out[sim::current->lane], 16);
}
template <class T>
inline void sim_mma(T (&c)[4], const uint32_t* in, size_t bytes, const char* what, sim::Finish finish) {
  sim::Exchange& e = sim::collective(~0u, what, in, bytes, finish);
  T sums[4];
  memcpy(sums, e.out[sim::current->lane], 16);
  for (int i = 0; i < 4; i++) c[i] += sums[i];
}
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t in[6] = {a[0], a[1], a[2], a[3], b0, b1};
  sim_mma(c, in, 24, "mma.bf16", sim::finish_mma_bf16);
}
inline void mma_s8_k32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t in[6] = {a[0], a[1], a[2], a[3], b0, b1};
  sim_mma(c, in, 24, "mma.s8.k32", sim::finish_mma_s8_k32);
}
inline void mma_s8_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  const uint32_t in[3] = {a0, a1, b0};
  sim_mma(c, in, 12, "mma.s8.k16", sim::finish_mma_s8_k16);
}
