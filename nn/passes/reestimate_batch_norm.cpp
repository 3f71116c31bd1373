#include "detent/nn/passes/reestimate_batch_norm.h"

#include "detent/autograd/tape.h"

namespace detent::nn {
namespace {

std::vector<BatchNorm*> batch_norms(Graph& graph) {
  std::vector<BatchNorm*> all;
  for (Graph::Node& n : graph.nodes()) {
    if (auto* norm = dynamic_cast<BatchNorm*>(n.module.get())) all.push_back(norm);
  }
  return all;
}

// Training mode in which a running value is the last batch's, until the scope ends.
class LastBatchScope {
 public:
  LastBatchScope(Graph& graph, const std::vector<BatchNorm*>& norms) : graph_(graph), norms_(norms), mode_(graph.mode()) {
    graph.set_mode(Mode::training);
    for (BatchNorm* n : norms_) {
      was_.push_back({n->options().momentum, n->frozen});
      n->options().momentum = 1.0f;
      n->frozen = false;
    }
  }
  ~LastBatchScope() {
    graph_.set_mode(mode_);
    for (size_t i = 0; i < norms_.size(); ++i) {
      norms_[i]->options().momentum = was_[i].momentum;
      norms_[i]->frozen = was_[i].frozen;
    }
  }
  LastBatchScope(const LastBatchScope&) = delete;
  LastBatchScope& operator=(const LastBatchScope&) = delete;

 private:
  struct Was {
    float momentum;
    bool frozen;
  };
  Graph& graph_;
  const std::vector<BatchNorm*>& norms_;
  Mode mode_;
  std::vector<Was> was_;
  NoGrad no_grad_;
};

void add_to(std::vector<double>& sum, const Tensor& t) {
  const std::vector<float> v = t.to_vector<float>();
  sum.resize(v.size(), 0.0);
  for (size_t i = 0; i < v.size(); ++i) sum[i] += static_cast<double>(v[i]);
}

void set_mean(Tensor& t, const std::vector<double>& sum, int64_t n) {
  std::vector<float> v(sum.size());
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(sum[i] / static_cast<double>(n));
  t.copy_from(Tensor::from<float>(t.shape(), v).to(t.device()));
}

}  // namespace

void BatchNormUndo::restore() {
  for (Saved& s : saved_) {
    s.norm->running_mean.copy_from(s.mean);
    s.norm->running_var.copy_from(s.var);
  }
}

BatchNormUndo reestimate_batch_norm(Graph& graph, const std::function<bool()>& run_batch, int64_t batches) {
  DETENT_CHECK(batches > 0, "reestimate_batch_norm: ", batches, " batches; give at least 1");
  const std::vector<BatchNorm*> norms = batch_norms(graph);
  BatchNormUndo undo;
  for (BatchNorm* n : norms) undo.saved_.push_back({n, n->running_mean.clone(), n->running_var.clone()});
  std::vector<std::vector<double>> mean(norms.size()), var(norms.size());
  try {
    const LastBatchScope scope(graph, norms);
    while (undo.batches_ < batches && run_batch()) {
      ++undo.batches_;
      for (size_t i = 0; i < norms.size(); ++i) {
        add_to(mean[i], norms[i]->running_mean);
        add_to(var[i], norms[i]->running_var);
      }
    }
    DETENT_CHECK(undo.batches_ > 0, "reestimate_batch_norm: no batch was run; give it training data");
  } catch (...) {
    undo.restore();
    throw;
  }
  for (size_t i = 0; i < norms.size(); ++i) {
    set_mean(norms[i]->running_mean, mean[i], undo.batches_);
    set_mean(norms[i]->running_var, var[i], undo.batches_);
  }
  return undo;
}

int set_batch_norm_frozen(Graph& graph, bool frozen) {
  const std::vector<BatchNorm*> norms = batch_norms(graph);
  for (BatchNorm* n : norms) n->frozen = frozen;
  return static_cast<int>(norms.size());
}

}  // namespace detent::nn
