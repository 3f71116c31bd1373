// Values that are kept in bf16 (core/backend.h), by way of f32 in the first-level cache: blocks are widened, worked on as floats, and rounded as they are written.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "detent/backends/cpu/dense.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {

constexpr int64_t kBf16Block = 1024;

/// Values [at, at + n) of x, or of x16 widened into `room`.
inline const float* widened(const float* x, const uint16_t* x16, int64_t at, int64_t n, float* room) {
  if (!x16) return x + at;
  dense_kernels().widen(x16 + at, room, n);
  return room;
}

/// y = x rounded; with `stream` past the cache, the caller fences.
inline void narrow_values(const float* x, uint16_t* y, int64_t n, bool stream) {
  if (!stream) return dense_kernels().narrow(x, y, n);
  alignas(64) uint16_t words[kBf16Block];
  for (int64_t i = 0; i < n; i += kBf16Block) {
    const int64_t m = std::min(kBf16Block, n - i);
    dense_kernels().narrow(x + i, words, m);
    stream_copy(y + i, words, m);
  }
}

/// write_streamed (loop.h) of results in f32, or in bf16 where y is null: fn(out, first, count) then gets at most kBf16Block at a time.
template <class Fn>
void write_values(float* y, uint16_t* y16, int64_t begin, int64_t end, bool stream, Fn&& fn) {
  if (!y16) return write_streamed(y, begin, end, stream, fn);
  alignas(64) float out[kBf16Block];
  for (int64_t i = begin; i < end; i += kBf16Block) {
    const int64_t n = std::min(kBf16Block, end - i);
    fn(out, i, n);
    narrow_values(out, y16 + i, n, stream);
  }
  if (stream) stream_fence();
}

/// Whether n results, in y or y16, go past the cache: streams() of loop.h says so, and they are not written over one of the inputs (null: not there).
inline bool streams_apart(int64_t n, const float* y, const uint16_t* y16, std::initializer_list<const void*> inputs) {
  const void* const out = y16 ? static_cast<const void*>(y16) : y;
  return streams(y16 ? n / 2 : n) && std::find(inputs.begin(), inputs.end(), out) == inputs.end();
}

}  // namespace detent::cpu
