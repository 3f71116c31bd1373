// Who touched a piece of memory last, and when: finds two threads that meet there without anything that orders them. A thread is named by its block's tag (a number
// no other block of any launch has), its number in the block and the barriers its block has passed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace ptx {

enum class Use : uint8_t { read, write, atomic, copy };  // copy: written by a copy that has not arrived yet

struct Who {
  uint32_t tag = 0, first_tag = 0;  // of the block, and of the first block of its launch
  uint16_t thread = 0, epoch = 0;
};

constexpr uint16_t kManyThreads = 0xFFFF, kManyBlocks = 0xFFFF;  // a thread, an epoch

struct Touch {
  uint32_t tag = 0;
  uint16_t thread = 0, epoch = 0;
};

struct Cell {
  Touch write, read, atomic;
  bool on_its_way = false;
};

struct Conflict {
  enum What : uint8_t { none, with_read, with_write, with_atomic, with_copy, never_written } what = none;
  Touch other = {};
};

/// Looks for a conflict and notes the use.
Conflict touch(Cell& cell, const Who& who, Use use);

/// The reads that nearly all are, and only those: what the thread may see was written in an earlier launch, before a barrier or by itself, and other reads are of
/// earlier launches or of this block. False: touch() must look.
inline bool quiet_read(Cell& cell, const Who& who) {
  if (cell.on_its_way || cell.atomic.tag >= who.first_tag) return false;
  const Touch &w = cell.write, &r = cell.read;
  const bool own = w.tag == who.tag && w.epoch != kManyBlocks && (w.epoch < who.epoch || w.thread == who.thread);
  if (!own && w.tag >= who.first_tag) return false;
  if (r.tag == who.tag && r.epoch == who.epoch) {
    if (r.thread != who.thread) cell.read.thread = kManyThreads;
    return true;
  }
  if (r.tag >= who.first_tag && (r.tag != who.tag || r.epoch == kManyBlocks)) return false;
  cell.read = {who.tag, who.thread, who.epoch};
  return true;
}

class SharedShadow {
 public:
  void begin(size_t bytes, bool small) {
    shift_ = small ? 0 : 2;
    if (cells_.size() < (bytes >> shift_) + 1) cells_.resize((bytes >> shift_) + 1);
  }
  /// Also: nothing is read that nobody wrote.
  Conflict use(uint64_t address, size_t bytes, Who who, Use use) {
    who.first_tag = who.tag;  // another block's memory was another
    for (uint64_t g = address >> shift_; g <= (address + bytes - 1) >> shift_; ++g) {
      Cell& cell = cells_[g];
      if (use == Use::read) {
        if (cell.write.tag != who.tag && cell.atomic.tag != who.tag) return {Conflict::never_written, {}};
        if (quiet_read(cell, who)) continue;
      }
      if (const Conflict c = touch(cell, who, use); c.what != Conflict::none) return c;
    }
    return {};
  }
  /// A copy has arrived, where the thread waited for it.
  void arrive(uint64_t address, size_t bytes, const Who& who) {
    for (uint64_t g = address >> shift_; g <= (address + bytes - 1) >> shift_; ++g) cells_[g].write = {who.tag, who.thread, who.epoch}, cells_[g].on_its_way = false;
  }

 private:
  int shift_ = 2;
  std::vector<Cell> cells_;
};

class GlobalShadow {
 public:
  /// Of a launch. What earlier ones did is ordered before it: when that has become much, it is forgotten.
  void begin(bool small) {
    if (words_.size() + bytes_.size() > kMostPages) words_.clear(), bytes_.clear();
    small_ = small;
    shift_ = small ? 0 : 2;
    last_page_ = ~uint64_t{0};
  }
  Conflict use(uint64_t address, size_t bytes, const Who& who, Use use) {
    for (uint64_t g = address >> shift_; g <= (address + bytes - 1) >> shift_; ++g) {
      if (g / kPage != last_page_) find_page(g / kPage);
      Cell& cell = last_[g % kPage];
      if (use == Use::read && quiet_read(cell, who)) continue;
      if (const Conflict c = touch(cell, who, use); c.what != Conflict::none) return c;
    }
    return {};
  }

 private:
  static constexpr uint64_t kPage = 1024;
  static constexpr size_t kMostPages = 8192;  // of 40 KB
  void find_page(uint64_t page);
  bool small_ = false;
  int shift_ = 2;
  std::unordered_map<uint64_t, std::unique_ptr<Cell[]>> words_, bytes_;
  uint64_t last_page_ = ~uint64_t{0};
  Cell* last_ = nullptr;
};

}  // namespace ptx
