// Optimizer steps: one kernel over all parameters.
#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"
#include "detent/core/math/optimizer_math.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

constexpr int64_t kPer = 4096;

struct NoShared {};

// Calls fn(i) for the elements of a block's piece of its tensor.
template <class T, class Fn>
DETENT_HD void for_piece(const ChunkList& chunks, const T* tensors, int64_t block, int t, int threads, Fn&& fn) {
  const int64_t at = chunks.tensor_of(block);
  const T& tensor = tensors[at];
  const int64_t begin = (block - chunks.first[at]) * kPer, end = begin + kPer < tensor.n ? begin + kPer : tensor.n;
  for (int64_t i = begin + t; i < end; i += threads) fn(tensor, i);
}

struct SgdStep {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  const SgdTensor* tensors;
  ChunkList chunks;
  float momentum;
  bool nesterov;
  float newest;
  template <class B>
  DETENT_HD void operator()(B& block, Shared&) const {
    block.threads([&](int t) {
      for_piece(chunks, tensors, block.index, t, kThreads, [&](const SgdTensor& p, int64_t i) {
        float none = 0.0f;
        sgd_update(p.w[i], p.g[i], p.momentum ? p.momentum[i] : none, p.learning_rate, p.weight_decay, p.momentum ? momentum : 0.0f, p.momentum && nesterov);
        if (p.average) average_update(p.average[i], p.w[i], newest);
      });
    });
  }
};

struct AdamStep {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  const AdamTensor* tensors;
  ChunkList chunks;
  AdamFactors factors;
  bool decoupled;
  float newest;
  template <class B>
  DETENT_HD void operator()(B& block, Shared&) const {
    block.threads([&](int t) {
      for_piece(chunks, tensors, block.index, t, kThreads, [&](const AdamTensor& p, int64_t i) {
        adam_update(p.w[i], p.g[i], p.m[i], p.v[i], p.learning_rate, p.weight_decay, decoupled, factors);
        if (p.average) average_update(p.average[i], p.w[i], newest);
      });
    });
  }
};

// Calls launch(tensors on the device, chunks, blocks).
template <class T, class Fn>
void over_tensors(const T* tensors, int64_t count, Fn&& launch) {
  if (count == 0) return;
  const std::vector<int64_t> first = first_blocks(tensors, count, kPer);
  const Uploaded<T> placed(tensors, count);
  const Uploaded<int64_t> first_placed(first.data(), count + 1);
  launch(placed.get(), ChunkList{first_placed.get(), count}, first.back());
}

}  // namespace

void sgd_step(const SgdArgs& a) {
  over_tensors(a.tensors, a.count, [&](const SgdTensor* t, const ChunkList& chunks, int64_t n) { blocks("sgd_step", n, SgdStep{t, chunks, a.momentum, a.nesterov, a.newest}); });
}

void adam_step(const AdamArgs& a) {
  const AdamFactors f = adam_factors(a.beta1, a.beta2, a.eps, a.step);
  over_tensors(a.tensors, a.count, [&](const AdamTensor* t, const ChunkList& chunks, int64_t n) { blocks("adam_step", n, AdamStep{t, chunks, f, a.decoupled, a.newest}); });
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
