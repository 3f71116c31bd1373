// Quantization against a reference in double: x/s of two floats rounds to float before rint, which double arithmetic reproduces exactly.
#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

namespace {

const Grid kGrids[] = {
    {0.1f, 37, 0, 255}, {0.02f, 0, -128, 127}, {0.5f, 0, 0, 255}, {0.25f, 128, 0, 255}, {0.03f, 7, 0, 15}, {1.0f, 0, -127, 127},
    {1e-4f, 32768, 0, 65535}, {1e-7f, 255, 0, 255}, {1e-40f, 3, 0, 255},
};

double ratio(float x, const Grid& g) { return static_cast<double>(static_cast<float>(static_cast<double>(x) / static_cast<double>(g.scale))); }

// Round half to even without rint.
double half_even(double v) {
  const double f = std::floor(v), d = v - f;
  if (d != 0.5) return d < 0.5 ? f : f + 1.0;
  return std::fmod(f, 2.0) == 0.0 ? f : f + 1.0;
}

int64_t code(float x, const Grid& g) {
  if (std::isnan(x)) return g.zero_point;
  const double q = half_even(ratio(x, g)) + g.zero_point;
  return static_cast<int64_t>(std::fmin(std::fmax(q, g.qmin), g.qmax));
}

// Random, awkward and tie values for a grid.
std::vector<float> grid_values(int64_t n, const Grid& g, uint64_t seed) {
  const float lo = g.scale * static_cast<float>(g.qmin - g.zero_point - 5), hi = g.scale * static_cast<float>(g.qmax - g.zero_point + 5);
  std::vector<float> x = awkward_values(n, lo, hi, seed);
  for (size_t i = 1; i < x.size(); i += 4) x[i] = g.scale * (static_cast<float>(static_cast<int>(i * 7 % 530) - 265) + 0.5f);
  return x;
}

struct View {
  ChannelView view;
  int64_t elements() const { return view.outer * view.channels * view.inner; }
};

const View kViews[] = {
    {{1, 1, 1}}, {{1, 1, 7}}, {{1, 1, 127}}, {{1, 1, 128}}, {{1, 1, 129}}, {{1, 1, 1000}}, {{1, 1, 5000}}, {{1, 1, 200003}},
    {{1, 9, 27}}, {{1, 3, 4608}}, {{4, 5, 6}}, {{3, 2, 70000}}, {{100, 9, 1}}, {{700, 130, 1}}, {{1, 9, 1}}, {{2, 4, 16}},
};

// Per channel grids: variations of one.
std::vector<Grid> channel_grids(const Grid& base, int64_t channels) {
  std::vector<Grid> v(static_cast<size_t>(channels), base);
  for (size_t i = 0; i < v.size(); ++i) v[i].scale *= 1.0f + 0.37f * static_cast<float>(i % 11);
  return v;
}

}  // namespace

TEST_CASE("fake_quant: values and codes exact on every grid, view and awkward input") {
  for (const Grid& base : kGrids) {
    for (const View& v : kViews) {
      CAPTURE(base.scale);
      CAPTURE(v.view.channels);
      CAPTURE(v.view.inner);
      const int64_t n = v.elements();
      const std::vector<Grid> grids = channel_grids(base, v.view.channels);
      const std::vector<float> x = grid_values(n, base, 3);
      const bool byte = base.qmax - base.qmin <= 255;
      const auto y = run_guarded<float>(n, [&](float* out) { kernels().fake_quant({.view = v.view, .x = x.data(), .grids = grids.data(), .y = out}); });
      const auto codes = !byte ? std::vector<uint8_t>() : run_guarded<uint8_t>(n, [&](uint8_t* out) {
        kernels().fake_quant({.view = v.view, .x = x.data(), .grids = grids.data(), .codes = out});
      });
      Guarded<uint8_t> both(n);
      std::vector<float> y2(static_cast<size_t>(n));
      if (byte) kernels().fake_quant({.view = v.view, .x = x.data(), .grids = grids.data(), .y = y2.data(), .codes = both.data()});
      CHECK(both.intact());
      int64_t wrong = 0;
      for (int64_t i = 0; i < n; ++i) {
        const size_t k = static_cast<size_t>(i);
        const Grid& g = grids[static_cast<size_t>(i / v.view.inner % v.view.channels)];
        const int64_t q = code(x[k], g);
        const float want = static_cast<float>(static_cast<double>(g.scale) * static_cast<double>(q - g.zero_point));
        wrong += std::memcmp(&y[k], &want, 4) != 0;
        if (byte) wrong += codes[k] != static_cast<uint8_t>(q) || both[i] != static_cast<uint8_t>(q) || std::memcmp(&y2[k], &want, 4) != 0;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("fake_quant works in place and on unaligned rows") {
  const Grid g{0.1f, 37, 0, 255};
  for (int64_t shift : {0, 1, 3, 8}) {
    const std::vector<float> x = grid_values(1003, g, 5);
    std::vector<float> y = x;
    const std::vector<Grid> grids{g};
    const int64_t n = 1003 - shift;
    kernels().fake_quant({.view = {1, 1, n}, .x = y.data() + shift, .grids = grids.data(), .y = y.data() + shift});
    int64_t wrong = 0;
    for (int64_t i = 0; i < 1003; ++i) {
      const size_t k = static_cast<size_t>(i);
      const float want = i < shift ? x[k] : static_cast<float>(static_cast<double>(g.scale) * static_cast<double>(code(x[k], g) - g.zero_point));
      wrong += std::memcmp(&y[k], &want, 4) != 0;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("fake_quant and its gradient masked on the value: by channel in place and on unaligned rows") {
  const View views[] = {{{1, 1, 1003}}, {{2, 3, 64}}, {{3, 1000, 4}}, {{1, 300, 12}}, {{2, 5, 6}}, {{5, 7, 1}}, {{1, 1, 3}}, {{2, 2, 0}}};
  for (const View& v : views) {
    CAPTURE(v.view.channels);
    CAPTURE(v.view.inner);
    const int64_t n = v.elements();
    const std::vector<Grid> grids = channel_grids(kGrids[0], v.view.channels);
    const std::vector<float> x = grid_values(n, kGrids[0], 5), dy = random_values(n, -1.0f, 1.0f, 6);
    for (const int64_t shift : {0, 1, 4}) {
      CAPTURE(shift);
      Guarded<float> y(n + shift), masked(n + shift), xs(n + shift);
      std::copy(x.begin(), x.end(), y.data() + shift);
      std::copy(x.begin(), x.end(), xs.data() + shift);
      std::copy(dy.begin(), dy.end(), masked.data() + shift);
      kernels().fake_quant({.view = v.view, .x = y.data() + shift, .grids = grids.data(), .y = y.data() + shift});
      kernels().fake_quant_backward(
          {.view = v.view, .x = xs.data() + shift, .dy = masked.data() + shift, .grids = grids.data(), .mask_on_value = true, .dx = masked.data() + shift});
      CHECK((y.intact() && masked.intact()));
      int64_t wrong = 0;
      for (int64_t i = 0; i < n; ++i) {
        const size_t k = static_cast<size_t>(i);
        const Grid& g = grids[static_cast<size_t>(i / v.view.inner % v.view.channels)];
        const float want = static_cast<float>(static_cast<double>(g.scale) * static_cast<double>(code(x[k], g) - g.zero_point));
        const float lo = g.scale * static_cast<float>(g.qmin - g.zero_point), hi = g.scale * static_cast<float>(g.qmax - g.zero_point);
        wrong += y[i + shift] != want;
        wrong += masked[i + shift] != (x[k] >= lo && x[k] <= hi ? dy[k] : 0.0f);
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("dequantize") {
  for (int64_t n : kTails) {
    const Grid g{0.07f, 113, 0, 255};
    std::vector<uint8_t> codes(static_cast<size_t>(n));
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 91);
    const auto y = run_guarded<float>(n, [&](float* out) { kernels().dequantize({.codes = codes.data(), .grid = g, .y = out, .n = n}); });
    for (size_t i = 0; i < codes.size(); ++i) CHECK(y[i] == static_cast<float>(static_cast<double>(0.07f) * (codes[i] - 113)));
  }
}

TEST_CASE("fake_quant_backward: mask exact, range sums to rounding") {
  for (const Grid& base : kGrids) {
    for (const View& v : kViews) {
      CAPTURE(base.scale);
      CAPTURE(v.view.channels);
      CAPTURE(v.view.inner);
      const int64_t n = v.elements(), channels = v.view.channels;
      const std::vector<Grid> grids = channel_grids(base, channels);
      const std::vector<float> x = grid_values(n, base, 6), dy = random_values(n, -1.0f, 1.0f, 8);
      std::vector<double> scale(static_cast<size_t>(channels)), clip(scale), size(scale), mask(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        const size_t k = static_cast<size_t>(i), c = static_cast<size_t>(i / v.view.inner % channels);
        const Grid& g = grids[c];
        if (std::isnan(x[k])) continue;
        const double t = ratio(x[k], g), q = half_even(t) + g.zero_point, d = static_cast<double>(dy[k]);
        double term = 0.0;
        if (q >= g.qmin && q <= g.qmax) {
          mask[k] = 1.0;
          term = half_even(t) - t;
        } else {
          term = static_cast<double>(code(x[k], g) - g.zero_point);
          clip[c] += d;
        }
        scale[c] += d * term;
        size[c] += std::abs(d * term) + std::abs(d);
      }
      const auto dx = run_guarded<float>(
          n, [&](float* out) { kernels().fake_quant_backward({.view = v.view, .x = x.data(), .dy = dy.data(), .grids = grids.data(), .dx = out}); });
      const auto sums = run_guarded<double>(2 * channels, [&](double* out) {
        kernels().fake_quant_backward({.view = v.view, .x = x.data(), .dy = dy.data(), .grids = grids.data(), .scale_sum = out, .clip_sum = out + channels});
      });
      int64_t wrong = 0;
      for (size_t i = 0; i < dx.size(); ++i) wrong += dx[i] != (mask[i] != 0.0 ? dy[i] : 0.0f);
      CHECK(wrong == 0);
      for (size_t c = 0; c < scale.size(); ++c) {
        // Lanes of a 4096-element block hold 256 floats: 256 * 2^-24 of the sum of magnitudes bounds the error.
        CHECK(std::abs(sums[c] - scale[c]) <= 1.6e-5 * size[c]);
        CHECK(std::abs(sums[static_cast<size_t>(channels) + c] - clip[c]) <= 1.6e-5 * size[c]);
      }
    }
  }
}

TEST_CASE("fake_quant_backward: gradient and range sums have the CPU's bits, in place, on unaligned rows and without a gradient") {
  // Rows around 4096 and 65536 elements, many short ones to a block, more parts than are joined at once, channels last.
  const View views[] = {
      {{1, 1, 3}}, {{1, 1, 200003}}, {{1, 1, 3 * 65536 + 4096 + 8}}, {{1, 300, 9}}, {{2, 300, 9}}, {{3, 517, 4}}, {{1, 70, 64}}, {{1, 5, 2047}}, {{1, 5, 2048}}, {{2, 5, 2049}},
      {{1, 3, 4095}}, {{1, 3, 4096}}, {{1, 3, 4097}}, {{2, 2, 65537}}, {{1, 2, 69632}}, {{1100, 2, 20}}, {{1, 1000, 1}}, {{900, 1, 1}}, {{70000, 3, 1}}, {{1027, 64, 1}}, {{1, 4, 0}},
  };
  const Kernels& cpu = backend(Device{}).kernels();
  for (const View& v : views) {
    CAPTURE(v.view.outer);
    CAPTURE(v.view.channels);
    CAPTURE(v.view.inner);
    const int64_t n = v.elements(), channels = v.view.channels;
    const std::vector<Grid> grids = channel_grids(kGrids[0], channels);
    const std::vector<float> x = grid_values(n, kGrids[0], 16), dy = random_values(n, -1.0f, 1.0f, 18);
    std::vector<float> want(x.size());
    std::vector<double> want_sums(static_cast<size_t>(2 * channels));
    cpu.fake_quant_backward(
        {.view = v.view, .x = x.data(), .dy = dy.data(), .grids = grids.data(), .dx = want.data(), .scale_sum = want_sums.data(), .clip_sum = want_sums.data() + channels});
    for (const int64_t shift : {0, 1, 4}) {
      CAPTURE(shift);
      Guarded<float> xs(n + shift), dys(n + shift), dxs(n + shift);
      enum Target { apart, onto_x, onto_dy, none };
      for (const Target target : {apart, onto_x, onto_dy, none}) {
        CAPTURE(target);
        std::copy(x.begin(), x.end(), xs.data() + shift);
        std::copy(dy.begin(), dy.end(), dys.data() + shift);
        float* const dx = target == none ? nullptr : (target == onto_x ? xs : target == onto_dy ? dys : dxs).data() + shift;
        Guarded<double> sums(2 * channels);
        kernels().fake_quant_backward({.view = v.view, .x = xs.data() + shift, .dy = dys.data() + shift, .grids = grids.data(), .dx = dx, .scale_sum = sums.data(),
                                       .clip_sum = sums.data() + channels});
        CHECK((sums.intact() && xs.intact() && dys.intact() && dxs.intact()));
        CHECK(same_bits(sums.values(), want_sums));
        if (dx) CHECK(same_bits(std::vector<float>(dx, dx + n), want));
      }
    }
  }
}

TEST_CASE("fake_quant_backward masked on the value: bounds belong to the grid, half a step beyond does not") {
  for (const View& v : kViews) {
    CAPTURE(v.view.inner);
    const int64_t n = v.elements();
    const std::vector<Grid> grids = channel_grids(kGrids[2], v.view.channels);
    std::vector<float> x = grid_values(n, kGrids[2], 11);
    for (size_t i = 0; i < x.size(); i += 6) x[i] = i % 12 == 0 ? 127.5f : 0.0f;  // the ends of grid 0
    const std::vector<float> dy = random_values(n, -1.0f, 1.0f, 12);
    const auto dx = run_guarded<float>(
        n, [&](float* out) { kernels().fake_quant_backward({.view = v.view, .x = x.data(), .dy = dy.data(), .grids = grids.data(), .mask_on_value = true, .dx = out}); });
    int64_t wrong = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const Grid& g = grids[i / static_cast<size_t>(v.view.inner) % grids.size()];
      const float lo = g.scale * static_cast<float>(g.qmin - g.zero_point), hi = g.scale * static_cast<float>(g.qmax - g.zero_point);
      const bool outside = std::isnan(x[i]) || x[i] < lo || x[i] > hi;
      wrong += dx[i] != (outside ? 0.0f : dy[i]);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("round_bias: int32 codes on the grid of the products") {
  const float scales[] = {0.02f, 0.0123f, 3e-7f, 1.0f / 3.0f};
  for (const int64_t n : kTails) {
    std::vector<float> b = awkward_values(n, -3.0f, 3.0f, 7);
    std::vector<Grid> grids(static_cast<size_t>(n), Grid{0.02f, 0, -128, 127});
    for (size_t k = 0; k < grids.size(); ++k) grids[k].scale = scales[k % 4];
    for (const bool per_channel : {true, false}) {
      const float input = 0.037f;
      const std::vector<float> got = run_guarded<float>(n, [&](float* out) {
        kernels().round_bias({.n = n, .b = b.data(), .input = {.scale = input}, .grids = grids.data(), .per_channel = per_channel, .y = out});
      });
      for (size_t k = 0; k < b.size(); ++k) {
        if (std::isnan(b[k])) continue;
        const float s = static_cast<float>(static_cast<double>(input) * static_cast<double>(grids[per_channel ? k : 0].scale));
        const double code = half_even(static_cast<double>(static_cast<float>(static_cast<double>(b[k]) / static_cast<double>(s))));
        const float want = static_cast<float>(std::fmin(std::fmax(code, -2147483648.0), 2147483647.0) * static_cast<double>(s));
        if (got[k] != want) FAIL_CHECK("bias ", b[k], ": ", got[k], " not ", want);
      }
    }
  }
}

TEST_CASE("range_grads: channel by channel, both rules, symmetric and not") {
  const int64_t channels = 300;
  const std::vector<float> lo = random_values(channels, -4.0f, -0.5f, 3), hi = random_values(channels, 0.5f, 4.0f, 4);
  std::vector<double> scale, clip;
  for (const float v : random_values(channels, -50.0f, 50.0f, 5)) scale.push_back(static_cast<double>(v) * 1.1);
  for (const float v : random_values(channels, -9.0f, 9.0f, 6)) clip.push_back(static_cast<double>(v) * 1.3);
  for (const bool symmetric : {false, true}) {
    for (const RangeGradient rule : {RangeGradient::aimet, RangeGradient::keep_min}) {
      const auto got = run_guarded<float>(2 * channels, [&](float* out) {
        RangeGradsArgs a;
        a.channels = channels;
        a.scale_sum = scale.data();
        a.clip_sum = clip.data();
        a.min = lo.data();
        a.max = hi.data();
        a.spec = {.bits = 8, .symmetric = symmetric};
        a.rule = rule;
        a.dmin = out;
        a.dmax = out + channels;
        kernels().range_grads(a);
      });
      for (size_t c = 0; c < lo.size(); ++c) {
        // scale = (max - min) / 255 and offset = min / scale for an asymmetric grid, scale = max / 127 for a symmetric one; by the chain rule.
        const double min = static_cast<double>(lo[c]), max = static_cast<double>(hi[c]), width = max - min;
        const double want_max = symmetric ? scale[c] / 127.0 : scale[c] / 255.0 - min * clip[c] / width;
        const double want_min = rule == RangeGradient::keep_min ? 0.0 : (symmetric ? -want_max : max * clip[c] / width - scale[c] / 255.0);
        CHECK(close(got[c], want_min));
        CHECK(close(got[c + lo.size()], want_max));
      }
    }
  }
}
