// Convolutions of codes by weights on byte grids, and what quantizing their sums gives, from the definition: for every backend that multiplies integers.
#pragma once

#include <algorithm>
#include <cmath>

#include "conv_cases.h"
#include "kernel_support.h"

namespace detent::test {

inline int64_t inputs(const ConvGeometry& g) { return g.n * g.h * g.w * g.c; }
inline int64_t outputs(const ConvGeometry& g) { return g.n * g.oh * g.ow * g.k; }
inline int64_t weights(const ConvGeometry& g) { return g.k * g.r * g.s * (g.c / g.groups); }

struct IntegerCase {
  std::vector<uint8_t> x;
  std::vector<int> q;
  std::vector<float> w, bias;
  std::vector<Grid> grids;
  Grid input{0.0173f, 117, 0, 255};
  IntegerCase(const ConvGeometry& g, bool per_channel) : x(static_cast<size_t>(inputs(g))), q(static_cast<size_t>(weights(g))) {
    Rng rng(7, static_cast<uint64_t>(g.k));
    for (uint8_t& v : x) v = static_cast<uint8_t>(rng.uniform(0.0f, 255.99f));
    for (int64_t k = 0; k < (per_channel ? g.k : 1); ++k) grids.push_back({rng.uniform(0.001f, 0.02f), 0, -128, 127});
    for (size_t i = 0; i < q.size(); ++i) {
      q[i] = static_cast<int>(std::floor(rng.uniform(-128.0f, 127.99f)));
      w.push_back(dequantize(q[i], grid(static_cast<int64_t>(i) / (weights(g) / g.k))));
    }
    bias = random_values(g.k, -1.0f, 1.0f, 8);
  }
  const Grid& grid(int64_t k) const { return grids[grids.size() > 1 ? static_cast<size_t>(k) : 0]; }
  /// Of the sums of channel k.
  float scale(int64_t k) const { return input.scale * grid(k).scale; }
  ConvInput coded() const {
    ConvInput in;
    in.codes = x.data();
    in.grid = input;
    return in;
  }
  WeightGrid weight_grid(int32_t magnitude = 128) const { return {grids.data(), grids.size() > 1, magnitude}; }
  /// By output element, the bias on their grid included.
  std::vector<int64_t> sums(const ConvGeometry& g) const {
    std::vector<int64_t> acc(static_cast<size_t>(outputs(g)));
    for_each_product(g, [&](int64_t o, int64_t i, int64_t f) { acc[static_cast<size_t>(o)] += (int64_t{x[static_cast<size_t>(i)]} - input.zero_point) * q[static_cast<size_t>(f)]; });
    for (size_t o = 0; o < acc.size(); ++o) {
      const int64_t k = static_cast<int64_t>(o) % g.k;
      acc[o] += std::llrint(static_cast<double>(bias[static_cast<size_t>(k)] / scale(k)));
    }
    return acc;
  }
};

/// The sums of a convolution's three directions, in double: of integers they are exact.
struct ExactSums {
  std::vector<float> y, dx, dw;
  ExactSums(const ConvGeometry& g, const std::vector<float>& x, const std::vector<float>& w, const std::vector<float>& dy) {
    std::vector<double> sy(static_cast<size_t>(outputs(g))), sx(x.size()), sw(w.size());
    for_each_product(g, [&](int64_t o, int64_t i, int64_t f) {
      const size_t at_o = static_cast<size_t>(o), at_i = static_cast<size_t>(i), at_f = static_cast<size_t>(f);
      sy[at_o] += static_cast<double>(x[at_i]) * static_cast<double>(w[at_f]);
      sx[at_i] += static_cast<double>(dy[at_o]) * static_cast<double>(w[at_f]);
      sw[at_f] += static_cast<double>(dy[at_o]) * static_cast<double>(x[at_i]);
    });
    const auto floats = [](const std::vector<double>& v) { return std::vector<float>(v.begin(), v.end()); };
    y = floats(sy), dx = floats(sx), dw = floats(sw);
  }
};

struct QuantizeSetting {
  float lo, hi;
  Grid grid;
  bool on_value;
  void put(Epilogue& e) const {
    e.quantize = true;
    e.grid = grid;
    e.clamp_min = lo;
    e.clamp_max = hi;
    e.mask_on_value = on_value;
  }
};
// The last clamps inside its grid, and on a grid whose codes do not fill the byte.
inline constexpr QuantizeSetting kQuantizeSettings[] = {{-kInf, kInf, {0.11f, 128, 0, 255}, false},
                                                        {0.0f, kInf, {0.05f, 0, 0, 255}, false},
                                                        {0.0f, 6.0f, {6.0f / 255.0f, 0, 0, 255}, true},
                                                        {-2.0f, 5.0f, {0.2f, 30, 3, 90}, false}};

struct QuantizedSum {
  uint8_t code;
  int8_t residual;
  float y;
};
inline QuantizedSum quantized_sum(int64_t acc, float s, const QuantizeSetting& set) {
  const Grid& grid = set.grid;
  const float m = s / grid.scale, f = static_cast<float>(acc), z = static_cast<float>(grid.zero_point), bottom = static_cast<float>(grid.qmin), top = static_cast<float>(grid.qmax);
  const float v = f * s, clamped = std::clamp(v, set.lo, set.hi);
  const float lowest = std::max(bottom, std::isinf(set.lo) ? bottom : std::nearbyint(set.lo / grid.scale) + z);
  const float highest = std::min(top, std::isinf(set.hi) ? top : std::nearbyint(set.hi / grid.scale) + z);
  // The place on the grid is acc * M, not v / scale: what is rounded is what the residual is of.
  const float place = f * m, code = std::nearbyint(place) + z, q = std::clamp(code, lowest, highest);
  const bool masked = v <= set.lo || v >= set.hi;
  const bool inside = set.on_value ? v >= grid.scale * (bottom - z) && v <= grid.scale * (top - z) : code >= bottom && code <= top;
  const int8_t r = masked ? residual_byte(clamped, grid, true, set.on_value) : (inside ? static_cast<int8_t>(std::nearbyint(252.0f * (std::nearbyint(place) - place))) : kOutside);
  return {static_cast<uint8_t>(q), r, grid.scale * (q - z)};
}

}  // namespace detent::test
