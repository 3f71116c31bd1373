#include "detent/core/backend.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "detent/core/device_backend.h"
#include "detent/core/error.h"

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace detent {

// One function per backend; the only place that knows which exist.
Backend& cpu_backend();

namespace {

// The CUDA module and the devices opened so far. Never closed: tensors of static lifetime may outlive any order of destruction.
struct CudaModule {
  std::mutex mutex;
  const DeviceModule* module = nullptr;
  std::vector<std::unique_ptr<DeviceBackend>> devices;
};

CudaModule& cuda() {
  static CudaModule& m = *new CudaModule;
  return m;
}

#ifdef __linux__
const DeviceModule* entry_of(void* handle) {
  void* symbol = dlsym(handle, kCudaModuleEntry);
  return symbol ? reinterpret_cast<DeviceModuleEntry>(symbol)() : nullptr;
}

std::string folder_of_library() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&cpu_backend), &info) || !info.dli_fname) return ".";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// Linked in, named by DETENT_CUDA_MODULE, beside the library (or the program that contains it), or where it was installed.
const DeviceModule* find_module(std::string* why) {
  if (const DeviceModule* linked = entry_of(RTLD_DEFAULT)) return linked;
  constexpr const char* kFile = "/libdetent_cuda.so";
  std::vector<std::string> paths;
  if (const char* named = std::getenv("DETENT_CUDA_MODULE")) {
    paths = {named};
  } else {
    const std::string folder = folder_of_library();
    paths = {folder + kFile, folder + "/.." + kFile, DETENT_MODULE_DIR + std::string(kFile)};
  }
  std::string tried;
  for (const std::string& path : paths) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      const char* reason = dlerror();
      tried += text(tried.empty() ? "" : "; ", reason ? reason : path);
      continue;
    }
    if (const DeviceModule* found = entry_of(handle)) return found;
    tried += text(tried.empty() ? "" : "; ", path, " has no ", kCudaModuleEntry);
  }
  *why = text("the CUDA module was not found (", tried, "); build with -Dcuda=enabled, set DETENT_CUDA_MODULE, or use the cpu");
  return nullptr;
}
#else
const DeviceModule* find_module(std::string* why) {
  *why = "the CUDA module is looked for on Linux only; use the cpu";
  return nullptr;
}
#endif

// The backend of a GPU, or null and the reason, which names the device.
Backend* cuda_backend(int index, std::string* why) {
  const Device device{DeviceType::cuda, index};
  const auto refuse = [&](const auto&... reason) {
    *why = text("device ", to_string(device), ": ", reason...);
    return nullptr;
  };
  CudaModule& m = cuda();
  const std::lock_guard lock(m.mutex);
  if (index >= 0 && index < std::ssize(m.devices) && m.devices[static_cast<size_t>(index)]) return m.devices[static_cast<size_t>(index)].get();
  if (!m.module) {
    std::string reason;
    const DeviceModule* found = find_module(&reason);
    if (!found) return refuse(reason);
    if (found->version != kDeviceModuleVersion || found->kernels_bytes != sizeof(Kernels)) {
      return refuse("the CUDA module has interface ", found->version, "/", found->kernels_bytes, ", the library ", kDeviceModuleVersion, "/", sizeof(Kernels),
                    "; install both from one build");
    }
    m.module = found;
  }
  int devices = 0;
  if (const char* message = m.module->count(&devices)) return refuse(message);
  if (devices == 0) return refuse("no CUDA device was found; use the cpu");
  if (index < 0 || index >= devices) return refuse("device index ", index, " is out of range: there ", devices == 1 ? "is 1 device" : text("are ", devices, " devices"));
  if (m.devices.size() < static_cast<size_t>(devices)) m.devices.resize(static_cast<size_t>(devices));
  std::unique_ptr<DeviceBackend>& slot = m.devices[static_cast<size_t>(index)];
  if (!slot) {
    try {
      slot = std::make_unique<DeviceBackend>(*m.module, device);
    } catch (const Error& e) {
      *why = e.what();
      return nullptr;
    }
  }
  return slot.get();
}

}  // namespace

void* Backend::allocate_pinned(size_t bytes) { return host_allocator().allocate(bytes); }
void Backend::release_pinned(void* p, size_t bytes) noexcept { host_allocator().release(p, bytes); }
void Backend::start_upload(void* dst, const void* pinned, size_t bytes) { std::memcpy(dst, pinned, bytes); }
void Backend::begin_recording() { fail(description(), " cannot record work; run it step by step"); }
void* Backend::end_recording(bool) { fail(description(), " cannot record work"); }
void Backend::replay(void*) { fail(description(), " cannot record work"); }
void Backend::drop_recording(void*) noexcept {}

std::string to_string(Device device) { return device.type == DeviceType::cpu ? "cpu" : text("cuda:", device.index); }

Precision precision_named(std::string_view name) {
  if (name == "f32") return Precision::f32;
  if (name == "tf32") return Precision::tf32;
  DETENT_CHECK(name == "bf16", "precision \"", name, "\" is unknown; give f32, tf32 or bf16");
  return Precision::bf16;
}

Device device_named(std::string_view name) {
  if (name == "cpu") return {};
  if (name == "auto") return device_available({DeviceType::cuda, 0}) ? Device{DeviceType::cuda, 0} : Device{};
  Device d{DeviceType::cuda, 0};
  if (name != "cuda") {
    const std::string_view digits = name.starts_with("cuda:") ? name.substr(5) : std::string_view();
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), d.index);
    DETENT_CHECK(!digits.empty() && error == std::errc() && end == digits.data() + digits.size() && d.index >= 0, "device \"", name,
                 "\" is unknown; give auto, cpu, cuda or cuda:N");
  }
  backend(d);
  return d;
}

Backend& backend(Device device) {
  if (device.type == DeviceType::cpu) return cpu_backend();
  std::string why;
  Backend* b = cuda_backend(device.index, &why);
  DETENT_CHECK(b, why);
  return *b;
}

bool device_available(Device device, std::string* why) {
  if (device.type == DeviceType::cpu) return true;
  std::string reason;
  return cuda_backend(device.index, why ? why : &reason) != nullptr;
}

}  // namespace detent
