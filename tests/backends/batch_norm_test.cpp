#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

namespace {

struct Case {
  int64_t rows, c;
  float offset;  // mean far from zero: where a sum of squares would lose everything
};

const Case kCases[] = {{1, 1, 0.0f},     {2, 7, 0.0f},       {127, 128, 1.0f}, {128, 129, 0.0f}, {129, 3, -2.0f},
                       {1000, 64, 0.5f}, {40000, 16, 100.0f}, {600, 513, 0.0f}, {70000, 1, 0.0f}, {300, 2048, 10.0f}};

struct Moments {
  std::vector<double> mean, var;
};

Moments moments(const std::vector<float>& x, int64_t rows, int64_t c) {
  Moments m{std::vector<double>(static_cast<size_t>(c)), std::vector<double>(static_cast<size_t>(c))};
  for (size_t i = 0; i < x.size(); ++i) m.mean[i % static_cast<size_t>(c)] += static_cast<double>(x[i]) / static_cast<double>(rows);
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = static_cast<double>(x[i]) - m.mean[i % static_cast<size_t>(c)];
    m.var[i % static_cast<size_t>(c)] += d * d / static_cast<double>(rows);
  }
  return m;
}

}  // namespace

TEST_CASE("batch_norm_stats: also with a mean far from zero") {
  for (const Case& k : kCases) {
    CAPTURE(k.rows);
    CAPTURE(k.c);
    const std::vector<float> x = random_values(k.rows * k.c, k.offset - 1.0f, k.offset + 2.0f);
    const Moments want = moments(x, k.rows, k.c);
    const auto got = run_guarded<float>(2 * k.c, [&](float* out) { kernels().batch_norm_stats({.rows = k.rows, .c = k.c, .x = x.data(), .mean = out, .var = out + k.c}); });
    std::vector<double> both = want.mean;
    both.insert(both.end(), want.var.begin(), want.var.end());
    CHECK(first_far(got, both, 3e-6) == -1);
  }
}

TEST_CASE("batch_norm: normalise, scale, shift, clamp") {
  for (const Case& k : kCases) {
    for (int variant = 0; variant < 3; ++variant) {
      CAPTURE(k.rows);
      CAPTURE(k.c);
      const int64_t n = k.rows * k.c;
      const std::vector<float> x = awkward_values(n, k.offset - 1.0f, k.offset + 2.0f), mean = random_values(k.c, k.offset - 0.5f, k.offset + 0.5f, 2),
                               var = random_values(k.c, 0.1f, 2.0f, 3), gamma = random_values(k.c, -1.0f, 2.0f, 4), beta = random_values(k.c, -1.0f, 1.0f, 5);
      BatchNormArgs a{.rows = k.rows, .c = k.c, .eps = 1e-3f, .x = x.data(), .mean = mean.data(), .var = var.data()};
      if (variant > 0) a.gamma = gamma.data(), a.beta = beta.data();
      if (variant > 1) a.clamp_min = 0.0f, a.clamp_max = 1.0f;
      std::vector<double> want;
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t c = i % static_cast<size_t>(k.c);
        double v = (static_cast<double>(x[i]) - static_cast<double>(mean[c])) / std::sqrt(static_cast<double>(var[c]) + 1e-3);
        if (variant > 0) v = v * static_cast<double>(gamma[c]) + static_cast<double>(beta[c]);
        if (variant > 1 && v < 0.0) v = 0.0;
        if (variant > 1 && v > 1.0) v = 1.0;
        want.push_back(v);
      }
      const auto y = run_guarded<float>(n, [&](float* out) {
        BatchNormArgs b = a;
        b.y = out;
        kernels().batch_norm(b);
      });
      CHECK(first_far(y, want, 2e-6) == -1);
    }
  }
}

TEST_CASE("batch_norm_backward: training, evaluation, clamp mask") {
  for (const Case& k : kCases) {
    for (int variant = 0; variant < 4; ++variant) {
      CAPTURE(k.rows);
      CAPTURE(k.c);
      CAPTURE(variant);
      const bool training = variant % 2 == 0, clamp = variant >= 2;
      const int64_t n = k.rows * k.c;
      const std::vector<float> x = random_values(n, k.offset - 1.0f, k.offset + 2.0f), dy = random_values(n, -1.0f, 1.0f, 6), gamma = random_values(k.c, -1.0f, 2.0f, 4),
                               beta = random_values(k.c, -0.5f, 1.5f, 7);
      const Moments m = moments(x, k.rows, k.c);
      const std::vector<float> mean(m.mean.begin(), m.mean.end()), var(m.var.begin(), m.var.end());
      const size_t c = static_cast<size_t>(k.c);
      std::vector<double> want(static_cast<size_t>(n + 2 * k.c)), scale(2 * c), sum_g(c), sum_gx(c);
      // In float and in the forward's order: at the clamp's edge the mask is what the forward did.
      const auto y = [&](size_t i) { return (x[i] - mean[i % c]) * (gamma[i % c] / std::sqrt(var[i % c] + 1e-3f)) + beta[i % c]; };
      const auto g = [&](size_t i) { return clamp && (y(i) <= 0.0f || y(i) >= 1.0f) ? 0.0 : static_cast<double>(dy[i]); };
      const auto hat = [&](size_t i) { return (static_cast<double>(x[i]) - static_cast<double>(mean[i % c])) / std::sqrt(static_cast<double>(var[i % c]) + 1e-3); };
      for (size_t i = 0; i < x.size(); ++i) {
        sum_g[i % c] += g(i);
        sum_gx[i % c] += g(i) * hat(i);
      }
      for (size_t i = 0; i < x.size(); ++i) {
        const double inv = 1.0 / std::sqrt(static_cast<double>(var[i % c]) + 1e-3), rows = static_cast<double>(k.rows);
        const double centred = training ? g(i) - sum_g[i % c] / rows - hat(i) * sum_gx[i % c] / rows : g(i);
        want[i] = static_cast<double>(gamma[i % c]) * inv * centred;
      }
      std::copy(sum_gx.begin(), sum_gx.end(), want.begin() + n);
      std::copy(sum_g.begin(), sum_g.end(), want.begin() + n + k.c);
      BatchNormBackwardArgs a{.rows = k.rows, .c = k.c, .eps = 1e-3f, .training = training, .x = x.data(), .dy = dy.data(), .mean = mean.data(), .var = var.data(),
                              .gamma = gamma.data(), .beta = beta.data()};
      if (clamp) a.clamp_min = 0.0f, a.clamp_max = 1.0f;
      const auto got = run_guarded<float>(n + 2 * k.c, [&](float* out) {
        BatchNormBackwardArgs b = a;
        b.dx = out, b.dgamma = out + n, b.dbeta = out + n + k.c;
        kernels().batch_norm_backward(b);
      });
      int64_t wrong = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        // Sums of `rows` terms of either sign of size <= 2: the error is relative to the sum of magnitudes.
        const double tolerance = i < static_cast<size_t>(n) ? 1e-5 : 1e-6 * std::sqrt(static_cast<double>(k.rows)) + 1e-7 * static_cast<double>(k.rows);
        wrong += !(std::abs(static_cast<double>(got[i]) - want[i]) <= tolerance * std::max(1.0, std::abs(want[i])));
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("batch_norm and its gradient have the same bits wherever the tensors and the channels' numbers lie") {
  for (const int64_t c : {4, 12, 64, 7}) {
    CAPTURE(c);
    const int64_t rows = 37, n = rows * c;
    // Element 0 of each is `shift` floats behind an aligned address.
    const auto at = [](const std::vector<float>& v, int64_t shift) {
      std::vector<float> w(static_cast<size_t>(shift));
      w.insert(w.end(), v.begin(), v.end());
      return w;
    };
    const std::vector<float> x = random_values(n, -1.0f, 2.0f), dy = random_values(n, -1.0f, 1.0f, 6), mean = random_values(c, -0.5f, 0.5f, 2), var = random_values(c, 0.1f, 2.0f, 3),
                             gamma = random_values(c, -1.0f, 2.0f, 4), beta = random_values(c, -1.0f, 1.0f, 5);
    for (const bool clamp : {false, true}) {
      CAPTURE(clamp);
      std::vector<float> first;
      for (int shifted = 0; shifted < 5; ++shifted) {
        CAPTURE(shifted);
        const auto xs = at(x, shifted == 1), dys = at(dy, shifted == 2), means = at(mean, shifted == 3), betas = at(beta, shifted == 4);
        BatchNormArgs f{.rows = rows, .c = c, .eps = 1e-3f, .x = xs.data() + (shifted == 1), .mean = means.data() + (shifted == 3), .var = var.data(), .gamma = gamma.data(),
                        .beta = betas.data() + (shifted == 4)};
        BatchNormBackwardArgs b{.rows = rows, .c = c, .eps = 1e-3f, .x = f.x, .dy = dys.data() + (shifted == 2), .mean = f.mean, .var = f.var, .gamma = f.gamma, .beta = f.beta};
        if (clamp) f.clamp_min = b.clamp_min = 0.0f, f.clamp_max = b.clamp_max = 1.0f;
        const auto got = run_guarded<float>(2 * n, [&](float* out) {
          f.y = out, b.dx = out + n;
          kernels().batch_norm(f);
          kernels().batch_norm_backward(b);
        });
        if (shifted == 0) first = got;
        CHECK(same_bits(got, first));
      }
    }
  }
}
