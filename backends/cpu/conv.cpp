// Convolutions on the best instruction set of the processor; the scalar twins where there is none.
#include <algorithm>

#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/fma_peak.h"
#include "detent/backends/cpu/integer.h"
#include "detent/backends/cpu/isa.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

bool depthwise(const ConvGeometry& g) { return g.groups == g.c && g.groups == g.k && g.groups > 1; }

void statistics(const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  batch_norm_stats({g.n * g.oh * g.ow, g.k, a.epilogue.y, a.mean, a.var, a.epilogue.y16});
}

}  // namespace

const ConvIsa* conv_isa() {
  static const ConvIsa* const chosen = [] {
    switch (isa()) {
      case Isa::avx512: return conv_isa_avx512();
      case Isa::avx2: return conv_isa_avx2();
      case Isa::scalar: break;
    }
    return static_cast<const ConvIsa*>(nullptr);
  }();
  return chosen;
}

bool codes_in_float(const Epilogue& e) {
  constexpr int32_t kExact = 1 << 23;
  return !e.quantize || (std::min({e.grid.qmin, e.grid.qmax, e.grid.zero_point}) >= -kExact && std::max({e.grid.qmin, e.grid.qmax, e.grid.zero_point}) <= kExact);
}

void conv2d(const ConvIsa& isa, const Conv2dArgs& a, const JoinedInput& joined) {
  const ConvGeometry& g = a.geometry;
  if (g.n * g.oh * g.ow * g.k == 0) return;
  if (!codes_in_float(a.epilogue)) return scalar::conv2d(a);
  if (depthwise(g)) {
    depthwise_forward(isa, a);
    if (a.mean) statistics(a);
    return;
  }
  GatherConv c;
  c.reads(a.input, joined);
  c.gather = forward_gather(g, c.input.x != nullptr);  // staged rows are an image's
  c.epilogue = a.epilogue;
  // A tile leaves the bias out, which is added before the result is rounded to bf16.
  const bool later = a.mean && a.epilogue.y16 && a.epilogue.bias;
  c.mean = later ? nullptr : a.mean;
  c.var = later ? nullptr : a.var;
  c.groups = g.groups;
  c.depth = g.c / g.groups;
  c.channels = g.k / g.groups;
  c.weights = {a.w, c.channels * g.r * g.s * c.depth, g.s * c.depth, c.depth, 1, g.r * g.s * c.depth};
  // With few channels the s * c values of a window row, which lie together in NHWC, make one longer sum; that needs borders instead of absent taps.
  if (g.groups == 1 && g.s > 1 && g.c <= 16 && g.dilation_w == 1) {
    c.depth = g.s * g.c;
    c.gather.taps.cols = 1;
    c.weights.tap_col = 0;
    c.left = g.pad_left;
    c.right = std::max<int64_t>(0, (g.ow - 1) * g.stride_w + g.s - g.pad_left - g.w);
  }
  run_gather(isa, c);
  if (later) statistics(a);
}

void conv2d_backward_data(const ConvIsa& isa, const Conv2dBackwardDataArgs& a, const JoinedInput& joined) {
  const ConvGeometry& g = a.geometry;
  if (g.n * g.h * g.w * g.c == 0) return;
  if (depthwise(g)) return depthwise_backward_data(isa, a);
  if (!joined.isa && joins_phases(g)) return backward_data_joined(isa, a);
  const int64_t cg = g.c / g.groups, kg = g.k / g.groups, row = g.s * cg;
  for (int64_t ph = 0; ph < std::min(g.stride_h, g.h); ++ph) {
    for (int64_t pw = 0; pw < std::min(g.stride_w, g.w); ++pw) {
      GatherConv c;
      c.reads(values_input(a.dy, a.dy16), joined);
      const Phase phase = backward_phase(g, ph, pw, c.input.x != nullptr);
      c.gather = phase.gather;
      c.epilogue.y = a.dx;
      c.epilogue.y16 = a.dx16;
      c.groups = g.groups;
      c.depth = kg;
      c.channels = cg;
      c.weights = {a.w + phase.r0 * row + phase.s0 * cg, kg * g.r * row, phase.r_step * row, phase.s_step * cg, g.r * row, 1};
      run_gather(isa, c);
    }
  }
}

#if !defined(__x86_64__)
const ConvIsa* conv_isa_avx2() { return nullptr; }
const ConvIsa* conv_isa_avx512() { return nullptr; }
#endif

double fma_burst(Isa isa, int64_t rounds) {
  const ConvIsa* const table = isa == Isa::avx512 ? conv_isa_avx512() : (isa == Isa::avx2 ? conv_isa_avx2() : nullptr);
  if (table) {
    // The comparison keeps the work: the value is never NaN.
    const float value = table->fma_burst(rounds);
    return value == value ? static_cast<double>(rounds) * 12 * table->vector * 2 : 0.0;
  }
  float acc[12] = {};
  for (int64_t r = 0; r < rounds; ++r) {
    for (float& v : acc) v = v * 0.999f + 0.001f;
  }
  float value = 0.0f;
  for (float v : acc) value += v;
  return value == value ? static_cast<double>(rounds) * 24 : 0.0;
}

void conv2d(const Conv2dArgs& a) {
  if (integer_forward(integer_engine(), a)) return;
  if (const Bf16Isa* isa = bf16_products(); isa && bf16_forward(*isa, a)) return;
  conv_isa() ? conv2d(*conv_isa(), a) : scalar::conv2d(a);
}
void conv2d_backward_data(const Conv2dBackwardDataArgs& a) {
  if (const Bf16Isa* isa = bf16_products(); isa && bf16_backward_data(*isa, a)) return;
  conv_isa() ? conv2d_backward_data(*conv_isa(), a) : scalar::conv2d_backward_data(a);
}

void conv2d_backward_filter(const Conv2dBackwardFilterArgs& a) {
  if (const Bf16Isa* isa = bf16_products(); isa && bf16_backward_filter(*isa, a)) return;
  conv_isa() ? conv2d_backward_filter(*conv_isa(), a) : scalar::conv2d_backward_filter(a);
}

}  // namespace detent::cpu
