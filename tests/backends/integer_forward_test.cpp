// The forward pass of a quantized layer in training, on integers: codes and residuals on every instruction set, and when it is left to floats.
#include "integer_cases.h"
#include "integer_engines.h"

using namespace detent;
using namespace detent::test;

namespace {

Conv2dArgs arguments(const ConvGeometry& g, const IntegerCase& t, const QuantizeSetting& set) {
  Conv2dArgs a{g, t.coded(), t.w.data(), {}, t.weight_grid()};
  a.epilogue.bias = t.bias.data();
  set.put(a.epilogue);
  return a;
}

// How many codes and residuals are not those of the sums.
int64_t differences(const Engine& e, const ConvGeometry& g, const IntegerCase& t, const QuantizeSetting& set, const std::vector<int64_t>& acc) {
  Conv2dArgs a = arguments(g, t, set);
  Guarded<uint8_t> codes(outputs(g)), alone(outputs(g));
  Guarded<int8_t> residual(outputs(g));
  a.epilogue.codes = codes.data();
  a.epilogue.residual = residual.data();
  CHECK(cpu::integer_forward(e.kernels, a));
  a.epilogue.codes = alone.data();
  a.epilogue.residual = nullptr;
  CHECK(cpu::integer_forward(e.kernels, a));
  CHECK(codes.intact());
  CHECK(alone.intact());
  CHECK(residual.intact());
  int64_t n = 0;
  for (size_t i = 0; i < acc.size(); ++i) {
    const QuantizedSum want = quantized_sum(acc[i], t.scale(static_cast<int64_t>(i) % g.k), set);
    n += codes.data()[i] != want.code || alone.data()[i] != want.code || residual.data()[i] != want.residual;
  }
  return n;
}

constexpr ConvGeometry kPointwise{.n = 2, .h = 3, .w = 5, .c = 24, .k = 20, .oh = 3, .ow = 5};

}  // namespace

TEST_CASE("a quantizing convolution of codes: QLinearConv's codes, and the residual of what it rounds") {
  for (const ConvCase& c : kConvCases) {
    const ConvGeometry g = geometry(c);
    for (const bool per_channel : {false, true}) {
      const IntegerCase t(g, per_channel);
      const std::vector<int64_t> acc = t.sums(g);
      for (const QuantizeSetting& set : kQuantizeSettings) {
        for (const Engine& e : engines()) {
          INFO(c.name, ", ", e.name, per_channel ? ", per channel" : "", ", clamp ", set.lo, " to ", set.hi);
          CHECK(differences(e, g, t, set, acc) == 0);
        }
      }
    }
  }
}

TEST_CASE("what is no product of codes on its way to codes is left to floats") {
  const IntegerCase t(kPointwise, true);
  const std::vector<float> ones(static_cast<size_t>(kPointwise.k), 1.0f), addend(static_cast<size_t>(outputs(kPointwise)), 1.0f);
  std::vector<float> y(addend.size());
  std::vector<uint8_t> codes(addend.size(), 7);
  const auto runs = [&](auto&& change) {
    Conv2dArgs a = arguments(kPointwise, t, kQuantizeSettings[0]);
    a.epilogue.codes = codes.data();
    change(a);
    const bool ran = cpu::integer_forward(cpu::integer_engine(), a);
    if (!ran) CHECK(codes == std::vector<uint8_t>(addend.size(), 7));
    std::fill(codes.begin(), codes.end(), uint8_t{7});
    return ran;
  };
  CHECK(runs([](Conv2dArgs&) {}));
  CHECK_FALSE(runs([](Conv2dArgs& a) { a.w_grid.magnitude = 0; }));
  CHECK_FALSE(runs([](Conv2dArgs& a) { a.w_grid.magnitude = 129; }));
  CHECK_FALSE(runs([&](Conv2dArgs& a) { a.input.codes = nullptr; a.input.x = addend.data(); }));
  CHECK_FALSE(runs([&](Conv2dArgs& a) { a.epilogue.quantize = false; a.epilogue.y = y.data(); }));
  CHECK_FALSE(runs([&](Conv2dArgs& a) { a.epilogue.scale = ones.data(); }));
  CHECK_FALSE(runs([&](Conv2dArgs& a) { a.epilogue.addend = addend.data(); }));
}

TEST_CASE("sums that might leave int32, and biases that are no numbers, are left to floats") {
  IntegerCase t(kPointwise, false);
  std::vector<uint8_t> codes(static_cast<size_t>(outputs(kPointwise)));
  const auto runs = [&](float bias) {
    t.bias[7] = bias;
    Conv2dArgs a = arguments(kPointwise, t, kQuantizeSettings[0]);
    a.epilogue.codes = codes.data();
    return cpu::integer_forward(cpu::integer_engine(), a);
  };
  const float s = t.scale(7);
  CHECK(runs(2147480000.0f / 2.0f * s));
  CHECK(runs(-2147480000.0f / 2.0f * s));
  // 24 products of at most 138 * 128 are more than what is missing to 2^31.
  CHECK_FALSE(runs(2147480000.0f * s));
  CHECK_FALSE(runs(-2147480000.0f * s));
  CHECK_FALSE(runs(kNan));
  CHECK_FALSE(runs(kInf));
  CHECK_FALSE(runs(-kInf));
}

TEST_CASE("the table multiplies integers where it is told the grids, and floats where not: a code apart at most") {
  const ConvGeometry g{.n = 2, .h = 9, .w = 8, .c = 40, .k = 33, .r = 3, .s = 3, .oh = 9, .ow = 8, .pad_top = 1, .pad_left = 1};
  const IntegerCase t(g, true);
  std::vector<uint8_t> a(static_cast<size_t>(outputs(g))), b = a;
  Conv2dArgs args = arguments(g, t, kQuantizeSettings[0]);
  args.epilogue.codes = a.data();
  kernels().conv2d(args);
  args.w_grid = {};
  args.epilogue.codes = b.data();
  kernels().conv2d(args);
  const std::vector<int64_t> acc = t.sums(g);
  int64_t differ = 0;
  int most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i] == quantized_sum(acc[i], t.scale(static_cast<int64_t>(i) % g.k), kQuantizeSettings[0]).code);
    differ += a[i] != b[i];
    most = std::max(most, std::abs(int{a[i]} - int{b[i]}));
  }
  CHECK(most <= 1);
  // The float path takes the bias as it is: of steps of 5 codes' thousandth parts that moves few.
  CHECK(differ <= static_cast<int64_t>(a.size()) / 100);
}
