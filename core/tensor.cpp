#include "detent/core/tensor.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "detent/core/backend.h"

namespace detent {

// Owner of one buffer; returns it to the allocator of its device.
class Storage {
 public:
  Storage(size_t bytes, Device device) : bytes_(bytes), device_(device), backend_(backend(device)), data_(backend_.allocate(bytes)) {}
  ~Storage() { backend_.release(data_, bytes_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  void* data() const { return data_; }
  Device device() const { return device_; }
  uint64_t writes() const { return writes_.load(std::memory_order_relaxed); }
  // No read-modify-write, which would cost: threads that only read may come here at once, and one that writes is alone.
  void count_write() { writes_.store(writes() + 1, std::memory_order_relaxed); }

 private:
  size_t bytes_;
  Device device_;
  Backend& backend_;
  void* data_;
  std::atomic<uint64_t> writes_{0};
};

Tensor::Tensor(const Shape& shape, DType dtype, Device device) : shape_(shape), dtype_(dtype) {
  int64_t bytes = 0;
  DETENT_CHECK(!__builtin_mul_overflow(shape.elements(), size_of(dtype), &bytes), "tensor: the size of ", shape, " in bytes overflows");
  storage_ = std::make_shared<Storage>(static_cast<size_t>(bytes), device);
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t(shape, dtype, device);
  t.zero();
  return t;
}

Tensor Tensor::full(const Shape& shape, float value, Device device) {
  Tensor t(shape, DType::f32, device);
  t.fill(value);
  return t;
}

Device Tensor::device() const { return storage_ ? storage_->device() : Device{}; }

void* Tensor::raw() {
  void* const p = const_cast<void*>(std::as_const(*this).raw());
  storage_->count_write();
  return p;
}

TensorStamp Tensor::stamp() const { return {storage_, storage_ ? storage_->writes() : 0}; }

const void* Tensor::raw() const {
  DETENT_CHECK(storage_, "tensor: an undefined tensor was used");
  return static_cast<const char*>(storage_->data()) + offset_;
}

Tensor Tensor::reshape(const Shape& shape) const {
  DETENT_CHECK(shape.elements() == elements(), "reshape: ", shape_, " has ", elements(), " elements, ", shape, " has ", shape.elements());
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  DETENT_CHECK(rank() >= 1 && 0 <= begin && begin <= end && end <= dim(0), "rows: [", begin, ",", end, ") is not inside ", shape_);
  Tensor t = *this;
  const int64_t row = dim(0) ? bytes() / dim(0) : 0;
  t.offset_ += begin * row;
  t.shape_.set(0, end - begin);
  return t;
}

Tensor Tensor::clone() const {
  Tensor t(shape_, dtype_, device());
  t.copy_from(*this);
  return t;
}

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  Tensor t(shape_, dtype_, device);
  // One side is always the host: the other side's backend knows how to reach it.
  Backend& b = backend(device.type == DeviceType::cpu ? this->device() : device);
  b.copy(t.raw(), device, raw(), this->device(), static_cast<size_t>(bytes()));
  return t;
}

float Tensor::item() const {
  DETENT_CHECK(elements() == 1, "item: a tensor of shape ", shape_, " has not one element");
  return to_vector<float>()[0];
}

void Tensor::fill(float value) {
  require(DType::f32);
  backend(device()).kernels().fill(static_cast<float*>(raw()), value, elements());
}

void Tensor::zero() { backend(device()).zero(raw(), static_cast<size_t>(bytes())); }

void Tensor::copy_from(const Tensor& other) {
  DETENT_CHECK(other.shape() == shape_ && other.dtype() == dtype_, "copy: ", to_string(other.dtype()), other.shape(), " into ", to_string(dtype_), shape_);
  Backend& b = backend(device().type == DeviceType::cpu ? other.device() : device());
  b.copy(raw(), device(), other.raw(), other.device(), static_cast<size_t>(bytes()));
}

void Tensor::require(DType t) const {
  DETENT_CHECK(defined(), "tensor: an undefined tensor was used");
  DETENT_CHECK(dtype_ == t, "tensor: ", to_string(t), " asked of a ", to_string(dtype_), " tensor of shape ", shape_);
}

void Tensor::assign(const void* src, size_t bytes) {
  DETENT_CHECK(static_cast<int64_t>(bytes) == this->bytes(), "tensor: ", bytes, " bytes given for ", to_string(dtype_), shape_);
  backend(device()).copy(raw(), device(), src, Device{}, bytes);
}

void Tensor::read(void* dst, size_t bytes) const { backend(device()).copy(dst, Device{}, raw(), device(), bytes); }

}  // namespace detent
