// Which input pixels a pooling window covers, and what an average divides by. Pure functions, host and device: thread-safe.
#pragma once

#include "detent/core/math/conv_geometry.h"

namespace detent {

template <class Int>
struct PoolWindowOf {
  Int r0, r1, s0, s1;  // the filter positions that fall inside the image
  Int h0, w0;          // image position of filter position (0,0), may be negative
};
using PoolWindow = PoolWindowOf<int64_t>;

/// a / d; most windows are not dilated, and on a device a division costs more than the rest.
template <class Int>
DETENT_HD Int divided_by_dilation(Int a, Int d) {
  return d == 1 ? a : a / d;
}

/// Positions [*first, *last) of a window that starts at `start` and fall inside an axis.
template <class Int>
DETENT_HD void clip_window(Int start, Int window, Int dilation, Int extent, Int* first, Int* last) {
  const Int skipped = divided_by_dilation(-start + dilation - 1, dilation), kept = divided_by_dilation(extent - 1 - start, dilation) + 1;
  *first = start < 0 ? (skipped < window ? skipped : window) : 0;
  *last = start >= extent ? 0 : (kept < window ? kept : window);
  *last = *first > *last ? *first : *last;
}

/// Geometry: ConvGeometry, or one with its names in fewer bits.
template <class Geometry>
DETENT_HD auto pool_window(const Geometry& g, decltype(g.h) oh, decltype(g.h) ow) {
  PoolWindowOf<decltype(g.h)> v;
  v.h0 = oh * g.stride_h - g.pad_top;
  v.w0 = ow * g.stride_w - g.pad_left;
  clip_window(v.h0, g.r, g.dilation_h, g.h, &v.r0, &v.r1);
  clip_window(v.w0, g.s, g.dilation_w, g.w, &v.s0, &v.s1);
  return v;
}

/// Filter positions counted along one axis: inside the image and its explicit padding.
template <class Int>
DETENT_HD Int counted_positions(Int start, Int window, Int dilation, Int extent, Int pad_begin, Int pad_end) {
  Int first, last;
  clip_window(start + pad_begin, window, dilation, extent + pad_begin + pad_end, &first, &last);
  return last - first;
}

/// What the sum over a window is divided by. Args: geometry, count_include_pad, pad_bottom, pad_right, as those of PoolArgs.
template <class Args, class Int>
DETENT_HD float average_weight(const Args& a, const PoolWindowOf<Int>& v) {
  const auto& g = a.geometry;
  Int n = (v.r1 - v.r0) * (v.s1 - v.s0);
  if (a.count_include_pad) {
    n = counted_positions(v.h0, g.r, g.dilation_h, g.h, g.pad_top, a.pad_bottom) * counted_positions(v.w0, g.s, g.dilation_w, g.w, g.pad_left, a.pad_right);
  }
  return n > 0 ? static_cast<float>(n) : 1.0f;
}

/// First window that may cover a position `at` of the padded axis; reach = dilation * (window - 1). by_stride(n): n / stride.
template <class Int, class Divide>
DETENT_HD Int first_covering_window(Int at, Int reach, Int stride, Divide&& by_stride) {
  return at <= reach ? 0 : by_stride(at - reach + stride - 1);
}
DETENT_HD int64_t first_covering_window(int64_t at, int64_t reach, int64_t stride) {
  return first_covering_window(at, reach, stride, [stride](int64_t n) { return n / stride; });
}

/// A larger value, or the first NaN, or anything before a first value (index < 0) becomes the maximum.
DETENT_HD bool beats_maximum(float v, float best, int32_t index) { return (v > best) | ((v != v) & (best == best)) | (index < 0); }

}  // namespace detent
