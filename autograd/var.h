// Var: a value on an edge of the computation, with a slot on the active tape when gradients flow to it.
// The value is dense f32, or kept in bf16, or coded (bytes and their grid); an op that cannot use those asks for dense().
// A Var belongs to the thread of its tape.
#pragma once

#include <memory>
#include <vector>

#include "detent/core/math/quant_math.h"
#include "detent/core/tensor.h"

namespace detent {

/// A tensor the optimizer may change: value, gradient of the last backward. Address is identity: leaves do not move while a tape refers to them.
struct Leaf {
  Tensor value;
  Tensor grad;  ///< undefined until a backward reached it
  bool trainable = true;
};

/// Codes of a value and the grid they lie on: value = scale * (q - zero_point).
struct Coded {
  Tensor codes;  // u8
  Grid grid;
  Tensor resident = {};  // the grid in device memory, or undefined (Var::resident_grids)
  DType gradient = DType::f32;  // the type of its gradient: f32 or bf16
};

class Var {
 public:
  Var() = default;
  /// A constant: no gradient flows to it.
  Var(Tensor value) : shape_(value.shape()) { (value.defined() && value.dtype() == DType::bf16 ? bf16_ : value_) = std::move(value); }  // NOLINT: a tensor is a value
  /// A coded constant.
  explicit Var(Coded coded);

  bool defined() const { return value_.defined() || bf16_.defined() || coded_ != nullptr; }
  const Shape& shape() const { return shape_; }
  /// Where the value lives, and its type (f32 for a coded value and one in bf16), without decoding.
  Device device() const { return coded_ ? coded_->codes.device() : bf16_.defined() ? bf16_.device() : value_.device(); }
  DType dtype() const { return coded_ || bf16_.defined() ? DType::f32 : value_.dtype(); }
  /// The dense f32 value; made on first use when the Var holds codes or bf16.
  const Tensor& dense() const;
  const Tensor& value() const { return dense(); }
  /// f32, or bf16 for a value that is kept so, and for codes whose op said so.
  DType gradient_type() const { return coded_ ? coded_->gradient : bf16_.defined() ? DType::bf16 : DType::f32; }
  /// The value as it is kept in bf16, or null.
  const Tensor* bf16() const { return bf16_.defined() ? &bf16_ : nullptr; }
  /// The codes, or null for a dense value.
  const Coded* coded() const { return coded_.get(); }
  /// The grids that the value lies on (one, or one per channel), or null: set by fake-quant ops, kept by ops that only move elements.
  const std::vector<Grid>* grids() const { return grids_.get(); }
  /// The same grids as bytes in the device's memory, when kernels are to read them there: in work that is recorded and replayed with other grids. Else undefined.
  const Tensor& resident_grids() const { return resident_; }
  void set_grids(std::vector<Grid> grids, Tensor resident = {}) {
    grids_ = std::make_shared<const std::vector<Grid>>(std::move(grids));
    resident_ = std::move(resident);
  }
  void inherit_grids(const Var& other) {
    grids_ = other.grids_;
    resident_ = other.resident_;
  }
  /// True when a gradient is wanted: the Var has a slot on the active tape.
  bool tracked() const;

 private:
  friend class Tape;
  mutable Tensor value_;
  Tensor bf16_;
  std::shared_ptr<const Coded> coded_;
  std::shared_ptr<const std::vector<Grid>> grids_;
  Tensor resident_;
  Shape shape_;
  int32_t slot_ = -1;
  uint64_t tape_ = 0;
};

/// x as f32 or as bf16 (rounded); x itself when it is of that type.
Tensor as_type(const Tensor& x, DType type);

/// Grids in memory of bytes; null when it is undefined.
inline const Grid* grids_in(const Tensor& t) { return t.defined() ? static_cast<const Grid*>(t.raw()) : nullptr; }

}  // namespace detent
