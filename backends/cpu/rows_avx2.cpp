// The row kernels in AVX2. Tails go through a padded copy of the last elements.
#include <immintrin.h>

#include "detent/backends/cpu/rows.h"

namespace detent::cpu {
namespace {

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

struct Vectors {
  __m256 scale, zero, lo, hi;
};

DETENT_HD Vectors vectors(const RowGrid& g) { return {_mm256_set1_ps(g.scale), _mm256_set1_ps(g.zero), _mm256_set1_ps(g.lo), _mm256_set1_ps(g.hi)}; }

alignas(32) constexpr int32_t kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

DETENT_HD __m256i tail_mask(int64_t left) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + (left >= 8 ? 0 : 8 - left))); }

DETENT_HD __m256 code(__m256 x, const Vectors& g) {
  const __m256 v = _mm256_add_ps(_mm256_round_ps(_mm256_div_ps(x, g.scale), kNearest), g.zero);
  const __m256 c = _mm256_min_ps(_mm256_max_ps(v, g.lo), g.hi);
  return _mm256_blendv_ps(c, g.zero, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

DETENT_HD __m256 value(__m256 code, const Vectors& g) { return _mm256_mul_ps(g.scale, _mm256_sub_ps(code, g.zero)); }

DETENT_HD bool streams(const void* p, bool asked) { return asked && reinterpret_cast<uintptr_t>(p) % 32 == 0; }

void fake_quant(const float* x, const RowGrid& grid, float* y, int64_t n, bool stream) {
  const Vectors g = vectors(grid);
  int64_t i = 0;
  if (streams(y, stream)) {
    for (; i + 16 <= n; i += 16) {
      const __m256 a = code(_mm256_loadu_ps(x + i), g), b = code(_mm256_loadu_ps(x + i + 8), g);
      _mm256_stream_ps(y + i, value(a, g));
      _mm256_stream_ps(y + i + 8, value(b, g));
    }
    _mm_sfence();
  }
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, value(code(_mm256_loadu_ps(x + i), g), g));
  if (i < n) {
    const __m256i m = tail_mask(n - i);
    _mm256_maskstore_ps(y + i, m, value(code(_mm256_maskload_ps(x + i, m), g), g));
  }
}

DETENT_HD void store_codes(__m256 c, uint8_t* out, int64_t n) {
  const __m256i q = _mm256_cvttps_epi32(c);
  const __m256i low = _mm256_shuffle_epi8(q, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  alignas(4) uint32_t half[2] = {static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(low))),
                                 static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_extracti128_si256(low, 1)))};
  __builtin_memcpy(out, half, static_cast<size_t>(n));
}

void fake_quant_codes(const float* x, const RowGrid& grid, float* y, uint8_t* codes, int64_t n) {
  const Vectors g = vectors(grid);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 c = code(_mm256_loadu_ps(x + i), g);
    store_codes(c, codes + i, 8);
    if (y) _mm256_storeu_ps(y + i, value(c, g));
  }
  if (i < n) {
    const __m256i m = tail_mask(n - i);
    const __m256 c = code(_mm256_maskload_ps(x + i, m), g);
    store_codes(c, codes + i, n - i);
    if (y) _mm256_maskstore_ps(y + i, m, value(c, g));
  }
}

struct Lanes {
  __m256 scale, clip;
};

DETENT_HD __m256 backward_step(__m256 x, __m256 dy, const Vectors& g, Lanes* sum) {
  const __m256 t = _mm256_div_ps(x, g.scale);
  const __m256 r = _mm256_round_ps(t, kNearest);
  const __m256 v = _mm256_add_ps(r, g.zero);
  const __m256 c = _mm256_min_ps(_mm256_max_ps(v, g.lo), g.hi);
  const __m256 inside = _mm256_cmp_ps(v, c, _CMP_EQ_OQ);
  const __m256 outside = _mm256_cmp_ps(v, c, _CMP_NEQ_OQ);
  const __m256 factor = _mm256_blendv_ps(_mm256_sub_ps(c, g.zero), _mm256_sub_ps(r, t), inside);
  // Masked after the product, so that an element that does not count adds +0 whatever dy is.
  sum->scale = _mm256_add_ps(sum->scale, _mm256_and_ps(_mm256_or_ps(inside, outside), _mm256_mul_ps(dy, factor)));
  sum->clip = _mm256_add_ps(sum->clip, _mm256_and_ps(outside, dy));
  return _mm256_and_ps(inside, dy);
}

void fake_quant_backward(const float* x, const float* dy, const RowGrid& grid, float* dx, int64_t n, double* sums, bool stream) {
  const Vectors g = vectors(grid);
  const bool past = streams(dx, stream);
  for (int64_t first = 0; first < n; first += kSumBlock) {
    const int64_t last = first + kSumBlock < n ? first + kSumBlock : n;
    const Lanes none = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    Lanes sum[2] = {none, none};
    int64_t i = first;
    for (; i + 16 <= last; i += 16) {
      const __m256 a = backward_step(_mm256_loadu_ps(x + i), _mm256_loadu_ps(dy + i), g, &sum[0]);
      const __m256 b = backward_step(_mm256_loadu_ps(x + i + 8), _mm256_loadu_ps(dy + i + 8), g, &sum[1]);
      if (past) {
        _mm256_stream_ps(dx + i, a);
        _mm256_stream_ps(dx + i + 8, b);
      } else if (dx) {
        _mm256_storeu_ps(dx + i, a);
        _mm256_storeu_ps(dx + i + 8, b);
      }
    }
    for (int half = 0; i < last; i += 8, ++half) {
      const __m256i m = tail_mask(last - i);
      const __m256 d = backward_step(_mm256_maskload_ps(x + i, m), _mm256_maskload_ps(dy + i, m), g, &sum[half]);
      if (dx) _mm256_maskstore_ps(dx + i, m, d);
    }
    alignas(32) float lanes[2][kSumLanes];
    for (int half = 0; half < 2; ++half) {
      _mm256_store_ps(lanes[0] + 8 * half, sum[half].scale);
      _mm256_store_ps(lanes[1] + 8 * half, sum[half].clip);
    }
    sums[0] += fold_lanes(lanes[0]);
    sums[1] += fold_lanes(lanes[1]);
  }
  if (past) _mm_sfence();
}

void dequantize(const uint8_t* codes, const RowGrid& grid, float* y, int64_t n) {
  const Vectors g = vectors(grid);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i q = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
    _mm256_storeu_ps(y + i, value(_mm256_cvtepi32_ps(q), g));
  }
  for (; i < n; ++i) y[i] = grid.scale * (static_cast<float>(codes[i]) - grid.zero);
}

void extent(const float* x, int64_t n, RowExtent* e) {
  __m256 lo[2], hi[2];
  __m256i nan = _mm256_setzero_si256();  // minus the count, per lane
  for (int k = 0; k < 2; ++k) {
    lo[k] = _mm256_set1_ps(e->min);
    hi[k] = _mm256_set1_ps(e->max);
  }
  int64_t i = 0;
  // min and max of two numbers give the second operand when the first is NaN.
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < 2; ++k) {
      const __m256 a = _mm256_loadu_ps(x + i + 8 * k);
      lo[k] = _mm256_min_ps(a, lo[k]);
      hi[k] = _mm256_max_ps(a, hi[k]);
      nan = _mm256_add_epi32(nan, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
    }
  }
  alignas(32) float mins[8], maxs[8];
  alignas(32) int32_t nans[8];
  _mm256_store_ps(mins, _mm256_min_ps(lo[0], lo[1]));
  _mm256_store_ps(maxs, _mm256_max_ps(hi[0], hi[1]));
  _mm256_store_si256(reinterpret_cast<__m256i*>(nans), nan);
  for (int k = 0; k < 8; ++k) {
    e->min = mins[k] < e->min ? mins[k] : e->min;
    e->max = maxs[k] > e->max ? maxs[k] : e->max;
    e->nan -= nans[k];
  }
  for (; i < n; ++i) {
    e->min = x[i] < e->min ? x[i] : e->min;
    e->max = x[i] > e->max ? x[i] : e->max;
    e->nan += x[i] != x[i];
  }
}

// Half away from zero: adding the float just below 1/2 and truncating never carries a smaller fraction over.
DETENT_HD __m256 round_away(__m256 v) {
  const __m256 half = _mm256_or_ps(_mm256_set1_ps(0.49999997f), _mm256_and_ps(v, _mm256_set1_ps(-0.0f)));
  return _mm256_round_ps(_mm256_add_ps(v, half), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}

int64_t bins(const float* x, int64_t n, const RowBins& b, int32_t* out) {
  const __m256 lo = _mm256_set1_ps(b.lo), width = _mm256_set1_ps(b.width), lo_bins = _mm256_set1_ps(b.lo / b.width);
  const __m256 zero = _mm256_setzero_ps(), last = _mm256_set1_ps(static_cast<float>(b.bins - 1));
  const __m256i none = _mm256_set1_epi32(b.bins);
  for (int64_t i = 0; i < n; i += 8) {
    const __m256i m = tail_mask(n - i);
    const __m256 a = _mm256_maskload_ps(x + i, m);
    __m256 v = b.centred ? round_away(_mm256_sub_ps(_mm256_div_ps(a, width), lo_bins))
                         : _mm256_round_ps(_mm256_div_ps(_mm256_sub_ps(a, lo), width), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    if (b.clamp_ends) v = _mm256_blendv_ps(_mm256_min_ps(_mm256_max_ps(v, zero), last), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i in = _mm256_castps_si256(_mm256_and_ps(_mm256_cmp_ps(v, zero, _CMP_GE_OQ), _mm256_cmp_ps(v, last, _CMP_LE_OQ)));
    _mm256_maskstore_epi32(out + i, m, _mm256_blendv_epi8(none, _mm256_cvttps_epi32(v), in));
  }
  return n;
}

}  // namespace

const RowKernels kRowsAvx2 = {fake_quant, fake_quant_codes, fake_quant_backward, dequantize, extent, bins};

}  // namespace detent::cpu
