// What all attention kernels share: chunks of positions, and how their answers are joined.
//
// A row sees positions first .. position. Positions are cut in chunks of 128 by their number alone; each chunk has its own
// softmax: largest score m, sum of weights l, weighted sum of values o. Chunks are joined in order of position, one after
// another. So a row's bits do not depend on which block, launch or step computed which chunk.
#pragma once
#include "prelude.cuh"

constexpr int CHUNK = 128;

// A chunk's part joins what was joined before: both sums are scaled to the larger of the two largest scores.
struct Join {
  float keep, take;  // factors of what is there and of what comes
};
__device__ __forceinline__ Join join(float& largest, float& sum, float m, float l) {
  Join j;
  if (m == -INFINITY) {
    j.keep = 1.f;
    j.take = 0.f;
    return j;
  }
  const float now = fmaxf(largest, m);
  j.keep = largest == -INFINITY ? 0.f : exp2f(largest - now);
  j.take = exp2f(m - now);
  sum = __fmaf_rn(sum, j.keep, __fmul_rn(l, j.take));
  largest = now;
  return j;
}
__device__ __forceinline__ float join_value(Join j, float there, float comes) {
  return __fmaf_rn(there, j.keep, __fmul_rn(comes, j.take));
}
// Scores are in units of log2: exp2f does the rest.
__device__ __forceinline__ float score_of(float dot, float scale, float cap) {
  const float LOG2E = 1.4426950408889634f;
  if (cap > 0.f) return __fmul_rn(__fmul_rn(cap, tanhf(__fmul_rn(dot, scale) / cap)), LOG2E);
  return __fmul_rn(dot, __fmul_rn(scale, LOG2E));
}
// The first position that a row sees; window 0: all.
__device__ __forceinline__ int first_seen(int position, int window) { return window > 0 ? max(0, position + 1 - window) : 0; }
