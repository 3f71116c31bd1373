// The entropy (Kullback-Leibler) search: the window of the histogram whose 255 merged levels tell the most about it (aimet.md section 1.5).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "detent/quant/estimators/search.h"

namespace detent::quant {
namespace {

constexpr int kLevels = 255;
constexpr double kEpsilon = 1e-4;

// The counts over -m..m, shared out by overlap in whole counts; what rounding leaves over is dropped, as in AIMET.
Histogram mirrored(const Histogram& h, double m) {
  const int bins = h.bins();
  Histogram out{-m, 2.0 * m / bins, std::vector<double>(h.counts.size(), 0.0)};
  const auto clamped = [&](double bin) { return static_cast<int>(std::clamp(bin, 0.0, bins - 1.0)); };
  for (int i = 0; i < bins; ++i) {
    const double n = h.counts[i];
    if (n == 0.0) continue;
    const double a = h.edge(i), b = h.edge(i + 1);
    const int first = clamped(std::floor((a - out.lo) / out.width)), last = clamped(std::ceil((b - out.lo) / out.width));
    double left = n;
    for (int j = first; j <= last; ++j) {
      const double overlap = std::min(b, out.edge(j + 1)) - std::max(a, out.edge(j));
      const double share = std::min(std::round(std::clamp(overlap / h.width, 0.0, 1.0) * n), left);
      out.counts[j] += share;
      left -= share;
    }
  }
  return out;
}

// Zeros become epsilon, taken from the others in equal parts.
void smooth(std::vector<double>& v) {
  const auto zeros = std::count(v.begin(), v.end(), 0.0);
  const auto others = static_cast<int64_t>(v.size()) - zeros;
  if (others == 0) return;
  const double less = kEpsilon * static_cast<double>(zeros) / static_cast<double>(others);
  if (less >= 1.0) return;
  for (double& x : v) x = x == 0.0 ? kEpsilon : x - less;
}

/// Bins first..last of a histogram: how far its 255 levels are from it. Infinite when nothing lies inside.
class Divergence {
 public:
  explicit Divergence(const std::vector<double>& counts) : counts_(counts), before_(counts.size() + 1, 0.0) {
    for (size_t i = 0; i < counts.size(); ++i) before_[i + 1] = before_[i] + counts[i];
  }

  double operator()(int first, int last) const {
    const auto n = static_cast<size_t>(last - first + 1);
    std::vector<double> p(counts_.begin() + first, counts_.begin() + last + 1), q = merged(p);
    if (std::all_of(q.begin(), q.end(), [](double x) { return x == 0.0; })) return std::numeric_limits<double>::infinity();
    p.front() += before_[first];  // what is outside saturates
    p.back() += before_.back() - before_[last + 1];
    smooth(p);
    smooth(q);
    const double sp = std::accumulate(p.begin(), p.end(), 0.0), sq = std::accumulate(q.begin(), q.end(), 0.0);
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
      if (p[i] > 0.0 && q[i] > 0.0) sum += p[i] / sp * std::log(p[i] / sp * (sq / q[i]));
    }
    return sum;
  }

 private:
  // Each level's counts, spread evenly over its occupied bins.
  static std::vector<double> merged(const std::vector<double>& p) {
    std::vector<double> q(p.size(), 0.0);
    const double each = static_cast<double>(p.size()) / kLevels;
    for (int level = 0; level < kLevels; ++level) {
      const auto begin = static_cast<size_t>(std::ceil(level * each)), end = level + 1 < kLevels ? static_cast<size_t>(std::ceil((level + 1) * each)) : p.size();
      double sum = 0.0, occupied = 0.0;
      for (size_t i = begin; i < end; ++i) sum += p[i], occupied += p[i] != 0.0;
      for (size_t i = begin; i < end; ++i) q[i] = p[i] != 0.0 ? sum / occupied : 0.0;
    }
    return q;
  }

  const std::vector<double>& counts_;
  std::vector<double> before_;
};

struct Window {
  int first, last;
};

// The next smaller window: two bins less where the fewest counts go, but zero stays inside.
Window shrunk(const Histogram& h, Window w) {
  enum { both, left, right } side = both;
  const double at_left = h.counts[w.first], at_right = h.counts[w.last];
  const double losses[] = {at_left + at_right, at_left + h.counts[w.first + 1], at_right + h.counts[w.last - 1]};
  if (losses[left] < losses[side]) side = left;
  if (losses[right] < losses[side]) side = right;
  if ((side == both && h.edge(w.first + 1) > 0.0) || (side == left && h.edge(w.first + 2) > 0.0)) {
    side = right;
  } else if ((side == both && h.edge(w.last) < 0.0) || (side == right && h.edge(w.last - 1) < 0.0)) {
    side = left;
  }
  switch (side) {
    case both:
      return {w.first + 1, w.last - 1};
    case left:
      return {w.first + 2, w.last};
    case right:
      break;
  }
  return {w.first, w.last - 2};
}

}  // namespace

Range entropy_range(const Histogram& histogram, Range observed, const GridSpec& spec) {
  const bool mirror = is_signed_symmetric(observed, spec);
  const double m = std::max(-observed.min, observed.max);
  const Range whole = mirror ? Range{-m, m} : observed;
  if (spec.bits != 8 || histogram.bins() < kLevels) return whole;
  const Histogram h = mirror ? mirrored(histogram, m) : histogram;
  const Divergence divergence(h.counts);
  Range best = whole;
  double least = std::numeric_limits<double>::infinity();
  for (Window w{0, h.bins() - 1}; w.last - w.first + 1 >= kLevels; w = spec.symmetric ? Window{w.first + 1, w.last - 1} : shrunk(h, w)) {
    const double d = divergence(w.first, w.last);
    if (!std::isfinite(d)) break;
    if (d < least) least = d, best = {h.edge(w.first), h.edge(w.last + 1)};
  }
  return {std::min(best.min, 0.0), std::max(best.max, 0.0)};
}

}  // namespace detent::quant
