#include "detent/tests/robust/failing_new.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string_view>

namespace detent::test {
namespace {

struct Armed {
  bool on = false;
  FailingNew::Mode mode = FailingNew::Mode::count;
  int64_t at = 0, calls = 0, failures = 0, spared = 0;
  bool looking = false;
};
thread_local Armed armed;
std::atomic<int64_t> blocks{0};

// Which functions a request comes from is asked of the dynamic symbols: the binary exports its own. Neither library is written for a refusal. nlohmann-json takes memory in its destructor, and its values are not whole when a constructor of theirs got none;
// Protocol Buffers' containers count an element before they have it.
bool in_foreign_library() {
  void* frames[32];
  armed.looking = true;
  const int n = backtrace(frames, 32);
  armed.looking = false;
  for (int i = 0; i < n; ++i) {
    Dl_info info;
    if (!dladdr(frames[i], &info) || !info.dli_sname) continue;
    const std::string_view symbol(info.dli_sname);
    for (const std::string_view library : {"N8nlohmann", "NK8nlohmann", "N6google8protobuf", "NK6google8protobuf"}) {
      if (symbol.starts_with("_Z") && symbol.substr(2).starts_with(library)) return true;
    }
  }
  return false;
}

bool fails() {
  if (!armed.on || armed.looking) return false;
  const int64_t k = armed.calls++;
  bool now = armed.mode == FailingNew::Mode::once ? k == armed.at : armed.mode == FailingNew::Mode::lasting && k >= armed.at;
  if (now && in_foreign_library()) {
    ++armed.spared;
    now = false;
  }
  armed.failures += now;
  return now;
}

void* taken(size_t bytes, size_t alignment) {
  if (fails()) return nullptr;
  void* p = alignment ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment) : std::malloc(bytes ? bytes : 1);
  if (p) ++blocks;
  return p;
}

void* taken_or_thrown(size_t bytes, size_t alignment = 0) {
  void* p = taken(bytes, alignment);
  if (!p) throw std::bad_alloc();
  return p;
}

void given_back(void* p) {
  if (p) --blocks;
  std::free(p);
}

}  // namespace

FailingNew::FailingNew(Mode mode, int64_t at) { armed = {true, mode, at, 0, 0, 0, false}; }
void FailingNew::stop() { armed.on = false; }
int64_t FailingNew::calls() { return armed.calls; }
int64_t FailingNew::failures() { return armed.failures; }
int64_t FailingNew::spared() { return armed.spared; }
int64_t new_blocks() { return blocks; }

}  // namespace detent::test

using namespace detent::test;

void* operator new(size_t n) { return taken_or_thrown(n); }
void* operator new[](size_t n) { return taken_or_thrown(n); }
void* operator new(size_t n, std::align_val_t a) { return taken_or_thrown(n, static_cast<size_t>(a)); }
void* operator new[](size_t n, std::align_val_t a) { return taken_or_thrown(n, static_cast<size_t>(a)); }
void* operator new(size_t n, const std::nothrow_t&) noexcept { return taken(n, 0); }
void* operator new[](size_t n, const std::nothrow_t&) noexcept { return taken(n, 0); }
void operator delete(void* p) noexcept { given_back(p); }
void operator delete[](void* p) noexcept { given_back(p); }
void operator delete(void* p, size_t) noexcept { given_back(p); }
void operator delete[](void* p, size_t) noexcept { given_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { given_back(p); }
void operator delete[](void* p, std::align_val_t) noexcept { given_back(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { given_back(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { given_back(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { given_back(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { given_back(p); }
