// Softmax over rows and cross-entropy on logits, one block for each row. Sums in double, in a fixed order.
#include <cmath>
#include <limits>

#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

constexpr int kRowThreads = 128;

struct RowShared {
  double part[kRowThreads];
};

// The sum, or the largest, of each thread's value; every thread may read shared.part[0] after it.
template <class B>
DETENT_HD void add_up(B& block, RowShared& shared) {
  for (int half = kRowThreads / 2; half > 0; half /= 2) {
    block.threads([&](int t) {
      if (t < half) shared.part[t] += shared.part[t + half];
    });
  }
}

template <class B>
DETENT_HD void row_max(B& block, RowShared& shared, const float* x, int64_t c) {
  block.threads([&](int t) {
    float m = -std::numeric_limits<float>::infinity();
    for (int64_t j = t; j < c; j += kRowThreads) m = x[j] > m ? x[j] : m;
    shared.part[t] = static_cast<double>(m);
  });
  for (int half = kRowThreads / 2; half > 0; half /= 2) {
    block.threads([&](int t) {
      if (t < half && shared.part[t + half] > shared.part[t]) shared.part[t] = shared.part[t + half];
    });
  }
}

struct Softmax {
  static constexpr int kThreads = kRowThreads;
  using Shared = RowShared;
  SoftmaxArgs a;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const float* x = a.x + block.index * a.c;
    float* y = a.y + block.index * a.c;
    row_max(block, shared, x, a.c);
    PerThread<B, double> sum;
    block.threads([&](int t) {
      const float m = static_cast<float>(shared.part[0]);
      sum[t] = 0.0;
      for (int64_t j = t; j < a.c; j += kRowThreads) {
        y[j] = expf(x[j] - m);
        sum[t] += static_cast<double>(y[j]);
      }
    });
    block.threads([&](int t) { shared.part[t] = sum[t]; });
    add_up(block, shared);
    block.threads([&](int t) {
      for (int64_t j = t; j < a.c; j += kRowThreads) y[j] = static_cast<float>(static_cast<double>(y[j]) / shared.part[0]);
    });
  }
};

struct SoftmaxBackward {
  static constexpr int kThreads = kRowThreads;
  using Shared = RowShared;
  SoftmaxArgs a;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const float *y = a.x + block.index * a.c, *dy = a.dy + block.index * a.c;
    float* dx = a.y + block.index * a.c;
    block.threads([&](int t) {
      double dot = 0.0;
      for (int64_t j = t; j < a.c; j += kRowThreads) dot += static_cast<double>(y[j]) * static_cast<double>(dy[j]);
      shared.part[t] = dot;
    });
    add_up(block, shared);
    block.threads([&](int t) {
      for (int64_t j = t; j < a.c; j += kRowThreads) dx[j] = static_cast<float>(static_cast<double>(y[j]) * (static_cast<double>(dy[j]) - shared.part[0]));
    });
  }
};

struct CrossEntropy {
  static constexpr int kThreads = kRowThreads;
  using Shared = RowShared;
  CrossEntropyArgs a;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t row = block.index;
    const float* x = a.logits + row * a.c;
    const double temperature = static_cast<double>(a.temperature), smoothing = static_cast<double>(a.label_smoothing);
    const double factor = static_cast<double>(a.row_scale) / temperature;
    row_max(block, shared, x, a.c);
    PerThread<B, double> largest, total, term;
    const auto z = [&](int t, int64_t j) { return (static_cast<double>(x[j]) - largest[t]) / temperature; };
    const auto target = [&](int64_t j) {
      if (!a.labels) return static_cast<double>(a.target[row * a.c + j]);
      return smoothing / static_cast<double>(a.c) + (j == a.labels[row] ? 1.0 - smoothing : 0.0);
    };
    block.threads([&](int t) { largest[t] = shared.part[0]; });
    block.threads([&](int t) {
      double sum = 0.0;
      for (int64_t j = t; j < a.c; j += kRowThreads) sum += exp(z(t, j));
      shared.part[t] = sum;
    });
    add_up(block, shared);
    block.threads([&](int t) {
      total[t] = shared.part[0];
      const double log_sum = log(total[t]);
      double loss = 0.0;
      for (int64_t j = t; j < a.c; j += kRowThreads) {
        const double p = target(j);
        if (p != 0.0) loss += p * (log_sum - z(t, j));
        if (a.dlogits) a.dlogits[row * a.c + j] = static_cast<float>((exp(z(t, j)) / total[t] - p) * factor);
      }
      term[t] = loss;
    });
    block.threads([&](int t) { shared.part[t] = term[t]; });
    add_up(block, shared);
    block.threads([&](int t) {
      if (t != 0 || !a.loss) return;
      // A label that is no class cannot be checked before: the loss tells.
      const bool valid = !a.labels || (a.labels[row] >= 0 && a.labels[row] < a.c);
      a.loss[row] = valid ? static_cast<float>(shared.part[0]) : std::numeric_limits<float>::quiet_NaN();
    });
  }
};

}  // namespace

void softmax(const SoftmaxArgs& a) { blocks("softmax", a.rows, Softmax{a}); }
void softmax_backward(const SoftmaxArgs& a) { blocks("softmax_backward", a.rows, SoftmaxBackward{a}); }
void cross_entropy(const CrossEntropyArgs& a) { blocks("cross_entropy", a.rows, CrossEntropy{a}); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
