// From a linear index to coordinates: 32-bit divisions wherever the tensor allows it, as 64-bit ones cost more than the memory traffic of a simple kernel.
#pragma once

#include <vector>

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

/// Coordinates of element i of [n,h,w,c].
struct Pixel {
  int64_t n, h, w, c;
};

template <class Index>
DETENT_HD Pixel pixel_at(int64_t i, int64_t h, int64_t w, int64_t c) {
  const Index v = static_cast<Index>(i), cc = static_cast<Index>(c), ww = static_cast<Index>(w), hh = static_cast<Index>(h);
  const Index p = v / cc, row = p / ww, image = row / hh;
  return {static_cast<int64_t>(image), static_cast<int64_t>(row - image * hh), static_cast<int64_t>(p - row * ww), static_cast<int64_t>(v - p * cc)};
}

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
