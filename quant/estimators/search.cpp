#include "detent/quant/estimators/search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "detent/core/error.h"
#include "detent/core/parallel.h"

namespace detent::quant {
namespace {

// Prefix sums of p, p*v, p*v^2 over all bins, and the occupied bins alone for the part inside the grid.
class Noise {
 public:
  explicit Noise(const Histogram& h) : h_(h) {
    const auto n = static_cast<size_t>(h.bins());
    s0_.assign(n + 1, 0.0), s1_ = s0_, s2_ = s0_;
    start_.assign(n + 1, 0);
    for (size_t i = 0; i < n; ++i) {
      const double p = h.counts[i], v = h.centre(static_cast<int>(i));
      s0_[i + 1] = s0_[i] + p;
      s1_[i + 1] = s1_[i] + p * v;
      s2_[i + 1] = s2_[i] + p * v * v;
      start_[i] = v_.size();
      if (p > 0.0) {
        v_.push_back(v);
        p_.push_back(p);
      }
    }
    start_[n] = v_.size();
  }

  /// AIMET's core: clipped bins move to the bin that holds the grid's end, rounding half away.
  double core(const Candidate& c, int64_t levels, double gamma) const {
    const int begin = bin_of(c.delta * c.offset), end = bin_of(c.delta * (c.offset + static_cast<double>(levels)));
    return gamma * (squares(0, begin, h_.centre(begin)) + squares(end, h_.bins(), h_.centre(end))) + rounding(c, begin, end);
  }

  /// All bins at their midpoints; clipped ones move to the exact end of the grid.
  double exact(const Candidate& c, int64_t steps, double gamma) const {
    const double m = c.delta * c.offset, big = c.delta * (c.offset + static_cast<double>(steps)), half = 0.5 * c.delta;
    const int begin = first_centre_from(m - half), end = std::max(begin, first_centre_from(big + half));
    return gamma * (squares(0, begin, m) + squares(end, h_.bins(), big)) + rounding(c, begin, end);
  }

 private:
  // NaN (from ranges at the limits of double) counts as 0.
  static int index(double v, int last) { return v > 0.0 ? static_cast<int>(std::min(v, static_cast<double>(last))) : 0; }
  int bin_of(double v) const { return index(std::floor((v - h_.lo) / h_.width), h_.bins() - 1); }
  int first_centre_from(double v) const { return index(std::ceil((v - h_.lo) / h_.width - 0.5), h_.bins()); }
  double squares(int begin, int end, double c) const {
    if (begin >= end) return 0.0;
    const double a0 = s0_[end] - s0_[begin], a1 = s1_[end] - s1_[begin], a2 = s2_[end] - s2_[begin];
    return std::max(0.0, a2 - 2.0 * c * a1 + c * c * a0);
  }
  double rounding(const Candidate& c, int begin, int end) const {
    if (begin >= end) return 0.0;
    const auto cost = [&](size_t i) {
      const double t = v_[i] / c.delta - c.offset;  // -1/2 .. levels + 1: truncation of t + 1/2 rounds half up
      const double q = static_cast<double>(static_cast<int32_t>(t + 0.5));
      const double e = v_[i] - c.delta * (q + c.offset);
      return p_[i] * e * e;
    };
    double sums[4] = {};  // so that the compiler may use vectors
    size_t i = start_[begin];
    for (; i + 4 <= start_[end]; i += 4) {
      for (size_t lane = 0; lane < 4; ++lane) sums[lane] += cost(i + lane);
    }
    for (; i < start_[end]; ++i) sums[0] += cost(i);
    return sums[0] + sums[1] + (sums[2] + sums[3]);
  }

  const Histogram& h_;
  std::vector<double> s0_, s1_, s2_, v_, p_;
  std::vector<size_t> start_;
};

// The range grid_from_range turns into this candidate's grid.
Range range_of_candidate(const Candidate& c, int64_t steps, const GridSpec& spec, bool is_signed) {
  if (is_signed) {
    const double m = c.delta * signed_qmax(spec.bits);
    return {-m, m};
  }
  return {c.delta * c.offset, c.delta * (c.offset + static_cast<double>(steps))};
}

Range with_zero(Range r, double width = 0.0) {
  r.min = std::min(r.min, 0.0);
  r.max = std::max({r.max, 0.0, r.min + width});
  return r;
}

std::vector<Candidate> core_candidates(Range seen, int64_t steps, const GridSpec& spec, bool is_signed) {
  std::vector<Candidate> out;
  const auto n = static_cast<double>(steps);
  if (spec.symmetric) {
    const double delta = is_signed ? std::max(-seen.min, seen.max) / (0.5 * n) : seen.max / n;
    const double offset = is_signed ? std::floor(-0.5 * n) : 0.0;
    for (int k = 1; k <= 101; ++k) out.push_back({delta * k / 100.0, offset});
    return out;
  }
  const double d = (seen.max - seen.min) / n, o = std::round(seen.min / d);
  const double lo = d * o, hi = d * (o + n);
  for (int k = 1; k <= 17; ++k) {
    for (int i = 0; i <= 20; ++i) {
      const double offset = std::trunc(-n + i * n / 20.0), step = d * k / 16.0;
      double a = step * offset, b = step * (offset + n);
      if (a < lo && b > hi) continue;
      a = std::max(a, lo);
      b = std::min(b, hi);
      if (a == b) continue;
      const double delta = (b - a) / n;
      out.push_back({delta, std::round(a / delta)});
    }
  }
  out.push_back({d, o});
  return out;
}

}  // namespace

int64_t grid_steps(const GridSpec& spec) { return (int64_t{1} << spec.bits) - 1 - (spec.symmetric && spec.strict ? 1 : 0); }

Range all_zero_range(const GridSpec& spec) {
  const auto n = static_cast<double>(grid_steps(spec));
  if (spec.symmetric) return {-1.0, 1.0};
  const double delta = 2.0 / n, offset = std::floor(-1.0 / delta);
  return {delta * offset, delta * (offset + n)};
}

Range sqnr_range_core(const Histogram& h, const GridSpec& spec) {
  const Range seen = with_zero(occupied_edges(h), narrowest_width(spec, kMinCalibrationWidth));
  const int64_t steps = grid_steps(spec), levels = (int64_t{1} << spec.bits) - 1;
  const bool is_signed = is_signed_symmetric(seen, spec);
  const Noise noise(h);
  double best = std::numeric_limits<double>::infinity();
  Candidate winner{(seen.max - seen.min) / static_cast<double>(steps), 0.0};
  for (const Candidate& c : core_candidates(seen, steps, spec, is_signed)) {
    const double cost = noise.core(c, levels, 3.0);
    if (cost < best) best = cost, winner = c;
  }
  return range_of_candidate(winner, steps, spec, is_signed);
}

std::vector<Candidate> sqnr_candidates(Range observed, int64_t steps, const GridSpec& spec, const SqnrOptions& options) {
  std::vector<Candidate> out;
  const auto n = static_cast<double>(steps);
  const int deltas = options.delta_candidates > 0 ? options.delta_candidates : (spec.symmetric ? 101 : 17);
  if (spec.symmetric) {
    const bool is_signed = is_signed_symmetric(observed, spec);
    const double widest = is_signed ? 2.0 * std::max(-observed.min, observed.max) / n : observed.max / n;
    for (int k = 1; k <= deltas; ++k) out.push_back({widest * k / (deltas - 1), is_signed ? std::floor(-0.5 * n) : 0.0});
    return out;
  }
  // In float32 as AIMET's torch package: a range symmetric about zero has its zero point on a tie, which double would break the other way.
  const float step32 = static_cast<float>(observed.max - observed.min) / static_cast<float>(n);
  const bool fits = std::isfinite(step32) && step32 > 0.0f;
  const double d = fits ? static_cast<double>(step32) : (observed.max - observed.min) / n;
  const double o = fits ? static_cast<double>(std::rint(static_cast<float>(observed.min) / step32)) : std::rint(observed.min / d);
  const double lo = d * o, hi = d * (o + n);
  const int offsets = options.offset_candidates;
  for (int k = 1; k <= deltas; ++k) {
    for (int i = 0; i < offsets; ++i) {  // the last one is the observed offset
      const double offset = i == offsets - 1 ? o : std::rint(-n + i * n / (offsets - 2)), step = d * k / (deltas - 1);
      const double a = std::max(step * offset, lo), b = std::min(step * (offset + n), hi);
      if (b <= a) continue;
      const double delta = (b - a) / n;
      out.push_back({delta, std::clamp(std::rint(a / delta), -n, 0.0)});
    }
  }
  return out;
}

namespace {

// A pattern search about the best candidate: its neighbours in scale and offset, half as far away whenever none of them is better.
Candidate refined(const Noise& noise, Candidate best, double cost, int64_t steps, bool symmetric, double gamma) {
  // The moves are bounded: each may be a little better than the last for as long as doubles can tell.
  constexpr int kHalvings = 6, kMoves = 400;
  const auto n = static_cast<double>(steps);
  double scale_step = best.delta / 32.0, offset_step = n / 40.0;
  for (int halved = 0, moves = 0; halved < kHalvings && moves < kMoves; ++moves) {
    const double shift = std::max(1.0, std::rint(offset_step));
    const Candidate neighbours[] = {
        {best.delta - scale_step, best.offset}, {best.delta + scale_step, best.offset}, {best.delta, best.offset - shift}, {best.delta, best.offset + shift}};
    bool better = false;
    for (const Candidate& c : neighbours) {
      if (c.delta <= 0.0 || (c.offset != best.offset && (symmetric || c.offset < -n || c.offset > 0.0))) continue;
      const double e = noise.exact(c, steps, gamma);
      if (e < cost) cost = e, best = c, better = true;
      if (better) break;
    }
    if (better) continue;
    scale_step *= 0.5;
    offset_step *= 0.5;
    ++halved;
  }
  return best;
}

}  // namespace

Range sqnr_range(const Histogram& h, Range observed, const GridSpec& spec, const SqnrOptions& options) {
  const Range seen = with_zero(observed, narrowest_width(spec, kMinCalibrationWidth));
  const int64_t steps = grid_steps(spec);
  const bool is_signed = is_signed_symmetric(seen, spec);
  const Noise noise(h);
  double best = std::numeric_limits<double>::infinity();
  Candidate winner;
  const std::vector<Candidate> candidates = sqnr_candidates(seen, steps, spec, options);
  std::vector<double> costs(candidates.size());
  parallel_for(std::ssize(candidates), 32, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) costs[static_cast<size_t>(i)] = noise.exact(candidates[static_cast<size_t>(i)], steps, options.gamma);
  });
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (costs[i] < best) best = costs[i], winner = candidates[i];
  }
  if (options.refine && std::isfinite(best)) winner = refined(noise, winner, best, steps, spec.symmetric, options.gamma);
  return range_of_candidate(winner, steps, spec, is_signed);
}

Range percentile_range_core(const Histogram& h, double percentile) {
  const Range seen = occupied_edges(h);
  Range r = seen;
  const float right = static_cast<float>(percentile) / 100.0f, left = 1.0f - right;
  if (right < 1.0f) {
    double cdf = 0.0;
    bool found = false;
    for (int i = 0; i < h.bins(); ++i) {
      cdf += h.counts[i];
      if (!found && static_cast<float>(cdf) >= left) {
        r.min = h.edge(i);
        found = true;
      }
      if (static_cast<float>(cdf) < right && h.edge(i) < seen.max) r.max = h.edge(i) + h.width;
    }
  }
  if (r.min == r.max) r.max += h.width;
  return with_zero(r);
}

Range percentile_range(const Histogram& h, Range observed, double percentile) {
  if (percentile >= 100.0) return with_zero(observed);
  double total = 0.0, sum = 0.0;
  for (const double c : h.counts) total += c;
  const double upper = total * percentile / 100.0, lower = total * (1.0 - percentile / 100.0);
  Range r{h.lo, h.edge(h.bins() - 1)};
  bool low_found = false;
  for (int i = 0; i < h.bins(); ++i) {
    sum += h.counts[i];
    if (!low_found && sum >= lower) {
      r.min = h.edge(i);
      low_found = true;
    }
    if (sum >= upper) {
      r.max = h.edge(i);
      break;
    }
  }
  return with_zero({std::max(r.min, observed.min), std::min(r.max, observed.max)});
}

namespace {

// Edges of one sign inside [lo, hi], zero among them, at most `limit` of them.
std::vector<double> edges_between(const Histogram& h, double lo, double hi, size_t limit) {
  std::vector<double> all{0.0};
  for (int i = 0; i <= h.bins(); ++i) {
    const double e = h.edge(i);
    if (e != 0.0 && e >= lo && e <= hi) all.push_back(e);
  }
  const size_t stride = (all.size() + limit - 1) / limit;
  std::vector<double> out;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] == 0.0 || i % stride == 0 || i + 1 == all.size() || i == 1) out.push_back(all[i]);
  }
  return out;
}

double squared_error(const Histogram& h, const std::vector<int>& occupied, const GridSolution& g, Range clip) {
  double sum = 0.0;
  const auto offset = static_cast<double>(g.offset());
  for (const int i : occupied) {
    const double v = h.centre(i), x = std::clamp(v, clip.min, clip.max);
    const double q = std::floor(x / g.scale - offset + 0.5);
    const double e = v - g.scale * (q + offset);
    sum += h.counts[i] * e * e;
  }
  return sum;
}

}  // namespace

Range mse_range(const Histogram& h, const GridSpec& spec, MseSearch search) {
  const Range seen = occupied_edges(h);
  const bool full = search == MseSearch::full;
  const size_t limit = full ? 512 : 64;
  const std::vector<double> low = edges_between(h, seen.min, 0.0, limit), high = edges_between(h, 0.0, seen.max + (full ? 0.0 : h.width), limit);
  std::vector<int> occupied;
  for (int i = 0; i < h.bins(); ++i) {
    if (h.counts[i] > 0.0) occupied.push_back(i);
  }
  Range best = with_zero(seen);
  double cost = std::numeric_limits<double>::infinity();
  for (const double a : low) {
    for (const double b : high) {
      if (a == 0.0 && b == 0.0) continue;
      const GridSolution g = solve_grid({a, b}, spec);
      const double c = squared_error(h, occupied, g, {std::max(a, g.min), std::min(b, g.max)});
      if (c < cost) cost = c, best = {a, b};
    }
  }
  return best;
}

Range torch_range(Range observed, int64_t steps, bool symmetric, double least_scale) {
  const auto n = static_cast<double>(steps);
  const double up = std::floor(0.5 * n), down = std::ceil(0.5 * n);
  Range r{std::min(observed.min, 0.0), std::max(observed.max, 0.0)};
  if (!symmetric) {
    if ((r.max - r.min) / n < least_scale) r.max += least_scale * n;
    return r;
  }
  if ((r.max - r.min) / n < least_scale) {
    r.max += least_scale * up;
    r.min -= least_scale * down;
  }
  const double delta = std::max(r.max / up, -r.min / down);
  return {-down * delta, up * delta};
}

}  // namespace detent::quant
