// A GPU for kernels read from PTX: blocks of warps, shared memory, barriers, copies that arrive later. As strict as the ISA allows: a Fault ends the launch when threads
// meet in memory without a barrier between them, when a copy is read before it was waited for, when a warp is not whole where it must be, and when an address is not
// the kernel's or not aligned. Blocks and warps take turns in an order that changes, copies arrive as late as they may, and memory begins as NaNs.
#pragma once

#include <cstring>

#include "program.h"
#include "shadow.h"

namespace ptx {

struct Range {
  uint64_t begin = 0, end = 0;
};

/// The device's memory: where the block that holds an address begins and ends; nothing when there is none.
using FindMemory = Range (*)(uint64_t address);

struct Launch {
  uint32_t blocks = 1, threads = 1;
  size_t dynamic_shared = 0;
  std::vector<std::byte> parameters;
};

/// What kernels of one name did, per warp.
struct Counts {
  int64_t launches = 0, blocks = 0;
  std::array<int64_t, static_cast<size_t>(Kind::kinds)> instructions = {};
  int64_t shared_passes = 0, shared_least = 0;  // passes over the banks, and how many there would be without conflicts
  std::vector<int64_t> times;                    // by instruction
  int64_t sectors = 0, sector_bytes = 0;        // 32-byte sectors of global memory, and the bytes wanted of them
};

struct Block;

/// A copy that is on its way to shared memory.
struct Copy {
  uint32_t to = 0;
  uint64_t from = 0;
  uint32_t size = 0, present = 0;  // bytes, and how many of them are read; zeros behind
};

struct Lanes {
  uint32_t pc = 0, mask = 0;
  bool waiting = false;  // for the others, where the warp must be whole
};

struct Warp {
  Block* block = nullptr;
  uint32_t first_thread = 0;
  std::vector<std::byte> registers;
  uint32_t all = 0;          // lanes that there are
  std::vector<Lanes> lanes;  // those that are at the same place, the lowest place last
  bool at_barrier = false;
  std::array<std::vector<Copy>, kLanes> copies;    // not committed yet, or on their way
  std::array<std::vector<size_t>, kLanes> groups;  // where committed groups end
  std::array<std::vector<std::byte>, kLanes> local;
  Range known = {};  // the block of global memory that was found last

  template <class T>
  T* at(uint32_t row) {
    return reinterpret_cast<T*>(registers.data() + row);
  }
  /// A lane's value of a row whose lanes have `width` bytes: its low bytes.
  template <class T>
  T get(const Instruction& i, size_t operand, int lane) const {
    T v;
    std::memcpy(&v, registers.data() + i.row[operand] + static_cast<size_t>(lane) * i.width[operand], sizeof v);
    return v;
  }
  /// The value in the low bytes of a lane, zeros (or the sign) above.
  template <class T>
  void put(const Instruction& i, size_t operand, int lane, T v) {
    std::byte* const to = registers.data() + i.row[operand] + static_cast<size_t>(lane) * i.width[operand];
    const auto wide = static_cast<uint64_t>(static_cast<int64_t>(v));
    switch (i.width[operand]) {
      case 8:
        std::memcpy(to, &wide, 8);
        break;
      case 4:
        std::memcpy(to, &wide, 4);
        break;
      case 2:
        std::memcpy(to, &wide, 2);
        break;
      default:
        std::memcpy(to, &wide, 1);
    }
  }
  /// All bits of a lane.
  uint64_t bits(const Instruction& i, size_t operand, int lane) const {
    switch (i.width[operand]) {
      case 8:
        return get<uint64_t>(i, operand, lane);
      case 4:
        return get<uint32_t>(i, operand, lane);
      case 2:
        return get<uint16_t>(i, operand, lane);
      default:
        return get<uint8_t>(i, operand, lane);
    }
  }
  uint64_t address(const Instruction& i, size_t operand, int lane, int64_t offset) const { return bits(i, operand, lane) + static_cast<uint64_t>(offset); }
};

class Machine;

struct Block {
  Machine* machine = nullptr;
  const Kernel* kernel = nullptr;
  const Launch* launch = nullptr;
  uint32_t index = 0, tag = 0;
  uint16_t epoch = 0;  // barriers passed
  std::vector<std::byte> shared;
  std::vector<Warp> warps;
  int64_t steps = 0;
};

class Machine {
 public:
  explicit Machine(FindMemory find) : find_(find) {}
  /// Runs all blocks. Throws Fault.
  void run(const Kernel& kernel, const Launch& launch);

  // For instructions: where the bytes are in the host's memory. They look whether that is allowed, and note it.
  std::byte* global(Warp& w, const Instruction& i, int lane, uint64_t address, size_t bytes, Use use);
  std::byte* shared(Warp& w, const Instruction& i, int lane, uint64_t address, size_t bytes, Use use);
  /// A copy arrives.
  void arrive(Warp& w, const Instruction& i, int lane, const Copy& copy);
  Counts& counts() { return *counts_; }
  bool profile = false;
  const std::map<std::string, Counts>& all_counts() const { return all_counts_; }

 private:
  void prepare(Block& block, const Kernel& kernel, const Launch& launch);
  void run_block(Block& block);
  void run_warp(Warp& w);
  void run_lanes(Warp& w, Lanes& now);

  FindMemory find_;
  std::map<std::string, Counts> all_counts_;
  Counts* counts_ = nullptr;
  GlobalShadow global_;
  SharedShadow shared_shadow_;
  uint32_t next_tag_ = 1, first_tag_ = 1;
  uint32_t turn_ = 0;
};

/// Throws Fault: what, the kernel, the instruction, where it comes from, block and thread.
[[noreturn]] void fault(const Warp& w, const Instruction& i, int lane, const std::string& what);

/// Calls f(lane) for the lanes of the mask.
template <class F>
void each(uint32_t mask, F&& f) {
  if (mask == ~0u) {
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (int l = 0; l < kLanes; ++l) f(l);
  } else {
    for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
  }
}

}  // namespace ptx
