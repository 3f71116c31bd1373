#include "detent/core/device_backend.h"

#include "detent/core/error.h"

namespace detent {
namespace {

class ModuleMemory final : public RawMemory {
 public:
  ModuleMemory(const DeviceModule& module, Device device) : module_(module), device_(device) {}
  void* acquire(size_t bytes) override { return module_.acquire(device_.index, bytes); }
  void release(void* p, size_t) override { module_.release(device_.index, p); }
  std::string state() override {
    size_t free = 0, total = 0;
    module_.memory(device_.index, &free, &total);
    return text(" on ", to_string(device_), ", where ", free, " of ", total, " bytes are free");
  }

 private:
  const DeviceModule& module_;
  Device device_;
};

constexpr size_t kGranularity = 512;

}  // namespace

DeviceBackend::DeviceBackend(const DeviceModule& module, Device device)
    : module_(module), device_(device), allocator_(std::make_unique<ModuleMemory>(module, device), kGranularity) {
  const ModuleHost host = {
      .context = &allocator_,
      .allocate = [](void* a, size_t bytes) { return static_cast<CachingAllocator*>(a)->allocate(bytes); },
      .release = [](void* a, void* p, size_t bytes) { static_cast<CachingAllocator*>(a)->release(p, bytes); },
  };
  check(module_.open(device.index, host));
  description_ = module_.describe(device.index);
}

void DeviceBackend::check(const char* message) const { DETENT_CHECK(!message, "device ", to_string(device_), ": ", message); }

const Kernels& DeviceBackend::kernels() const {
  module_.make_current(device_.index);
  return *module_.kernels;
}

void DeviceBackend::copy(void* dst, Device dst_device, const void* src, Device src_device, size_t bytes) {
  if (bytes == 0) return;
  const bool to_host = dst_device.type == DeviceType::cpu, from_host = src_device.type == DeviceType::cpu;
  DETENT_CHECK(to_host ? src_device == device_ : dst_device == device_, "copy: from ", to_string(src_device), " to ", to_string(dst_device), " asked of ", to_string(device_));
  if (to_host) return check(module_.to_host(device_.index, dst, src, bytes));
  if (from_host) return check(module_.to_device(device_.index, dst, src, bytes));
  if (src_device != device_) backend(src_device).synchronize();  // its stream may still write the source
  check(module_.within(device_.index, dst, src, bytes));
  if (src_device != device_) synchronize();  // its owner may change the source now
}

void DeviceBackend::zero(void* dst, size_t bytes) {
  if (bytes) check(module_.zero(device_.index, dst, bytes));
}

void DeviceBackend::synchronize() { check(module_.synchronize(device_.index)); }

}  // namespace detent
