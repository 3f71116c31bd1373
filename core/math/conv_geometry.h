// Geometry of a 2-D convolution or pooling window, NHWC. POD, host and device. Plain data and pure functions: thread-safe.
#pragma once

#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent {

struct ConvGeometry {
  int64_t n = 0, h = 0, w = 0, c = 0;  // input [n,h,w,c]
  int64_t k = 0, r = 1, s = 1;         // weight [k,r,s,c/groups]; pooling: k == c
  int64_t oh = 0, ow = 0;              // output [n,oh,ow,k]
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0;   // bottom and right padding follow from oh and ow
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t groups = 1;
};

/// Output extent of a window: floor((in + pads - dilation*(window-1) - 1) / stride) + 1, or 0 when the window does not fit.
DETENT_HD constexpr int64_t conv_out_size(int64_t in, int64_t window, int64_t stride, int64_t pad_begin, int64_t pad_end, int64_t dilation) {
  const int64_t room = in + pad_begin + pad_end - dilation * (window - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace detent
