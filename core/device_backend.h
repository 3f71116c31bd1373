// The Backend over a DeviceModule: caching allocator, copies, errors as exceptions. Internal to core/; tests give it a module of their own. Thread-safe as Backend.
#pragma once

#include <atomic>
#include <string>

#include "detent/core/backend.h"
#include "detent/core/device_module.h"

namespace detent {

class DeviceBackend final : public Backend {
 public:
  /// Throws Error when the device does not open.
  DeviceBackend(const DeviceModule& module, Device device);

  void set_precision(Precision p) override {
    if (module_.set_precision) module_.set_precision(p);
  }
  Precision precision() const override { return module_.precision ? module_.precision() : Precision::f32; }
  CachingAllocator& allocator() override { return allocator_; }
  const Kernels& kernels() const override;
  void copy(void* dst, Device dst_device, const void* src, Device src_device, size_t bytes) override;
  void zero(void* dst, size_t bytes) override;
  void synchronize() override;
  void* allocate_pinned(size_t bytes) override;
  void release_pinned(void* p, size_t bytes) noexcept override;
  void start_upload(void* dst, const void* pinned, size_t bytes) override;
  void finish_upload() override;
  void wait_for_upload() noexcept override;
  bool records() const override { return true; }
  bool recording() const override { return recording_; }
  void begin_recording() override;
  void* end_recording(bool keep) override;
  void replay(void* recording) override;
  void drop_recording(void* recording) noexcept override;
  const char* description() const override { return description_.c_str(); }

 private:
  void check(const char* message) const;

  const DeviceModule& module_;
  Device device_;
  std::string description_;
  CachingAllocator allocator_;
  int64_t open_pool_ = 0;
  std::atomic<bool> recording_ = false;
};

}  // namespace detent
