// Tensor: a value handle on a shared buffer, always contiguous; knows nothing of gradients.
// Copying a Tensor shares the buffer. Distinct Tensors may be used from distinct threads; one buffer has one writer at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "detent/core/device.h"
#include "detent/core/dtype.h"
#include "detent/core/error.h"
#include "detent/core/shape.h"

namespace detent {

class Storage;

/// A buffer, and how often it had been given out to be written, at one moment. Equal ones of a tensor: it has the same buffer, and nobody wrote to it in between but
/// through pointers taken before.
struct TensorStamp {
  std::weak_ptr<const Storage> buffer;
  uint64_t writes = 0;
  friend bool operator==(const TensorStamp& a, const TensorStamp& b) {
    return a.writes == b.writes && !a.buffer.owner_before(b.buffer) && !b.buffer.owner_before(a.buffer);
  }
};

class Tensor {
 public:
  /// An undefined tensor: defined() is false.
  Tensor() = default;
  /// Uninitialised. Throws Error when the size overflows or memory runs out.
  explicit Tensor(const Shape& shape, DType dtype = DType::f32, Device device = {});

  static Tensor zeros(const Shape& shape, DType dtype = DType::f32, Device device = {});
  static Tensor full(const Shape& shape, float value, Device device = {});
  /// Copies host values; throws Error when their number is not shape.elements().
  template <class T>
  static Tensor from(const Shape& shape, std::span<const T> values) {
    Tensor t(shape, DTypeOf<T>::value);
    t.assign(values.data(), values.size() * sizeof(T));
    return t;
  }
  static Tensor from(const Shape& shape, std::initializer_list<float> values) {
    return from<float>(shape, std::span<const float>(values.begin(), values.size()));
  }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t elements() const { return shape_.elements(); }
  int64_t bytes() const { return elements() * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const;

  /// The elements; throws Error when T is not the tensor's type or the tensor is undefined.
  template <class T>
  T* data() {
    require(DTypeOf<T>::value);
    return static_cast<T*>(raw());
  }
  template <class T>
  const T* data() const {
    require(DTypeOf<T>::value);
    return static_cast<const T*>(raw());
  }
  void* raw();
  const void* raw() const;

  /// The same elements under another shape; throws Error when the number of elements differs.
  Tensor reshape(const Shape& shape) const;
  /// Rows [begin, end) of the first dimension, sharing the buffer.
  Tensor rows(int64_t begin, int64_t end) const;
  /// A copy with a buffer of its own.
  Tensor clone() const;
  /// A copy on another device (the tensor itself when it is there already).
  Tensor to(Device device) const;
  /// Host copy of the values; throws Error when T is not the tensor's type.
  template <class T>
  std::vector<T> to_vector() const {
    require(DTypeOf<T>::value);
    std::vector<T> v(static_cast<size_t>(elements()));
    read(v.data(), v.size() * sizeof(T));
    return v;
  }
  /// The single element of a f32 tensor.
  float item() const;
  void fill(float value);
  void zero();
  /// Overwrites the elements with those of a tensor of the same shape and type.
  void copy_from(const Tensor& other);
  /// True when no other handle shares the buffer.
  bool unique() const { return storage_.use_count() == 1; }
  bool shares_buffer(const Tensor& other) const { return storage_ && storage_ == other.storage_; }
  /// Tells later whether the values may have changed, without looking at them. A mutable data() or raw() counts as a write.
  TensorStamp stamp() const;

 private:
  void require(DType t) const;
  void assign(const void* src, size_t bytes);
  void read(void* dst, size_t bytes) const;

  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // bytes
  Shape shape_;
  DType dtype_ = DType::f32;
};

}  // namespace detent
