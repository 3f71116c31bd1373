// Batch-norm statistics measured anew on training data with the weights as they are now (aimet.md section 4): after training with batch norms left in, the
// running averages lag behind. Also freezing them. One thread uses a Graph at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "detent/nn/graph.h"
#include "detent/nn/layers.h"

namespace detent::nn {

/// The statistics that a re-estimation replaced; restore() puts them back. The Graph must outlive it, with its batch norms.
class BatchNormUndo {
 public:
  void restore();
  int64_t batches() const { return batches_; }  ///< that were averaged

 private:
  friend BatchNormUndo reestimate_batch_norm(Graph&, const std::function<bool()>&, int64_t);
  struct Saved {
    BatchNorm* norm;
    Tensor mean, var;
  };
  std::vector<Saved> saved_;
  int64_t batches_ = 0;
};

/// Every batch norm's running mean and variance become the mean of those of up to `batches` batches. `run_batch` runs the Graph on one batch and returns
/// false when there is none left; nothing is recorded, weights stay as they are. Throws Error, statistics unchanged, when no batch ran.
BatchNormUndo reestimate_batch_norm(Graph& graph, const std::function<bool()>& run_batch, int64_t batches = 100);

/// The same over a range of batches (batch.images): io::Loader, or a std::vector.
template <class Source>
BatchNormUndo reestimate_batch_norm_on(Graph& graph, Source&& source, int64_t batches = 100) {
  auto it = source.begin();
  const auto end = source.end();
  return reestimate_batch_norm(
      graph,
      [&] {
        if (!(it != end)) return false;
        graph((*it).images);
        ++it;
        return true;
      },
      batches);
}

/// Frozen: batch norms use their running statistics also while training, and leave them alone. Returns how many there are.
int set_batch_norm_frozen(Graph& graph, bool frozen);

}  // namespace detent::nn
