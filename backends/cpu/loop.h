// Loop nests of the CPU kernels: merging of dimensions, and the cut into contiguous-as-possible runs that threads share. Host only; thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "detent/core/backend.h"
#include "detent/core/parallel.h"

namespace detent::cpu {

/// Elements of one parallel chunk of memory-bound work.
constexpr int64_t kGrain = 65536;

/// True when a float result of n elements outgrows the caches, so that its stores should go past them.
inline bool streams(int64_t n) { return n >= int64_t{4} << 20; }

/// Copies n values with stores past the cache (a plain copy where alignment forbids it).
template <class T>
void stream_copy(T* y, const T* x, int64_t n) {
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(y) % 16 == 0) {
    constexpr int64_t kStep = 16 / sizeof(T);
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep) _mm_stream_si128(reinterpret_cast<__m128i*>(y + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    for (; i < n; ++i) y[i] = x[i];
    return;
  }
#endif
  std::memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
}

/// Orders the stores of stream_copy before what follows.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

/// fn(out, first, count) computes elements [first, first + count) into out[0..count); with `stream` by way of a small buffer and stream_copy.
template <class Fn>
void write_streamed(float* y, int64_t begin, int64_t end, bool stream, Fn&& fn) {
  if (!stream) return fn(y + begin, begin, end - begin);
  constexpr int64_t kBuffer = 256;
  alignas(64) float buffer[kBuffer];
  for (int64_t i = begin; i < end; i += kBuffer) {
    const int64_t n = std::min(kBuffer, end - i);
    fn(buffer, i, n);
    stream_copy(y + i, buffer, n);
  }
  stream_fence();
}

inline int64_t loop_elements(const LoopNest& l) {
  int64_t n = 1;
  for (int i = 0; i < l.rank; ++i) n *= l.extent[i];
  return n;
}

/// The same loop, in the same order, with extent-1 dimensions dropped and neighbours merged wherever every operand allows it. Rank >= 1.
inline LoopNest collapse(const LoopNest& in) {
  LoopNest out;
  for (int i = 0; i < in.rank; ++i) {
    if (in.extent[i] == 1) continue;
    const int last = out.rank - 1;
    const int64_t e = in.extent[i];
    if (last >= 0 && out.a_stride[last] == in.a_stride[i] * e && out.b_stride[last] == in.b_stride[i] * e && out.y_stride[last] == in.y_stride[i] * e) {
      out.extent[last] *= e;
      out.a_stride[last] = in.a_stride[i];
      out.b_stride[last] = in.b_stride[i];
      out.y_stride[last] = in.y_stride[i];
      continue;
    }
    out.extent[out.rank] = e;
    out.a_stride[out.rank] = in.a_stride[i];
    out.b_stride[out.rank] = in.b_stride[i];
    out.y_stride[out.rank] = in.y_stride[i];
    ++out.rank;
  }
  if (out.rank == 0) {
    out.rank = 1;
    out.extent[0] = 1;
  }
  return out;
}

/// Calls fn(a_offset, b_offset, y_offset, n) for every run along the innermost dimension of a collapsed loop; long runs are cut into pieces of kGrain.
template <class Fn>
void for_each_run(const LoopNest& l, Fn&& fn) {
  const int inner = l.rank - 1;
  const int64_t length = l.extent[inner];
  const int64_t total = loop_elements(l);
  if (total == 0) return;
  const int64_t pieces = (length + kGrain - 1) / kGrain;
  const int64_t runs = total / length * pieces;
  parallel_for(runs, std::max<int64_t>(1, kGrain / length), [&](int64_t begin, int64_t end) {
    int64_t index[kMaxLoopRank] = {};
    int64_t rest = begin / pieces;
    int64_t a = 0, b = 0, y = 0;
    for (int d = inner - 1; d >= 0; --d) {
      index[d] = rest % l.extent[d];
      rest /= l.extent[d];
      a += index[d] * l.a_stride[d];
      b += index[d] * l.b_stride[d];
      y += index[d] * l.y_stride[d];
    }
    int64_t piece = begin % pieces;
    for (int64_t run = begin; run < end; ++run) {
      const int64_t first = piece * kGrain;
      const int64_t n = std::min(kGrain, length - first);
      fn(a + first * l.a_stride[inner], b + first * l.b_stride[inner], y + first * l.y_stride[inner], n);
      if (++piece < pieces) continue;
      piece = 0;
      for (int d = inner - 1; d >= 0; --d) {
        a += l.a_stride[d];
        b += l.b_stride[d];
        y += l.y_stride[d];
        if (++index[d] < l.extent[d]) break;
        index[d] = 0;
        a -= l.extent[d] * l.a_stride[d];
        b -= l.extent[d] * l.b_stride[d];
        y -= l.extent[d] * l.y_stride[d];
      }
    }
  });
}

}  // namespace detent::cpu
