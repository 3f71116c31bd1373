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
  DETENT_VEC void requantize(I acc, const IntegerTarget& e, int64_t k, uint8_t* y, int count) {
    const I m = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const I sum = _mm256_add_epi32(acc, _mm256_maskload_epi32(e.offset + k, m));
    const __m256 t = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_maskload_ps(e.multiplier + k, m));
    const __m256 q = _mm256_add_ps(_mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm256_set1_ps(e.zero_point));
    const I c = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(e.hi), _mm256_max_ps(_mm256_set1_ps(e.lo), q)));
    const __m128i s = _mm_packus_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(s, s));
    if (count == 8) {
      __builtin_memcpy(y, &bytes, 8);
      return;
    }
    for (int i = 0; i < count; ++i) y[i] = static_cast<uint8_t>(bytes >> (8 * i));
  }
};

#include "detent/backends/cpu/integer_kernels.inl"

constexpr IntegerIsa kTable = {8, 2, {nullptr, tile<1, 6>, tile<2, 4>}, burst};

}  // namespace
}  // namespace avx2_integer

const IntegerIsa* integer_isa_avx2() { return &avx2_integer::kTable; }

}  // namespace detent::cpu
