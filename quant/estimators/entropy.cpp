// The entropy search. The idea is S. Migacz's (8-bit Inference with TensorRT, GTC 2017): of all windows of a histogram, take the one whose picture in 255
// levels is nearest to the whole, by the Kullback-Leibler divergence. 512 bins, the windows and the constants are those of AIMET's results, so that both agree.
#include <algorithm>
#include <cmath>
#include <limits>

#include "detent/quant/estimators/search.h"

namespace detent::quant {
namespace {

constexpr int kLevels = 255;
constexpr double kEpsilon = 1e-4;  // what an empty bin counts as

// The histogram over -m..m: every bin's count is dealt out to the new bins it overlaps, in whole counts from the left; rounding loses a few at the right.
Histogram mirrored(const Histogram& h, double m) {
  Histogram out{-m, 2.0 * m / h.bins(), std::vector<double>(h.counts.size(), 0.0)};
  for (int i = 0; i < h.bins(); ++i) {
    double left = h.counts[i];
    const double from = h.edge(i), to = h.edge(i + 1);
    int bin = static_cast<int>(std::clamp(std::floor((from - out.lo) / out.width), 0.0, out.bins() - 1.0));
    for (; left > 0.0 && bin < out.bins() && out.edge(bin) <= to; ++bin) {
      const double part = std::clamp((std::min(to, out.edge(bin + 1)) - std::max(from, out.edge(bin))) / h.width, 0.0, 1.0);
      const double dealt = std::min(left, std::round(part * h.counts[i]));
      out.counts[bin] += dealt;
      left -= dealt;
    }
  }
  return out;
}

struct Window {
  int first, last;  // bins, both inside
  int size() const { return last - first + 1; }
};

/// How far the picture of a window in 255 levels is from the counts that it saturates. Sums over runs of bins come from running totals.
class Divergence {
 public:
  explicit Divergence(const Histogram& h) : counts_(h.counts), mass_(h.counts.size() + 1, 0.0), occupied_(h.counts.size() + 1, 0) {
    for (size_t i = 0; i < counts_.size(); ++i) {
      mass_[i + 1] = mass_[i] + counts_[i];
      occupied_[i + 1] = occupied_[i] + (counts_[i] > 0.0);
    }
  }

  /// Infinite for an empty window.
  double operator()(Window w) const {
    const double inside = mass_[w.last + 1] - mass_[w.first], all = mass_.back();
    if (inside <= 0.0) return std::numeric_limits<double>::infinity();
    const int used = occupied_[w.last + 1] - occupied_[w.first];
    const int saturated = used + (counts_[w.first] == 0.0 && saturating(w, w.first) > 0.0) + (counts_[w.last] == 0.0 && saturating(w, w.last) > 0.0);
    const Smoothing truth(w.size(), saturated), picture(w.size(), used);
    double sum = 0.0;
    for (int level = 0; level < kLevels; ++level) {
      const int begin = start_of(w, level), end = start_of(w, level + 1), filled = occupied_[end] - occupied_[begin];
      const double each = filled > 0 ? (mass_[end] - mass_[begin]) / filled : 0.0;
      for (int i = begin; i < end; ++i) {
        const double p = truth(saturating(w, i)), q = picture(counts_[i] > 0.0 ? each : 0.0);
        if (p > 0.0 && q > 0.0) sum += p * std::log(p * inside / (q * all));
      }
    }
    return sum / all;
  }

 private:
  // Empty bins get epsilon each, the others pay for it in equal parts; not where one would pay a whole count.
  struct Smoothing {
    double gift, price;
    Smoothing(int bins, int filled) : gift(kEpsilon), price(filled > 0 ? kEpsilon * (bins - filled) / filled : 0.0) {
      if (filled == 0 || price >= 1.0) gift = price = 0.0;
    }
    double operator()(double count) const { return count > 0.0 ? count - price : gift; }
  };

  int start_of(Window w, int level) const { return w.first + static_cast<int>(std::ceil(level * static_cast<double>(w.size()) / kLevels)); }

  // A bin's count, the end bins with all that lies beyond them.
  double saturating(Window w, int i) const {
    return counts_[i] + (i == w.first ? mass_[w.first] : 0.0) + (i == w.last ? mass_.back() - mass_[w.last + 1] : 0.0);
  }

  const std::vector<double>& counts_;
  std::vector<double> mass_;
  std::vector<int> occupied_;
};

// Two bins less: one at each end, or both where that loses less. Zero stays inside.
Window shrunk(const Histogram& h, Window w) {
  const Window choices[] = {{w.first + 1, w.last - 1}, {w.first + 2, w.last}, {w.first, w.last - 2}};
  const double losses[] = {h.counts[w.first] + h.counts[w.last], h.counts[w.first] + h.counts[w.first + 1], h.counts[w.last] + h.counts[w.last - 1]};
  int best = -1;
  for (int i = 0; i < 3; ++i) {
    const bool holds_zero = h.edge(choices[i].first) <= 0.0 && h.edge(choices[i].last + 1) >= 0.0;
    if (holds_zero && (best < 0 || losses[i] < losses[best])) best = i;
  }
  return best < 0 ? choices[0] : choices[best];
}

}  // namespace

Range entropy_range(const Histogram& histogram, Range observed, const GridSpec& spec) {
  const bool mirror = is_signed_symmetric(observed, spec);
  const double m = std::max(-observed.min, observed.max);
  const Range whole = mirror ? Range{-m, m} : observed;
  if (spec.bits != 8 || histogram.bins() < kLevels) return whole;
  const Histogram h = mirror ? mirrored(histogram, m) : histogram;
  const Divergence divergence(h);
  Range best = whole;
  double least = std::numeric_limits<double>::infinity();
  for (Window w{0, h.bins() - 1}; w.size() >= kLevels; w = spec.symmetric ? Window{w.first + 1, w.last - 1} : shrunk(h, w)) {
    const double d = divergence(w);
    if (!std::isfinite(d)) break;
    if (d < least) least = d, best = {h.edge(w.first), h.edge(w.last + 1)};
  }
  return {std::min(best.min, 0.0), std::max(best.max, 0.0)};
}

}  // namespace detent::quant
