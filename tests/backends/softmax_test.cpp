#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

namespace {

std::vector<double> probabilities(const float* x, int64_t c, double temperature) {
  std::vector<double> p;
  for (int64_t j = 0; j < c; ++j) {
    double inverse = 0.0;  // 1/p_j = sum exp(x_i - x_j)
    for (int64_t i = 0; i < c; ++i) inverse += std::exp((static_cast<double>(x[i]) - static_cast<double>(x[j])) / temperature);
    p.push_back(std::isinf(x[j]) ? 0.0 : 1.0 / inverse);
  }
  return p;
}

}  // namespace

TEST_CASE("softmax and its gradient") {
  for (int64_t c : kTails) {
    for (float spread : {1.0f, 40.0f}) {
      CAPTURE(c);
      const int64_t rows = 5;
      std::vector<float> x = random_values(rows * c, -spread, spread);
      if (c > 1) x[1] = -kInf;
      const std::vector<float> dy = random_values(rows * c, -1.0f, 1.0f, 2);
      std::vector<double> want, want_dx;
      for (int64_t i = 0; i < rows; ++i) {
        const std::vector<double> p = probabilities(x.data() + i * c, c, 1.0);
        for (int64_t j = 0; j < c; ++j) {
          double d = 0.0;
          for (int64_t k = 0; k < c; ++k) d += static_cast<double>(dy[static_cast<size_t>(i * c + k)]) * p[static_cast<size_t>(k)] * ((k == j) - p[static_cast<size_t>(j)]);
          want.push_back(p[static_cast<size_t>(j)]);
          want_dx.push_back(d);
        }
      }
      const auto y = run_guarded<float>(rows * c, [&](float* out) { kernels().softmax({.rows = rows, .c = c, .x = x.data(), .y = out}); });
      const auto dx = run_guarded<float>(rows * c, [&](float* out) { kernels().softmax_backward({.rows = rows, .c = c, .x = y.data(), .dy = dy.data(), .y = out}); });
      CHECK(first_far(y, want, 3e-7) == -1);
      CHECK(first_far(dx, want_dx, 1e-6) == -1);
    }
  }
}

TEST_CASE("cross_entropy: labels, smoothing, temperature, distributions, gradient by differences") {
  for (int64_t c : kTails) {
    for (int variant = 0; variant < 3; ++variant) {
      CAPTURE(c);
      CAPTURE(variant);
      const int64_t rows = 4;
      const double temperature = variant == 2 ? 3.0 : 1.0, smoothing = variant == 1 ? 0.1 : 0.0;
      const std::vector<float> x = random_values(rows * c, -8.0f, 8.0f);
      std::vector<int64_t> labels;
      std::vector<float> target(static_cast<size_t>(rows * c));
      for (int64_t i = 0; i < rows; ++i) {
        labels.push_back((i * 31) % c);
        target[static_cast<size_t>(i * c + labels.back())] = 0.75f;
        target[static_cast<size_t>(i * c + (labels.back() + 1) % c)] += 0.25f;
      }
      const bool soft = variant == 2;
      std::vector<double> want, want_d;
      for (int64_t i = 0; i < rows; ++i) {
        const std::vector<double> p = probabilities(x.data() + i * c, c, temperature);
        double loss = 0.0;
        for (int64_t j = 0; j < c; ++j) {
          double t = soft ? static_cast<double>(target[static_cast<size_t>(i * c + j)]) : (j == labels[static_cast<size_t>(i)] ? 1.0 - smoothing : 0.0);
          if (!soft) t += static_cast<double>(static_cast<float>(smoothing)) / static_cast<double>(c);
          loss -= t == 0.0 ? 0.0 : t * std::log(p[static_cast<size_t>(j)]);
          want_d.push_back((p[static_cast<size_t>(j)] - t) * 0.25 / temperature);
        }
        want.push_back(loss);
      }
      CrossEntropyArgs a{.rows = rows, .c = c, .logits = x.data(), .temperature = static_cast<float>(temperature), .label_smoothing = static_cast<float>(smoothing), .row_scale = 0.25f};
      if (soft) a.target = target.data();
      if (!soft) a.labels = labels.data();
      const auto loss = run_guarded<float>(rows, [&](float* out) {
        CrossEntropyArgs b = a;
        b.loss = out;
        kernels().cross_entropy(b);
      });
      const auto d = run_guarded<float>(rows * c, [&](float* out) {
        CrossEntropyArgs b = a;
        b.dlogits = out;
        kernels().cross_entropy(b);
      });
      CHECK(first_far(loss, want, 1e-6) == -1);
      CHECK(first_far(d, want_d, 1e-6) == -1);
    }
  }
  // A logit of 1000 overflows exp; a loss of 2000 does not.
  const std::vector<float> far{1000.0f, -1000.0f};
  const std::vector<int64_t> label{1};
  std::vector<float> loss{0.0f};
  kernels().cross_entropy({.rows = 1, .c = 2, .logits = far.data(), .labels = label.data(), .loss = loss.data()});
  CHECK(loss[0] == 2000.0f);
}
