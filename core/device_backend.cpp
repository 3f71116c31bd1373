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

void* DeviceBackend::allocate_pinned(size_t bytes) {
  void* p = module_.acquire_pinned(bytes);
  DETENT_CHECK(p, "out of memory: ", bytes, " bytes of page-locked memory asked");
  return p;
}

void DeviceBackend::release_pinned(void* p, size_t) noexcept { module_.release_pinned(p); }

void DeviceBackend::start_upload(void* dst, const void* pinned, size_t bytes) { check(module_.start_upload(device_.index, dst, pinned, bytes)); }

void DeviceBackend::finish_upload() { check(module_.finish_upload(device_.index)); }

void DeviceBackend::wait_for_upload() noexcept { module_.wait_for_upload(device_.index); }

namespace {

struct Recording {
  void* graph;
  int64_t pool;
};

}  // namespace

void DeviceBackend::begin_recording() {
  open_pool_ = allocator_.begin_pool();
  if (const char* message = module_.begin_capture(device_.index)) {
    allocator_.drop_pool(open_pool_);
    check(message);
  }
  recording_ = true;
}

void* DeviceBackend::end_recording(bool keep) {
  void* graph = nullptr;
  recording_ = false;
  const char* message = module_.end_capture(device_.index, &graph);
  allocator_.end_pool();
  if (keep && graph) return new Recording{graph, open_pool_};
  if (graph) module_.destroy_graph(graph);
  allocator_.drop_pool(open_pool_);
  if (keep) check(message ? message : "nothing was recorded");
  return nullptr;
}

void DeviceBackend::replay(void* recording) { check(module_.launch_graph(device_.index, static_cast<Recording*>(recording)->graph)); }

void DeviceBackend::drop_recording(void* recording) noexcept {
  const std::unique_ptr<Recording> r(static_cast<Recording*>(recording));
  if (!r) return;
  module_.synchronize(device_.index);  // it may still run
  module_.destroy_graph(r->graph);
  allocator_.drop_pool(r->pool);
}

void DeviceBackend::synchronize() { check(module_.synchronize(device_.index)); }

}  // namespace detent
