// The module's side of core/device_module.h: driver checks, streams, memory, copies, graphs. The only file that calls the CUDA runtime for these; in the host build it
// is tested on tests/device/fake_cuda.
#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "detent/backends/cuda/kernels.h"
#include "detent/core/device_module.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

constexpr int kMaxDevices = 64;

struct DeviceState {
  cudaStream_t stream = nullptr, upload_stream = nullptr;
  cudaEvent_t before_upload = nullptr, after_upload = nullptr;
  ModuleHost host = {};
  char name[400] = {};
};

DeviceState g_devices[kMaxDevices];
thread_local int t_device = 0;
thread_local char t_text[512];

// The first launch that failed, until somebody is told.
std::mutex g_launch_mutex;
std::atomic<bool> g_launch_failed{false};
char g_launch_text[256];

const char* text_of(const char* what, cudaError_t e) {
  cudaGetLastError();  // told here; the next launch must not be blamed for it
  std::snprintf(t_text, sizeof t_text, "%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
  return t_text;
}

const char* checked(const char* what, cudaError_t e) {
  if (e != cudaSuccess) cudaGetLastError();
  if (g_launch_failed.load(std::memory_order_relaxed)) {
    const std::lock_guard lock(g_launch_mutex);
    g_launch_failed = false;
    std::memcpy(t_text, g_launch_text, sizeof g_launch_text);
    return t_text;
  }
  return e == cudaSuccess ? nullptr : text_of(what, e);
}

const char* version_text(int v, char* buffer, size_t n) {
  std::snprintf(buffer, n, "%d.%d", v / 1000, v % 1000 / 10);
  return buffer;
}

const char* count(int* devices) {
  *devices = 0;
  int driver = 0, runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  char have[32], want[32];
  version_text(runtime, want, sizeof want);
  if (driver == 0) {
    std::snprintf(t_text, sizeof t_text, "no NVIDIA driver is loaded; install one for CUDA %s or newer, or use the cpu", want);
    return t_text;
  }
  const cudaError_t e = cudaGetDeviceCount(devices);
  if (e == cudaErrorInsufficientDriver) {
    std::snprintf(t_text, sizeof t_text, "the NVIDIA driver supports CUDA %s, but this build needs %s; update the driver, build with an older toolkit, or use the cpu",
                  version_text(driver, have, sizeof have), want);
    return t_text;
  }
  if (e == cudaErrorNoDevice) {
    *devices = 0;
    return nullptr;
  }
  return e == cudaSuccess ? nullptr : text_of("looking for devices", e);
}

struct Nothing {
  DETENT_HD void operator()(int64_t) const {}
};

const char* open(int device, const ModuleHost& host) {
  if (device < 0 || device >= kMaxDevices) return "the device index is out of range";
  DeviceState& d = g_devices[device];
  d.host = host;
  if (d.stream) return nullptr;
  cudaDeviceProp p;
  cudaError_t e = cudaSetDevice(device);
  if (e == cudaSuccess) e = cudaGetDeviceProperties(&p, device);
  if (e != cudaSuccess) return text_of("opening the device", e);
  t_device = device;
  cudaFuncAttributes attributes;
  e = cudaFuncGetAttributes(&attributes, element_kernel<Nothing>);
  if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction || e == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    std::snprintf(t_text, sizeof t_text, "%s has compute capability %d.%d, for which this build has no code (%s); configure with -Ddevice_architectures", p.name, p.major, p.minor,
                  cudaGetErrorName(e));
    return t_text;
  }
  if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d.upload_stream, cudaStreamNonBlocking);
  if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d.before_upload, cudaEventDisableTiming);
  if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d.after_upload, cudaEventDisableTiming | cudaEventBlockingSync);
  cudaStream_t stream = nullptr;
  if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (e != cudaSuccess) return text_of("opening the device", e);
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  char have[32], want[32];
  std::snprintf(d.name, sizeof d.name, "%s, sm_%d%d, %zu MiB, CUDA %s, driver for %s", p.name, p.major, p.minor, static_cast<size_t>(p.totalGlobalMem >> 20),
                version_text(runtime, want, sizeof want), version_text(driver, have, sizeof have));
  d.stream = stream;
  return nullptr;
}

const char* describe(int device) { return g_devices[device].name; }

void make_current(int device) {
  // The runtime keeps its own device per thread; other code of the program may have moved it.
  t_device = device;
  cudaSetDevice(device);
}

void* acquire(int device, size_t bytes) {
  make_current(device);
  void* p = nullptr;
  if (cudaMalloc(&p, bytes) == cudaSuccess) return p;
  cudaGetLastError();  // no memory is not an error that sticks
  return nullptr;
}

void release(int device, void* p) {
  make_current(device);
  cudaFree(p);  // waits for the device: work that still uses the block ends first
}

void memory(int device, size_t* free, size_t* total) {
  make_current(device);
  if (cudaMemGetInfo(free, total) != cudaSuccess) *free = *total = 0;
}

void* acquire_pinned(size_t bytes) {
  void* p = nullptr;
  if (cudaHostAlloc(&p, bytes, cudaHostAllocPortable) == cudaSuccess) return p;
  cudaGetLastError();
  return nullptr;
}

void release_pinned(void* p) { cudaFreeHost(p); }

// Up to here (4096 channels' grids) some launches cost less than waiting for all that the stream has before the copy.
constexpr size_t kMostInArguments = size_t{64} << 10;

const char* to_device(int device, void* dst, const void* src, size_t bytes) {
  make_current(device);
  if (bytes <= kMostInArguments && reinterpret_cast<uintptr_t>(dst) % 4 == 0) {  // rides in kernels' arguments: nothing waits, and a graph keeps it
    upload_bytes(dst, src, bytes);
    return checked("copy to the device", cudaSuccess);
  }
  cudaError_t e = cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, g_devices[device].stream);
  if (e == cudaSuccess) e = cudaStreamSynchronize(g_devices[device].stream);  // page-locked sources are read later than the call returns
  return checked("copy to the device", e);
}

const char* to_host(int device, void* dst, const void* src, size_t bytes) {
  make_current(device);
  cudaError_t e = cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, g_devices[device].stream);
  if (e == cudaSuccess) e = cudaStreamSynchronize(g_devices[device].stream);
  return checked("copy to the host", e);
}

const char* within(int device, void* dst, const void* src, size_t bytes) {
  make_current(device);
  return checked("copy", cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, g_devices[device].stream));
}

const char* zero(int device, void* dst, size_t bytes) {
  make_current(device);
  return checked("zero", cudaMemsetAsync(dst, 0, bytes, g_devices[device].stream));
}

const char* synchronize(int device) {
  make_current(device);
  return checked("synchronize", cudaStreamSynchronize(g_devices[device].stream));
}

const char* start_upload(int device, void* dst, const void* pinned, size_t bytes) {
  make_current(device);
  const DeviceState& d = g_devices[device];
  cudaError_t e = cudaEventRecord(d.before_upload, d.stream);
  if (e == cudaSuccess) e = cudaStreamWaitEvent(d.upload_stream, d.before_upload, 0);
  if (e == cudaSuccess) e = cudaMemcpyAsync(dst, pinned, bytes, cudaMemcpyHostToDevice, d.upload_stream);
  if (e == cudaSuccess) e = cudaEventRecord(d.after_upload, d.upload_stream);
  return checked("upload", e);
}

const char* finish_upload(int device) {
  make_current(device);
  return checked("upload", cudaStreamWaitEvent(g_devices[device].stream, g_devices[device].after_upload, 0));
}

// Waits, and does not ask: cudaEventQuery's "not ready" would stay behind as the thread's last error and be taken for a launch that failed.
void wait_for_upload(int device) {
  make_current(device);
  cudaEventSynchronize(g_devices[device].after_upload);
}

const char* begin_capture(int device) {
  make_current(device);
  return checked("begin of a graph", cudaStreamBeginCapture(g_devices[device].stream, cudaStreamCaptureModeRelaxed));
}

const char* end_capture(int device, void** graph) {
  make_current(device);
  *graph = nullptr;
  cudaGraph_t recorded = nullptr;
  cudaError_t e = cudaStreamEndCapture(g_devices[device].stream, &recorded);
  if (e != cudaSuccess) return checked("end of a graph", e);
  cudaGraphExec_t ready = nullptr;
  e = cudaGraphInstantiate(&ready, recorded, 0);
  cudaGraphDestroy(recorded);
  const char* message = checked("making a graph", e);  // or a launch that failed while it was recorded: the graph lacks that kernel
  if (!message) *graph = ready;
  else if (ready) cudaGraphExecDestroy(ready);
  return message;
}

const char* launch_graph(int device, void* graph) {
  make_current(device);
  return checked("graph", cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), g_devices[device].stream));
}

void destroy_graph(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

// Host values that ride in a launch's arguments: no staging memory, nothing to wait for, and a captured graph keeps them.
struct Packet {
  static constexpr int64_t kWords = 960;
  uint32_t* dst;
  uint32_t words[kWords];
  DETENT_HD void operator()(int64_t i) const { dst[i] = words[i]; }
};

struct TailBytes {
  unsigned char* dst;
  unsigned char bytes[4];
  DETENT_HD void operator()(int64_t i) const { dst[i] = bytes[i]; }
};

}  // namespace

void* current_stream() { return g_devices[t_device].stream; }

void check_launch(const char* name) noexcept {
  const cudaError_t e = cudaGetLastError();
  if (e == cudaSuccess) return;
  const std::lock_guard lock(g_launch_mutex);
  if (g_launch_failed) return;
  std::snprintf(g_launch_text, sizeof g_launch_text, "kernel %s: %s (%s)", name, cudaGetErrorString(e), cudaGetErrorName(e));
  g_launch_failed = true;
}

void* allocate_scratch(size_t bytes) {
  const ModuleHost& host = g_devices[t_device].host;
  return host.allocate(host.context, bytes);
}

void release_scratch(void* p, size_t bytes) noexcept {
  const ModuleHost& host = g_devices[t_device].host;
  host.release(host.context, p, bytes);
}

void upload_bytes(void* device, const void* host, size_t bytes) {
  auto* dst = static_cast<unsigned char*>(device);
  const auto* src = static_cast<const unsigned char*>(host);
  for (; bytes >= 4;) {
    Packet p;
    const size_t words = bytes / 4 < Packet::kWords ? bytes / 4 : Packet::kWords;
    p.dst = reinterpret_cast<uint32_t*>(dst);
    std::memcpy(p.words, src, words * 4);
    elements("upload", static_cast<int64_t>(words), p);
    dst += words * 4;
    src += words * 4;
    bytes -= words * 4;
  }
  TailBytes tail{dst, {}};
  std::memcpy(tail.bytes, src, bytes);
  elements("upload", static_cast<int64_t>(bytes), tail);
}

void download_bytes(void* host, const void* device, size_t bytes) {
  // An error is kept for the backend's next call, as that of a kernel.
  if (cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, g_devices[t_device].stream) != cudaSuccess || cudaStreamSynchronize(g_devices[t_device].stream) != cudaSuccess) {
    std::memset(host, 0, bytes);
    check_launch("download");
  }
}

}  // namespace detent::DETENT_CUDA_NAMESPACE

#if !defined(DETENT_MODULE_ENTRY)  // tests put their own before it
#define DETENT_MODULE_ENTRY detent_cuda_module
#endif

extern "C" __attribute__((visibility("default"))) const detent::DeviceModule* DETENT_MODULE_ENTRY() {
  namespace c = detent::DETENT_CUDA_NAMESPACE;
  static const detent::DeviceModule module = {
      .version = detent::kDeviceModuleVersion,
      .kernels_bytes = sizeof(detent::Kernels),
      .count = c::count,
      .open = c::open,
      .describe = c::describe,
      .make_current = c::make_current,
      .acquire = c::acquire,
      .release = c::release,
      .memory = c::memory,
      .acquire_pinned = c::acquire_pinned,
      .release_pinned = c::release_pinned,
      .to_device = c::to_device,
      .to_host = c::to_host,
      .within = c::within,
      .zero = c::zero,
      .synchronize = c::synchronize,
      .start_upload = c::start_upload,
      .finish_upload = c::finish_upload,
      .wait_for_upload = c::wait_for_upload,
      .begin_capture = c::begin_capture,
      .end_capture = c::end_capture,
      .launch_graph = c::launch_graph,
      .destroy_graph = c::destroy_graph,
      .kernels = &c::table(),
      .set_precision = c::set_precision,
      .precision = c::precision,
  };
  return &module;
}
