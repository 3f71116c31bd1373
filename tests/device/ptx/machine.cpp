#include "machine.h"

#include <algorithm>

namespace ptx {
namespace {

constexpr int64_t kMostSteps = int64_t{1} << 32;  // instructions of a block: more is a loop without end
constexpr uint16_t kMostBarriers = 60'000;

std::string text_of(const Kernel& k, const Instruction& i) {
  std::string s = k.lines[static_cast<size_t>(i.line - 1)];
  if (i.source >= 0) s += " (" + k.sources[static_cast<size_t>(i.source)] + ")";
  return s;
}

// Lanes that take part: those of the mask whose guard says so.
uint32_t guarded(Warp& w, const Instruction& i, uint32_t mask) {
  if (!i.guarded) return mask;
  const uint8_t* const p = w.at<uint8_t>(i.guard);
  uint32_t yes = 0;
  for (int l = 0; l < kLanes; ++l) yes |= static_cast<uint32_t>(p[l] != 0) << l;
  return mask & (i.guard_negated ? ~yes : yes);
}

// Puts lanes back among the others: sorted, the lowest place last; those at the same place go on together.
void put_lanes(std::vector<Lanes>& all, Lanes l) {
  if (l.mask == 0) return;
  auto at = all.end();
  while (at != all.begin() && std::prev(at)->pc < l.pc) --at;
  if (at != all.begin() && std::prev(at)->pc == l.pc) {
    std::prev(at)->mask |= l.mask;
    std::prev(at)->waiting = false;
  } else {
    all.insert(at, l);
  }
}

template <class T>
void fill_row(Warp& w, uint32_t row, T value) {
  if (row) std::fill_n(w.at<T>(row), kLanes, value);
}

}  // namespace

void fault(const Warp& w, const Instruction& i, int lane, const std::string& what) {
  const Block& b = *w.block;
  throw Fault(what + ": " + text_of(*b.kernel, i) + ", block " + std::to_string(b.index) + " of " + std::to_string(b.launch->blocks) + ", thread " +
              std::to_string(w.first_thread + static_cast<uint32_t>(std::max(lane, 0))) + ", after " + std::to_string(b.epoch) + " barriers, kernel " + b.kernel->name);
}

// ---- running -------------------------------------------------------------------------------------------------------------------------------------------

void Machine::run(const Kernel& kernel, const Launch& launch) {
  if (launch.threads > kernel.threads_at_most)
    throw Fault("kernel " + kernel.name + " is launched with " + std::to_string(launch.threads) + " threads a block, more than it is compiled for");
  if (launch.parameters.size() != kernel.parameter_bytes) throw Fault("kernel " + kernel.name + " is given other parameters than it has");
  counts_ = &all_counts_[kernel.name];
  ++counts_->launches;
  counts_->blocks += launch.blocks;
  counts_->times.resize(kernel.code.size());
  global_.begin(kernel.small_global);
  first_tag_ = next_tag_;
  Block block;
  prepare(block, kernel, launch);
  const bool backwards = counts_->launches % 2 == 0;
  for (uint32_t n = 0; n < launch.blocks; ++n) {
    block.index = backwards ? launch.blocks - 1 - n : n;
    run_block(block);
  }
}

void Machine::prepare(Block& block, const Kernel& kernel, const Launch& launch) {
  block.machine = this;
  block.kernel = &kernel;
  block.launch = &launch;
  block.shared.resize((kernel.shared_bytes + 15) / 16 * 16 + launch.dynamic_shared);
  shared_shadow_.begin(block.shared.size(), kernel.small_shared);
  block.warps.resize((launch.threads + kLanes - 1) / kLanes);
  for (size_t n = 0; n < block.warps.size(); ++n) {
    Warp& w = block.warps[n];
    w.block = &block;
    w.first_thread = static_cast<uint32_t>(n) * kLanes;
    w.registers = kernel.registers;
    fill_row(w, kernel.threads_row, launch.threads);
    fill_row(w, kernel.blocks_row, launch.blocks);
    for (uint32_t l = 0; kernel.thread_row && l < kLanes; ++l) w.at<uint32_t>(kernel.thread_row)[l] = w.first_thread + l;
    for (std::vector<std::byte>& local : w.local) local.resize(kernel.local_bytes);
  }
}

void Machine::run_block(Block& block) {
  block.tag = next_tag_++;
  block.epoch = 0;
  block.steps = 0;
  std::fill(block.shared.begin(), block.shared.end(), std::byte{0xFF});
  for (Warp& w : block.warps) {
    const uint32_t live = block.launch->threads - w.first_thread;
    w.all = live >= kLanes ? ~0u : (1u << live) - 1;
    w.lanes.assign(1, {0, w.all, false});
    w.at_barrier = false;
    for (int l = 0; l < kLanes; ++l) w.copies[l].clear(), w.groups[l].clear();
    fill_row(w, block.kernel->block_row, block.index);
    for (std::vector<std::byte>& local : w.local) std::fill(local.begin(), local.end(), std::byte{0xFF});
  }
  for (bool waiting = true; waiting;) {
    ++turn_;
    for (size_t n = 0; n < block.warps.size(); ++n) run_warp(block.warps[turn_ % 2 ? n : block.warps.size() - 1 - n]);
    waiting = false;
    for (Warp& w : block.warps) {
      waiting |= w.at_barrier;
      w.at_barrier = false;
    }
    if (waiting && ++block.epoch > kMostBarriers) throw Fault("kernel " + block.kernel->name + ": more barriers than this machine counts");
  }
}

// The lanes at the lowest place go first, so that those that went another way are caught up with; where the warp must be whole, the others go first.
void Machine::run_warp(Warp& w) {
  for (;;) {
    const auto next = std::find_if(w.lanes.rbegin(), w.lanes.rend(), [](const Lanes& l) { return !l.waiting; });
    if (next == w.lanes.rend()) break;
    Lanes now = *next;
    w.lanes.erase(std::next(next).base());
    run_lanes(w, now);
    put_lanes(w.lanes, now);
    if (w.at_barrier) return;
  }
  if (w.lanes.empty()) return;
  const Lanes& stuck = w.lanes.back();
  fault(w, w.block->kernel->code[stuck.pc], __builtin_ctz(stuck.mask), "not all threads of the warp come here");
}

// Until others are met, the ways part, or the warp is at a barrier.
void Machine::run_lanes(Warp& w, Lanes& now) {
  const std::vector<Instruction>& code = w.block->kernel->code;
  uint32_t until = ~0u;
  for (const Lanes& l : w.lanes) until = l.pc > now.pc ? std::min(until, l.pc) : until;
  while (now.pc < until) {
    const Instruction& i = code[now.pc];
    if (++w.block->steps > kMostSteps) fault(w, i, 0, "a loop without end");
    if ((i.control == Control::barrier || i.whole_warp) && now.mask != w.all) {
      now.waiting = true;
      return;
    }
    const uint32_t mask = guarded(w, i, now.mask);
    if (mask) ++counts_->instructions[static_cast<size_t>(i.kind)];
    if (profile && mask) ++counts_->times[now.pc];
    switch (i.control) {
      case Control::next:
        if (mask) i.run(w, i, mask);
        ++now.pc;
        break;
      case Control::barrier:
        if (mask != now.mask) fault(w, i, 0, "not all threads of the warp come here");
        ++now.pc;
        w.at_barrier = true;
        return;
      case Control::exit:
        now.mask &= ~mask;
        ++now.pc;
        if (now.mask == 0) return;
        break;
      case Control::branch:
        if (mask != now.mask) {
          put_lanes(w.lanes, {static_cast<uint32_t>(i.target), mask, false});
          now.mask &= ~mask;
          ++now.pc;
          if (mask) return;
        } else {
          now.pc = static_cast<uint32_t>(i.target);
          if (!w.lanes.empty()) return;
        }
    }
  }
}

}  // namespace ptx
