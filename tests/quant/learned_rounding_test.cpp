// Learned rounding of whole networks: against every rounding there is, on layers of every geometry, and what it must leave alone.
#include "detent/quant/learned_rounding.h"

#include <cmath>
#include <map>

#include "detent/core/parallel.h"
#include "detent/nn/layers.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

namespace {

void calibrate(QuantSim& sim, const Tensor& x) {
  sim.compute_encodings([&] { infer(sim.graph(), x); });
}

// Inputs whose channels go together, as those of real layers do: rounding errors can then cancel out.
Tensor correlated(const Shape& shape, uint64_t seed) {
  Tensor x = random_tensor(shape, seed);
  const int64_t c = shape[-1];
  for (int64_t i = 0; i < x.elements(); ++i) x.data<float>()[i] = 0.3f * x.data<float>()[i] + 1.0f + 0.2f * std::fabs(x.data<float>()[i / c * c]);
  return x;
}

struct Fitted {
  double nearest = 0.0, best = 0.0;
};

// The error of each of the 2^n roundings of one dense neuron, in double.
Fitted try_all(const std::vector<float>& x, const std::vector<float>& w, float bias, const Grid& grid, bool relu) {
  const size_t n = w.size(), rows = x.size() / n;
  const auto s = static_cast<double>(grid.scale);
  const auto error = [&](const std::vector<double>& rounded) {
    double sum = 0.0;
    for (size_t r = 0; r < rows; ++r) {
      double y = bias, t = bias;
      for (size_t i = 0; i < n; ++i) y += rounded[i] * static_cast<double>(x[r * n + i]), t += static_cast<double>(w[i]) * static_cast<double>(x[r * n + i]);
      if (relu) y = std::max(y, 0.0), t = std::max(t, 0.0);
      sum += (y - t) * (y - t);
    }
    return sum / static_cast<double>(rows);
  };
  const auto clipped = [&](double code) { return s * std::min(std::max(code, static_cast<double>(grid.qmin)), static_cast<double>(grid.qmax)); };
  Fitted f{0.0, INFINITY};
  std::vector<double> rounded(n);
  for (size_t i = 0; i < n; ++i) rounded[i] = clipped(std::nearbyint(static_cast<double>(w[i]) / s));
  f.nearest = error(rounded);
  for (unsigned ups = 0; ups < 1u << n; ++ups) {
    for (size_t i = 0; i < n; ++i) rounded[i] = clipped(std::floor(static_cast<double>(w[i]) / s) + (ups >> i & 1));
    f.best = std::min(f.best, error(rounded));
  }
  return f;
}

// A layer of each geometry on 9x7 images of 6 channels; weights lie on their grids already when asked.
Graph geometries() {
  Graph g;
  Value v = g.input("x", {9, 7, 6});
  v = g.add<Conv2d>("wide", {v}, Conv2d::Options{.in = 6, .out = 8, .kernel_h = 3, .kernel_w = 5, .spec = {.stride = {2, 1}, .padding = {1, 2, 1, 2}}, .bias = true});
  v = g.add<Activation>("relu", {v}, relu_op());
  v = g.add<Conv2d>("depthwise", {v}, Conv2d::Options{.in = 8, .out = 8, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}, .groups = 8}});
  v = g.add<Activation>("relu6", {v}, clip_op(0.0f, 6.0f));
  v = g.add<Conv2d>("dilated", {v},
                    Conv2d::Options{.in = 8, .out = 6, .kernel_h = 2, .kernel_w = 3, .spec = {.padding = {0, 2, 2, 2}, .dilation = {2, 2}, .groups = 2}, .bias = true});
  v = g.add<Conv2d>("point", {v}, Conv2d::Options{.in = 6, .out = 5, .spec = {.stride = {1, 2}}});
  v = g.add<GlobalAveragePool>("mean", {v});
  v = g.add<Flatten>("flat", {v});
  g.output(g.add<Dense>("fc", {v}, Dense::Options{.in = 5, .out = 3}));
  randomize(g, 3);
  return g;
}

Tensor weight_of(Graph& g, const std::string& name) { return dynamic_cast<WeightedLayer&>(*g.find(name)->module).weight.value; }

constexpr int kParamBits = 3;

}  // namespace

TEST_CASE("learned rounding finds about the best of all roundings") {
  double gained = 0.0, possible = 0.0;
  for (const bool with_relu : {false, true}) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      CAPTURE(with_relu);
      CAPTURE(seed);
      const int64_t n = 10;
      Graph g;
      Value v = g.add<Dense>("fc", {g.input("x", {n})}, Dense::Options{.in = n, .out = 1});
      if (with_relu) v = g.add<Activation>("relu", {v}, relu_op());
      g.output(v);
      auto& fc = dynamic_cast<Dense&>(*g.find("fc")->module);
      fc.weight.value.copy_from(random_tensor({1, n}, seed));
      fc.bias.value.data<float>()[0] = -0.5f;
      const Tensor x = correlated({64, n}, seed + 100);
      QuantSim sim(g, {.scheme = Scheme::tf, .param_bits = kParamBits, .output_bits = 32});
      calibrate(sim, x);
      const Grid grid = sim.find("fc.weight")->grids().front();
      const Fitted all = try_all(x.to_vector<float>(), fc.weight.value.to_vector<float>(), -0.5f, grid, with_relu);
      const std::vector<RoundedLayer> done = learn_rounding(sim, {x});
      REQUIRE(done.size() == 1);
      CHECK(done[0].nearest == doctest::Approx(all.nearest).epsilon(1e-4));
      CHECK(done[0].learned >= all.best * (1.0 - 1e-4));
      CHECK(done[0].learned <= done[0].nearest);
      if (all.best == 0.0) continue;  // a neuron that is always off
      gained += std::log(done[0].nearest / done[0].learned);
      possible += std::log(done[0].nearest / all.best);
    }
  }
  INFO("mean factors: " << std::exp(gained / 12.0) << " of " << std::exp(possible / 12.0));
  CHECK(possible > 10.0);  // e^(10/12): errors could be 2.3 times smaller
  CHECK(gained > 0.6 * possible);
}

TEST_CASE("a layer on its grid has no error, whatever its stride, padding, dilation and groups") {
  Graph g = geometries();
  const Tensor x = correlated({5, 9, 7, 6}, 1);
  QuantSim sim(g, {.scheme = Scheme::tf, .param_bits = kParamBits, .output_bits = 32});
  calibrate(sim, x);
  for (const char* name : {"wide", "depthwise", "dilated", "point", "fc"}) {
    Tensor w = weight_of(g, name);
    for (int64_t i = 0; i < w.elements(); ++i) w.data<float>()[i] = fake_quantize(w.data<float>()[i], sim.find(text(name, ".weight"))->grids().front());
  }
  for (const int64_t window : {1, 3, 100}) {
    CAPTURE(window);
    for (const RoundedLayer& l : learn_rounding(sim, {x, correlated({2, 9, 7, 6}, 2)}, {.iterations = 1, .window = window})) {
      CAPTURE(l.name);
      CHECK(l.nearest < 1e-9);
      CHECK(l.moved == 0);
    }
  }
}

TEST_CASE("a layer is to give what the float network gives there, on inputs of the layers rounded before it") {
  Graph g = geometries();
  const Tensor x = correlated({6, 9, 7, 6}, 1), want = infer(g, x);
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf, .param_bits = kParamBits, .output_bits = 4});
  calibrate(sim, x);
  const std::vector<RoundedLayer> done = learn_rounding(sim, {x}, {.iterations = 20});
  for (const Placement& p : sim.placements()) {
    if (!p.parameter) p.quantizer->disable();
  }
  // The last layer's outputs are the network's.
  const std::vector<float> got = infer(g, x).to_vector<float>(), wanted = want.to_vector<float>();
  double sum = 0.0;
  for (size_t i = 0; i < got.size(); ++i) sum += std::pow(static_cast<double>(got[i]) - static_cast<double>(wanted[i]), 2.0);
  CHECK(done.back().learned == doctest::Approx(sum / 6.0).epsilon(1e-3));
}

TEST_CASE("learned weights are neighbours on the grid, grids and states stay") {
  for (const auto scheme : {Scheme::tf, Scheme::range_learning_tf}) {
    Graph g = geometries();
    const Tensor x = correlated({40, 9, 7, 6}, 1);
    QuantSim sim(g, {.scheme = scheme, .param_bits = kParamBits});
    calibrate(sim, x);
    const EncodingMap encodings = sim.encodings();
    std::map<std::string, std::vector<float>> before;
    for (const char* name : {"wide", "depthwise", "dilated", "point", "fc"}) before[name] = weight_of(g, name).to_vector<float>();
    const Tensor bias = dynamic_cast<Conv2d&>(*g.find("wide")->module).bias.value.clone();
    std::vector<std::string> told;
    const std::vector<RoundedLayer> done = learn_rounding(sim, {x}, {.iterations = 300}, [&](const RoundedLayer& l) { told.push_back(l.name); });
    CHECK(told == std::vector<std::string>{"wide", "depthwise", "dilated", "point", "fc"});
    REQUIRE(done.size() == 5);
    int64_t moved = 0;
    for (const RoundedLayer& l : done) {
      CAPTURE(l.name);
      CHECK(l.learned <= l.nearest);
      moved += l.moved;
      Quantizer& q = *sim.find(l.name + ".weight");
      CHECK(q.state() == (scheme == Scheme::tf ? QuantizerState::frozen : QuantizerState::learning));
      const Grid& grid = q.grids().front();
      CHECK(q.grids() == encodings.find(l.name + ".weight")->grids);
      const std::vector<float> w = weight_of(g, l.name).to_vector<float>();
      CHECK(l.weights == static_cast<int64_t>(w.size()));
      for (size_t i = 0; i < w.size(); ++i) {
        CHECK(fake_quantize(w[i], grid) == w[i]);
        const double u = static_cast<double>(before[l.name][i]) / static_cast<double>(grid.scale), code = static_cast<double>(quantize(w[i], grid));
        CHECK((code == std::floor(u) || code == std::floor(u) + 1.0 || code == grid.qmin || code == grid.qmax));
      }
    }
    CHECK(moved > 0);
    CHECK(same_bits(dynamic_cast<Conv2d&>(*g.find("wide")->module).bias.value, bias));
  }
}

TEST_CASE("a network with learned rounding is nearer to the float network, also on images it was not learned on") {
  double gained = 0.0;
  for (const uint64_t seed : {1u, 2u, 3u, 4u}) {
    Graph g = small_network(8, 4);
    randomize(g, seed);
    fold_batch_norms(g);
    const Tensor x = random_tensor({64, 8, 8, 3}, 10 + seed), other = random_tensor({64, 8, 8, 3}, 20 + seed), want = infer(g, other);
    QuantSim sim(g, {.scheme = Scheme::tf, .param_bits = 4});
    calibrate(sim, x);
    const double nearest = relative_difference(infer(g, other), want);
    learn_rounding(sim, {x}, {.iterations = 200, .batch = 16});
    const double learned = relative_difference(infer(g, other), want);
    INFO("relative error of the scores: " << nearest << " to nearest, " << learned << " learned");
    gained += std::log(nearest / learned);
  }
  CHECK(gained > 4.0 * std::log(1.2));
}

TEST_CASE("learned rounding gives the same bits at any number of threads, others with another seed") {
  const int threads = num_threads();
  std::vector<std::vector<float>> results;
  for (const int n : {1, 2, 3}) {
    set_num_threads(n);
    Graph g = geometries();
    const Tensor x = correlated({40, 9, 7, 6}, 1);
    QuantSim sim(g, {.param_bits = kParamBits});
    calibrate(sim, x);
    const std::vector<RoundedLayer> done = learn_rounding(sim, {x}, {.iterations = 60, .window = 3, .seed = n == 3 ? 1u : 0u});
    std::vector<float> all;
    for (const RoundedLayer& l : done) {
      const std::vector<float> w = weight_of(g, l.name).to_vector<float>();
      all.insert(all.end(), w.begin(), w.end());
      all.push_back(static_cast<float>(l.learned));
    }
    results.push_back(all);
  }
  set_num_threads(threads);
  CHECK(results[0] == results[1]);
  CHECK(results[0] != results[2]);
}

TEST_CASE("learned rounding refuses what it cannot learn from, and leaves a stopped network in order") {
  Graph g = geometries();
  const Tensor x = correlated({4, 9, 7, 6}, 1);
  QuantSim sim(g, {.param_bits = kParamBits});
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}); }), "run compute_encodings");
  calibrate(sim, x);
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {}); }), "no images");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.iterations = 0}); }), "0 iterations");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.window = 0}); }), "windows of 0");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.learning_rate = NAN}); }), "learning rate");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.formula = {.regularisation = -1.0}}); }), "regularisation -1");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.formula = {.zeta = -3.0}}); }), "[-0.1, -3]");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.formula = {.gamma = 0.5}}); }), "[0.5, 1.1]");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.formula = {.beta_end = 0.0}}); }), "beta from 20 to 0");
  CHECK_MENTIONS(message_of([&] { learn_rounding(sim, {x}, {.formula = {.warm_start = 5.0}}); }), "warm_start 5");
  const Tensor wide = weight_of(g, "wide").clone(), fc = weight_of(g, "fc").clone();
  CHECK_THROWS_AS(learn_rounding(sim, {x}, {.iterations = 2}, [](const RoundedLayer&) { throw std::runtime_error("stop"); }), std::runtime_error);
  CHECK_FALSE(same_bits(weight_of(g, "wide"), wide));
  CHECK(same_bits(weight_of(g, "fc"), fc));
  for (const Placement& p : sim.placements()) CHECK(p.quantizer->state() == QuantizerState::learning);
  // Switched off, or in float: left alone.
  sim.find("wide.weight")->disable();
  std::vector<std::string> names;
  for (const RoundedLayer& l : learn_rounding(sim, {x}, {.iterations = 1})) names.push_back(l.name);
  CHECK(names == std::vector<std::string>{"depthwise", "dilated", "point", "fc"});
}
