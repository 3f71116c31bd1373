// The kernels of integer execution: codes in, codes out, with ONNX Runtime's arithmetic (core/math/integer_math.h). A table of its own, because a device may
// lack it (Backend::integer_kernels). Codes are u8 of per-tensor grids within 0..255; as in core/backend.h kernels check nothing, throw nothing, any thread.
#pragma once

#include <cstdint>

#include "detent/core/math/conv_geometry.h"
#include "detent/core/math/integer_math.h"

namespace detent {

/// What a fused forward pass keeps of an integer convolution for the backward one: residual_of_sum of each sum.
struct IntegerResidual {
  int8_t* out = nullptr;                // null: nothing is kept
  const float* scale = nullptr;         // [k]: of the sums, AccumulatorScale::value
  IntegerClamp clamp = {};
  bool on_value = false;
};

/// y[k] = requantize(sum (x - x_zero) * q[k] + bias[k]), clamped to the codes `range`. Padding holds x_zero.
struct IntegerConv2dArgs {
  ConvGeometry geometry;
  const uint8_t* x = nullptr;
  int32_t x_zero = 0;
  const void* packed = nullptr;         // by `pack`, for the same geometry but for n, h, w, oh and ow
  const int32_t* offset = nullptr;      // [k]: bias - x_zero * sum of q, wrapping
  const float* multiplier = nullptr;    // [k]
  Grid grid = {};                       // of y
  CodeRange range = {};
  uint8_t* y = nullptr;
  IntegerResidual residual = {};
};

struct IntegerAddArgs {
  int64_t n = 0;
  const uint8_t* a = nullptr;
  const uint8_t* b = nullptr;
  IntegerAdd formula = {};
  CodeRange range = {};
  uint8_t* y = nullptr;
};

/// Each window's largest code; a window that lies wholly in the padding gives 0.
struct IntegerMaxPoolArgs {
  ConvGeometry geometry;                // k == c
  const uint8_t* x = nullptr;
  uint8_t* y = nullptr;
};

struct IntegerKernels {
  /// Bytes of the weights as `conv2d` wants them.
  int64_t (*packed_bytes)(const ConvGeometry& geometry);
  /// From q [k,r,s,c/groups].
  void (*pack)(const ConvGeometry& geometry, const int8_t* q, void* packed);
  void (*conv2d)(const IntegerConv2dArgs&);
  void (*add)(const IntegerAddArgs&);
  void (*max_pool)(const IntegerMaxPoolArgs&);
  /// y[i] = table[x[i]], 256 entries; y may be x.
  void (*regrid)(const uint8_t* x, const uint8_t* table, uint8_t* y, int64_t n);
};

}  // namespace detent
