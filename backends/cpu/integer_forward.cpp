// The quantizing convolution of a forward pass on the integers behind its floats: the weights' codes are recovered and packed at each call, because training
// moves them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/integer.h"
#include "detent/core/epilogue.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

constexpr int32_t kByte = 128;

bool multiplies_integers(const Conv2dArgs& a) {
  const Epilogue& e = a.epilogue;
  const Grid& g = a.input.grid;
  return a.input.codes && a.w_grid.magnitude > 0 && a.w_grid.magnitude <= kByte && e.quantize && e.codes && !e.y && !e.scale && !e.addend && !a.mean && g.zero_point >= 0 && g.zero_point <= 255 &&
         e.grid.qmin >= 0 && e.grid.qmax <= 255;
}

// What the kernel reads of the weights, by output channel.
struct Filter {
  Scratch<int8_t> q;
  Scratch<int32_t> offset;
  Scratch<float> value, multiplier;
  explicit Filter(const ConvGeometry& g) : q(g.k * g.r * g.s * (g.c / g.groups)), offset(g.k), value(g.k), multiplier(g.k) {}
};

// False when a sum might leave int32, or is none.
bool recover(const IntegerEngine& e, const Conv2dArgs& a, const Filter& f, int64_t k, int64_t row) {
  const Grid& in = a.input.grid;
  const float s = a.w_grid.grids[a.w_grid.per_channel ? k : 0].scale;
  int64_t sum = 0, magnitude = 0;
  e.rows->weight_codes(a.w + k * row, s, row, f.q.get() + k * row, &sum, &magnitude);
  if (a.epilogue.bias && std::isnan(a.epilogue.bias[k])) return false;
  const int32_t bias = a.epilogue.bias ? accumulator_bias(a.epilogue.bias[k], in.scale, s) : 0;
  const AccumulatorScale scale = accumulator_scale(in.scale, s, a.epilogue.grid.scale);
  f.offset.get()[k] = wrapping_add(bias, wrapping_multiply(-in.zero_point, static_cast<int32_t>(sum)));
  f.value.get()[k] = scale.value;
  f.multiplier.get()[k] = scale.multiplier;
  const int64_t reach = std::max(in.qmax - in.zero_point, in.zero_point - in.qmin);
  return magnitude * reach + std::llabs(static_cast<long long>(bias)) <= INT32_MAX;
}

}  // namespace

bool integer_forward(const IntegerEngine& e, const Conv2dArgs& a) {
  if (!multiplies_integers(a)) return false;
  const ConvGeometry& g = a.geometry;
  const int64_t row = g.r * g.s * (g.c / g.groups);
  const Filter f(g);
  std::atomic<bool> fits{true};
  parallel_for(g.k, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row)), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (!recover(e, a, f, k, row)) fits = false;
    }
  });
  if (!fits) return false;
  const Scratch<uint8_t> packed(integer_packed_bytes(e, g));
  integer_pack(e, g, f.q.get(), packed.get());
  const Epilogue& to = a.epilogue;
  const IntegerBounds bounds = integer_bounds(to);
  IntegerConv2dArgs args{g, a.input.codes, a.input.grid.zero_point, packed.get(), f.offset.get(), f.multiplier.get(), to.grid, bounds.range, to.codes};
  args.residual = {to.residual, f.value.get(), bounds.clamp, to.mask_on_value};
  integer_conv2d(e, args);
  return true;
}

}  // namespace detent::cpu
