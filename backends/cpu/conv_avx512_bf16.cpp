// Convolution micro-kernels of bf16 pairs for AVX-512 BF16: what a float kernel takes for a float is a word of two bf16, neighbours in the sum, and a product adds both.
// Compiled with its own flags; nothing but bf16_isa_avx512 is visible outside.
#include <immintrin.h>

#include "detent/backends/cpu/conv_bf16.h"

namespace detent::cpu {
namespace avx512_bf16 {
namespace {

#define DETENT_VEC static __attribute__((always_inline)) inline

struct Vec {
#include "detent/backends/cpu/conv_avx512.inl"

  // Of two words. Rounded to even, denormals are zero, whatever the processor's mode is.
  DETENT_VEC F accumulate(F a, F b, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b)); }
};

constexpr int kDepthwiseTaps = 9, kDepthwiseVectors = 3;

#include "detent/backends/cpu/conv_kernels.inl"

#include "detent/backends/cpu/conv_avx512_table.inl"

DETENT_INLINE __mmask16 lanes(int64_t count) { return count >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << count) - 1u); }

// 16 values as floats, and as bf16 in the low halves of their lanes; x is f32 or bf16.
DETENT_INLINE __m512 floats_at(const float* x, __mmask16 m) { return _mm512_maskz_loadu_ps(m, x); }
DETENT_INLINE __m512 floats_at(const uint16_t* x, __mmask16 m) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x)), 16)); }
DETENT_INLINE __m512i rounded(__m512 v) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)); }
DETENT_INLINE __m512i bfloats_at(const float* x, __mmask16 m) { return rounded(floats_at(x, m)); }
DETENT_INLINE __m512i bfloats_at(const uint16_t* x, __mmask16 m) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x)); }

DETENT_INLINE void store_words(float* words, __m512i first, __m512i second, __mmask16 m) {
  _mm512_mask_storeu_epi32(words, m, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
}

template <class T>
void join_columns(const T* x, const float* scale, int64_t rows, int64_t c, float* words) {
  for (int64_t row = 0; row < rows; ++row, x += c, words += c / 2) {
    for (int64_t j = 0; j < c; j += 16) {
      const __mmask16 m = lanes(c - j);
      __m512 v = floats_at(x + j, m);
      if (scale) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, scale + j));
      _mm256_mask_storeu_epi16(words + j / 2, m, (__m256i)_mm512_cvtneps_pbh(v));
    }
  }
}

template <class T>
void join_rows(const T* a, const T* b, int64_t n, float* words) {
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 m = lanes(n - j);
    store_words(words + j, bfloats_at(a + j, m), bfloats_at(b + j, m), m);
  }
}

template <class T>
void join_pairs(const T* x, int64_t stride, int64_t pairs, int64_t n, float* words) {
  for (int64_t j = 0; j < pairs; ++j, x += 2 * stride, words += n) join_rows(x, x + stride, n, words);
}

void join_weights(const float* a, const float* b, float scale_a, float scale_b, int64_t n, float* words) {
  const __m512 sa = _mm512_set1_ps(scale_a), sb = _mm512_set1_ps(scale_b);
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 m = lanes(n - j);
    const __m512 qa = Vec::rint(_mm512_div_ps(_mm512_maskz_loadu_ps(m, a + j), sa)), qb = Vec::rint(_mm512_div_ps(_mm512_maskz_loadu_ps(m, b + j), sb));
    store_words(words + j, rounded(qa), rounded(qb), m);
  }
}

// Integers of eight bits and a sign: exact, their float's upper half.
DETENT_INLINE void join_two_codes(const uint8_t* a, const uint8_t* b, int32_t zero_point, int64_t n, float* words) {
  const __m512i z = _mm512_set1_epi32(zero_point), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 m = lanes(n - j);
    const __m512i qa = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, a + j)), qb = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, b + j));
    const __m512i fa = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(qa, z))), fb = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(qb, z)));
    _mm512_mask_storeu_epi32(words + j, m, _mm512_or_si512(_mm512_srli_epi32(fa, 16), _mm512_and_si512(fb, upper)));
  }
}

void join_codes(const uint8_t* a, const uint8_t* b, int32_t zero_point, int64_t n, float* words) { join_two_codes(a, b, zero_point, n, words); }

void join_code_pairs(const uint8_t* x, int64_t stride, int32_t zero_point, int64_t pairs, int64_t n, float* words) {
  for (int64_t j = 0; j < pairs; ++j, x += 2 * stride, words += n) join_two_codes(x, x + stride, zero_point, n, words);
}

constexpr Bf16Isa kBf16 = {&kTable, join_columns, join_columns, join_rows, join_pairs, join_rows, join_pairs, join_weights, join_codes, join_code_pairs};

}  // namespace
}  // namespace avx512_bf16

const Bf16Isa* bf16_isa_avx512() { return &avx512_bf16::kBf16; }

}  // namespace detent::cpu
