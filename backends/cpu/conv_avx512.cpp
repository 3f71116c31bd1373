// Convolution micro-kernels for AVX-512. Compiled with its own flags; nothing but conv_isa_avx512 is visible outside.
#include <immintrin.h>

#include "detent/backends/cpu/conv_isa.h"

namespace detent::cpu {
namespace avx512 {
namespace {

#define DETENT_VEC static __attribute__((always_inline)) inline

struct Vec {
#include "detent/backends/cpu/conv_avx512.inl"

  // What a product and its sum are: of two floats.
  DETENT_VEC F accumulate(F a, F b, F sum) { return fma(a, b, sum); }
};

// A depthwise filter tile: taps and vectors kept in registers.
constexpr int kDepthwiseTaps = 9, kDepthwiseVectors = 3;

#include "detent/backends/cpu/conv_kernels.inl"

#include "detent/backends/cpu/conv_avx512_table.inl"

}  // namespace
}  // namespace avx512

const ConvIsa* conv_isa_avx512() { return &avx512::kTable; }

}  // namespace detent::cpu
