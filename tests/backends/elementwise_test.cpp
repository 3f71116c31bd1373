#include <string>

#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

TEST_CASE("fill, accumulate, scale, count_nonfinite") {
  for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{127}, int64_t{128}, int64_t{129}, int64_t{1000}, int64_t{200001}}) {
    CAPTURE(n);
    const std::vector<float> x = awkward_values(n), y0 = awkward_values(n, -1.0f, 1.0f, 2);
    const auto filled = run_guarded<float>(n, [&](float* y) { kernels().fill(y, 1.25f, n); });
    const auto sum = run_guarded<float>(n, [&](float* y) {
      std::copy(y0.begin(), y0.end(), y);
      kernels().accumulate(y, x.data(), n);
    });
    const auto scaled = run_guarded<float>(n, [&](float* y) { kernels().scale(y, x.data(), -0.3f, n); });
    std::vector<double> want_sum, want_scaled;
    int64_t bad = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      want_sum.push_back(static_cast<double>(x[i]) + static_cast<double>(y0[i]));
      want_scaled.push_back(static_cast<double>(x[i]) * static_cast<double>(-0.3f));
      bad += !std::isfinite(x[i]);
    }
    CHECK(filled == std::vector<float>(static_cast<size_t>(n), 1.25f));
    CHECK(first_far(sum, want_sum) == -1);
    CHECK(first_far(scaled, want_scaled) == -1);
    const FloatSpan spans[] = {{filled.data(), n}, {}, {x.data(), n}, {x.data(), 1}};
    int64_t counts[] = {-1, -1, -1, -1};
    kernels().count_nonfinite(spans, 4, counts);
    CHECK(counts[0] == 0);
    CHECK(counts[1] == 0);
    CHECK(counts[2] == bad);
    const auto joined = run_guarded<float>(2 * n + 1, [&](float* out) { kernels().gather(spans, 4, out); });
    CHECK(same_bits(std::vector<float>(joined.begin(), joined.begin() + n), filled));
    CHECK(same_bits(std::vector<float>(joined.begin() + n, joined.begin() + 2 * n), x));
    CHECK(std::memcmp(&joined.back(), &x[0], 4) == 0);
    CHECK(counts[3] == (std::isfinite(x[0]) ? 0 : 1));
  }
  kernels().count_nonfinite(nullptr, 0, nullptr);
  kernels().gather(nullptr, 0, nullptr);
}

namespace {

// The definitions, in double and in the textbook's words.
double value(PointwiseKind kind, double x, double a, double b) {
  switch (kind) {
    case PointwiseKind::identity: return x;
    case PointwiseKind::clip: return std::isnan(x) ? x : std::fmin(std::fmax(x, a), b);
    case PointwiseKind::leaky_relu: return std::isnan(x) ? x : std::fmax(x, 0.0) + a * std::fmin(x, 0.0);
    case PointwiseKind::sigmoid: return std::isnan(x) ? x : 0.5 * (1.0 + std::tanh(0.5 * x));
    case PointwiseKind::tanh: return std::isnan(x) ? x : 1.0 - 2.0 / (std::exp(2.0 * x) + 1.0);
    case PointwiseKind::hard_sigmoid: return std::isnan(x) ? x : std::fmin(std::fmax(a * x + b, 0.0), 1.0);
    case PointwiseKind::hard_swish: return std::isnan(x) ? x : x * std::fmin(std::fmax(x + 3.0, 0.0), 6.0) / 6.0;
    case PointwiseKind::silu: return x / (1.0 + std::exp(-x));
    case PointwiseKind::affine: return a * x + b;
    case PointwiseKind::softplus: return std::isnan(x) ? x : (x > 30.0 ? x : std::log(1.0 + std::exp(x)));
  }
  return 0.0;
}

struct PointwiseCase {
  Pointwise op;
  std::vector<double> kinks;  // where the derivative is one-sided: left out of the numerical check
};

const PointwiseCase kPointwise[] = {
    {{PointwiseKind::identity, 0.0f, 0.0f}, {}},
    {{PointwiseKind::clip, 0.0f, kInf}, {0.0}},
    {{PointwiseKind::clip, 0.0f, 2.0f}, {0.0, 2.0}},
    {{PointwiseKind::leaky_relu, 0.125f, 0.0f}, {0.0}},
    {{PointwiseKind::sigmoid, 0.0f, 0.0f}, {}},
    {{PointwiseKind::tanh, 0.0f, 0.0f}, {}},
    {{PointwiseKind::hard_sigmoid, 0.25f, 0.5f}, {-2.0, 2.0}},
    {{PointwiseKind::hard_swish, 0.0f, 0.0f}, {-3.0, 3.0}},
    {{PointwiseKind::silu, 0.0f, 0.0f}, {}},
    {{PointwiseKind::affine, 1.5f, -0.25f}, {}},
    {{PointwiseKind::softplus, 0.0f, 0.0f}, {}},
};

}  // namespace

namespace {

// ONNX Runtime's QLinearAdd with fused multiply-adds written as doubles: a product of two floats is exact there.
float fused(float a, float b, float c) { return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c)); }

}  // namespace

TEST_CASE("add: codes to codes round once, as ONNX Runtime's integers") {
  struct Case {
    Grid a, b, c;
    float lo, hi;
    bool on_codes;
  };
  const Case cases[] = {{{0.03125f, 130, 0, 255}, {0.015625f, 121, 0, 255}, {0.0625f, 139, 0, 255}, -kInf, kInf, true},  // exact ties, an odd zero point
                        {{0.031f, 7, 0, 255}, {0.0171f, 200, 0, 255}, {0.0245f, 0, 0, 255}, 0.0f, kInf, true},            // the clamp is the grid's
                        {{0.011f, 128, 0, 255}, {0.02f, 3, 0, 255}, {0.013f, 100, 0, 255}, -0.5f, 0.6f, false}};         // and here not: floats are added
  for (const Case& t : cases) {
    const int64_t n = 65536 - 3;
    std::vector<uint8_t> a, b;
    std::vector<float> want, residual;
    const float ra = t.a.scale / t.c.scale, rb = t.b.scale / t.c.scale, z = static_cast<float>(t.c.zero_point);
    const float k = z - fused(ra, static_cast<float>(t.a.zero_point), rb * static_cast<float>(t.b.zero_point));
    for (int64_t i = 0; i < n; ++i) {
      a.push_back(static_cast<uint8_t>(i * 167));
      b.push_back(static_cast<uint8_t>(i >> 8));
      const float place = fused(static_cast<float>(a.back()), ra, fused(static_cast<float>(b.back()), rb, k));
      const float sum = std::fmin(std::fmax(dequantize(a.back(), t.a) + dequantize(b.back(), t.b), t.lo), t.hi);
      want.push_back(t.on_codes ? std::fmin(std::fmax(std::nearbyint(place), 0.0f), 255.0f) : quantize_to_float(sum, t.c));
      const double v = (static_cast<double>(dequantize(a.back(), t.a)) + static_cast<double>(dequantize(b.back(), t.b))) / static_cast<double>(t.c.scale);
      residual.push_back(static_cast<float>(252.0 * (std::nearbyint(v) - v)));
    }
    std::vector<int8_t> kept(static_cast<size_t>(n));
    std::vector<float> y(static_cast<size_t>(n));
    const auto codes = run_guarded<uint8_t>(n, [&](uint8_t* q) {
      AddArgs args{.n = n, .a = {nullptr, a.data(), t.a}, .b = {nullptr, b.data(), t.b}, .epilogue = {}};
      args.epilogue.clamp_min = t.lo;
      args.epilogue.clamp_max = t.hi;
      args.epilogue.quantize = true;
      args.epilogue.grid = t.c;
      args.epilogue.codes = q;
      args.epilogue.y = y.data();
      args.epilogue.residual = kept.data();
      kernels().add(args);
    });
    int64_t differ = 0, not_the_value = 0, far = 0;
    for (size_t i = 0; i < codes.size(); ++i) {
      differ += static_cast<float>(codes[i]) != want[i];
      not_the_value += y[i] != dequantize(codes[i], t.c);
      const bool tie = std::fabs(std::fabs(residual[i]) - 126.0f) < 0.1f;  // either way
      far += kept[i] > kMasked && !tie && std::fabs(static_cast<float>(kept[i]) - residual[i]) > 0.51f;
    }
    CHECK(differ == 0);
    CHECK(not_the_value == 0);
    CHECK(far == 0);
  }
}

TEST_CASE("pointwise: values at every tail, with NaN, infinities, denormals") {
  bool seen[64] = {};
  for (const PointwiseCase& c : kPointwise) {
    seen[static_cast<int>(c.op.kind)] = true;
    for (int64_t n : kTails) {
      CAPTURE(name_of(c.op.kind));
      CAPTURE(n);
      std::vector<float> x = awkward_values(n, -5.0f, 5.0f);
      const bool infinite_ok = c.op.kind != PointwiseKind::silu && c.op.kind != PointwiseKind::hard_swish;  // inf * 0 there
      for (float& v : x) {
        if (!infinite_ok && std::isinf(v)) v = 1.0f;
      }
      const auto y = run_guarded<float>(n, [&](float* out) { kernels().pointwise({.op = c.op, .x = x.data(), .out = out, .n = n}); });
      std::vector<double> want;
      for (float v : x) want.push_back(value(c.op.kind, static_cast<double>(v), static_cast<double>(c.op.a), static_cast<double>(c.op.b)));
      CHECK(first_far(y, want, 1e-6) == -1);
    }
  }
  int kinds = 0;
#define DETENT_X(name, functor) ++kinds;
  DETENT_POINTWISE_LIST(DETENT_X)
#undef DETENT_X
  for (int k = 0; k < kinds; ++k) CHECK_MESSAGE(seen[k], "no case for ", std::string(name_of(static_cast<PointwiseKind>(k))));
}

TEST_CASE("pointwise backward is the derivative") {
  for (const PointwiseCase& c : kPointwise) {
    CAPTURE(name_of(c.op.kind));
    const int64_t n = 1000;
    std::vector<float> x = random_values(n, -5.0f, 5.0f);
    const std::vector<float> dy = random_values(n, -1.0f, 1.0f, 9);
    const double a = static_cast<double>(c.op.a), b = static_cast<double>(c.op.b), h = 1e-5;
    std::vector<double> want;
    for (size_t i = 0; i < x.size(); ++i) {
      for (double k : c.kinks) {
        if (std::abs(static_cast<double>(x[i]) - k) < 1e-3) x[i] += 0.01f;
      }
      const double v = static_cast<double>(x[i]);
      want.push_back(static_cast<double>(dy[i]) * (value(c.op.kind, v + h, a, b) - value(c.op.kind, v - h, a, b)) / (2.0 * h));
    }
    const auto y = run_guarded<float>(n, [&](float* out) { kernels().pointwise({.op = c.op, .x = x.data(), .out = out, .n = n}); });
    const auto dx = run_guarded<float>(
        n, [&](float* out) { kernels().pointwise_backward({.op = c.op, .x = x.data(), .y = y.data(), .dy = dy.data(), .out = out, .n = n}); });
    CHECK(first_far(dx, want, 2e-6) == -1);
  }
}
