// IEEE half precision and bfloat16 as a float: what a value becomes when it is kept in 16 bits. Host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "detent/core/math/hd.h"

namespace detent {

/// x rounded to the nearest half (ties to even), with its subnormals; beyond 65520 infinity; NaN stays NaN.
DETENT_HD float round_to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits & 0x80000000u, magnitude = bits & 0x7fffffffu;
  uint32_t rounded;
  if (magnitude > 0x7f800000u) return x;
  if (magnitude >= 0x477ff000u) {  // 65520
    rounded = 0x7f800000u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, which adding and taking away 2^-1 rounds to
    float m;
    memcpy(&m, &magnitude, 4);
    m = (m + 0.5f) - 0.5f;
    memcpy(&rounded, &m, 4);
  } else {
    rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & 0xffffe000u;
  }
  rounded |= sign;
  memcpy(&x, &rounded, 4);
  return x;
}

/// x rounded to the nearest bfloat16 (ties to even); NaN stays NaN.
DETENT_HD float round_to_bfloat(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return x;
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  memcpy(&x, &bits, 4);
  return x;
}

/// The upper half of a float: x as a bfloat16 (ties to even), and its value. A NaN stays one.
DETENT_HD uint16_t bfloat_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded >> 16);
}
DETENT_HD float bfloat_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

}  // namespace detent
