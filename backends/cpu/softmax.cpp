// Softmax over rows and cross-entropy on logits. Sums in double; a row is small.
#include <cmath>
#include <limits>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {
namespace {

int64_t row_grain(int64_t c) { return std::max<int64_t>(1, 4096 / std::max<int64_t>(1, c)); }

float row_max(const float* x, int64_t c) {
  float m = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < c; ++j) m = x[j] > m ? x[j] : m;
  return m;
}

}  // namespace

void softmax(const SoftmaxArgs& a) {
  parallel_for(a.rows, row_grain(a.c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* x = a.x + i * a.c;
      float* y = a.y + i * a.c;
      const float m = row_max(x, a.c);
      double sum = 0.0;
      for (int64_t j = 0; j < a.c; ++j) {
        y[j] = std::exp(x[j] - m);
        sum += static_cast<double>(y[j]);
      }
      for (int64_t j = 0; j < a.c; ++j) y[j] = static_cast<float>(static_cast<double>(y[j]) / sum);
    }
  });
}

void softmax_backward(const SoftmaxArgs& a) {
  parallel_for(a.rows, row_grain(a.c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float *y = a.x + i * a.c, *dy = a.dy + i * a.c;
      float* dx = a.y + i * a.c;
      double dot = 0.0;
      for (int64_t j = 0; j < a.c; ++j) dot += static_cast<double>(y[j]) * static_cast<double>(dy[j]);
      for (int64_t j = 0; j < a.c; ++j) dx[j] = static_cast<float>(static_cast<double>(y[j]) * (static_cast<double>(dy[j]) - dot));
    }
  });
}

void cross_entropy(const CrossEntropyArgs& a) {
  const double temperature = static_cast<double>(a.temperature), smoothing = static_cast<double>(a.label_smoothing);
  const double factor = static_cast<double>(a.row_scale) / temperature;
  parallel_for(a.rows, row_grain(a.c), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* x = a.logits + i * a.c;
      const double m = static_cast<double>(row_max(x, a.c));
      const auto z = [&](int64_t j) { return (static_cast<double>(x[j]) - m) / temperature; };
      const auto target = [&](int64_t j) {
        if (!a.labels) return static_cast<double>(a.target[i * a.c + j]);
        return smoothing / static_cast<double>(a.c) + (j == a.labels[i] ? 1.0 - smoothing : 0.0);
      };
      double sum = 0.0;
      for (int64_t j = 0; j < a.c; ++j) sum += std::exp(z(j));
      const double log_sum = std::log(sum);
      double loss = 0.0;
      for (int64_t j = 0; j < a.c; ++j) {
        const double t = target(j);
        if (t != 0.0) loss += t * (log_sum - z(j));
        if (a.dlogits) a.dlogits[i * a.c + j] = static_cast<float>((std::exp(z(j)) / sum - t) * factor);
      }
      if (a.loss) a.loss[i] = static_cast<float>(loss);
    }
  });
}

}  // namespace detent::cpu
