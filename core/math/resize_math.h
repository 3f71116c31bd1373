// Where an output pixel of a resize reads its input: ONNX Resize's coordinate transformations, in double so that exact ratios stay exact. Pure functions: thread-safe.
#pragma once

#include <cmath>
#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent {

enum class ResizeMode : uint8_t { nearest, bilinear };
enum class ResizeCoordinates : uint8_t { half_pixel, asymmetric, align_corners, pytorch_half_pixel };

/// Source coordinate of output position i along an axis of `in` elements resized to `out`.
DETENT_HD double resize_source(ResizeCoordinates mode, int64_t i, int64_t in, int64_t out) {
  const double x = static_cast<double>(i), n = static_cast<double>(in), m = static_cast<double>(out);
  switch (mode) {
    case ResizeCoordinates::half_pixel: return (2.0 * x + 1.0) * n / (2.0 * m) - 0.5;
    case ResizeCoordinates::asymmetric: return x * n / m;
    case ResizeCoordinates::align_corners: return out > 1 ? x * (n - 1.0) / (m - 1.0) : 0.0;
    case ResizeCoordinates::pytorch_half_pixel: return out > 1 ? (2.0 * x + 1.0) * n / (2.0 * m) - 0.5 : 0.0;
  }
  return 0.0;
}

/// Two source positions and the weight of the second; nearest has weight 0.
struct ResizeTap {
  int64_t i0, i1;
  float w1;
};

DETENT_HD ResizeTap resize_tap(ResizeMode mode, ResizeCoordinates coordinates, bool nearest_floor, int64_t i, int64_t in, int64_t out) {
  const double last = static_cast<double>(in - 1);
  double x = resize_source(coordinates, i, in, out);
  if (mode == ResizeMode::nearest) {
    x = nearest_floor ? floor(x) : ceil(x - 0.5);
    const int64_t k = static_cast<int64_t>(x < 0.0 ? 0.0 : (x > last ? last : x));
    return {k, k, 0.0f};
  }
  x = x < 0.0 ? 0.0 : (x > last ? last : x);
  const double f = floor(x);
  const int64_t k = static_cast<int64_t>(f);
  return {k, k + 1 < in ? k + 1 : k, static_cast<float>(x - f)};
}

}  // namespace detent
