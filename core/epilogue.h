// What happens to an accumulator before it is stored, element by element: Epilogue of core/backend.h on float sums, ONNX Runtime's order of operations on int32.
// For kernels of any device and their references; pure functions.
#pragma once

#include "detent/core/backend.h"
#include "detent/core/math/half.h"
#include "detent/core/math/integer_math.h"

namespace detent {

struct EpilogueResult {
  float y = 0.0f;
  uint8_t code = 0;
  int8_t residual = 0;
};

/// With the grids of this moment by value.
DETENT_HD Epilogue settled(Epilogue e) {
  e.grid = present(e.grid, e.resident);
  return e;
}
DETENT_HD ConvInput settled(ConvInput in) {
  in.grid = present(in.grid, in.resident);
  return in;
}

/// The scale of codes that a sum was formed of as they are; 1 for floats.
struct InputFactor {
  float value = 1.0f;
  const Grid* resident = nullptr;
  DETENT_HD float get() const { return resident ? resident->scale : value; }
};
inline InputFactor input_factor(const ConvInput& in) { return in.codes ? InputFactor{in.grid.scale, in.resident} : InputFactor{}; }

/// What the sums of a channel have in common.
struct ChannelEpilogue {
  float bias = 0.0f, scale = 1.0f;
};
DETENT_HD ChannelEpilogue channel_epilogue(const Epilogue& e, int64_t channel) { return {e.bias ? e.bias[channel] : 0.0f, e.scale ? e.scale[channel] : 1.0f}; }

/// The part of the epilogue that needs to know the channel and the place of a sum.
DETENT_HD float biased(const Epilogue& e, float v, const ChannelEpilogue& c, int64_t i) {
  v = e.scale ? fmaf(v, c.scale, c.bias) : (e.bias ? v + c.bias : v);
  return e.addend ? v + e.addend[i] : v;
}

/// v: the biased sum.
DETENT_HD EpilogueResult finish(const Epilogue& e, float v) {
  const bool masked = v <= e.clamp_min || v >= e.clamp_max;
  v = v < e.clamp_min ? e.clamp_min : (v > e.clamp_max ? e.clamp_max : v);
  EpilogueResult r;
  r.y = v;
  if (!e.quantize) return r;
  const int32_t q = quantize(v, e.grid);
  r.y = dequantize(q, e.grid);
  r.code = static_cast<uint8_t>(q);
  if (e.residual) r.residual = residual_byte(v, e.grid, masked, e.mask_on_value);
  return r;
}

/// The epilogue's clamp, as sums of integers meet it.
struct IntegerBounds {
  CodeRange range;
  IntegerClamp clamp;
};
DETENT_HD IntegerBounds integer_bounds(const Epilogue& e) { return {code_range(e.clamp_min, e.clamp_max, e.grid), integer_clamp(e.clamp_min, e.clamp_max, e.grid, e.mask_on_value)}; }

/// acc: the int32 sum with its bias.
DETENT_HD EpilogueResult finish_integer(const Epilogue& e, const IntegerBounds& b, int32_t acc, const AccumulatorScale& s) {
  EpilogueResult r;
  if (!e.quantize) {
    const float v = static_cast<float>(acc) * s.value;
    r.y = v < e.clamp_min ? e.clamp_min : (v > e.clamp_max ? e.clamp_max : v);
    return r;
  }
  // The range lies within the grid: one clamp does for both.
  const int32_t q = requantize(acc, s.multiplier, {e.grid.scale, e.grid.zero_point, b.range.lo, b.range.hi});
  if (e.y) r.y = dequantize(q, e.grid);
  r.code = static_cast<uint8_t>(q);
  if (e.residual) r.residual = residual_of_sum(acc, s, b.clamp, e.grid, e.mask_on_value);
  return r;
}

/// place: of a sum of codes (integer_math.h); the grid absorbs the clamp.
DETENT_HD EpilogueResult finish_sum(const Epilogue& e, float place) {
  const auto q = static_cast<int32_t>(within(rintf(place), static_cast<float>(e.grid.qmin), static_cast<float>(e.grid.qmax)));
  EpilogueResult r;
  if (e.y) r.y = dequantize(q, e.grid);
  r.code = static_cast<uint8_t>(q);
  if (e.residual) r.residual = residual_byte_at_place(place, e.grid, e.clamp_min, e.clamp_max, e.mask_on_value);
  return r;
}

/// Four neighbouring results, or one, to wherever the epilogue wants them, from element i on.
DETENT_HD void write_one(const Epilogue& e, int64_t i, const EpilogueResult& r) {
  if (e.y) e.y[i] = r.y;
  if (e.y16) e.y16[i] = bfloat_bits(r.y);
  if (e.quantize && e.codes) e.codes[i] = r.code;
  if (e.quantize && e.residual) e.residual[i] = r.residual;
}

struct alignas(16) FloatQuad {
  float v[4];
};
struct alignas(4) ByteQuad {
  uint8_t v[4];
};
struct alignas(8) BfloatQuad {
  uint16_t v[4];
};

/// The same for four neighbours at once; i is a multiple of four and the pointers are aligned to 16 (y), 8 (y16) and 4 bytes.
DETENT_HD void write_four(const Epilogue& e, int64_t i, const EpilogueResult* r) {
  if (e.y) *reinterpret_cast<FloatQuad*>(e.y + i) = {{r[0].y, r[1].y, r[2].y, r[3].y}};
  if (e.y16) *reinterpret_cast<BfloatQuad*>(e.y16 + i) = {{bfloat_bits(r[0].y), bfloat_bits(r[1].y), bfloat_bits(r[2].y), bfloat_bits(r[3].y)}};
  if (e.quantize && e.codes) *reinterpret_cast<ByteQuad*>(e.codes + i) = {{r[0].code, r[1].code, r[2].code, r[3].code}};
  if (e.quantize && e.residual) {
    *reinterpret_cast<ByteQuad*>(e.residual + i) = {
        {static_cast<uint8_t>(r[0].residual), static_cast<uint8_t>(r[1].residual), static_cast<uint8_t>(r[2].residual), static_cast<uint8_t>(r[3].residual)}};
  }
}

/// Whether write_four may be used with rows of `pitch` elements.
inline bool writes_four(const Epilogue& e, int64_t pitch) {
  const auto aligned = [](const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  return pitch % 4 == 0 && aligned(e.y, 16) && aligned(e.y16, 8) && aligned(e.codes, 4) && aligned(e.residual, 4);
}

}  // namespace detent
