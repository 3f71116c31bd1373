#include "detent/core/allocator.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "detent/core/error.h"
#include "detent/core/host_memory.h"
#include "detent/core/out_of_memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace detent {
namespace {

struct HostMemory final : RawMemory {
  static constexpr size_t kHugePage = size_t{2} << 20, kLarge = size_t{64} << 20;
  void* acquire(size_t bytes) override {
    // The system promises more than it has and ends the process that takes it at its word: large blocks are asked for only while they are there.
    if (const int64_t left = bytes >= kLarge ? available_host_memory() : -1; left >= 0 && bytes > static_cast<size_t>(left)) return nullptr;
    const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
    void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#ifdef __linux__
    // First touches of large blocks fault once per 2 MB instead of once per 4 KB; a refusal costs nothing.
    if (p && alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
  }
  void release(void* p, size_t) override { std::free(p); }
  std::string state() override {
    const int64_t left = available_host_memory();
    return left < 0 ? std::string() : text(" on the cpu, where ", left, " bytes are available");
  }
};

using FreeBlocks = std::unordered_map<size_t, std::vector<void*>>;

// Room for a block's return is made when it is handed out: release() must not fail.
void make_room(std::vector<void*>& blocks) {
  if (blocks.capacity() < blocks.size() + 1) blocks.reserve(std::max<size_t>(8, 2 * blocks.size()));
}

}  // namespace

struct CachingAllocator::Impl {
  std::mutex mutex;
  std::unique_ptr<RawMemory> raw;
  size_t granularity;
  FreeBlocks free_blocks;
  AllocStats stats;
  std::unordered_map<int64_t, FreeBlocks> pools;
  std::unordered_map<void*, int64_t> pool_of;  // blocks that belong to a pool, handed out or not
  int64_t open_pool = 0, last_pool = 0;        // 0: none

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

CachingAllocator::~CachingAllocator() {
  while (!impl_->pools.empty()) drop_pool(impl_->pools.begin()->first);
  trim();
}

void* CachingAllocator::allocate(size_t bytes) {
  DETENT_CHECK(bytes <= (size_t{1} << 46), "allocate: ", bytes, " bytes asked for one tensor; is a shape wrong?");
  Impl& m = *impl_;
  std::lock_guard lock(m.mutex);
  const size_t size = m.rounded(bytes);
  void* p = nullptr;
  auto& blocks = (m.open_pool ? m.pools.at(m.open_pool) : m.free_blocks)[size];
  make_room(blocks);
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
    if (!p) throw OutOfMemory(text("out of memory", m.raw->state(), ": ", size, " bytes asked, ", m.stats.live_bytes, " in use; use a smaller batch"));
    ++m.stats.raw_allocations;
    if (m.open_pool) {
      make_room(m.free_blocks[size]);  // where it goes when the pool is dropped
      m.pool_of.emplace(p, m.open_pool);
    }
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
  const auto pooled = m.pool_of.find(p);
  auto& blocks = (pooled != m.pool_of.end() ? m.pools.at(pooled->second) : m.free_blocks)[size];
  if (blocks.size() == blocks.capacity()) {
    try {
      make_room(blocks);
    } catch (const std::bad_alloc&) {
      if (pooled != m.pool_of.end()) m.pool_of.erase(pooled);
      m.raw->release(p, size);
      return;
    }
  }
  blocks.push_back(p);
  m.stats.cached_bytes += static_cast<int64_t>(size);
}

int64_t CachingAllocator::begin_pool() {
  Impl& m = *impl_;
  std::lock_guard lock(m.mutex);
  DETENT_CHECK(!m.open_pool, "allocator: pool ", m.open_pool, " is still open; two recordings at once on one device are not possible");
  m.pools[m.last_pool + 1];
  return m.open_pool = ++m.last_pool;
}

void CachingAllocator::end_pool() {
  std::lock_guard lock(impl_->mutex);
  impl_->open_pool = 0;
}

void CachingAllocator::drop_pool(int64_t pool) noexcept {
  Impl& m = *impl_;
  std::lock_guard lock(m.mutex);
  const auto found = m.pools.find(pool);
  if (found == m.pools.end()) return;
  if (m.open_pool == pool) m.open_pool = 0;
  // Blocks still in use become ordinary ones; the rest goes back to its source.
  std::erase_if(m.pool_of, [&](const auto& entry) { return entry.second == pool; });
  for (auto& [size, blocks] : found->second) {
    for (void* p : blocks) m.raw->release(p, size);
    m.stats.cached_bytes -= static_cast<int64_t>(size * blocks.size());
  }
  m.pools.erase(found);
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
