// What range estimators look at: minimum and maximum per channel, and histograms.
#include <limits>
#include <mutex>
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/backends/cpu/rows.h"

namespace detent::cpu {
namespace {

constexpr RowExtent kNone = {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 0};

void join(RowExtent* a, const RowExtent& b) {
  a->min = b.min < a->min ? b.min : a->min;
  a->max = b.max > a->max ? b.max : a->max;
  a->nan += b.nan;
}

// Channels last: every row touches every channel.
std::vector<RowExtent> extents_channels_last(const MinMaxArgs& a, int64_t rows) {
  const int64_t c = a.view.channels;
  std::vector<RowExtent> part(static_cast<size_t>((a.view.outer + rows - 1) / rows * c), kNone);
  parallel_for(a.view.outer, rows, [&](int64_t begin, int64_t end) {
    RowExtent* e = part.data() + begin / rows * c;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < c; ++j) join(e + j, a.x[i * c + j] == a.x[i * c + j] ? RowExtent{a.x[i * c + j], a.x[i * c + j], 0} : RowExtent{kNone.min, kNone.max, 1});
    }
  });
  return part;
}

}  // namespace

void min_max(const MinMaxArgs& a) {
  const ChannelView& v = a.view;
  const int64_t pieces = (v.inner + kGrain - 1) / kGrain;
  const bool channels_last = v.inner == 1 && v.outer > 1 && v.channels > 1;
  std::vector<RowExtent> part;
  if (channels_last) {
    part = extents_channels_last(a, std::max<int64_t>(1, kGrain / v.channels));
  } else {
    const RowKernels& k = row_kernels();
    part.assign(static_cast<size_t>(v.outer * v.channels * pieces), kNone);
    parallel_for(std::ssize(part), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, v.inner)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % pieces * kGrain;
        k.extent(a.x + i / pieces * v.inner + first, std::min(kGrain, v.inner - first), &part[static_cast<size_t>(i)]);
      }
    });
  }
  const size_t group = static_cast<size_t>(channels_last ? 1 : pieces), channels = static_cast<size_t>(v.channels);
  for (size_t c = 0; c < channels; ++c) {
    RowExtent e = kNone;
    for (size_t first = c * group; first < part.size(); first += channels * group) {
      for (size_t p = first; p < first + group; ++p) join(&e, part[p]);
    }
    a.min[c] = e.min + 0.0f;  // which zero wins depends on the order: make it the positive one
    a.max[c] = e.max + 0.0f;
    if (a.nan) a.nan[c] = e.nan;
  }
}

void histogram_acc(const HistogramArgs& a) {
  std::vector<int64_t> total(static_cast<size_t>(a.bins) + 1);
  std::mutex mutex;  // integer counts: the order of the merge does not matter
  const RowKernels& k = row_kernels();
  const RowBins rule = {a.lo, a.width, a.bins, a.centred, a.clamp_ends};
  const int32_t zero_bin = bin_of(0.0f, rule);
  parallel_for(a.n, 4 * kGrain, [&](int64_t begin, int64_t end) {
    // Four counters per bin: equal neighbours would otherwise wait for each other's store. The last bin takes what is dropped.
    constexpr int64_t kBuffer = 1024;
    int32_t bin[kBuffer + kSumLanes];
    std::vector<uint32_t> count(4 * total.size());
    uint32_t* counter = count.data();
    int64_t zeros = 0;
    for (int64_t i = begin; i < end; i += kBuffer) {
      const int64_t all = std::min(kBuffer, end - i), n = k.bins(a.x + i, all, rule, bin);
      zeros += all - n;
      int64_t j = 0;
      for (; j + 4 <= n; j += 4) {
        for (int64_t u = 0; u < 4; ++u) ++counter[4 * bin[j + u] + u];
      }
      for (; j < n; ++j) ++counter[4 * bin[j]];
    }
    std::lock_guard lock(mutex);
    total[static_cast<size_t>(zero_bin)] += zeros;
    for (size_t b = 0; b < total.size(); ++b) {
      for (size_t j = 0; j < 4; ++j) total[b] += count[4 * b + j];
    }
  });
  for (int b = 0; b < a.bins; ++b) a.counts[b] += static_cast<double>(total[static_cast<size_t>(b)]);
}

}  // namespace detent::cpu
