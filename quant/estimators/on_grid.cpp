#include "detent/quant/estimators/on_grid.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

namespace detent::quant {
namespace {

constexpr size_t kEvidence = 3;    // different magnitudes that make a common scale no accident
constexpr int kFewLevels = 4;      // up to so many bits a channel may have fewer of them; then values that repeat are the evidence
constexpr int64_t kRepeated = 4;   // that many values at least, each magnitude twice on average
constexpr int kLargestGap = 8;   // neighbouring codes in use may be so far apart
constexpr double kNearWhole = 0.1;

// The different values of a channel in order, or too many of them to lie on the grid.
struct Values {
  std::vector<float> sorted;
  int64_t nonzero = 0;
  bool too_many = false;
};

Values different_values(const float* x, const ChannelView& v, int64_t channel, size_t limit) {
  std::unordered_set<float> seen;
  int64_t nonzero = 0;
  for (int64_t o = 0; o < v.outer; ++o) {
    const float* row = x + (o * v.channels + channel) * v.inner;
    for (int64_t i = 0; i < v.inner; ++i) {
      nonzero += row[i] != 0.0f;
      seen.insert(row[i] == 0.0f ? 0.0f : row[i]);
      if (seen.size() > limit) return {{}, 0, true};
    }
  }
  Values out;
  out.nonzero = nonzero;
  out.sorted.assign(seen.begin(), seen.end());
  std::sort(out.sorted.begin(), out.sorted.end());
  return out;
}

std::vector<float> magnitudes(const std::vector<float>& values) {
  std::vector<float> m;
  for (const float v : values) {
    if (v != 0.0f) m.push_back(std::fabs(v));
  }
  std::sort(m.begin(), m.end());
  m.erase(std::unique(m.begin(), m.end()), m.end());
  return m;
}

// Every value is scale * k in float, for a whole k of at most `largest`.
bool are_multiples(const std::vector<float>& magnitude, float scale, double largest) {
  return std::all_of(magnitude.begin(), magnitude.end(), [&](float v) {
    const float k = std::rint(v / scale);
    return static_cast<double>(k) <= largest && scale * k == v;
  });
}

// Enough to tell a grid from accident. Weights that were trained in float hardly ever repeat a value.
bool is_evidence(const Values& v, const std::vector<float>& magnitude, int bits) {
  if (magnitude.size() >= kEvidence) return true;
  return bits <= kFewLevels && !magnitude.empty() && v.nonzero >= std::max(kRepeated, 2 * std::ssize(magnitude));
}

// The scale of which all magnitudes are multiples: about the smallest gap between two of them, or a fraction of it.
std::optional<float> common_scale(const std::vector<float>& m, double largest) {
  double gap = static_cast<double>(m[0]);
  for (size_t i = 1; i < m.size(); ++i) gap = std::min(gap, static_cast<double>(m[i]) - static_cast<double>(m[i - 1]));
  const auto smallest = static_cast<double>(m[0]), top = static_cast<double>(m.back());
  for (int part = 1; part <= kLargestGap; ++part) {
    const double codes = smallest * part / gap;
    if (!std::isfinite(codes) || std::fabs(codes - std::rint(codes)) > kNearWhole) continue;
    const double about = smallest / std::rint(codes), k = std::rint(top / about);
    if (k > largest || k < 1.0) continue;
    const auto s = static_cast<float>(top / k);
    for (const float candidate : {s, std::nextafterf(s, 0.0f), std::nextafterf(s, INFINITY)}) {
      if (are_multiples(m, candidate, largest)) return candidate;
    }
  }
  return std::nullopt;
}

// One magnitude alone: as near the end of the grid as a float can put it, where min and max would put it.
std::optional<float> scale_of_one(const std::vector<float>& m, double end) {
  for (double k = end; k >= 1.0; k -= 1.0) {
    const auto s = static_cast<float>(static_cast<double>(m[0]) / k);
    if (s > 0.0f && are_multiples(m, s, k)) return s;
  }
  return std::nullopt;
}

std::optional<Grid> grid_of_values(const std::vector<float>& values, const std::vector<float>& m, const GridSpec& spec) {
  const Range seen{std::min(0.0, static_cast<double>(values.front())), std::max(0.0, static_cast<double>(values.back()))};
  Grid g = grid_from_range(seen, spec);
  const double span = static_cast<double>(g.qmax) - g.qmin;
  const bool is_signed = is_signed_symmetric(seen, spec);
  const double end = is_signed ? (seen.max > 0.0 ? g.qmax : -g.qmin) : std::floor(seen.min < 0.0 && seen.max > 0.0 ? 0.5 * span : span);
  const std::optional<float> scale = m.size() == 1 ? scale_of_one(m, end) : common_scale(m, span);
  if (!scale) return std::nullopt;
  const auto s = static_cast<double>(*scale), low = std::rint(seen.min / s), high = std::rint(seen.max / s);
  g.scale = *scale;
  if (!is_signed) {
    if (high - low > span) return std::nullopt;
    g.zero_point = static_cast<int32_t>(std::clamp(static_cast<double>(g.zero_point), -low, span - high));  // where the range would put zero, if the codes then fit
  } else if (low < g.qmin || high > g.qmax) {
    return std::nullopt;
  }
  return g;
}

}  // namespace

std::vector<std::optional<Grid>> grids_of_values(const Tensor& x, const ChannelView& view, const GridSpec& spec) {
  const auto channels = static_cast<size_t>(view.channels);
  std::vector<std::optional<Grid>> grids(channels);
  const Tensor host = x.to(Device{});
  for (size_t c = 0; c < channels; ++c) {
    const Values v = different_values(host.data<float>(), view, static_cast<int64_t>(c), size_t{1} << spec.bits);
    if (!v.too_many) {
      const std::vector<float> m = magnitudes(v.sorted);
      if (!is_evidence(v, m, spec.bits)) continue;
      grids[c] = grid_of_values(v.sorted, m, spec);
    }
    if (!grids[c]) return std::vector<std::optional<Grid>>(channels);
  }
  return grids;
}

}  // namespace detent::quant
