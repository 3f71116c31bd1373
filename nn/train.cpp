#include "detent/nn/train.h"

#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "detent/autograd/ops.h"
#include "detent/autograd/profile.h"
#include "detent/nn/passes/reestimate_batch_norm.h"
#include "detent/nn/resident_grids.h"

namespace detent::nn {
namespace {

// Index of the first tensor with an infinity or NaN, or -1; all are on one device and looked at in one go.
int64_t first_nonfinite(std::span<const Tensor> tensors) {
  if (tensors.empty()) return -1;
  std::vector<FloatSpan> spans;
  for (const Tensor& t : tensors) spans.push_back({t.data<float>(), t.elements()});
  std::vector<int64_t> bad(spans.size());
  backend(tensors[0].device()).kernels().count_nonfinite(spans.data(), static_cast<int64_t>(spans.size()), bad.data());
  for (size_t i = 0; i < bad.size(); ++i) {
    if (bad[i] > 0) return static_cast<int64_t>(i);
  }
  return -1;
}

bool finite(const Tensor& t) { return first_nonfinite({&t, 1}) < 0; }

}  // namespace

Trainer::Trainer(Graph& graph, Optimizer& optimizer, const Schedule& schedule)
    : graph_(graph), optimizer_(optimizer), schedule_(schedule), recorded_(graph.device()), resident_grids_(std::make_unique<ResidentGrids>()) {
  schedule.check();
}

Trainer::~Trainer() = default;

void Trainer::forget_recordings() { recorded_.forget(); }

void Trainer::check_teacher() const {
  Graph* teacher = distillation.teacher;
  if (!teacher) return;
  DETENT_CHECK(distillation.weight >= 0.0f && distillation.weight <= 1.0f, "distillation: weight ", distillation.weight, " is outside 0..1");
  DETENT_CHECK(std::isfinite(distillation.temperature) && distillation.temperature > 0.0f, "distillation: temperature ", distillation.temperature,
               "; give a finite number above 0");
  DETENT_CHECK(teacher != &graph_, "distillation: the teacher is the network that is trained; give a copy of it, made before quantizers were placed");
  DETENT_CHECK(teacher->transforms().empty(), "distillation: the teacher has ", teacher->transforms().size(), " quantizers; give the float network");
  DETENT_CHECK(teacher->device() == graph_.device(), "distillation: the teacher is on ", to_string(teacher->device()), ", the network on ", to_string(graph_.device()), "; move one of them (Graph::to)");
  const Shape theirs = teacher->value(teacher->scores()).shape, ours = graph_.value(graph_.scores()).shape;
  DETENT_CHECK(theirs == ours, "distillation: the teacher's scores are ", theirs, ", the network's ", ours, "; both need the same classes");
}

Var Trainer::loss(const Tensor& images, const Tensor& labels) {
  const auto& [teacher, weight, temperature] = distillation;
  if (!teacher) return softmax_cross_entropy(graph_(images), labels, label_smoothing);
  const Tensor target = infer(*teacher, images);  // first: what it computes is gone before the network's values are kept for their gradients
  const Var scores = graph_(images);
  const Var taught = affine(detent::distillation(scores, target, temperature), weight, 0.0f);
  return weight == 1.0f ? taught : add(affine(softmax_cross_entropy(scores, labels, label_smoothing), 1.0f - weight, 0.0f), taught);
}

// The loss, and the gradient of each parameter (undefined: none).
std::vector<Tensor> Trainer::forward_backward(const Tensor& images, const Tensor& labels) {
  Tape tape;
  const Var value = loss(images, labels);
  tape.backward(value);
  std::vector<Tensor> results{value.dense()};
  for (Parameter* p : parameters_) results.push_back(std::exchange(p->grad, Tensor()));
  return results;
}

std::vector<Tensor> Trainer::recorded_forward_backward(const Tensor& images, const Tensor& labels) {
  if (!distillation.teacher || distillation.weight < 1.0f) check_labels("training", labels, graph_.value(graph_.scores()).shape[-1]);
  const bool frozen = freeze_batch_norm_after >= 0 && step_ >= freeze_batch_norm_after;
  graph_.check_images(images);
  const std::string grids = resident_grids_->update(graph_.transforms(), graph_.device());
  const std::string taught = distillation.teacher ? text(" taught by ", reinterpret_cast<uintptr_t>(distillation.teacher), ' ', distillation.weight, ' ', distillation.temperature) : "";
  return recorded_.run(text(label_smoothing, taught, frozen ? " frozen batch norm" : "", grids), {images, labels},
                       [this](const std::vector<Tensor>& in) { return forward_backward(in[0], in[1]); });
}

StepInfo Trainer::step(const Tensor& images, const Tensor& labels) {
  require_ready(graph_, "training");
  check_teacher();
  // Folding, calibrating and freezing change which parameters there are.
  if (std::vector<Parameter*> parameters = graph_.parameters(); parameters != parameters_) {
    parameters_ = std::move(parameters);
    recorded_.forget();
  }
  StepInfo info;
  info.step = step_ + 1;
  info.images = images.dim(0);
  info.learning_rate = schedule_.at(step_);
  if (freeze_batch_norm_after >= 0 && step_ >= freeze_batch_norm_after) set_batch_norm_frozen(graph_, true);
  const bool recorded = record && backend(graph_.device()).records() && graph_.execution() == Graph::Execution::planned;
  const std::vector<Tensor> results = recorded ? recorded_forward_backward(images, labels) : forward_backward(images, labels);
  info.loss = results[0].item();
  if (!std::isfinite(info.loss)) {
    const NoGrad no_grad;
    if (Graph* teacher = distillation.teacher) {
      const std::string layer = first_nonfinite_value(*teacher, images);
      DETENT_CHECK(layer.empty(), "training: the loss is ", info.loss, " at step ", info.step, "; the teacher's first value that is not finite is \"", layer, "\"; look at its weights");
    }
    const std::string layer = first_nonfinite_value(graph_, images);
    fail("training: the loss is ", info.loss, " at step ", info.step, "; the first value that is not finite is \"", layer.empty() ? "loss" : layer,
         "\"; lower the learning rate or look at the data");
  }
  std::vector<const Parameter*> with_gradient;
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i]->grad = results[i + 1];
    if (!parameters_[i]->grad.defined()) continue;
    with_gradient.push_back(parameters_[i]);
    gradients.push_back(parameters_[i]->grad);
  }
  const int64_t bad = first_nonfinite(gradients);
  DETENT_CHECK(bad < 0, "training: the gradient of \"", with_gradient[static_cast<size_t>(bad)]->name, "\" is not finite at step ", info.step, " (loss ", info.loss,
               "); lower the learning rate");
  optimizer_.learning_rate = info.learning_rate;
  const Profile::Section section("optimizer");
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

void require_finite(Graph& graph, std::string_view what) {
  const auto check = [&](const std::string& name, const Tensor& t) {
    if (t.dtype() != DType::f32) return;
    const FloatSpan span{t.data<float>(), t.elements()};
    int64_t bad = 0;
    backend(t.device()).kernels().count_nonfinite(&span, 1, &bad);
    DETENT_CHECK(bad == 0, what, ": ", bad, " of ", t.elements(), " values of \"", name, "\" are not finite; training has diverged, lower the learning rate");
  };
  for (const Parameter* p : graph.parameters()) check(p->name, p->value);
  for (const auto& [name, tensor] : graph.state()) check(name, *tensor);
}

std::string first_nonfinite_value(Graph& graph, const Tensor& images) {
  std::string found;
  // Before the transform too: a quantizer turns NaN into zero.
  const TapScope tap(graph, [&](Value v, const Var& x, const Var& y) {
    if (found.empty() && !(finite(x.dense()) && finite(y.dense()))) found = graph.value(v).name;
  });
  graph(images);
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
