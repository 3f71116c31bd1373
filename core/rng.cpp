#include "detent/core/rng.h"

#include <cmath>

namespace detent {

float Rng::normal() {
  const double u = (static_cast<double>(next() >> 11) + 0.5) * 0x1p-53;
  const double v = static_cast<double>(next() >> 11) * 0x1p-53;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586476925 * v));
}

void Rng::normals(float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += 2) {
    const uint64_t bits = next();
    const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float angle = 6.2831853f * (static_cast<float>(static_cast<uint32_t>(bits) >> 8) * 0x1p-24f);
    const float radius = std::sqrt(-2.0f * std::log(u));
    out[i] = radius * std::cos(angle);
    if (i + 1 < n) out[i + 1] = radius * std::sin(angle);
  }
}

}  // namespace detent
