// Weights without range learning, weights that were quantized before, 16-bit floats and int32 accumulators.
#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "detent/core/math/half.h"
#include "detent/io/encodings.h"
#include "detent/nn/layers.h"
#include "detent/nn/train.h"
#include "detent/quant/accumulator.h"
#include "detent/quant/estimators/on_grid.h"
#include "detent/quant/quantsim.h"

using namespace detent;
using quant::NumberFormat;
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

// conv -> relu -> flatten -> dense on 6x6x3 images.
struct Net {
  nn::Graph graph;
  nn::Conv2d* conv = nullptr;
  nn::Dense* fc = nullptr;
  Net() {
    const nn::Value in = graph.input("input", {6, 6, 3});
    nn::Conv2d::Options o;
    o.in = 3, o.out = 4, o.kernel_h = 3, o.kernel_w = 3, o.bias = true;
    const nn::Value c = graph.add<nn::Conv2d>("conv", {in}, o);
    const nn::Value r = graph.add<nn::Activation>("relu", {c}, nn::relu_op());
    const nn::Value f = graph.add<nn::Flatten>("flat", {r});
    graph.output(graph.add<nn::Dense>("fc", {f}, nn::Dense::Options{.in = 64, .out = 5}));
    conv = static_cast<nn::Conv2d*>(graph.find("conv")->module.get());
    fc = static_cast<nn::Dense*>(graph.find("fc")->module.get());
    conv->weight.value = normal(conv->weight.value.shape(), 1, 0.0, 0.3);
    conv->bias.value = normal(conv->bias.value.shape(), 2);
    fc->weight.value = normal(fc->weight.value.shape(), 3, 0.0, 0.2);
    fc->bias.value = normal(fc->bias.value.shape(), 4);
  }
};

void calibrate(QuantSim& sim, uint32_t seed = 7) {
  sim.compute_encodings([&] { sim.graph()(normal({8, 6, 6, 3}, seed)); });
}

Tensor labels(int64_t n) {
  std::vector<int64_t> l;
  for (int64_t i = 0; i < n; ++i) l.push_back(i);
  return Tensor::from<int64_t>({n}, l);
}

double largest(const Tensor& t) {
  double m = 0.0;
  for (const float v : t.to_vector<float>()) m = std::max(m, std::fabs(static_cast<double>(v)));
  return m;
}

std::vector<float> quantized(const std::vector<float>& x, const Grid& g) {
  std::vector<float> y;
  for (const float v : x) y.push_back(fake_quantize(v, g));
  return y;
}

}  // namespace

TEST_CASE("without range learning the encodings after training are those of the final weights") {
  for (const Scheme scheme : {Scheme::tf, Scheme::tf_enhanced, Scheme::percentile, Scheme::mse, Scheme::moving_average, Scheme::entropy}) {
    CAPTURE(std::string(to_string(scheme)));
    Net net;
    QuantSim sim(net.graph, {.scheme = scheme});
    calibrate(sim);
    const std::vector<Grid> relu = sim.find("relu")->grids();
    const Grid before = sim.find("conv.weight")->grids().at(0);
    nn::Sgd sgd({.learning_rate = 0.2f});
    nn::Trainer trainer(net.graph, sgd, {.base = 0.2f});
    for (int i = 0; i < 3; ++i) trainer.step(normal({4, 6, 6, 3}, 20 + i), labels(4));
    CHECK(sim.find("relu")->grids() == relu);  // activations keep the calibrated range
    const quant::EncodingMap map = sim.encodings();
    const Grid after = map.find("conv.weight")->grids.at(0);
    CHECK(after.scale != before.scale);
    // An independent sim on the same final weights gives the same grid.
    Net fresh;
    fresh.conv->weight.value = net.conv->weight.value.clone();
    QuantSim other(fresh.graph, {.scheme = scheme});
    calibrate(other);
    CHECK(after == other.find("conv.weight")->grids().at(0));
    if (scheme == Scheme::tf) {
      double lo = 0.0, hi = 0.0;
      for (const float v : net.conv->weight.value.to_vector<float>()) lo = std::min(lo, static_cast<double>(v)), hi = std::max(hi, static_cast<double>(v));
      CHECK(static_cast<double>(after.scale) == doctest::Approx(std::max(hi / 127.0, -lo / 128.0)));
    }
    // So does evaluation.
    net.conv->weight.value = normal(net.conv->weight.value.shape(), 99);
    nn::infer(net.graph, normal({1, 6, 6, 3}, 5));
    fresh.conv->weight.value = net.conv->weight.value.clone();
    calibrate(other);
    CHECK(sim.find("conv.weight")->grids() == other.find("conv.weight")->grids());
  }
}

TEST_CASE("a grid that was given stays when the weight moves") {
  Net net;
  QuantSim sim(net.graph, {.scheme = Scheme::tf});
  calibrate(sim);
  sim.load_encodings(sim.encodings());
  const std::vector<Grid> given = sim.find("conv.weight")->grids();
  net.conv->weight.value = normal(net.conv->weight.value.shape(), 99, 0.0, 5.0);
  nn::infer(net.graph, normal({1, 6, 6, 3}, 5));
  CHECK(sim.find("conv.weight")->grids() == given);
  const std::string bytes = sim.find("conv.weight")->save();
  Net again;
  QuantSim copy(again.graph, {.scheme = Scheme::tf});
  copy.find("conv.weight")->restore(bytes);
  again.conv->weight.value = net.conv->weight.value.clone();
  CHECK(copy.find("conv.weight")->grids() == given);
}

TEST_CASE("values on a grid are recognized, at every width") {
  std::mt19937 rng(3);
  for (int bits = 2; bits <= 16; ++bits) {
    for (int trial = 0; trial < 20; ++trial) {
      CAPTURE(bits);
      CAPTURE(trial);
      const bool symmetric = trial % 2 == 0;
      GridSpec spec{.bits = bits, .symmetric = symmetric};
      const double size = std::exp(std::uniform_real_distribution<double>(-8.0, 4.0)(rng));
      const Grid g = grid_from_range({-size, 1.7 * size}, spec);
      // Normal weights: the outermost codes are used or not, as it happens.
      const std::vector<float> w = quantized(normal({3000}, static_cast<uint32_t>(100 * bits + trial), 0.1 * size, (trial % 3 || bits < 4 ? 0.4 : 0.2) * size).to_vector<float>(), g);
      const auto found = quant::grids_of_values(Tensor::from<float>({3000}, w), {1, 1, 3000}, spec);
      REQUIRE(found.at(0).has_value());
      CHECK(is_valid(*found[0]));
      CHECK(quantized(w, *found[0]) == w);
      if (bits >= 5) CHECK(found[0]->scale == doctest::Approx(static_cast<double>(g.scale)).epsilon(1e-7));
    }
  }
}

TEST_CASE("values on no grid are not") {
  for (const int bits : {4, 8, 16}) {
    const GridSpec spec{.bits = bits, .symmetric = true};
    for (uint32_t seed = 0; seed < 50; ++seed) {
      CHECK_FALSE(quant::grids_of_values(normal({9}, seed), {1, 1, 9}, spec).at(0).has_value());
      const auto channels = quant::grids_of_values(normal({8, 9}, seed), {1, 8, 9}, spec);
      for (const auto& g : channels) CHECK_FALSE(g.has_value());
    }
  }
  const GridSpec spec{.bits = 8, .symmetric = true};
  CHECK_FALSE(quant::grids_of_values(Tensor::zeros({9}), {1, 1, 9}, spec).at(0).has_value());
  CHECK_FALSE(quant::grids_of_values(Tensor::full({9}, 0.3f), {1, 1, 9}, spec).at(0).has_value());
}

TEST_CASE("a quantized network that is simulated again has the same scales") {
  for (const bool per_channel : {false, true}) {
    for (const Scheme scheme : {Scheme::tf, Scheme::tf_enhanced, Scheme::range_learning_tf_enhanced}) {
      Net net;
      const quant::QuantSimOptions options{.scheme = scheme, .config = quant::default_config(per_channel ? "per_channel_default" : "tensorflow_default")};
      std::vector<Grid> scales;
      {
        QuantSim sim(net.graph, options);
        calibrate(sim);
        // A range that cuts: the largest weights saturate, so that the extremes alone would not give the scale back.
        std::vector<Range> ranges = sim.find("conv.weight")->ranges();
        for (Range& r : ranges) r = {0.7 * r.min, 0.7 * r.max};
        sim.find("conv.weight")->set_ranges(ranges);
        scales = sim.find("conv.weight")->grids();
      }
      std::vector<float> w = net.conv->weight.value.to_vector<float>();
      for (size_t i = 0; i < w.size(); ++i) w[i] = fake_quantize(w[i], scales[per_channel ? i / 27 : 0]);
      net.conv->weight.value = Tensor::from<float>(net.conv->weight.value.shape(), w);
      QuantSim sim(net.graph, options);
      calibrate(sim);
      const std::vector<Grid>& again = sim.find("conv.weight")->grids();
      REQUIRE(again.size() == scales.size());
      for (size_t i = 0; i < again.size(); ++i) CHECK(again[i] == scales[i]);
    }
  }
}

TEST_CASE("a network of few bits that is simulated again has the same weights, per tensor and per channel") {
  for (const int bits : {2, 3, 4}) {
    for (const bool per_channel : {false, true}) {
      for (const Scheme scheme : {Scheme::tf, Scheme::range_learning_tf_enhanced}) {
        CAPTURE(bits);
        CAPTURE(per_channel);
        Net net;
        const quant::QuantSimOptions options{.scheme = scheme, .param_bits = bits, .config = quant::default_config(per_channel ? "per_channel_default" : "tensorflow_default")};
        {
          QuantSim sim(net.graph, options);
          calibrate(sim);
          for (const char* name : {"conv", "fc"}) {
            Tensor& w = name == std::string("fc") ? net.fc->weight.value : net.conv->weight.value;
            w = sim.find(std::string(name) + ".weight")->apply({}, Var(w)).dense().clone();
          }
        }
        const std::vector<float> conv = net.conv->weight.value.to_vector<float>(), fc = net.fc->weight.value.to_vector<float>();
        QuantSim sim(net.graph, options);
        calibrate(sim);
        CHECK(sim.find("conv.weight")->apply({}, Var(net.conv->weight.value)).dense().to_vector<float>() == conv);
        CHECK(sim.find("fc.weight")->apply({}, Var(net.fc->weight.value)).dense().to_vector<float>() == fc);
      }
    }
  }
  // Few values that do not repeat, or repeat on no common scale, are no grid.
  for (const int bits : {2, 3, 4}) {
    const GridSpec spec{.bits = bits, .symmetric = true};
    const auto on_grid = [&](const std::vector<float>& v) { return quant::grids_of_values(Tensor::from<float>({std::ssize(v)}, v), {1, 1, std::ssize(v)}, spec).at(0).has_value(); };
    CHECK_FALSE(on_grid({0.3f, -0.17f}));
    CHECK_FALSE(on_grid({0.3f, -0.17f, 0.3f, -0.17f, 0.3f, -0.17f, 0.0f}));
    CHECK(on_grid({0.3f, -0.3f, 0.0f, 0.3f, 0.3f}));
    CHECK(on_grid({0.3f, -0.6f, 0.0f, 0.3f, 0.3f, -0.6f}));
  }
}

TEST_CASE("channels of zeros and nearly dead ones get valid grids, and keep their weights") {
  for (const Scheme scheme : {Scheme::tf, Scheme::tf_enhanced, Scheme::percentile, Scheme::mse, Scheme::moving_average, Scheme::entropy, Scheme::range_learning_tf_enhanced}) {
    CAPTURE(std::string(to_string(scheme)));
    Net net;
    std::vector<float> w = net.conv->weight.value.to_vector<float>();
    for (size_t i = 0; i < 27; ++i) w[i] = 0.0f, w[27 + i] *= 1e-5f;
    net.conv->weight.value = Tensor::from<float>(net.conv->weight.value.shape(), w);
    QuantSim sim(net.graph, {.scheme = scheme, .config = quant::default_config("per_channel_default")});
    calibrate(sim);
    const std::vector<Grid> grids = sim.find("conv.weight")->grids();
    REQUIRE(grids.size() == 4);
    for (const Grid& g : grids) CHECK((is_valid(g) && g.zero_point == 0));
    // Zeros take no more than the least step, or what the accumulator needs; AIMET gives entropy -1..1 for them.
    if (scheme != Scheme::entropy) CHECK(grids[0].scale <= 1.1e-6f);
    const std::vector<float> q = sim.find("conv.weight")->apply({}, Var(net.conv->weight.value)).dense().to_vector<float>();
    double error = 0.0, size = 0.0;
    for (size_t i = 0; i < 27; ++i) CHECK(q[i] == 0.0f);
    for (size_t i = 27; i < 54; ++i) error += std::pow(static_cast<double>(q[i]) - static_cast<double>(w[i]), 2.0), size += std::pow(static_cast<double>(w[i]), 2.0);
    CHECK(error < 0.01 * size);
    // They stay valid while training, and may come alive.
    nn::Sgd sgd({.learning_rate = 0.1f});
    nn::Trainer trainer(net.graph, sgd, {.base = 0.1f});
    for (int i = 0; i < 5; ++i) trainer.step(normal({4, 6, 6, 3}, 20 + i), labels(4));
    for (const Grid& g : sim.find("conv.weight")->grids()) CHECK(is_valid(g));
  }
}

TEST_CASE("every width from 2 to 16 bits, per tensor and per channel, and 32 passes through") {
  const Tensor x = normal({2, 6, 6, 3}, 5);
  Net net;
  const std::vector<float> exact = nn::infer(net.graph, x).to_vector<float>();
  for (const bool per_channel : {false, true}) {
    double before = INFINITY;
    for (int bits = 2; bits <= 16; ++bits) {
      CAPTURE(bits);
      QuantSim sim(net.graph,
                   {.scheme = Scheme::tf, .param_bits = bits, .output_bits = bits, .config = quant::default_config(per_channel ? "per_channel_default" : "tensorflow_default")});
      calibrate(sim, 5);
      const std::vector<float> y = nn::infer(net.graph, x).to_vector<float>();
      double error = 0.0;
      for (size_t i = 0; i < y.size(); ++i) error += std::pow(static_cast<double>(y[i]) - static_cast<double>(exact[i]), 2.0);
      CHECK(error > 0.0);
      CHECK(error < 1.5 * before);  // about four times less with each bit
      before = error;
      CHECK(sim.find("conv.weight")->grids().size() == (per_channel ? 4 : 1));
      for (const Grid& g : sim.find("conv.weight")->grids()) CHECK(g.qmax == (1 << (bits - 1)) - 1);
      CHECK(sim.find("relu")->grids().at(0).qmax == (1 << bits) - 1);
    }
    CHECK(before < 1e-4);
    QuantSim off(net.graph, {.param_bits = 32, .output_bits = 32});
    CHECK(off.placements().empty());
    CHECK(nn::infer(net.graph, x).to_vector<float>() == exact);
  }
  CHECK_THROWS_AS(QuantSim(net.graph, {.param_bits = 1}), Error);
  CHECK_THROWS_AS(QuantSim(net.graph, {.output_bits = 17}), Error);
}

TEST_CASE("bfloat16 rounds to nearest even") {
  CHECK(round_to_bfloat(1.0f) == 1.0f);
  CHECK(round_to_bfloat(1.00390625f) == 1.0f);       // tie: 1 + 2^-8, down to even
  CHECK(round_to_bfloat(1.01171875f) == 1.015625f);  // tie: 1 + 3 * 2^-8, up to even
  CHECK(round_to_bfloat(1.0040f) == 1.0078125f);
  CHECK(round_to_bfloat(-1.0040f) == -1.0078125f);
  CHECK(std::isinf(round_to_bfloat(3.4e38f)));
  CHECK(std::isnan(round_to_bfloat(std::nanf(""))));
}

TEST_CASE("a network in 16-bit floats: rounded values, straight gradients, nothing to learn, entries without a grid") {
  for (const NumberFormat format : {NumberFormat::float16, NumberFormat::bfloat16}) {
    Net net, plain;
    QuantSim sim(net.graph, {.param_bits = 16, .output_bits = 16, .param_format = format, .output_format = format});
    calibrate(sim);
    CHECK(sim.unseen().empty());
    const auto round = [&](float v) { return format == NumberFormat::float16 ? round_to_half(v) : round_to_bfloat(v); };
    bool all = true;
    net.graph.set_tap([&](nn::Value, const Var& before, const Var& after) {
      const std::vector<float> a = before.dense().to_vector<float>(), b = after.dense().to_vector<float>();
      for (size_t i = 0; i < a.size(); ++i) all = all && (b[i] == round(a[i]) || b[i] == a[i]);
    });
    const Tensor y = nn::infer(net.graph, normal({2, 6, 6, 3}, 8));
    net.graph.set_tap({});
    CHECK(all);
    for (const float v : y.to_vector<float>()) CHECK(v == round(v));
    const std::vector<float> exact = nn::infer(plain.graph, normal({2, 6, 6, 3}, 8)).to_vector<float>(), got = y.to_vector<float>();
    double error = 0.0;
    for (size_t i = 0; i < got.size(); ++i) error = std::max(error, std::fabs(static_cast<double>(got[i]) - static_cast<double>(exact[i])));
    CHECK(error > 0.0);
    CHECK(error < (format == NumberFormat::float16 ? 0.02 : 0.15));
    {
      Tape tape;
      tape.backward(softmax_cross_entropy(net.graph(normal({2, 6, 6, 3}, 8)), labels(2)));
    }
    CHECK(largest(net.conv->weight.grad) > 0.0);
    CHECK(net.graph.parameters().size() == 4);
    const quant::EncodingMap map = sim.encodings();
    CHECK(map.find("conv.weight")->is_float);
    CHECK(map.find("relu")->bits == 16);
    for (const char* version : {"0.6.1", "1.0.0", "2.0.0"}) sim.load_encodings(io::read_encodings(io::write_encodings(map, version), "memory"));
    CHECK_THROWS_AS(sim.find("relu")->grids(), Error);
    CHECK(sim.table().find(to_string(format)) != std::string::npos);
  }
  Net net;
  CHECK_THROWS_AS(QuantSim(net.graph, {.param_format = NumberFormat::float16}), Error);  // 8 bits
}

TEST_CASE("one layer in 16-bit floats by an override") {
  const std::string base(quant::default_config_text("tensorflow_default"));
  const std::string with = base.substr(0, base.rfind('}')) + R"(, "overrides": [{"name": "fc", "param_dtype": "float16", "output_dtype": "float"}]})";
  Net net;
  QuantSim sim(net.graph, {.config = quant::parse_config(with, "test")});
  calibrate(sim);
  CHECK(sim.find("fc.weight")->is_float());
  CHECK_FALSE(sim.find("conv.weight")->is_float());
  const std::string wrong = base.substr(0, base.rfind('}')) + R"(, "overrides": [{"name": "fc", "param_dtype": "float16", "param_bitwidth": 8}]})";
  CHECK_THROWS_AS(quant::parse_config(wrong, "test"), Error);
  const std::string unknown = base.substr(0, base.rfind('}')) + R"(, "overrides": [{"name": "fc", "param_dtype": "flot16"}]})";
  CHECK_THROWS_WITH_AS(quant::parse_config(unknown, "test"), doctest::Contains("float16"), Error);
}

TEST_CASE("int32 entries of biases are s_in * s_w, and are ignored when read back") {
  for (const bool per_channel : {false, true}) {
    Net net;
    QuantSim sim(net.graph, {.config = quant::default_config(per_channel ? "per_channel_default" : "tensorflow_default")});
    calibrate(sim);
    const quant::EncodingMap map = sim.encodings(true);
    const quant::Encoding* bias = map.find("conv.bias");
    REQUIRE(bias != nullptr);
    CHECK(sim.encodings().find("conv.bias") == nullptr);
    const std::vector<Grid>& w = sim.find("conv.weight")->grids();
    REQUIRE(bias->grids.size() == w.size());
    for (size_t k = 0; k < w.size(); ++k) CHECK(bias->grids[k].scale == sim.find("input")->grids()[0].scale * w[k].scale);
    CHECK(map.find("fc.bias")->grids[0].scale == sim.find("relu")->grids()[0].scale * sim.find("fc.weight")->grids()[0].scale);  // through Flatten
    for (const char* version : {"0.6.1", "1.0.0", "2.0.0"}) {
      const quant::EncodingMap back = io::read_encodings(io::write_encodings(map, version), "memory");
      REQUIRE(back.find("conv.bias") != nullptr);
      CHECK(back.find("conv.bias")->grids == bias->grids);
      sim.load_encodings(back);
    }
    quant::EncodingMap strange = map;
    strange.params.back().name = "other.bias";
    CHECK_THROWS_WITH_AS(sim.load_encodings(strange), doctest::Contains("other.bias"), Error);
  }
}

TEST_CASE("a weight scale is enlarged where the bias would overflow int32, also before a ReLU") {
  Net net;
  std::vector<float> w(net.conv->weight.value.to_vector<float>());
  for (size_t i = 0; i < 27; ++i) w[i] *= 1e-9f;  // channel 0 nearly dead, with a large bias
  net.conv->weight.value = Tensor::from<float>(net.conv->weight.value.shape(), w);
  net.conv->bias.value = Tensor::from<float>({4}, std::vector<float>{50.0f, 1.0f, 1.0f, 1.0f});
  for (const Scheme scheme : {Scheme::tf, Scheme::range_learning_tf}) {
    QuantSim raw(net.graph, {.scheme = scheme, .param_bits = 16, .config = quant::default_config("per_channel_default"), .protect_accumulators = false});
    calibrate(raw);
    const std::vector<Grid> before = raw.find("conv.weight")->grids();
    const double s_in = static_cast<double>(raw.find("input")->grids()[0].scale);
    CHECK(50.0 / (s_in * static_cast<double>(before[0].scale)) > 2147483647.0);  // the case is one
    Net again;
    again.conv->weight.value = net.conv->weight.value;
    again.conv->bias.value = net.conv->bias.value;
    QuantSim sim(again.graph, {.scheme = scheme, .param_bits = 16, .config = quant::default_config("per_channel_default")});
    calibrate(sim);
    const std::vector<Grid>& after = sim.find("conv.weight")->grids();
    const double s_out = static_cast<double>(sim.find("relu")->grids()[0].scale), s_b = s_in * static_cast<double>(after[0].scale);
    CHECK(50.0 / s_b <= 2147483648.0 - 32768.0);
    CHECK(s_b / s_out >= std::exp2(-23.5));
    for (size_t k = 1; k < 4; ++k) CHECK(after[k] == before[k]);
    for (const quant::IntegerLayer& l : quant::integer_layers(again.graph)) {
      const std::vector<double> least = quant::least_weight_scales(l);
      for (size_t k = 0; k < least.size(); ++k) CHECK(least[k] <= static_cast<double>(l.weight_quantizer->grids()[k].scale) * 1.001);
    }
    // It stays so while training.
    nn::Sgd sgd({.learning_rate = 0.01f});
    nn::Trainer trainer(again.graph, sgd, {.base = 0.01f});
    for (int i = 0; i < 2; ++i) trainer.step(normal({4, 6, 6, 3}, 20 + i), labels(4));
    CHECK(static_cast<double>(sim.find("conv.weight")->grids()[0].scale) >= 0.999 * static_cast<double>(after[0].scale));
  }
}

TEST_CASE("AIMET's range rule takes its grid from the learned range") {
  quant::QuantizerSpec spec;
  spec.rule = quant::RangeRule::aimet;
  quant::Quantizer q("q", spec);
  q.observe();
  q.apply({}, Var(Tensor::from<float>({2}, std::vector<float>{-1.0f, 3.0f})));
  REQUIRE(q.finish_observing());
  nn::Visitor v;
  std::vector<nn::Parameter*> bounds;
  v.parameter = [&](nn::Parameter& p) { bounds.push_back(&p); };
  q.visit("", v);
  REQUIRE(bounds.size() == 2);
  const auto set = [&](float lo, float hi) {
    bounds[0]->value = Tensor::from<float>({1}, std::vector<float>{lo});
    bounds[1]->value = Tensor::from<float>({1}, std::vector<float>{hi});
    return q.grids().at(0);
  };
  CHECK(set(-1.0f, 4.0f) == grid_from_range({-1.0, 4.0}, spec.grid));
  CHECK(set(0.5f, 2.5f) == grid_from_range({0.0, 2.0}, spec.grid));  // moved off zero: the width stays
  CHECK(bounds[0]->value.item() == 0.5f);                            // the bounds are free
  CHECK(set(-2.5f, -0.5f) == grid_from_range({-2.0, 0.0}, spec.grid));
  CHECK(set(1.0f, -1.0f).scale > 0.0f);  // crossed: the least width
  CHECK(is_valid(set(1.0f, -1.0f)));
}
