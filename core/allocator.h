// Device memory: exact-size free lists over a raw allocator, because training steps repeat the same sizes.
// A second step of the same shapes makes no new allocation. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace detent {

/// Where memory comes from; tests put one in front that fails on purpose. Returns null when there is none.
struct RawMemory {
  virtual ~RawMemory() = default;
  virtual void* acquire(size_t bytes) = 0;
  virtual void release(void* p, size_t bytes) = 0;
  /// For the message when memory runs out: "" or as " on cuda:0, where 5 of 80 bytes are free".
  virtual std::string state() { return {}; }
};

struct AllocStats {
  int64_t live_bytes = 0;     ///< handed out now
  int64_t peak_bytes = 0;     ///< most handed out at once since reset_peak()
  int64_t cached_bytes = 0;   ///< kept for reuse
  int64_t raw_allocations = 0;  ///< calls of RawMemory::acquire so far
};

class CachingAllocator {
 public:
  explicit CachingAllocator(std::unique_ptr<RawMemory> raw, size_t granularity = 64);
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  /// At least `bytes` bytes, 64-byte aligned, uninitialised. On failure trims the cache and tries again, then throws OutOfMemory (an Error) with the bytes asked and held.
  void* allocate(size_t bytes);
  void release(void* p, size_t bytes) noexcept;
  /// Returns every cached block to the raw allocator.
  void trim() noexcept;
  AllocStats stats() const;
  void reset_peak();
  /// From begin_pool() to end_pool() blocks come from a pool of their own, and return to it whenever they are released: nobody else gets them before
  /// drop_pool(). For recorded work, which uses the same addresses each time it runs. One pool is open at a time. Returns its number.
  int64_t begin_pool();
  void end_pool();
  void drop_pool(int64_t pool) noexcept;
  /// Puts another source of memory in place; the cache is trimmed first. For tests. Returns the previous one.
  std::unique_ptr<RawMemory> exchange_raw(std::unique_ptr<RawMemory> raw);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The allocator of host memory.
CachingAllocator& host_allocator();

}  // namespace detent
