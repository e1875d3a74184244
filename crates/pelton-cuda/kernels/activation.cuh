// The gates, in one rounding of each operation wherever they are computed: fused and alone give the same bits.
#pragma once
#include "prelude.cuh"

enum { GATE_SILU, GATE_GELU };

__device__ __forceinline__ float gated(int kind, float g, float up) {
  float a;
  if (kind == GATE_SILU) {
    a = g / (1.f + expf(-g));
  } else {
    const float cube = __fmul_rn(__fmul_rn(g, g), g);
    const float inner = __fmul_rn(0.7978845608028654f, __fmaf_rn(0.044715f, cube, g));
    a = __fmul_rn(__fmul_rn(0.5f, g), 1.f + tanhf(inner));
  }
  return __fmul_rn(a, up);
}
