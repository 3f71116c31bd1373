// Integer execution as ONNX Runtime has it. QLinearConv, QGemm: int32 sum, one float multiplication, round half to even, clamp. QLinearAdd, pools: below.
// The order of operations is part of the result. Compile as quant_math.h. Pure functions: thread-safe.
#pragma once

#include "detent/core/math/quant_math.h"

namespace detent {

/// A bias on the grid input_scale * weight_scale, saturated to int32 (round_to_accumulator_grid gives its float).
DETENT_HD int32_t accumulator_bias(float bias, float input_scale, float weight_scale) {
  const double q = rint(static_cast<double>(bias / (input_scale * weight_scale)));
  return static_cast<int32_t>(q < -2147483648.0 ? -2147483648.0 : (q > 2147483647.0 ? 2147483647.0 : q));
}

/// The q of a weight w = dequantize(q) on a grid with zero point 0: exact for |q| < 2^22.
DETENT_HD float weight_code(float w, float scale) { return rintf(w / scale); }

/// int32 arithmetic of the target: wraps.
DETENT_HD int32_t wrapping_add(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
DETENT_HD int32_t wrapping_multiply(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b)); }

/// Scales of one output channel: value = scale * acc, and multiplier = scale / output scale.
struct AccumulatorScale {
  float value = 1.0f;
  float multiplier = 1.0f;
};
DETENT_HD AccumulatorScale accumulator_scale(float input_scale, float weight_scale, float output_scale) {
  const float s = input_scale * weight_scale;
  return {s, s / output_scale};
}

/// The output code before the activation: clamp(rint(float(acc) * multiplier) + z). A clamp behind it (ReLU) is a clamp to the codes of its bounds.
DETENT_HD int32_t requantize(int32_t acc, float multiplier, const Grid& g) {
  return static_cast<int32_t>(within(rintf(static_cast<float>(acc) * multiplier) + static_cast<float>(g.zero_point), static_cast<float>(g.qmin), static_cast<float>(g.qmax)));
}

/// The codes that a clamp of values leaves: ReLU is lo = z.
struct CodeRange {
  int32_t lo = 0, hi = 255;
};
DETENT_HD CodeRange code_range(float clamp_min, float clamp_max, const Grid& g) { return {quantize(clamp_min, g), quantize(clamp_max, g)}; }

/// QLinearAdd: q_c = clamp(rint(fma(q_a, ra, fma(q_b, rb, k)))), k = z_c - fma(ra, z_a, rb * z_b). b comes first; any other order differs in the last bit.
/// The zero point is inside the rounding: a tie goes to the even code, where quantize(a + b) takes the even multiple of the scale.
struct IntegerAdd {
  float ra = 1.0f, rb = 1.0f, k = 0.0f;
};
DETENT_HD IntegerAdd integer_add(const Grid& a, const Grid& b, const Grid& c) {
  const float ra = a.scale / c.scale, rb = b.scale / c.scale;
  return {ra, rb, static_cast<float>(c.zero_point) - fmaf(ra, static_cast<float>(a.zero_point), rb * static_cast<float>(b.zero_point))};
}
/// Where the sum lies among the codes of c, before rounding.
DETENT_HD float place_of_sum(int32_t qa, int32_t qb, const IntegerAdd& f) { return fmaf(static_cast<float>(qa), f.ra, fmaf(static_cast<float>(qb), f.rb, f.k)); }
DETENT_HD int32_t add_codes(int32_t qa, int32_t qb, const IntegerAdd& f, const CodeRange& range) {
  return static_cast<int32_t>(within(rintf(place_of_sum(qa, qb, f)), static_cast<float>(range.lo), static_cast<float>(range.hi)));
}

/// QLinearGlobalAveragePool: q_y = requantize(sum of (q_x - z_x), average_scale(..).multiplier). More pixels might leave int32.
constexpr int64_t kMaxAveragePixels = INT32_MAX / 255;
DETENT_HD AccumulatorScale average_scale(float input_scale, float output_scale, int64_t pixels) {
  const auto n = static_cast<float>(pixels);
  return {input_scale / n, input_scale / (output_scale * n)};
}

/// residual_byte for v = acc * scale.value, whose place on the output grid is t = acc * scale.multiplier; v is inside the clamp.
DETENT_HD int8_t residual_byte_at(float t, float v, const Grid& g, bool on_value) {
  const float n = rintf(t), z = static_cast<float>(g.zero_point), q = n + z;
  const float lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const bool inside = on_value ? v >= g.scale * (lo - z) && v <= g.scale * (hi - z) : q >= lo && q <= hi;
  return inside ? static_cast<int8_t>(nearest(kResidualScale * (n - t))) : kOutside;
}

/// The clamp in front of a grid, for sums of integers: `low` and `high` are the residual bytes of what it holds at its ends.
struct IntegerClamp {
  float min = 0.0f, max = 0.0f;
  int8_t low = kMasked, high = kMasked;
};
DETENT_HD IntegerClamp integer_clamp(float min, float max, const Grid& g, bool on_value) {
  return {min, max, residual_byte(min, g, true, on_value), residual_byte(max, g, true, on_value)};
}
/// residual_byte of clamp(acc * scale.value).
DETENT_HD int8_t residual_of_sum(int32_t acc, const AccumulatorScale& scale, const IntegerClamp& c, const Grid& g, bool on_value) {
  const float v = static_cast<float>(acc) * scale.value;
  const int8_t inner = residual_byte_at(static_cast<float>(acc) * scale.multiplier, v, g, on_value);
  return v <= c.min ? c.low : (v >= c.max ? c.high : inner);
}

/// residual_byte for a value at `place` among the codes of g.
DETENT_HD int8_t residual_byte_at_place(float place, const Grid& g, float clamp_min, float clamp_max, bool on_value) {
  const float n = rintf(place), z = static_cast<float>(g.zero_point), v = g.scale * (place - z);
  const float lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const bool inside = on_value ? v >= g.scale * (lo - z) && v <= g.scale * (hi - z) : n >= lo && n <= hi;
  if (!inside) return kOutside;
  return v <= clamp_min || v >= clamp_max ? kMasked : static_cast<int8_t>(nearest(kResidualScale * (n - place)));
}

/// True when the clamp in front of quantization is the clamp of the grid: only then is a sum of codes computed on them.
DETENT_HD bool absorbs_clamp(const Grid& g, float clamp_min, float clamp_max) { return quantize(clamp_min, g) == g.qmin && quantize(clamp_max, g) == g.qmax; }

}  // namespace detent
