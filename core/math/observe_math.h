// How a value falls into a histogram. Pure functions, host and device: thread-safe.
#pragma once

#include <cmath>
#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent {

/// The rule of HistogramArgs: bin of x, or `bins` when it is dropped (outside without clamp_ends, NaN). lo_bins = lo / width.
DETENT_HD int32_t histogram_bin(float x, float lo, float width, float lo_bins, int32_t bins, bool centred, bool clamp_ends) {
  const float last = static_cast<float>(bins - 1);
  float v = centred ? roundf(x / width - lo_bins) : floorf((x - lo) / width);
  if (clamp_ends) v = v < 0.0f ? 0.0f : (v > last ? last : v);
  return v >= 0.0f && v <= last ? static_cast<int32_t>(v) : bins;
}

}  // namespace detent
