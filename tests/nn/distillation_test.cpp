// Learning from a teacher: the loss against one computed in double, who is changed by it and who is not, and what is refused.
#include <functional>

#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::test;

namespace {

constexpr int64_t kImages = 6, kClasses = 4;

Tensor images() { return random_tensor({kImages, 8, 8, 3}, 21); }

std::vector<double> log_probabilities(const float* scores, double temperature) {
  std::vector<double> out;
  double sum = 0.0;
  for (int64_t k = 0; k < kClasses; ++k) sum += std::exp(static_cast<double>(scores[k]) / temperature);
  for (int64_t k = 0; k < kClasses; ++k) out.push_back(static_cast<double>(scores[k]) / temperature - std::log(sum));
  return out;
}

// Hinton et al. 2015, section 2, in double.
double wanted_loss(Graph& student, Graph& teacher, const Tensor& labels, double weight, double temperature) {
  const std::vector<float> s = infer(student, images()).to_vector<float>(), t = infer(teacher, images()).to_vector<float>();
  const std::vector<int64_t> l = labels.to_vector<int64_t>();
  double total = 0.0;
  for (int64_t r = 0; r < kImages; ++r) {
    const auto q = log_probabilities(&s[static_cast<size_t>(r * kClasses)], temperature), p = log_probabilities(&t[static_cast<size_t>(r * kClasses)], temperature);
    for (size_t k = 0; k < kClasses; ++k) total += weight * temperature * temperature * std::exp(p[k]) * (p[k] - q[k]);
    if (weight < 1.0) total -= (1.0 - weight) * log_probabilities(&s[static_cast<size_t>(r * kClasses)], 1.0)[static_cast<size_t>(l[static_cast<size_t>(r)])];
  }
  return total / static_cast<double>(kImages);
}

std::map<std::string, Tensor> copy_of_state(Graph& g) {
  std::map<std::string, Tensor> out;
  for (const auto& [name, t] : g.state()) out[name] = t->clone();
  return out;
}

}  // namespace

TEST_CASE("a_taught_step_has_the_loss_of_labels_and_teacher_in_their_shares") {
  Graph teacher = folded_small_network(7);
  const Tensor labels = class_labels(kImages, kClasses);
  for (const float weight : {0.0f, 0.3f, 1.0f}) {
    for (const float temperature : {1.0f, 4.0f}) {
      CAPTURE(weight);
      CAPTURE(temperature);
      Graph g = folded_small_network(2);
      const double wanted = wanted_loss(g, teacher, labels, static_cast<double>(weight), static_cast<double>(temperature));
      Sgd sgd({.learning_rate = 0.01f});
      Trainer trainer(g, sgd, {.base = 0.01f});
      trainer.distillation = {.teacher = &teacher, .weight = weight, .temperature = temperature};
      CHECK(std::abs(static_cast<double>(trainer.step(images(), labels).loss) - wanted) <= 2e-5 * std::max(1.0, wanted));
    }
  }
}

TEST_CASE("all_of_the_loss_from_the_teacher_needs_no_labels") {
  Graph teacher = folded_small_network(7), a = folded_small_network(2), b = folded_small_network(2);
  const Tensor none = Tensor::from<int64_t>(Shape{kImages}, std::vector<int64_t>(kImages, -1));
  for (const auto& [g, labels] : {std::pair{&a, class_labels(kImages, kClasses)}, std::pair{&b, none}}) {
    Sgd sgd({.learning_rate = 0.01f});
    Trainer trainer(*g, sgd, {.base = 0.01f});
    trainer.distillation = {.teacher = &teacher};
    for (int i = 0; i < 3; ++i) trainer.step(images(), labels);
  }
  for (const auto& entry : copy_of_state(a)) CHECK_MESSAGE(same_bits(entry.second, copy_of_state(b).at(entry.first)), entry.first);
  Sgd sgd({.learning_rate = 0.01f});
  Trainer trainer(a, sgd, {.base = 0.01f});
  trainer.distillation = {.teacher = &teacher, .weight = 0.5f};
  CHECK_MENTIONS(message_of([&] { trainer.step(images(), none); }), "label -1");
}

TEST_CASE("a_quantized_network_comes_back_to_its_teacher_which_stays_as_it_is") {
  Graph teacher = small_network(), g = small_network();  // the teacher keeps its batch norms: their statistics would move in training
  randomize(teacher, 2);
  randomize(g, 2);
  fold_batch_norms(g);
  quant::QuantSim sim(g, {.scheme = quant::Scheme::range_learning_tf_enhanced, .param_bits = 3, .output_bits = 8});
  sim.compute_encodings([&] { g(images()); });
  const std::map<std::string, Tensor> before = copy_of_state(teacher);
  float first = 0.0f, last = 0.0f;
  const auto watch = [&](const StepInfo& i) {
    (i.step == 1 ? first : last) = i.loss;
    return true;
  };
  struct Batch {
    Tensor images, labels;
  };
  const std::vector<Batch> data{{images(), class_labels(kImages, kClasses)}};
  CHECK(fit(g, data, {.epochs = 200, .learning_rate = 0.05f, .on_step = watch, .distillation = {.teacher = &teacher, .temperature = 2.0f}}) == 200);
  CAPTURE(first);
  CHECK(last < first / 5);
  CHECK(teacher.mode() == Mode::automatic);
  for (const auto& entry : copy_of_state(teacher)) CHECK_MESSAGE(same_bits(entry.second, before.at(entry.first)), entry.first);
  for (const Parameter* p : teacher.parameters()) CHECK_MESSAGE(!p->grad.defined(), p->name);
}

TEST_CASE("teachers_that_cannot_teach_are_named") {
  Graph g = folded_small_network(2), teacher = folded_small_network(7), quantized = folded_small_network(7), wider = small_network(8, 5);
  initialize(wider);
  quant::QuantSim sim(quantized, {});
  sim.compute_encodings([&] { quantized(images()); });
  const auto refusal = [&](const Distillation& d) {
    Sgd sgd({.learning_rate = 0.01f});
    Trainer trainer(g, sgd, {.base = 0.01f});
    trainer.distillation = d;
    return message_of([&] { trainer.step(images(), class_labels(kImages, kClasses)); });
  };
  CHECK(refusal({.teacher = &teacher}).empty());
  CHECK_MENTIONS(refusal({.teacher = &g}), "made before quantizers were placed");
  CHECK_MENTIONS(refusal({.teacher = &quantized}), "give the float network");
  CHECK_MENTIONS(refusal({.teacher = &wider}), "[1,5], the network's [1,4]");
  CHECK_MENTIONS(refusal({.teacher = &teacher, .weight = 1.5f}), "weight 1.5 is outside 0..1");
  CHECK_MENTIONS(refusal({.teacher = &teacher, .weight = NAN}), "weight NaN");
  CHECK_MENTIONS(refusal({.teacher = &teacher, .temperature = 0.0f}), "temperature 0");
  CHECK_MENTIONS(refusal({.teacher = &teacher, .temperature = INFINITY}), "temperature inf");
  static_cast<Dense&>(*teacher.find("fc")->module).bias.value.data<float>()[1] = NAN;
  CHECK_MENTIONS(refusal({.teacher = &teacher}), "the teacher's first value that is not finite is \"fc\"");
}
