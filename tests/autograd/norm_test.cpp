// Batch norm and softmax against their definitions in double.
#include "detent/tests/support/gradcheck.h"

using namespace detent;
using namespace detent::test;

namespace {

struct Moments {
  std::vector<double> mean, var;  // biased
};

Moments moments(const Array& x) {
  const int64_t c = x.shape[-1], rows = x.size() / c;
  Moments m{std::vector<double>(static_cast<size_t>(c)), std::vector<double>(static_cast<size_t>(c))};
  for (int64_t k = 0; k < c; ++k) {
    double s = 0.0, d = 0.0;
    for (int64_t r = 0; r < rows; ++r) s += x[r * c + k] / static_cast<double>(rows);
    for (int64_t r = 0; r < rows; ++r) d += (x[r * c + k] - s) * (x[r * c + k] - s) / static_cast<double>(rows);
    m.mean[static_cast<size_t>(k)] = s;
    m.var[static_cast<size_t>(k)] = d;
  }
  return m;
}

Array normalised(const Array& x, const Array& gamma, const Array& beta, const Moments& m, const BatchNormSpec& s) {
  Array y = x;
  const int64_t c = x.shape[-1];
  for (int64_t i = 0; i < y.size(); ++i) {
    const auto k = static_cast<size_t>(i % c);
    y[i] = gamma[i % c] * (x[i] - m.mean[k]) / std::sqrt(m.var[k] + static_cast<double>(s.eps)) + beta[i % c];
    y[i] = std::min(std::max(y[i], static_cast<double>(s.clamp_min)), static_cast<double>(s.clamp_max));
  }
  return y;
}

}  // namespace

TEST_CASE("batch_norm_matches_its_definition") {
  BatchNormSpec plain, relu6, wide;
  relu6.clamp_min = 0.0f;
  relu6.clamp_max = 6.0f;
  wide.eps = 1e-3f;
  const Shape shapes[] = {{2, 3, 4, 5}, {3, 2, 2, 17}, {33, 7}, {1, 16, 9, 1}};
  for (const Shape& shape : shapes) {
    for (const BatchNormSpec& spec : {plain, relu6, wide}) {
      for (const bool training : {true, false}) {
        const Shape c{shape[-1]};
        Moments running;
        const Array mean = random_array(c, 8, -0.5, 0.5), var = random_array(c, 9, 0.5, 2);
        running = {mean.v, var.v};
        gradcheck({.name = text("batch_norm ", shape, training ? " training" : " inference", " eps ", spec.eps, " max ", spec.clamp_max),
                   .inputs = {random_array(shape, 1), random_array(c, 2, 0.5, 2), random_array(c, 3, 0.1, 0.4)},
                   .op =
                       [&](std::span<const Var> v) {
                         Tensor m = to_tensor(mean), s = to_tensor(var);
                         return batch_norm(v[0], v[1], v[2], m, s, spec, training);
                       },
                   .reference = [&](const std::vector<Array>& v) { return normalised(v[0], v[1], v[2], training ? moments(v[0]) : running, spec); },
                   .terms = shape.elements() / shape[-1],
                   .condition = 8});
      }
    }
  }
}

TEST_CASE("batch_norm_updates_the_running_statistics_as_pytorch") {
  const Array x = random_array(Shape{2, 3, 3, 4}, 1);
  const Moments m = moments(x);
  BatchNormSpec spec;
  spec.momentum = 0.25f;
  Tensor mean = Tensor::full(Shape{4}, 1.0f), var = Tensor::full(Shape{4}, 3.0f);
  const Var gamma(Tensor::full(Shape{4}, 1.0f)), beta(Tensor::zeros(Shape{4}));
  batch_norm(Var(to_tensor(x)), gamma, beta, mean, var, spec, true);
  Array wanted_mean(Shape{4}), wanted_var(Shape{4});
  for (int64_t k = 0; k < 4; ++k) {
    wanted_mean[k] = 0.75 * 1.0 + 0.25 * m.mean[static_cast<size_t>(k)];
    wanted_var[k] = 0.75 * 3.0 + 0.25 * m.var[static_cast<size_t>(k)] * 18.0 / 17.0;
  }
  check_close("running_mean", mean, wanted_mean, 1.2e-7 * 22);
  check_close("running_var", var, wanted_var, 1.2e-7 * 22 * 3);
  const std::vector<float> before = mean.to_vector<float>();
  batch_norm(Var(to_tensor(x)), gamma, beta, mean, var, spec, false);
  CHECK(mean.to_vector<float>() == before);
}

TEST_CASE("batch_norm_inference_gradient_ignores_later_updates_of_the_statistics") {
  std::vector<float> dx[2];
  for (const int later : {0, 1}) {
    Tape tape;
    Tensor mean = Tensor::zeros(Shape{3}), var = Tensor::full(Shape{3}, 4.0f);
    const Var x = tape.watch(to_tensor(random_array(Shape{5, 3}, 2)));
    const Var gamma(Tensor::full(Shape{3}, 1.0f)), beta(Tensor::zeros(Shape{3}));
    const Var y = batch_norm(x, gamma, beta, mean, var, {}, false);
    if (later) var.fill(100.0f);
    tape.backward(y, Tensor::full(y.shape(), 1.0f));
    dx[later] = tape.grad(x).to_vector<float>();
  }
  CHECK(dx[0] == dx[1]);
}

TEST_CASE("softmax_matches_its_definition") {
  for (const int64_t c : {1, 2, 10, 129}) {
    gradcheck({.name = text("softmax ", c),
               .inputs = {random_array(Shape{3, c}, 1, -5, 5)},
               .op = [](std::span<const Var> v) { return softmax(v[0]); },
               .reference =
                   [c](const std::vector<Array>& v) {
                     Array y = v[0];
                     for (int64_t r = 0; r < 3; ++r) {
                       double total = 0.0;
                       for (int64_t k = 0; k < c; ++k) total += std::exp(v[0].at({r, k}));
                       for (int64_t k = 0; k < c; ++k) y.at({r, k}) = std::exp(v[0].at({r, k})) / total;
                     }
                     return y;
                   },
               .terms = c});
  }
  const std::vector<float> extreme = softmax(Var(Tensor::from(Shape{1, 3}, {1000.0f, -1000.0f, 1000.0f}))).dense().to_vector<float>();
  CHECK(extreme == std::vector<float>{0.5f, 0.0f, 0.5f});
}
