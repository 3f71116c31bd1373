// Division by a number that a kernel is launched with: a multiplication and a shift.
#pragma once

#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent {

/// n / divisor for 0 <= n < 2^31, 1 <= divisor < 2^31. With 2^p >= divisor * 2^31 and m = ceil(2^p / divisor), n * m / 2^p exceeds n / divisor by less than
/// n / 2^31 / divisor < 1 / divisor: the floor is the same.
struct FastDiv {
  uint32_t divisor = 1, multiplier = 1u << 31, shift = 31;

  constexpr FastDiv() = default;
  constexpr explicit FastDiv(int64_t d) : divisor(static_cast<uint32_t>(d < 1 ? 1 : d)) {
    uint32_t log = 0;
    while ((uint64_t{1} << log) < divisor) ++log;
    shift = 31 + log;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  DETENT_HD int32_t divide(int32_t n) const { return static_cast<int32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * multiplier >> shift); }
};

}  // namespace detent
