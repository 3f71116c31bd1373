// Equalization, bias correction, AdaRound, fold-to-scale: what they promise about the function a network computes, and AIMET's numbers.
#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "detent/autograd/ops.h"
#include "detent/quant/adaround.h"
#include "detent/quant/bias_correction.h"
#include "detent/quant/equalize.h"
#include "detent/quant/fold_to_scale.h"

using namespace detent;
using namespace detent::quant;

namespace {

Tensor random(const Shape& shape, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> d(0.0f, deviation);
  std::vector<float> v(static_cast<size_t>(shape.elements()));
  for (float& x : v) x = d(rng);
  return Tensor::from<float>(shape, v);
}

void check_close(const Tensor& a, const Tensor& b, double tolerance) {
  REQUIRE(a.shape() == b.shape());
  const auto x = a.to_vector<float>(), y = b.to_vector<float>();
  for (size_t i = 0; i < x.size(); ++i) REQUIRE(std::fabs(static_cast<double>(x[i] - y[i])) <= tolerance * (1.0 + std::fabs(static_cast<double>(y[i]))));
}

}  // namespace

TEST_CASE("equalizing a pair keeps the network's function and evens the ranges") {
  Tensor w1 = random({6, 3, 3, 4}, 1), b1 = random({6}, 2), w2 = random({5, 1, 1, 6}, 3);
  for (int64_t i = 0; i < 36; ++i) w1.data<float>()[i] *= 50.0f;
  std::fill_n(w1.data<float>() + 2 * 36, 36, 0.0f);  // a dead channel keeps its scale
  const Tensor x = random({2, 5, 5, 4}, 4), b2 = random({5}, 5);
  const auto run = [&] {
    const Var vb1(b1), vb2(b2);
    return conv2d(relu(conv2d(Var(x), Var(w1), &vb1)), Var(w2), &vb2).dense();
  };
  w1 = w1.clone();
  const Tensor before = run().clone();
  const std::vector<double> s = equalize_pair(w1, b1, w2);
  check_close(run(), before, 1e-4);
  CHECK(s[2] == 1.0);
  const auto r1 = output_channel_ranges(w1), r2 = input_channel_ranges(w2);
  for (size_t i = 0; i < 6; ++i) {
    if (i != 2) CHECK(r1[i] == doctest::Approx(r2[i]).epsilon(1e-5));
  }
  Tensor wrong = random({5, 1, 1, 7}, 6);
  CHECK_THROWS_AS(equalize_pair(w1, b1, wrong), Error);
}

TEST_CASE("equalizing a depthwise triple keeps the network's function") {
  Tensor w1 = random({4, 1, 1, 3}, 1, 5.0f), b1 = random({4}, 2), w2 = random({4, 3, 3, 1}, 3, 0.1f), b2 = random({4}, 4), w3 = random({6, 1, 1, 4}, 5);
  const Tensor x = random({1, 6, 6, 3}, 6);
  Conv2dSpec depthwise;
  depthwise.groups = 4;
  const auto run = [&] {
    const Var vb1(b1), vb2(b2);
    return conv2d(relu(conv2d(relu(conv2d(Var(x), Var(w1), &vb1)), Var(w2), &vb2, depthwise)), Var(w3)).dense();
  };
  const Tensor before = run().clone();
  equalize_triple(w1, b1, w2, b2, w3);
  check_close(run(), before, 1e-4);
  const auto r1 = output_channel_ranges(w1), r2 = output_channel_ranges(w2), r3 = input_channel_ranges(w3);
  for (size_t i = 0; i < 4; ++i) {
    CHECK(r1[i] == doctest::Approx(r2[i]).epsilon(1e-5));
    CHECK(r2[i] == doctest::Approx(r3[i]).epsilon(1e-5));
  }
}

TEST_CASE("high-bias fold keeps the function where the activation never cuts") {
  Tensor b1 = Tensor::from({2}, {7.0f, 0.5f}), b2 = Tensor::from({3}, {0.1f, 0.2f, 0.3f});
  const Tensor w1 = Tensor::from({2, 1}, {0.01f, 0.02f}), w2 = random({3, 2}, 3), x = Tensor::from({1, 1}, {1.0f});
  const auto run = [&] {
    const Var vb1(b1), vb2(b2);
    return dense(relu(dense(Var(x), Var(w1), &vb1)), Var(w2), &vb2).dense();
  };
  const Tensor before = run().clone();
  const std::vector<double> a = fold_high_bias(b1, {1.0, 1.0}, {7.0, 0.5}, FoldActivation::relu, w2, b2);
  CHECK(a[0] == 4.0);
  CHECK(a[1] == 0.0);
  check_close(run(), before, 1e-6);
}

TEST_CASE("expected activations agree with a simulation") {
  std::mt19937 rng(1);
  std::normal_distribution<double> d(0.0, 1.0);
  for (const auto& [beta, gamma] : {std::pair{-2.0, 0.2}, {0.3, 1.5}, {5.0, -2.0}, {9.0, 1.0}, {1.0, 0.0}}) {
    double linear = 0.0, relu_mean = 0.0, six = 0.0;
    const int n = 400000;
    for (int i = 0; i < n; ++i) {
      const double v = beta + gamma * d(rng);
      linear += v;
      relu_mean += v > 0.0 ? v : 0.0;
      six += v < 0.0 ? 0.0 : (v > 6.0 ? 6.0 : v);
    }
    CHECK(std::fabs(expected_activation(beta, gamma, FoldActivation::none) - linear / n) < 0.02);
    CHECK(std::fabs(expected_activation(beta, gamma, FoldActivation::relu) - relu_mean / n) < 0.02);
    CHECK(std::fabs(expected_activation(beta, gamma, FoldActivation::relu6) - six / n) < 0.02);
  }
}

TEST_CASE("bias correction takes the mean error out") {
  const Tensor reference = random({2, 3, 3, 4}, 1);
  Tensor quantized = reference.clone(), bias = Tensor::from({4}, {1.0f, 2.0f, 3.0f, 4.0f});
  for (int64_t i = 0; i < quantized.elements(); ++i) quantized.data<float>()[i] += static_cast<float>(i % 4);
  correct_bias_empirically(bias, reference, quantized);
  check_close(bias, Tensor::from({4}, {1.0f, 1.0f, 1.0f, 1.0f}), 1e-5);
  CHECK_THROWS_AS(correct_bias_empirically(bias, reference, random({2, 3, 4, 3}, 2)), Error);
}

TEST_CASE("AdaRound: schedule, inverse, gradient") {
  CHECK(adaround_beta(8000, 10000) == doctest::Approx(4.636038969321072).epsilon(1e-14));
  CHECK(adaround_warm(1999, 10000));
  CHECK_FALSE(adaround_warm(2000, 10000));
  for (const double f : {0.01, 0.3, 0.5, 0.99}) CHECK(adaround_h(adaround_alpha(f)) == doctest::Approx(f));
  const Tensor alpha = random({40}, 3, 2.0f);
  Tensor gradient = Tensor::zeros({40});
  adaround_round_loss(alpha, 4.0, {}, &gradient);
  for (int i = 0; i < 40; ++i) {
    Tensor up = alpha.clone(), down = alpha.clone();
    up.data<float>()[i] += 1e-2f;
    down.data<float>()[i] -= 1e-2f;
    const bool clipped_above = adaround_dh(static_cast<double>(up.data<float>()[i])) == 0.0, clipped_below = adaround_dh(static_cast<double>(down.data<float>()[i])) == 0.0;
    if (clipped_above != clipped_below) continue;  // the clip's corner lies between them
    const double step = static_cast<double>(up.data<float>()[i]) - static_cast<double>(down.data<float>()[i]);
    const double slope = (adaround_round_loss(up, 4.0) - adaround_round_loss(down, 4.0)) / step;
    CHECK(std::fabs(slope - static_cast<double>(gradient.data<float>()[i])) < 2e-4);
  }
}

TEST_CASE("fold to scale moves ranges with their channels") {
  Tensor w = Tensor::from({2, 2}, {0.5f, -0.25f, 1.0f, 0.75f}), b = Tensor::from({2}, {0.1f, 0.2f});
  std::vector<Range> ranges{{-0.5, 0.5}, {-1.0, 0.8}};
  const nn::NormTerms norm{{2.0, -0.5}, {0.0, 1.0}, {0.0, 0.5}, {1.0, 1.0}};
  Tensor w2 = w.clone(), b2 = b.clone();
  std::vector<Range> one{{-1.0, 1.0}};
  CHECK_THROWS_AS(fold_to_scale(w2, b2, one, norm), Error);
  fold_to_scale(w, b, ranges, norm);
  check_close(w, Tensor::from({2, 2}, {1.0f, -0.5f, -0.5f, -0.375f}), 1e-7);
  check_close(b, Tensor::from({2}, {0.2f, 1.15f}), 1e-6);
  CHECK(ranges[1].min == doctest::Approx(-0.4));
  CHECK(ranges[1].max == doctest::Approx(0.5));
}
