// Integer convolution tiles for AVX-512 with VNNI. Compiled with its own flags; nothing but integer_isa_avx512_vnni is visible outside.
#include <immintrin.h>

#include "detent/backends/cpu/integer.h"

namespace detent::cpu {
namespace avx512_vnni_integer {
namespace {

#define DETENT_VEC static __attribute__((always_inline)) inline

struct Vec {
#include "detent/backends/cpu/integer_avx512.inl"

  using Weights = I;
  using Codes = I;
  DETENT_VEC void hide(Codes& a) { asm volatile("" : "+v"(a)); }
  DETENT_VEC Weights weights(const int8_t* p) { return _mm512_loadu_si512(p); }
  DETENT_VEC Codes codes(int32_t word) { return _mm512_set1_epi32(word); }
  DETENT_VEC I dot(I acc, Codes a, Weights b) { return _mm512_dpbusd_epi32(acc, a, b); }
};

#include "detent/backends/cpu/integer_kernels.inl"

constexpr IntegerIsa kTable = {16, 4, {nullptr, tile<1, 12>, tile<2, 12>, tile<3, 8>, tile<4, 6>}, burst};

}  // namespace
}  // namespace avx512_vnni_integer

const IntegerIsa* integer_isa_avx512_vnni() { return &avx512_vnni_integer::kTable; }

}  // namespace detent::cpu
