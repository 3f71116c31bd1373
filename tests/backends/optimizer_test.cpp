#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

TEST_CASE("sgd_step: plain, momentum, Nesterov, weight decay, over several steps and tensors") {
  for (int variant = 0; variant < 6; ++variant) {
    const bool with_momentum = variant % 3 > 0, nesterov = variant % 3 == 2;
    const double wd = variant >= 3 ? static_cast<double>(0.01f) : 0.0, mu = static_cast<double>(0.9f);
    CAPTURE(variant);
    const int64_t sizes[] = {1, 7, 127, 128, 129, 1000, 70000};
    int64_t total = 0;
    for (int64_t n : sizes) total += n;
    const std::vector<float> w0 = random_values(total), g = random_values(total, -1.0f, 1.0f, 2);
    // The last part: averages of those tensors that have one.
    const auto averaged = [](size_t tensor) { return tensor % 2 == 0; };
    const auto got = run_guarded<float>(3 * total, [&](float* out) {
      std::copy(w0.begin(), w0.end(), out);
      std::fill(out + total, out + 3 * total, 0.0f);
      std::vector<SgdTensor> tensors;
      int64_t at = 0;
      for (int64_t n : sizes) {
        const float lr = 0.1f / static_cast<float>(1 + tensors.size());
        tensors.push_back({.w = out + at, .g = g.data() + at, .momentum = with_momentum ? out + total + at : nullptr, .average = averaged(tensors.size()) ? out + 2 * total + at : nullptr, .n = n, .learning_rate = lr, .weight_decay = static_cast<float>(wd)});
        at += n;
      }
      for (int step = 0; step < 3; ++step) kernels().sgd_step({.tensors = tensors.data(), .count = std::ssize(tensors), .momentum = 0.9f, .nesterov = nesterov, .newest = 0.25f});
    });
    std::vector<double> want(static_cast<size_t>(3 * total));
    size_t at = 0, tensor = 0;
    for (int64_t n : sizes) {
      const double lr = static_cast<double>(0.1f / static_cast<float>(++tensor));
      for (int64_t i = 0; i < n; ++i, ++at) {
        double w = static_cast<double>(w0[at]), v = 0.0, average = 0.0;
        for (int step = 0; step < 3; ++step) {
          const double d = static_cast<double>(g[at]) + wd * w;
          v = with_momentum ? mu * v + d : d;
          w -= lr * (nesterov ? d + mu * v : v);
          average += 0.25 * (w - average);
        }
        want[at] = w;
        want[at + static_cast<size_t>(total)] = with_momentum ? v : 0.0;
        want[at + static_cast<size_t>(2 * total)] = averaged(tensor - 1) ? average : 0.0;
      }
    }
    CHECK(first_far(got, want, 1e-6) == -1);
  }
}

TEST_CASE("adam_step: Adam and AdamW over several steps") {
  for (bool decoupled : {false, true}) {
    for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{129}, int64_t{70000}}) {
      CAPTURE(decoupled);
      CAPTURE(n);
      const std::vector<float> w0 = random_values(n), g = random_values(n, -1.0f, 1.0f, 2);
      const auto got = run_guarded<float>(4 * n, [&](float* out) {
        std::copy(w0.begin(), w0.end(), out);
        std::fill(out + n, out + 4 * n, 0.0f);
        const AdamTensor t{.w = out, .g = g.data(), .m = out + n, .v = out + 2 * n, .average = out + 3 * n, .n = n, .learning_rate = 0.01f, .weight_decay = 0.1f};
        for (int64_t step = 1; step <= 4; ++step) kernels().adam_step({.tensors = &t, .count = 1, .decoupled = decoupled, .step = step, .newest = 0.25f});
      });
      const double b1 = static_cast<double>(0.9f), b2 = static_cast<double>(0.999f), lr = static_cast<double>(0.01f), wd = static_cast<double>(0.1f), eps = static_cast<double>(1e-8f);
      std::vector<double> want(static_cast<size_t>(n)), averages(want);
      for (size_t i = 0; i < want.size(); ++i) {
        double w = static_cast<double>(w0[i]), m = 0.0, v = 0.0;
        for (int step = 1; step <= 4; ++step) {
          const double d = static_cast<double>(g[i]) + (decoupled ? 0.0 : wd * w);
          if (decoupled) w *= 1.0 - lr * wd;
          m = b1 * m + (1.0 - b1) * d;
          v = b2 * v + (1.0 - b2) * d * d;
          w -= lr * (m / (1.0 - std::pow(b1, step))) / (std::sqrt(v / (1.0 - std::pow(b2, step))) + eps);
          averages[i] += 0.25 * (w - averages[i]);
        }
        want[i] = w;
      }
      CHECK(first_far({got.begin(), got.begin() + n}, want, 2e-5) == -1);
      CHECK(first_far({got.begin() + 3 * n, got.end()}, averages, 2e-5) == -1);
    }
  }
}
