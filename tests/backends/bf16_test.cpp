// Convolutions of bf16 on the CPU: of integers that bf16 holds they are exact, whatever the window, the pairs and the cut; rounding is what the common cases
// (conv_test.cpp) allow for.
#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/isa.h"
#include "conv_engines.h"
#include "detent/core/error.h"
#include "detent/core/math/half.h"
#include "detent/core/tensor.h"
#include "integer_cases.h"

using namespace detent;
using namespace detent::test;

namespace {

// Beside the common ones: pairs that lie in rows, at every border, and pairs that do not.
constexpr ConvCase kPairCases[] = {
    {"3x3, even rows", 3, 10, 12, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3, even rows of an odd image", 2, 9, 11, 24, 18, 3, 3, 1, 1, 1, 1, 1, 2},
    {"3x3, even rows, nothing padded", 2, 8, 10, 32, 32, 3, 3},
    {"3x3, pads beyond the window", 1, 6, 6, 20, 34, 3, 3, 1, 1, 4, 4, 4, 4},
    {"3x3 dilation 2, even rows", 1, 12, 12, 16, 20, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2},
    {"3x3 dilation 3, even rows", 1, 12, 14, 16, 20, 3, 3, 1, 1, 3, 3, 3, 3, 3, 3},
    {"5x5, even rows", 2, 9, 8, 18, 40, 5, 5, 1, 1, 2, 2, 2, 2},
    {"1x7, even rows", 1, 5, 10, 16, 20, 1, 7, 1, 1, 0, 3, 0, 3},
    {"7x1, even rows", 1, 9, 6, 16, 20, 7, 1, 1, 1, 3, 0, 3, 0},
    {"2x2, asymmetric", 2, 7, 8, 16, 16, 2, 2, 1, 1, 1, 0, 0, 1},
    {"window larger than the image", 1, 2, 2, 16, 16, 5, 5, 1, 1, 3, 3, 3, 3},
    {"3x3 stride 2, even", 2, 12, 12, 64, 32, 3, 3, 2, 2, 1, 1, 1, 1},
    {"3x3 stride 1x2", 1, 7, 9, 20, 34, 3, 3, 1, 2, 1, 0, 0, 1},
    {"3x3 stride 2x1, even rows", 1, 9, 10, 20, 34, 3, 3, 2, 1, 0, 1, 1, 1},
    {"1x1, an odd number of pixels", 1, 3, 7, 48, 34, 1, 1},
    {"1x1, many slices", 3, 40, 41, 32, 96, 1, 1},
    {"1x1 stride 2", 2, 9, 10, 48, 64, 1, 1, 2, 2},
    {"3x3, parts and ranges", 1, 14, 14, 160, 200, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3, many slices", 4, 32, 32, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1},
    {"groups of 16", 2, 6, 8, 48, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3},
    {"groups of 18 to 34", 1, 7, 7, 36, 68, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 2},
    {"dense", 1, 1, 37, 130, 18, 1, 1},
};

// Few channels: window rows of x are one, the phases of the strides of dy too. Forward they are products of integers, or floats.
constexpr ConvCase kFirstLayers[] = {
    {"7x7 stem", 2, 17, 19, 3, 64, 7, 7, 2, 2, 3, 3, 3, 3},
    {"3x3 first layer", 2, 32, 32, 3, 16, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 stride 2 first layer", 2, 12, 13, 3, 24, 3, 3, 2, 2, 0, 0, 1, 1},
    {"4x4 stride 2, four channels", 1, 9, 8, 4, 18, 4, 4, 2, 2, 1, 2, 1, 0},
    {"3x3 of 12 channels", 1, 7, 9, 12, 20, 3, 3, 1, 1, 1, 1, 1, 1},
};

void check_exact(const cpu::Bf16Isa& isa, const ConvCase& c) {
  const ConvGeometry g = geometry(c);
  const std::vector<float> x = small_integers(inputs(g), 1), w = small_integers(weights(g), 2), dy = small_integers(outputs(g), 3);
  const ExactSums want(g, x, w, dy);
  INFO(c.name);
  Conv2dArgs forward{g, {}, w.data(), {}};
  forward.input.x = x.data();
  int ran = 0;
  const auto check = [&](const std::vector<float>& expected, auto&& call) {
    bool did = false;
    const std::vector<float> got = run_guarded<float>(static_cast<int64_t>(expected.size()), [&](float* out) {
      did = call(out);
      if (!did) std::copy(expected.begin(), expected.end(), out);
    });
    ran += did;
    CHECK(got == expected);
  };
  check(want.y, [&](float* out) {
    forward.epilogue.y = out;
    return cpu::bf16_forward(isa, forward);
  });
  check(want.dx, [&](float* out) { return cpu::bf16_backward_data(isa, {.geometry = g, .dy = dy.data(), .w = w.data(), .dx = out}); });
  check(want.dw, [&](float* out) { return cpu::bf16_backward_filter(isa, {g, forward.input, dy.data(), out, nullptr}); });
  if (&c >= kPairCases && &c < kPairCases + std::size(kPairCases)) CHECK(ran == 3);
  if (&c >= kFirstLayers && &c < kFirstLayers + std::size(kFirstLayers)) CHECK(ran == 2);
}

// Codes and weights on grids: the integers are exact, scales that are powers of two too.
void check_integers(const cpu::Bf16Isa& isa, const ConvCase& c, bool per_channel) {
  const ConvGeometry g = geometry(c);
  IntegerCase t(g, per_channel);
  t.input.scale = 0.25f;
  for (size_t k = 0; k < t.grids.size(); ++k) t.grids[k].scale = std::ldexp(1.0f, -static_cast<int>(k % 7));
  std::vector<float> x, dy = small_integers(outputs(g), 3);
  for (const uint8_t q : t.x) x.push_back(dequantize(q, t.input));
  for (size_t i = 0; i < t.w.size(); ++i) t.w[i] = dequantize(t.q[i], t.grid(static_cast<int64_t>(i) / (weights(g) / g.k)));
  const ExactSums want(g, x, t.w, dy);
  INFO(c.name, per_channel ? ", per channel" : "");
  bool did = false;
  const std::vector<float> dx = run_guarded<float>(inputs(g), [&](float* out) { did = cpu::bf16_backward_data(isa, {.geometry = g, .dy = dy.data(), .w = t.w.data(), .dx = out, .w_grid = t.weight_grid()}); });
  CHECK((!did || dx == want.dx));
  std::vector<float> bias(static_cast<size_t>(g.k)), sums(bias.size());
  for (size_t i = 0; i < dy.size(); ++i) sums[i % sums.size()] += dy[i];
  const std::vector<float> dw = run_guarded<float>(weights(g), [&](float* out) { did = cpu::bf16_backward_filter(isa, {g, t.coded(), dy.data(), out, bias.data()}); });
  CHECK((!did || dw == want.dw));
  CHECK((!did || bias == sums));
}

// The processor's, or null with a word.
const cpu::Bf16Isa* isa_or_skip() {
  const cpu::Bf16Isa* isa = cpu::bf16_isa();
  if (!isa) MESSAGE("SKIPPED: this processor has no bf16 products");
  return isa;
}

}  // namespace

TEST_CASE("bf16 convolutions of small integers are exact") {
  const cpu::Bf16Isa* isa = isa_or_skip();
  if (!isa) return;
  for (const ConvCase& c : kConvCases) check_exact(*isa, c);
  for (const ConvCase& c : kPairCases) check_exact(*isa, c);
  for (const ConvCase& c : kFirstLayers) check_exact(*isa, c);
}

TEST_CASE("bf16 gradients of quantized layers: integers and their scales are exact") {
  const cpu::Bf16Isa* isa = isa_or_skip();
  if (!isa) return;
  for (const bool per_channel : {false, true}) {
    for (const ConvCase& c : kConvCases) check_integers(*isa, c, per_channel);
    for (const ConvCase& c : kPairCases) check_integers(*isa, c, per_channel);
    for (const ConvCase& c : kFirstLayers) check_integers(*isa, c, per_channel);
  }
}

TEST_CASE("a bf16 factor is rounded to even, once") {
  const cpu::Bf16Isa* isa = isa_or_skip();
  if (!isa) return;
  // 1 + 2^-8 lies between two bf16, 1 + 3 * 2^-8 too: the even ones are 1 and 1 + 2^-6. Of a sum of 16 such times 1.
  const ConvGeometry g{.n = 1, .h = 1, .w = 2, .c = 16, .k = 16, .oh = 1, .ow = 2};
  std::vector<float> x(32), w(256, 1.0f), y(32);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i < 16 ? 1.00390625f : 1.01171875f;
  Conv2dArgs a{g, {}, w.data(), {}};
  a.input.x = x.data();
  a.epilogue.y = y.data();
  REQUIRE(cpu::bf16_forward(*isa, a));
  CHECK(y[0] == 16.0f);
  CHECK(y[16] == 16.25f);
}

TEST_CASE("large results of groups that fill no vector are written without streaming stores, which would not be aligned") {
  // 48 channels are whole vectors, the 24 of a group are not.
  const ConvGeometry g{.n = 1, .h = 440, .w = 440, .c = 2, .k = 48, .oh = 440, .ow = 440, .groups = 2};
  const std::vector<float> x = small_integers(inputs(g), 1), w = small_integers(weights(g), 2);
  Conv2dArgs a{g, {}, w.data(), {}};
  a.input.x = x.data();
  const auto is_right = [&](int64_t i, float y) { return y == x[static_cast<size_t>(i / 48 * 2 + i % 48 / 24)] * w[static_cast<size_t>(i % 48)]; };
  for (const ConvEngine& e : conv_engines()) {
    if (e.name == "scalar") continue;
    CAPTURE(e.name);
    int64_t wrong = 0;
    Tensor y({outputs(g)}, DType::f32), y16({outputs(g)}, DType::bf16);  // aligned as a network's
    a.epilogue.y = y.data<float>(), a.epilogue.y16 = nullptr;
    e.conv2d(a);
    for (int64_t i = 0; i < outputs(g); ++i) wrong += !is_right(i, y.data<float>()[i]);
    a.epilogue.y = nullptr, a.epilogue.y16 = y16.data<uint16_t>();
    e.conv2d(a);
    for (int64_t i = 0; i < outputs(g); ++i) wrong += !is_right(i, bfloat_value(y16.data<uint16_t>()[i]));
    CHECK(wrong == 0);
  }
}

TEST_CASE("the cpu multiplies in bf16 when it is asked to and gains by it") {
  Backend& b = backend(Device{});
  CHECK(b.precision() == Precision::f32);
  b.set_precision(Precision::tf32);
  CHECK(b.precision() == Precision::f32);
  CHECK(!b.keeps_bf16());
  b.set_precision(Precision::bf16);
  CHECK(b.precision() == Precision::bf16);
  CHECK(b.keeps_bf16());
  CHECK((!cpu::prefers_bf16() || cpu::bf16_isa()));
  const ConvGeometry g{.n = 1, .h = 1, .w = 1, .c = 16, .k = 16, .oh = 1, .ow = 1};
  std::vector<float> x(16, 1.00390625f), w(256, 1.0f), y(16);
  Conv2dArgs a{g, {}, w.data(), {}};
  a.input.x = x.data();
  a.epilogue.y = y.data();
  kernels().conv2d(a);
  CHECK(y[0] == (cpu::prefers_bf16() ? 16.0f : 16.0625f));
  {
    const FullPrecision full(Device{});
    kernels().conv2d(a);
    CHECK(y[0] == 16.0625f);
  }
  CHECK(b.precision() == Precision::bf16);
  b.set_precision(Precision::f32);
}
