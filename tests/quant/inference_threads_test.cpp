// One evaluated network, run by several threads at once, under TSan in .ci/run.
#include <array>
#include <atomic>
#include <thread>

#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

namespace {

constexpr int kThreads = 3, kRuns = 40;

// Names that do not fit into a std::string itself.
Graph network() {
  Graph g;
  Value v = g.input("input", {6, 6, 3});
  v = g.add<Conv2d>("a_convolution_with_a_long_name_of_its_own", {v}, Conv2d::Options{.in = 3, .out = 4, .kernel_h = 3, .kernel_w = 3, .bias = true});
  v = g.add<BatchNorm>("a_batch_norm_with_a_long_name_of_its_own", {v}, BatchNorm::Options{.channels = 4});
  v = g.add<PRelu>("a_prelu_with_a_long_name_of_its_own", {v}, int64_t{4});
  v = g.add<Conv2d>("another_convolution_with_a_long_name_of_its_own", {v}, Conv2d::Options{.in = 4, .out = 4, .bias = true});
  v = g.add<Activation>("relu", {v}, relu_op());
  v = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("pool", {v})});
  g.output(g.add<Dense>("a_dense_layer_with_a_long_name_of_its_own", {v}, Dense::Options{.in = 4, .out = 5}));
  randomize(g, 1);
  return g;
}

int runs_that_differ(Graph& g, const Tensor& images) {
  const Tensor alone = g(images).dense();
  std::atomic<int> differ{0};
  const auto work = [&] {
    for (int i = 0; i < kRuns; ++i) differ += !same_bits(i % 2 ? infer(g, images) : g(images).dense(), alone);
  };
  std::array<std::thread, kThreads> threads;
  for (std::thread& t : threads) t = std::thread(work);
  for (std::thread& t : threads) t.join();
  return differ;
}

}  // namespace

TEST_CASE("an evaluated network in several threads at once gives the bits that it gives alone") {
  using Execution = Graph::Execution;
  Graph g = network();
  g.set_mode(Mode::evaluation);
  const Tensor images = random_tensor({2, 6, 6, 3}, 2);
  CHECK(runs_that_differ(g, images) == 0);
  for (const Scheme scheme : {Scheme::tf, Scheme::range_learning_tf}) {
    QuantSim sim(g, {.scheme = scheme, .config = default_config("integer")});
    sim.compute_encodings([&] { g(images); });
    sim.freeze();
    for (const Execution e : {Execution::planned, Execution::node_by_node, Execution::integer}) {
      g.set_execution(e);
      CHECK(runs_that_differ(g, images) == 0);
    }
    g.set_execution(Execution::planned);
  }
}

TEST_CASE("threads that find the weights of an integer network written to prepare them once, and agree") {
  Graph g = network();
  g.set_mode(Mode::evaluation);
  const Tensor images = random_tensor({2, 6, 6, 3}, 2);
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf, .config = default_config("integer")});
  sim.compute_encodings([&] { g(images); });
  sim.freeze();
  g.set_execution(Graph::Execution::integer);
  const Tensor before = infer(g, images);
  Tensor& w = static_cast<Dense&>(*g.find("a_dense_layer_with_a_long_name_of_its_own")->module).weight.value;
  w.fill(0.0f);
  std::array<Tensor, kThreads> scores;
  std::array<std::thread, kThreads> threads;
  for (size_t i = 0; i < kThreads; ++i) threads[i] = std::thread([&, i] { scores[i] = infer(g, images); });
  for (std::thread& t : threads) t.join();
  CHECK_FALSE(same_bits(scores[0], before));
  for (const Tensor& s : scores) CHECK(same_bits(s, scores[0]));
}
