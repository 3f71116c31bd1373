#include "detent/core/allocator.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "detent/core/error.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace detent {
namespace {

struct HostMemory final : RawMemory {
  static constexpr size_t kHugePage = size_t{2} << 20;
  void* acquire(size_t bytes) override {
    const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
    void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#ifdef __linux__
    // First touches of large blocks fault once per 2 MB instead of once per 4 KB; a refusal costs nothing.
    if (p && alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
  }
  void release(void* p, size_t) override { std::free(p); }
};

}  // namespace

struct CachingAllocator::Impl {
  std::mutex mutex;
  std::unique_ptr<RawMemory> raw;
  size_t granularity;
  std::unordered_map<size_t, std::vector<void*>> free_blocks;
  AllocStats stats;

  size_t rounded(size_t bytes) const { return std::max<size_t>(1, (bytes + granularity - 1) / granularity) * granularity; }

  void trim_locked() {
    for (auto& [size, blocks] : free_blocks) {
      for (void* p : blocks) raw->release(p, size);
      stats.cached_bytes -= static_cast<int64_t>(size * blocks.size());
      blocks.clear();
    }
  }
};

CachingAllocator::CachingAllocator(std::unique_ptr<RawMemory> raw, size_t granularity) : impl_(std::make_unique<Impl>()) {
  impl_->raw = std::move(raw);
  impl_->granularity = granularity;
}

CachingAllocator::~CachingAllocator() { trim(); }

void* CachingAllocator::allocate(size_t bytes) {
  DETENT_CHECK(bytes <= (size_t{1} << 46), "allocate: ", bytes, " bytes asked for one tensor; is a shape wrong?");
  Impl& m = *impl_;
  std::lock_guard lock(m.mutex);
  const size_t size = m.rounded(bytes);
  void* p = nullptr;
  auto& blocks = m.free_blocks[size];
  // Room for the block's return is made now: release() must not fail.
  if (blocks.capacity() < blocks.size() + 1) blocks.reserve(std::max<size_t>(8, 2 * blocks.size()));
  if (!blocks.empty()) {
    p = blocks.back();
    blocks.pop_back();
    m.stats.cached_bytes -= static_cast<int64_t>(size);
  } else {
    p = m.raw->acquire(size);
    if (!p) {
      m.trim_locked();
      p = m.raw->acquire(size);
    }
    DETENT_CHECK(p, "out of memory", m.raw->state(), ": ", size, " bytes asked, ", m.stats.live_bytes, " in use; use a smaller batch");
    ++m.stats.raw_allocations;
  }
  m.stats.live_bytes += static_cast<int64_t>(size);
  m.stats.peak_bytes = std::max(m.stats.peak_bytes, m.stats.live_bytes);
  return p;
}

void CachingAllocator::release(void* p, size_t bytes) noexcept {
  Impl& m = *impl_;
  std::lock_guard lock(m.mutex);
  const size_t size = m.rounded(bytes);
  m.stats.live_bytes -= static_cast<int64_t>(size);
  auto& blocks = m.free_blocks[size];
  if (blocks.size() == blocks.capacity()) {
    try {
      blocks.reserve(std::max<size_t>(8, 2 * blocks.size()));
    } catch (const std::bad_alloc&) {
      m.raw->release(p, size);
      return;
    }
  }
  blocks.push_back(p);
  m.stats.cached_bytes += static_cast<int64_t>(size);
}

void CachingAllocator::trim() noexcept {
  std::lock_guard lock(impl_->mutex);
  impl_->trim_locked();
}

AllocStats CachingAllocator::stats() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->stats;
}

void CachingAllocator::reset_peak() {
  std::lock_guard lock(impl_->mutex);
  impl_->stats.peak_bytes = impl_->stats.live_bytes;
}

std::unique_ptr<RawMemory> CachingAllocator::exchange_raw(std::unique_ptr<RawMemory> raw) {
  std::lock_guard lock(impl_->mutex);
  impl_->trim_locked();
  std::swap(impl_->raw, raw);
  return raw;
}

CachingAllocator& host_allocator() {
  // Never destroyed: tensors of static lifetime may outlive any order of destruction.
  static CachingAllocator& allocator = *new CachingAllocator(std::make_unique<HostMemory>());
  return allocator;
}

}  // namespace detent
