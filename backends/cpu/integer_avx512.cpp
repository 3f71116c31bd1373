// Integer convolution tiles for AVX-512 without VNNI: exact 16-bit products of even and odd codes, because vpmaddubsw would saturate. Compiled with its own flags; nothing but integer_isa_avx512 is visible outside.
#include <immintrin.h>

#include "detent/backends/cpu/integer.h"

namespace detent::cpu {
namespace avx512_integer {
namespace {

#define DETENT_VEC static __attribute__((always_inline)) inline

struct Vec {
#include "detent/backends/cpu/integer_avx512.inl"

  struct Weights {
    I even, odd;
  };
  using Codes = Weights;
  DETENT_VEC void hide(Codes& a) { asm volatile("" : "+v"(a.even), "+v"(a.odd)); }
  DETENT_VEC Weights weights(const int8_t* p) {
    const I w = _mm512_loadu_si512(p);
    return {_mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), _mm512_srai_epi16(w, 8)};
  }
  DETENT_VEC Codes codes(int32_t word) {
    const I x = _mm512_set1_epi32(word);
    return {_mm512_and_si512(x, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(x, 8)};
  }
  DETENT_VEC I dot(I acc, const Codes& a, const Weights& b) {
    return _mm512_add_epi32(acc, _mm512_add_epi32(_mm512_madd_epi16(a.even, b.even), _mm512_madd_epi16(a.odd, b.odd)));
  }
};

#include "detent/backends/cpu/integer_kernels.inl"

constexpr IntegerIsa kTable = {16, 4, {nullptr, tile<1, 12>, tile<2, 8>, tile<3, 4>, tile<4, 4>}, burst};

}  // namespace
}  // namespace avx512_integer

const IntegerIsa* integer_isa_avx512() { return &avx512_integer::kTable; }

}  // namespace detent::cpu
