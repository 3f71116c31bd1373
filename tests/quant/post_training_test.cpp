// Equalization and bias correction of whole networks: what must not change does not, and what they are for happens.
#include "detent/quant/post_training.h"
#include "detent/quant/sensitivity.h"

#include <cmath>
#include <map>

#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

namespace {

Graph folded(const char* arch, uint64_t seed = 4) {
  Graph g = models::make(arch, {.classes = 10, .image_size = 32});
  randomize(g, seed);
  fold_batch_norms(g);
  return g;
}

Tensor images(int64_t n = 2, uint64_t seed = 9) { return random_tensor({n, 32, 32, 3}, seed); }

Tensor& weight_of(Graph& g, const std::string& name) {
  if (auto* conv = dynamic_cast<Conv2d*>(g.find(name)->module.get())) return conv->weight.value;
  return dynamic_cast<Dense&>(*g.find(name)->module).weight.value;
}

// Written apart from the library's: largest magnitude of a channel along the first or the last axis.
std::vector<double> channel_ranges(const Tensor& w, bool outputs) {
  const std::vector<float> v = w.to_vector<float>();
  const auto rows = static_cast<size_t>(w.dim(0)), columns = static_cast<size_t>(w.dim(w.rank() - 1));
  std::vector<double> r(outputs ? rows : columns, 0.0);
  for (size_t i = 0; i < v.size(); ++i) {
    double& most = r[outputs ? i / (v.size() / rows) : i % columns];
    most = std::max(most, std::fabs(static_cast<double>(v[i])));
  }
  return r;
}

void scale_channel(Tensor& w, int64_t channel, bool output, float factor) {
  const int64_t rows = w.dim(0), columns = w.dim(w.rank() - 1), inner = w.elements() / rows;
  for (int64_t i = 0; i < w.elements(); ++i) {
    if ((output ? i / inner : i % columns) == channel) w.data<float>()[i] *= factor;
  }
}

// The same function with channels of very different size between the two layers of each residual block.
void unbalance(Graph& g) {
  for (const char* block : {"layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2"}) {
    Tensor &first = weight_of(g, text(block, ".conv1")), &second = weight_of(g, text(block, ".conv2"));
    Tensor& bias = dynamic_cast<Conv2d&>(*g.find(text(block, ".conv1"))->module).bias.value;
    for (int64_t c = 0; c < first.dim(0); ++c) {
      const float factor = std::exp2(static_cast<float>(c % 11 - 5));  // a power of two: nothing is rounded
      scale_channel(first, c, true, factor);
      bias.data<float>()[c] *= factor;
      scale_channel(second, c, false, 1.0f / factor);
    }
  }
}

double error_of_quantization(Graph& g) {
  const Tensor want = infer(g, images());
  QuantSim sim(g, {.scheme = Scheme::tf});
  sim.compute_encodings([&] { g(images()); });
  return relative_difference(infer(g, images()), want);
}

std::map<std::string, std::vector<double>> output_means(Graph& g, const Tensor& x) {
  std::map<std::string, std::vector<double>> means;
  g.set_tap([&](Value v, const Var& before, const Var&) {
    const int node = g.value(v).producer;
    if (node < 0 || (g.nodes()[static_cast<size_t>(node)].op != "Conv" && g.nodes()[static_cast<size_t>(node)].op != "Gemm")) return;
    const std::vector<float> all = before.dense().to_vector<float>();
    std::vector<double>& m = means[g.value(v).name];
    m.assign(static_cast<size_t>(before.shape()[-1]), 0.0);
    for (size_t i = 0; i < all.size(); ++i) m[i % m.size()] += static_cast<double>(all[i]) * static_cast<double>(m.size()) / static_cast<double>(all.size());
  });
  const Products products = g.products();
  g.set_products(Products::floats);
  infer(g, x);
  g.set_products(products);
  g.set_tap({});
  return means;
}

}  // namespace

TEST_CASE("equalization leaves the network's outputs and makes both layers' ranges of a channel one") {
  Graph g = folded("resnet20-cifar10");
  unbalance(g);
  const Tensor before = infer(g, images());
  const Equalized e = equalize_layers(g);
  CHECK(relative_difference(infer(g, images()), before) < 1e-4);
  CHECK(e.relus.empty());
  REQUIRE(e.sets.size() == 9);  // the two layers of each block; what a sum reads has a second reader
  for (const std::vector<std::string>& set : e.sets) {
    REQUIRE(set.size() == 2);
    const std::vector<double> out = channel_ranges(weight_of(g, set[0]), true), in = channel_ranges(weight_of(g, set[1]), false);
    REQUIRE(out.size() == in.size());
    for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == doctest::Approx(in[i]).epsilon(5e-3));
  }
}

TEST_CASE("equalization mends what weights quantized per tensor lose") {
  Graph plain = folded("resnet20-cifar10"), unbalanced = folded("resnet20-cifar10"), mended = folded("resnet20-cifar10");
  unbalance(unbalanced);
  unbalance(mended);
  equalize_layers(mended);
  const double as_it_was = error_of_quantization(plain), lost = error_of_quantization(unbalanced), back = error_of_quantization(mended);
  INFO("relative error of the scores: " << as_it_was << ", unbalanced " << lost << ", equalized " << back);
  CHECK(lost > 3.0 * as_it_was);
  CHECK(back < 1.5 * as_it_was);
}

TEST_CASE("equalization goes through depthwise layers, and through ReLU6 when it may become ReLU") {
  Graph kept = folded("mobilenet-v2-cifar10"), g = folded("mobilenet-v2-cifar10"), relu = folded("mobilenet-v2-cifar10");
  const Equalized none = equalize_layers(kept);
  for (const auto& set : none.sets) CHECK(set.size() == 2);  // nothing through a ReLU6
  CHECK(none.relus.empty());
  for (size_t i = 0; i < relu.nodes().size(); ++i) {
    if (relu.nodes()[i].op == "Clip") relu.replace(static_cast<int>(i), std::make_unique<Activation>(relu_op()));
  }
  const Equalized e = equalize_layers(g, {.relu6_as_relu = true});
  CHECK(e.relus.size() > 20);
  int64_t triples = 0;
  for (const auto& set : e.sets) triples += set.size() == 3;
  CHECK(triples >= 15);
  // The clips between its sets are gone; those that are left bound what they bounded.
  for (const Graph::Node& n : g.nodes()) {
    if (n.op == "Clip") relu.replace(static_cast<int>(&n - g.nodes().data()), std::make_unique<Activation>(clip_op(0.0f, 6.0f)));
  }
  CHECK(relative_difference(infer(g, images()), infer(relu, images())) < 1e-3);
}

TEST_CASE("equalization refuses what it would spoil") {
  Graph g = models::make("resnet20-cifar10", {.classes = 10, .image_size = 32});
  randomize(g, 1);
  CHECK_MENTIONS(message_of([&] { equalize_layers(g); }), "fold batch norms first");
  fold_batch_norms(g);
  CHECK_MENTIONS(message_of([&] { equalize_layers(g, {.passes = 0}); }), "0 passes");
  const QuantSim sim(g);
  CHECK_MENTIONS(message_of([&] { equalize_layers(g); }), "before a QuantSim is made");
}

TEST_CASE("bias correction takes the mean error of quantization out of every layer's output") {
  Graph g = folded("resnet20-cifar10");
  const Tensor x = images(2);
  const auto want = output_means(g, x);
  QuantSim sim(g, {.scheme = Scheme::tf, .param_bits = 4, .output_bits = 8});
  sim.compute_encodings([&] { g(x); });
  const auto distance = [&] {
    double squares = 0.0, all = 0.0;
    for (const auto& [name, m] : output_means(g, x)) {
      for (size_t i = 0; i < m.size(); ++i) squares += (m[i] - want.at(name)[i]) * (m[i] - want.at(name)[i]), all += want.at(name)[i] * want.at(name)[i];
    }
    return std::sqrt(squares / all);
  };
  const double before = distance();
  int64_t runs = 0;
  const int64_t layers = correct_biases(sim, [&] { g(x), ++runs; });
  CHECK(layers == static_cast<int64_t>(want.size()));
  CHECK(runs == 1 + layers);
  const double after = distance();
  INFO("distance of the means " << before << " -> " << after);
  CHECK(before > 0.02);
  CHECK(after < 0.05 * before);
  for (const Placement& p : sim.placements()) CHECK(p.quantizer->state() == QuantizerState::frozen);
}

TEST_CASE("bias correction needs ranges and data, and leaves the sim as it was when it fails") {
  Graph g = folded("resnet20-cifar10");
  QuantSim sim(g, {.scheme = Scheme::tf});
  CHECK_MENTIONS(message_of([&] { correct_biases(sim, [&] { g(images()); }); }), "run compute_encodings first");
  sim.compute_encodings([&] { g(images()); });
  const Tensor before = infer(g, images());
  CHECK_MENTIONS(message_of([&] { correct_biases(sim, [] {}); }), "ran no data");
  CHECK_THROWS_AS(correct_biases(sim, [] { throw std::runtime_error("disk"); }), std::runtime_error);
  CHECK(same_bits(infer(g, images()), before));
}

TEST_CASE("sensitivity: each quantizer alone, the noisiest first, and all as before") {
  Graph g = folded("resnet20-cifar10");
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf});
  CHECK_MENTIONS(message_of([&] { sensitivities(sim, {images()}); }), "run compute_encodings first");
  sim.compute_encodings([&] { g(images()); });
  CHECK_MENTIONS(message_of([&] { sensitivities(sim, {}); }), "no images");
  const char* const culprit = "layer2.1.relu1";
  const Range r = sim.find(culprit)->ranges()[0];
  sim.find(culprit)->set_ranges({{0.0, 0.02 * r.max}});
  const Tensor before = infer(g, images());
  const std::vector<Sensitivity> found = sensitivities(sim, {images(1, 1), images(2, 2)});
  CHECK(same_bits(infer(g, images()), before));
  for (const Placement& p : sim.placements()) CHECK(p.quantizer->state() == QuantizerState::learning);
  CHECK(found.size() == sim.placements().size());
  CHECK(found.front().name == culprit);
  CHECK(found.front().bits == 8);
  for (size_t i = 1; i < found.size(); ++i) CHECK(found[i].noise <= found[i - 1].noise);
  CHECK(found.front().noise > 100.0 * found[1].noise);
  // One of them by hand.
  double error = 0.0, signal = 0.0;
  for (const Tensor& x : {images(1, 1), images(2, 2)}) {
    sim.disable();
    const std::vector<float> want = infer(g, x).to_vector<float>();
    sim.find("layer1.0.conv2.weight")->enable();
    const std::vector<float> got = infer(g, x).to_vector<float>();
    sim.find("layer1.0.conv2.weight")->disable();
    sim.enable();
    for (size_t i = 0; i < got.size(); ++i) {
      error += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
      signal += std::pow(static_cast<double>(want[i]), 2);
    }
  }
  for (const Sensitivity& s : found) {
    if (s.name == "layer1.0.conv2.weight") CHECK(s.noise == doctest::Approx(error / signal).epsilon(1e-9));
  }
}
