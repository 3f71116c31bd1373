// What range estimators look at: minimum and maximum per channel, and histograms.
#include <limits>

#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"
#include "detent/core/math/observe_math.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

constexpr int64_t kPiece = 65536;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Comparisons are false for NaN, so NaNs never become a minimum or a maximum.
struct Extent {
  float min, max;
  int64_t nan;
  DETENT_HD void take(float x) {
    min = x < min ? x : min;
    max = x > max ? x : max;
    nan += x != x;
  }
  DETENT_HD void join(const Extent& e) {
    min = e.min < min ? e.min : min;
    max = e.max > max ? e.max : max;
    nan += e.nan;
  }
};

DETENT_HD Extent no_extent() { return {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 0}; }

// One block for each piece of a row.
struct RowExtents {
  static constexpr int kThreads = 256;
  struct Shared {
    Extent part[kThreads];
  };
  int64_t inner, pieces;
  const float* x;
  Extent* part;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    block.threads([&](int t) {
      const int64_t row = block.index / pieces, begin = block.index % pieces * kPiece, end = begin + kPiece < inner ? begin + kPiece : inner;
      Extent e = no_extent();
      for (int64_t i = begin + t; i < end; i += kThreads) e.take(x[row * inner + i]);
      shared.part[t] = e;
    });
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.threads([&](int t) {
        if (t < half) shared.part[t].join(shared.part[t + half]);
      });
    }
    block.threads([&](int t) {
      if (t == 0) part[block.index] = shared.part[0];
    });
  }
};

// Channels last: one thread for each (slab of rows, channel).
struct ColumnExtents {
  int64_t outer, channels, rows;
  const float* x;
  Extent* part;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t slab = i / channels, c = i - slab * channels, end = (slab + 1) * rows < outer ? (slab + 1) * rows : outer;
    Extent e = no_extent();
    for (int64_t r = slab * rows; r < end; ++r) e.take(x[r * channels + c]);
    part[i] = e;
  }
};

struct JoinExtents {
  static constexpr int kThreads = 256;
  struct Shared {
    Extent part[kThreads];
  };
  int64_t channels, group, own;
  const Extent* part;
  MinMaxArgs a;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t c = block.index;
    block.threads([&](int t) {
      Extent e = no_extent();
      for (int64_t p = t; p < own; p += kThreads) e.join(part[(p / group * channels + c) * group + p % group]);
      shared.part[t] = e;
    });
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.threads([&](int t) {
        if (t < half) shared.part[t].join(shared.part[t + half]);
      });
    }
    block.threads([&](int t) {
      if (t != 0) return;
      a.min[c] = shared.part[0].min + 0.0f;  // which zero wins depends on the order: make it the positive one
      a.max[c] = shared.part[0].max + 0.0f;
      if (a.nan) a.nan[c] = shared.part[0].nan;
    });
  }
};

struct BinRule {
  float lo, width, lo_bins;
  int32_t bins;
  bool centred, clamp_ends;
  DETENT_HD int32_t of(float x) const { return histogram_bin(x, lo, width, lo_bins, bins, centred, clamp_ends); }
};

// Integer counts: the order of the additions does not matter.
struct Histogram {
  static constexpr int kThreads = 256;
  static constexpr int32_t kSharedBins = 8192;
  struct Shared {
    int32_t count[kSharedBins];
  };
  BinRule rule;
  const float* x;
  int64_t n;
  unsigned long long* total;  // [bins]
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t begin = block.index * kPiece, end = begin + kPiece < n ? begin + kPiece : n;
    const bool within = rule.bins <= kSharedBins;
    block.threads([&](int t) {
      for (int32_t b = t; within && b < rule.bins; b += kThreads) shared.count[b] = 0;
    });
    block.threads([&](int t) {
      for (int64_t i = begin + t; i < end; i += kThreads) {
        const int32_t b = rule.of(x[i]);
        if (b == rule.bins) continue;
        within ? add_integer(&shared.count[b], 1) : add_integer(&total[b], 1ull);
      }
    });
    block.threads([&](int t) {
      for (int32_t b = t; within && b < rule.bins; b += kThreads) {
        if (shared.count[b] > 0) add_integer(&total[b], static_cast<unsigned long long>(shared.count[b]));
      }
    });
  }
};

struct ZeroCounts {
  unsigned long long* total;
  DETENT_HD void operator()(int64_t i) const { total[i] = 0; }
};

struct AddCounts {
  const unsigned long long* total;
  double* counts;
  DETENT_HD void operator()(int64_t i) const { counts[i] += static_cast<double>(total[i]); }
};

}  // namespace

void min_max(const MinMaxArgs& a) {
  const ChannelView& v = a.view;
  const bool channels_last = v.inner == 1 && v.outer > 1 && v.channels > 1;
  const int64_t rows = 256, pieces = ceil_div(v.inner, kPiece);
  const int64_t parts = channels_last ? ceil_div(v.outer, rows) * v.channels : v.outer * v.channels * pieces;
  const Scratch<Extent> part(parts);
  if (channels_last) {
    elements("min_max", parts, ColumnExtents{v.outer, v.channels, rows, a.x, part.get()});
  } else {
    blocks("min_max", parts, RowExtents{v.inner, pieces, a.x, part.get()});
  }
  blocks("min_max", v.channels, JoinExtents{v.channels, channels_last || pieces == 0 ? 1 : pieces, parts / v.channels, part.get(), a});
}

void histogram_acc(const HistogramArgs& a) {
  const Scratch<unsigned long long> total(a.bins);
  elements("histogram", a.bins, ZeroCounts{total.get()});
  blocks("histogram", ceil_div(a.n, kPiece), Histogram{{a.lo, a.width, a.lo / a.width, a.bins, a.centred, a.clamp_ends}, a.x, a.n, total.get()});
  elements("histogram", a.bins, AddCounts{total.get(), a.counts});
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
