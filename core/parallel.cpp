#include "detent/core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "detent/core/error.h"

namespace detent {
namespace {

#if defined(__x86_64__)
inline void relax() { __builtin_ia32_pause(); }
#else
inline void relax() {}
#endif

struct Job {
  int64_t chunks = 0;
  detail::ChunkFn fn = nullptr;
  void* context = nullptr;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;  // of the lowest chunk that threw: the one that a run without threads reports
  int64_t error_chunk = INT64_MAX;
  std::mutex error_mutex;

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      try {
        fn(context, i);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (i < error_chunk) {
          error_chunk = i;
          error = std::current_exception();
        }
      }
    }
  }
};

// Workers are always inside; a caller is while its chunks run on the pool.
thread_local bool inside_job = false;
// Chunks on this thread's stack, those run inline included.
thread_local int chunk_depth = 0;

class ChunkScope {
 public:
  ChunkScope() { ++chunk_depth; }
  ~ChunkScope() { --chunk_depth; }
  ChunkScope(const ChunkScope&) = delete;
  ChunkScope& operator=(const ChunkScope&) = delete;
};

// Workers wait for a generation number to change. One job runs at a time; a caller that finds the pool busy runs its chunks itself.
class Pool {
 public:
  ~Pool() { resize(1); }

  void resize(int threads) {
    std::lock_guard busy(busy_);
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
    workers_.clear();
    stop_ = false;
    std::string refused;
    try {
      for (int i = 1; i < threads; ++i) {
        workers_.emplace_back([this, seen = generation_.load()]() mutable { loop(seen); });
      }
    } catch (const std::exception& e) {
      refused = e.what();
    }
    threads_.store(static_cast<int>(workers_.size()) + 1);
    DETENT_CHECK(refused.empty(), "threads: ", threads, " asked for, the system gave ", workers_.size() + 1, " (", refused, "); ask for fewer");
  }

  int threads() const { return threads_.load(); }

  void run(int64_t chunks, detail::ChunkFn fn, void* context) {
    std::unique_lock busy(busy_, std::try_to_lock);
    if (!busy.owns_lock() || workers_.empty()) {
      for (int64_t i = 0; i < chunks; ++i) fn(context, i);
      return;
    }
    Job job;
    job.chunks = chunks;
    job.fn = fn;
    job.context = context;
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      active_.store(static_cast<int>(workers_.size()));
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    inside_job = true;
    job.work();
    inside_job = false;
    for (int spins = 0; active_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < 20000) {
        relax();
      } else {
        std::unique_lock lock(mutex_);
        done_.wait(lock, [&] { return active_.load() == 0; });
      }
    }
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void loop(uint64_t seen) {
    inside_job = true;
    const ChunkScope scope;
    for (;;) {
      for (int spins = 0; spins < 4000 && generation_.load(std::memory_order_acquire) == seen; ++spins) relax();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
      }
      Job* job = nullptr;
      {
        std::lock_guard lock(mutex_);
        seen = generation_.load();
        if (stop_) return;
        job = job_;
      }
      job->work();
      if (active_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard lock(mutex_);
        done_.notify_all();
      }
    }
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> active_{0};
  std::atomic<int> threads_{1};
  Job* job_ = nullptr;
  bool stop_ = false;
};

Pool& pool() {
  static Pool& p = []() -> Pool& {
    static Pool instance;
    try {
      instance.resize(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    } catch (const Error&) {
      // Fewer threads than cores: nobody asked for a number.
    }
    return instance;
  }();
  return p;
}

}  // namespace

void set_num_threads(int threads) {
  DETENT_CHECK(threads >= 1 && threads <= 1024, "threads: ", threads, " is not in 1..1024");
  // The caller's own job holds the pool: waiting for it would never end.
  DETENT_CHECK(chunk_depth == 0, "threads: set_num_threads(", threads, ") was called inside a parallel_for; call it before or after");
  pool().resize(threads);
}

int num_threads() { return pool().threads(); }

namespace detail {

void run_chunks(int64_t chunks, ChunkFn fn, void* context) {
  const ChunkScope scope;
  if (chunks == 1 || inside_job) {
    for (int64_t i = 0; i < chunks; ++i) fn(context, i);
    return;
  }
  if (chunks > 0) pool().run(chunks, fn, context);
}

}  // namespace detail
}  // namespace detent
