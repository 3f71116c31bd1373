// Helpers of the nn and quant tests: deterministic tensors, small networks, comparison of tensors.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "detent/core/rng.h"
#include "detent/nn/graph.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/optimizer.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"

namespace detent::test {

inline Tensor random_tensor(const Shape& shape, uint64_t seed, float scale = 1.0f) {
  std::vector<float> v(static_cast<size_t>(shape.elements()));
  Rng rng(seed, 4711);
  for (float& x : v) x = scale * rng.normal();
  return Tensor::from<float>(shape, v);
}

inline Tensor class_labels(int64_t n, int64_t classes) {
  std::vector<int64_t> v;
  for (int64_t i = 0; i < n; ++i) v.push_back(i % classes);
  return Tensor::from<int64_t>(Shape{n}, v);
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const std::vector<float> u = a.to_vector<float>(), v = b.to_vector<float>();
  return a.shape() == b.shape() && std::memcmp(u.data(), v.data(), u.size() * sizeof(float)) == 0;
}

/// Largest difference as a share of the largest magnitude of `wanted`.
inline double relative_difference(const Tensor& got, const Tensor& wanted) {
  REQUIRE(got.shape() == wanted.shape());
  const std::vector<float> u = got.to_vector<float>(), v = wanted.to_vector<float>();
  double difference = 0.0, magnitude = 1e-30;
  for (size_t i = 0; i < u.size(); ++i) {
    const double d = std::abs(static_cast<double>(u[i]) - static_cast<double>(v[i]));
    if (std::isnan(d)) return INFINITY;
    difference = std::max(difference, d);
    magnitude = std::max(magnitude, std::abs(static_cast<double>(v[i])));
  }
  return difference / magnitude;
}

template <class Fn>
std::string message_of(Fn&& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

#define CHECK_MENTIONS(text, part) CHECK_MESSAGE((text).find(part) != std::string::npos, "'", (text), "' does not mention '", (part), "'")

/// Fresh weights with batch norms that are not the identity, so that folding has something to do.
inline void randomize(nn::Graph& g, uint64_t seed) {
  nn::initialize(g, {.seed = seed});
  for (auto& n : g.nodes()) {
    auto* norm = dynamic_cast<nn::BatchNorm*>(n.module.get());
    if (!norm) continue;
    Rng rng(seed, std::hash<std::string>{}(n.name));
    const auto draw = [&](Tensor& t, float lo, float hi) {
      for (float *p = t.data<float>(), *end = p + t.elements(); p != end; ++p) *p = rng.uniform(lo, hi);
    };
    draw(norm->weight.value, 0.5f, 1.0f);
    draw(norm->bias.value, -0.3f, 0.5f);
    draw(norm->running_mean, -0.3f, 0.3f);
    draw(norm->running_var, 0.5f, 1.5f);
  }
}

/// conv (stride 2) - bn - relu - residual block with two readers - global pool - dense: every kind of chain of the Plan, in microseconds.
inline nn::Graph small_network(int64_t size = 8, int64_t classes = 4) {
  using namespace nn;
  Graph g;
  const auto conv = [](int64_t in, int64_t out, int64_t stride, bool bias) {
    return Conv2d::Options{.in = in, .out = out, .kernel_h = 3, .kernel_w = 3, .spec = {.stride = {stride, stride}, .padding = {1, 1, 1, 1}}, .bias = bias};
  };
  Value x = g.input("input", {size, size, 3});
  x = g.add<Conv2d>("conv1", {x}, conv(3, 8, 2, false));
  x = g.add<BatchNorm>("bn1", {x}, BatchNorm::Options{.channels = 8});
  x = g.add<Activation>("relu1", {x}, relu_op());
  Value y = g.add<Conv2d>("conv2", {x}, conv(8, 8, 1, true));
  y = g.add<BatchNorm>("bn2", {y}, BatchNorm::Options{.channels = 8});
  x = g.add<Activation>("relu2", {g.add<Binary>("add", {y, x}, BinaryOp::add)}, relu_op());
  x = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("pool", {x})});
  g.output(g.add<Dense>("fc", {x}, Dense::Options{.in = 8, .out = classes}));
  return g;
}

/// The same with random weights and without its batch norms.
inline nn::Graph folded_small_network(uint64_t seed = 1) {
  nn::Graph g = small_network();
  randomize(g, seed);
  nn::fold_batch_norms(g);
  return g;
}

/// Four images for it.
inline const Tensor& small_images() {
  static const Tensor x = random_tensor({4, 8, 8, 3}, 5);
  return x;
}

/// What one training step computes: the loss and the gradient of every parameter. Statistics are put back.
struct StepResult {
  float loss = 0.0f;
  std::map<std::string, Tensor> gradients;
};

inline StepResult run_step_of(nn::Graph& g, const Tensor& images, const Tensor& labels, nn::Mode mode = nn::Mode::automatic) {
  std::vector<std::pair<Tensor*, Tensor>> before;
  nn::Visitor v;
  v.buffer = [&](const std::string&, Tensor& t) { before.emplace_back(&t, t.clone()); };
  g.visit(v);
  const nn::Mode old = g.mode();
  g.set_mode(mode);
  StepResult r;
  {
    Tape tape;
    const Var loss = softmax_cross_entropy(g(images), labels);
    r.loss = loss.dense().item();
    tape.backward(loss);
  }
  g.set_mode(old);
  for (nn::Parameter* p : g.parameters()) {
    if (p->grad.defined()) r.gradients[p->name] = p->grad.clone();
    p->grad = Tensor();
  }
  for (auto& [t, value] : before) t->copy_from(value);
  return r;
}

}  // namespace detent::test
