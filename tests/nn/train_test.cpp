// Training: it learns, fails with a name, repeats to the same bits, and allocates nothing new.
#include "detent/core/allocator.h"
#include "detent/core/parallel.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::test;

namespace {

struct Batch {
  Tensor images, labels;
};

struct Threads {
  explicit Threads(int n) : before(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before); }
  int before;
};

Batch eight_images(int64_t size, int64_t classes) { return {random_tensor({8, size, size, 3}, 21), class_labels(8, classes)}; }

}  // namespace

TEST_CASE("training_overfits_eight_images") {
  Graph g = small_network();
  initialize(g, {.seed = 2});
  const std::vector<Batch> data{eight_images(8, 4)};
  float first = 0.0f, last = 0.0f;
  const int64_t steps = fit(g, data, {.epochs = 200, .learning_rate = 0.1f, .on_step = [&](const StepInfo& i) {
                                        if (i.step == 1) first = i.loss;
                                        last = i.loss;
                                        return true;
                                      }});
  CHECK(steps == 200);
  CHECK(first > 1.0f);
  CHECK(last < 0.05f);
  CHECK(fit(g, data, {.epochs = 5, .max_steps = 3}) == 3);
}

TEST_CASE("fit's result is the mean of its steps' weights when all are averaged, and the last step's when none are") {
  for (const float share : {0.0f, 1.0f}) {
    CAPTURE(share);
    Graph g = small_network();
    initialize(g, {.seed = 2});
    fold_batch_norms(g);
    const std::vector<Batch> data{eight_images(8, 4)};
    std::vector<std::vector<float>> after_each;
    const auto watch = [&](const StepInfo&) {
      after_each.push_back(g.parameters()[0]->value.to_vector<float>());
      return true;
    };
    CHECK(fit(g, data, {.epochs = 9, .learning_rate = 0.05f, .max_steps = 5, .average_weights = share, .on_step = watch}) == 5);
    REQUIRE(after_each.size() == 5);
    CHECK(after_each.front() != after_each.back());
    const std::vector<float> result = g.parameters()[0]->value.to_vector<float>();
    if (share == 0.0f) CHECK(result == after_each.back());
    if (share == 0.0f) continue;
    for (size_t i = 0; i < result.size(); ++i) {
      double mean = 0.0;
      for (const std::vector<float>& w : after_each) mean += static_cast<double>(w[i]) / 5.0;
      CHECK(std::abs(static_cast<double>(result[i]) - mean) <= 1e-6);
    }
  }
}

TEST_CASE("quantized_training_overfits_eight_images") {
  Graph g = small_network();
  initialize(g, {.seed = 2});
  const std::vector<Batch> data{eight_images(8, 4)};
  fit(g, data, {.epochs = 20, .learning_rate = 0.05f});
  fold_batch_norms(g);
  quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf, .param_bits = 4, .output_bits = 4});
  sim.compute_encodings([&] { g(data[0].images); });
  float last = 0.0f;
  fit(g, data, {.epochs = 200, .learning_rate = 0.02f, .on_step = [&](const StepInfo& i) {
                  last = i.loss;
                  return true;
                }});
  CHECK(last < 0.1f);
  const Accuracy a = evaluate(g, data);
  CHECK(a.images == 8);
  CHECK(a.correct1 == 8);
}

TEST_CASE("accuracy_ties_and_nan") {
  Accuracy a;
  count_correct(Tensor::from(Shape{4, 6}, {1, 1, 0, 0, 0, 0, /**/ 1, 1, 0, 0, 0, 0, /**/ NAN, 0, 0, 0, 0, 0, /**/ 5, 4, 3, 2, 1, 0}),
                Tensor::from<int64_t>(Shape{4}, std::vector<int64_t>{0, 1, 0, 5}), a);
  CHECK(a.images == 4);
  CHECK(a.correct1 == 1);  // equal scores: the lowest index wins
  CHECK(a.correct5 == 2);
  CHECK_MENTIONS(message_of([&] { count_correct(Tensor::zeros(Shape{1, 3}), Tensor::from<int64_t>(Shape{1}, std::vector<int64_t>{3}), a); }), "label 3");
}

TEST_CASE("nan_loss_names_the_first_layer") {
  for (const bool quantized : {false, true}) {
    INFO("quantized " << quantized);
    Graph g = small_network();
    initialize(g, {.seed = 2});
    const Batch b = eight_images(8, 4);
    if (quantized) fold_batch_norms(g);
    std::unique_ptr<quant::QuantSim> sim;
    if (quantized) {
      // Activations of the last layers in float, so that NaN reaches the loss.
      sim = std::make_unique<quant::QuantSim>(g, quant::QuantSimOptions{.scheme = quant::Scheme::tf, .output_bits = 32});
      sim->compute_encodings([&] { g(b.images); });
    }
    Sgd sgd({.learning_rate = 0.1f});
    Trainer trainer(g, sgd, {.base = 0.1f});
    trainer.step(b.images, b.labels);
    std::vector<Tensor> before;
    for (const Parameter* p : g.parameters()) before.push_back(p->value.clone());
    auto& conv2 = static_cast<Conv2d&>(*g.find("conv2")->module);
    conv2.bias.value.data<float>()[3] = INFINITY;
    const std::string m = message_of([&] { trainer.step(b.images, b.labels); });
    CHECK_MENTIONS(m, "\"conv2\"");
    CHECK_MENTIONS(m, "step 2");
    CHECK(trainer.steps_done() == 1);
    size_t i = 0;
    for (const Parameter* p : g.parameters()) {
      CHECK_MESSAGE((p->name == "conv2.bias" || same_bits(p->value, before[i])), p->name);
      ++i;
    }
    conv2.bias.value.data<float>()[3] = 0.0f;
    CHECK(message_of([&] { trainer.step(b.images, b.labels); }).empty());
  }
}

TEST_CASE("first_nonfinite_value_looks_before_quantizers") {
  // A quantizer turns NaN into its zero point; the layer must be found nevertheless.
  Graph g = small_network();
  randomize(g, 2);
  fold_batch_norms(g);
  quant::QuantSim sim(g, {.scheme = quant::Scheme::tf});
  const Tensor x = random_tensor({2, 8, 8, 3}, 1);
  sim.compute_encodings([&] { g(x); });
  CHECK(first_nonfinite_value(g, x).empty());
  static_cast<Conv2d&>(*g.find("conv2")->module).bias.value.data<float>()[0] = NAN;
  CHECK(first_nonfinite_value(g, x) == "conv2");
}

TEST_CASE("training_steps_allocate_nothing_new") {
  for (const bool quantized : {false, true}) {
    INFO("quantized " << quantized);
    Graph g = models::resnet20_cifar10({.classes = 10, .image_size = 16});
    randomize(g, 2);
    const Batch b = eight_images(16, 10);
    if (quantized) fold_batch_norms(g);
    std::unique_ptr<quant::QuantSim> sim;
    if (quantized) {
      sim = std::make_unique<quant::QuantSim>(g, quant::QuantSimOptions{.scheme = quant::Scheme::range_learning_tf});
      sim->compute_encodings([&] { g(b.images); });
    }
    Sgd sgd({.learning_rate = 1e-3f});
    Trainer trainer(g, sgd, {.base = 1e-3f});
    trainer.step(b.images, b.labels);
    const AllocStats one = host_allocator().stats();
    host_allocator().reset_peak();
    trainer.step(b.images, b.labels);
    const AllocStats two = host_allocator().stats();
    CHECK(two.raw_allocations == one.raw_allocations);
    for (int i = 0; i < 48; ++i) trainer.step(b.images, b.labels);
    const AllocStats fifty = host_allocator().stats();
    CHECK(fifty.raw_allocations == one.raw_allocations);
    CHECK(fifty.live_bytes == two.live_bytes);
    CHECK(fifty.peak_bytes == two.peak_bytes);
    CHECK(fifty.cached_bytes == two.cached_bytes);
  }
}

TEST_CASE("training_steps_at_one_and_more_threads") {
  for (const bool quantized : {false, true}) {
    INFO("quantized " << quantized);
    std::map<std::string, Tensor> reference;
    for (const int threads : {1, 2, 3}) {
      const Threads scope(threads);
      Graph g = models::resnet20_cifar10({.classes = 10, .image_size = 16});
      randomize(g, 2);
      const Batch b = eight_images(16, 10);
      if (quantized) fold_batch_norms(g);
      std::unique_ptr<quant::QuantSim> sim;
      if (quantized) {
        sim = std::make_unique<quant::QuantSim>(g, quant::QuantSimOptions{});
        sim->compute_encodings([&] { g(b.images); });
      }
      Sgd sgd({.learning_rate = 0.01f});
      Trainer trainer(g, sgd, {.base = 0.01f});
      for (int i = 0; i < 3; ++i) trainer.step(b.images, b.labels);
      std::map<std::string, Tensor> state;
      for (const auto& [name, t] : g.state()) state[name] = t->clone();
      for (const Parameter* p : g.parameters()) state[p->name] = p->value.clone();
      if (threads == 1) reference = state;
      REQUIRE(state.size() == reference.size());
      for (const auto& entry : state) CHECK_MESSAGE(same_bits(entry.second, reference.at(entry.first)), entry.first << " at " << threads << " threads");
    }
  }
}
