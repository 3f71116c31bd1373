// Which input pixels a pooling window covers, and what an average divides by. Pure functions, host and device: thread-safe.
#pragma once

#include "detent/core/math/conv_geometry.h"

namespace detent {

struct PoolWindow {
  int64_t r0, r1, s0, s1;  // the filter positions that fall inside the image
  int64_t h0, w0;          // image position of filter position (0,0), may be negative
};

/// Positions [*first, *last) of a window that starts at `start` and fall inside an axis.
DETENT_HD void clip_window(int64_t start, int64_t window, int64_t dilation, int64_t extent, int64_t* first, int64_t* last) {
  const int64_t skipped = (-start + dilation - 1) / dilation, kept = (extent - 1 - start) / dilation + 1;
  *first = start < 0 ? (skipped < window ? skipped : window) : 0;
  *last = start >= extent ? 0 : (kept < window ? kept : window);
  *last = *first > *last ? *first : *last;
}

DETENT_HD PoolWindow pool_window(const ConvGeometry& g, int64_t oh, int64_t ow) {
  PoolWindow v;
  v.h0 = oh * g.stride_h - g.pad_top;
  v.w0 = ow * g.stride_w - g.pad_left;
  clip_window(v.h0, g.r, g.dilation_h, g.h, &v.r0, &v.r1);
  clip_window(v.w0, g.s, g.dilation_w, g.w, &v.s0, &v.s1);
  return v;
}

/// Filter positions counted along one axis: inside the image and its explicit padding.
DETENT_HD int64_t counted_positions(int64_t start, int64_t window, int64_t dilation, int64_t extent, int64_t pad_begin, int64_t pad_end) {
  int64_t first, last;
  clip_window(start + pad_begin, window, dilation, extent + pad_begin + pad_end, &first, &last);
  return last - first;
}

/// What the sum over a window is divided by. Args: PoolArgs or PoolBackwardArgs.
template <class Args>
DETENT_HD float average_weight(const Args& a, const PoolWindow& v) {
  const ConvGeometry& g = a.geometry;
  int64_t n = (v.r1 - v.r0) * (v.s1 - v.s0);
  if (a.count_include_pad) {
    n = counted_positions(v.h0, g.r, g.dilation_h, g.h, g.pad_top, a.pad_bottom) * counted_positions(v.w0, g.s, g.dilation_w, g.w, g.pad_left, a.pad_right);
  }
  return n > 0 ? static_cast<float>(n) : 1.0f;
}

/// First window that may cover a position `at` of the padded axis; reach = dilation * (window - 1).
DETENT_HD int64_t first_covering_window(int64_t at, int64_t reach, int64_t stride) { return at <= reach ? 0 : (at - reach + stride - 1) / stride; }

/// A larger value, or the first NaN, or anything before a first value (index < 0) becomes the maximum.
DETENT_HD bool beats_maximum(float v, float best, int32_t index) { return (v > best) | ((v != v) & (best == best)) | (index < 0); }

}  // namespace detent
