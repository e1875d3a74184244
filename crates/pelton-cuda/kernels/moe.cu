#include "prelude.cuh"
// Mixture of experts: which experts a row goes to, and the sum of their answers. The experts' products are those of
// matvec.cu, terms.cu and floats.cu, one block row for each pick, or, of many rows, those of matmul_many.cu and terms_many.cu
// over groups of slots that have picked one expert.

__device__ __forceinline__ int warp_total(int v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(ALL_LANES, v, o);
  return v;
}

// One warp a row: the top_k largest logits, the lower index first among equals; weights: softmax over all experts, over
// those chosen where `normalise`. logits (rows, n_experts) -> picks, weights (rows, top_k), best first.
extern "C" __global__ void __launch_bounds__(32) moe_route(const float* __restrict__ logits, int* __restrict__ picks,
                                                           float* __restrict__ weights, int n_experts, int top_k, int normalise) {
  wait_for_predecessor();
  const int lane = threadIdx.x;
  const float* row = logits + (size_t)blockIdx.x * n_experts;
  int* chosen = picks + (size_t)blockIdx.x * top_k;
  float* out = weights + (size_t)blockIdx.x * top_k;
  float most = 0.f, total = 0.f;
  int last = -1;
  float last_value = 0.f;
  for (int k = 0; k < top_k; k++) {
    // The best of those that come after the last one chosen.
    float best = -INFINITY;
    int index = n_experts;
    for (int e = lane; e < n_experts; e += 32) {
      const float v = row[e];
      const bool is_left = last < 0 || v < last_value || (v == last_value && e > last);
      if (is_left && (v > best || index == n_experts)) {
        best = v;
        index = e;
      }
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      const float v = __shfl_xor_sync(ALL_LANES, best, o);
      const int e = __shfl_xor_sync(ALL_LANES, index, o);
      const bool wins = e < n_experts && (index == n_experts || v > best || (v == best && e < index));
      if (wins) {
        best = v;
        index = e;
      }
    }
    if (k == 0) most = best;
    last = index;
    last_value = best;
    const float w = expf(best - most);
    if (normalise) total += w;
    if (lane == 0) {
      // A logit that is no number loses every comparison: the row's answer is no number anyway.
      chosen[k] = min(index, n_experts - 1);
      out[k] = w;
    }
  }
  if (!normalise) {
    for (int e = lane; e < n_experts; e += 32) total += expf(row[e] - most);
    total = warp_sum(total);
  }
  __syncwarp();
  for (int k = lane; k < top_k; k += 32) out[k] = out[k] / total;
}
KERNEL(moe_route)

// Slots by expert, for products of many rows (ring.cuh); one warp for each expert. First how many each has:
//   picks (slots,) -> counts (n_experts,)
extern "C" __global__ void __launch_bounds__(128) moe_count(const int* __restrict__ picks, int* __restrict__ counts, int slots, int n_experts) {
  wait_for_predecessor();
  const int lane = threadIdx.x & 31, e = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (e >= n_experts) return;
  int count = 0;
  for (int i = lane; i < slots; i += 32) count += picks[i] == e;
  count = warp_total(count);
  if (lane == 0) counts[e] = count;
}
KERNEL(moe_count)

// Then the slots, those of one expert side by side and in order, and groups of up to 64 of them: (expert, first in `order`,
// how many, 0). Of the list's n_groups those that are not needed are empty.
extern "C" __global__ void __launch_bounds__(128) moe_group(const int* __restrict__ picks, const int* __restrict__ counts, int* __restrict__ order,
                                                            int4* __restrict__ groups, int slots, int n_experts, int n_groups) {
  wait_for_predecessor();
  const int lane = threadIdx.x & 31, e = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (e >= n_experts) return;
  int before = 0, groups_before = 0;
  for (int i = lane; i < e; i += 32) {
    before += counts[i];
    groups_before += (counts[i] + 63) / 64;
  }
  before = warp_total(before);
  groups_before = warp_total(groups_before);
  const int count = counts[e], end = groups_before + (count + 63) / 64;
  for (int k = lane; k < end - groups_before; k += 32) groups[groups_before + k] = int4{e, before + 64 * k, min(64, count - 64 * k), 0};
  if (e == n_experts - 1)
    for (int k = end + lane; k < n_groups; k += 32) groups[k] = int4{0, 0, 0, 0};
  int at = before;
  for (int first = 0; first < slots; first += 32) {
    const int i = first + lane;
    const bool is_its = i < slots && picks[i] == e;
    const uint32_t its = __ballot_sync(ALL_LANES, is_its);
    if (is_its) order[at + __popc(its & ((1u << lane) - 1))] = i;
    at += __popc(its);
  }
}
KERNEL(moe_group)

// out[r] = sum over k of weights[r][k] * answers[r * top_k + k], in the order of k.
extern "C" __global__ void moe_combine(const float* __restrict__ answers, const float* __restrict__ weights,
                                       float* __restrict__ out, int cols, int top_k) {
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= cols) return;
  float sum = 0.f;
  for (int k = 0; k < top_k; k++) {
    const size_t slot = (size_t)blockIdx.y * top_k + k;
    sum = __fmaf_rn(weights[slot], answers[slot * cols + i], sum);
  }
  out[(size_t)blockIdx.y * cols + i] = sum;
}
KERNEL(moe_combine)
