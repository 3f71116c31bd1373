// The library's thread pool. Work is cut into chunks by size alone, never by the number of threads, so results are the same bits at 1 or 16 threads.
// Any thread may call parallel_for; calls from several threads at once and nested calls run correctly (a nested call runs inline).
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace detent {

/// Number of threads that share the work of one parallel_for, the caller included. At least 1; default: all cores. Waits for a loop that another thread runs;
/// throws Error inside a chunk, and when the system gives fewer threads (those it gave stay).
void set_num_threads(int threads);
int num_threads();

namespace detail {
using ChunkFn = void (*)(void* context, int64_t chunk);
void run_chunks(int64_t chunks, ChunkFn fn, void* context);
}  // namespace detail

/// Calls fn(chunk) for chunk in [0, chunks), in any order, on the pool. Of several exceptions the one of the lowest chunk is rethrown here.
template <class Fn>
void parallel_chunks(int64_t chunks, Fn&& fn) {
  detail::run_chunks(
      chunks, [](void* f, int64_t i) { (*static_cast<std::remove_reference_t<Fn>*>(f))(i); }, const_cast<void*>(static_cast<const void*>(std::addressof(fn))));
}

/// Calls fn(begin, end) over [0, n) in chunks of `grain` elements (the last may be shorter).
template <class Fn>
void parallel_for(int64_t n, int64_t grain, Fn&& fn) {
  if (n <= 0) return;
  const int64_t chunks = (n + grain - 1) / grain;
  parallel_chunks(chunks, [&](int64_t i) {
    const int64_t begin = i * grain;
    fn(begin, begin + grain < n ? begin + grain : n);
  });
}

}  // namespace detent
