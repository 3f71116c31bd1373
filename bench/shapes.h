// Convolution shapes of the networks that the benchmarks time: one row per different shape, with how often the network has it.
// Sizes are for 224x224 images (ResNet-20: 32x32); pads are symmetric, (r-1)/2.
#pragma once

#include <cstdint>
#include <iterator>

#include "detent/core/math/conv_geometry.h"

namespace detent::bench {

struct ConvShape {
  const char* name;
  int64_t size, c, k, window, stride, groups, count;
};

/// ResNet-50 v1.5: the stride is on the 3x3.
constexpr ConvShape kResNet50[] = {
    {"conv1", 224, 3, 64, 7, 2, 1, 1},
    {"l1.reduce0", 56, 64, 64, 1, 1, 1, 1},
    {"l1.3x3", 56, 64, 64, 3, 1, 1, 3},
    {"l1.expand", 56, 64, 256, 1, 1, 1, 4},
    {"l1.reduce", 56, 256, 64, 1, 1, 1, 2},
    {"l2.reduce0", 56, 256, 128, 1, 1, 1, 1},
    {"l2.3x3s2", 56, 128, 128, 3, 2, 1, 1},
    {"l2.expand", 28, 128, 512, 1, 1, 1, 4},
    {"l2.shortcut", 56, 256, 512, 1, 2, 1, 1},
    {"l2.reduce", 28, 512, 128, 1, 1, 1, 3},
    {"l2.3x3", 28, 128, 128, 3, 1, 1, 3},
    {"l3.reduce0", 28, 512, 256, 1, 1, 1, 1},
    {"l3.3x3s2", 28, 256, 256, 3, 2, 1, 1},
    {"l3.expand", 14, 256, 1024, 1, 1, 1, 6},
    {"l3.shortcut", 28, 512, 1024, 1, 2, 1, 1},
    {"l3.reduce", 14, 1024, 256, 1, 1, 1, 5},
    {"l3.3x3", 14, 256, 256, 3, 1, 1, 5},
    {"l4.reduce0", 14, 1024, 512, 1, 1, 1, 1},
    {"l4.3x3s2", 14, 512, 512, 3, 2, 1, 1},
    {"l4.expand", 7, 512, 2048, 1, 1, 1, 3},
    {"l4.shortcut", 14, 1024, 2048, 1, 2, 1, 1},
    {"l4.reduce", 7, 2048, 512, 1, 1, 1, 2},
    {"l4.3x3", 7, 512, 512, 3, 1, 1, 2},
};

constexpr ConvShape kMobileNetV2[] = {
    {"conv0", 224, 3, 32, 3, 2, 1, 1},
    {"b0.dw", 112, 32, 32, 3, 1, 32, 1},
    {"b0.project", 112, 32, 16, 1, 1, 1, 1},
    {"b1.expand", 112, 16, 96, 1, 1, 1, 1},
    {"b1.dw", 112, 96, 96, 3, 2, 96, 1},
    {"b1.project", 56, 96, 24, 1, 1, 1, 1},
    {"b2.expand", 56, 24, 144, 1, 1, 1, 2},
    {"b2.dw", 56, 144, 144, 3, 1, 144, 1},
    {"b2.project", 56, 144, 24, 1, 1, 1, 1},
    {"b3.dw", 56, 144, 144, 3, 2, 144, 1},
    {"b3.project", 28, 144, 32, 1, 1, 1, 1},
    {"b4.expand", 28, 32, 192, 1, 1, 1, 3},
    {"b4.dw", 28, 192, 192, 3, 1, 192, 2},
    {"b4.project", 28, 192, 32, 1, 1, 1, 2},
    {"b6.dw", 28, 192, 192, 3, 2, 192, 1},
    {"b6.project", 14, 192, 64, 1, 1, 1, 1},
    {"b7.expand", 14, 64, 384, 1, 1, 1, 4},
    {"b7.dw", 14, 384, 384, 3, 1, 384, 4},
    {"b7.project", 14, 384, 64, 1, 1, 1, 3},
    {"b10.project", 14, 384, 96, 1, 1, 1, 1},
    {"b11.expand", 14, 96, 576, 1, 1, 1, 3},
    {"b11.dw", 14, 576, 576, 3, 1, 576, 2},
    {"b11.project", 14, 576, 96, 1, 1, 1, 2},
    {"b13.dw", 14, 576, 576, 3, 2, 576, 1},
    {"b13.project", 7, 576, 160, 1, 1, 1, 1},
    {"b14.expand", 7, 160, 960, 1, 1, 1, 3},
    {"b14.dw", 7, 960, 960, 3, 1, 960, 3},
    {"b14.project", 7, 960, 160, 1, 1, 1, 2},
    {"b16.project", 7, 960, 320, 1, 1, 1, 1},
    {"head", 7, 320, 1280, 1, 1, 1, 1},
};

/// ResNet-20 for 32x32 images (He et al. 2015, option A shortcuts have no convolution).
constexpr ConvShape kResNet20[] = {
    {"conv1", 32, 3, 16, 3, 1, 1, 1},    {"l1.3x3", 32, 16, 16, 3, 1, 1, 6}, {"l2.3x3s2", 32, 16, 32, 3, 2, 1, 1}, {"l2.3x3", 16, 32, 32, 3, 1, 1, 5},
    {"l3.3x3s2", 16, 32, 64, 3, 2, 1, 1}, {"l3.3x3", 8, 64, 64, 3, 1, 1, 5},
};

constexpr ConvGeometry geometry_of(const ConvShape& s, int64_t batch) {
  ConvGeometry g;
  g.n = batch;
  g.h = g.w = s.size;
  g.c = s.c;
  g.k = s.k;
  g.r = g.s = s.window;
  g.stride_h = g.stride_w = s.stride;
  g.pad_top = g.pad_left = (s.window - 1) / 2;
  g.oh = g.ow = conv_out_size(s.size, s.window, s.stride, g.pad_top, g.pad_top, 1);
  g.groups = s.groups;
  return g;
}

/// Multiply-adds count two.
constexpr double flops(const ConvGeometry& g) {
  return 2.0 * static_cast<double>(g.n * g.oh * g.ow * g.k) * static_cast<double>(g.r * g.s * g.c / g.groups);
}

}  // namespace detent::bench
