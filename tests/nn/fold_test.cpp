// fold_batch_norms: what folds, what must not, and that outputs stay.
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::test;

namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;

Conv2d::Options conv(int64_t in, int64_t out, int64_t kernel = 1, int64_t pad = 0, int64_t groups = 1) {
  return {.in = in, .out = out, .kernel_h = kernel, .kernel_w = kernel, .spec = {.padding = {pad, pad, pad, pad}, .groups = groups}};
}

BatchNorm::Options norm(int64_t channels) { return {.channels = channels}; }

// Folds and checks that the outputs moved by rounding only.
Pairs fold_and_compare(Graph& g, const Shape& input) {
  randomize(g, 11);
  const Tensor x = random_tensor(input, 5);
  const Tensor before = infer(g, x);
  const Pairs folded = fold_batch_norms(g);
  CHECK(relative_difference(infer(g, x), before) < 1e-5);
  return folded;
}

BatchNorm& norm_of(Graph& g, const char* name) { return static_cast<BatchNorm&>(*g.find(name)->module); }

}  // namespace

TEST_CASE("fold_backward") {
  Graph g;
  Value x = g.input("x", {6, 6, 4});
  x = g.add<Conv2d>("conv", {x}, conv(4, 8, 3, 1));
  x = g.add<BatchNorm>("bn", {x}, norm(8));
  x = g.add<Conv2d>("depthwise", {x}, conv(8, 8, 3, 1, 8));
  x = g.add<BatchNorm>("bn2", {x}, norm(8));
  x = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("pool", {x})});
  x = g.add<Dense>("fc", {x}, Dense::Options{.in = 8, .out = 5, .bias = false});
  g.output(g.add<BatchNorm>("bn3", {x}, norm(5)));
  CHECK(fold_and_compare(g, {3, 6, 6, 4}) == Pairs{{"conv", "bn"}, {"depthwise", "bn2"}, {"fc", "bn3"}});
  CHECK(g.find("bn") == nullptr);
  // The biases that folding made are parameters with names.
  std::vector<std::string> names;
  for (const Parameter* p : g.parameters()) names.push_back(p->name);
  CHECK(names == std::vector<std::string>{"conv.weight", "conv.bias", "depthwise.weight", "depthwise.bias", "fc.weight", "fc.bias"});
  CHECK(g.value(g.outputs()[0]).name == "fc");
}

TEST_CASE("fold_forward") {
  Graph g;
  Value x = g.input("x", {6, 6, 4});
  x = g.add<BatchNorm>("bn", {x}, norm(4));
  x = g.add<Conv2d>("conv", {x}, conv(4, 8, 3));
  x = g.add<Activation>("relu", {x}, relu_op());
  x = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("pool", {x})});
  x = g.add<BatchNorm>("bn2", {x}, norm(8));
  g.output(g.add<Dense>("fc", {x}, Dense::Options{.in = 8, .out = 5}));
  CHECK(fold_and_compare(g, {3, 6, 6, 4}) == Pairs{{"conv", "bn"}, {"fc", "bn2"}});
}

TEST_CASE("fold_takes_the_layer_before_rather_than_the_one_behind") {
  Graph g;
  Value x = g.input("x", {4, 4, 4});
  x = g.add<Conv2d>("first", {x}, conv(4, 4));
  x = g.add<BatchNorm>("bn", {x}, norm(4));
  g.output(g.add<Conv2d>("second", {x}, conv(4, 4)));
  CHECK(fold_and_compare(g, {2, 4, 4, 4}) == Pairs{{"first", "bn"}});
}

TEST_CASE("fold_leaves_what_it_cannot_fold") {
  SUBCASE("forward into padding: the padded zeros would have to be folded values") {
    Graph g;
    const Value x = g.input("x", {6, 6, 4});
    g.output(g.add<Conv2d>("conv", {g.add<BatchNorm>("bn", {x}, norm(4))}, conv(4, 8, 3, 1)));
    CHECK(fold_and_compare(g, {2, 6, 6, 4}).empty());
  }
  SUBCASE("forward into groups") {
    Graph g;
    const Value x = g.input("x", {6, 6, 4});
    g.output(g.add<Conv2d>("conv", {g.add<BatchNorm>("bn", {x}, norm(4))}, conv(4, 4, 1, 0, 4)));
    CHECK(fold_and_compare(g, {2, 6, 6, 4}).empty());
  }
  SUBCASE("a convolution that others read too") {
    Graph g;
    const Value c = g.add<Conv2d>("conv", {g.input("x", {6, 6, 4})}, conv(4, 4));
    g.output(g.add<Binary>("add", {g.add<BatchNorm>("bn", {c}, norm(4)), c}, BinaryOp::add));
    CHECK(fold_and_compare(g, {2, 6, 6, 4}).empty());
  }
  SUBCASE("a convolution that is an output itself") {
    Graph g;
    const Value c = g.add<Conv2d>("conv", {g.input("x", {6, 6, 4})}, conv(4, 4));
    g.output(c);
    g.output(g.add<BatchNorm>("bn", {c}, norm(4)));
    CHECK(fold_and_compare(g, {2, 6, 6, 4}).empty());
  }
  SUBCASE("a batch norm behind a residual add, read twice") {
    Graph g;
    const Value x = g.input("x", {6, 6, 4});
    const Value a = g.add<Conv2d>("a", {x}, conv(4, 4));
    const Value bn = g.add<BatchNorm>("bn", {g.add<Binary>("add", {a, x}, BinaryOp::add)}, norm(4));
    g.output(g.add<Binary>("out", {g.add<Conv2d>("b", {bn}, conv(4, 4)), bn}, BinaryOp::add));
    CHECK(fold_and_compare(g, {2, 6, 6, 4}).empty());
  }
}

TEST_CASE("fold_built_in_networks") {
  for (const auto& row : std::map<std::string, size_t>{{"resnet18", 20}, {"resnet20-cifar10", 19}}) {
    const auto& name = row.first;
    const auto& norms = row.second;
    Graph g = models::make(name, {.classes = 10, .image_size = 32});
    CHECK_MESSAGE(fold_and_compare(g, {2, 32, 32, 3}).size() == norms, name);
    for (const auto& n : g.nodes()) CHECK(n.op != "BatchNormalization");
  }
}

TEST_CASE("fold_refuses_what_would_move_the_output") {
  const auto network = [] {
    Graph g;
    Value x = g.input("x", {4, 4, 4});
    x = g.add<BatchNorm>("good_norm", {g.add<Conv2d>("good", {x}, conv(4, 4))}, norm(4));
    g.output(g.add<BatchNorm>("bad_norm", {g.add<Conv2d>("bad", {x}, conv(4, 4))}, norm(4)));
    randomize(g, 7);
    return g;
  };
  const auto refuses = [&](const char* what, const std::function<void(BatchNorm&)>& spoil) {
    INFO(what);
    Graph g = network();
    spoil(norm_of(g, "bad_norm"));
    const Tensor weight = static_cast<Conv2d&>(*g.find("bad")->module).weight.value.clone();
    const std::string m = message_of([&] { fold_batch_norms(g); });
    CHECK_MENTIONS(m, "\"bad_norm\"");
    CHECK_MENTIONS(m, "\"bad\"");
    // The first fold stays, the refused one is as it was.
    CHECK(g.find("good_norm") == nullptr);
    REQUIRE(g.find("bad_norm"));
    CHECK(same_bits(static_cast<Conv2d&>(*g.find("bad")->module).weight.value, weight));
    CHECK_FALSE(static_cast<Conv2d&>(*g.find("bad")->module).bias.value.defined());
  };
  refuses("an infinite scale", [](BatchNorm& n) { n.weight.value.fill(3e38f), n.running_var.fill(0.0f); });
  refuses("NaN statistics", [](BatchNorm& n) { n.running_mean.data<float>()[1] = NAN; });
  refuses("a negative variance", [](BatchNorm& n) { n.running_var.data<float>()[2] = -1.0f; });
  refuses("a mean that swallows the values", [](BatchNorm& n) { n.running_mean.fill(1e9f), n.bias.value.fill(1e9f), n.weight.value.fill(1.0f), n.running_var.fill(1.0f); });
}

TEST_CASE("fold_of_a_dead_channel_keeps_its_constant") {
  // gamma 0 or variance 0: finite, so it folds.
  Graph g;
  const Value x = g.input("x", {4, 4, 4});
  g.output(g.add<BatchNorm>("bn", {g.add<Conv2d>("conv", {x}, conv(4, 4))}, norm(4)));
  randomize(g, 7);
  norm_of(g, "bn").weight.value.data<float>()[0] = 0.0f;
  norm_of(g, "bn").running_var.data<float>()[1] = 0.0f;
  const Tensor in = random_tensor({2, 4, 4, 4}, 1), before = infer(g, in);
  CHECK(fold_batch_norms(g).size() == 1);
  CHECK(relative_difference(infer(g, in), before) < 1e-5);
}
