#include "prelude.cuh"
// Rows of logits weighed where they are, so that choosing a token takes a few bytes of each instead of all of it: the best
// token, the sums that probabilities are shares of, a token drawn from all, and the likeliest tokens.
//
// The weight of a logit x is exp((x - max) / temperature) in the arithmetic of pelton-sample: sums of plain roundings in a
// written order, so that the host finds the same bits from the same logits. A row's sum is that of blocks of 1024 in order
// (f64); a block's, of 16 lanes (f64); a lane's, of every 16th weight in order (f32).
//
//   logits_best      grid (blocks of 1024, rows): each block's best token, and its first that is no number
//   logits_sums      grid (blocks of 1024, rows): each block's sums, and how many tokens are how far from the row's best
//   logits_totals    grid (rows): the row's sums; a token drawn from all; how far from the best the likeliest may be
//   logits_likeliest grid (blocks of 1024, rows): the tokens that are no farther

constexpr int BLOCK = 1024;
// Most likeliest tokens of a row: as many whole buckets as fit.
constexpr int MOST = 512;
// Sixteenths of a nat from the best; the last takes all beyond.
constexpr int BUCKETS = 1024;
constexpr uint32_t NONE = 0xffffffffu;

// What is asked of a row.
struct Ask {
  float temperature;  // 0: nothing is drawn
  uint32_t wants;     // WANTS_DRAW, WANTS_LIKELIEST
  double point;       // where in the sum a token is drawn
};
constexpr uint32_t WANTS_DRAW = 1, WANTS_LIKELIEST = 2;

struct Best {
  float value;
  uint32_t id;
  uint32_t odd;  // the first id whose logit is NaN or +inf
};

// What is known of a row.
struct Weighed {
  float max;
  uint32_t best;
  uint32_t odd;
  float odd_value;
  double sum;     // at temperature 1
  double sum_at;  // at the row's temperature
  uint32_t drawn;
  float drawn_value;
  uint32_t n_likeliest;
  int edge;  // the last bucket of the likeliest; -1: none, BUCKETS - 1: they are all
};

// e^x for x <= 0, as pelton-sample computes it.
__device__ __forceinline__ float exp_of(float x) {
  const float round = 12582912.f, clamped = fmaxf(x, -87.f);
  const float rounded = __fadd_rn(__fmul_rn(clamped, 1.4426950408889634f), round), n = __fsub_rn(rounded, round);
  const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
  const float coefficients[7] = {1.f / 720.f, 1.f / 120.f, 1.f / 24.f, 1.f / 6.f, 0.5f, 1.f, 1.f};
  float series = 1.f / 5040.f;
#pragma unroll
  for (int i = 0; i < 7; i++) series = __fadd_rn(__fmul_rn(series, r), coefficients[i]);
  const float power = __uint_as_float((__float_as_uint(rounded) - __float_as_uint(round) + 127u) << 23);
  return x < -87.f ? 0.f : __fmul_rn(series, power);
}
__device__ __forceinline__ float weight_of(float logit, float max, float temperature) {
  return exp_of(__fdiv_rn(__fsub_rn(logit, max), temperature));
}
__device__ __forceinline__ int bucket_of(float logit, float max) {
  return (int)fminf(__fmul_rn(__fsub_rn(max, logit), 16.f), (float)(BUCKETS - 1));
}

// The better of two: the larger, of equals the lower id.
__device__ __forceinline__ void join(Best& a, float value, uint32_t id, uint32_t odd) {
  if (value > a.value || (value == a.value && id < a.id)) {
    a.value = value;
    a.id = id;
  }
  a.odd = min(a.odd, odd);
}
// The best of what 256 threads have, in all of them.
__device__ __forceinline__ Best best_of_block(Best mine, Best* warps) {
#pragma unroll
  for (int o = 16; o; o >>= 1) {
    const float value = __shfl_xor_sync(ALL_LANES, mine.value, o);
    const uint32_t id = __shfl_xor_sync(ALL_LANES, mine.id, o), odd = __shfl_xor_sync(ALL_LANES, mine.odd, o);
    join(mine, value, id, odd);
  }
  if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = mine;
  __syncthreads();
  Best best = warps[0];
#pragma unroll
  for (int w = 1; w < 8; w++) join(best, warps[w].value, warps[w].id, warps[w].odd);
  return best;
}
// The best of a row, of what its blocks found.
__device__ __forceinline__ Best best_of_row(const Best* __restrict__ blocks, int n_blocks, Best* warps) {
  Best mine = {-INFINITY, NONE, NONE};
  for (int b = threadIdx.x; b < n_blocks; b += 256) join(mine, blocks[b].value, blocks[b].id, blocks[b].odd);
  return best_of_block(mine, warps);
}

// logits (rows, vocab) -> best (rows, blocks); counts (rows, BUCKETS) and the row's number of likeliest become 0.
extern "C" __global__ void __launch_bounds__(256) logits_best(const float* __restrict__ logits, Best* __restrict__ best,
                                                              uint32_t* __restrict__ counts, Weighed* __restrict__ weighed,
                                                              int vocab) {
  wait_for_predecessor();
  SHARED(Best, warps, [8]);
  const float* row = logits + (size_t)blockIdx.y * vocab;
  Best mine = {-INFINITY, NONE, NONE};
#pragma unroll
  for (int i = 0; i < BLOCK; i += 256) {
    const int id = blockIdx.x * BLOCK + i + threadIdx.x;
    if (id >= vocab) continue;
    const float v = row[id];
    // NaN is not below infinity either, and is better than nothing.
    join(mine, v, id, v < INFINITY ? NONE : id);
  }
  const Best all = best_of_block(mine, warps);
  if (threadIdx.x == 0) best[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = all;
  if (blockIdx.x) return;
  for (int i = threadIdx.x; i < BUCKETS; i += 256) counts[(size_t)blockIdx.y * BUCKETS + i] = 0;
  if (threadIdx.x == 0) weighed[blockIdx.y].n_likeliest = 0;
}
KERNEL(logits_best)

// -> sums (rows, blocks, 2), counts (rows, BUCKETS)
extern "C" __global__ void __launch_bounds__(256)
    logits_sums(const float* __restrict__ logits, const Ask* __restrict__ asks, const Best* __restrict__ best,
                double* __restrict__ sums, uint32_t* __restrict__ counts, int vocab) {
  wait_for_predecessor();
  SHARED(Best, warps, [8]);
  SHARED(float, weights, [2][BLOCK]);
  SHARED(float, lanes, [2][16]);
  SHARED(uint32_t, near, [BUCKETS]);
  const float max = best_of_row(best + (size_t)blockIdx.y * gridDim.x, gridDim.x, warps).value;
  const float* row = logits + (size_t)blockIdx.y * vocab;
  const Ask ask = asks[blockIdx.y];
  const int first = blockIdx.x * BLOCK, n = min(BLOCK, vocab - first);
  const bool counted = ask.wants & WANTS_LIKELIEST;
  if (counted)
    for (int i = threadIdx.x; i < BUCKETS; i += 256) near[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += 256) {
    const float v = row[first + i];
    weights[0][i] = exp_of(__fsub_rn(v, max));
    if (ask.temperature > 0.f) weights[1][i] = weight_of(v, max, ask.temperature);
    if (counted && v > -INFINITY) atomic_add(&near[bucket_of(v, max)], 1u);
  }
  __syncthreads();
  const int which = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const bool sums_up = which == 0 || (which == 1 && ask.temperature > 0.f);
  if (sums_up && lane < 16) {
    float sum = 0.f;
    for (int i = lane; i < n; i += 16) sum = __fadd_rn(sum, weights[which][i]);
    lanes[which][lane] = sum;
  }
  __syncwarp();
  if (which < 2 && lane == 0) {
    double sum = 0.;
    if (sums_up)
      for (int l = 0; l < 16; l++) sum += (double)lanes[which][l];
    sums[((size_t)blockIdx.y * gridDim.x + blockIdx.x) * 2 + which] = sum;
  }
  if (counted)
    for (int i = threadIdx.x; i < BUCKETS; i += 256)
      if (near[i]) atomic_add(&counts[(size_t)blockIdx.y * BUCKETS + i], near[i]);
}
KERNEL(logits_sums)

// The token in whose share of the sum of weights `point` falls. Passes whole blocks by their sums, then goes through the one
// that is hit; all threads call it, the first one knows.
__device__ __forceinline__ uint32_t draw(const float* __restrict__ row, const double* __restrict__ sums, float* weights, int* hit,
                                         Ask ask, float max, uint32_t best, double total, int n_blocks, int vocab) {
  const double target = __dmul_rn(ask.point, total);
  double passed = 0.;
  if (threadIdx.x == 0) {
    int block = 0;
    while (block < n_blocks - 1 && !(passed + sums[2 * block] > target)) passed += sums[2 * block++];
    *hit = block;
  }
  __syncthreads();
  const int first = *hit * BLOCK, n = min(BLOCK, vocab - first);
  for (int i = threadIdx.x; i < n; i += 256) weights[i] = weight_of(row[first + i], max, ask.temperature);
  __syncthreads();
  uint32_t chosen = best;
  if (threadIdx.x == 0) {
    for (int i = 0; i < n; i++) {
      const float weight = weights[i];
      passed += (double)weight;
      if (weight > 0.f) {
        chosen = first + i;
        if (passed > target) break;
      }
    }
  }
  return chosen;
}

// -> weighed (rows); its likeliest are counted by logits_likeliest.
extern "C" __global__ void __launch_bounds__(256)
    logits_totals(const float* __restrict__ logits, const Ask* __restrict__ asks, const Best* __restrict__ best,
                  const double* __restrict__ sums, const uint32_t* __restrict__ counts, Weighed* __restrict__ weighed,
                  int n_blocks, int vocab) {
  wait_for_predecessor();
  SHARED(Best, warps, [8]);
  SHARED(double, totals, [2]);
  SHARED(float, weights, [BLOCK]);
  SHARED(int, hit, [1]);
  const float* row = logits + (size_t)blockIdx.x * vocab;
  const Ask ask = asks[blockIdx.x];
  const Best all = best_of_row(best + (size_t)blockIdx.x * n_blocks, n_blocks, warps);
  const double* own = sums + (size_t)blockIdx.x * n_blocks * 2;
  Weighed& to = weighed[blockIdx.x];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  if (warp < 2 && lane == 0) {
    double total = 0.;
    for (int b = 0; b < n_blocks; b++) total += own[2 * b + warp];
    totals[warp] = total;
  }
  if (warp == 2) {
    // How many whole buckets fit: each lane counts 32 of them, then those before it.
    uint32_t mine = 0, before = 0;
    int edge = -1;
    if (ask.wants & WANTS_LIKELIEST) {
      const uint32_t* bins = counts + (size_t)blockIdx.x * BUCKETS + lane * (BUCKETS / 32);
      for (int i = 0; i < BUCKETS / 32; i++) mine += bins[i];
      before = mine;
      for (int o = 1; o < 32; o <<= 1) {
        const uint32_t other = __shfl_up_sync(ALL_LANES, before, o);
        if (lane >= o) before += other;
      }
      before -= mine;
      for (int i = 0; i < BUCKETS / 32 && before + bins[i] <= MOST; i++) {
        before += bins[i];
        edge = lane * (BUCKETS / 32) + i;
      }
      // A lane that stopped early stops those after it: what they counted is more.
#pragma unroll
      for (int o = 16; o; o >>= 1) edge = max(edge, __shfl_xor_sync(ALL_LANES, edge, o));
    }
    if (lane == 0) to.edge = edge;
  }
  __syncthreads();
  uint32_t drawn = all.id;
  if (ask.wants & WANTS_DRAW) drawn = draw(row, own + 1, weights, hit, ask, all.value, all.id, totals[1], n_blocks, vocab);
  if (threadIdx.x) return;
  to.max = all.value;
  to.best = all.id;
  to.odd = all.odd;
  to.odd_value = all.odd == NONE ? 0.f : row[all.odd];
  to.sum = totals[0];
  to.sum_at = totals[1];
  to.drawn = drawn;
  to.drawn_value = drawn < (uint32_t)vocab ? row[drawn] : 0.f;
}
KERNEL(logits_totals)

// -> likeliest (rows, MOST): ids and logits, in no order.
extern "C" __global__ void __launch_bounds__(256) logits_likeliest(const float* __restrict__ logits, Weighed* weighed,
                                                                   uint2* __restrict__ likeliest, int vocab) {
  wait_for_predecessor();
  Weighed& row = weighed[blockIdx.y];
  const float max = row.max;
  const int edge = row.edge;
  if (edge < 0) return;
#pragma unroll
  for (int i = 0; i < BLOCK; i += 256) {
    const int id = blockIdx.x * BLOCK + i + threadIdx.x;
    if (id >= vocab) continue;
    const float v = logits[(size_t)blockIdx.y * vocab + id];
    if (!(v > -INFINITY) || bucket_of(v, max) > edge) continue;
    const uint32_t slot = atomic_add(&row.n_likeliest, 1u);
    if (slot < MOST) likeliest[(size_t)blockIdx.y * MOST + slot] = uint2{(uint32_t)id, __float_as_uint(v)};
  }
}
KERNEL(logits_likeliest)
