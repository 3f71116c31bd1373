// The host side of a device, over a module of this file: memory of a given size, work that is only counted.
#include "detent/core/device_backend.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "detent/core/error.h"

using namespace detent;

namespace {

// One device. Memory is the host's, so that copies can be looked at; recorded launches are played back by launch_graph.
struct FakeDevice {
  size_t capacity = 1 << 20;
  std::map<void*, size_t> held;
  size_t held_bytes = 0;
  std::string failure;       // what the next call that can fail reports
  bool capturing = false;
  std::vector<int> recorded;  // values that the fake kernel was given while capturing
  std::vector<int> run;       // those that ran
  ModuleHost host = {};
  int current = -1;
  Precision precision = Precision::tf32;
};

FakeDevice& fake() {
  static FakeDevice d;
  return d;
}

const char* report() {
  static std::string text;
  text = fake().failure;
  fake().failure.clear();
  return text.empty() ? nullptr : text.c_str();
}

const char* copy_bytes(int, void* dst, const void* src, size_t bytes) {
  std::memcpy(dst, src, bytes);
  return report();
}

// Stands for any kernel: y[0] tells it apart.
void fake_fill(float* y, float value, int64_t n) {
  FakeDevice& d = fake();
  const auto mark = static_cast<int>(value);
  if (d.capturing) {
    d.recorded.push_back(mark);
    return;
  }
  d.run.push_back(mark);
  for (int64_t i = 0; i < n; ++i) y[i] = value;
}

const Kernels& fake_kernels() {
  static Kernels k = [] {
    Kernels t = {};
    t.name = "fake";
    t.fill = fake_fill;
    return t;
  }();
  return k;
}

const DeviceModule kModule = {
    .version = kDeviceModuleVersion,
    .kernels_bytes = sizeof(Kernels),
    .count =
        [](int* n) -> const char* {
      *n = 1;
      return nullptr;
    },
    .open =
        [](int device, const ModuleHost& host) -> const char* {
      fake().host = host;
      return device == 0 ? report() : "no such device";
    },
    .describe = [](int) { return "a device of this test"; },
    .make_current = [](int device) { fake().current = device; },
    .acquire = [](int, size_t bytes) -> void* {
      FakeDevice& d = fake();
      if (d.held_bytes + bytes > d.capacity) return nullptr;
      void* p = std::malloc(bytes);
      d.held[p] = bytes;
      d.held_bytes += bytes;
      return p;
    },
    .release =
        [](int, void* p) {
          fake().held_bytes -= fake().held.at(p);
          fake().held.erase(p);
          std::free(p);
        },
    .memory =
        [](int, size_t* free, size_t* total) {
          *total = fake().capacity;
          *free = fake().capacity - fake().held_bytes;
        },
    .acquire_pinned = [](size_t bytes) { return bytes > (size_t{1} << 30) ? nullptr : std::malloc(bytes); },
    .release_pinned = [](void* p) { std::free(p); },
    .to_device = copy_bytes,
    .to_host = copy_bytes,
    .within = copy_bytes,
    .zero = [](int, void* dst, size_t bytes) -> const char* {
      std::memset(dst, 0, bytes);
      return report();
    },
    .synchronize = [](int) { return report(); },
    .start_upload = copy_bytes,
    .finish_upload = [](int) { return report(); },
    .wait_for_upload = [](int) {},
    .begin_capture =
        [](int) {
          fake().capturing = true;
          fake().recorded.clear();
          return report();
        },
    .end_capture = [](int, void** graph) -> const char* {
      fake().capturing = false;
      const char* message = report();
      *graph = message ? nullptr : new std::vector<int>(fake().recorded);
      return message;
    },
    .launch_graph = [](int, void* graph) -> const char* {
      for (const int mark : *static_cast<std::vector<int>*>(graph)) fake().run.push_back(mark);
      return report();
    },
    .destroy_graph = [](void* graph) { delete static_cast<std::vector<int>*>(graph); },
    .kernels = &fake_kernels(),
    .set_precision = [](Precision p) { fake().precision = p; },
    .precision = [] { return fake().precision; },
};

struct Fixture {
  Fixture() { fake() = FakeDevice(); }
  Device device{DeviceType::cuda, 0};
};

std::string message_of(const auto& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("device_out_of_memory_is_an_error_with_bytes_asked_and_free_and_a_smaller_batch_works") {
  Fixture f;
  {
    DeviceBackend b(kModule, f.device);
    void* weights = b.allocate(200 * 1024);
    void* cached = b.allocate(700 * 1024);
    b.release(cached, 700 * 1024);  // in the cache now: 900 of 1024 KiB are held
    const std::string message = message_of([&] { b.allocate(900 * 1024); });
    CAPTURE(message);
    CHECK(message.find("cuda:0") != std::string::npos);
    CHECK(message.find("921600 bytes asked") != std::string::npos);
    CHECK(message.find("843776 of 1048576 bytes are free") != std::string::npos);  // after the cache was trimmed
    CHECK(message.find("smaller batch") != std::string::npos);
    void* smaller = b.allocate(800 * 1024);
    CHECK(smaller != nullptr);
    b.release(smaller, 800 * 1024);
    b.release(weights, 200 * 1024);
    CHECK(b.allocator().stats().live_bytes == 0);
  }
  CHECK(fake().held.empty());
}

TEST_CASE("device_memory_for_kernels_comes_from_the_same_allocator") {
  Fixture f;
  DeviceBackend b(kModule, f.device);
  void* p = fake().host.allocate(fake().host.context, 1000);
  CHECK(b.allocator().stats().live_bytes == 1024);
  fake().host.release(fake().host.context, p, 1000);
  CHECK(b.allocator().stats().live_bytes == 0);
  CHECK(b.allocator().stats().cached_bytes == 1024);
}

TEST_CASE("device_failures_become_errors_that_name_the_device") {
  Fixture f;
  fake().failure = "the lid is open";
  CHECK(message_of([&] { DeviceBackend b(kModule, f.device); }) == "device cuda:0: the lid is open");
  CHECK(message_of([&] { DeviceBackend b(kModule, {DeviceType::cuda, 1}); }) == "device cuda:1: no such device");
  DeviceBackend b(kModule, f.device);
  CHECK(std::string(b.description()) == "a device of this test");
  b.kernels();
  CHECK(fake().current == 0);
  CHECK(b.precision() == Precision::tf32);
  b.set_precision(Precision::bf16);
  CHECK(fake().precision == Precision::bf16);
  float v = 1.0f;
  fake().failure = "kernel fill: broken";
  CHECK(message_of([&] { b.synchronize(); }) == "device cuda:0: kernel fill: broken");
  CHECK_NOTHROW(b.synchronize());
  CHECK_THROWS_AS(b.copy(&v, {}, &v, {DeviceType::cuda, 3}, 4), Error);
  CHECK(message_of([&] { b.allocate_pinned(size_t{1} << 31); }).find("page-locked") != std::string::npos);
}

TEST_CASE("device_recordings_run_again_and_keep_their_memory") {
  Fixture f;
  {
    DeviceBackend b(kModule, f.device);
    void* before = b.allocate(4096);
    b.release(before, 4096);
    b.begin_recording();
    void* inner = b.allocate(4096);
    CHECK(inner != before);  // a block of the cache may be in use by others when the recording runs again
    b.kernels().fill(static_cast<float*>(inner), 7.0f, 4);
    b.release(inner, 4096);
    void* again = b.allocate(4096);
    CHECK(again == inner);  // within the recording blocks are reused in stream order
    void* recording = b.end_recording(true);
    REQUIRE(recording != nullptr);
    CHECK(fake().run.empty());
    b.release(again, 4096);
    void* other = b.allocate(4096);
    CHECK(other == before);  // nobody else gets the recording's block
    void* third = b.allocate(4096);
    CHECK(third != inner);
    b.replay(recording);
    b.replay(recording);
    CHECK(fake().run == std::vector<int>{7, 7});
    b.drop_recording(recording);
    b.release(other, 4096);
    b.release(third, 4096);
    CHECK(b.allocator().stats().live_bytes == 0);
  }
  CHECK(fake().held.empty());
}

TEST_CASE("device_recording_that_fails_or_is_dropped_leaves_nothing_behind") {
  Fixture f;
  {
    DeviceBackend b(kModule, f.device);
    b.begin_recording();
    void* kept = b.allocate(4096);
    CHECK(message_of([&] { b.begin_recording(); }).find("two recordings") != std::string::npos);
    CHECK(b.end_recording(false) == nullptr);
    b.release(kept, 4096);  // an ordinary block now
    b.begin_recording();
    fake().failure = "not permitted when stream is capturing";
    CHECK(message_of([&] { b.end_recording(true); }).find("not permitted") != std::string::npos);
    b.begin_recording();
    void* p = b.allocate(512);
    void* recording = b.end_recording(true);
    b.drop_recording(recording);
    b.release(p, 512);
    CHECK(b.allocator().stats().live_bytes == 0);
  }
  CHECK(fake().held.empty());
}

TEST_CASE("device_names_are_read_and_a_missing_device_is_a_clear_error") {
  CHECK(device_named("cpu") == Device{});
  CHECK(message_of([] { device_named("gpu"); }).find("auto, cpu, cuda or cuda:N") != std::string::npos);
  CHECK(message_of([] { device_named("cuda:x"); }).find("auto, cpu, cuda or cuda:N") != std::string::npos);
  std::string why;
  if (device_available({DeviceType::cuda, 0}, &why)) {
    CHECK(device_named("auto") == Device{DeviceType::cuda, 0});
    CHECK(message_of([] { device_named("cuda:4096"); }).find("out of range") != std::string::npos);
  } else {
    CHECK(device_named("auto") == Device{});
    CHECK(message_of([] { device_named("cuda"); }) == why);
    CHECK(why.find("use the cpu") != std::string::npos);
  }
}
