// The Plan against the same Graph run node by node: float, folded, quantized (multiplied as integers and as floats), and training steps.
#include "detent/core/parallel.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/plan.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::test;

namespace {

using Execution = Graph::Execution;

// Three times its first input; nothing lies behind it that a kernel could take for a parameter.
class Threefold final : public Module {
 public:
  explicit Threefold(std::string op) : op_(std::move(op)) {}
  OpDesc describe() const override { return {op_, {}}; }
  Shape infer(std::span<const Shape> in) const override { return in[0]; }
  Var forward(const Context&, std::span<const Var> in) override { return affine(in[0], 3.0f, 0.0f); }

 private:
  std::string op_;
};

Tensor infer_as(Graph& g, Execution e, const Tensor& x) {
  g.set_execution(e);
  return infer(g, x);
}

StepResult step_as(Graph& g, Execution e, const Tensor& x, const Tensor& labels, Mode mode) {
  g.set_execution(e);
  return run_step_of(g, x, labels, mode);
}

// The largest difference of any gradient, relative to the largest magnitude in its tensor (or to `floor` of the largest of all, if greater).
double worst_gradient(const StepResult& a, const StepResult& b, bool ranges, double floor, std::string& where) {
  double overall = 0.0, worst = 0.0;
  const auto is_range = [](const std::string& n) { return n.ends_with(".min") || n.ends_with(".max"); };
  const auto magnitude = [](const Tensor& t) {
    double m = 0.0;
    for (const float v : t.to_vector<float>()) m = std::max(m, std::abs(static_cast<double>(v)));
    return m;
  };
  for (const auto& [name, g] : b.gradients) {
    if (is_range(name) == ranges) overall = std::max(overall, magnitude(g));
  }
  REQUIRE(a.gradients.size() == b.gradients.size());
  for (const auto& [name, g] : b.gradients) {
    if (is_range(name) != ranges) continue;
    const Tensor& h = a.gradients.at(name);
    const double m = magnitude(g), d = relative_difference(h, g) * std::max(m, 1e-30) / std::max({m, floor * overall, 1e-30});
    if (!(d <= worst)) worst = d, where = name;
  }
  return worst;
}

// Learning and frozen.
void compare_quantized(Graph& g, quant::QuantSim& sim, const Tensor& x, const Tensor& labels) {
  std::string where;
  for (const bool learning : {true, false}) {
    INFO((learning ? "learning" : "frozen"));
    if (!learning) sim.freeze();
    CHECK(same_bits(infer_as(g, Execution::planned, x), infer_as(g, Execution::node_by_node, x)));
    const StepResult a = step_as(g, Execution::planned, x, labels, Mode::automatic), b = step_as(g, Execution::node_by_node, x, labels, Mode::automatic);
    CHECK(a.loss == b.loss);
    const double d = worst_gradient(a, b, false, 1e-3, where);
    CHECK_MESSAGE(d < 1e-4, "gradient of " << where << " differs by " << d);
    if (learning) {
      // Residuals are kept in steps of 1/252: each term of the sum is off by up to 1/504 of its gradient.
      // Of the scores' gradients the sum is at most 2, which bounds the error; deeper values have enough terms for it to average out.
      StepResult deeper_a = a, deeper_b = b;
      for (const char* end : {".min", ".max"}) {
        const std::string name = g.value(g.scores()).name + end;
        const double error = std::abs(static_cast<double>(a.gradients.at(name).item()) - static_cast<double>(b.gradients.at(name).item()));
        CHECK_MESSAGE(error <= 2.0 / 504.0 / 255.0, name << " differs by " << error);
        deeper_a.gradients.erase(name);
        deeper_b.gradients.erase(name);
      }
      const double r = worst_gradient(deeper_a, deeper_b, true, 0.05, where);
      CHECK_MESSAGE(r < 0.05, "range gradient of " << where << " differs by " << r);
    }
  }
}

void compare_networks(Graph g, const Shape& input, int64_t classes) {
  randomize(g, 3);
  const Tensor x = random_tensor(input, 8), labels = class_labels(input[0], classes);

  CHECK(relative_difference(infer_as(g, Execution::planned, x), infer_as(g, Execution::node_by_node, x)) < 1e-4);

  std::string where;
  {
    const StepResult a = step_as(g, Execution::planned, x, labels, Mode::automatic), b = step_as(g, Execution::node_by_node, x, labels, Mode::automatic);
    // The Plan sums batch statistics in another order. What rounding does to a deep network that normalizes a few random images is measured: an input that is
    // off by its own rounding.
    Tensor near = x.clone();
    Rng rng(17, 0);
    for (int64_t i = 0; i < near.elements(); ++i) near.data<float>()[i] *= 1.0f + 1.2e-7f * (rng.uniform(0.0f, 1.0f) < 0.5f ? -1.0f : 1.0f);
    const StepResult c = step_as(g, Execution::node_by_node, near, labels, Mode::automatic);
    const double sensitivity = worst_gradient(c, b, false, 1e-3, where), d = worst_gradient(a, b, false, 1e-3, where);
    CHECK_MESSAGE(std::abs(a.loss - b.loss) <= 1e-5 * b.loss + 10.0 * std::abs(c.loss - b.loss), "loss " << a.loss << ", " << b.loss << " node by node, " << c.loss << " nearby");
    CHECK_MESSAGE(d < std::min(1e-4 + 5.0 * sensitivity, 0.5), "float gradient of " << where << " differs by " << d << ", " << sensitivity << " nearby");
  }
  fold_batch_norms(g);
  CHECK(same_bits(infer_as(g, Execution::planned, x), infer_as(g, Execution::node_by_node, x)));

  quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf});
  sim.compute_encodings([&] { g(x); });
  for (const Products products : {Products::integers, Products::floats}) {
    g.set_products(products);
    sim.learn();
    compare_quantized(g, sim, x, labels);
  }
}

}  // namespace

TEST_CASE("plan_equals_graph_small") { compare_networks(small_network(), {3, 8, 8, 3}, 4); }
TEST_CASE("plan_equals_graph_resnet20") { compare_networks(models::resnet20_cifar10({.classes = 10, .image_size = 16}), {2, 16, 16, 3}, 10); }
TEST_CASE("plan_equals_graph_resnet18") { compare_networks(models::resnet18({.classes = 10, .image_size = 48}), {4, 48, 48, 3}, 10); }
TEST_CASE("plan_equals_graph_resnet34") { compare_networks(models::resnet34({.classes = 10, .image_size = 33}), {3, 33, 33, 3}, 10); }
TEST_CASE("plan_equals_graph_resnet50_v15") { compare_networks(models::resnet50({.classes = 10, .image_size = 33}), {3, 33, 33, 3}, 10); }
TEST_CASE("plan_equals_graph_resnet50_v1") { compare_networks(models::resnet50_v1({.classes = 10, .image_size = 33}), {3, 33, 33, 3}, 10); }

TEST_CASE("plan_equals_graph_mobilenet_v2") { compare_networks(models::mobilenet_v2_cifar10({.classes = 10, .image_size = 33}), {3, 33, 33, 3}, 10); }

TEST_CASE("plan_equals_graph_in_the_range_gradient_behind_a_clip_between_two_codes") {
  for (const auto& row : {std::pair{-1.0f, 1.0f}, {-0.7f, 2.1f}, {0.0f, 6.0f}, {-1.0f, 6.0f}, {-0.7f, kInfinity}}) {
    const float lo = row.first, hi = row.second;
    for (const int bits : {8, 4}) {
      Graph g;
      const Value x = g.input("x", {8, 8, 3}), y = g.add<Conv2d>("conv", {x}, Conv2d::Options{.in = 3, .out = 4, .kernel_h = 3, .kernel_w = 3, .bias = true});
      g.output(g.add<Activation>("clip", {y}, clip_op(lo, hi)));
      initialize(g, {.seed = 1});
      quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf, .output_bits = bits});
      const Tensor images = random_tensor({4, 8, 8, 3}, 5, 3.0f);
      sim.compute_encodings([&] { g(images); });
      const auto range_gradient = [&](Execution e, Products p) {
        g.set_execution(e);
        g.set_products(p);
        Tape tape;
        const Var scores = g(images);
        tape.backward(scores, Tensor::full(scores.shape(), 1.0f));
        double found = 0.0;
        for (Parameter* q : g.parameters()) {
          if (q->name == "clip.max") found = static_cast<double>(q->grad.item());
          q->grad = Tensor();
        }
        return found;
      };
      const double wanted = range_gradient(Execution::node_by_node, Products::floats);
      for (const Products p : {Products::floats, Products::integers}) {
        const double got = range_gradient(Execution::planned, p);
        CHECK_MESSAGE(std::abs(got - wanted) <= 0.03 * std::abs(wanted) + 2.0 / 255.0, lo << ".." << hi << ", " << bits << " bits: " << got << ", node by node " << wanted);
      }
    }
  }
}

TEST_CASE("plan_equals_graph_where_a_batch_norm_follows_a_quantized_bias") {
  for (const bool quantized : {true, false}) {
    Graph g = small_network();
    randomize(g, 3);
    auto& conv2 = static_cast<Conv2d&>(*g.find("conv2")->module);
    conv2.bias.value = random_tensor({8}, 4, 0.3f);
    conv2.bias.value.data<float>()[3] = 2.0f;
    quant::QuantConfig config = quant::default_config("tensorflow_default");
    if (quantized) config.params["bias"] = {true, true};
    quant::QuantSim sim(g, {.scheme = quant::Scheme::tf, .param_bits = 3, .output_bits = quantized ? 32 : 8, .config = config});
    const Tensor x = random_tensor({3, 8, 8, 3}, 8);
    sim.compute_encodings([&] { g(x); });
    REQUIRE((sim.counts().bias > 0) == quantized);
    g.set_products(Products::floats);
    const Tensor planned = infer_as(g, Execution::planned, x), apart = infer_as(g, Execution::node_by_node, x);
    CHECK(relative_difference(planned, apart) < (quantized ? 1e-5 : 1e-2));  // rounding of the batch norm may move a code
  }
}

TEST_CASE("plan_equals_graph_every_value_on_a_grid") {
  Graph g = small_network();
  randomize(g, 3);
  fold_batch_norms(g);
  const Tensor x = random_tensor({3, 8, 8, 3}, 8), labels = class_labels(3, 4);
  quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf, .config = quant::default_config("integer")});
  sim.compute_encodings([&] { g(x); });
  REQUIRE(sim.find("pool"));
  for (const Products products : {Products::integers, Products::floats}) {
    g.set_products(products);
    sim.learn();
    compare_quantized(g, sim, x, labels);
  }
}

TEST_CASE("integers_train_as_floats_do") {
  // A float sum may round past a tie that the integer one does not reach, and a gradient then passes or not: the deeper the network, the more follows from it.
  const auto compare = [](Graph g, const Shape& input, int64_t classes, double weights, double ranges) {
    randomize(g, 3);
    fold_batch_norms(g);
    const Tensor x = random_tensor(input, 8), labels = class_labels(input[0], classes);
    quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf});
    sim.compute_encodings([&] { g(x); });
    const StepResult integers = step_as(g, Execution::planned, x, labels, Mode::automatic);
    g.set_products(Products::floats);
    const StepResult floats = step_as(g, Execution::node_by_node, x, labels, Mode::automatic);
    std::string where;
    CHECK(integers.loss == doctest::Approx(floats.loss).epsilon(1e-3));
    const double d = worst_gradient(integers, floats, false, 0.05, where);
    CHECK_MESSAGE(d < weights, "gradient of " << where << " differs by " << d);
    const double r = worst_gradient(integers, floats, true, 0.05, where);
    CHECK_MESSAGE(r < ranges, "range gradient of " << where << " differs by " << r);
  };
  compare(small_network(), {3, 8, 8, 3}, 4, 1e-4, 0.01);
  compare(models::resnet20_cifar10({.classes = 10, .image_size = 16}), {2, 16, 16, 3}, 10, 0.05, 0.1);
}

TEST_CASE("bf16_gradients_of_a_quantized_network") {
  Backend& cpu = backend(Device{});
  Graph g = models::resnet20_cifar10({.classes = 10, .image_size = 16});
  randomize(g, 3);
  fold_batch_norms(g);
  const Tensor x = random_tensor({4, 16, 16, 3}, 8), labels = class_labels(4, 10);
  quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf, .config = quant::default_config("integer")});
  sim.compute_encodings([&] { g(x); });
  const StepResult full = step_as(g, Execution::planned, x, labels, Mode::automatic);
  cpu.set_precision(Precision::bf16);
  const int before = num_threads();
  std::vector<StepResult> rounded;
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    rounded.push_back(step_as(g, Execution::planned, x, labels, Mode::automatic));
  }
  set_num_threads(before);
  cpu.set_precision(Precision::f32);
  // Forward, all values are integers: nothing is rounded.
  CHECK(rounded[0].loss == full.loss);
  for (const auto& entry : rounded[0].gradients) CHECK_MESSAGE(same_bits(entry.second, rounded[1].gradients.at(entry.first)), entry.first);
  std::string where;
  const double d = worst_gradient(rounded[0], full, false, 1e-3, where);
  CHECK_MESSAGE(d > 1e-5, "nothing is rounded");
  CHECK_MESSAGE(d < 0.03, "gradient of " << where << " differs by " << d);
}

TEST_CASE("plan_fuses_the_chains") {
  const auto shape_of = [](const Graph& g) {
    std::vector<std::string> steps;
    for (const PlanStep& s : compile_plan(g)) steps.push_back(text(g.nodes()[static_cast<size_t>(s.head)].name, s.norm >= 0 ? "+norm" : "", s.addend.id >= 0 ? "+add" : "", s.clamp_min == 0.0f ? "+relu" : "", "->", g.value(s.output).name));
    return steps;
  };
  Graph g = small_network();
  randomize(g, 1);
  CHECK(shape_of(g) == std::vector<std::string>{"conv1+norm+relu->relu1", "conv2+norm+add+relu->relu2", "pool->pool", "flatten->flatten", "fc->fc"});
  // A value with a transform of its own is not computed inside a chain.
  fold_batch_norms(g);
  quant::QuantSim sim(g, {.config = quant::parse_config(R"({"defaults": {"ops": {"is_output_quantized": "True"}, "params": {}}, "params": {}, "op_type": {}, "supergroups": [],
    "model_input": {}, "model_output": {}})", "test")});
  CHECK(shape_of(g) == std::vector<std::string>{"conv1->conv1", "relu1->relu1", "conv2->conv2", "add->add", "relu2->relu2", "pool->pool", "flatten->flatten", "fc->fc"});
}

TEST_CASE("planned_quantized_steps_yield_codes") {
  Graph g = small_network();
  randomize(g, 1);
  fold_batch_norms(g);
  quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf});
  const Tensor x = random_tensor({2, 8, 8, 3}, 2);
  sim.compute_encodings([&] { g(x); });
  for (const bool learning : {true, false}) {
    if (!learning) sim.freeze();
    std::map<int, Var> vars;
    vars[g.inputs()[0].id] = g.value(g.inputs()[0]).transform->apply({}, Var(x));
    for (const PlanStep& s : compile_plan(g)) {
      std::vector<Var> in;
      for (const Value v : step_inputs(g, s)) in.push_back(vars.at(v.id));
      const Var y = run_step(g, s, {}, in);
      const std::string name = g.value(s.output).name;
      // Under AIMET's default rules the global pool and flatten stay in float.
      const bool wanted = name != "pool" && name != "flatten";
      CHECK_MESSAGE((y.coded() != nullptr) == wanted, name);
      if (y.coded()) {
        CHECK(y.coded()->grid == sim.find(name)->grids()[0]);
        CHECK(y.coded()->codes.dtype() == DType::u8);
      }
      vars[s.output.id] = y;
    }
  }
}

TEST_CASE("a_grid_of_its_own_behind_codes_that_only_moved_is_applied") {
  Graph g;
  const Value x = g.input("input", {4, 4, 3});
  const Value r = g.add<Activation>("relu", {g.add<Conv2d>("conv", {x}, Conv2d::Options{.in = 3, .out = 5})}, relu_op());
  PoolSpec spec;
  spec.kernel[0] = spec.kernel[1] = 2;
  const Value p = g.add<MaxPool>("pool", {r}, spec);
  g.output(g.add<Dense>("fc", {g.add<Flatten>("flatten", {p})}, Dense::Options{.in = 45, .out = 3}));
  randomize(g, 1);
  quant::QuantSim sim(g);  // AIMET's default rules
  const Tensor images = random_tensor({2, 4, 4, 3}, 2);
  sim.compute_encodings([&] { g(images); });
  REQUIRE(sim.find("pool"));
  sim.find("pool")->set_ranges({{0.0, 0.25}});
  const Tensor planned = infer_as(g, Execution::planned, images);
  CHECK(same_bits(planned, infer_as(g, Execution::node_by_node, images)));
  CHECK(same_bits(planned, infer_as(g, Execution::integer, images)));
}

TEST_CASE("plan_follows_changes_of_the_graph") {
  Graph g = small_network();
  randomize(g, 1);
  const Tensor x = random_tensor({2, 8, 8, 3}, 2);
  const Tensor plain = infer(g, x);
  {
    quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf, .param_bits = 3, .output_bits = 3});
    CHECK(same_bits(infer(g, x), plain));  // placed, but off
    sim.compute_encodings([&] { g(x); });
    CHECK_FALSE(same_bits(infer(g, x), plain));
    sim.disable();
    CHECK(same_bits(infer(g, x), plain));
  }
  CHECK(same_bits(infer(g, x), plain));
}

TEST_CASE("a module of one's own runs its own forward, whatever it calls itself") {
  const Tensor images = random_tensor({2, 4, 4, 3}, 3);
  for (const char* op : {"Conv", "Gemm", "BatchNormalization", "Add", "Concat", "GlobalAveragePool", "AveragePool", "Relu", "Clip"}) {
    INFO(op);
    Graph g;
    const Value x = g.input("input", {4, 4, 3});
    const Value c = g.add<Conv2d>("conv", {x}, Conv2d::Options{.in = 3, .out = 3, .bias = true});
    const bool two = std::string(op) == "Add" || std::string(op) == "Concat";
    Value v = g.add("own", std::make_unique<Threefold>(op), two ? std::vector<Value>{c, x} : std::vector<Value>{c});
    v = g.add<BatchNorm>("norm", {v}, BatchNorm::Options{.channels = 3});
    g.output(g.add<Activation>("relu", {v}, relu_op()));
    randomize(g, 2);
    CHECK(fold_batch_norms(g).empty());

    const auto run = [](Module& m, const Tensor& in) {
      const Var one(in);
      return m.forward({}, {&one, 1}).dense();
    };
    Tensor wanted = run(*g.find("conv")->module, images);
    for (float *p = wanted.data<float>(), *end = p + wanted.elements(); p != end; ++p) *p *= 3.0f;
    wanted = run(*g.find("relu")->module, run(*g.find("norm")->module, wanted));
    for (const Execution e : {Execution::planned, Execution::node_by_node}) CHECK(relative_difference(infer_as(g, e, images), wanted) < 1e-6);

    g.set_execution(Execution::planned);
    quant::QuantSim sim(g, {.config = quant::default_config("integer")});
    sim.compute_encodings([&] { g(images); });
    for (const Execution e : {Execution::planned, Execution::node_by_node, Execution::integer}) CHECK(relative_difference(infer_as(g, e, images), wanted) < 0.05);
    const std::vector<std::string> in_float = g.float_nodes();
    CHECK(std::any_of(in_float.begin(), in_float.end(), [&](const std::string& why) { return why.starts_with(text("own (", op, "): ")); }));
  }
}
