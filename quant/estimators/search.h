// From a histogram to a range: the searches of AIMET's core (frozen histogram) and of the growing histogram. Pure functions on doubles; thread-safe.
// The result is the range to hand to grid_from_range: for a signed symmetric grid -max..max.
#pragma once

#include <cstdint>
#include <vector>

#include "detent/quant/estimators/histogram.h"

namespace detent::quant {

/// A grid under trial: value = delta * (q + offset), q in 0..steps.
struct Candidate {
  double delta = 0.0;
  double offset = 0.0;
};

struct SqnrOptions {
  int delta_candidates = 0;    ///< 0: 17 asymmetric, 101 symmetric
  int offset_candidates = 21;  ///< asymmetric only; the observed offset is one of them
  double gamma = 3.0;          ///< weight of the error of clipped values
  bool refine = false;         ///< go on from the best candidate, in ever smaller steps, while the error falls
};

/// Number of steps of a grid: 2^bits - 1, one less when symmetric and strict.
int64_t grid_steps(const GridSpec& spec);

/// tf_enhanced as AIMET's core does it: candidate scales k/16 and offsets, or k/100; first of the smallest error. `h` is a FrozenHistogram's.
Range sqnr_range_core(const Histogram& h, const GridSpec& spec);
/// Candidates for a growing histogram over `observed` (zero inside).
std::vector<Candidate> sqnr_candidates(Range observed, int64_t steps, const GridSpec& spec, const SqnrOptions& options = {});
/// tf_enhanced on a growing histogram: all bins at their midpoints, ends of the grid exact.
Range sqnr_range(const Histogram& h, Range observed, const GridSpec& spec, const SqnrOptions& options = {});

/// Percentile in 50..100: drops 1 - p/100 of the values at either end.
Range percentile_range_core(const Histogram& h, double percentile);
Range percentile_range(const Histogram& h, Range observed, double percentile);

/// Least squared error over pairs of bin edges around zero: all of them, as AIMET does, or up to 64 on either side, as histograms that are made for every channel need.
enum class MseSearch : uint8_t { full, coarse };
Range mse_range(const Histogram& h, const GridSpec& spec, MseSearch search);

/// Least Kullback-Leibler divergence between the histogram (512 bins) and 255 levels over a window of it. Only 8 bits are searched; others take the whole range.
Range entropy_range(const Histogram& h, Range observed, const GridSpec& spec);

/// Where AIMET's core puts a range when it saw only zeros: one step past -1.
Range all_zero_range(const GridSpec& spec);

/// AIMET torch's rule for a calibrated range: zero inside; where a step would be narrower than the least scale, that much is added to it; symmetric ranges use
/// the extra negative level.
Range torch_range(Range observed, int64_t steps, bool symmetric, double least_scale = kLeastScale);

}  // namespace detent::quant
