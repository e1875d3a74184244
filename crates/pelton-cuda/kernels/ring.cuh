// What blocks of many rows have in common, whatever the weights: their shape, the walk through K, and the ring.
//
// A block makes 128 columns of the answer for 64 rows: 8 warps of 16 M columns x 64 / M rows each. Of weights and of
// activations comes one half of a unit (superblock, chunk) at a time into a ring of stages in shared memory, some halves
// ahead of the arithmetic (cp.async): a weight is read once for 64 rows, an activation once for 128 columns.
//
// Where fewer rows have a warp for each class of units (unit % 4), here every warp walks through all of them, class after
// class, so that the same numbers are added in the same order:
//
//   for each class:  acc = 0;  for each unit of the class, in order:  acc += its product
//   answer = ((class 0 + class 1) + class 2) + class 3, then the bias
//
// Grid (groups of 64 rows, groups of 128 columns): blocks that share weights run side by side. Groups are rows as they come,
// or slots that have picked one expert.
#pragma once
#include "prelude.cuh"

// Bytes of a row of activations in a stage: 128, and 16 of nothing, so that lanes of two rows meet different banks.
constexpr int COLUMNS = 128, ROWS = 64, CLASSES = 4, ROW_BYTES = 128 + 16;

// Rows that a block multiplies: 64 from `first` on, as they come; or the slots of one expert, whose inputs are slot / share.
struct Group {
  const int* order;
  int first, count, share;
  __device__ __forceinline__ int slot(int r) const {
    // Rows past the last repeat it: their answers are dropped.
    const int i = first + min(r, count - 1);
    return order ? order[i] : i;
  }
  __device__ __forceinline__ int row(int r) const { return slot(r) / share; }
};

// What the experts' products need besides: tables of weights and biases by expert, groups (moe.cu), and the slots.
struct Experts {
  const uint8_t* const* weights;
  const float* const* biases;
  const int4* groups;
  const int* order;
  int share;
};

// Where a block's answers go, in shared memory until they are there: of each row its slot, or -1.
struct Answers {
  int slots[ROWS];
  const float* bias;
};

// This block's group; false where it has none, or its expert lies in another layout. `weights` become the expert's.
__device__ __forceinline__ bool find_group(Group& group, Answers& answers, const Experts& experts, int tokens, const uint8_t*& weights,
                                           const float* bias) {
  const int first = blockIdx.x * ROWS, r = threadIdx.x;
  group = Group{nullptr, first, min(ROWS, tokens - first), 1};
  if (experts.groups) {
    const int4 its = experts.groups[blockIdx.x];
    weights = experts.weights[its.x];
    if (its.z <= 0 || !weights) return false;
    bias = experts.biases[its.x];
    group = Group{experts.order, its.y, its.z, experts.share};
  }
  // The walk's barriers are between this and `store`.
  if (r < ROWS) answers.slots[r] = r < group.count ? group.slot(r) : -1;
  if (r == 0) answers.bias = bias;
  return true;
}

// A half of a unit on the walk.
struct Position {
  int its_class, unit, half;
  __device__ __forceinline__ void next(int n_units) {
    half ^= 1;
    if (half) return;
    unit += CLASSES;
    if (unit >= n_units && its_class < CLASSES - 1) unit = ++its_class;
  }
};

// The pieces of activations, `n_units` * 256 bytes a row, that a thread copies into every stage.
struct Rows {
  const unsigned char* x;
  int n_units, rows[2];  // not their addresses: those would take registers through the whole walk
  __device__ __forceinline__ Rows(const void* activations, int n, const Group& group) {
    x = static_cast<const unsigned char*>(activations);
    n_units = n;
#pragma unroll
    for (int r = 0; r < 2; r++) rows[r] = group.row(32 * r + (threadIdx.x >> 3));
  }
  __device__ __forceinline__ void issue(unsigned char* to, Position p) const {
#pragma unroll
    for (int r = 0; r < 2; r++)
      copy_async16(to + (32 * r + (threadIdx.x >> 3)) * ROW_BYTES + 16 * (threadIdx.x & 7),
                   x + ((size_t)rows[r] * n_units + p.unit) * 256 + p.half * 128 + 16 * (threadIdx.x & 7), true);
  }
};

// A warp's part of the block: M times 8 / M tiles of 16 columns x 8 rows.
template <int M>
struct Part {
  static constexpr int N = 8 / M;
  int column, row;  // the first of each, within the block
  __device__ __forceinline__ Part() {
    const int warp = threadIdx.x >> 5;
    column = warp % N * (16 * M);
    row = warp / N * (8 * N);
  }
};
// Its sums: of tile (m, i) columns 16 m + g (and + 8), rows 8 i + 2 t (and + 1).
template <int M, class T = float>
using Sums = T[M][8 / M][4];

template <int M>
__device__ __forceinline__ void add_class(Sums<M>& total, const Sums<M>& acc, int its_class) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 8 / M; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) total[m][i][e] = its_class == 0 ? acc[m][i][e] : total[m][i][e] + acc[m][i][e];
}

// out (tokens, width): columns column...
template <int M>
__device__ __forceinline__ void store(const Sums<M>& total, Part<M> part, const Answers& answers, float* out, int n, int width,
                                      int column) {
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 8 / M; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int at = blockIdx.y * COLUMNS + part.column + 16 * m + g + 8 * (e >> 1);
        const int slot = answers.slots[part.row + 8 * i + 2 * t + (e & 1)];
        if (at >= n || slot < 0) continue;
        float v = total[m][i][e];
        if (answers.bias) v += answers.bias[at];
        out[(size_t)slot * width + column + at] = v;
      }
}

// The walk: `copy(stage, position)` sends a half on its way, `multiply(acc, stage, position)` adds it when it is there.
// UNROLLED: halves of a unit that the compiler may mix, where registers allow it.
template <int M, int STAGES, int STAGE_BYTES, int UNROLLED, class Copy, class Multiply>
__device__ __forceinline__ void walk(Sums<M>& total, unsigned char* ring, int n_units, Copy copy, Multiply multiply) {
  Position copied = {0, 0, 0};
  int to = 0, stage = 0;
  auto copy_next = [&]() {
    if (copied.unit < n_units) {
      copy(ring + to * STAGE_BYTES, copied);
      if (++to == STAGES) to = 0;
      copied.next(n_units);
    }
    copy_async_commit();
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy_next();
  for (int its_class = 0; its_class < CLASSES; its_class++) {
    Sums<M> acc = {};
    for (int unit = its_class; unit < n_units; unit += CLASSES) {
#pragma unroll UNROLLED
      for (int half = 0; half < 2; half++) {
        // This half has arrived, and nobody reads the one before, whose place the next copies take.
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        copy_next();
        multiply(acc, ring + stage * STAGE_BYTES, Position{its_class, unit, half});
        if (++stage == STAGES) stage = 0;
      }
    }
    add_class<M>(total, acc, its_class);
  }
}
