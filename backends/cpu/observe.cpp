// What range estimators look at: minimum and maximum per channel, and histograms.
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {
namespace {

struct Extent {
  float min = std::numeric_limits<float>::infinity();
  float max = -std::numeric_limits<float>::infinity();
  int64_t nan = 0;
};

// Comparisons are false for NaN, so NaNs never become a minimum or a maximum.
Extent extent_of(const float* x, int64_t n, int64_t stride) {
  Extent e;
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) {
      e.min = x[i] < e.min ? x[i] : e.min;
      e.max = x[i] > e.max ? x[i] : e.max;
      e.nan += x[i] != x[i];
    }
    return e;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i * stride];
    e.min = v < e.min ? v : e.min;
    e.max = v > e.max ? v : e.max;
    e.nan += v != v;
  }
  return e;
}

void join(Extent* a, const Extent& b) {
  a->min = b.min < a->min ? b.min : a->min;
  a->max = b.max > a->max ? b.max : a->max;
  a->nan += b.nan;
}

}  // namespace

void min_max(const MinMaxArgs& a) {
  const ChannelView& v = a.view;
  const int64_t pieces = (v.inner + kGrain - 1) / kGrain, rows = v.outer * v.channels;
  std::vector<Extent> part(static_cast<size_t>(rows * pieces));
  parallel_for(rows * pieces, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, v.inner)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kGrain;
      part[static_cast<size_t>(i)] = extent_of(a.x + i / pieces * v.inner + first, std::min(kGrain, v.inner - first), 1);
    }
  });
  for (int64_t c = 0; c < v.channels; ++c) {
    Extent e;
    for (int64_t o = 0; o < v.outer; ++o) {
      for (int64_t p = 0; p < pieces; ++p) join(&e, part[static_cast<size_t>((o * v.channels + c) * pieces + p)]);
    }
    a.min[c] = e.min;
    a.max[c] = e.max;
    if (a.nan) a.nan[c] = e.nan;
  }
}

void histogram_acc(const HistogramArgs& a) {
  std::vector<int64_t> total(static_cast<size_t>(a.bins));
  std::mutex mutex;  // integer counts: the order of the merge does not matter
  parallel_for(a.n, 4 * kGrain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> count(static_cast<size_t>(a.bins));
    const float lo_bins = a.lo / a.width, last = static_cast<float>(a.bins - 1);
    for (int64_t i = begin; i < end; ++i) {
      const float x = a.x[i];
      float bin = a.centred ? std::round(x / a.width - lo_bins) : std::floor((x - a.lo) / a.width);
      if (a.clamp_ends) bin = bin < 0.0f ? 0.0f : (bin > last ? last : bin);
      if (bin >= 0.0f && bin <= last) ++count[static_cast<size_t>(bin)];
    }
    std::lock_guard lock(mutex);
    for (size_t k = 0; k < count.size(); ++k) total[k] += count[k];
  });
  for (size_t k = 0; k < total.size(); ++k) a.counts[k] += static_cast<double>(total[k]);
}

}  // namespace detent::cpu
