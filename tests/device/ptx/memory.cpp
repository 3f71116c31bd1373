// Loads, stores, atomic additions, and copies to shared memory that arrive when they are waited for.
#include <algorithm>
#include <set>
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

// Addresses without a space, in a thread's local memory.
constexpr uint64_t kLocalWindow = uint64_t{0x7F} << 56;

Who who(const Warp& w, int lane, uint32_t first_tag) { return {w.block->tag, first_tag, static_cast<uint16_t>(w.first_thread + static_cast<uint32_t>(lane)), w.block->epoch}; }

std::string text_of(const Conflict& c, Use use) {
  const char* const what[] = {"read", "write", "atomic addition", "copy"};
  const std::string mine = what[static_cast<int>(use)];
  if (c.what == Conflict::never_written) return "read of shared memory that nobody wrote";
  std::string other = c.other.epoch == kManyBlocks ? "other blocks" : c.other.thread == kManyThreads ? "other threads" : "";
  if (other.empty()) other = "thread " + std::to_string(c.other.thread) + " of block tag " + std::to_string(c.other.tag) + " after " + std::to_string(c.other.epoch) + " barriers";
  if (c.what == Conflict::with_copy) return mine + " where a copy of " + other + " has not been waited for";
  return "race: " + mine + " where " + other + (c.what == Conflict::with_read ? " read" : c.what == Conflict::with_write ? " wrote" : " added") + ", with nothing between";
}

void aligned(const Warp& w, const Instruction& i, int lane, uint64_t address, size_t bytes) {
  if (address & (bytes - 1)) fault(w, i, lane, "an address that is not aligned to " + std::to_string(bytes) + " bytes");
}

}  // namespace

std::byte* Machine::global(Warp& w, const Instruction& i, int lane, uint64_t address, size_t bytes, Use use) {
  aligned(w, i, lane, address, bytes);
  if (address < w.known.begin || address + bytes > w.known.end) {
    w.known = find_(address);
    if (address < w.known.begin || address + bytes > w.known.end) {
      fault(w, i, lane,
            w.known.end == 0
                ? "an address outside of the device's memory"
                : "an address " + std::to_string(address + bytes - w.known.end) + " bytes beyond a block of " + std::to_string(w.known.end - w.known.begin) + " bytes");
    }
  }
  if (const Conflict c = global_.use(address, bytes, who(w, lane, first_tag_), use); c.what != Conflict::none) fault(w, i, lane, "global memory: " + text_of(c, use));
  return reinterpret_cast<std::byte*>(address);
}

std::byte* Machine::shared(Warp& w, const Instruction& i, int lane, uint64_t address, size_t bytes, Use use) {
  aligned(w, i, lane, address, bytes);
  std::vector<std::byte>& all = w.block->shared;
  if (address + bytes > all.size() || address + bytes < address) {
    fault(w, i, lane, "byte " + std::to_string(address) + " of " + std::to_string(all.size()) + " bytes of shared memory");
  }
  if (const Conflict c = shared_shadow_.use(address, bytes, who(w, lane, first_tag_), use); c.what != Conflict::none) {
    fault(w, i, lane, "shared memory at " + std::to_string(address) + ": " + text_of(c, use));
  }
  return all.data() + address;
}

void Machine::arrive(Warp& w, const Instruction& i, int lane, const Copy& copy) {
  std::byte* const to = w.block->shared.data() + copy.to;
  if (copy.present > 0) std::memcpy(to, global(w, i, lane, copy.from, copy.size, Use::read), copy.present);
  std::fill(to + copy.present, to + copy.size, std::byte{0});
  shared_shadow_.arrive(copy.to, copy.size, who(w, lane, first_tag_));
}

namespace {

// ---- what a profile counts -------------------------------------------------------------------------------------------------------------------------------

// 4 bytes a lane: a pass serves all banks once. 8 and 16 bytes: half and a quarter of the warp at a time.
void count_shared(Warp& w, const Instruction& i, size_t operand, size_t bytes, uint32_t mask) {
  Counts& counts = w.block->machine->counts();
  const int at_a_time = bytes <= 4 ? kLanes : bytes == 8 ? kLanes / 2 : kLanes / 4;
  for (int from = 0; from < kLanes; from += at_a_time) {
    std::set<uint64_t> words[32];
    size_t passes = 0;
    for (int l = from; l < from + at_a_time; ++l) {
      if (!(mask >> l & 1)) continue;
      const uint64_t first = w.address(i, operand, l, i.offset) / 4;
      for (uint64_t k = first; k < first + std::max<size_t>(bytes / 4, 1); ++k) words[k % 32].insert(k);
    }
    for (const std::set<uint64_t>& bank : words) passes = std::max(passes, bank.size());
    counts.shared_passes += static_cast<int64_t>(passes);
    counts.shared_least += passes > 0;
  }
}

void count_global(Warp& w, const Instruction& i, size_t operand, int64_t offset, size_t bytes, uint32_t mask) {
  Counts& counts = w.block->machine->counts();
  std::set<uint64_t> sectors;
  each(mask, [&](int l) {
    const uint64_t a = w.address(i, operand, l, offset);
    for (uint64_t s = a / 32; s <= (a + bytes - 1) / 32; ++s) sectors.insert(s);
  });
  counts.sectors += static_cast<int64_t>(sectors.size());
  counts.sector_bytes += static_cast<int64_t>(bytes) * __builtin_popcount(mask);
}

// ---- spaces ------------------------------------------------------------------------------------------------------------------------------------------------

struct Global {
  static std::byte* at(Warp& w, const Instruction& i, int lane, uint64_t a, size_t bytes, Use use) { return w.block->machine->global(w, i, lane, a, bytes, use); }
  static void count(Warp& w, const Instruction& i, size_t operand, size_t bytes, uint32_t mask) { count_global(w, i, operand, i.offset, bytes, mask); }
};

struct Shared {
  static std::byte* at(Warp& w, const Instruction& i, int lane, uint64_t a, size_t bytes, Use use) { return w.block->machine->shared(w, i, lane, a, bytes, use); }
  static void count(Warp& w, const Instruction& i, size_t operand, size_t bytes, uint32_t mask) { count_shared(w, i, operand, bytes, mask); }
};

struct Uncounted {
  static void count(Warp&, const Instruction&, size_t, size_t, uint32_t) {}
};

struct Local : Uncounted {
  static std::byte* at(Warp& w, const Instruction& i, int lane, uint64_t a, size_t bytes, Use) {
    aligned(w, i, lane, a, bytes);
    std::vector<std::byte>& all = w.local[static_cast<size_t>(lane)];
    if (a + bytes > all.size() || a + bytes < a) fault(w, i, lane, "outside of the thread's own memory");
    return all.data() + a;
  }
};

struct Generic : Uncounted {
  static std::byte* at(Warp& w, const Instruction& i, int lane, uint64_t a, size_t bytes, Use use) {
    return a >= kLocalWindow ? Local::at(w, i, lane, a - kLocalWindow, bytes, use) : Global::at(w, i, lane, a, bytes, use);
  }
};

struct Parameters : Uncounted {
  static std::byte* at(Warp& w, const Instruction& i, int lane, uint64_t a, size_t bytes, Use) {
    const std::vector<std::byte>& all = w.block->launch->parameters;
    if (a + bytes > all.size() || a + bytes < a) fault(w, i, lane, "beyond the kernel's parameters");
    return const_cast<std::byte*>(all.data()) + a;
  }
};

// ---- instructions --------------------------------------------------------------------------------------------------------------------------------------------

template <class Space, class T>
void load(Warp& w, const Instruction& i, uint32_t mask) {
  const size_t n = i.operands - 1u;
  if (w.block->machine->profile) Space::count(w, i, n, n * sizeof(T), mask);
  if (std::is_same_v<Space, Parameters> && n == 1 && i.width[0] == sizeof(T) && i.constant_address) {
    T v;
    std::memcpy(&v, Space::at(w, i, 0, w.address(i, 1, 0, i.offset), sizeof(T), Use::read), sizeof v);
    T* const d = w.at<T>(i.row[0]);
    each(mask, [&](int l) { d[l] = v; });
    return;
  }
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    const std::byte* const from = Space::at(w, i, l, w.address(i, n, l, i.offset), n * sizeof(T), Use::read);
    for (size_t k = 0; k < n; ++k) {
      T v;
      std::memcpy(&v, from + k * sizeof v, sizeof v);
      w.put(i, k, l, v);
    }
  }
}

template <class Space, class T>
void store(Warp& w, const Instruction& i, uint32_t mask) {
  const size_t n = i.operands - 1u;
  if (w.block->machine->profile) Space::count(w, i, 0, n * sizeof(T), mask);
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    std::byte* const to = Space::at(w, i, l, w.address(i, 0, l, i.offset), n * sizeof(T), Use::write);
    for (size_t k = 0; k < n; ++k) {
      const T v = w.get<T>(i, k + 1, l);
      std::memcpy(to + k * sizeof v, &v, sizeof v);
    }
  }
}

template <class Space, class T>
void atomic_add(Warp& w, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    std::byte* const at = Space::at(w, i, l, w.address(i, 1, l, i.offset), sizeof(T), Use::atomic);
    T old;
    std::memcpy(&old, at, sizeof old);
    const T sum = static_cast<T>(old + w.get<T>(i, 2, l));
    std::memcpy(at, &sum, sizeof sum);
    w.put(i, 0, l, old);
  }
}

// Four matrices of 8 rows by 16 bytes: lane 8 m + r has the address of row r of matrix m, and lane l receives word l % 4 of row l / 4 of each; transposed, of each
// matrix of 8 by 8 halves, the halves of rows 2 (l % 4) and 2 (l % 4) + 1 in column l / 4.
template <bool Transposed>
void load_matrices(Warp& w, const Instruction& i, uint32_t mask) {
  if (mask != ~0u) fault(w, i, 0, "a load of matrices without all lanes of the warp");
  if (w.block->machine->profile) count_shared(w, i, 4, 16, mask);
  uint32_t words[4][8][4];
  for (int l = 0; l < kLanes; ++l) std::memcpy(words[l / 8][l % 8], w.block->machine->shared(w, i, l, w.address(i, 4, l, i.offset), 16, Use::read), 16);
  for (int l = 0; l < kLanes; ++l) {
    for (size_t m = 0; m < 4; ++m) {
      uint32_t word = words[m][l / 4][l % 4];
      if (Transposed) {
        const auto half = [&](int row) { return words[m][row][l / 8] >> l / 4 % 2 * 16 & 0xFFFFu; };
        word = half(l % 4 * 2) | half(l % 4 * 2 + 1) << 16;
      }
      w.put(i, m, l, word);
    }
  }
}

void start_copy(Warp& w, const Instruction& i, uint32_t mask) {
  if (w.block->machine->profile) count_global(w, i, 1, i.second_offset, w.get<uint32_t>(i, 2, 0), mask);
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    const Copy copy = {static_cast<uint32_t>(w.address(i, 0, l, i.offset)), w.address(i, 1, l, i.second_offset), w.get<uint32_t>(i, 2, l), w.get<uint32_t>(i, 3, l)};
    if (copy.present > copy.size) fault(w, i, l, "a copy of more bytes than its size");
    std::byte* const to = w.block->machine->shared(w, i, l, copy.to, copy.size, Use::copy);
    std::fill(to, to + copy.size, std::byte{0xFF});
    w.block->machine->global(w, i, l, copy.from, copy.size, Use::read);  // an address of the tensor even where nothing is read
    w.copies[static_cast<size_t>(l)].push_back(copy);
  }
}

void commit_copies(Warp& w, const Instruction&, uint32_t mask) {
  each(mask, [&](int l) { w.groups[static_cast<size_t>(l)].push_back(w.copies[static_cast<size_t>(l)].size()); });
}

void wait_for_copies(Warp& w, const Instruction& i, uint32_t mask) {
  const auto left = static_cast<size_t>(w.get<uint32_t>(i, 0, 0));
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    std::vector<Copy>& copies = w.copies[static_cast<size_t>(l)];
    std::vector<size_t>& groups = w.groups[static_cast<size_t>(l)];
    if (groups.size() <= left) continue;
    const size_t arriving = groups.size() - left, count = groups[arriving - 1];
    for (size_t n = 0; n < count; ++n) w.block->machine->arrive(w, i, l, copies[n]);
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(count));
    groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(arriving));
    for (size_t& g : groups) g -= count;
  }
}

// From an address of a space to one without, and back. Only local memory has addresses of its own there.
struct FromLocal {
  static uint64_t of(uint64_t a) { return a + kLocalWindow; }
};
struct Same {
  static uint64_t of(uint64_t a) { return a; }
};

template <class Space>
Form load_of(const std::string& type, Kind kind) {
  const char* const operands = ".*.";
  if (type == "u8" || type == "b8") return {load<Space, uint8_t>, operands, kind};
  if (type == "s8") return {load<Space, int8_t>, operands, kind};
  if (type == "u16" || type == "b16") return {load<Space, uint16_t>, operands, kind};
  if (type == "s16") return {load<Space, int16_t>, operands, kind};
  if (type == "u32" || type == "b32" || type == "f32") return {load<Space, uint32_t>, operands, kind};
  if (type == "s32") return {load<Space, int32_t>, operands, kind};
  if (type == "u64" || type == "b64" || type == "s64" || type == "f64") return {load<Space, uint64_t>, operands, kind};
  return {};
}

template <class Space>
Form store_of(const std::string& type, Kind kind) {
  const char* const operands = "..*";
  if (type == "u8" || type == "b8" || type == "s8") return {store<Space, uint8_t>, operands, kind};
  if (type == "u16" || type == "b16" || type == "s16") return {store<Space, uint16_t>, operands, kind};
  if (type == "u32" || type == "b32" || type == "s32" || type == "f32") return {store<Space, uint32_t>, operands, kind};
  if (type == "u64" || type == "b64" || type == "s64" || type == "f64") return {store<Space, uint64_t>, operands, kind};
  return {};
}

}  // namespace

Form memory_form(const std::string& name) {
  static const Forms others = {
      {"cp.async.cg.shared.global", {start_copy, "....", Kind::global}},
      {"cp.async.ca.shared.global", {start_copy, "....", Kind::global}},
      {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", {load_matrices<false>, "wwww.", Kind::shared}},
      {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", {load_matrices<true>, "wwww.", Kind::shared}},
      {"cp.async.commit_group", {commit_copies, "", Kind::other}},
      {"cp.async.wait_group", {wait_for_copies, ".", Kind::other}},
      {"atom.global.add.u32", {atomic_add<Global, uint32_t>, "w.w", Kind::global}},
      {"atom.global.add.u64", {atomic_add<Global, uint64_t>, "d.d", Kind::global}},
      {"atom.shared.add.u32", {atomic_add<Shared, uint32_t>, "w.w", Kind::shared}},
      {"cvta.to.global.u64", {unary<uint64_t, Same>, "dd", Kind::integer}},
      {"cvta.local.u64", {unary<uint64_t, FromLocal>, "dd", Kind::integer}},
  };
  if (const auto found = others.find(name); found != others.end()) return found->second;
  const bool is_load = name.rfind("ld.", 0) == 0, is_store = name.rfind("st.", 0) == 0;
  if (!is_load && !is_store) return {};
  const std::string type = name.substr(name.rfind('.') + 1);
  std::string space = name.substr(3, name.rfind('.') < 3 ? 0 : name.rfind('.') - 3);
  if (const size_t vector = space.find("v"); vector != std::string::npos && space.size() - vector == 2) space = space.substr(0, vector == 0 ? 0 : vector - 1);
  if (space == "global") return is_load ? load_of<Global>(type, Kind::global) : store_of<Global>(type, Kind::global);
  if (space == "shared") return is_load ? load_of<Shared>(type, Kind::shared) : store_of<Shared>(type, Kind::shared);
  if (space == "local") return is_load ? load_of<Local>(type, Kind::global) : store_of<Local>(type, Kind::global);
  if (space == "param" && is_load) return load_of<Parameters>(type, Kind::other);
  if (space.empty()) return is_load ? load_of<Generic>(type, Kind::global) : store_of<Generic>(type, Kind::global);
  return {};
}

}  // namespace ptx
