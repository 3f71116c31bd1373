#include "detent/core/allocator.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "detent/core/error.h"

#include "detent/core/host_memory.h"

using namespace detent;

namespace {

struct Counts {
  int64_t acquired = 0, released = 0, held_bytes = 0;
  int64_t limit_bytes = int64_t{1} << 40;
};

// Refuses to hold more than limit_bytes.
struct CountingMemory final : RawMemory {
  explicit CountingMemory(Counts& c) : counts(c) {}
  void* acquire(size_t bytes) override {
    if (counts.held_bytes + static_cast<int64_t>(bytes) > counts.limit_bytes) return nullptr;
    ++counts.acquired;
    counts.held_bytes += static_cast<int64_t>(bytes);
    return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  }
  void release(void* p, size_t bytes) override {
    ++counts.released;
    counts.held_bytes -= static_cast<int64_t>(bytes);
    std::free(p);
  }
  Counts& counts;
};

}  // namespace

TEST_CASE("allocator_reuses_blocks_of_a_size_and_makes_no_new_ones") {
  Counts counts;
  CachingAllocator a(std::make_unique<CountingMemory>(counts));
  for (int step = 0; step < 5; ++step) {
    void* p = a.allocate(1000);
    void* q = a.allocate(5000);
    CHECK(reinterpret_cast<uintptr_t>(p) % 64 == 0);
    CHECK(p != q);
    std::memset(p, 1, 1000);
    a.release(p, 1000);
    a.release(q, 5000);
  }
  CHECK(counts.acquired == 2);
  CHECK(a.stats().raw_allocations == 2);
  CHECK(a.stats().live_bytes == 0);
  CHECK(a.stats().cached_bytes == counts.held_bytes);
}

TEST_CASE("allocator_statistics_follow_live_and_peak") {
  Counts counts;
  CachingAllocator a(std::make_unique<CountingMemory>(counts), 64);
  void* p = a.allocate(64);
  void* q = a.allocate(65);  // rounded to 128
  CHECK(a.stats().live_bytes == 192);
  a.release(q, 65);
  CHECK(a.stats().live_bytes == 64);
  CHECK(a.stats().peak_bytes == 192);
  a.reset_peak();
  CHECK(a.stats().peak_bytes == 64);
  a.release(p, 64);
  a.trim();
  CHECK(a.stats().cached_bytes == 0);
  CHECK(counts.released == counts.acquired);
  CHECK(counts.held_bytes == 0);
}

TEST_CASE("allocator_out_of_memory_trims_its_cache_then_throws") {
  Counts counts;
  counts.limit_bytes = 8192;
  CachingAllocator a(std::make_unique<CountingMemory>(counts));
  void* p = a.allocate(4096);
  a.release(p, 4096);
  void* q = a.allocate(8192);  // fits only without the cached block
  CHECK(counts.released == 1);
  std::string message;
  try {
    a.allocate(64);
  } catch (const Error& e) {
    message = e.what();
  }
  CHECK(message == "out of memory: 64 bytes asked, 8192 in use; use a smaller batch");
  CHECK(a.stats().live_bytes == 8192);
  a.release(q, 8192);
  void* r = a.allocate(64);  // usable again
  a.release(r, 64);
  CHECK_THROWS_AS(a.allocate(SIZE_MAX), Error);
}

TEST_CASE("allocator_zero_bytes_and_another_source_of_memory") {
  Counts counts, others;
  CachingAllocator a(std::make_unique<CountingMemory>(counts));
  void* p = a.allocate(0);
  CHECK(p != nullptr);
  a.release(p, 0);
  std::unique_ptr<RawMemory> old = a.exchange_raw(std::make_unique<CountingMemory>(others));
  CHECK(counts.held_bytes == 0);  // what was cached went back to where it came from
  a.release(a.allocate(100), 100);
  CHECK(others.acquired == 1);
}

TEST_CASE("allocator_may_be_used_by_several_threads") {
  Counts counts;
  CachingAllocator a(std::make_unique<CountingMemory>(counts));
  std::vector<std::thread> threads;
  std::vector<int> damaged(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        const size_t bytes = static_cast<size_t>(64 * (1 + i % 5));
        auto* p = static_cast<unsigned char*>(a.allocate(bytes));
        std::memset(p, t, bytes);
        for (size_t j = 0; j < bytes; ++j) damaged[static_cast<size_t>(t)] += p[j] != t;
        a.release(p, bytes);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (int d : damaged) CHECK(d == 0);
  CHECK(a.stats().live_bytes == 0);
}

TEST_CASE("memory that the machine lacks is an error and not the end of the process") {
  const int64_t left = available_host_memory();
  if (left < 0) {
    MESSAGE("SKIPPED: how much memory there is cannot be told here");
    return;
  }
  CHECK(left > int64_t{1} << 20);
  CHECK(left < int64_t{1} << 46);
  std::string message;
  try {
    host_allocator().release(host_allocator().allocate(static_cast<size_t>(left) + (size_t{4} << 30)), static_cast<size_t>(left) + (size_t{4} << 30));
  } catch (const Error& e) {
    message = e.what();
  }
  CHECK(message.find("out of memory on the cpu, where ") != std::string::npos);
  CHECK(message.find("use a smaller batch") != std::string::npos);
}
