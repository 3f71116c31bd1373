// Built once per instruction set; DETENT_INTEGER names the table. The formulas are integer_math.h's, in loops that vectorise.
#include "detent/backends/cpu/integer.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace detent::cpu {
namespace {

constexpr int64_t kBlock = 128;

#if defined(__AVX512F__)

// Clamping before rounding is the same, as the bounds are integers, and the lower one is left to the saturation of the packs.
__m512i sum_of(__m128i a, __m128i b, __m512 ra, __m512 rb, __m512 k, __m512 most) {
  const __m512 inner = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b)), rb, k);
  return _mm512_cvtps_epi32(_mm512_min_ps(most, _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(a)), ra, inner)));
}

void add(const uint8_t* a, const uint8_t* b, const IntegerAdd& f, const CodeRange& range, uint8_t* y, int64_t n) {
  const __m512 ra = _mm512_set1_ps(f.ra), rb = _mm512_set1_ps(f.rb), k = _mm512_set1_ps(f.k), most = _mm512_set1_ps(static_cast<float>(range.hi));
  const __m512i least = _mm512_set1_epi8(static_cast<char>(static_cast<uint8_t>(range.lo)));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t i = 0; i < n; i += 64) {
    const __mmask64 valid = ~uint64_t{0} >> (n - i < 64 ? 64 - (n - i) : 0);
    const __m512i va = _mm512_maskz_loadu_epi8(valid, a + i), vb = _mm512_maskz_loadu_epi8(valid, b + i);
    const __m512i q0 = sum_of(_mm512_extracti32x4_epi32(va, 0), _mm512_extracti32x4_epi32(vb, 0), ra, rb, k, most);
    const __m512i q1 = sum_of(_mm512_extracti32x4_epi32(va, 1), _mm512_extracti32x4_epi32(vb, 1), ra, rb, k, most);
    const __m512i q2 = sum_of(_mm512_extracti32x4_epi32(va, 2), _mm512_extracti32x4_epi32(vb, 2), ra, rb, k, most);
    const __m512i q3 = sum_of(_mm512_extracti32x4_epi32(va, 3), _mm512_extracti32x4_epi32(vb, 3), ra, rb, k, most);
    const __m512i bytes = _mm512_max_epu8(_mm512_packus_epi16(_mm512_packs_epi32(q0, q1), _mm512_packs_epi32(q2, q3)), least);
    _mm512_mask_storeu_epi8(y + i, valid, _mm512_permutexvar_epi32(order, bytes));
  }
}

#else

void add(const uint8_t* a, const uint8_t* b, const IntegerAdd& formula, const CodeRange& codes, uint8_t* y, int64_t n) {
  const IntegerAdd f = formula;
  const CodeRange range = codes;
  int32_t q[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    for (int64_t i = 0; i < m; ++i) q[i] = add_codes(a[at + i], b[at + i], f, range);
    for (int64_t i = 0; i < m; ++i) y[at + i] = static_cast<uint8_t>(q[i]);
  }
}

#endif

void add_rows(const uint8_t* x, int64_t stride, int64_t rows, int64_t c, int32_t* sum) {
  for (int64_t i = 0; i < rows; ++i, x += stride) {
    for (int64_t j = 0; j < c; ++j) sum[j] += x[j];
  }
}

void requantize_sums(const int32_t* sum, int32_t minus, float multiplier, const Grid& grid, uint8_t* y, int64_t n) {
  const Grid g = grid;
  for (int64_t j = 0; j < n; ++j) y[j] = static_cast<uint8_t>(requantize(sum[j] - minus, multiplier, g));
}

void max_taps(const uint8_t* const* tap, int64_t taps, int64_t offset, int64_t c, uint8_t* y) {
  const uint8_t* x = tap[0] + offset;
  for (int64_t j = 0; j < c; ++j) y[j] = x[j];
  for (int64_t t = 1; t < taps; ++t) {
    x = tap[t] + offset;
    for (int64_t j = 0; j < c; ++j) y[j] = x[j] > y[j] ? x[j] : y[j];
  }
}

// residual_of_sum of a block of sums, for channels c and on.
void keep_residual(const IntegerTarget& e, const int32_t* acc, int64_t c, int64_t n, int8_t* out) {
  const Grid g = e.grid;
  const IntegerClamp clamp = e.residual.clamp;
  const bool on_value = e.residual.on_value;
  const float *value = e.residual.scale + c, *multiplier = e.multiplier + c;
  int32_t byte[kBlock];
  for (int64_t j = 0; j < n; ++j) byte[j] = residual_of_sum(acc[j], {value[j], multiplier[j]}, clamp, g, on_value);
  for (int64_t j = 0; j < n; ++j) out[j] = static_cast<int8_t>(byte[j]);
}

#if defined(__AVX512F__)

void depthwise(const IntegerDepthwise& arguments) {
  const IntegerDepthwise a = arguments;
  const IntegerTarget e = *a.target;
  const __m512 most = _mm512_set1_ps(e.hi - e.zero_point);
  const __m512i z = _mm512_set1_epi32(static_cast<int32_t>(e.zero_point)), least = _mm512_set1_epi32(static_cast<int32_t>(e.lo));
  for (int64_t c = 0; c < a.channels; c += 16) {
    const __mmask16 m = a.channels - c < 16 ? static_cast<__mmask16>((1u << (a.channels - c)) - 1u) : __mmask16(0xffff);
    __m512i acc = _mm512_maskz_loadu_epi32(m, e.offset + c);
    const int16_t* w = a.w + 2 * c;
    for (int64_t t = 0; t < a.taps; t += 2, w += 2 * a.channels) {
      const uint8_t* const second = a.rows[(t + 1 < a.taps ? t + 1 : t) * a.row_stride];
      const __m512i x0 = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, a.rows[t * a.row_stride] + c)), x1 = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, second + c));
      acc = _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_or_si512(x0, _mm512_slli_epi32(x1, 16)), _mm512_maskz_loadu_epi32(m, w)));
    }
    const __m512i q = _mm512_cvtps_epi32(_mm512_min_ps(most, _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_maskz_loadu_ps(m, e.multiplier + c))));
    // Far below, the sum with the zero point might wrap.
    const __m512i codes = _mm512_max_epi32(_mm512_add_epi32(_mm512_max_epi32(q, _mm512_set1_epi32(-512)), z), least);
    _mm_mask_storeu_epi8(a.y + c, m, _mm512_cvtepi32_epi8(codes));
    if (a.residual) {
      int32_t sums[16];
      _mm512_storeu_si512(sums, acc);
      keep_residual(e, sums, c, a.channels - c < 16 ? a.channels - c : 16, a.residual + c);
    }
  }
}

#else

void depthwise(const IntegerDepthwise& arguments) {
  const IntegerDepthwise a = arguments;
  const IntegerTarget e = *a.target;
  const Grid g{1.0f, static_cast<int32_t>(e.zero_point), static_cast<int32_t>(e.lo), static_cast<int32_t>(e.hi)};
  int32_t acc[kBlock];
  for (int64_t c = 0; c < a.channels; c += kBlock) {
    const int64_t n = a.channels - c < kBlock ? a.channels - c : kBlock;
    for (int64_t j = 0; j < n; ++j) acc[j] = e.offset[c + j];
    for (int64_t t = 0; t < a.taps; t += 2) {
      const uint8_t* const x = a.rows[t * a.row_stride] + c;
      const uint8_t* const y = a.rows[(t + 1 < a.taps ? t + 1 : t) * a.row_stride] + c;
      const int16_t* const w = a.w + (t / 2 * a.channels + c) * 2;
      for (int64_t j = 0; j < n; ++j) acc[j] = wrapping_add(acc[j], x[j] * w[2 * j] + y[j] * w[2 * j + 1]);
    }
    if (a.residual) keep_residual(e, acc, c, n, a.residual + c);
    for (int64_t j = 0; j < n; ++j) acc[j] = requantize(acc[j], e.multiplier[c + j], g);
    for (int64_t j = 0; j < n; ++j) a.y[c + j] = static_cast<uint8_t>(acc[j]);
  }
}

#endif

void weight_codes(const float* w, float scale, int64_t n, int8_t* q, int64_t* sum, int64_t* magnitude) {
  int32_t code[kBlock];
  int64_t total = 0, absolute = 0;
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    int32_t part = 0, part_absolute = 0;
    for (int64_t i = 0; i < m; ++i) code[i] = static_cast<int32_t>(weight_code(w[at + i], scale));
    for (int64_t i = 0; i < m; ++i) {
      part += code[i];
      part_absolute += code[i] < 0 ? -code[i] : code[i];
    }
    for (int64_t i = 0; i < m; ++i) q[at + i] = static_cast<int8_t>(code[i]);
    total += part;
    absolute += part_absolute;
  }
  *sum = total;
  *magnitude = absolute;
}

}  // namespace

const IntegerRows DETENT_INTEGER = {add, add_rows, requantize_sums, max_taps, depthwise, weight_codes};

}  // namespace detent::cpu
