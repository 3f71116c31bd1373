// Training and evaluation loops over any source of batches. fit() is only a loop around Trainer::step; a loop of your own works as well. One thread a Graph and Trainer,
// but that several may run an evaluated Graph (nn/graph.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "detent/core/error.h"
#include "detent/core/recorded_step.h"
#include "detent/nn/graph.h"
#include "detent/nn/optimizer.h"

namespace detent::nn {

/// Evaluation mode without recording, within a scope.
class EvaluationScope {
 public:
  explicit EvaluationScope(Graph& graph) : graph_(graph), mode_(graph.mode()) { set(Mode::evaluation); }
  ~EvaluationScope() { set(mode_); }
  EvaluationScope(const EvaluationScope&) = delete;
  EvaluationScope& operator=(const EvaluationScope&) = delete;

 private:
  // Not written when it is that already: several threads may run an evaluated graph.
  void set(Mode mode) {
    if (graph_.mode() != mode) graph_.set_mode(mode);
  }
  Graph& graph_;
  Mode mode_;
  NoGrad no_grad_;
};

/// Shows every value of a pass to `tap` (Graph::set_tap) within a scope. Layers compute in float: on integers sums that go on to a ReLU would not be seen, nor a NaN.
class TapScope {
 public:
  TapScope(Graph& graph, Graph::Tap tap) : graph_(graph), products_(graph.products()) {
    graph_.set_products(Products::floats);
    graph_.set_tap(std::move(tap));
  }
  ~TapScope() {
    graph_.set_tap({});
    graph_.set_products(products_);
  }
  TapScope(const TapScope&) = delete;
  TapScope& operator=(const TapScope&) = delete;

 private:
  Graph& graph_;
  Products products_;
};

/// What one step did.
struct StepInfo {
  int64_t step = 0;   ///< counted from 1, over all epochs
  int64_t epoch = 0;  ///< counted from 0
  float loss = 0.0f;
  float learning_rate = 0.0f;
  int64_t images = 0;
};

/// Learning from a trained network (Hinton et al. 2015): the loss is (1 - weight) of the cross entropy and weight of distillation() (autograd/ops.h) towards the teacher's scores of
/// the same images. The float network can teach its quantized self: a copy of it, made before quantizers were placed.
struct Distillation {
  Graph* teacher = nullptr;  ///< null: no distillation. On the student's device, without quantizers; runs in evaluation mode and must outlive the Trainer
  float weight = 1.0f;       ///< 0..1; with 1 labels are not looked at
  float temperature = 4.0f;  ///< above 0: both networks' scores are divided by it
};

class ResidentGrids;

/// One step: forward, loss, backward, update of the parameters that the Graph has then, with the schedule's learning rate (the optimizer's own is
/// overwritten). A NaN or infinite loss or gradient is an Error that names the first layer with one; weights are then unchanged.
class Trainer {
 public:
  /// Both must outlive it. Throws Error for a schedule that makes no sense (Schedule::check).
  Trainer(Graph& graph, Optimizer& optimizer, const Schedule& schedule);
  ~Trainer();
  /// images [n,h,w,c], labels i64 [n].
  StepInfo step(const Tensor& images, const Tensor& labels);
  int64_t steps_done() const { return step_; }
  /// Continues a schedule that was interrupted after this many steps.
  void set_steps_done(int64_t steps) { step_ = steps; }
  float label_smoothing = 0.0f;
  /// A step throws Error for a weight or temperature that makes no sense, and for a teacher that is the trained network, has quantizers, other scores, or is on another device.
  Distillation distillation;
  /// Where the device records: forward and backward are recorded per shape and replayed (a CUDA graph); a CPU runs as without. Learned ranges become grids on the host before each
  /// replay. Quantizers that encode weights anew at each step read them there, and run step by step as before; so does what is executed node by node. After a change to the graph
  /// between two steps call forget_recordings().
  bool record = false;
  void forget_recordings();
  const RecordedStep& recorded() const { return recorded_; }
  int64_t freeze_batch_norm_after = -1;  ///< batch-norm statistics stay as they are from this many steps on; -1: never

 private:
  void check_teacher() const;
  Var loss(const Tensor& images, const Tensor& labels);
  std::vector<Tensor> forward_backward(const Tensor& images, const Tensor& labels);
  std::vector<Tensor> recorded_forward_backward(const Tensor& images, const Tensor& labels);

  Graph& graph_;
  Optimizer& optimizer_;
  Schedule schedule_;
  std::vector<Parameter*> parameters_;
  RecordedStep recorded_;
  std::unique_ptr<ResidentGrids> resident_grids_;
  int64_t step_ = 0;
};

/// Throws Error when a parameter or running statistic holds a NaN or an infinity: "what: ...", with its name. The last step of a run that diverges leaves them
/// behind, and only the next one would notice.
void require_finite(Graph& graph, std::string_view what);

/// The name of the first value with a NaN or an infinity when the network runs on these images, or "".
std::string first_nonfinite_value(Graph& graph, const Tensor& images);

struct Accuracy {
  int64_t images = 0;
  int64_t correct1 = 0, correct5 = 0;
  double top1() const { return images ? static_cast<double>(correct1) / static_cast<double>(images) : 0.0; }
  double top5() const { return images ? static_cast<double>(correct5) / static_cast<double>(images) : 0.0; }
};

/// Counts top-1 and top-5 of scores [n,classes]; equal scores: the lowest class index wins. NaN never counts as correct.
void count_correct(const Tensor& scores, const Tensor& labels, Accuracy& accuracy);

/// Throws Error when a value of the graph is being calibrated: what `action` would see then is not the network.
void require_ready(const Graph& graph, const char* action);

/// Runs the network in evaluation mode without recording.
Tensor infer(Graph& graph, const Tensor& images);

/// Accuracy over every batch of a range of batches (batch.images, batch.labels): io::Loader, or a std::vector. on_batch(images so far) may be empty.
template <class Source>
Accuracy evaluate(Graph& graph, Source&& source, const std::function<void(int64_t)>& on_batch = {}) {
  Accuracy a;
  require_ready(graph, "evaluation");
  for (const auto& batch : source) {
    count_correct(infer(graph, batch.images), batch.labels, a);
    if (on_batch) on_batch(a.images);
  }
  return a;
}

struct FitOptions {
  int64_t epochs = 1;
  float learning_rate = 1e-3f;
  float momentum = 0.9f;
  float weight_decay = 0.0f;
  int64_t max_steps = 0;                              ///< 0: no limit
  float average_weights = 0.0f;                       ///< the result is the average over about this share of the steps, the last ones (Optimizer::averaged_share); 0: the last
                                                      ///< step's. Statistics of batch norms left in are not averaged: nn::reestimate_batch_norm measures them anew
  std::function<bool(const StepInfo&)> on_step = {};  ///< false stops
  Distillation distillation = {};
};

/// Returns the steps done. SGD with momentum at a constant learning rate over `epochs` passes of `source`. On a GPU steps are recorded (Trainer::record): on_step must not change
/// the graph.
template <class Source>
int64_t fit(Graph& graph, Source&& source, const FitOptions& options) {
  DETENT_CHECK(options.epochs >= 0 && options.max_steps >= 0, "fit: ", options.epochs, " epochs and at most ", options.max_steps, " steps were asked for; give 0 or more");
  Sgd sgd({.learning_rate = options.learning_rate, .momentum = options.momentum, .weight_decay = options.weight_decay});
  sgd.averaged_share = options.average_weights;
  Trainer trainer(graph, sgd, {.base = options.learning_rate});
  trainer.distillation = options.distillation;
  trainer.record = true;
  bool stopped = false;
  for (int64_t epoch = 0; epoch < options.epochs && !stopped; ++epoch) {
    for (const auto& batch : source) {
      StepInfo info = trainer.step(batch.images, batch.labels);
      info.epoch = epoch;
      stopped = (options.on_step && !options.on_step(info)) || info.step == options.max_steps;
      if (stopped) break;
    }
  }
  if (options.average_weights > 0.0f && trainer.steps_done() > 0) sgd.use_averages(graph.parameters());
  return trainer.steps_done();
}

}  // namespace detent::nn
