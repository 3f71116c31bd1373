// nvcc gives each value a register of its own, thousands in a kernel: here those that do not live at the same time share a row, so that a warp's registers stay in the
// processor's cache. A lane's values are its own wherever the other lanes are: what counts is where a register lives on the ways that one lane can go.
#include <algorithm>
#include <set>

#include "program.h"

namespace ptx {
namespace {

// A register, by its row; where it lives, from the first to the last instruction.
struct Life {
  uint32_t row = 0;
  size_t width = 0;
  int32_t first = -1, last = -1;
  void include(int32_t at) {
    if (first < 0 || at < first) first = at;
    last = std::max(last, at);
  }
};

// Instructions [begin, end) that are carried out one after the other.
struct Stretch {
  int32_t begin = 0, end = 0;
  std::vector<size_t> next;
  std::vector<bool> read, written, alive_at_begin, alive_at_end;  // read: before it is written
};

// f(row, whether it is written for all lanes). What is read comes first.
template <class F>
void for_rows(Instruction& i, F&& f) {
  if (i.guarded) f(i.guard, false);
  for (size_t n = i.results; n < i.operands; ++n) f(i.row[n], false);
  for (size_t n = 0; n < i.results; ++n) f(i.row[n], !i.guarded);
}

std::vector<Stretch> stretches_of(const Kernel& k) {
  std::set<int32_t> begins = {0};
  for (size_t n = 0; n < k.code.size(); ++n) {
    if (k.code[n].control == Control::branch) begins.insert({k.code[n].target, static_cast<int32_t>(n) + 1});
  }
  begins.erase(static_cast<int32_t>(k.code.size()));
  std::vector<Stretch> out;
  std::map<int32_t, size_t> at;
  for (const int32_t b : begins) {
    at[b] = out.size();
    if (!out.empty()) out.back().end = b;
    out.push_back({b, static_cast<int32_t>(k.code.size()), {}, {}, {}, {}, {}});
  }
  for (size_t s = 0; s < out.size(); ++s) {
    const Instruction& last = k.code[static_cast<size_t>(out[s].end - 1)];
    if (last.control == Control::branch) out[s].next.push_back(at.at(last.target));
    const bool goes_on = last.guarded || (last.control != Control::branch && last.control != Control::exit);
    if (goes_on && s + 1 < out.size()) out[s].next.push_back(s + 1);
  }
  return out;
}

void follow(std::vector<Stretch>& stretches) {
  for (bool changed = true; changed;) {
    changed = false;
    for (auto s = stretches.rbegin(); s != stretches.rend(); ++s) {
      for (const size_t n : s->next) {
        for (size_t r = 0; r < s->read.size(); ++r) {
          if (!stretches[n].alive_at_begin[r] || s->alive_at_end[r]) continue;
          s->alive_at_end[r] = true;
          if (!s->written[r] && !s->alive_at_begin[r]) s->alive_at_begin[r] = changed = true;
        }
      }
    }
  }
}

std::vector<Life> lives_of(Kernel& k, const std::map<uint32_t, size_t>& registers) {
  std::vector<Life> lives;
  std::map<uint32_t, size_t> index;
  for (const auto& [row, width] : registers) {
    index[row] = lives.size();
    lives.push_back({row, width, -1, -1});
  }
  std::vector<Stretch> stretches = stretches_of(k);
  for (Stretch& s : stretches) {
    s.read.resize(lives.size()), s.written.resize(lives.size()), s.alive_at_end.resize(lives.size());
    for (int32_t n = s.begin; n < s.end; ++n) {
      for_rows(k.code[static_cast<size_t>(n)], [&](uint32_t row, bool written) {
        const auto found = index.find(row);
        if (found == index.end()) return;
        lives[found->second].include(n);
        if (written) {
          s.written[found->second] = true;
        } else if (!s.written[found->second]) {
          s.read[found->second] = true;
        }
      });
    }
    s.alive_at_begin = s.read;
  }
  follow(stretches);
  for (const Stretch& s : stretches) {
    for (size_t r = 0; r < lives.size(); ++r) {
      if (s.alive_at_begin[r]) lives[r].include(s.begin);
      if (s.alive_at_end[r]) lives[r].include(s.end);
    }
  }
  return lives;
}

}  // namespace

void share_rows(Kernel& k, const std::map<uint32_t, size_t>& registers) {
  std::vector<Life> lives = lives_of(k, registers);
  std::sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.first < b.first; });
  // Rows that stay what they are come first.
  std::map<uint32_t, uint32_t> moved;
  std::vector<std::byte> image(64);
  for (const auto& [row, width] : k.kept_rows) {
    moved[row] = static_cast<uint32_t>(image.size());
    image.insert(image.end(), k.registers.begin() + row, k.registers.begin() + row + static_cast<std::ptrdiff_t>(row_bytes(width)));
  }
  std::map<size_t, std::vector<uint32_t>> free;  // by width: in another, a lane's bytes are another lane's
  std::set<std::pair<int32_t, size_t>> living;   // by their ends
  for (size_t n = 0; n < lives.size(); ++n) {
    const Life& l = lives[n];
    if (l.first < 0) continue;
    for (; !living.empty() && living.begin()->first < l.first; living.erase(living.begin())) {
      const Life& ended = lives[living.begin()->second];
      free[ended.width].push_back(moved[ended.row]);
    }
    std::vector<uint32_t>& rows = free[l.width];
    if (rows.empty()) {
      rows.push_back(static_cast<uint32_t>(image.size()));
      image.resize(image.size() + row_bytes(l.width));
    }
    moved[l.row] = rows.back();
    rows.pop_back();
    living.emplace(l.last, n);
  }
  for (Instruction& i : k.code) for_rows(i, [&](uint32_t& row, bool) { row = moved.at(row); });
  for (uint32_t* const row : {&k.thread_row, &k.block_row, &k.threads_row, &k.blocks_row}) {
    if (*row) *row = moved.at(*row);
  }
  k.registers = std::move(image);
}

}  // namespace ptx
