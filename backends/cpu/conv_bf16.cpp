// Forward and backward-data of bf16: both factors joined in pairs along the sum (the rows where they are staged), and the float drivers run over the words with half
// the depth.
#include "detent/backends/cpu/conv_bf16.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/isa.h"
#include "detent/core/math/integer_math.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

std::atomic<Precision> chosen{Precision::f32};

constexpr int64_t kLeastDepth = 16;  // products in a row from which a pass over the factors pays
constexpr int64_t kJoinedChannels = 32;  // at most, for the taps of a window row to be joined
constexpr int32_t kExact = 256;      // integers that bf16 holds

bool depthwise(const ConvGeometry& g) { return g.groups == g.c && g.groups == g.k && g.groups > 1; }

// fn(begin, end) over rows of `columns` floats.
template <class Fn>
void for_rows(int64_t rows, int64_t columns, Fn&& fn) {
  parallel_for(rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)), fn);
}

}  // namespace

void set_precision(Precision p) { chosen.store(p == Precision::bf16 ? p : Precision::f32, std::memory_order_relaxed); }
Precision precision() { return chosen.load(std::memory_order_relaxed); }

const Bf16Isa* bf16_isa() { return has_bf16() ? bf16_isa_avx512() : nullptr; }
const Bf16Isa* bf16_products() { return precision() == Precision::bf16 && prefers_bf16() ? bf16_isa() : nullptr; }

bool bf16_forward(const Bf16Isa& isa, const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t depth = g.c / g.groups;
  if (a.input.codes || !codes_in_float(a.epilogue) || depthwise(g) || depth % 2 != 0 || depth < kLeastDepth || g.k / g.groups < kLeastDepth) return false;
  const int64_t taps = g.k * g.r * g.s;
  const Scratch<float> w(taps * depth / 2);
  for_rows(taps, depth, [&](int64_t begin, int64_t end) { isa.join_columns(a.w + begin * depth, nullptr, end - begin, depth, w.get() + begin * depth / 2); });
  Conv2dArgs words = a;
  words.geometry.c = g.c / 2;
  words.w = w.get();
  conv2d(*isa.conv, words, {&isa, a.input.x, nullptr, a.input.x16});
  return true;
}

namespace {

bool on_integers(const Conv2dBackwardDataArgs& a) { return a.w_grid.magnitude > 0 && a.w_grid.magnitude <= kExact; }
float scale_of(const Conv2dBackwardDataArgs& a, int64_t k) { return a.w_grid.grids[a.w_grid.per_channel ? k : 0].scale; }
// What dy, times the scale where there is one, is multiplied by.
float factor(const Conv2dBackwardDataArgs& a, int64_t k, float w) { return on_integers(a) ? weight_code(w, scale_of(a, k)) : w; }

// The strides' phases at once, for few channels.
void joined_backward_data(const Bf16Isa& isa, const Conv2dBackwardDataArgs& a, const JoinedInput& dy) {
  const ConvGeometry& g = a.geometry;
  const int64_t row = g.r * g.s * g.c;
  const Scratch<float> w(g.k * row);
  for (int64_t i = 0; i < g.k * row; ++i) w.get()[i] = factor(a, i / row, a.w[i]);
  Conv2dBackwardDataArgs args = a;
  args.w = w.get();
  backward_data_joined(*isa.conv, args, dy);
}

// dx = conv(dy, w turned about and transposed) where nothing is strided: with few output channels the forward driver joins the taps of a window row to one longer sum.
void turned_backward_data(const Bf16Isa& isa, const Conv2dBackwardDataArgs& a, const JoinedInput& dy) {
  const ConvGeometry& g = a.geometry;
  const int64_t taps = g.r * g.s;
  Scratch<float> turned(g.c * taps * g.k), w(g.c * taps * g.k / 2);
  for (int64_t k = 0; k < g.k; ++k) {
    for (int64_t i = 0; i < taps * g.c; ++i) turned.get()[((i % g.c) * taps + taps - 1 - i / g.c) * g.k + k] = factor(a, k, a.w[k * taps * g.c + i]);
  }
  isa.join_columns(turned.get(), nullptr, g.c * taps, g.k, w.get());
  ConvGeometry t{.n = g.n, .h = g.oh, .w = g.ow, .c = g.k / 2, .k = g.c, .r = g.r, .s = g.s, .oh = g.h, .ow = g.w};
  t.pad_top = g.r - 1 - g.pad_top;
  t.pad_left = g.s - 1 - g.pad_left;
  Conv2dArgs args;
  args.geometry = t;
  args.w = w.get();
  args.epilogue.y = a.dx;
  args.epilogue.y16 = a.dx16;
  conv2d(*isa.conv, args, dy);
}

}  // namespace

bool bf16_backward_data(const Bf16Isa& isa, const Conv2dBackwardDataArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t row = g.r * g.s * (g.c / g.groups), per_group = g.k / g.groups;
  if (depthwise(g) || per_group % 2 != 0 || per_group < kLeastDepth) return false;
  const bool integers = on_integers(a);
  std::vector<float> scales;
  for (int64_t k = 0; integers && k < g.k; ++k) scales.push_back(scale_of(a, k));
  const JoinedInput dy{&isa, a.dy, integers ? scales.data() : nullptr, a.dy16};
  const bool turns = g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1 && g.groups == 1 && g.s > 1 && g.k <= kJoinedChannels && g.pad_top < g.r && g.pad_left < g.s;
  if (turns || joins_phases(g)) {
    (turns ? turned_backward_data : joined_backward_data)(isa, a, dy);
    return true;
  }
  const Scratch<float> w(g.k / 2 * row);
  for_rows(g.k / 2, 2 * row, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* const first = a.w + 2 * i * row;
      if (integers) {
        isa.join_weights(first, first + row, scale_of(a, 2 * i), scale_of(a, 2 * i + 1), row, w.get() + i * row);
      } else {
        isa.join_rows(first, first + row, row, w.get() + i * row);
      }
    }
  });
  Conv2dBackwardDataArgs words = a;
  words.geometry.k = g.k / 2;
  words.w = w.get();
  conv2d_backward_data(*isa.conv, words, dy);
  return true;
}

double bf16_burst(int64_t rounds) {
  const Bf16Isa* const isa = bf16_isa();
  if (!isa) return 0.0;
  // The comparison keeps the work: the value is never NaN.
  const float value = isa->conv->fma_burst(rounds);
  return value == value ? static_cast<double>(rounds) * 12 * isa->conv->vector * 4 : 0.0;
}

#if !defined(__x86_64__)
const Bf16Isa* bf16_isa_avx512() { return nullptr; }
#endif

}  // namespace detent::cpu
