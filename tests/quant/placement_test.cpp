// Where quantizers go: the built-in networks under the shipped configs, and every rule by itself.
#include <set>

#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

namespace {

using Names = std::set<std::string>;

std::string config(const std::string& op_types, const std::string& supergroups = "", const std::string& more = "") {
  return R"({"defaults": {"ops": {"is_output_quantized": "True"}, "params": {"is_quantized": "True", "is_symmetric": "True"}}, "params": {"bias": {"is_quantized": "False"}}, "op_type": {)" + op_types +
         R"(}, "supergroups": [)" + supergroups + R"(], "model_input": {"is_input_quantized": "True"}, "model_output": {})" + more + "}";
}

Names activations(Graph& g, const std::string& json) {
  QuantSim sim(g, {.config = parse_config(json, "test")});
  Names n;
  for (const Placement& p : sim.placements()) {
    if (p.kind == Placement::Kind::activation) n.insert(p.name);
  }
  return n;
}

Conv2d::Options conv(int64_t in, int64_t out, int64_t groups = 1) { return {.in = in, .out = out, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}, .groups = groups}, .bias = true}; }

// x -> conv -> relu -> {left: conv, right: sigmoid} -> concat -> pool -> flatten -> fc
Graph branching() {
  Graph g;
  Value x = g.input("x", {8, 8, 4});
  const Value c = g.add<Conv2d>("conv", {x}, conv(4, 4));
  const Value r = g.add<Activation>("relu", {c}, relu_op());
  const Value left = g.add<Conv2d>("left", {r}, conv(4, 4)), right = g.add<Conv2d>("right", {r}, conv(4, 4));
  x = g.add<Concat>("concat", {left, right}, 3);
  x = g.add<MaxPool>("maxpool", {x}, PoolSpec{.kernel = {2, 2}, .stride = {2, 2}});
  x = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("pool", {x})});
  g.output(g.add<Dense>("fc", {x}, Dense::Options{.in = 8, .out = 3}));
  initialize(g, {.seed = 1});
  return g;
}

}  // namespace

TEST_CASE("placement_counts_of_the_built_in_networks") {
  // By hand, ResNet-50 v1: input, stem, max pool, 16 blocks of 4, 4 shortcuts, dense, softmax. The two other configs pass the grid through the max pool and
  // quantize the global pool.
  struct Row {
    const char* arch;
    int weight;
    std::map<std::string, int> activation;
  };
  for (const Row& r : {Row{"resnet50-v1", 54, {{"tensorflow_default", 73}, {"per_channel_default", 73}, {"integer", 73}}},
                       Row{"resnet50-v1.5", 54, {{"tensorflow_default", 72}, {"per_channel_default", 72}, {"integer", 72}}},
                       Row{"resnet20-cifar10", 20, {{"tensorflow_default", 30}, {"per_channel_default", 31}, {"integer", 31}}}}) {
    Graph g = models::make(r.arch, {.classes = 10, .image_size = 32});
    randomize(g, 1);
    for (const bool folded : {false, true}) {
      if (folded) fold_batch_norms(g);
      for (const auto& row : r.activation) {
        const auto& name = row.first;
        const auto& activations = row.second;
        INFO(r.arch << " " << name << " folded " << folded);
        const QuantSim sim(g, {.config = default_config(name)});
        const QuantizerCounts n = sim.counts();
        CHECK(n.weight == r.weight);
        CHECK(n.bias == 0);
        CHECK(n.activation == activations);  // a batch norm takes over its convolution's place: folding changes no count
        for (const Placement& p : sim.placements()) {
          if (p.kind == Placement::Kind::weight) CHECK(p.quantizer->spec().channel_axis == (name == "tensorflow_default" ? -1 : 0));
        }
      }
    }
  }
}

TEST_CASE("placement_depthwise_and_relu6_share_one") {
  Graph g;
  Value x = g.input("x", {8, 8, 4});
  x = g.add<Conv2d>("dw", {x}, conv(4, 4, 4));
  x = g.add<BatchNorm>("bn", {x}, BatchNorm::Options{.channels = 4});
  g.output(g.add<Activation>("relu6", {x}, clip_op(0.0f, 6.0f)));
  QuantSim sim(g);
  CHECK(sim.counts().activation == 2);
  REQUIRE(sim.find("relu6"));
  CHECK(sim.find("relu6")->spec().min_bound == 0.0);
  CHECK(sim.find("relu6")->spec().max_bound == 6.0);
  CHECK(sim.find("dw") == nullptr);
  CHECK(sim.find("dw.weight"));
}

TEST_CASE("placement_supergroups_end_at_branches") {
  Graph g = branching();
  CHECK(activations(g, config("")) == Names{"x", "conv", "relu", "left", "right", "concat", "maxpool", "pool", "fc"});
  CHECK(activations(g, config("", R"({"op_list": ["Conv", "Relu"]})")) == Names{"x", "relu", "left", "right", "concat", "maxpool", "pool", "fc"});
  // relu is read twice: the chain ends before it goes on.
  CHECK(activations(g, config("", R"({"op_list": ["Relu", "Conv"]})")).contains("relu"));
  CHECK(activations(g, config("", R"({"op_list": ["Conv", "Relu", "Conv"]})")).contains("conv"));
  CHECK(QuantSim(g, {.config = parse_config(config(""), "test")}).counts().weight == 4);
}

TEST_CASE("placement_inputs_outputs_and_types") {
  Graph g = branching();
  const std::string off = R"("Conv": {"is_output_quantized": "False"}, "Relu": {"is_output_quantized": "False"}, "Concat": {"is_output_quantized": "False"}, "MaxPool": {"is_output_quantized": "False"},
    "GlobalAveragePool": {"is_output_quantized": "False"}, "Flatten": {"is_output_quantized": "False"})";
  CHECK(activations(g, config(off + R"(, "Gemm": {"is_output_quantized": "False"})")) == Names{"x"});
  CHECK(activations(g, config(off + R"(, "Gemm": {"is_output_quantized": "False", "is_input_quantized": "True"})")) == Names{"x", "flatten"});
  // The input of the pool lies on the max pool's grid already when that passes one on.
  CHECK(activations(g, config(R"("GlobalAveragePool": {"is_input_quantized": "True"})")) == Names{"x", "conv", "relu", "left", "right", "concat", "maxpool", "pool", "fc"});
  std::string json = config(off + R"(, "Gemm": {"is_output_quantized": "False"})");
  json.replace(json.find(R"("model_output": {})"), 18, R"("model_output": {"is_output_quantized": "True"})");
  CHECK(activations(g, json) == Names{"x", "fc"});
}

TEST_CASE("placement_overrides_and_constraints") {
  Graph g = branching();
  QuantSim sim(g, {.config = parse_config(config(R"("Concat": {"encoding_constraints": {"min": -4.0, "max": 4.0}})", "",
                                                 R"(, "overrides": [{"name": "l*t", "param_bitwidth": 4, "output_bitwidth": 16, "is_param_symmetric": false}, {"name": "right", "is_quantized": false},
                                                   {"name": "fc", "is_frozen": true, "per_channel_quantization": true}])"),
                                          "test")});
  CHECK(sim.find("left.weight")->spec().grid.bits == 4);
  CHECK_FALSE(sim.find("left.weight")->spec().grid.symmetric);
  CHECK(sim.find("left")->spec().grid.bits == 16);
  CHECK(sim.find("conv")->spec().grid.bits == 8);
  CHECK(sim.find("right") == nullptr);
  CHECK(sim.find("right.weight") == nullptr);
  CHECK(sim.find("fc.weight")->spec().channel_axis == 0);
  sim.compute_encodings([&] { g(random_tensor({2, 8, 8, 4}, 1)); });
  CHECK(sim.find("fc")->state() == QuantizerState::frozen);
  CHECK(sim.find("fc.weight")->grids().size() == 3);
  CHECK(sim.find("conv")->state() == QuantizerState::learning);
  CHECK(sim.find("concat")->ranges()[0].min == doctest::Approx(-4.0).epsilon(0.01));
  CHECK(sim.find("concat")->ranges()[0].max == doctest::Approx(4.0).epsilon(0.01));
}

TEST_CASE("placement_overrides_switch_on_and_off_and_match_something") {
  Graph g = branching();
  const auto with = [&](const std::string& overrides) { return config(R"("Gemm": {"is_output_quantized": "False"}, "MaxPool": {"is_output_quantized": "False"})", R"({"op_list": ["Conv", "Relu"]})", R"(, "overrides": [)" + overrides + "]"); };
  CHECK(activations(g, with("")) == Names{"x", "relu", "left", "right", "concat", "pool"});
  CHECK(activations(g, with(R"({"name": "fc", "is_output_quantized": true})")).contains("fc"));
  CHECK(activations(g, with(R"({"name": "maxp*", "is_quantized": true})")).contains("maxpool"));
  CHECK_FALSE(activations(g, with(R"({"name": "conv", "is_quantized": true})")).contains("conv"));  // inside conv + relu
  CHECK_FALSE(activations(g, with(R"({"name": "pool", "is_output_quantized": false})")).contains("pool"));
  CHECK_FALSE(activations(g, with(R"({"name": "x", "is_output_quantized": false})")).contains("x"));
  CHECK_FALSE(activations(g, with(R"({"name": "conv", "is_input_quantized": false})")).contains("x"));
  CHECK(activations(g, with(R"({"name": "pool", "is_output_quantized": false}, {"name": "fc", "is_input_quantized": true})")).contains("flatten"));
  const std::string m = message_of([&] { activations(g, with(R"({"name": "left"}, {"name": "rihgt", "param_bitwidth": 4})")); });
  CHECK_MENTIONS(m, "/overrides/1/name");
  CHECK_MENTIONS(m, "\"rihgt\" matches no layer");
  CHECK_MENTIONS(m, "nearest: right");
}

TEST_CASE("placement_ends_of_the_network_have_their_own_width") {
  // Two inputs, one behind an operator without weights and one that joins later; two outputs, one behind its layer's ReLU.
  Graph g;
  const Value x = g.input("x", {8, 8, 4}), side = g.input("side", {8, 8, 4});
  const Value scaled = g.add<Activation>("scaled", {x}, Pointwise{PointwiseKind::sigmoid});
  const Value r = g.add<Activation>("relu", {g.add<Conv2d>("stem", {scaled}, conv(4, 4))}, relu_op());
  const Value joined = g.add<Binary>("joined", {r, side}, BinaryOp::add);
  const Value inner = g.add<Conv2d>("inner", {joined}, conv(4, 4));
  const Value pooled = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("pool", {inner})});
  g.output(g.add<Dense>("fc", {pooled}, Dense::Options{.in = 4, .out = 3}));
  g.output(g.add<Activation>("map", {g.add<Conv2d>("head", {r}, conv(4, 4))}, relu_op()));
  initialize(g, {.seed = 1});
  const std::string rules = config("", R"({"op_list": ["Conv", "Relu"]})");
  const auto bits = [&](const QuantSimOptions& options) {
    QuantSim sim(g, options);
    std::string b;
    for (const Placement& p : sim.placements()) b += p.name + text(' ', p.quantizer->spec().grid.bits, ", ");
    return b;
  };
  QuantSimOptions options{.param_bits = 4, .output_bits = 4, .config = parse_config(rules, "test")};
  CHECK(bits(options).find(" 8,") == std::string::npos);
  options.first_last_bits = 8;
  CHECK(bits(options) == "x 8, side 8, scaled 8, stem.weight 8, relu 4, joined 4, inner.weight 4, inner 4, pool 4, fc.weight 8, fc 8, head.weight 8, map 8, ");
  options.first_last_bits = 32;
  CHECK(bits(options) == "relu 4, joined 4, inner.weight 4, inner 4, pool 4, ");
  // A layer's own setting wins.
  options.first_last_bits = 8;
  options.config = parse_config(config("", R"({"op_list": ["Conv", "Relu"]})", R"(, "overrides": [{"name": "stem", "param_bitwidth": 6}, {"name": "map", "output_bitwidth": 5}])"), "test");
  CHECK(bits(options) == "x 8, side 8, scaled 8, stem.weight 6, relu 4, joined 4, inner.weight 4, inner 4, pool 4, fc.weight 8, fc 8, head.weight 8, map 5, ");
  CHECK_MENTIONS(message_of([&] { QuantSim(g, {.first_last_bits = 1}); }), "first_last_bits: 1 bits");
}

TEST_CASE("placement_ties_what_a_concat_joins") {
  Graph g = branching();
  QuantSim sim(g, {.scheme = Scheme::tf, .config = default_config("integer")});
  CHECK(sim.find("left") == sim.find("concat"));
  CHECK(sim.find("right") == sim.find("concat"));
  CHECK(sim.find("maxpool") == nullptr);
  sim.compute_encodings([&] { g(random_tensor({2, 8, 8, 4}, 1)); });
  CHECK(sim.find("left")->grids() == sim.find("concat")->grids());
}

TEST_CASE("placement_ties_concats_that_share_values_and_leaves_out_what_differs") {
  // a -> b -> c, each a convolution and a ReLU; cat1 joins a and b. nested: cat2 joins cat1 and c. Else a dense block: cat2 joins a, b and c.
  const auto network = [](bool nested) {
    Graph g;
    const auto layer = [&](const std::string& name, Value v, int64_t in) {
      const Value y = g.add<Conv2d>(name + ".conv", {v}, conv(in, 4));
      return g.add<Activation>(name, {y}, relu_op());
    };
    const Value a = layer("a", g.input("x", {8, 8, 4}), 4), b = layer("b", a, 4), cat1 = g.add<Concat>("cat1", {a, b}, 3), c = layer("c", cat1, 8);
    const Value cat2 = nested ? g.add<Concat>("cat2", {cat1, c}, 3) : g.add<Concat>("cat2", {a, b, c}, 3);
    g.output(layer("d", cat2, 12));
    initialize(g, {.seed = 1});
    return g;
  };
  for (const bool nested : {true, false}) {
    CAPTURE(nested);
    Graph g = network(nested);
    QuantSim sim(g, {.scheme = Scheme::tf, .config = default_config("per_channel_default")});
    for (const char* name : {"a", "b", "c", "cat1", "cat2"}) {
      REQUIRE(sim.find(name));
      CHECK(sim.find(name) == sim.find("cat2"));
      CHECK(g.value(g.find_value(name)).transform.get() == sim.find("cat2"));
    }
    CHECK_FALSE(sim.find("d") == sim.find("cat2"));
    sim.compute_encodings([&] { g(random_tensor({2, 8, 8, 4}, 1)); });
    CHECK(sim.encodings().find("a")->grids == sim.encodings().find("cat2")->grids);
  }
  for (const char* own : {R"("output_bitwidth": 4)", R"("is_frozen": true)", R"("scheme": "mse")", R"("is_output_symmetric": true)"}) {
    CAPTURE(own);
    Graph g = network(true);
    QuantConfig c = default_config("per_channel_default");
    c.overrides = parse_config(config("", "", std::string(R"(, "overrides": [{"name": "b", )") + own + "}]"), "test").overrides;
    QuantSim sim(g, {.scheme = Scheme::tf, .config = c});
    CHECK_FALSE(sim.find("b") == sim.find("cat1"));
    CHECK(sim.find("b")->name() == "b");
    CHECK(sim.find("a") == sim.find("cat2"));
    CHECK_MENTIONS(message_of([&] { sim.tie("a", "b"); }), "differ in bits, symmetry");
  }
}

TEST_CASE("placement_refuses_widths") {
  Graph g = branching();
  for (const int bits : {0, 1, 17, 31, 33, -8}) {
    CHECK_MENTIONS(message_of([&] { QuantSim(g, {.param_bits = bits}); }), "param_bits");
    CHECK_MENTIONS(message_of([&] { QuantSim(g, {.output_bits = bits}); }), "output_bits");
  }
  CHECK(QuantSim(g, {.param_bits = 32}).counts().weight == 0);
  CHECK(QuantSim(g, {.output_bits = 32}).counts().activation == 0);
  for (const auto& n : g.nodes()) CHECK(g.value(n.output).transform == nullptr);  // a sim that ends takes its quantizers along
}
