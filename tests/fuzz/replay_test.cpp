// The seed corpora through every fuzz target in the normal build, cut at every length and with bytes changed, and the memory that takes.
#include <doctest/doctest.h>

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "detent/core/allocator.h"
#include "detent/core/error.h"
#include "detent/core/file.h"
#include "detent/core/rng.h"
#include "detent/tests/fuzz/errors.h"
#include "detent/tests/fuzz/targets.h"

using namespace detent;

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DETENT_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(DETENT_SANITIZED)
constexpr bool kCountsMemory = false;  // the sanitizers have their own operator new
static int64_t heap_peak() { return 0; }
static void restart_peak() {}
#else
constexpr bool kCountsMemory = true;
static std::atomic<int64_t> heap_now{0}, heap_most{0};
static int64_t heap_peak() { return heap_most; }
static void restart_peak() { heap_most = heap_now.load(); }

static void* counted(size_t n) {
  void* p = std::malloc(n ? n : 1);
  if (!p) throw std::bad_alloc();
  const int64_t now = heap_now += static_cast<int64_t>(malloc_usable_size(p));
  int64_t most = heap_most.load();
  while (now > most && !heap_most.compare_exchange_weak(most, now)) {
  }
  return p;
}
static void uncounted(void* p) {
  heap_now -= static_cast<int64_t>(malloc_usable_size(p));
  std::free(p);
}
void* operator new(size_t n) { return counted(n); }
void* operator new[](size_t n) { return counted(n); }
void operator delete(void* p) noexcept { uncounted(p); }
void operator delete[](void* p) noexcept { uncounted(p); }
void operator delete(void* p, size_t) noexcept { uncounted(p); }
void operator delete[](void* p, size_t) noexcept { uncounted(p); }
#endif

namespace {

constexpr double kConstantBytes = 256 << 10;

struct Replay {
  const fuzz::Target& target;
  int64_t runs = 0, errors = 0;
  double worst = 0.0;  // memory beyond the constant, as a multiple of the input

  void run(const std::string& bytes) {
    host_allocator().trim();
    host_allocator().reset_peak();
    restart_peak();
    const int64_t before = heap_peak() + host_allocator().stats().live_bytes;
    ++runs;
    try {
      target.run({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
    } catch (const Error& e) {
      ++errors;
      if (std::string_view(e.what()).empty()) FAIL_CHECK("an error without a message");
    }
    const double taken = static_cast<double>(heap_peak() + host_allocator().stats().peak_bytes - before) - kConstantBytes;
    worst = std::max(worst, taken / static_cast<double>(bytes.size() + 1));
  }

  void run_derived(const std::string& seed) {
    run(seed);
    const size_t n = seed.size(), cuts = std::max<size_t>(1, n / 300);
    for (size_t k = 0; k < n; k += n < 600 ? 1 : cuts) run(seed.substr(0, k));
    Rng rng(n);
    for (int i = 0; i < 400; ++i) {
      std::string changed = seed;
      // One to four bytes, near the beginning half of the time: that is where sizes and counts are.
      for (int64_t edits = 1 + rng.below(4); edits > 0; --edits) {
        const int64_t reach = rng.below(2) ? std::min<int64_t>(static_cast<int64_t>(n), 128) : static_cast<int64_t>(n);
        if (reach == 0) break;
        constexpr uint8_t kValues[] = {0, 1, 0x7f, 0x80, 0xff};
        changed[static_cast<size_t>(rng.below(reach))] = static_cast<char>(rng.below(2) ? kValues[rng.below(5)] : static_cast<uint8_t>(rng.below(256)));
      }
      run(changed);
    }
  }
};

bool error_free(const fuzz::Target& t, const std::string& bytes) {
  try {
    t.run({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

TEST_CASE("corpora_of_hostile_bytes_are_refused_with_errors_in_bounded_memory") {
  for (const fuzz::Target& t : fuzz::targets()) {
    const std::string folder = std::string(DETENT_SOURCE_ROOT "/tests/fuzz/corpus/") + t.name;
    REQUIRE_MESSAGE(folder_exists(folder), folder);
    Replay replay{t};
    const std::vector<std::string> names = list_folder(folder);
    CHECK_FALSE(names.empty());
    // What a target keeps is made by its first run.
    CHECK_MESSAGE(error_free(t, read_file(join_path(folder, names.front()))), std::string(t.name) << ": its first seed is refused");
    for (const std::string& name : names) replay.run_derived(read_file(join_path(folder, name)));
    MESSAGE(std::string(t.name) << ": " << names.size() << " seeds, " << replay.runs << " inputs, " << replay.errors << " errors" << (kCountsMemory ? text(", memory 256 KiB + ", replay.worst, " x input") : ""));
    CHECK(replay.errors > 100);
    CHECK(replay.errors < replay.runs);
    CHECK(replay.worst < t.memory_factor);
  }
}

// Found by the fuzzer: the smallest input of each kind of error (make_errors), which is its name.
TEST_CASE("every_kind_of_error_is_given_for_the_input_that_is_named_after_it") {
  int64_t inputs = 0;
  for (const fuzz::Target& t : fuzz::targets()) {
    const std::string folder = std::string(DETENT_SOURCE_ROOT "/tests/fuzz/errors/") + t.name;
    if (!folder_exists(folder)) continue;
    for (const std::string& kind : list_folder(folder)) {
      const std::string bytes = read_file(join_path(folder, kind));
      std::string message;
      try {
        t.run({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
      } catch (const Error& e) {
        message = e.what();
      }
      CHECK_MESSAGE(fuzz::error_kinds(message).contains(kind), std::string(t.name) << ": \"" << message << "\" is not " << kind << "; when its format changed, fuzz and run make_errors again");
      ++inputs;
    }
  }
  MESSAGE(inputs << " inputs, each refused for its reason");
  CHECK(inputs > 100);
}

// A text with its numbers taken out: measured ranges have other last digits where float sums have another order.
static std::string without_numbers(std::string text) {
  std::erase_if(text, [](char c) { return (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '+' || c == 'e'; });
  return text;
}

TEST_CASE("seeds_in_the_repository_are_what_this_version_writes") {
  for (const fuzz::Target& t : fuzz::targets()) {
    for (const auto& [name, bytes] : fuzz::seeds(t.name)) {
      // Encoders other than libjpeg-turbo write other bytes.
      if (std::string_view(t.name) == "jpeg" || std::string_view(t.name) == "tfrecord" || std::string_view(t.name) == "example") continue;
      const std::string path = std::string(DETENT_SOURCE_ROOT "/tests/fuzz/corpus/") + t.name + "/" + name;
      INFO(path, ": a format changed; is its version number too? Run make_seeds");
      REQUIRE(file_exists(path));
      const std::string stored = read_file(path);
      if (name.ends_with(".json")) {
        CHECK(without_numbers(stored) == without_numbers(bytes));
      } else {
        CHECK(stored.size() == bytes.size());
      }
    }
  }
}
