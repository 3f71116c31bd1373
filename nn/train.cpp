#include "detent/nn/train.h"

#include <cmath>

#include "detent/autograd/ops.h"
#include "detent/nn/passes/reestimate_batch_norm.h"

namespace detent::nn {
namespace {

bool finite(const Tensor& t) { return backend(t.device()).kernels().count_nonfinite(t.data<float>(), t.elements()) == 0; }

}  // namespace

Trainer::Trainer(Graph& graph, Optimizer& optimizer, const Schedule& schedule) : graph_(graph), optimizer_(optimizer), schedule_(schedule), parameters_(graph.parameters()) {}

StepInfo Trainer::step(const Tensor& images, const Tensor& labels) {
  require_ready(graph_, "training");
  StepInfo info;
  info.step = step_ + 1;
  info.images = images.dim(0);
  info.learning_rate = schedule_.at(step_);
  if (freeze_batch_norm_after >= 0 && step_ >= freeze_batch_norm_after) set_batch_norm_frozen(graph_, true);
  Tape tape;
  const Var loss = softmax_cross_entropy(graph_(images), labels, label_smoothing);
  info.loss = loss.dense().item();
  if (!std::isfinite(info.loss)) {
    const NoGrad no_grad;
    const std::string layer = first_nonfinite_value(graph_, images);
    fail("training: the loss is ", info.loss, " at step ", info.step, "; the first value that is not finite is \"", layer.empty() ? "loss" : layer,
         "\"; lower the learning rate or look at the data");
  }
  tape.backward(loss);
  for (const Parameter* p : parameters_) {
    DETENT_CHECK(!p->grad.defined() || finite(p->grad), "training: the gradient of \"", p->name, "\" is not finite at step ", info.step, " (loss ", info.loss,
                 "); lower the learning rate");
  }
  optimizer_.learning_rate = info.learning_rate;
  optimizer_.step(parameters_);
  ++step_;
  return info;
}

void require_ready(const Graph& graph, const char* action) {
  for (int id = 0; id < graph.value_count(); ++id) {
    const Transform* t = graph.value(Value{id}).transform.get();
    const std::string why = t ? t->not_ready() : std::string();
    DETENT_CHECK(why.empty(), action, " is refused: ", why);
  }
}

std::string first_nonfinite_value(Graph& graph, const Tensor& images) {
  std::string found;
  // Before the transform too: a quantizer turns NaN into zero.
  graph.set_tap([&](Value v, const Var& x, const Var& y) {
    if (found.empty() && !(finite(x.dense()) && finite(y.dense()))) found = graph.value(v).name;
  });
  try {
    graph(images);
  } catch (...) {
    graph.set_tap({});
    throw;
  }
  graph.set_tap({});
  return found;
}

void count_correct(const Tensor& scores, const Tensor& labels, Accuracy& accuracy) {
  DETENT_CHECK(scores.rank() == 2 && labels.rank() == 1 && scores.dim(0) == labels.dim(0), "accuracy: scores ", scores.shape(), " and labels ", labels.shape(),
               " do not belong together");
  const std::vector<float> s = scores.to_vector<float>();
  const std::vector<int64_t> l = labels.to_vector<int64_t>();
  const int64_t classes = scores.dim(1);
  for (int64_t i = 0; i < scores.dim(0); ++i) {
    const float* row = s.data() + i * classes;
    const int64_t label = l[static_cast<size_t>(i)];
    DETENT_CHECK(label >= 0 && label < classes, "accuracy: label ", label, " is not one of ", classes, " classes");
    const float own = row[label];
    int64_t ahead = 0;
    for (int64_t c = 0; c < classes; ++c) ahead += row[c] > own || (row[c] == own && c < label);
    const bool valid = !std::isnan(own);
    accuracy.correct1 += valid && ahead == 0;
    accuracy.correct5 += valid && ahead < 5;
    ++accuracy.images;
  }
}

Tensor infer(Graph& graph, const Tensor& images) {
  const EvaluationScope scope(graph);
  return graph(images).dense();
}

}  // namespace detent::nn
