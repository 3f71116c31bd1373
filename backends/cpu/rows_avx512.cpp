// The row kernels in AVX-512 (F, BW, DQ, VL). Tails are masked.
#include <immintrin.h>

#include "detent/backends/cpu/rows.h"

namespace detent::cpu {
namespace {

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

struct Vectors {
  __m512 scale, zero, lo, hi;
};

DETENT_HD Vectors vectors(const RowGrid& g) { return {_mm512_set1_ps(g.scale), _mm512_set1_ps(g.zero), _mm512_set1_ps(g.lo), _mm512_set1_ps(g.hi)}; }

DETENT_HD __mmask16 tail_mask(int64_t left) { return left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1u); }

DETENT_HD __m512 code(__m512 x, const Vectors& g) {
  const __m512 v = _mm512_add_ps(_mm512_roundscale_ps(_mm512_div_ps(x, g.scale), kNearest), g.zero);
  const __m512 c = _mm512_min_ps(_mm512_max_ps(v, g.lo), g.hi);
  return _mm512_mask_mov_ps(c, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), g.zero);
}

DETENT_HD bool streams(const void* p, bool asked) { return asked && reinterpret_cast<uintptr_t>(p) % 64 == 0; }

void fake_quant(const float* x, const RowGrid& grid, float* y, int64_t n, bool stream) {
  const Vectors g = vectors(grid);
  int64_t i = 0;
  if (streams(y, stream)) {
    for (; i + 32 <= n; i += 32) {
      const __m512 a = code(_mm512_loadu_ps(x + i), g), b = code(_mm512_loadu_ps(x + i + 16), g);
      _mm512_stream_ps(y + i, _mm512_mul_ps(g.scale, _mm512_sub_ps(a, g.zero)));
      _mm512_stream_ps(y + i + 16, _mm512_mul_ps(g.scale, _mm512_sub_ps(b, g.zero)));
    }
    _mm_sfence();
  }
  for (; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 c = code(_mm512_maskz_loadu_ps(m, x + i), g);
    _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(g.scale, _mm512_sub_ps(c, g.zero)));
  }
}

void fake_quant_codes(const float* x, const RowGrid& grid, float* y, uint8_t* codes, int64_t n) {
  const Vectors g = vectors(grid);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {  // masked byte stores are slow
    const __m512 c = code(_mm512_loadu_ps(x + i), g);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(c)));
    if (y) _mm512_storeu_ps(y + i, _mm512_mul_ps(g.scale, _mm512_sub_ps(c, g.zero)));
  }
  if (i < n) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 c = code(_mm512_maskz_loadu_ps(m, x + i), g);
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, m, _mm512_cvttps_epi32(c));
    if (y) _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(g.scale, _mm512_sub_ps(c, g.zero)));
  }
}

DETENT_HD __m512 backward_step(__m512 x, __m512 dy, const Vectors& g, __m512* scale, __m512* clip) {
  const __m512 t = _mm512_div_ps(x, g.scale);
  const __m512 r = _mm512_roundscale_ps(t, kNearest);
  const __m512 v = _mm512_add_ps(r, g.zero);
  const __m512 c = _mm512_min_ps(_mm512_max_ps(v, g.lo), g.hi);
  const __mmask16 inside = _mm512_cmp_ps_mask(v, c, _CMP_EQ_OQ);
  const __mmask16 outside = _mm512_cmp_ps_mask(v, c, _CMP_NEQ_OQ);
  const __m512 factor = _mm512_mask_sub_ps(_mm512_sub_ps(c, g.zero), inside, r, t);
  *scale = _mm512_mask_add_ps(*scale, static_cast<__mmask16>(inside | outside), *scale, _mm512_mul_ps(dy, factor));
  *clip = _mm512_mask_add_ps(*clip, outside, *clip, dy);
  return _mm512_maskz_mov_ps(inside, dy);
}

void fake_quant_backward(const float* x, const float* dy, const RowGrid& grid, float* dx, int64_t n, double* sums, bool stream) {
  const Vectors g = vectors(grid);
  const bool past = streams(dx, stream);
  for (int64_t first = 0; first < n; first += kSumBlock) {
    const int64_t last = first + kSumBlock < n ? first + kSumBlock : n;
    __m512 scale = _mm512_setzero_ps(), clip = _mm512_setzero_ps();
    int64_t i = first;
    if (dx && past) {
      for (; i + 16 <= last; i += 16) _mm512_stream_ps(dx + i, backward_step(_mm512_loadu_ps(x + i), _mm512_loadu_ps(dy + i), g, &scale, &clip));
    } else if (dx) {
      for (; i + 16 <= last; i += 16) _mm512_storeu_ps(dx + i, backward_step(_mm512_loadu_ps(x + i), _mm512_loadu_ps(dy + i), g, &scale, &clip));
    }
    for (; i < last; i += 16) {
      const __mmask16 m = tail_mask(last - i);
      const __m512 d = backward_step(_mm512_maskz_loadu_ps(m, x + i), _mm512_maskz_loadu_ps(m, dy + i), g, &scale, &clip);
      if (dx) _mm512_mask_storeu_ps(dx + i, m, d);
    }
    alignas(64) float lanes[2][kSumLanes];
    _mm512_store_ps(lanes[0], scale);
    _mm512_store_ps(lanes[1], clip);
    sums[0] += fold_lanes(lanes[0]);
    sums[1] += fold_lanes(lanes[1]);
  }
  if (past) _mm_sfence();
}

void dequantize(const uint8_t* codes, const RowGrid& grid, float* y, int64_t n) {
  const Vectors g = vectors(grid);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 q = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, codes + i)));
    _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(g.scale, _mm512_sub_ps(q, g.zero)));
  }
}

void extent(const float* x, int64_t n, RowExtent* e) {
  __m512 lo0 = _mm512_set1_ps(e->min), hi0 = _mm512_set1_ps(e->max), lo1 = lo0, hi1 = hi0;
  int64_t i = 0, nan = 0;
  // min and max of two numbers give the second operand when the first is NaN.
  for (; i + 32 <= n; i += 32) {
    const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
    lo0 = _mm512_min_ps(a, lo0);
    hi0 = _mm512_max_ps(a, hi0);
    lo1 = _mm512_min_ps(b, lo1);
    hi1 = _mm512_max_ps(b, hi1);
    nan += __builtin_popcount(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q)) + __builtin_popcount(_mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q));
  }
  for (; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 a = _mm512_mask_loadu_ps(lo0, m, x + i), b = _mm512_mask_loadu_ps(hi0, m, x + i);
    lo0 = _mm512_min_ps(a, lo0);
    hi0 = _mm512_max_ps(b, hi0);
    nan += __builtin_popcount(_mm512_mask_cmp_ps_mask(m, a, a, _CMP_UNORD_Q));
  }
  e->min = _mm512_reduce_min_ps(_mm512_min_ps(lo0, lo1));
  e->max = _mm512_reduce_max_ps(_mm512_max_ps(hi0, hi1));
  e->nan += nan;
}

// Half away from zero: adding the float just below 1/2 and truncating never carries a smaller fraction over.
DETENT_HD __m512 round_away(__m512 v) {
  const __m512 sign = _mm512_and_ps(v, _mm512_set1_ps(-0.0f));
  const __m512 half = _mm512_or_ps(_mm512_set1_ps(0.49999997f), sign);
  return _mm512_roundscale_ps(_mm512_add_ps(v, half), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}

// In order, without the zeros.
DETENT_HD int64_t append_bins(__m512i bin, __m512 a, __mmask16 m, int32_t* out, int64_t count) {
  const __mmask16 keep = _mm512_mask_cmp_ps_mask(m, a, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(keep, bin));
  return count + __builtin_popcount(keep);
}

int64_t bins(const float* x, int64_t n, const RowBins& b, int32_t* out) {
  const __m512 lo = _mm512_set1_ps(b.lo), width = _mm512_set1_ps(b.width), lo_bins = _mm512_set1_ps(b.lo / b.width);
  const __m512 zero = _mm512_setzero_ps(), last = _mm512_set1_ps(static_cast<float>(b.bins - 1));
  const __m512i none = _mm512_set1_epi32(b.bins);
  int64_t count = 0;
  if (b.clamp_ends && !b.centred) {  // clamped before the cast, truncation is the floor
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 m = tail_mask(n - i);
      const __m512 a = _mm512_maskz_loadu_ps(m, x + i), v = _mm512_div_ps(_mm512_sub_ps(a, lo), width);
      const __m512i bin = _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(v, zero), last));
      count = append_bins(_mm512_mask_mov_epi32(bin, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), none), a, m, out, count);
    }
    return count;
  }
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 a = _mm512_maskz_loadu_ps(m, x + i);
    __m512 v = b.centred ? round_away(_mm512_sub_ps(_mm512_div_ps(a, width), lo_bins))
                         : _mm512_roundscale_ps(_mm512_div_ps(_mm512_sub_ps(a, lo), width), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    if (b.clamp_ends) v = _mm512_mask_mov_ps(_mm512_min_ps(_mm512_max_ps(v, zero), last), nan, v);
    const __mmask16 in = static_cast<__mmask16>(_mm512_cmp_ps_mask(v, zero, _CMP_GE_OQ) & _mm512_cmp_ps_mask(v, last, _CMP_LE_OQ));
    count = append_bins(_mm512_mask_cvttps_epi32(none, in, v), a, m, out, count);
  }
  return count;
}

}  // namespace

const RowKernels kRowsAvx512 = {fake_quant, fake_quant_codes, fake_quant_backward, dequantize, extent, bins};

}  // namespace detent::cpu
