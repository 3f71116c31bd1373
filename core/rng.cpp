#include "detent/core/rng.h"

#include <cmath>

namespace detent {

float Rng::normal() {
  const double u = (static_cast<double>(next() >> 11) + 0.5) * 0x1p-53;
  const double v = static_cast<double>(next() >> 11) * 0x1p-53;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586476925 * v));
}

}  // namespace detent
