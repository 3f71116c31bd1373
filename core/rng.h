// Counter-based random numbers: the value is a function of (seed, stream, position) only, so any thread or device draws the same bits.
// SplitMix64 finaliser over a mixed counter (Steele et al. 2014). Copies are independent; not shared between threads.
#pragma once

#include <cstdint>

namespace detent {

class Rng {
 public:
  explicit Rng(uint64_t seed = 0, uint64_t stream = 0) : key_(mix(seed + 0x9e3779b97f4a7c15ull) ^ mix(mix(stream) + 0xd1b54a32d192ed03ull)) {}

  static constexpr uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }

  /// The n-th 64 random bits of this stream, without changing the position.
  uint64_t at(uint64_t n) const { return mix(key_ + (n + 1) * 0x9e3779b97f4a7c15ull); }
  uint64_t next() { return at(position_++); }
  /// Uniform in [0, 1), 24 bits.
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f; }
  float uniform(float lo, float hi) { return lo + (hi - lo) * uniform(); }
  /// Uniform integer in [0, n), n >= 1.
  int64_t below(int64_t n) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<int64_t>((static_cast<Wide>(next()) * static_cast<uint64_t>(n)) >> 64);
  }
  /// Standard normal (Box-Muller, computed in double).
  float normal();
  /// n of them, two for each pair of draws: faster for whole tensors, other values than normal() gives.
  void normals(float* out, int64_t n);

  uint64_t position() const { return position_; }
  void seek(uint64_t position) { position_ = position; }

 private:
  uint64_t key_;
  uint64_t position_ = 0;
};

}  // namespace detent
