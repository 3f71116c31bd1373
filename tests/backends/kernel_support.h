// Helpers of the kernel tests: inputs with the values that break kernels, outputs between guard bands, and runs at one and at two threads.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "detent/core/backend.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"

namespace detent::test {

/// The table under test; each program that links the cases has its own.
const Kernels& kernels();
/// Waits for kernels that were launched in another way than through the table.
void finish_kernels();

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kTails[] = {1, 7, 127, 128, 129, 1000};

/// Uniform values in [lo,hi).
inline std::vector<float> random_values(int64_t n, float lo = -3.0f, float hi = 3.0f, uint64_t seed = 1) {
  std::vector<float> v(static_cast<size_t>(n));
  Rng rng(seed, static_cast<uint64_t>(n));
  for (float& x : v) x = rng.uniform(lo, hi);
  return v;
}

/// Integers within +-8, whose products any precision has exactly.
inline std::vector<float> small_integers(int64_t n, uint64_t seed) {
  std::vector<float> v = random_values(n, -8.0f, 8.0f, seed);
  for (float& x : v) x = std::nearbyint(x);
  return v;
}

/// Random values with NaN, infinities, denormals, huge values and -0 strewn in.
inline std::vector<float> awkward_values(int64_t n, float lo = -3.0f, float hi = 3.0f, uint64_t seed = 1) {
  std::vector<float> v = random_values(n, lo, hi, seed);
  const float odd[] = {kNan, kInf, -kInf, 1e-42f, -1e-42f, -0.0f, 0.0f, 3e38f, -3e38f, 1e-38f};
  for (size_t i = 0; i < v.size(); ++i) {
    if (i % 5 == 3 || v.size() == 1) v[i] = odd[(i / 5 + seed) % std::size(odd)];
  }
  return v;
}

/// A buffer between two bands that nobody may touch.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : n_(static_cast<size_t>(n)), all_((n_ + 2 * kBand) * sizeof(T), 0xA5) {}
  T* data() { return reinterpret_cast<T*>(all_.data()) + kBand; }
  T operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return static_cast<int64_t>(n_); }
  bool intact() const {
    const size_t band = kBand * sizeof(T), end = all_.size();
    for (size_t i = 0; i < band; ++i) {
      if (all_[i] != 0xA5 || all_[end - 1 - i] != 0xA5) return false;
    }
    return true;
  }
  std::vector<T> values() { return std::vector<T>(data(), data() + n_); }

 private:
  static constexpr size_t kBand = 64;
  size_t n_;
  std::vector<unsigned char> all_;
};

/// What fill(buffer) leaves between the bands.
template <class T, class Fn>
std::vector<T> filled(int64_t n, Fn&& fill) {
  Guarded<T> out(n);
  fill(out.data());
  finish_kernels();
  CHECK(out.intact());
  return out.values();
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Runs fill(buffer) on guarded buffers at 1, 2 and 3 threads; checks the bands and that the bits agree; returns the values.
template <class T, class Fn>
std::vector<T> run_guarded(int64_t n, Fn&& fill) {
  const int before = num_threads();
  std::vector<T> first;
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    Guarded<T> out(n);
    fill(out.data());
    CHECK(out.intact());
    if (threads == 1) {
      first = out.values();
    } else {
      CHECK(same_bits(first, out.values()));
    }
  }
  set_num_threads(before);
  return first;
}

/// Relative to max(1, |want|); NaN and infinities must match.
inline bool close(float got, double want, double tolerance = 1e-6) {
  if (std::isnan(want)) return std::isnan(got);
  const float w = static_cast<float>(want);
  if (std::isinf(w) || std::isinf(got)) return got == w;
  return std::abs(static_cast<double>(got) - want) <= tolerance * std::max(1.0, std::abs(want));
}

/// Index of the first element that is not close, or -1.
inline int64_t first_far(const std::vector<float>& got, const std::vector<double>& want, double tolerance = 1e-6) {
  if (got.size() != want.size()) return 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!close(got[i], want[i], tolerance)) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace detent::test
