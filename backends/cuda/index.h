// From a linear index to coordinates: 32-bit divisions wherever the tensor allows it, as 64-bit ones cost more than the memory traffic of a simple kernel.
#pragma once

#include <vector>

#include "detent/backends/cuda/fast_div.h"
#include "detent/backends/cuda/launch.h"
#include "detent/core/backend.h"

namespace detent::DETENT_CUDA_NAMESPACE {

inline bool fits32(int64_t n) { return n < (int64_t{1} << 31); }

/// Calls fn.template operator()<uint32_t or int64_t>() for n elements.
template <class Fn>
void with_index(int64_t n, Fn&& fn) {
  fits32(n) ? fn.template operator()<uint32_t>() : fn.template operator()<int64_t>();
}

inline int64_t loop_elements(const LoopNest& l) {
  int64_t n = 1;
  for (int i = 0; i < l.rank; ++i) n *= l.extent[i];
  return n;
}

struct Offsets {
  int64_t a = 0, b = 0, y = 0;
};

template <class Index>
DETENT_HD Offsets offsets_at(const LoopNest& l, int64_t i) {
  Offsets o;
  Index rest = static_cast<Index>(i);
  for (int d = l.rank - 1; d >= 0; --d) {
    const Index extent = static_cast<Index>(l.extent[d]), next = d > 0 ? rest / extent : 0;
    const int64_t k = static_cast<int64_t>(rest - next * extent);
    rest = next;
    o.a += k * l.a_stride[d];
    o.b += k * l.b_stride[d];
    o.y += k * l.y_stride[d];
  }
  return o;
}

/// Coordinates of an element of [n,h,w,c].
struct Pixel {
  int64_t n;
  int32_t h, w, c;
};

/// From the number of an element to its coordinates.
struct PixelIndex {
  FastDiv by_c, by_w, by_h;
  bool small;

  PixelIndex(int64_t n, int64_t h, int64_t w, int64_t c) : by_c(c), by_w(w), by_h(h), small(fits32(n * h * w * c)) {}
  DETENT_HD Pixel at(int64_t i) const {
    const auto c = static_cast<int32_t>(by_c.divisor), w = static_cast<int32_t>(by_w.divisor), h = static_cast<int32_t>(by_h.divisor);
    if (small) {
      const auto v = static_cast<int32_t>(i);
      const int32_t p = by_c.divide(v), row = by_w.divide(p), image = by_h.divide(row);
      return {image, row - image * h, p - row * w, v - p * c};
    }
    const int64_t p = i / c, row = p / w, image = row / h;
    return {image, static_cast<int32_t>(row - image * h), static_cast<int32_t>(p - row * w), static_cast<int32_t>(i - p * c)};
  }
};

/// Many tensors in one launch: block b works on elements [begin, begin + per) of tensor `at`.
struct ChunkList {
  const int64_t* first;  // [count]: the first block of each tensor
  int64_t count;
  DETENT_HD int64_t tensor_of(int64_t block) const {
    int64_t lo = 0, hi = count;  // the last tensor whose first block is not behind `block`; empty ones come before
    while (hi - lo > 1) {
      const int64_t mid = (lo + hi) / 2;
      first[mid] <= block ? lo = mid : hi = mid;
    }
    return lo;
  }
};

/// The first blocks of tensors cut into pieces of `per` elements; the number of blocks comes last.
template <class Tensors>
std::vector<int64_t> first_blocks(const Tensors* tensors, int64_t count, int64_t per) {
  std::vector<int64_t> first;
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) {
    first.push_back(blocks);
    blocks += (tensors[i].n + per - 1) / per;
  }
  first.push_back(blocks);
  return first;
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
