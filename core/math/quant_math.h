// The arithmetic of quantization, once, for host and device: grid from a range, quantize, dequantize, gradients.
// Values round half to even as in ONNX QuantizeLinear; a range becomes a zero point by rounding half away in double as in AIMET's core.
// Compile every user with -ffp-contract=off (host) or -fmad=false (nvcc): then CPU and GPU agree to the bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent {

/// One integer grid: value = scale * (q - zero_point), q in qmin..qmax. The same object feeds forward, backward, integer kernels and export.
struct Grid {
  float scale = 1.0f;
  int32_t zero_point = 0;
  int32_t qmin = 0;
  int32_t qmax = 255;
  friend bool operator==(const Grid&, const Grid&) = default;
};

/// A range as the user or the optimizer sees it; double, because a grid is derived in double.
struct Range {
  double min = 0.0;
  double max = 0.0;
};

struct GridSpec {
  int bits = 8;
  bool symmetric = false;
  bool strict = false;     ///< symmetric without the extra negative level: -127..127
  bool unsigned_symmetric = false;  ///< symmetric grids of non-negative ranges use 0..2^b-1
};

/// Quantize in float, before the integer cast: rint(x/s)+z clamped to [qmin,qmax]; NaN gives z.
DETENT_HD float quantize_to_float(float x, const Grid& g) {
  const float v = rintf(x / g.scale) + static_cast<float>(g.zero_point);
  const float lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const float c = v < lo ? lo : (v > hi ? hi : v);
  return c == c ? c : static_cast<float>(g.zero_point);
}

DETENT_HD int32_t quantize(float x, const Grid& g) { return static_cast<int32_t>(quantize_to_float(x, g)); }

DETENT_HD float dequantize(int32_t q, const Grid& g) { return g.scale * static_cast<float>(q - g.zero_point); }

DETENT_HD float fake_quantize(float x, const Grid& g) { return g.scale * (quantize_to_float(x, g) - static_cast<float>(g.zero_point)); }

/// A bias as an integer target holds it: int32 on the grid s_x * s_w (ONNX QLinearConv), back in float. Saturates like the int32 would.
DETENT_HD float round_to_accumulator_grid(float bias, float input_scale, float weight_scale) {
  const float s = input_scale * weight_scale;
  const double q = rint(static_cast<double>(bias / s));
  const double c = q < -2147483648.0 ? -2147483648.0 : (q > 2147483647.0 ? 2147483647.0 : q);
  return static_cast<float>(c * static_cast<double>(s));
}

/// What a fused forward keeps for the backward pass of clamp + quantize, one byte: -128 = no gradient to v (outside the grid, or at or outside the
/// clamp), else rint(254 * (rint(v/s) - v/s)), in [-127,127]. Outside the grid the range term is the code itself, q - z.
DETENT_HD int8_t residual_byte(float v, const Grid& g, bool masked) {
  const float t = v / g.scale;
  const float q = rintf(t) + static_cast<float>(g.zero_point);
  if (masked || !(q >= static_cast<float>(g.qmin) && q <= static_cast<float>(g.qmax))) return -128;
  return static_cast<int8_t>(rintf(254.0f * (rintf(t) - t)));
}

}  // namespace detent
