// The CUDA module itself (backends/cuda/module.cpp), called as the library calls it, on a runtime that does as little as CUDA promises (fake_cuda/): what is said when
// there is no driver or no code, what order and which lives copies and uploads rely on, whom a failed launch is told, and what a capture forbids.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "detent/core/device_module.h"
#include "detent/tests/nn/support.h"

using namespace detent;

namespace {

const DeviceModule& module() {
  static const DeviceModule* const m = [] {
    const char* const path = std::getenv("DETENT_CUDA_MODULE");
    REQUIRE_MESSAGE(path, "DETENT_CUDA_MODULE names the module to test");
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    REQUIRE_MESSAGE(library, dlerror());
    return reinterpret_cast<DeviceModuleEntry>(dlsym(library, kCudaModuleEntry))();
  }();
  return *m;
}

class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

std::string said(const char* message) { return message ? message : ""; }

void* on_device_0(size_t bytes) {
  void* const p = module().acquire(0, bytes);
  REQUIRE(p);
  return p;
}

// Scratch memory for kernels, straight from the module.
const ModuleHost kHost = {
    .context = nullptr, .allocate = [](void*, size_t bytes) { return on_device_0(bytes); }, .release = [](void*, void* p, size_t) { module().release(0, p); }};

constexpr int64_t kMany = 100'000;  // floats: more than ride in a launch's arguments
constexpr size_t kBytes = kMany * sizeof(float);

class Floats {
 public:
  explicit Floats(float value) { module().kernels->fill(p_, value, kMany); }
  ~Floats() { module().release(0, p_); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* get() const { return p_; }
  std::vector<float> read() const {
    std::vector<float> host(kMany);
    CHECK(said(module().to_host(0, host.data(), p_, kBytes)) == "");
    return host;
  }
  bool all(float value) const {
    const std::vector<float> host = read();
    return std::all_of(host.begin(), host.end(), [&](float v) { return v == value; });
  }

 private:
  float* p_ = static_cast<float*>(on_device_0(kBytes));
};

class Pinned {
 public:
  explicit Pinned(float value) { fill(value); }
  ~Pinned() { module().release_pinned(p_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  void fill(float value) { std::fill_n(p_, kMany, value); }
  float* get() const { return p_; }

 private:
  float* p_ = static_cast<float*>(module().acquire_pinned(kBytes));
};

void ready() {
  REQUIRE(said(module().open(0, kHost)) == "");
  module().make_current(0);
}

}  // namespace

TEST_CASE("no driver, an old one, no devices, a device out of range and one without code are told apart") {
  int devices = -1;
  {
    const Environment none("DETENT_FAKE_CUDA_DRIVER", "0");
    CHECK_MENTIONS(said(module().count(&devices)), "no NVIDIA driver is loaded; install one for CUDA 13.0 or newer");
    CHECK(devices == 0);
  }
  {
    const Environment old("DETENT_FAKE_CUDA_DRIVER", "12040");
    CHECK_MENTIONS(said(module().count(&devices)), "supports CUDA 12.4, but this build needs 13.0; update the driver");
  }
  {
    const Environment none("DETENT_FAKE_CUDA_DEVICES", "0");
    CHECK(said(module().count(&devices)) == "");
    CHECK(devices == 0);
  }
  CHECK(said(module().count(&devices)) == "");
  CHECK(devices == 2);
  CHECK_MENTIONS(said(module().open(7, kHost)), "cudaErrorInvalidDevice");
  CHECK_MENTIONS(said(module().open(-1, kHost)), "out of range");
  CHECK_MENTIONS(said(module().open(64, kHost)), "out of range");
  {
    const Environment none("DETENT_FAKE_CUDA_NO_CODE", "1");
    CHECK_MENTIONS(said(module().open(1, kHost)), "compute capability 9.0, for which this build has no code");
  }
  CHECK(said(module().open(1, kHost)) == "");
  CHECK_MENTIONS(said(module().describe(1)), "sm_90, 1024 MiB, CUDA 13.0");
  // Nothing of it is left behind for a launch to be blamed for.
  CHECK_MENTIONS(said(module().open(7, kHost)), "cudaErrorInvalidDevice");
  ready();
  CHECK(Floats(1.0f).all(1.0f));
}

TEST_CASE("a copy from the host has left its source when it returns, page-locked or not, small or large") {
  ready();
  const Floats to(0.0f);
  for (const int64_t n : {int64_t{1}, int64_t{7}, int64_t{1000}, kMany}) {
    CAPTURE(n);
    std::vector<float> pageable(static_cast<size_t>(n), 2.0f);
    CHECK(said(module().to_device(0, to.get(), pageable.data(), static_cast<size_t>(n) * sizeof(float))) == "");
    std::fill(pageable.begin(), pageable.end(), -1.0f);
    std::vector<float> got = to.read();
    CHECK(std::count(got.begin(), got.end(), 2.0f) == n);
    Pinned pinned(3.0f);
    CHECK(said(module().to_device(0, to.get(), pinned.get(), static_cast<size_t>(n) * sizeof(float))) == "");
    pinned.fill(-1.0f);
    got = to.read();
    CHECK(std::count(got.begin(), got.end(), 3.0f) == n);
    CHECK(said(module().zero(0, to.get(), kBytes)) == "");
  }
  // Bytes that are not whole words, at an odd place.
  const std::vector<unsigned char> bytes{1, 2, 3, 4, 5, 6, 7};
  CHECK(said(module().to_device(0, reinterpret_cast<unsigned char*>(to.get()) + 4, bytes.data(), 7)) == "");
  CHECK(said(module().to_device(0, reinterpret_cast<unsigned char*>(to.get()) + 13, bytes.data(), 2)) == "");
  std::vector<unsigned char> back(16);
  CHECK(said(module().to_host(0, back.data(), to.get(), 16)) == "");
  CHECK(back == std::vector<unsigned char>{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 1, 2, 0});
}

TEST_CASE("an upload comes after what the stream had, before what it gets then, and the source is free after the wait") {
  ready();
  const Floats to(1.0f), seen(0.0f), later(0.0f);
  Pinned source(5.0f);
  // What reads the old values was launched before the upload began.
  CHECK(said(module().within(0, seen.get(), to.get(), kBytes)) == "");
  CHECK(said(module().start_upload(0, to.get(), source.get(), kBytes)) == "");
  CHECK(said(module().finish_upload(0)) == "");
  CHECK(said(module().within(0, later.get(), to.get(), kBytes)) == "");
  CHECK(later.all(5.0f));
  CHECK(seen.all(1.0f));
  source.fill(6.0f);
  CHECK(said(module().start_upload(0, to.get(), source.get(), kBytes)) == "");
  module().wait_for_upload(0);
  source.fill(-1.0f);
  CHECK(said(module().finish_upload(0)) == "");
  // The wait leaves nothing behind that a launch is blamed for.
  module().kernels->fill(later.get(), 7.0f, kMany);
  CHECK(said(module().synchronize(0)) == "");
  CHECK(to.all(6.0f));
}

TEST_CASE("a launch that fails is told by the next call that can, with the kernel's name, once") {
  ready();
  const Floats a(1.0f);
  for (int call = 0; call < 4; ++call) {
    CAPTURE(call);
    setenv("DETENT_FAKE_CUDA_FAIL_LAUNCH", "1", 1);
    module().kernels->fill(a.get(), 2.0f, kMany);
    module().kernels->fill(a.get(), 3.0f, kMany);  // its success does not hide it
    float host = 0.0f;
    const char* const told = call == 0   ? module().synchronize(0)
                             : call == 1 ? module().to_host(0, &host, a.get(), sizeof host)
                             : call == 2 ? module().zero(0, a.get(), 4)
                                         : module().within(0, a.get(), a.get() + 8, 4);
    CHECK_MENTIONS(said(told), "kernel fill: ");
    CHECK_MENTIONS(said(told), "cudaErrorLaunchOutOfResources");
    CHECK(said(module().synchronize(0)) == "");
  }
}

TEST_CASE("a capture keeps what was launched, and what it cannot keep ends it and nothing else") {
  ready();
  const Floats x(1.0f), y(0.0f);
  const auto capture = [&](auto&& work) {
    REQUIRE(said(module().begin_capture(0)) == "");
    work();
    void* graph = nullptr;
    const std::string message = said(module().end_capture(0, &graph));
    return std::pair(graph, message);
  };
  const float small = 4.0f;
  const auto [graph, message] = capture([&] {
    CHECK(said(module().within(0, y.get(), x.get(), kBytes)) == "");
    module().kernels->accumulate(y.get(), x.get(), kMany);
    std::vector<float> rides(8, small);
    CHECK(said(module().to_device(0, y.get(), rides.data(), 8 * sizeof(float))) == "");
    std::fill(rides.begin(), rides.end(), -1.0f);
  });
  CHECK(message == "");
  REQUIRE(graph);
  CHECK(y.all(0.0f));  // nothing ran
  module().kernels->fill(x.get(), 3.0f, kMany);
  CHECK(said(module().launch_graph(0, graph)) == "");
  module().destroy_graph(graph);  // though it has not run yet
  std::vector<float> got = y.read();
  CHECK(std::count(got.begin(), got.end(), small) == 8);
  CHECK(std::count(got.begin(), got.end(), 6.0f) == kMany - 8);

  const std::vector<float> large(kMany, 1.0f);
  float host = 0.0f;
  int64_t bad = 0;
  const FloatSpan span{x.get(), kMany};
  const std::vector<std::pair<const char*, std::function<void()>>> forbidden = {
      {"synchronize", [&] { CHECK_MENTIONS(said(module().synchronize(0)), "synchronize: "); }},
      {"to_host", [&] { CHECK_MENTIONS(said(module().to_host(0, &host, x.get(), 4)), "copy to the host: "); }},
      {"to_device", [&] { CHECK_MENTIONS(said(module().to_device(0, y.get(), large.data(), kBytes)), "copy to the device: "); }},
      {"a kernel that returns a number", [&] { module().kernels->count_nonfinite(&span, 1, &bad); }},
      {"a launch that fails",
       [&] {
         setenv("DETENT_FAKE_CUDA_FAIL_LAUNCH", "1", 1);
         module().kernels->fill(x.get(), 2.0f, kMany);
       }},
  };
  for (const auto& row : forbidden) {
    const auto& name = row.first;
    const auto& work = row.second;
    CAPTURE(name);
    const auto [none, why] = capture([&] {
      module().kernels->fill(x.get(), 9.0f, kMany);
      work();
    });
    CHECK(!none);
    CHECK(!why.empty());
    CHECK(said(module().synchronize(0)) == "");
    module().kernels->fill(x.get(), 1.0f, kMany);
    CHECK(x.all(1.0f));
  }
}

TEST_CASE("memory that is not there is null and no error of a later launch") {
  ready();
  CHECK(module().acquire(0, size_t{1} << 40) == nullptr);
  size_t free = 0, total = 0;
  module().memory(0, &free, &total);
  CHECK(total == size_t{1} << 30);
  CHECK(free <= total);
  const Floats a(2.0f);
  CHECK(said(module().synchronize(0)) == "");
  CHECK(a.all(2.0f));
}

TEST_CASE("each thread has its own device") {
  ready();
  REQUIRE(said(module().open(1, kHost)) == "");
  void* const other = module().acquire(1, kBytes);
  module().make_current(1);
  module().kernels->fill(static_cast<float*>(other), 8.0f, kMany);
  const Floats here(0.0f);  // acquiring makes device 0 current again
  std::vector<float> host(kMany);
  CHECK(said(module().to_host(1, host.data(), other, kBytes)) == "");
  CHECK(host == std::vector<float>(kMany, 8.0f));
  module().make_current(0);
  module().kernels->fill(here.get(), 9.0f, kMany);
  CHECK(here.all(9.0f));
  module().release(1, other);
}
