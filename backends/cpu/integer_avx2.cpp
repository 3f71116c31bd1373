// Integer convolution tiles for AVX2: exact 16-bit products of even and odd codes, because vpmaddubsw would saturate. Compiled with its own flags; nothing but
// integer_isa_avx2 is visible outside.
#include <immintrin.h>

#include "detent/backends/cpu/integer.h"

namespace detent::cpu {
namespace avx2_integer {
namespace {

#define DETENT_VEC static __attribute__((always_inline)) inline

struct Vec {
  using I = __m256i;
  static constexpr int n = 8;

  DETENT_VEC I zero() { return _mm256_setzero_si256(); }
  DETENT_VEC I add(I a, I b) { return _mm256_add_epi32(a, b); }
  DETENT_VEC int32_t first(I a) { return _mm256_cvtsi256_si32(a); }
  struct Weights {
    I even, odd;
  };
  using Codes = Weights;
  DETENT_VEC void hide(Codes& a) { asm volatile("" : "+v"(a.even), "+v"(a.odd)); }
  DETENT_VEC Weights weights(const int8_t* p) {
    const I w = _mm256_loadu_si256(reinterpret_cast<const I*>(p));
    return {_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
  }
  DETENT_VEC Codes codes(int32_t word) {
    const I x = _mm256_set1_epi32(word);
    return {_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(x, 8)};
  }
  DETENT_VEC I dot(I acc, const Codes& a, const Weights& b) {
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(a.even, b.even), _mm256_madd_epi16(a.odd, b.odd)));
  }
  DETENT_VEC I lanes(int64_t count) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count > 8 ? 8 : count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
  DETENT_VEC I load(const int32_t* p, int64_t count) { return _mm256_maskload_epi32(p, lanes(count)); }

  using F = __m256;
  using M = __m256;
  DETENT_VEC F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  DETENT_VEC F set(float v) { return _mm256_set1_ps(v); }
  DETENT_VEC F load(const float* p, int64_t count) { return _mm256_maskload_ps(p, lanes(count)); }
  DETENT_VEC F add(F a, F b) { return _mm256_add_ps(a, b); }
  DETENT_VEC F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  DETENT_VEC F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  DETENT_VEC F rint(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  DETENT_VEC M le(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  DETENT_VEC M both(M a, M b) { return _mm256_and_ps(a, b); }
  DETENT_VEC F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  DETENT_VEC void store_bytes(int8_t* p, F v, int64_t count) {
    const I q = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    store_some(reinterpret_cast<uint8_t*>(p), _mm_cvtsi128_si64(_mm_packs_epi16(words, words)), count);
  }
  // The first `count` of eight bytes, if there are so many.
  DETENT_VEC void store_some(uint8_t* p, int64_t bytes, int64_t count) {
    if (count >= 8) {
      __builtin_memcpy(p, &bytes, 8);
      return;
    }
    for (int i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(bytes >> (8 * i));
  }

  // Clamping before rounding is the same, as the bounds are integers, and the lower one is left to the saturation of the packs.
  template <int NV>
  DETENT_VEC void store(const I (&acc)[NV], const IntegerTarget& e, int64_t k, uint8_t* y, int64_t channels) {
    const __m256 most = _mm256_set1_ps(e.hi - e.zero_point);
    const __m128i z = _mm_set1_epi16(static_cast<int16_t>(e.zero_point)), lo = _mm_set1_epi8(static_cast<char>(static_cast<uint8_t>(e.lo)));
    for (int j = 0; j < NV; ++j) {
      const int64_t left = channels - 8 * j;
      const __m256 m = _mm256_maskload_ps(e.multiplier + k + 8 * j, lanes(left));
      const I q = _mm256_cvtps_epi32(_mm256_min_ps(most, _mm256_mul_ps(_mm256_cvtepi32_ps(acc[j]), m)));
      const __m128i s = _mm_adds_epi16(_mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)), z);
      const int64_t bytes = _mm_cvtsi128_si64(_mm_max_epu8(_mm_packus_epi16(s, s), lo));
      store_some(y + 8 * j, bytes, left);
    }
  }
};

#include "detent/backends/cpu/integer_kernels.inl"

constexpr IntegerIsa kTable = {8, 2, {nullptr, tile<1, 6>, tile<2, 4>}, burst};

}  // namespace
}  // namespace avx2_integer

const IntegerIsa* integer_isa_avx2() { return &avx2_integer::kTable; }

}  // namespace detent::cpu
