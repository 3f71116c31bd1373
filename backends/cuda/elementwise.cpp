// fill, accumulate, scale, count_nonfinite, pointwise and its backward.
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

struct Fill {
  float* y;
  float value;
  DETENT_HD void operator()(int64_t i) const { y[i] = value; }
};

struct Accumulate {
  float* y;
  const float* x;
  DETENT_HD void operator()(int64_t i) const { y[i] += x[i]; }
};

struct Scale {
  float* y;
  const float* x;
  float factor;
  DETENT_HD void operator()(int64_t i) const { y[i] = factor * x[i]; }
};

// One count per block of kPer elements.
struct CountNonfinite {
  static constexpr int kThreads = 256;
  static constexpr int64_t kPer = 65536;
  struct Shared {
    int32_t part[kThreads];
  };
  const float* x;
  int64_t n;
  int64_t* counts;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    block.threads([&](int t) {
      const int64_t first = block.index * kPer, last = first + kPer < n ? first + kPer : n;
      int32_t bad = 0;
      for (int64_t i = first + t; i < last; i += kThreads) bad += !(x[i] - x[i] == 0.0f);
      shared.part[t] = bad;
    });
    block.threads([&](int t) {
      if (t != 0) return;
      int64_t sum = 0;
      for (int k = 0; k < kThreads; ++k) sum += shared.part[k];
      counts[block.index] = sum;
    });
  }
};

template <class F>
struct Forward {
  const float* x;
  float* y;
  float a, b;
  DETENT_HD void operator()(int64_t i) const { y[i] = F::fwd(x[i], a, b); }
};

template <class F>
struct Backward {
  const float* x;
  const float* y;
  const float* dy;
  float* dx;
  float a, b;
  DETENT_HD void operator()(int64_t i) const { dx[i] = F::bwd(x[i], y[i], dy[i], a, b); }
};

}  // namespace

void fill(float* y, float value, int64_t n) { elements("fill", n, Fill{y, value}); }
void accumulate(float* y, const float* x, int64_t n) { elements("accumulate", n, Accumulate{y, x}); }
void scale(float* y, const float* x, float factor, int64_t n) { elements("scale", n, Scale{y, x, factor}); }

int64_t count_nonfinite(const float* x, int64_t n) {
  const int64_t parts = (n + CountNonfinite::kPer - 1) / CountNonfinite::kPer;
  if (parts == 0) return 0;
  const Scratch<int64_t> counts(parts);
  blocks("count_nonfinite", parts, CountNonfinite{x, n, counts.get()});
  int64_t total = 0;
  int64_t host[256];
  for (int64_t first = 0; first < parts; first += 256) {
    const int64_t m = parts - first < 256 ? parts - first : 256;
    download_bytes(host, counts.get() + first, static_cast<size_t>(m) * sizeof(int64_t));
    for (int64_t i = 0; i < m; ++i) total += host[i];
  }
  return total;
}

void pointwise(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() { elements(name_of(a.op.kind), a.n, Forward<F>{a.x, a.out, a.op.a, a.op.b}); });
}

void pointwise_backward(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() { elements(name_of(a.op.kind), a.n, Backward<F>{a.x, a.y, a.dy, a.out, a.op.a, a.op.b}); });
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
