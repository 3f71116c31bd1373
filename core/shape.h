// Shape of a tensor: up to 6 extents, inline, trivially copyable. Feature maps are [n,h,w,c], conv weights [k,r,s,c] (OHWI), dense weights [out,in]. Const use is thread-safe.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

namespace detent {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  /// Throws Error when an extent is negative or the rank is above kMaxRank.
  Shape(std::initializer_list<int64_t> extents);
  explicit Shape(std::span<const int64_t> extents);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return extents_[i < 0 ? i + rank_ : i]; }
  /// Throws Error when the extent is negative.
  void set(int i, int64_t extent);
  std::span<const int64_t> extents() const { return {extents_, static_cast<size_t>(rank_)}; }

  /// Product of the extents (1 for rank 0). Throws Error when it does not fit 63 bits.
  int64_t elements() const;

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i) {
      if (a.extents_[i] != b.extents_[i]) return false;
    }
    return true;
  }

 private:
  int64_t extents_[kMaxRank] = {};
  int rank_ = 0;
};

}  // namespace detent
