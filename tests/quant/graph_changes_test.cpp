// What happens to a network behind the back of a QuantSim or of integer execution is noticed.
#include <functional>
#include <memory>

#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

namespace {

using Execution = Graph::Execution;

int index_of(Graph& g, const char* node) { return g.value(g.find_value(node)).producer; }

size_t quantizers(Graph& g) { return g.transforms().size(); }

std::unique_ptr<QuantSim> calibrated(Graph& g, Scheme scheme = Scheme::tf) {
  QuantConfig config = default_config("integer");
  config.params["bias"] = {true, true};
  auto sim = std::make_unique<QuantSim>(g, QuantSimOptions{.scheme = scheme, .config = config});
  sim->compute_encodings([&] { g(small_images()); });
  return sim;
}

// All that a sim can be asked for once its network is not what it was: the same message from each.
void check_refuses_everything(QuantSim& sim, const std::string& why) {
  const std::vector<std::pair<const char*, std::function<void()>>> asked{
      {"compute_encodings", [&] { sim.compute_encodings([] { FAIL("the callback was called"); }); }},
      {"find", [&] { sim.find("conv1.weight"); }},
      {"graph", [&] { sim.graph(); }},
      {"table", [&] { sim.table(); }},
      {"encodings", [&] { sim.encodings(true); }},
      {"load_encodings", [&] { sim.load_encodings({}); }},
      {"tie", [&] { sim.tie("relu1", "relu2"); }},
      {"freeze", [&] { sim.freeze(); }},
      {"learn", [&] { sim.learn(); }},
      {"disable", [&] { sim.disable(); }},
      {"enable", [&] { sim.enable(); }},
  };
  for (const auto& row : asked) {
    const auto& name = row.first;
    const auto& ask = row.second;
    INFO(name);
    CHECK_MENTIONS(message_of(ask), text("QuantSim::", name, ": "));
    CHECK_MENTIONS(message_of(ask), why);
  }
  CHECK_MENTIONS(message_of([&] { sim.export_to("/nowhere", "net"); }), why);
}

}  // namespace

TEST_CASE("a sim whose layer was replaced says so, and takes out what is left of its quantizers") {
  Graph g = folded_small_network();
  auto sim = calibrated(g);
  g.replace(index_of(g, "conv2"), std::make_unique<Conv2d>(Conv2d::Options{.in = 8, .out = 8, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}}, .bias = true}));
  check_refuses_everything(*sim, "\"conv2.weight\" was taken out of the network or replaced");
  sim.reset();
  CHECK(quantizers(g) == 0);
  CHECK_FALSE(calibrated(g)->encodings().params.empty());
}

TEST_CASE("a sim whose quantized value was taken out says so") {
  Graph g = folded_small_network();
  auto sim = calibrated(g);
  g.bypass(index_of(g, "relu1"));
  check_refuses_everything(*sim, "\"relu1\" was taken out");
  sim.reset();
  CHECK(quantizers(g) == 0);
}

TEST_CASE("a sim whose network was destroyed or replaced says so, and goes in peace") {
  auto g = std::make_unique<Graph>(folded_small_network());
  auto sim = calibrated(*g);
  g.reset();
  check_refuses_everything(*sim, "its network is gone");
  sim.reset();

  Graph h = folded_small_network();
  sim = calibrated(h);
  h = folded_small_network(2);
  check_refuses_everything(*sim, "its network is gone");
  const auto next = calibrated(h);
  const size_t n = quantizers(h);
  sim.reset();
  CHECK(quantizers(h) == n);
}

TEST_CASE("a sim whose network was moved away says so, and takes its quantizers out where they are") {
  auto g = std::make_unique<Graph>(folded_small_network());
  auto sim = calibrated(*g);
  Graph elsewhere = std::move(*g);
  CHECK(quantizers(elsewhere) > 0);
  check_refuses_everything(*sim, "its network was moved away");
  g.reset();
  check_refuses_everything(*sim, "its network was moved away");
  sim.reset();
  CHECK(quantizers(elsewhere) == 0);
  elsewhere = std::move(*std::make_unique<Graph>(std::move(elsewhere)));  // back at its place
  CHECK_FALSE(calibrated(elsewhere)->encodings().params.empty());
}

TEST_CASE("edits that leave the quantized layers alone are nobody's business") {
  Graph g = folded_small_network();
  auto sim = calibrated(g);
  const Tensor before = infer(g, small_images());
  g.output(g.add<Softmax>("softmax", {g.find_value("fc")}));
  CHECK(sim->find("fc"));
  g.bypass(index_of(g, "softmax"));
  CHECK(sim->find("fc"));
  CHECK(same_bits(infer(g, small_images()), before));
  sim.reset();
  CHECK(quantizers(g) == 0);
}

TEST_CASE("integer execution prepares weights and biases anew when they were written to") {
  for (const Scheme scheme : {Scheme::tf, Scheme::range_learning_tf}) {
    Graph g = folded_small_network();
    const auto sim = calibrated(g, scheme);
    sim->freeze();
    auto& conv = static_cast<Conv2d&>(*g.find("conv2")->module);
    g.set_execution(Execution::integer);
    Tensor last = infer(g, small_images());
    const auto check_follows = [&](const char* what) {
      INFO(what);
      const Tensor scores = infer(g, small_images());
      CHECK_FALSE(same_bits(scores, last));
      CHECK(same_bits(infer(g, small_images()), scores));
      g.set_execution(Execution::integer);
      CHECK(same_bits(infer(g, small_images()), scores));
      last = scores;
    };
    for (float *w = conv.weight.value.data<float>(), *end = w + conv.weight.value.elements(); w != end; ++w) *w *= -0.7f;
    check_follows("weights, in place");
    conv.bias.value = random_tensor({8}, 4);
    check_follows("a bias, as another tensor");
    Tensor alias = static_cast<Dense&>(*g.find("fc")->module).weight.value;
    alias.copy_from(random_tensor(alias.shape(), 3, 0.3f));
    check_follows("weights, through another handle");
    // Read by somebody who might have written.
    conv.weight.value.data<float>();
    CHECK(same_bits(infer(g, small_images()), last));
  }
}

TEST_CASE("integer execution notices quantizers of parameters that changed") {
  for (const Scheme scheme : {Scheme::tf, Scheme::range_learning_tf}) {
    for (const char* name : {"conv1.weight", "conv2.bias"}) {
      INFO(name);
      Graph g = folded_small_network();
      const auto sim = calibrated(g, scheme);
      const auto go = [&] { g.set_execution(Execution::integer); };
      const std::string changed = text("the quantizer of \"", name, "\" has another range or state");
      go();
      const Tensor before = infer(g, small_images());
      std::vector<Range> ranges = sim->find(name)->ranges();
      for (Range& r : ranges) r = {0.3 * r.min, 0.3 * r.max};
      sim->find(name)->set_ranges(ranges);
      CHECK_MENTIONS(message_of([&] { infer(g, small_images()); }), changed);
      go();
      CHECK_FALSE(same_bits(infer(g, small_images()), before));
      sim->find(name)->disable();
      CHECK_MENTIONS(message_of([&] { infer(g, small_images()); }), changed);
      CHECK_MENTIONS(message_of(go), text("\"", name, "\" is off"));
    }
  }
}

TEST_CASE("integer execution notices inputs and outputs that were added") {
  Graph g = folded_small_network();
  const auto sim = calibrated(g);
  const auto go = [&] { g.set_execution(Execution::integer); };
  const auto run = [&] {
    const Var x(small_images());
    const NoGrad no_grad;
    return g.forward({}, {&x, 1});
  };
  go();
  CHECK(run().size() == 1);
  g.output(g.find_value("conv1"));
  CHECK_MENTIONS(message_of(run), "edited since set_execution(integer)");
  go();
  CHECK(run()[1].defined());
  g.input("other", {2});
  CHECK_MENTIONS(message_of([&] {
                   const Var xs[] = {Var(small_images()), Var(random_tensor({4, 2}, 3))};
                   g.forward({}, xs);
                 }),
                 "edited since set_execution(integer)");
}
