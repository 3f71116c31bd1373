// Histograms of observed values, and how they take in batches. Counts are doubles; bin i is centred on lo + (i + 1/2) * width for every search.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "detent/core/math/quant_math.h"
#include "detent/core/tensor.h"

namespace detent::quant {

struct Histogram {
  double lo = 0.0, width = 0.0;
  std::vector<double> counts;  ///< empty: nothing seen
  int bins() const { return static_cast<int>(counts.size()); }
  double hi() const { return lo + width * bins(); }
  double edge(int i) const { return lo + i * width; }
  double centre(int i) const { return lo + (i + 0.5) * width; }
};

/// Left edges of the first and the last bin that hold anything. The histogram has at least one.
Range occupied_edges(const Histogram& h);

/// AIMET's histogram: initialised once, on the first batch that is not all zero, over three times its range; batches are averaged with equal weight and
/// what falls outside is dropped but keeps its share of the denominator.
struct FrozenHistogram {
  static constexpr int kBins = 512;
  Histogram h;            ///< counts are probabilities
  int64_t batches = 0;    ///< averaged so far
  bool all_zero = false;  ///< only zeros were seen so far
  /// `x` on any device, its n > 0 values and their extremes.
  void add(const Tensor& x, int64_t first, int64_t n, Range extremes);
};

/// A histogram over the exact range seen, which grows: counts of a narrower histogram move to the wider one's bins, those of a straddling bin in proportion.
struct GrowingHistogram {
  explicit GrowingHistogram(int bins = 2048) : bins(bins) {}
  int bins;
  Histogram h;
  Range seen;  ///< exact extremes
  void add(const Tensor& x, int64_t first, int64_t n, Range extremes);
};

/// Counts of `source` in the bins of a histogram with `bins` bins over [lo, hi], which contains it.
Histogram rebin(const Histogram& source, double lo, double hi, int bins);

}  // namespace detent::quant
