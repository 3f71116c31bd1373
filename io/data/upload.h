// Copies of host tensors to a device beside its work, by way of page-locked memory. One thread uses an Uploader; one copy is on its way at a time.
#pragma once

#include <cstddef>

#include "detent/core/backend.h"
#include "detent/core/tensor.h"

namespace detent::io {

class Uploader {
 public:
  explicit Uploader(Device device);
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  /// The tensor on the device, being filled; work that reads it comes after finish(). The host tensor may change when this returns.
  Tensor start(const Tensor& host);
  void finish();

 private:
  Device device_;
  Backend& backend_;
  void* staging_ = nullptr;
  size_t staging_bytes_ = 0;
};

}  // namespace detent::io
