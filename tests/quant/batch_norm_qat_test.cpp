// Quantization-aware training with batch norms left in: placement, training, re-estimation, folding into the scales, frozen statistics.
#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "detent/nn/layers.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/passes/reestimate_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/quant/fold_to_scale.h"

using namespace detent;
using quant::QuantSim;
using quant::Scheme;

namespace {

Tensor normal(const Shape& shape, uint32_t seed, double mean = 0.0, double sd = 1.0) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> d(mean, sd);
  std::vector<float> v(static_cast<size_t>(shape.elements()));
  for (float& x : v) x = static_cast<float>(d(rng));
  return Tensor::from<float>(shape, v);
}

Tensor labels(int64_t n) {
  std::vector<int64_t> l;
  for (int64_t i = 0; i < n; ++i) l.push_back(i % 3);
  return Tensor::from<int64_t>({n}, l);
}

struct Batch {
  Tensor images;
};

// conv1 -> bn1 -> relu; conv2 -> bn2 (its output is quantized); + shortcut -> relu -> pool -> fc. Names with dots, as nested models have.
struct Net {
  nn::Graph graph;
  Net() {
    const nn::Value in = graph.input("input", {6, 6, 3});
    nn::Value v = conv("block.conv1", in, 3, 8);
    v = graph.add<nn::BatchNorm>("block.bn1", {v}, nn::BatchNorm::Options{.channels = 8});
    const nn::Value shortcut = v = graph.add<nn::Activation>("block.relu1", {v}, nn::relu_op());
    v = conv("block.conv2", v, 8, 8);
    v = graph.add<nn::BatchNorm>("block.bn2", {v}, nn::BatchNorm::Options{.channels = 8});
    v = graph.add<nn::Binary>("block.add", {v, shortcut}, BinaryOp::add);
    v = graph.add<nn::Activation>("block.relu2", {v}, nn::relu_op());
    v = graph.add<nn::GlobalAveragePool>("pool", {v});
    v = graph.add<nn::Flatten>("flat", {v});
    graph.output(graph.add<nn::Dense>("fc", {v}, nn::Dense::Options{.in = 8, .out = 3}));
    nn::initialize(graph, {.seed = 3});
    uint32_t seed = 50;
    for (nn::Graph::Node& n : graph.nodes()) {
      auto* norm = dynamic_cast<nn::BatchNorm*>(n.module.get());
      if (!norm) continue;
      // One channel of each batch norm has a negative factor.
      std::vector<float> gamma = normal({8}, ++seed, 1.0, 0.2).to_vector<float>();
      gamma[2] = -gamma[2];
      norm->weight.value = Tensor::from<float>({8}, gamma);
      norm->bias.value = normal({8}, ++seed, 0.1, 0.2);
      norm->running_mean = normal({8}, ++seed, 0.0, 0.3);
      norm->running_var = normal({8}, ++seed, 1.0, 0.05);
    }
  }
  nn::Value conv(const std::string& name, nn::Value in, int64_t from, int64_t to) {
    nn::Conv2d::Options o;
    o.in = from, o.out = to, o.kernel_h = 3, o.kernel_w = 3;
    o.spec.padding = {1, 1, 1, 1};
    return graph.add<nn::Conv2d>(name, {in}, o);
  }
  nn::BatchNorm& norm(const char* name) { return *static_cast<nn::BatchNorm*>(graph.find(name)->module.get()); }
};

void calibrate(QuantSim& sim) {
  sim.compute_encodings([&] { sim.graph()(normal({16, 6, 6, 3}, 7)); });
}

double relative_error(const Tensor& a, const Tensor& b) {
  const std::vector<float> u = a.to_vector<float>(), v = b.to_vector<float>();
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < u.size(); ++i) {
    error += std::pow(static_cast<double>(u[i]) - static_cast<double>(v[i]), 2.0);
    size += std::pow(static_cast<double>(u[i]), 2.0);
  }
  return std::sqrt(error / size);
}

}  // namespace

TEST_CASE("with batch norms left in, the batch norm has the output quantizer and the convolution none") {
  Net net;
  QuantSim sim(net.graph);
  CHECK(sim.find("block.conv1") == nullptr);
  CHECK(sim.find("block.bn1") == nullptr);  // Conv + BN + Relu is one group
  CHECK(sim.find("block.relu1") != nullptr);
  CHECK(sim.find("block.conv2") == nullptr);
  CHECK(sim.find("block.bn2") != nullptr);
}

TEST_CASE("training with batch norms left in reaches weights, gamma, beta and ranges, and learns") {
  for (const char* config : {"tensorflow_default", "per_channel_default"}) {
    Net net;
    QuantSim sim(net.graph, {.scheme = Scheme::range_learning_tf, .config = quant::default_config(config)});
    calibrate(sim);
    nn::Sgd sgd({.learning_rate = 0.05f, .momentum = 0.9f});
    nn::Trainer trainer(net.graph, sgd, {.base = 0.05f});
    const Tensor x = normal({12, 6, 6, 3}, 9), y = labels(12);
    std::map<std::string, std::vector<float>> before;
    for (nn::Parameter* p : net.graph.parameters()) before[p->name] = p->value.to_vector<float>();
    const Tensor mean = net.norm("block.bn1").running_mean.clone();
    const float first = trainer.step(x, y).loss;
    CHECK(net.norm("block.bn1").running_mean.to_vector<float>() != mean.to_vector<float>());
    float last = first;
    for (int i = 0; i < 60; ++i) last = trainer.step(x, y).loss;
    CHECK(last < 0.6f * first);
    for (nn::Parameter* p : net.graph.parameters()) {
      CAPTURE(p->name);
      CAPTURE(std::string(config));
      if (!p->name.ends_with("relu1.min") && !p->name.ends_with("relu2.min")) CHECK(p->value.to_vector<float>() != before[p->name]);
    }
  }
}

TEST_CASE("folding to the scales after training keeps the network, per channel and per tensor, nested names and negative factors") {
  for (const char* config : {"tensorflow_default", "per_channel_default"}) {
    for (const Scheme scheme : {Scheme::range_learning_tf, Scheme::tf}) {
      CAPTURE(std::string(config));
      Net net;
      QuantSim sim(net.graph, {.scheme = scheme, .param_bits = 6, .config = quant::default_config(config)});
      calibrate(sim);
      nn::Sgd sgd({.learning_rate = 0.01f});
      nn::Trainer trainer(net.graph, sgd, {.base = 0.01f});
      for (int i = 0; i < 3; ++i) trainer.step(normal({12, 6, 6, 3}, 30 + i), labels(12));
      const Tensor x = normal({32, 6, 6, 3}, 77);
      const Tensor before = nn::infer(net.graph, x);
      const Tensor w = nn::infer(net.graph, x);
      const Range bn2 = sim.find("block.bn2")->ranges().at(0);
      const auto folded = quant::fold_batch_norms_to_scale(sim);
      REQUIRE(folded.size() == 2);
      CHECK(folded[0] == std::pair<std::string, std::string>("block.conv1", "block.bn1"));
      CHECK(net.graph.find("block.bn1") == nullptr);
      CHECK(sim.find("block.conv1.weight")->grids().size() == 8);
      CHECK(sim.find("block.bn2") == nullptr);
      REQUIRE(sim.find("block.conv2") != nullptr);
      CHECK(sim.find("block.conv2")->ranges().at(0).max == bn2.max);
      const Tensor after = nn::infer(net.graph, x);
      // The same weight codes; what is left is the bias on its int32 grid and float rounding before the next quantizer.
      CHECK(relative_error(before, after) < 0.02);
      // Calibrating the folded 6-bit weights anew would not be the same network.
      for (const quant::Placement& p : sim.placements()) CHECK(sim.find(p.name) != nullptr);
      CHECK(sim.encodings().find("block.conv2") != nullptr);
    }
  }
}

TEST_CASE("the plain fold is refused beside quantizers, with nothing changed") {
  Net net;
  const Tensor x = normal({4, 6, 6, 3}, 77);
  const Tensor before = nn::infer(net.graph, x);
  {
    const QuantSim sim(net.graph);
    CHECK_THROWS_WITH_AS(nn::fold_batch_norms(net.graph),
                         "fold_batch_norms: \"block.bn1\" folds into \"block.conv1\", but \"block.conv1.weight\" has a quantizer; fold before the QuantSim is made, or behind training with "
                         "quant::fold_batch_norms_to_scale",
                         Error);
    CHECK(nn::infer(net.graph, x).to_vector<float>() == before.to_vector<float>());
    REQUIRE(net.graph.find("block.bn1"));
  }
  {
    const QuantSim sim(net.graph, {.param_bits = 32});
    CHECK_THROWS_WITH_AS(nn::fold_batch_norms(net.graph), doctest::Contains("\"block.bn2\" has a quantizer"), Error);
    CHECK(net.graph.find("block.bn1"));  // which could have been folded: all or none
  }
  CHECK(nn::fold_batch_norms(net.graph).size() == 2);
  const QuantSim sim(net.graph);
  CHECK(nn::fold_batch_norms(net.graph).empty());
}

TEST_CASE("fold to scale: the integer codes of the weight are those of the trained network") {
  Net net;
  QuantSim sim(net.graph, {.scheme = Scheme::range_learning_tf});
  calibrate(sim);
  auto& conv = static_cast<nn::Conv2d&>(*net.graph.find("block.conv2")->module);
  const std::vector<float> gamma = net.norm("block.bn2").weight.value.to_vector<float>();
  const Grid g = sim.find("block.conv2.weight")->grids().at(0);
  std::vector<int> codes;
  const std::vector<float> w = conv.weight.value.to_vector<float>();
  for (size_t i = 0; i < w.size(); ++i) codes.push_back(quantize(w[i], g) * (gamma[i / 72] < 0.0f ? -1 : 1));
  quant::fold_batch_norms_to_scale(sim);
  const std::vector<Grid> after = sim.find("block.conv2.weight")->grids();
  const std::vector<float> v = conv.weight.value.to_vector<float>();
  int moved = 0;
  for (size_t i = 0; i < v.size(); ++i) moved += quantize(v[i], after.at(i / 72)) != codes[i];
  CHECK(moved <= 1);
}

TEST_CASE("fold to scale: the folded bias fits into int32 where a channel's factor is small") {
  for (const bool disabled : {false, true}) {
    Net net;
    nn::BatchNorm& norm = net.norm("block.bn1");
    norm.weight.value.data<float>()[1] = 1e-5f;
    norm.bias.value.data<float>()[1] = 2.0f;
    QuantSim sim(net.graph, {.scheme = Scheme::range_learning_tf, .output_bits = 16, .config = quant::default_config("per_channel_default")});
    calibrate(sim);
    const Tensor x = normal({8, 6, 6, 3}, 77);
    const Tensor before = nn::infer(net.graph, x);
    if (disabled) sim.disable();
    REQUIRE(quant::fold_batch_norms_to_scale(sim).size() == 2);
    if (disabled) {
      CHECK_FALSE(sim.has_ranges());
      sim.enable();
    }
    CHECK(relative_error(before, nn::infer(net.graph, x)) < 0.01);
    const float s_in = sim.find("input")->grids().at(0).scale;
    CHECK(static_cast<double>(s_in * sim.find("block.conv1.weight")->grids().at(1).scale) * 2147483648.0 > 2.0);
  }
}

TEST_CASE("fold to scale: a bias quantizer gets the folded bias's range and keeps its state") {
  for (const Scheme scheme : {Scheme::range_learning_tf, Scheme::tf}) {
    for (const char* state : {"as calibrated", "frozen", "learning"}) {
      CAPTURE(std::string(state));
      Net net;
      auto& conv = static_cast<nn::Conv2d&>(*net.graph.find("block.conv1")->module);
      conv.ensure_bias();
      conv.bias.value = normal({8}, 5, 0.0, 0.05);
      net.norm("block.bn1").bias.value = normal({8}, 6, 1.0, 0.2);
      quant::QuantConfig config = quant::default_config("per_channel_default");
      config.params["bias"] = {true, true};
      QuantSim sim(net.graph, {.scheme = scheme, .config = config});
      calibrate(sim);
      if (std::string(state) == "frozen") sim.freeze();
      if (std::string(state) == "learning") sim.learn();
      const Tensor x = normal({8, 6, 6, 3}, 77);
      const Tensor before = nn::infer(net.graph, x);
      const quant::QuantizerState was = sim.find("block.conv1.bias")->state();
      quant::fold_batch_norms_to_scale(sim);
      CHECK(sim.find("block.conv1.bias")->state() == was);
      CHECK(relative_error(before, nn::infer(net.graph, x)) < 0.02);
    }
  }
}

TEST_CASE("re-estimated statistics are the mean of those of the batches, and can be undone") {
  Net net;
  std::vector<Batch> batches;
  for (uint32_t i = 0; i < 5; ++i) batches.push_back({normal({16, 6, 6, 3}, 200 + i, 0.3 * i)});
  nn::BatchNorm& norm = net.norm("block.bn1");
  const std::vector<float> old_mean = norm.running_mean.to_vector<float>(), old_var = norm.running_var.to_vector<float>();
  // Independent: the convolution's output, its statistics in double.
  std::vector<double> mean(8, 0.0), var(8, 0.0);
  for (int b = 0; b < 3; ++b) {
    std::vector<float> out;
    net.graph.set_tap([&](nn::Value v, const Var&, const Var& y) {
      if (net.graph.value(v).name == "block.conv1") out = y.dense().to_vector<float>();
    });
    nn::infer(net.graph, batches[static_cast<size_t>(b)].images);
    net.graph.set_tap({});
    const auto n = static_cast<double>(out.size() / 8);
    for (size_t c = 0; c < 8; ++c) {
      double s = 0.0, q = 0.0;
      for (size_t i = c; i < out.size(); i += 8) s += static_cast<double>(out[i]);
      for (size_t i = c; i < out.size(); i += 8) q += std::pow(static_cast<double>(out[i]) - s / n, 2.0);
      mean[c] += s / n / 3.0;
      var[c] += q / (n - 1.0) / 3.0;  // unbiased, as PyTorch keeps it
    }
  }
  norm.frozen = true;
  nn::BatchNormUndo undo = nn::reestimate_batch_norm_on(net.graph, batches, 3);
  CHECK(undo.batches() == 3);
  CHECK(norm.frozen);
  CHECK(norm.options().momentum == 0.1f);
  CHECK(net.graph.mode() == nn::Mode::automatic);
  const std::vector<float> got_mean = norm.running_mean.to_vector<float>(), got_var = norm.running_var.to_vector<float>();
  for (size_t c = 0; c < 8; ++c) {
    CHECK(static_cast<double>(got_mean[c]) == doctest::Approx(mean[c]).epsilon(1e-4));
    CHECK(static_cast<double>(got_var[c]) == doctest::Approx(var[c]).epsilon(1e-4));
  }
  undo.restore();
  CHECK(norm.running_mean.to_vector<float>() == old_mean);
  CHECK(norm.running_var.to_vector<float>() == old_var);
  CHECK(nn::reestimate_batch_norm_on(net.graph, batches).batches() == 5);
  undo.restore();
  CHECK_THROWS_AS(nn::reestimate_batch_norm_on(net.graph, std::vector<Batch>{}), Error);
  int ran = 0;
  CHECK_THROWS_AS(nn::reestimate_batch_norm(net.graph,
                                            [&] {
                                              if (++ran == 2) fail("the disk is gone");
                                              net.graph(batches[0].images);
                                              return true;
                                            }),
                  Error);
  CHECK(norm.running_mean.to_vector<float>() == old_mean);
  CHECK(net.graph.mode() == nn::Mode::automatic);
}

TEST_CASE("statistics stay as they are from step N on, gamma and beta train on") {
  Net net;
  QuantSim sim(net.graph);
  calibrate(sim);
  nn::Sgd sgd({.learning_rate = 0.01f});
  nn::Trainer trainer(net.graph, sgd, {.base = 0.01f});
  trainer.freeze_batch_norm_after = 2;
  nn::BatchNorm& norm = net.norm("block.bn1");
  std::vector<std::vector<float>> means{norm.running_mean.to_vector<float>()}, gammas{norm.weight.value.to_vector<float>()};
  for (int i = 0; i < 4; ++i) {
    trainer.step(normal({12, 6, 6, 3}, 30 + i), labels(12));
    means.push_back(norm.running_mean.to_vector<float>());
    gammas.push_back(norm.weight.value.to_vector<float>());
  }
  CHECK(means[1] != means[0]);
  CHECK(means[2] != means[1]);
  CHECK(means[3] == means[2]);
  CHECK(means[4] == means[2]);
  CHECK(gammas[4] != gammas[3]);
  CHECK(nn::set_batch_norm_frozen(net.graph, false) == 2);
  CHECK_FALSE(norm.frozen);
}
