// Values that are kept as f32 or as bfloat16, one or four neighbours at a time: kernels compute in f32 and are written once for both.
#pragma once

#include "detent/backends/cuda/launch.h"
#include "detent/core/math/half.h"

namespace detent::DETENT_CUDA_NAMESPACE {

/// Two floats rounded to bf16 (ties to even), the first in the low half.
DETENT_HD uint32_t bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return bfloat_bits(low) | static_cast<uint32_t>(bfloat_bits(high)) << 16;
#endif
}

DETENT_HD float value_of(float x) { return x; }
DETENT_HD float value_of(uint16_t x) { return bfloat_value(x); }

DETENT_HD void put_value(float* to, float v) { *to = v; }
DETENT_HD void put_value(uint16_t* to, float v) { *to = static_cast<uint16_t>(bf16_pair(v, 0.0f)); }

/// `Width` neighbours; p is aligned to all of them.
template <int Width>
DETENT_HD Some<float, Width> values_at(const float* p) {
  return *reinterpret_cast<const Some<float, Width>*>(p);
}
template <int Width>
DETENT_HD Some<float, Width> values_at(const uint16_t* p) {
  const auto bits = *reinterpret_cast<const Some<uint16_t, Width>*>(p);
  Some<float, Width> v;
  DETENT_UNROLL
  for (int e = 0; e < Width; ++e) v.v[e] = bfloat_value(bits.v[e]);
  return v;
}

template <int Width>
DETENT_HD void put_values(float* to, const Some<float, Width>& v) {
  *reinterpret_cast<Some<float, Width>*>(to) = v;
}
template <int Width>
DETENT_HD void put_values(uint16_t* to, const Some<float, Width>& v) {
  if constexpr (Width == 1) {
    put_value(to, v.v[0]);
  } else {
    Some<uint32_t, Width / 2> words;
    DETENT_UNROLL
    for (int e = 0; e < Width / 2; ++e) words.v[e] = bf16_pair(v.v[2 * e], v.v[2 * e + 1]);
    *reinterpret_cast<Some<uint32_t, Width / 2>*>(to) = words;
  }
}

/// Whether four neighbours from a multiple of four on may be read or written at once.
template <class T>
bool whole_fours(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0;
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
