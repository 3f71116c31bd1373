// Values that are kept in bf16: the result of a kernel is that of the same values in f32, rounded; of a convolution of small integers it is the exact sum, rounded.
#include <algorithm>

#include "conv_engines.h"
#include "detent/core/error.h"
#include "integer_cases.h"

using namespace detent;
using namespace detent::test;

namespace {

using Words = std::vector<uint16_t>;
using Floats = std::vector<float>;

float value(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

// The nearest multiple of the unit in bf16's last place, in double.
float nearest(double x) {
  if (std::isnan(x) || std::isinf(x) || x == 0.0) return static_cast<float>(x);
  int exponent;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent, -125) - 8), rounded = std::nearbyint(x / unit) * unit;
  return std::abs(rounded) >= std::ldexp(1.0, 128) ? std::copysign(kInf, static_cast<float>(x)) : static_cast<float>(rounded);
}

Words words_of(const Floats& v) {
  Words w;
  for (const float x : v) {
    const float r = nearest(static_cast<double>(x));
    uint32_t bits;
    std::memcpy(&bits, &r, 4);
    w.push_back(std::isnan(x) ? 0x7fc0 : static_cast<uint16_t>(bits >> 16));
  }
  return w;
}

Floats floats_of(const Words& w) {
  Floats v;
  for (const uint16_t b : w) v.push_back(value(b));
  return v;
}

// Index of the first word that is not the rounded value, or -1.
int64_t first_other(const Words& got, const Floats& want) {
  if (got.size() != want.size()) return 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const float g = value(got[i]), w = nearest(static_cast<double>(want[i]));
    if (!(g == w && std::signbit(g) == std::signbit(w)) && !(std::isnan(g) && std::isnan(w))) return static_cast<int64_t>(i);
  }
  return -1;
}

template <class Fn>
Words words_from(int64_t n, Fn&& fill) {
  return filled<uint16_t>(n, fill);
}
template <class Fn>
Floats floats_from(int64_t n, Fn&& fill) {
  return filled<float>(n, fill);
}

Words awkward_words(int64_t n, uint64_t seed = 1) { return words_of(awkward_values(n, -3.0f, 3.0f, seed)); }
Words random_words(int64_t n, uint64_t seed = 1) { return words_of(random_values(n, -3.0f, 3.0f, seed)); }

// Beside the common ones: channels in eights, over every tile and with borders.
constexpr ConvCase kEights[] = {
    {"3x3 of 8 to 8", 2, 9, 7, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 of 72 to 136", 1, 12, 13, 72, 136, 3, 3, 1, 1, 1, 1, 1, 1},
    {"1x1 of 136 to 72", 2, 11, 9, 136, 72, 1, 1},
    {"3x3 stride 2 of 64 to 64", 2, 15, 16, 64, 64, 3, 3, 2, 2, 1, 1, 1, 1},
    {"1x1 stride 2 of 24 to 40", 2, 9, 10, 24, 40, 1, 1, 2, 2},
    {"5x5 dilation 2 of 16 to 24", 1, 14, 13, 16, 24, 5, 5, 1, 1, 4, 4, 4, 4, 2, 2},
    {"groups of 16 to 24", 1, 8, 9, 48, 72, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3},
    {"1x1 of a long row", 1, 1, 1500, 16, 24, 1, 1},
    {"1x3 of a long row", 1, 1, 1100, 16, 16, 1, 3, 1, 1, 0, 1, 0, 1},
    {"many pixels, a cut sum", 2, 31, 33, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1},
};

// All of them in bf16; elsewhere, where values are widened first, a few.
template <class Fn>
void for_each_convolution(Fn&& fn) {
  for (const ConvEngine& engine : conv_engines()) {
    for (const ConvCase& c : kEights) fn(engine, c);
    for (const ConvCase& c : kConvCases) {
      if (engine.name == "bf16" && inputs(geometry(c)) < 20000) fn(engine, c);
    }
  }
}

void check_convolution(const ConvEngine& engine, const ConvCase& c) {
  const ConvGeometry g = geometry(c);
  const Floats x = small_integers(inputs(g), 1), w = small_integers(weights(g), 2), dy = small_integers(outputs(g), 3), bias = small_integers(g.k, 4);
  const Words x16 = words_of(x), dy16 = words_of(dy);
  const ExactSums want(g, x, w, dy);
  CAPTURE(engine.name);
  CAPTURE(std::string(c.name));
  ConvInput in, in16;
  in.x = x.data();
  in16.x16 = x16.data();
  Conv2dArgs forward{g, in16, w.data(), {}};
  CHECK(first_other(words_from(outputs(g), [&](uint16_t* out) { forward.epilogue.y16 = out, engine.conv2d(forward); }), want.y) == -1);
  // To f32, and from it: a first layer has images.
  forward.epilogue.y16 = nullptr;
  CHECK(floats_from(outputs(g), [&](float* out) { forward.epilogue.y = out, engine.conv2d(forward); }) == want.y);
  forward.input = in, forward.epilogue.y = nullptr;
  CHECK(first_other(words_from(outputs(g), [&](uint16_t* out) { forward.epilogue.y16 = out, engine.conv2d(forward); }), want.y) == -1);
  // With a bias and a clamp, and the statistics of what was stored.
  Floats clamped = want.y;
  for (size_t i = 0; i < clamped.size(); ++i) clamped[i] = std::max(clamped[i] + bias[i % bias.size()], 0.0f);
  forward.input = in16, forward.epilogue.bias = bias.data(), forward.epilogue.clamp_min = 0.0f;
  CHECK(first_other(words_from(outputs(g), [&](uint16_t* out) { forward.epilogue.y16 = out, engine.conv2d(forward); }), clamped) == -1);
  const Floats moments = floats_from(2 * g.k, [&](float* out) {
    Words y(static_cast<size_t>(outputs(g)));
    Conv2dArgs a{g, in16, w.data(), {}};
    a.epilogue.y16 = y.data(), a.mean = out, a.var = out + g.k;
    engine.conv2d(a);
    Floats again(2 * static_cast<size_t>(g.k));
    const Floats dense = floats_of(y);
    kernels().batch_norm_stats({g.n * g.oh * g.ow, g.k, dense.data(), again.data(), again.data() + g.k});
    check_statistics(dense, out, out + g.k, g.k, true);
    if (!engine.sums_in_tiles) CHECK(std::equal(again.begin(), again.end(), out));
  });

  const auto data = [&](bool from16, float* dx, uint16_t* dx16) {
    engine.backward_data({.geometry = g, .dy = from16 ? nullptr : dy.data(), .w = w.data(), .dx = dx, .dy16 = from16 ? dy16.data() : nullptr, .dx16 = dx16});
  };
  CHECK(first_other(words_from(inputs(g), [&](uint16_t* out) { data(true, nullptr, out); }), want.dx) == -1);
  CHECK(first_other(words_from(inputs(g), [&](uint16_t* out) { data(false, nullptr, out); }), want.dx) == -1);
  CHECK(floats_from(inputs(g), [&](float* out) { data(true, out, nullptr); }) == want.dx);

  Floats column_sums(static_cast<size_t>(g.k));
  for (size_t i = 0; i < dy.size(); ++i) column_sums[i % column_sums.size()] += dy[i];
  for (const ConvInput& input : {in16, in}) {
    Floats dbias(column_sums.size());
    CHECK(floats_from(weights(g), [&](float* out) { engine.backward_filter({.geometry = g, .input = input, .dw = out, .dbias = dbias.data(), .dy16 = dy16.data()}); }) == want.dw);
    CHECK(dbias == column_sums);
  }
  CHECK(floats_from(weights(g), [&](float* out) { engine.backward_filter({.geometry = g, .input = in16, .dy = dy.data(), .dw = out}); }) == want.dw);
}

// Codes and weights on grids whose scales are powers of two, and a gradient in bf16: the integers are exact, so are the scales.
void check_coded_gradients(const ConvEngine& engine, const ConvCase& c, bool per_channel) {
  const ConvGeometry g = geometry(c);
  IntegerCase t(g, per_channel);
  t.input.scale = 0.25f;
  for (size_t k = 0; k < t.grids.size(); ++k) t.grids[k].scale = std::ldexp(1.0f, -static_cast<int>(k % 3));
  for (int& q : t.q) q = q / 16;  // sums stay below 2^24 units
  Floats x, dy = small_integers(outputs(g), 3);
  for (uint8_t& q : t.x) q = static_cast<uint8_t>(t.input.zero_point + q / 16 - 8), x.push_back(dequantize(q, t.input));
  for (size_t i = 0; i < t.w.size(); ++i) t.w[i] = dequantize(t.q[i], t.grid(static_cast<int64_t>(i) / (weights(g) / g.k)));
  const Words dy16 = words_of(dy);
  const ExactSums want(g, x, t.w, dy);
  CAPTURE(engine.name);
  CAPTURE(std::string(c.name));
  CAPTURE(per_channel);
  const Words dx = words_from(
      inputs(g), [&](uint16_t* out) { engine.backward_data({.geometry = g, .w = t.w.data(), .w_grid = t.weight_grid(), .dy16 = dy16.data(), .dx16 = out}); });
  CHECK(first_other(dx, want.dx) == -1);
  CHECK(floats_from(weights(g), [&](float* out) { engine.backward_filter({.geometry = g, .input = t.coded(), .dw = out, .dy16 = dy16.data()}); }) == want.dw);
}

constexpr PointwiseKind kKinds[] = {PointwiseKind::identity, PointwiseKind::clip,       PointwiseKind::leaky_relu, PointwiseKind::sigmoid,  PointwiseKind::tanh,
                                    PointwiseKind::silu,     PointwiseKind::hard_swish, PointwiseKind::softplus,   PointwiseKind::hard_sigmoid};

}  // namespace

TEST_CASE("bf16: narrowed values are the nearest, ties to even; widened ones are exact; sums are rounded once") {
  for (const int64_t n : kTails) {
    Floats x = awkward_values(n, -3.0f, 3.0f, 7);
    for (size_t i = 0; i < x.size(); i += 4) x[i] = value(static_cast<uint16_t>(0x3f80 + i)) * (1.0f + 0x1p-8f);  // halfway
    x[0] = 3.3961775e38f;                                                                                         // beyond the largest
    CHECK(first_other(words_from(n, [&](uint16_t* out) { kernels().narrow(out, x.data(), n); }), x) == -1);
    const Words a = awkward_words(n, 2), b = awkward_words(n, 3);
    const Floats va = floats_of(a), vb = floats_of(b);
    const Floats wide = floats_from(n, [&](float* out) { kernels().widen(out, a.data(), n); });
    CHECK(std::memcmp(wide.data(), va.data(), va.size() * 4) == 0);
    Floats sum(va.size());
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = va[i] + vb[i];
    const Words got = words_from(n, [&](uint16_t* out) {
      std::copy(a.begin(), a.end(), out);
      kernels().accumulate16(out, b.data(), n);
    });
    CHECK(first_other(got, sum) == -1);
  }
}

TEST_CASE("bf16: convolutions of small integers, in three directions, are exact sums rounded") {
  if (!kernels().keeps_bf16) return;
  for_each_convolution([](const ConvEngine& engine, const ConvCase& c) { check_convolution(engine, c); });
}

TEST_CASE("bf16: gradients of quantized layers: integers and their scales are exact") {
  if (!kernels().keeps_bf16) return;
  for_each_convolution([](const ConvEngine& engine, const ConvCase& c) {
    for (const bool per_channel : {false, true}) check_coded_gradients(engine, c, per_channel);
  });
}

TEST_CASE("bf16: convolutions round their factors to what they are multiplied as, no further") {
  if (!kernels().keeps_bf16) return;
  for (const ConvEngine& engine : conv_engines()) {
    const ConvGeometry g = geometry(kEights[1]);
    const Words x16 = random_words(inputs(g), 1);
    const Floats x = floats_of(x16), w = random_values(weights(g), -1.0f, 1.0f, 2), dy(static_cast<size_t>(outputs(g)));
    std::vector<double> sum(dy.size()), size(dy.size());
    for_each_product(g, [&](int64_t o, int64_t i, int64_t f) {
      const double product = static_cast<double>(x[static_cast<size_t>(i)]) * static_cast<double>(w[static_cast<size_t>(f)]);
      sum[static_cast<size_t>(o)] += product, size[static_cast<size_t>(o)] += std::abs(product);
    });
    Conv2dArgs a{g, {}, w.data(), {}};
    a.input.x16 = x16.data();
    const Words y = words_from(outputs(g), [&](uint16_t* out) { a.epilogue.y16 = out, engine.conv2d(a); });
    int64_t wrong = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      const double bound = (engine.rounding + 1e-4) * size[i] + 0x1p-8 * std::abs(sum[i]);
      wrong += !(std::abs(static_cast<double>(value(y[i])) - sum[i]) <= bound);
    }
    CHECK_MESSAGE(wrong == 0, engine.name);
  }
}

TEST_CASE("bf16: pointwise functions and sums give the result of the same values in f32, rounded") {
  if (!kernels().keeps_bf16) return;
  for (const int64_t n : kTails) {
    const Words x = awkward_words(n), dy = awkward_words(n, 2);
    const Floats vx = floats_of(x), vdy = floats_of(dy);
    for (const PointwiseKind kind : kKinds) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(n);
      const Pointwise op{kind, 0.1f, 1.5f};
      const Floats y = floats_from(n, [&](float* out) { kernels().pointwise({.op = op, .x = vx.data(), .out = out, .n = n}); });
      const Floats dx = floats_from(n, [&](float* out) { kernels().pointwise_backward({.op = op, .x = vx.data(), .y = vx.data(), .dy = vdy.data(), .out = out, .n = n}); });
      CHECK(first_other(words_from(n, [&](uint16_t* out) { kernels().pointwise({.op = op, .n = n, .x16 = x.data(), .out16 = out}); }), y) == -1);
      CHECK(first_other(words_from(n, [&](uint16_t* out) { kernels().pointwise_backward({.op = op, .n = n, .x16 = x.data(), .dy16 = dy.data(), .out16 = out}); }), dx) == -1);
    }
    AddArgs a{.n = n, .a = {}, .b = {}, .epilogue = {}}, a16 = a;
    a.a.x = vx.data(), a.b.x = vdy.data(), a16.a.x16 = x.data(), a16.b.x16 = dy.data();
    a.epilogue.clamp_min = a16.epilogue.clamp_min = 0.0f, a.epilogue.clamp_max = a16.epilogue.clamp_max = 2.0f;
    const Floats sum = floats_from(n, [&](float* out) { a.epilogue.y = out, kernels().add(a); });
    CHECK(first_other(words_from(n, [&](uint16_t* out) { a16.epilogue.y16 = out, kernels().add(a16); }), sum) == -1);
  }
}

TEST_CASE("bf16: batch norms give the result of the same values in f32, rounded; their sums are those of f32") {
  if (!kernels().keeps_bf16) return;
  const int64_t cases[][2] = {{1, 1}, {127, 128}, {129, 3}, {1000, 64}, {600, 513}, {7000, 1}, {300, 2048}};
  for (const auto& k : cases) {
    const int64_t rows = k[0], c = k[1], n = rows * c;
    CAPTURE(rows);
    CAPTURE(c);
    const Words x = random_words(n), dy = random_words(n, 2);
    const Floats vx = floats_of(x), vdy = floats_of(dy), gamma = random_values(c, -1.0f, 2.0f, 4), beta = random_values(c, -1.0f, 1.0f, 5);
    const Floats moments = floats_from(2 * c, [&](float* out) { kernels().batch_norm_stats({.rows = rows, .c = c, .x = vx.data(), .mean = out, .var = out + c}); });
    CHECK(floats_from(2 * c, [&](float* out) { kernels().batch_norm_stats({.rows = rows, .c = c, .mean = out, .var = out + c, .x16 = x.data()}); }) == moments);
    BatchNormArgs a{.rows = rows, .c = c, .mean = moments.data(), .var = moments.data() + c, .gamma = gamma.data(), .beta = beta.data(), .clamp_min = 0.0f}, a16 = a;
    a.x = vx.data(), a16.x16 = x.data();
    const Floats y = floats_from(n, [&](float* out) { a.y = out, kernels().batch_norm(a); });
    CHECK(first_other(words_from(n, [&](uint16_t* out) { a16.y16 = out, kernels().batch_norm(a16); }), y) == -1);
    BatchNormBackwardArgs b{.rows = rows, .c = c, .mean = moments.data(), .var = moments.data() + c, .gamma = gamma.data(), .beta = beta.data(), .clamp_min = 0.0f}, b16 = b;
    b.x = vx.data(), b.dy = vdy.data(), b16.x16 = x.data(), b16.dy16 = dy.data();
    Floats sums(2 * static_cast<size_t>(c)), sums16(sums.size());
    b.dgamma = sums.data(), b.dbeta = sums.data() + c, b16.dgamma = sums16.data(), b16.dbeta = sums16.data() + c;
    const Floats dx = floats_from(n, [&](float* out) { b.dx = out, kernels().batch_norm_backward(b); });
    CHECK(first_other(words_from(n, [&](uint16_t* out) { b16.dx16 = out, kernels().batch_norm_backward(b16); }), dx) == -1);
    CHECK(sums == sums16);
  }
}

TEST_CASE("bf16: max pools take the same elements as in f32, and their gradients are rounded") {
  if (!kernels().keeps_bf16) return;
  for (const ConvCase& k : {ConvCase{"3x3 stride 2", 2, 9, 8, 8, 8, 3, 3, 2, 2, 1, 1, 1, 1}, ConvCase{"2x2, five channels", 1, 6, 7, 5, 5, 2, 2, 2, 2},
                            ConvCase{"3x3 overlapping", 1, 7, 7, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1}}) {
    CAPTURE(k.name);
    const ConvGeometry g = geometry(k);
    const Words x = awkward_words(inputs(g)), dy = random_words(outputs(g), 2);
    const Floats vx = floats_of(x), vdy = floats_of(dy);
    std::vector<int32_t> index(static_cast<size_t>(outputs(g))), index16(index.size());
    PoolArgs a{.geometry = g, .x = vx.data(), .index = index.data()}, a16{.geometry = g, .index = index16.data(), .x16 = x.data()};
    const Floats y = floats_from(outputs(g), [&](float* out) { a.y = out, kernels().max_pool(a); });
    CHECK(first_other(words_from(outputs(g), [&](uint16_t* out) { a16.y16 = out, kernels().max_pool(a16); }), y) == -1);
    CHECK(index == index16);
    PoolBackwardArgs b{.geometry = g, .dy = vdy.data(), .index = index.data()}, b16{.geometry = g, .index = index.data(), .dy16 = dy.data()};
    const Floats dx = floats_from(inputs(g), [&](float* out) { b.dx = out, kernels().max_pool_backward(b); });
    CHECK(first_other(words_from(inputs(g), [&](uint16_t* out) { b16.dx16 = out, kernels().max_pool_backward(b16); }), dx) == -1);
  }
}
