// Convolution micro-kernels for AVX2 with FMA. Compiled with its own flags; nothing but conv_isa_avx2 is visible outside.
#include <immintrin.h>

#include "detent/backends/cpu/conv_isa.h"

namespace detent::cpu {
namespace avx2 {
namespace {

#define DETENT_VEC static __attribute__((always_inline)) inline

// Partial vectors go through a small buffer: masked stores are slow on many processors and a partial vector is rare.
struct Vec {
  using F = __m256;
  using M = __m256;
  static constexpr int n = 8;

  DETENT_VEC F zero() { return _mm256_setzero_ps(); }
  DETENT_VEC F set(float v) { return _mm256_set1_ps(v); }
  DETENT_VEC F load(const float* p) { return _mm256_loadu_ps(p); }
  DETENT_VEC F load(const float* p, int count) {
    if (count == 8) return _mm256_loadu_ps(p);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
  }
  DETENT_VEC void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  DETENT_VEC void store(float* p, F v, int count) {
    if (count == 8) {
      _mm256_storeu_ps(p, v);
      return;
    }
    float b[8];
    _mm256_storeu_ps(b, v);
    for (int i = 0; i < count; ++i) p[i] = b[i];
  }
  DETENT_VEC void stream(float* p, F v) { _mm256_stream_ps(p, v); }
  DETENT_VEC F add(F a, F b) { return _mm256_add_ps(a, b); }
  DETENT_VEC F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  DETENT_VEC F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  DETENT_VEC F div(F a, F b) { return _mm256_div_ps(a, b); }
  DETENT_VEC F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // What a product and its sum are: of two floats.
  DETENT_VEC F accumulate(F a, F b, F sum) { return fma(a, b, sum); }
  // accumulate() for the two vectors of one pixel. Of 16 registers 12 hold sums, 2 the filter and 1 the factor: GCC loads the next step's operands early and
  // then keeps two sums in memory, which costs a quarter of the speed. A sequence that it cannot take apart leaves it no choice.
  DETENT_VEC void accumulate_pair(F& sum0, F& sum1, const float* a, F b0, F b1) {
    F factor;
    __asm__ volatile("vbroadcastss %3, %2\n\tvfmadd231ps %4, %2, %0\n\tvfmadd231ps %5, %2, %1" : "+x"(sum0), "+x"(sum1), "=&x"(factor) : "m"(*a), "x"(b0), "x"(b1));
  }
  DETENT_VEC F min(F a, F b) { return _mm256_min_ps(a, b); }
  DETENT_VEC F max(F a, F b) { return _mm256_max_ps(a, b); }
  DETENT_VEC F rint(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  DETENT_VEC M le(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  DETENT_VEC M is_nan(F a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
  DETENT_VEC M either(M a, M b) { return _mm256_or_ps(a, b); }
  DETENT_VEC M both(M a, M b) { return _mm256_and_ps(a, b); }
  DETENT_VEC F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  DETENT_VEC void store_bytes(uint8_t* p, F v, int count) {
    int32_t b[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(b), _mm256_cvtps_epi32(v));
    for (int i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(b[i]);
  }
  DETENT_VEC F load_bytes(const uint8_t* p, int32_t minus, int count) {
    uint64_t bytes = 0;
    if (count == 8) {
      __builtin_memcpy(&bytes, p, 8);
    } else {
      for (int i = 0; i < count; ++i) bytes |= static_cast<uint64_t>(p[i]) << (8 * i);
    }
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes))), _mm256_set1_epi32(minus)));
  }

  // round_to_bfloat of core/math/half.h: the upper halves are the result.
  DETENT_VEC __m256i bfloat(F v) {
    const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), _mm256_castps_si256(is_nan(v)));
  }
  DETENT_VEC F round_bfloat(F v) { return _mm256_castsi256_ps(_mm256_and_si256(bfloat(v), _mm256_set1_epi32(static_cast<int>(0xffff0000u)))); }
  // stream: past the cache, a whole vector.
  DETENT_VEC void store_bfloat(uint16_t* p, F v, int count, bool stream) {
    const __m256i upper = _mm256_srli_epi32(bfloat(v), 16);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
    if (stream) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(p), words);
    } else if (count == 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
    } else {
      uint16_t b[8];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(b), words);
      for (int i = 0; i < count; ++i) p[i] = b[i];
    }
  }

  // Writes N (at most 8 here) floats, or a few more.
  template <int N>
  DETENT_VEC void copy_some(float* dst, const float* src) {
    _mm256_storeu_ps(dst, load(src, N < 8 ? N : 8));
  }
  DETENT_VEC void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
  DETENT_VEC void prefetch_far(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

  DETENT_VEC void transpose(F (&m)[8]) {
    F t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      m[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      m[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      m[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      m[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int q = 0; q < 4; ++q) {
      t[q] = _mm256_permute2f128_ps(m[q], m[4 + q], 0x20);
      t[4 + q] = _mm256_permute2f128_ps(m[q], m[4 + q], 0x31);
    }
    for (int i = 0; i < 8; ++i) m[i] = t[i];
  }
};

// A depthwise filter tile: taps and vectors kept in registers.
constexpr int kDepthwiseTaps = 9, kDepthwiseVectors = 1;

#include "detent/backends/cpu/conv_kernels.inl"

constexpr ConvIsa kTable = {
    8,
    2,
    {0, 8, 6, 0, 0},
    {nullptr, tile<1, 8>, tile<2, 6>, nullptr, nullptr},
    {{},
     {nullptr, filter_tile<1, 1>, filter_tile<1, 2>, filter_tile<1, 3>, filter_tile<1, 4>, filter_tile<1, 5>, filter_tile<1, 6>, filter_tile<1, 7>, filter_tile<1, 8>},
     {nullptr, filter_tile<2, 1>, filter_tile<2, 2>, filter_tile<2, 3>, filter_tile<2, 4>, filter_tile<2, 5>, filter_tile<2, 6>},
     {},
     {}},
    depthwise,
    depthwise_filter,
    transpose,
    pack_panels,
    copy_rows,
    dequantize_codes,
    fma_burst,
    column_sum};

}  // namespace
}  // namespace avx2

const ConvIsa* conv_isa_avx2() { return &avx2::kTable; }

}  // namespace detent::cpu
