// The CUDA runtime on the host. Work waits in its stream until somebody waits for it, and a copy from page-locked memory reads it only then: what relies on more
// order, or on longer lives, than CUDA promises gives other results here. Calls that a capture forbids end it. Environment:
//   DETENT_FAKE_CUDA_DRIVER      what the driver supports, as CUDA's number (12040); 0: there is none
//   DETENT_FAKE_CUDA_DEVICES     how many there are (2)
//   DETENT_FAKE_CUDA_NO_CODE     set: there is no code for these devices
//   DETENT_FAKE_CUDA_FAIL_LAUNCH N: the N-th launch from now on fails, once
// Compiled with the header beside it, and once more with the toolkit's, so that code compiled by nvcc can be linked to it (../ptx/runtime.cpp).
#include "fake_cuda.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

using Work = std::function<void()>;

struct CUstream_st {
  int device = 0;
  int64_t issued = 0, done = 0;
  std::deque<Work> waiting;
  bool capturing = false;
  cudaError_t spoiled = cudaSuccess;  // what ended the capture
  std::vector<Work> captured;
};
struct CUevent_st {
  int device = 0;
  CUstream_st* stream = nullptr;
  int64_t after = 0;
  bool captured = false;
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Work>> work;
};

namespace {

constexpr size_t kMemory = size_t{1} << 30, kPage = 4096;
constexpr int kRuntime = 13000;

std::recursive_mutex g_mutex;
std::vector<std::unique_ptr<CUstream_st>> g_streams;
size_t g_used = 0;
std::multimap<size_t, void*> g_free;
std::map<void*, size_t> g_sizes;
std::map<uint64_t, size_t> g_asked;  // what blocks in use were asked for
std::map<const char*, size_t> g_pinned;
int g_running = 0;
bool g_broken = false;
int64_t g_launches_to_failure = 0;
thread_local cudaError_t t_last = cudaSuccess;
thread_local int t_device = 0;

struct Lock {
  std::lock_guard<std::recursive_mutex> guard{g_mutex};
};

cudaError_t set(cudaError_t e) {
  if (e != cudaSuccess) t_last = e;
  return e;
}

int64_t number_in(const char* variable, int64_t otherwise) {
  const char* const v = std::getenv(variable);
  return v ? std::atoll(v) : otherwise;
}

char* memory() {
  static char* const p = static_cast<char*>(mmap(nullptr, kMemory, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return p;
}
size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// The device's memory can be reached while one of these exists.
struct Running {
  Running() {
    if (g_running++ == 0) mprotect(memory(), pages(g_used + kPage), PROT_READ | PROT_WRITE);
  }
  ~Running() {
    if (--g_running == 0) mprotect(memory(), pages(g_used + kPage), PROT_NONE);
  }
};

void run_until(CUstream_st& s, int64_t ticket) {
  const Running running;
  while (s.done < ticket) {
    const Work work = std::move(s.waiting.front());
    s.waiting.pop_front();
    work();
    ++s.done;
  }
}

void run_all() {
  for (const auto& s : g_streams) run_until(*s, s->issued);
}

cudaError_t refuse_in_capture(CUstream_st& s) {
  if (!s.capturing) return cudaSuccess;
  if (s.spoiled == cudaSuccess) s.spoiled = cudaErrorStreamCaptureInvalidated;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t issue(CUstream_st* s, Work work) {
  if (!s) return set(cudaErrorInvalidResourceHandle);
  if (s->capturing) {
    if (s->spoiled != cudaSuccess) return set(cudaErrorStreamCaptureInvalidated);
    s->captured.push_back(std::move(work));
    return cudaSuccess;
  }
  s->waiting.push_back(std::move(work));
  ++s->issued;
  return cudaSuccess;
}

bool is_pinned(const void* p) {
  const auto* at = static_cast<const char*>(p);
  const auto next = g_pinned.upper_bound(at);
  return next != g_pinned.begin() && at < std::prev(next)->first + std::prev(next)->second;
}

}  // namespace

// ---- errors --------------------------------------------------------------------------------------------------------------------------------------------

const char* cudaGetErrorName(cudaError_t e) {
#define DETENT_NAME(name) \
  { name, #name }
  static const std::map<cudaError_t, const char*> names = {
      DETENT_NAME(cudaSuccess),
      DETENT_NAME(cudaErrorInvalidValue),
      DETENT_NAME(cudaErrorMemoryAllocation),
      DETENT_NAME(cudaErrorNoDevice),
      DETENT_NAME(cudaErrorInvalidDevice),
      DETENT_NAME(cudaErrorInsufficientDriver),
      DETENT_NAME(cudaErrorNoKernelImageForDevice),
      DETENT_NAME(cudaErrorInvalidDeviceFunction),
      DETENT_NAME(cudaErrorUnsupportedPtxVersion),
      DETENT_NAME(cudaErrorInvalidResourceHandle),
      DETENT_NAME(cudaErrorIllegalState),
      DETENT_NAME(cudaErrorIllegalAddress),
      DETENT_NAME(cudaErrorLaunchOutOfResources),
      DETENT_NAME(cudaErrorStreamCaptureUnsupported),
      DETENT_NAME(cudaErrorStreamCaptureInvalidated),
      DETENT_NAME(cudaErrorStreamCaptureIsolation),
      DETENT_NAME(cudaErrorNotReady),
  };
#undef DETENT_NAME
  const auto found = names.find(e);
  return found == names.end() ? "another error" : found->second;
}
const char* cudaGetErrorString(cudaError_t) { return "said by the host's CUDA runtime"; }
cudaError_t cudaGetLastError() { return std::exchange(t_last, cudaSuccess); }

// ---- devices and memory --------------------------------------------------------------------------------------------------------------------------------

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntime;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = static_cast<int>(number_in("DETENT_FAKE_CUDA_DRIVER", kRuntime));
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  *count = 0;
  if (driver < kRuntime) return set(cudaErrorInsufficientDriver);
  *count = static_cast<int>(number_in("DETENT_FAKE_CUDA_DEVICES", 2));
  return *count > 0 ? cudaSuccess : set(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  int count = 0;
  if (const cudaError_t e = cudaGetDeviceCount(&count); e != cudaSuccess) return e;
  if (device < 0 || device >= count) return set(cudaErrorInvalidDevice);
  t_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = t_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  std::snprintf(p->name, sizeof p->name, "CUDA on the host");
  p->totalGlobalMem = kMemory;
  p->major = 9, p->minor = 0;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return std::getenv("DETENT_FAKE_CUDA_NO_CODE") ? set(cudaErrorNoKernelImageForDevice) : cudaSuccess; }

cudaError_t cudaMalloc(void** p, size_t bytes) {
  const Lock lock;
  const size_t size = pages(bytes);
  if (const auto found = g_free.find(size); found != g_free.end()) {
    *p = found->second;
    g_free.erase(found);
    g_asked[reinterpret_cast<uint64_t>(*p)] = bytes;
    return cudaSuccess;
  }
  if (size > kMemory || g_used + size + kPage > kMemory) return set(cudaErrorMemoryAllocation);
  *p = memory() + g_used;
  g_used += size;
  g_sizes[*p] = size;
  g_asked[reinterpret_cast<uint64_t>(*p)] = bytes;
  if (g_running > 0) mprotect(memory(), pages(g_used + kPage), PROT_READ | PROT_WRITE);
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  const Lock lock;
  if (!p) return cudaSuccess;
  const auto found = g_sizes.find(p);
  if (found == g_sizes.end()) return set(cudaErrorInvalidValue);
  run_all();
  g_free.emplace(found->second, p);
  g_asked.erase(reinterpret_cast<uint64_t>(p));
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock;
  *free = kMemory - g_used;
  *total = kMemory;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  const Lock lock;
  *p = std::malloc(bytes);
  g_pinned[static_cast<const char*>(*p)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  const Lock lock;
  run_all();
  g_pinned.erase(static_cast<const char*>(p));
  std::free(p);
  return cudaSuccess;
}

// ---- streams -------------------------------------------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock;
  g_streams.push_back(std::make_unique<CUstream_st>());
  g_streams.back()->device = t_device;
  *stream = g_streams.back().get();
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  const Lock lock;
  if (const cudaError_t e = refuse_in_capture(*s); e != cudaSuccess) return set(e);
  run_until(*s, s->issued);
  return g_broken ? set(cudaErrorIllegalAddress) : cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{.device = t_device};
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) {
  const Lock lock;
  if (event->device != s->device) return set(cudaErrorInvalidResourceHandle);
  event->stream = s;
  event->after = s->issued;
  event->captured = s->capturing;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned) {
  const Lock lock;
  if (!event->stream) return cudaSuccess;
  // CUDA would take the other stream into the capture, or refuse: neither is meant anywhere.
  if (event->captured || s->capturing) {
    refuse_in_capture(event->captured ? *event->stream : *s);
    return set(cudaErrorStreamCaptureIsolation);
  }
  return issue(s, [on = event->stream, after = event->after] { run_until(*on, after); });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock;
  if (!event->stream) return cudaSuccess;
  if (event->captured) return set(refuse_in_capture(*event->stream));
  run_until(*event->stream, event->after);
  return g_broken ? set(cudaErrorIllegalAddress) : cudaSuccess;
}
// As CUDA's, "not ready" stays behind as the thread's last error.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock;
  return !event->stream || event->stream->done >= event->after ? cudaSuccess : set(cudaErrorNotReady);
}
cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
  const Lock lock;
  const bool from_host = kind == cudaMemcpyHostToDevice, to_host = kind == cudaMemcpyDeviceToHost;
  if (from_host == fake_cuda::on_device(src) || to_host == fake_cuda::on_device(dst)) return set(cudaErrorInvalidValue);
  if (from_host && !is_pinned(src) && !s->capturing) {  // leaves the source before the call returns
    return issue(s, [dst, bytes = std::vector<char>(static_cast<const char*>(src), static_cast<const char*>(src) + bytes)] { std::memcpy(dst, bytes.data(), bytes.size()); });
  }
  const cudaError_t e = issue(s, [=] { std::memcpy(dst, src, bytes); });
  if (e == cudaSuccess && to_host && !is_pinned(dst) && !s->capturing) run_until(*s, s->issued);
  return e;
}
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t s) {
  const Lock lock;
  if (!fake_cuda::on_device(dst)) return set(cudaErrorInvalidValue);
  return issue(s, [=] { std::memset(dst, value, bytes); });
}

// ---- graphs --------------------------------------------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  const Lock lock;
  if (s->capturing) return set(cudaErrorIllegalState);
  s->capturing = true;
  s->spoiled = cudaSuccess;
  s->captured.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  const Lock lock;
  *graph = nullptr;
  if (!s->capturing) return set(cudaErrorIllegalState);
  s->capturing = false;
  if (s->spoiled != cudaSuccess) return set(s->spoiled);
  *graph = new CUgraph_st{std::move(s->captured)};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->work)};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  const Lock lock;
  return issue(s, [work = exec->work] {
    for (const Work& w : *work) w();
  });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

// ---- kernels -------------------------------------------------------------------------------------------------------------------------------------------

namespace fake_cuda {

cudaError_t set_error(cudaError_t e) { return set(e); }

cudaError_t launch(cudaStream_t s, Work work) {
  const Lock lock;
  if (const int64_t n = number_in("DETENT_FAKE_CUDA_FAIL_LAUNCH", 0); n > 0) {
    g_launches_to_failure = n;
    unsetenv("DETENT_FAKE_CUDA_FAIL_LAUNCH");
  }
  if (g_launches_to_failure > 0 && --g_launches_to_failure == 0) return set(cudaErrorLaunchOutOfResources);
  if (!s || s->device != t_device) return set(cudaErrorInvalidResourceHandle);
  return issue(s, std::move(work));
}

bool capturing() {
  const Lock lock;
  for (const auto& s : g_streams) {
    if (s->capturing) return true;
  }
  return false;
}
bool on_device(const void* p) { return p >= memory() && p < memory() + kMemory; }
void break_device() { g_broken = true; }

Extent block_of(uint64_t address) {
  const Lock lock;
  if (const auto next = g_asked.upper_bound(address); next != g_asked.begin()) {
    const auto& [begin, bytes] = *std::prev(next);
    if (address < begin + pages(bytes)) return {begin, begin + bytes};
  }
  if (const auto next = g_pinned.upper_bound(reinterpret_cast<const char*>(address)); next != g_pinned.begin()) {
    const auto& [begin, bytes] = *std::prev(next);
    if (reinterpret_cast<const char*>(address) < begin + bytes) return {reinterpret_cast<uint64_t>(begin), reinterpret_cast<uint64_t>(begin) + bytes};
  }
  return {0, 0};
}

}  // namespace fake_cuda

// For libraries that are opened at run time (fake_cublaslt.cpp).
extern "C" __attribute__((visibility("default"))) int fake_cuda_enqueue(void* stream, void (*work)(void*), void* argument) {
  return fake_cuda::launch(static_cast<cudaStream_t>(stream), [=] { work(argument); });
}
