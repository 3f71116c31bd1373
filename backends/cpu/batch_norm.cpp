// Batch norm over rows of [rows,c], vectorised across c. Rows are cut into blocks that stay in the cache; float sums within a block, double across blocks.
#include <cmath>
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {
namespace {

constexpr int64_t kBlocksPerTask = 16;

int64_t block_rows(int64_t c) { return std::clamp<int64_t>(16384 / std::max<int64_t>(c, 1), 32, 1024); }


// mean and M2 of rows [begin,end) as float, from two passes over data that the first has brought into the cache.
void block_moments(const float* x, int64_t begin, int64_t end, int64_t c, float* mean, float* m2) {
  for (int64_t j = 0; j < c; ++j) mean[j] = m2[j] = 0.0f;
  for (int64_t i = begin; i < end; ++i) {
    const float* row = x + i * c;
    for (int64_t j = 0; j < c; ++j) mean[j] += row[j];
  }
  const float n = static_cast<float>(end - begin);
  for (int64_t j = 0; j < c; ++j) mean[j] /= n;
  for (int64_t i = begin; i < end; ++i) {
    const float* row = x + i * c;
    for (int64_t j = 0; j < c; ++j) {
      const float d = row[j] - mean[j];
      m2[j] += d * d;
    }
  }
}

// Chan et al. 1983: joins (nb, mb, sb) into (na, ma, sa).
template <class T>
void merge_moments(int64_t na, double* ma, double* sa, int64_t nb, const T* mb, const T* sb, int64_t c) {
  const double n = static_cast<double>(na + nb);
  const double fb = static_cast<double>(nb) / n, fab = static_cast<double>(na) * fb;
  for (int64_t j = 0; j < c; ++j) {
    const double d = static_cast<double>(mb[j]) - ma[j];
    ma[j] += d * fb;
    sa[j] += static_cast<double>(sb[j]) + d * d * fab;
  }
}

}  // namespace

void batch_norm_stats(const BatchNormStatsArgs& a) {
  const int64_t c = a.c, block = block_rows(c), task_rows = block * kBlocksPerTask;
  const int64_t tasks = (a.rows + task_rows - 1) / task_rows;
  std::vector<double> mean(static_cast<size_t>(tasks * c)), m2(static_cast<size_t>(tasks * c));
  parallel_chunks(tasks, [&](int64_t t) {
    std::vector<float> bm(static_cast<size_t>(c)), bs(static_cast<size_t>(c));
    const int64_t first = t * task_rows, last = std::min(a.rows, first + task_rows);
    for (int64_t begin = first; begin < last; begin += block) {
      const int64_t end = std::min(last, begin + block);
      block_moments(a.x, begin, end, c, bm.data(), bs.data());
      merge_moments(begin - first, mean.data() + t * c, m2.data() + t * c, end - begin, bm.data(), bs.data(), c);
    }
  });
  for (int64_t t = 1; t < tasks; ++t) {
    merge_moments(t * task_rows, mean.data(), m2.data(), std::min(task_rows, a.rows - t * task_rows), mean.data() + t * c, m2.data() + t * c, c);
  }
  for (int64_t j = 0; j < c; ++j) {
    a.mean[j] = tasks > 0 ? static_cast<float>(mean[static_cast<size_t>(j)]) : 0.0f;
    a.var[j] = tasks > 0 ? static_cast<float>(m2[static_cast<size_t>(j)] / static_cast<double>(a.rows)) : 0.0f;
  }
}

void batch_norm(const BatchNormArgs& a) {
  const int64_t c = a.c;
  std::vector<float> factor(static_cast<size_t>(c)), shift(static_cast<size_t>(c));
  for (int64_t j = 0; j < c; ++j) {
    factor[static_cast<size_t>(j)] = (a.gamma ? a.gamma[j] : 1.0f) / std::sqrt(a.var[j] + a.eps);
    shift[static_cast<size_t>(j)] = a.beta ? a.beta[j] : 0.0f;
  }
  parallel_for(a.rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(c, 1)), [&](int64_t begin, int64_t end) {
    const float *mean = a.mean, *f = factor.data(), *b = shift.data();
    const float lo = a.clamp_min, hi = a.clamp_max;
    for (int64_t i = begin; i < end; ++i) {
      const float* x = a.x + i * c;
      float* y = a.y + i * c;
      for (int64_t j = 0; j < c; ++j) {
        const float v = (x[j] - mean[j]) * f[j] + b[j];
        y[j] = v < lo ? lo : (v > hi ? hi : v);
      }
    }
  });
}

void batch_norm_backward(const BatchNormBackwardArgs& a) {
  const int64_t c = a.c, block = block_rows(c), task_rows = block * kBlocksPerTask;
  const int64_t tasks = (a.rows + task_rows - 1) / task_rows;
  const bool masked = std::isfinite(a.clamp_min) || std::isfinite(a.clamp_max);
  const float lo = a.clamp_min, hi = a.clamp_max;
  // Per channel: sum dy and sum dy * (x - mean).
  std::vector<double> sum(static_cast<size_t>(tasks * c)), dot(static_cast<size_t>(tasks * c));
  parallel_chunks(tasks, [&](int64_t t) {
    std::vector<float> bs(static_cast<size_t>(c)), bd(static_cast<size_t>(c));
    const int64_t first = t * task_rows, last = std::min(a.rows, first + task_rows);
    for (int64_t begin = first; begin < last; begin += block) {
      bs.assign(bs.size(), 0.0f);
      bd.assign(bd.size(), 0.0f);
      float *s = bs.data(), *d = bd.data();
      const float* mean = a.mean;
      for (int64_t i = begin; i < std::min(last, begin + block); ++i) {
        const float *x = a.x + i * c, *dy = a.dy + i * c, *y = a.y + i * c;
        for (int64_t j = 0; j < c; ++j) {
          const float g = masked && (y[j] <= lo || y[j] >= hi) ? 0.0f : dy[j];
          s[j] += g;
          d[j] += g * (x[j] - mean[j]);
        }
      }
      for (int64_t j = 0; j < c; ++j) {
        sum[static_cast<size_t>(t * c + j)] += static_cast<double>(s[j]);
        dot[static_cast<size_t>(t * c + j)] += static_cast<double>(d[j]);
      }
    }
  });
  // dx = k1 * dy - k2 - k3 * (x - mean)
  std::vector<float> k1(static_cast<size_t>(c)), k2(static_cast<size_t>(c)), k3(static_cast<size_t>(c));
  for (int64_t j = 0; j < c; ++j) {
    double s = 0.0, d = 0.0;
    for (int64_t t = 0; t < tasks; ++t) {
      s += sum[static_cast<size_t>(t * c + j)];
      d += dot[static_cast<size_t>(t * c + j)];
    }
    const double inverse = 1.0 / std::sqrt(static_cast<double>(a.var[j]) + static_cast<double>(a.eps));
    const double factor = (a.gamma ? static_cast<double>(a.gamma[j]) : 1.0) * inverse;
    if (a.dgamma) a.dgamma[j] = static_cast<float>(d * inverse);
    if (a.dbeta) a.dbeta[j] = static_cast<float>(s);
    const double rows = static_cast<double>(std::max<int64_t>(a.rows, 1));
    k1[static_cast<size_t>(j)] = static_cast<float>(factor);
    k2[static_cast<size_t>(j)] = a.training ? static_cast<float>(factor * s / rows) : 0.0f;
    k3[static_cast<size_t>(j)] = a.training ? static_cast<float>(factor * d * inverse * inverse / rows) : 0.0f;
  }
  if (!a.dx) return;
  parallel_for(a.rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(c, 1)), [&](int64_t begin, int64_t end) {
    const float *mean = a.mean, *f1 = k1.data(), *f2 = k2.data(), *f3 = k3.data();
    for (int64_t i = begin; i < end; ++i) {
      const float *x = a.x + i * c, *dy = a.dy + i * c, *y = a.y + i * c;
      float* dx = a.dx + i * c;
      for (int64_t j = 0; j < c; ++j) {
        const float g = masked && (y[j] <= lo || y[j] >= hi) ? 0.0f : dy[j];
        dx[j] = f1[j] * g - f2[j] - f3[j] * (x[j] - mean[j]);
      }
    }
  });
}

}  // namespace detent::cpu
