#include "prelude.cuh"
// Rounds rows to int8: one unit for 256 columns (the largest magnitude over 127, half to even), in the order of
// packed.cuh, with the sums over 16 columns that formats with minima want. Columns past the end are zeros.

// One warp for each superblock of a row: lane l holds columns 8 l ...; with an `order`, column j is the row's order[j].
//   row (cols) f32 -> row y of codes (rows, n_sb, 256), units (rows, n_sb), sums (rows, n_sb, 16)
__device__ __forceinline__ void round_row(const float* __restrict__ row, const int* __restrict__ order,
                                          int8_t* __restrict__ codes, float* __restrict__ units, int16_t* __restrict__ sums,
                                          int y, int cols, int n_sb) {
  const int lane = threadIdx.x & 31, sb = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (sb >= n_sb) return;
  const int first = sb * 256 + lane * 8;
  float v[8], largest = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    v[i] = first + i < cols ? row[order ? order[first + i] : first + i] : 0.f;
    largest = fmaxf(largest, fabsf(v[i]));
  }
  const float unit = warp_max(largest) / 127.f;
  uint32_t words[2] = {0, 0};
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int q = unit > 0.f ? __float2int_rn(v[i] / unit) : 0;
    words[i >> 2] |= (uint32_t)(q & 255) << (8 * (i & 3));
    sum += q;
  }
  // Two lanes share 16 columns.
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  const size_t at = (size_t)y * n_sb + sb;
  // Column c = 128 h + 32 j + 16 p + 4 t + i goes to byte 128 h + 32 t + 8 j + 4 p + i.
  const int h = lane >> 4, j = lane >> 2 & 3, p = lane >> 1 & 1, t = 2 * (lane & 1);
  uint32_t* to = reinterpret_cast<uint32_t*>(codes + at * 256) + 32 * h + 2 * j + p;
  to[8 * t] = words[0];
  to[8 * (t + 1)] = words[1];
  if (!(lane & 1)) sums[at * 16 + (lane >> 1)] = (int16_t)sum;
  if (lane == 0) units[at] = unit;
}

extern "C" __global__ void __launch_bounds__(128) quantize_rows(const float* __restrict__ x, int8_t* __restrict__ codes,
                                                                float* __restrict__ units, int16_t* __restrict__ sums,
                                                                int cols, int n_sb) {
  wait_for_predecessor();
  round_row(x + (size_t)blockIdx.y * cols, nullptr, codes, units, sums, blockIdx.y, cols, n_sb);
}
KERNEL(quantize_rows)

// For weights whose columns lie in another order than the input's (act-order). Where `orders` are given: row y is slot y of
// a mixture of experts, made of input row y / share in the order of its expert, orders[picks[y]]; null: as it is.
extern "C" __global__ void __launch_bounds__(128)
    quantize_ordered(const float* __restrict__ x, const int* order, const int* const* __restrict__ orders,
                     const int* __restrict__ picks, int share, int8_t* __restrict__ codes, float* __restrict__ units,
                     int16_t* __restrict__ sums, int cols, int n_sb) {
  wait_for_predecessor();
  int from = blockIdx.y;
  if (orders) {
    order = orders[picks[blockIdx.y]];
    from /= share;
  }
  round_row(x + (size_t)from * cols, order, codes, units, sums, blockIdx.y, cols, n_sb);
}
KERNEL(quantize_ordered)
