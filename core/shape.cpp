#include "detent/core/shape.h"

#include "detent/core/error.h"

namespace detent {

Shape::Shape(std::initializer_list<int64_t> extents) : Shape(std::span<const int64_t>(extents.begin(), extents.size())) {}

Shape::Shape(std::span<const int64_t> extents) {
  DETENT_CHECK(extents.size() <= kMaxRank, "shape: rank ", extents.size(), " is above the limit of ", kMaxRank);
  rank_ = static_cast<int>(extents.size());
  for (int i = 0; i < rank_; ++i) set(i, extents[static_cast<size_t>(i)]);
}

void Shape::set(int i, int64_t extent) {
  DETENT_CHECK(extent >= 0, "shape: extent ", extent, " of dimension ", i, " is negative");
  extents_[i < 0 ? i + rank_ : i] = extent;
}

int64_t Shape::elements() const {
  int64_t n = 1;
  for (int i = 0; i < rank_; ++i) {
    DETENT_CHECK(!__builtin_mul_overflow(n, extents_[i], &n), "shape: the number of elements of ", *this, " does not fit 63 bits");
  }
  return n;
}

}  // namespace detent
