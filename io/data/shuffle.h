// A permutation of [0, n) that is a function of a seed and a stream, evaluated one element at a time: no memory however long, any position at once.
// A Feistel network over the next power of four, walked until the value is inside [0, n) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
#pragma once

#include <bit>
#include <cstdint>

#include "detent/core/rng.h"

namespace detent::io {

class Permutation {
 public:
  Permutation(int64_t n, uint64_t seed, uint64_t stream) : n_(static_cast<uint64_t>(n)) {
    half_bits_ = n > 1 ? static_cast<int>(std::bit_width(n_ - 1) + 1) / 2 : 0;
    mask_ = (uint64_t{1} << half_bits_) - 1;
    Rng rng(seed, stream);
    for (uint64_t& key : keys_) key = rng.next();
  }

  int64_t operator()(int64_t i) const {
    auto v = static_cast<uint64_t>(i);
    do {
      uint64_t left = v >> half_bits_, right = v & mask_;
      for (const uint64_t key : keys_) {
        const uint64_t next = left ^ (Rng::mix(key + right) & mask_);
        left = right;
        right = next;
      }
      v = left << half_bits_ | right;
    } while (v >= n_);
    return static_cast<int64_t>(v);
  }

 private:
  static constexpr int kRounds = 8;
  uint64_t n_, mask_;
  int half_bits_;
  uint64_t keys_[kRounds];
};

}  // namespace detent::io
