// The arithmetic of quantization, once, for host and device: grid from a range, quantize, dequantize, gradients.
// Values round half to even as in ONNX QuantizeLinear; a range becomes a zero point by rounding half away in double as in AIMET's core.
// Compile every user with -ffp-contract=off (host) or -fmad=false (nvcc): then CPU and GPU agree to the bit. Pure functions: thread-safe.
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

/// The grid of a kernel's arguments (core/backend.h).
DETENT_HD Grid present(const Grid& g, const Grid* resident) { return resident ? *resident : g; }

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
  double least_scale = 0.0;  ///< narrower steps are widened to it (AIMET 2.42: kLeastScale); 0: ranges have a least width instead (AIMET up to v1)
};

/// v within [lo, hi]; v is a number, and no -0 where an end is 0. One comparison an end on a GPU.
DETENT_HD float within(float v, float lo, float hi) {
#if defined(__CUDA_ARCH__)
  return fminf(fmaxf(v, lo), hi);
#else
  return v < lo ? lo : (v > hi ? hi : v);
#endif
}
/// The integer nearest to v, the even one of two; v is within int32. One instruction on a GPU.
DETENT_HD int32_t nearest(float v) {
#if defined(__CUDA_ARCH__)
  return __float2int_rn(v);
#else
  return static_cast<int32_t>(rintf(v));
#endif
}

/// Quantize in float, before the integer cast: rint(x/s)+z clamped to [qmin,qmax]; NaN gives z.
DETENT_HD float quantize_to_float(float x, const Grid& g) {
  const float v = rintf(x / g.scale) + static_cast<float>(g.zero_point);
  const float lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const float c = v < lo ? lo : (v > hi ? hi : v);
  return c == c ? c : static_cast<float>(g.zero_point);
}

DETENT_HD int32_t quantize(float x, const Grid& g) {
  const float q = quantize_to_float(x, g);
  return q >= 2147483648.0f ? g.qmax : static_cast<int32_t>(q);  // a 32-bit grid's upper end is no float
}

DETENT_HD float dequantize(int32_t q, const Grid& g) { return g.scale * static_cast<float>(q - g.zero_point); }

DETENT_HD float fake_quantize(float x, const Grid& g) { return g.scale * (quantize_to_float(x, g) - static_cast<float>(g.zero_point)); }

/// A bias as an integer target holds it: int32 on the grid s_x * s_w (ONNX QLinearConv), back in float. Saturates like the int32 would.
DETENT_HD float round_to_accumulator_grid(float bias, float input_scale, float weight_scale) {
  const float s = input_scale * weight_scale;
  const double q = rint(static_cast<double>(bias / s));
  const double c = q < -2147483648.0 ? -2147483648.0 : (q > 2147483647.0 ? 2147483647.0 : q);
  return static_cast<float>(c * static_cast<double>(s));
}

/// What a fused forward keeps for the backward pass of clamp + quantize, one byte. kOutside: outside the grid, no gradient to v and the range term is the
/// code itself, q - z. kMasked: on the grid but at or outside the clamp, no gradient, and the range term is the bound's residual. Else
/// round(252 * (rint(v/s) - v/s)): the gradient passes and the range term is the residual.
constexpr int8_t kOutside = -128;
constexpr int8_t kMasked = -127;
constexpr float kResidualScale = 252.0f;

/// on_value: outside is decided on v itself (AIMET's plain straight-through mask) instead of on the rounded value.
DETENT_HD int8_t residual_byte(float v, const Grid& g, bool masked, bool on_value = false) {
  const float t = v / g.scale;
  const float n = rintf(t), z = static_cast<float>(g.zero_point);
  const float q = n + z;
  const float lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const bool inside = on_value ? v >= g.scale * (lo - z) && v <= g.scale * (hi - z) : q >= lo && q <= hi;
  if (!inside) return kOutside;
  return masked ? kMasked : static_cast<int8_t>(nearest(kResidualScale * (n - t)));
}

/// One element of the backward pass of quantization with a learned range: dx, and its terms of FakeQuantBackwardArgs' sums. A NaN x gives no terms.
struct RangeTerms {
  float dx, scale, clip;
};
DETENT_HD RangeTerms range_terms(float x, float dy, float scale, float zero, float lo, float hi) {
  const float t = x / scale, r = rintf(t), v = r + zero;
  const bool below = v < lo, above = v > hi, inside = v >= lo && v <= hi;
  const float outer = below || above ? dy : 0.0f;
  return {inside ? dy : 0.0f, inside ? dy * (r - t) : (below || above ? dy * ((below ? lo : hi) - zero) : 0.0f), outer};
}

/// Range terms of what a clamp holds at its ends, times kResidualScale: a bound between two codes is rounded as any value, by the same amount each time. Codes
/// from first_high on are at the upper end. A bound that is 0, infinite or on the grid has none.
struct ClampTerms {
  int32_t first_high = 0;
  float low = 0.0f, high = 0.0f;
};
DETENT_HD float bound_term(float bound, const Grid& g) {
  const float t = bound / g.scale, r = kResidualScale * (rintf(t) - t);
  return r == r ? r : 0.0f;
}
DETENT_HD ClampTerms clamp_terms(float clamp_min, float clamp_max, const Grid& g) {
  const int32_t lo = quantize(clamp_min, g), hi = quantize(clamp_max, g);
  return {lo + (hi - lo) / 2 + 1, bound_term(clamp_min, g), bound_term(clamp_max, g)};
}

/// The same from the code and the residual byte of a fused forward; the scale term is kResidualScale times too large (exact in float, but for a clamp's).
DETENT_HD RangeTerms coded_range_terms(int32_t code, int32_t residual, int32_t zero_point, const ClampTerms& clamp, float dy) {
  const int32_t outer = (code - zero_point) * static_cast<int32_t>(kResidualScale);
  const float inner = residual == kMasked ? (code < clamp.first_high ? clamp.low : clamp.high) : static_cast<float>(residual);
  return {residual <= kMasked ? 0.0f : dy, dy * (residual == kOutside ? static_cast<float>(outer) : inner), residual == kOutside ? dy : 0.0f};
}

// ---- range -> grid ---------------------------------------------------------------------------------------------------------------------------------

constexpr double kMinCalibrationWidth = 0.01;  ///< narrowest range a calibration produces where the spec has no least scale
constexpr double kMinWidth = 1e-5;             ///< narrowest range a grid is made from
constexpr double kLeastScale = 1.1920928955078125e-7;  ///< 2^-23
constexpr double kFloatMax = 3.4028234663852886e38;

/// Narrowest range a grid of this spec is made from; `without_scale` is the width where the spec sets none by its least scale.
DETENT_HD double narrowest_width(const GridSpec& spec, double without_scale = kMinWidth) {
  if (spec.least_scale <= 0.0) return without_scale;
  const double levels = static_cast<double>((int64_t{1} << spec.bits) - (spec.symmetric ? 2 : 1));
  return levels * spec.least_scale;
}

/// A grid before its scale is rounded to f32. offset = qmin - zero_point is AIMET's (the zero point on the unsigned grid, negated).
struct GridSolution {
  double scale = 0.0;
  double min = 0.0, max = 0.0;  ///< the range the grid covers, within the limits of f32
  int32_t zero_point = 0, qmin = 0, qmax = 0;
  DETENT_HD int64_t offset() const { return static_cast<int64_t>(qmin) - zero_point; }
  DETENT_HD Grid grid() const { return Grid{static_cast<float>(scale), zero_point, qmin, qmax}; }
};

/// Zero is made part of the range, infinities become +-FLT_MAX, the width at least min_width. NaN is the caller's error: it gives a range about zero.
DETENT_HD Range gate_range(Range r, double min_width) {
  double lo = r.min < 0.0 ? r.min : 0.0;  // NaN compares false
  double hi = r.max > 0.0 ? r.max : 0.0;
  lo = lo < -kFloatMax ? -kFloatMax : (lo > kFloatMax ? kFloatMax : lo);
  hi = hi > kFloatMax ? kFloatMax : hi;
  hi = hi < lo + min_width ? lo + min_width : hi;
  return Range{lo, hi};
}

/// Integer ends of a signed symmetric grid.
DETENT_HD int32_t signed_qmax(int bits) { return static_cast<int32_t>((int64_t{1} << (bits - 1)) - 1); }
DETENT_HD int32_t signed_qmin(int bits, bool strict) { return strict ? -signed_qmax(bits) : static_cast<int32_t>(-(int64_t{1} << (bits - 1))); }

/// True when a (gated) range under this spec gives a signed grid with zero point 0.
DETENT_HD bool is_signed_symmetric(const Range& r, const GridSpec& spec) { return spec.symmetric && (r.min < 0.0 || !spec.unsigned_symmetric); }

/// The only place where a range becomes a grid. Signed symmetric: zero point 0, qmin = -2^(b-1) (strict: -(2^(b-1)-1)), scale = max(|min|,|max|)/qmax.
/// Otherwise 0..2^b-1 with scale = (max-min)/(2^b-1) and the zero point rounded half away in double (32 bits: shifted by 2^31 to fit). bits is 2..32.
DETENT_HD GridSolution solve_grid(Range range, const GridSpec& spec) {
  const Range r = gate_range(range, narrowest_width(spec));
  GridSolution g;
  if (is_signed_symmetric(r, spec)) {
    const double m = -r.min > r.max ? -r.min : r.max;
    g.qmax = signed_qmax(spec.bits);
    g.qmin = signed_qmin(spec.bits, spec.strict);
    g.zero_point = 0;
    g.scale = m / g.qmax;
    g.min = g.qmin * g.scale;
    g.max = g.qmax * g.scale;
  } else {
    const int64_t steps = (int64_t{1} << spec.bits) - 1 - (spec.symmetric && spec.strict ? 1 : 0);
    const int64_t shift = spec.bits == 32 ? int64_t{1} << 31 : 0;
    g.scale = (r.max - r.min) / static_cast<double>(steps);
    double z = floor(-r.min / g.scale + 0.5);  // half away: -min/scale is never negative
    z = z < 0.0 ? 0.0 : (z > static_cast<double>(steps) ? static_cast<double>(steps) : z);
    g.zero_point = static_cast<int32_t>(static_cast<int64_t>(z) - shift);
    g.qmin = static_cast<int32_t>(-shift);
    g.qmax = static_cast<int32_t>(steps - shift);
    if (r.min < 0.0 && r.max > 0.0) {
      g.min = -z * g.scale;
      g.max = r.max - r.min + g.min;
    } else {  // one-sided: the ends are on the grid already
      g.min = r.min;
      g.max = r.max;
    }
  }
  g.min = g.min < -kFloatMax ? -kFloatMax : g.min;
  g.max = g.max > kFloatMax ? kFloatMax : g.max;
  return g;
}

/// What a learned pair of bounds means: a signed symmetric quantizer has one degree of freedom, max, and min is -max. Bounds that training moved to one
/// side of zero keep their width, and zero stays on the grid (the zero point is clamped), as the gradients of range_grads_from_sums assume.
DETENT_HD Range learned_range(const Range& r, const GridSpec& spec) {
  if (is_signed_symmetric(r, spec)) return Range{-r.max, r.max};
  if (r.min > 0.0) return Range{0.0, r.max - r.min};
  if (r.max < 0.0) return Range{r.min - r.max, 0.0};
  return r;
}

DETENT_HD Grid grid_from_range(Range range, const GridSpec& spec) { return solve_grid(range, spec).grid(); }

/// What the grid covers: scale * (qmin - z) .. scale * (qmax - z).
DETENT_HD Range effective_range(const Grid& g) {
  const double s = static_cast<double>(g.scale);
  return Range{s * static_cast<double>(static_cast<int64_t>(g.qmin) - g.zero_point), s * static_cast<double>(static_cast<int64_t>(g.qmax) - g.zero_point)};
}

/// The range to learn or to store: grid_from_range(range_of(g), spec) is g again, bit for bit, for a grid made under spec. A signed symmetric grid gives
/// -max..max (its extra negative level is added back by grid_from_range), any other its effective range.
DETENT_HD Range range_of(const Grid& g) {
  const Range e = effective_range(g);
  const bool signed_symmetric = g.zero_point == 0 && g.qmin < 0 && (g.qmin == -g.qmax || g.qmin == -g.qmax - 1);
  return signed_symmetric ? Range{-e.max, e.max} : e;
}

/// One code moved to another grid: quantize(dequantize(q)). A table of it over 0..255 regrids codes (max pool with its own quantizer).
DETENT_HD int32_t regrid(int32_t q, const Grid& from, const Grid& to) { return quantize(dequantize(q, from), to); }

/// Finite, positive scale and 0 on the grid: true for every grid of grid_from_range; check what comes from a file.
DETENT_HD bool is_valid(const Grid& g) {
  return g.scale > 0.0f && g.scale <= static_cast<float>(kFloatMax) && g.qmin < g.qmax && g.zero_point >= g.qmin && g.zero_point <= g.qmax;
}

// ---- gradients of a learned range ------------------------------------------------------------------------------------------------------------------

/// What moves when a range learns.
enum class RangeGradient : uint8_t {
  aimet,    ///< both bounds, as AIMET's TensorFlow 1 and torch v1 quantizers
  keep_min  ///< dmin = 0: behind ReLU min stays 0, so that the activation is the clamp of the grid
};

struct RangeGrads {
  double min = 0.0;
  double max = 0.0;
};

/// dL/dmin and dL/dmax of a learned range from the sums of FakeQuantBackwardArgs: scale_sum = sum dy * dq/dscale with the zero point held, clip_sum = sum of
/// dy over the clipped elements. Symmetric grids have one degree of freedom, the scale max / qmax, so dmin = -dmax.
DETENT_HD RangeGrads range_grads_from_sums(double scale_sum, double clip_sum, const Range& range, const GridSpec& spec, RangeGradient rule = RangeGradient::aimet) {
  Range r = range;  // not made to hold zero: see learned_range
  const double width = narrowest_width(spec);
  r.max = r.max < r.min + width ? r.min + width : r.max;
  RangeGrads g;
  if (is_signed_symmetric(r, spec)) {
    g.max = scale_sum / signed_qmax(spec.bits);
    g.min = -g.max;
  } else {
    // With scale = (max-min)/N the AIMET terms sum(G_s)/N and N/(max-min)^2 * sum(G_o) become scale_sum/N and clip_sum/(max-min).
    const double levels = static_cast<double>((int64_t{1} << spec.bits) - 1 - (spec.symmetric && spec.strict ? 1 : 0));
    const double shift = clip_sum / (r.max - r.min);
    g.max = scale_sum / levels - r.min * shift;
    g.min = r.max * shift - scale_sum / levels;
  }
  if (rule == RangeGradient::keep_min) g.min = 0.0;
  return g;
}

}  // namespace detent
