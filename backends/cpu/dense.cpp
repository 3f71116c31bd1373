// Built once per instruction set; DETENT_DENSE names the table.
#include "detent/backends/cpu/dense.h"

#include "detent/core/math/half.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define DETENT_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define DETENT_IVDEP _Pragma("GCC ivdep")
#endif

namespace detent::cpu {
namespace {

void add_rows(const float* x, int64_t stride, int64_t rows, int64_t c, float* sum) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const float *r0 = x + i * stride, *r1 = r0 + stride, *r2 = r1 + stride, *r3 = r2 + stride;
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) sum[j] += (r0[j] + r1[j]) + (r2[j] + r3[j]);
  }
  for (; i < rows; ++i) {
    const float* r = x + i * stride;
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) sum[j] += r[j];
  }
}

void add_squares(const float* x, int64_t rows, int64_t c, const float* mean, float* sum) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const float *r0 = x + i * c, *r1 = r0 + c, *r2 = r1 + c, *r3 = r2 + c;
    // This pass reads the cache; meanwhile the block after this one is on its way. A prefetch past the end is harmless.
    for (int64_t j = 0; j < 4 * c; j += 16) __builtin_prefetch(r0 + rows * c + j, 0, 2);
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) {
      const float m = mean[j];
      const float d0 = r0[j] - m, d1 = r1[j] - m, d2 = r2[j] - m, d3 = r3[j] - m;
      sum[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
    }
  }
  for (; i < rows; ++i) {
    const float* r = x + i * c;
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) {
      const float d = r[j] - mean[j];
      sum[j] += d * d;
    }
  }
}

void normalise(const float* x, int64_t rows, int64_t c, const float* mean, const float* factor, const float* shift, float lo, float hi, float* y) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* r = x + i * c;
    float* out = y + i * c;
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) {
      const float v = (r[j] - mean[j]) * factor[j] + shift[j];
      const float w = v > hi ? hi : v;
      out[j] = w < lo ? lo : w;
    }
  }
}

template <bool masked>
inline __attribute__((always_inline)) float gradient(const NormGradient& g, int64_t i, int64_t j) {
  const float dy = g.dy[i];
  if (!masked) return dy;
  const float y = (g.x[i] - g.mean[j]) * g.factor[j] + g.shift[j];
  return ((y <= g.lo) | (y >= g.hi)) ? 0.0f : dy;
}

template <bool masked>
inline __attribute__((always_inline)) void norm_sums_as(const NormGradient args, int64_t rows, int64_t c, float* sum, float* dot) {
  const NormGradient g = args;
  int64_t i = 0;
  for (; i + 2 <= rows; i += 2) {
    const int64_t a = i * c, b = a + c;
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) {
      const float m = g.mean[j], ga = gradient<masked>(g, a + j, j), gb = gradient<masked>(g, b + j, j);
      sum[j] += ga + gb;
      dot[j] += ga * (g.x[a + j] - m) + gb * (g.x[b + j] - m);
    }
  }
  for (; i < rows; ++i) {
    const int64_t a = i * c;
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) {
      const float ga = gradient<masked>(g, a + j, j);
      sum[j] += ga;
      dot[j] += ga * (g.x[a + j] - g.mean[j]);
    }
  }
}

void norm_sums(const NormGradient& g, int64_t rows, int64_t c, float* sum, float* dot) {
  if (g.masked) {
    norm_sums_as<true>(g, rows, c, sum, dot);
  } else {
    norm_sums_as<false>(g, rows, c, sum, dot);
  }
}

template <bool masked>
inline __attribute__((always_inline)) void norm_backward_as(const NormGradient args, int64_t rows, int64_t c, const float* k1, const float* k2, const float* k3,
                                                            float* dx) {
  const NormGradient g = args;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t a = i * c;
    DETENT_IVDEP
    for (int64_t j = 0; j < c; ++j) dx[a + j] = k1[j] * gradient<masked>(g, a + j, j) - k2[j] - k3[j] * (g.x[a + j] - g.mean[j]);
  }
}

void norm_backward(const NormGradient& g, int64_t rows, int64_t c, const float* k1, const float* k2, const float* k3, float* dx) {
  if (g.masked) {
    norm_backward_as<true>(g, rows, c, k1, k2, k3, dx);
  } else {
    norm_backward_as<false>(g, rows, c, k1, k2, k3, dx);
  }
}

void mask(const float* x, const float* dy, float lo, float hi, float* dx, int64_t n) {
  DETENT_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i], d = dy[i];
    dx[i] = ((v >= lo) & (v <= hi)) ? d : 0.0f;
  }
}

void clip(const float* x, float lo, float hi, float* y, int64_t n) {
  DETENT_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i], w = v > hi ? hi : v;
    y[i] = w < lo ? lo : w;
  }
}

void clip_backward(const float* x, const float* dy, float lo, float hi, float* dx, int64_t n) {
  DETENT_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i], d = dy[i];
    dx[i] = ((v <= lo) | (v >= hi)) ? 0.0f : d;
  }
}

#if defined(__AVX512F__)
// The running maximum and its index stay in registers over the taps. Returns how many channels are done.
int64_t max_taps_in_registers(const float* const* tap, const int32_t* where, int64_t taps, int64_t offset, int64_t c, float* best, int32_t* index) {
  int64_t j = 0;
  for (; j + 16 <= c; j += 16) {
    __m512 b = _mm512_loadu_ps(best + j);
    __m512i k = _mm512_loadu_si512(index + j);
    for (int64_t t = 0; t < taps; ++t) {
      const __m512 v = _mm512_loadu_ps(tap[t] + offset + j);
      const __mmask16 number = _mm512_cmp_ps_mask(b, b, _CMP_ORD_Q);
      const __mmask16 take = _mm512_mask_cmp_ps_mask(number, v, b, _CMP_NLE_UQ) | _mm512_movepi32_mask(k);
      b = _mm512_mask_mov_ps(b, take, v);
      k = _mm512_mask_mov_epi32(k, take, _mm512_set1_epi32(where[t]));
    }
    _mm512_storeu_ps(best + j, b);
    _mm512_storeu_si512(index + j, k);
  }
  return j;
}
#endif

void max_taps(const float* const* tap, const int32_t* where, int64_t taps, int64_t offset, int64_t c, float* best, int32_t* index) {
  int64_t done = 0;
#if defined(__AVX512F__)
  done = max_taps_in_registers(tap, where, taps, offset, c, best, index);
#endif
  for (int64_t t = 0; t < taps; ++t) {
    const float* x = tap[t] + offset;
    const int32_t here = where[t];
    DETENT_IVDEP
    for (int64_t j = done; j < c; ++j) {
      const float v = x[j], b = best[j];
      const int32_t k = index[j];
      const bool take = (v > b) | ((v != v) & (b == b)) | (k < 0);
      best[j] = take ? v : b;
      index[j] = take ? here : k;
    }
  }
}

void ramp(int64_t first, int64_t step, int64_t n, int64_t* y) {
  // One running value: g++ 12 compiles several of them in an array to wrong code for AVX2.
  for (int64_t i = 0, at = first; i < n; ++i, at += step) y[i] = at;
}

void narrow(const float* x, uint16_t* y, int64_t n) {
  DETENT_IVDEP
  for (int64_t i = 0; i < n; ++i) y[i] = bfloat_bits(x[i]);
}

void widen(const uint16_t* x, float* y, int64_t n) {
  DETENT_IVDEP
  for (int64_t i = 0; i < n; ++i) y[i] = bfloat_value(x[i]);
}

void pick(const float* dy, const int32_t* index, int32_t here, int64_t c, float* dx) {
  DETENT_IVDEP
  for (int64_t j = 0; j < c; ++j) {
    const float d = dy[j];
    dx[j] += index[j] == here ? d : 0.0f;
  }
}

}  // namespace

const DenseKernels DETENT_DENSE = {add_rows, add_squares, normalise, norm_sums, norm_backward, mask, clip, clip_backward, max_taps, ramp, narrow, widen, pick};

}  // namespace detent::cpu
