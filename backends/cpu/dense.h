// Kernels over whole rows of c floats that the compiler vectorises: one source, dense.cpp, built for each instruction set. No sum is reordered by the
// width of a vector and nothing is contracted, so every build gives the same bits. PODs only, no library templates.
#pragma once

#include <cstdint>

namespace detent::cpu {

/// With a mask, elements whose y = (x - mean) * factor + shift is <= lo or >= hi give no gradient: y is computed again, which costs less than reading it.
struct NormGradient {
  const float* x;
  const float* dy;
  const float *mean, *factor, *shift;
  bool masked;
  float lo, hi;
};

struct DenseKernels {
  /// sum[j] += sum over rows of x[i * stride + j], four rows at a time: (r0 + r1) + (r2 + r3).
  void (*add_rows)(const float* x, int64_t stride, int64_t rows, int64_t c, float* sum);
  /// sum[j] += sum over rows of (x - mean)^2, likewise.
  void (*add_squares)(const float* x, int64_t rows, int64_t c, const float* mean, float* sum);
  /// y = clamp((x - mean) * factor + shift, lo, hi); NaN passes through.
  void (*normalise)(const float* x, int64_t rows, int64_t c, const float* mean, const float* factor, const float* shift, float lo, float hi, float* y);
  /// sum[j] += dy, dot[j] += dy * (x - mean) over rows, two rows at a time.
  void (*norm_sums)(const NormGradient& g, int64_t rows, int64_t c, float* sum, float* dot);
  /// dx = k1 * dy - k2 - k3 * (x - mean).
  void (*norm_backward)(const NormGradient& g, int64_t rows, int64_t c, const float* k1, const float* k2, const float* k3, float* dx);
  /// dx = dy where lo <= x <= hi, else 0.
  void (*mask)(const float* x, const float* dy, float lo, float hi, float* dx, int64_t n);
  /// y = clamp(x, lo, hi), lo <= hi; NaN passes through. Backward: dx = lo < x < hi ? dy : 0; a NaN x passes dy.
  void (*clip)(const float* x, float lo, float hi, float* y, int64_t n);
  void (*clip_backward)(const float* x, const float* dy, float lo, float hi, float* dx, int64_t n);
  /// For each tap t in order: where tap[t][offset + j] beats best[j] (larger, or the first NaN, or index[j] < 0) it becomes best[j] and where[t] index[j].
  void (*max_taps)(const float* const* tap, const int32_t* where, int64_t taps, int64_t offset, int64_t c, float* best, int32_t* index);
  /// y[i] = first + i * step: addresses, or positions.
  void (*ramp)(int64_t first, int64_t step, int64_t n, int64_t* y);
  /// y = x, rounded to bf16 and exactly.
  void (*narrow)(const float* x, uint16_t* y, int64_t n);
  void (*widen)(const uint16_t* x, float* y, int64_t n);
  /// dx[j] += index[j] == here ? dy[j] : 0.
  void (*pick)(const float* dy, const int32_t* index, int32_t here, int64_t c, float* dx);
};

extern const DenseKernels kDenseScalar;
extern const DenseKernels kDenseAvx2;
extern const DenseKernels kDenseAvx512;

/// Those of the instruction set in use.
const DenseKernels& dense_kernels();

}  // namespace detent::cpu
