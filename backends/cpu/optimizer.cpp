// Optimizer steps: one pass over all tensors, cut into chunks of equal size that threads share.
#include <cmath>
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/core/math/optimizer_math.h"

namespace detent::cpu {
namespace {

constexpr int64_t kChunk = 32768;

struct Chunk {
  int64_t tensor, begin, end;
};

template <class TensorArgs>
std::vector<Chunk> chunks_of(const TensorArgs* tensors, int64_t count) {
  std::vector<Chunk> chunks;
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t i = 0; i < tensors[t].n; i += kChunk) chunks.push_back({t, i, std::min(tensors[t].n, i + kChunk)});
  }
  return chunks;
}

template <class TensorArgs>
void update_average(const TensorArgs& t, const Chunk& k, float newest) {
  const float* w = t.w;
  for (int64_t j = k.begin; t.average && j < k.end; ++j) average_update(t.average[j], w[j], newest);
}

}  // namespace

void sgd_step(const SgdArgs& a) {
  const std::vector<Chunk> chunks = chunks_of(a.tensors, a.count);
  parallel_for(static_cast<int64_t>(chunks.size()), 1, [&](int64_t i, int64_t) {
    const Chunk& k = chunks[static_cast<size_t>(i)];
    const SgdTensor& t = a.tensors[k.tensor];
    float* w = t.w;
    const float* g = t.g;
    const float lr = t.learning_rate, wd = t.weight_decay, momentum = a.momentum;
    if (!t.momentum) {
      for (int64_t j = k.begin; j < k.end; ++j) {
        float v = 0.0f;
        sgd_update(w[j], g[j], v, lr, wd, 0.0f, false);
      }
      return update_average(t, k, a.newest);
    }
    float* v = t.momentum;
    if (a.nesterov) {
      for (int64_t j = k.begin; j < k.end; ++j) sgd_update(w[j], g[j], v[j], lr, wd, momentum, true);
    } else {
      for (int64_t j = k.begin; j < k.end; ++j) sgd_update(w[j], g[j], v[j], lr, wd, momentum, false);
    }
    update_average(t, k, a.newest);
  });
}

void adam_step(const AdamArgs& a) {
  const std::vector<Chunk> chunks = chunks_of(a.tensors, a.count);
  const AdamFactors f = adam_factors(a.beta1, a.beta2, a.eps, a.step);
  parallel_for(static_cast<int64_t>(chunks.size()), 1, [&](int64_t i, int64_t) {
    const Chunk& k = chunks[static_cast<size_t>(i)];
    const AdamTensor& p = a.tensors[k.tensor];
    for (int64_t j = k.begin; j < k.end; ++j) adam_update(p.w[j], p.g[j], p.m[j], p.v[j], p.learning_rate, p.weight_decay, a.decoupled, f);
    update_average(p, k, a.newest);
  });
}

}  // namespace detent::cpu
