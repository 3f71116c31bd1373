// The convolutions that every kernel is tested on, and their products: (output, input, weight) of each, from the definition.
#pragma once

#include "detent/core/math/conv_geometry.h"

namespace detent::test {

struct ConvCase {
  const char* name;
  int64_t n, h, w, c, k, r, s;
  int64_t stride_h = 1, stride_w = 1;
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  int64_t dilation_h = 1, dilation_w = 1, groups = 1;
};

inline ConvGeometry geometry(const ConvCase& t) {
  ConvGeometry g;
  g.n = t.n, g.h = t.h, g.w = t.w, g.c = t.c, g.k = t.k, g.r = t.r, g.s = t.s;
  g.stride_h = t.stride_h, g.stride_w = t.stride_w, g.pad_top = t.top, g.pad_left = t.left;
  g.dilation_h = t.dilation_h, g.dilation_w = t.dilation_w, g.groups = t.groups;
  g.oh = conv_out_size(t.h, t.r, t.stride_h, t.top, t.bottom, t.dilation_h);
  g.ow = conv_out_size(t.w, t.s, t.stride_w, t.left, t.right, t.dilation_w);
  return g;
}

inline constexpr ConvCase kConvCases[] = {
    {"1x1x1x1", 1, 1, 1, 1, 1, 1, 1},
    {"pointwise", 2, 7, 9, 64, 64, 1, 1},
    {"pointwise, tails", 1, 5, 7, 65, 127, 1, 1},
    {"pointwise, one vector", 3, 11, 13, 17, 16, 1, 1},
    {"pointwise, five vectors", 1, 9, 9, 16, 80, 1, 1},
    {"pointwise stride 2", 2, 9, 10, 15, 63, 1, 1, 2, 2},
    {"pointwise, deep", 1, 4, 5, 1300, 70, 1, 1},
    {"pointwise, wide", 1, 3, 4, 7, 1029, 1, 1},
    {"pointwise, deep and wide", 1, 3, 4, 272, 288, 1, 1},
    {"pointwise, padded", 1, 4, 4, 5, 6, 1, 1, 1, 1, 1, 1, 1, 1},
    {"3x3 same", 2, 8, 9, 16, 32, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 same, odd", 1, 7, 5, 63, 65, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 blocks of depth", 1, 6, 6, 129, 128, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 many slices", 3, 30, 31, 17, 15, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 slices and ranges", 2, 40, 33, 9, 64, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 stride 2, TensorFlow same", 2, 8, 8, 16, 17, 3, 3, 2, 2, 0, 0, 1, 1},
    {"3x3 stride 2, PyTorch", 1, 9, 8, 64, 48, 3, 3, 2, 2, 1, 1, 1, 1},
    {"3x3 stride 1x2", 1, 7, 9, 20, 33, 3, 3, 1, 2, 1, 0, 0, 1},
    {"3x3 stride 3", 1, 11, 10, 18, 19, 3, 3, 3, 3, 1, 1, 1, 1},
    {"3x3 dilation 2", 1, 9, 9, 16, 16, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2},
    {"3x3 dilation 2x3 stride 2", 1, 12, 14, 21, 16, 3, 3, 2, 2, 2, 3, 2, 3, 2, 3},
    {"5x5", 1, 9, 8, 7, 16, 5, 5, 1, 1, 2, 2, 2, 2},
    {"5x3 no padding", 1, 9, 8, 32, 3, 5, 3},
    {"7x7 stem", 2, 17, 19, 3, 64, 7, 7, 2, 2, 3, 3, 3, 3},
    {"7x7 stem, staged per task", 2, 192, 512, 3, 8, 7, 7, 4, 4, 2, 2, 3, 3},
    {"3x3 stride 2 first layer, TensorFlow same", 2, 12, 13, 3, 24, 3, 3, 2, 2, 0, 0, 1, 1},
    {"5x5 stride 3, one channel, pads beyond the window", 1, 10, 11, 1, 5, 5, 5, 3, 3, 6, 5, 7, 6},
    {"4x4 stride 2, four channels", 1, 9, 8, 4, 7, 4, 4, 2, 2, 1, 2, 1, 0},
    {"2x3 stride 2x1, one channel", 1, 7, 6, 1, 16, 2, 3, 2, 1, 0, 1, 0, 1},
    {"3x3 first layer", 2, 32, 32, 3, 16, 3, 3, 1, 1, 1, 1, 1, 1},
    {"3x3 one channel, asymmetric", 1, 6, 7, 1, 1, 3, 3, 1, 1, 2, 0, 0, 1},
    {"window larger than image", 1, 2, 2, 8, 8, 5, 5, 1, 1, 3, 3, 3, 3},
    {"1x7", 1, 5, 9, 16, 20, 1, 7, 1, 1, 0, 3, 0, 3},
    {"3x3 pads beyond the window", 1, 3, 3, 17, 17, 3, 3, 1, 1, 4, 4, 4, 4},
    {"groups", 2, 6, 7, 32, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2},
    {"groups of 4", 1, 8, 8, 64, 64, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 16},
    {"groups of 1 in, 2 out", 1, 5, 6, 7, 14, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 7},
    {"depthwise", 2, 9, 10, 32, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 32},
    {"depthwise stride 2, tails", 1, 9, 10, 45, 45, 3, 3, 2, 2, 0, 0, 1, 1, 1, 1, 45},
    {"depthwise 5x5 dilation 2", 1, 11, 12, 7, 7, 5, 5, 1, 1, 4, 4, 4, 4, 2, 2, 7},
    {"depthwise, many pixels", 2, 40, 41, 24, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 24},
};

template <class Fn>
void for_each_product(const ConvGeometry& g, Fn&& fn) {
  const int64_t cg = g.c / g.groups, kg = g.k / g.groups;
  for (int64_t n = 0; n < g.n; ++n) {
    for (int64_t h = 0; h < g.h; ++h) {
      for (int64_t w = 0; w < g.w; ++w) {
        for (int64_t r = 0; r < g.r; ++r) {
          for (int64_t s = 0; s < g.s; ++s) {
            const int64_t y = h + g.pad_top - r * g.dilation_h, x = w + g.pad_left - s * g.dilation_w;
            if (y < 0 || x < 0 || y % g.stride_h || x % g.stride_w || y / g.stride_h >= g.oh || x / g.stride_w >= g.ow) continue;
            const int64_t out = ((n * g.oh + y / g.stride_h) * g.ow + x / g.stride_w) * g.k, in = ((n * g.h + h) * g.w + w) * g.c;
            for (int64_t k = 0; k < g.k; ++k) {
              for (int64_t c = 0; c < cg; ++c) fn(out + k, in + k / kg * cg + c, ((k * g.r + r) * g.s + s) * cg + c);
            }
          }
        }
      }
    }
  }
}

}  // namespace detent::test
