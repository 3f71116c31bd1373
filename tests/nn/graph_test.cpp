// Graph: names, shapes, editing, scores, and independence of threads.
#include <thread>

#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::test;

namespace {

struct Scale final : Module {  // an identity with a given name for messages
  OpDesc describe() const override { return {"Identity", {}}; }
  Shape infer(std::span<const Shape> in) const override { return in[0]; }
  Var forward(const Context&, std::span<const Var> in) override { return in[0]; }
};

Conv2d::Options conv_1x1(int64_t in, int64_t out) { return {.in = in, .out = out}; }

int index_of(const Graph& g, const std::string& name) {
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    if (g.nodes()[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

TEST_CASE("graph_names_are_unique") {
  Graph g;
  const Value x = g.input("image", {4, 4, 3});
  g.add<Conv2d>("a", {x}, conv_1x1(3, 2));
  CHECK_MENTIONS(message_of([&] { g.add<Conv2d>("a", {x}, conv_1x1(3, 2)); }), "\"a\" is taken");
  CHECK_MENTIONS(message_of([&] { g.add<Conv2d>("image", {x}, conv_1x1(3, 2)); }), "\"image\" is taken");
  CHECK_MENTIONS(message_of([&] { g.input("a", {1}); }), "\"a\" is taken");
  CHECK_MENTIONS(message_of([&] { g.add<Conv2d>("", {x}, conv_1x1(3, 2)); }), "name");
  CHECK(g.nodes().size() == 1);
  CHECK(g.value_count() == 2);
}

TEST_CASE("graph_shape_errors_name_the_node") {
  Graph g;
  const Value x = g.input("image", {4, 4, 3});
  const std::string m = message_of([&] { g.add<Conv2d>("stem", {x}, conv_1x1(5, 2)); });
  CHECK_MENTIONS(m, "\"stem\"");
  CHECK_MENTIONS(m, "Conv");
  CHECK(g.nodes().empty());
  CHECK(g.find_value("stem").id < 0);
  const Value y = g.add<Conv2d>("stem", {x}, conv_1x1(3, 2));
  CHECK(g.value(y).shape == Shape{1, 4, 4, 2});
  CHECK_MENTIONS(message_of([&] { g.add<BatchNorm>("norm", {y}, BatchNorm::Options{.channels = 3}); }), "\"norm\"");
  CHECK_MENTIONS(message_of([&] { g.add<Dense>("fc", {y}, Dense::Options{.in = 2, .out = 2}); }), "\"fc\"");
  CHECK_MENTIONS(message_of([&] { g.add<Binary>("sum", {x, y}, BinaryOp::add); }), "\"sum\"");
  CHECK_MENTIONS(message_of([&] { g.add<Activation>("act", {Value{99}}, relu_op()); }), "99");
}

TEST_CASE("graph_refuses_inputs_of_another_shape") {
  Graph g = small_network();
  randomize(g, 1);
  for (const Shape& s : {Shape{1, 8, 8, 4}, Shape{1, 8, 7, 3}, Shape{8, 8, 3}, Shape{0, 8, 8, 3}}) {
    const std::string m = message_of([&] { g(Tensor::zeros(s)); });
    CHECK_MENTIONS(m, "\"input\"");
    CHECK_MENTIONS(m, "[1,8,8,3]");
  }
  CHECK(g(Tensor::zeros(Shape{3, 8, 8, 3})).shape() == Shape{3, 4});
  CHECK_FALSE(message_of([&] { g.forward({}, {}); }).empty());
}

TEST_CASE("graph_scores_are_read_before_a_softmax") {
  Graph g;
  const Value x = g.input("x", {3});
  const Value logits = g.add<Dense>("fc", {x}, Dense::Options{.in = 3, .out = 2});
  CHECK_MENTIONS(message_of([&] { g.scores(); }), "output");
  const Value p = g.add<Softmax>("softmax", {logits});
  g.output(p);
  CHECK(g.scores() == logits);
  initialize(g, {.seed = 3});
  const Tensor in = random_tensor({5, 3}, 1);
  const Var v(in);
  const Tensor soft = g.forward({}, {&v, 1})[0].dense(), raw = g(in).dense();
  for (int64_t i = 0; i < 5; ++i) {
    const float* s = soft.data<float>() + 2 * i;
    const float* r = raw.data<float>() + 2 * i;
    CHECK(s[0] + s[1] == doctest::Approx(1.0));
    CHECK(std::log(s[0] / s[1]) == doctest::Approx(r[0] - r[1]).epsilon(1e-4));
  }
}

TEST_CASE("graph_bypass_keeps_the_rest") {
  Graph g;
  const Value x = g.input("x", {4, 4, 3});
  const Value a = g.add<Conv2d>("a", {x}, conv_1x1(3, 3));
  const Value skip = g.add<Scale>("skip", {a});
  const Value b = g.add<Activation>("b", {skip}, relu_op());
  g.output(g.add<Binary>("sum", {b, skip}, BinaryOp::add));
  randomize(g, 2);
  const Tensor in = random_tensor({2, 4, 4, 3}, 3);
  const Tensor before = g(in).dense();
  CHECK_MENTIONS(message_of([&] { g.bypass(index_of(g, "sum")); }), "\"sum\"");
  g.bypass(index_of(g, "skip"));
  CHECK(g.find("skip") == nullptr);
  CHECK(g.find_value("skip").id < 0);
  CHECK(g.consumers(a) == std::vector<int>{1, 2});
  CHECK(g.value(b).producer == 1);
  CHECK(same_bits(g(in).dense(), before));
}

TEST_CASE("graph_bypass_of_the_last_node_moves_the_output") {
  Graph g;
  const Value x = g.input("x", {4, 4, 3});
  const Value a = g.add<Conv2d>("a", {x}, conv_1x1(3, 3));
  g.output(g.add<Scale>("last", {a}));
  g.bypass(1);
  CHECK(g.outputs()[0] == a);
}

TEST_CASE("graph_absorb_keeps_the_later_name") {
  Graph g;
  const Value x = g.input("x", {4, 4, 3});
  const Value a = g.add<Conv2d>("a", {x}, conv_1x1(3, 3));
  const Value out = g.add<Scale>("out", {a});
  g.output(out);
  randomize(g, 2);
  const Tensor in = random_tensor({2, 4, 4, 3}, 3);
  const Tensor before = g(in).dense();
  g.absorb(index_of(g, "out"));
  CHECK(g.nodes().size() == 1);
  CHECK(g.nodes()[0].output == out);
  CHECK(g.find_value("a").id < 0);
  CHECK(same_bits(g(in).dense(), before));

  Graph branching;
  const Value y = branching.input("y", {4, 4, 3});
  const Value c = branching.add<Conv2d>("c", {y}, conv_1x1(3, 3));
  const Value d = branching.add<Scale>("d", {c});
  branching.output(branching.add<Binary>("sum", {c, d}, BinaryOp::add));
  CHECK_MENTIONS(message_of([&] { branching.absorb(1); }), "\"d\"");
  CHECK_MENTIONS(message_of([&] { branching.absorb(2); }), "\"sum\"");
}

TEST_CASE("graph_replace_keeps_the_shape") {
  Graph g;
  const Value x = g.input("x", {4, 4, 3});
  const Value a = g.add<Conv2d>("a", {x}, conv_1x1(3, 6));
  g.output(g.add<Activation>("act", {a}, relu_op()));
  randomize(g, 5);
  CHECK_MENTIONS(message_of([&] { g.replace(0, std::make_unique<Conv2d>(conv_1x1(3, 5))); }), "\"a\"");
  CHECK(static_cast<Conv2d&>(*g.nodes()[0].module).options().out == 6);
  g.replace(1, std::make_unique<Activation>(clip_op(0.0f, 6.0f)));
  CHECK(g.nodes()[1].op == "Clip");
  const Tensor out = g(Tensor::full(Shape{1, 4, 4, 3}, 1000.0f)).dense();
  for (const float v : out.to_vector<float>()) CHECK((v >= 0.0f && v <= 6.0f));
  g.replace(0, std::make_unique<Conv2d>(conv_1x1(3, 6)));
  CHECK(static_cast<Conv2d&>(*g.nodes()[0].module).weight.name == "a.weight");
}

TEST_CASE("graph_refuses_modules_and_nodes_that_are_not_there") {
  struct Nameless : Module {
    Parameter scale;
    OpDesc describe() const override { return {.op = "Nameless", .attributes = {}}; }
    Shape infer(std::span<const Shape> in) const override { return in[0]; }
    Var forward(const Context&, std::span<const Var> in) override { return in[0]; }
    void visit(const std::string&, Visitor& v) override { v.parameter(scale); }
  };
  Graph g;
  const Value x = g.input("x", {4, 4, 3});
  g.output(g.add<Activation>("act", {x}, relu_op()));
  CHECK_MENTIONS(message_of([&] { g.add("none", nullptr, {x}); }), "\"none\" was given no module");
  CHECK_MENTIONS(message_of([&] { g.add("own", std::make_unique<Nameless>(), {x}); }), "a parameter without a name");
  CHECK_MENTIONS(message_of([&] { g.replace(0, nullptr); }), "\"act\" by no module");
  CHECK_MENTIONS(message_of([&] { g.replace(-1, std::make_unique<Activation>(relu_op())); }), "replace of node -1, there are 1");
  CHECK_MENTIONS(message_of([&] { g.bypass(999); }), "bypass of node 999");
  CHECK_MENTIONS(message_of([&] { g.absorb(-1); }), "absorb of node -1");
  CHECK(g.nodes().size() == 1);
  CHECK(g(Tensor::full(Shape{1, 4, 4, 3}, -1.0f)).dense().to_vector<float>()[0] == 0.0f);
}

TEST_CASE("layers_refuse_options_that_make_no_sense") {
  CHECK_MENTIONS(message_of([] { Activation a(clip_op(1.0f, -1.0f)); }), "clip: bounds 1 and -1");
  CHECK_MENTIONS(message_of([] { Activation a(clip_op(NAN, 1.0f)); }), "clip: bounds NaN");
  CHECK_NOTHROW(Activation(clip_op(2.0f, 2.0f)));
  CHECK_MENTIONS(message_of([] { Conv2d c({.in = 1, .out = 1, .spec = {.clamp_min = 1.0f, .clamp_max = 0.0f}}); }), "conv2d: clamp bounds 1 and 0");
  CHECK_NOTHROW(Conv2d({.in = 1, .out = 1, .spec = {.clamp_min = 0.0f, .clamp_max = 0.0f}}));
  CHECK_MENTIONS(message_of([] { BatchNorm b(BatchNorm::Options{.channels = 4, .eps = -1.0f}); }), "eps -1");
  CHECK_MENTIONS(message_of([] { BatchNorm b(BatchNorm::Options{.channels = 4, .momentum = 1.5f}); }), "momentum 1.5");
}

TEST_CASE("graph_refuses_nodes_that_change_the_number_of_images") {
  Graph g;
  const Value x = g.input("x", {4, 4, 2});
  const auto why = [&](std::unique_ptr<Module> m, std::vector<Value> in) { return message_of([&] { g.add("node", std::move(m), std::move(in)); }); };
  using Pads = std::vector<int64_t>;
  using Ranges = std::vector<Slice::Range>;
  CHECK_MENTIONS(why(std::make_unique<Pad>(Pads{1, 0, 0, 0}, Pads{0, 0, 0, 0}), {x}), "\"node\" (Pad): it makes [2,4,4,2] of one image and [1000004,4,4,2] of 1000003");
  CHECK_MENTIONS(why(std::make_unique<Slice>(Ranges{{.axis = 0, .start = 1}}), {x}), "it makes [0,4,4,2] of one image");
  CHECK_MENTIONS(why(std::make_unique<Slice>(Ranges{{.axis = 0, .end = 1}}), {x}), "[1,4,4,2] of 1000003");
  CHECK_MENTIONS(why(std::make_unique<Transpose>(std::vector<int>{1, 0, 2, 3}), {x}), "it makes [4,1,4,2] of one image");
  CHECK_MENTIONS(why(std::make_unique<Transpose>(std::vector<int>{3, 1, 2, 0}), {x}), "(Transpose)");
  CHECK_MENTIONS(why(std::make_unique<Concat>(0), {x, x}), "it makes [2,4,4,2] of one image");
  CHECK_MENTIONS(why(std::make_unique<ConstantOperand>(BinaryOp::add, Tensor::zeros({3, 1, 1, 1})), {x}), "[3,4,4,2]");
  CHECK(g.nodes().empty());
  g.output(g.add<Slice>("all", {x}, Ranges{{.axis = 0}, {.axis = 1, .start = 1, .end = 3}}));
  CHECK(g(Tensor::zeros({5, 4, 4, 2})).shape() == Shape{5, 2, 4, 2});
  CHECK_MENTIONS(message_of([&] { g.replace(0, std::make_unique<Slice>(Ranges{{.axis = 0, .end = 1}, {.axis = 1, .start = 1, .end = 3}})); }), "of 1000003");
}

TEST_CASE("graph_refuses_values_of_another_graph") {
  Graph a, b;
  const Value x = a.input("x", {4, 4, 3}), y = b.input("y", {4, 4, 3});
  CHECK_MENTIONS(message_of([&] { b.add<Activation>("act", {x}, relu_op()); }), "value 0 is one of another graph; here it would be \"y\"");
  CHECK_MENTIONS(message_of([&] { b.output(a.find_value("x")); }), "another graph");
  CHECK(b.value(Value{0}).name == "y");
  // They go where their network goes.
  Graph c = std::move(a);
  const Value act = c.add<Activation>("act", {x}, relu_op());
  c.output(act);
  CHECK(c.outputs()[0] == act);
  CHECK_FALSE(message_of([&] { a.output(x); }).empty());
  a.input("z", {4, 4, 3});
  CHECK_MENTIONS(message_of([&] { a.output(x); }), "here it would be \"z\"");
  std::swap(a, c);
  a.output(x);
  b = std::move(a);
  CHECK_MENTIONS(message_of([&] { b.output(y); }), "here it would be \"x\"");
  b.output(x);
}

TEST_CASE("graph_tap_sees_every_value_in_order") {
  Graph g = small_network();
  randomize(g, 1);
  std::vector<std::string> seen;
  g.set_tap([&](Value v, const Var&, const Var&) { seen.push_back(g.value(v).name); });
  g(random_tensor({1, 8, 8, 3}, 1));
  g.set_tap({});
  CHECK(seen == std::vector<std::string>{"input", "conv1", "bn1", "relu1", "conv2", "bn2", "add", "relu2", "pool", "flatten", "fc"});
}

TEST_CASE("graphs_and_tapes_in_two_threads") {
  const Tensor images = random_tensor({4, 8, 8, 3}, 9), labels = class_labels(4, 4);
  const auto work = [&](uint64_t seed) {
    Graph g = small_network();
    randomize(g, seed);
    StepResult r;
    for (int i = 0; i < 20; ++i) r = run_step_of(g, images, labels);
    return r;
  };
  const StepResult a = work(1), b = work(2);
  StepResult c, d;
  std::thread t1([&] { c = work(1); }), t2([&] { d = work(2); });
  t1.join();
  t2.join();
  for (const auto& [alone, together] : {std::pair{&a, &c}, std::pair{&b, &d}}) {
    CHECK(alone->loss == together->loss);
    REQUIRE(alone->gradients.size() == together->gradients.size());
    for (const auto& entry : alone->gradients) CHECK_MESSAGE(same_bits(entry.second, together->gradients.at(entry.first)), entry.first);
  }
  CHECK(a.loss != b.loss);
}

TEST_CASE("global_average_pool_of_codes_has_the_exact_sum") {
  // As an integer target sums them: the codes' sum times one factor, without the rounding of a sum of floats.
  for (const float scale : {0.1f, 0.0173f, 3.7e-4f}) {
    std::vector<float> v;
    int64_t sums[2] = {0, 0};
    for (int i = 0; i < 49; ++i) {
      const int codes[2] = {i * 37 % 256, i * 101 % 256};
      for (int c = 0; c < 2; ++c) {
        v.push_back(scale * static_cast<float>(codes[c] - 3));
        sums[c] += codes[c] - 3;
      }
    }
    Var x(Tensor::from<float>({1, 7, 7, 2}, v));
    x.set_grids({Grid{scale, 3, 0, 255}});
    const std::vector<float> y = GlobalAveragePool().forward({}, {&x, 1}).dense().to_vector<float>();
    for (size_t c = 0; c < 2; ++c) CHECK(y[c] == static_cast<float>(sums[c]) * (scale / 49.0f));
  }
}
