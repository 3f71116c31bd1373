#include "detent/core/parallel.h"

#include <doctest/doctest.h>

#include <atomic>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "detent/core/error.h"

using namespace detent;

namespace {

// The pool's size is process-wide: each test puts it back.
class Threads {
 public:
  explicit Threads(int n) : before_(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace

TEST_CASE("parallel_for_visits_every_element_once_at_any_number_of_threads") {
  for (int threads : {1, 2, 5}) {
    const Threads pool(threads);
    CHECK(num_threads() == threads);
    for (int64_t n : {0, 1, 7, 64, 1000}) {
      for (int64_t grain : {1, 7, 64, 2000}) {
        std::vector<int> visits(static_cast<size_t>(n));
        parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        CHECK(visits == std::vector<int>(static_cast<size_t>(n), 1));
      }
    }
  }
}

TEST_CASE("chunks_depend_on_size_alone_not_on_threads") {
  std::set<std::pair<int64_t, int64_t>> seen[2];
  for (int round = 0; round < 2; ++round) {
    const Threads pool(round == 0 ? 1 : 4);
    std::mutex mutex;
    parallel_for(1003, 100, [&](int64_t begin, int64_t end) {
      const std::lock_guard lock(mutex);
      seen[round].insert({begin, end});
    });
  }
  CHECK(seen[0].size() == 11);
  CHECK(seen[0] == seen[1]);
  CHECK(seen[0].count({1000, 1003}) == 1);
}

TEST_CASE("an_exception_in_a_parallel_chunk_reaches_the_caller_and_the_pool_survives") {
  const Threads pool(3);
  for (int round = 0; round < 20; ++round) {
    CHECK_THROWS_WITH_AS(parallel_chunks(50, [&](int64_t i) { DETENT_CHECK(i != 31, "chunk ", i); }), "chunk 31", Error);
    std::atomic<int64_t> sum{0};
    parallel_chunks(50, [&](int64_t i) { sum += i; });
    CHECK(sum == 49 * 50 / 2);
  }
}

TEST_CASE("nested_parallel_loops_run_and_do_not_deadlock") {
  const Threads pool(3);
  std::vector<int64_t> sums(20);
  parallel_chunks(20, [&](int64_t i) {
    std::atomic<int64_t> inner{0};
    parallel_chunks(30, [&](int64_t j) { inner += i * j; });
    sums[static_cast<size_t>(i)] = inner;
  });
  for (int64_t i = 0; i < 20; ++i) CHECK(sums[static_cast<size_t>(i)] == i * 435);
}

TEST_CASE("several_threads_may_use_the_pool_at_once") {
  const Threads pool(3);
  std::vector<int64_t> sums(4);
  std::vector<std::thread> callers;
  for (size_t t = 0; t < sums.size(); ++t) {
    callers.emplace_back([&, t] {
      for (int round = 0; round < 200; ++round) {
        std::vector<int64_t> part(16);
        parallel_for(1600, 100, [&](int64_t begin, int64_t end) { part[static_cast<size_t>(begin / 100)] = end - begin; });
        sums[t] += std::accumulate(part.begin(), part.end(), int64_t{0});
      }
    });
  }
  for (std::thread& c : callers) c.join();
  for (int64_t s : sums) CHECK(s == 200 * 1600);
}

TEST_CASE("of_several_exceptions_in_parallel_chunks_the_lowest_chunk_wins") {
  for (const int threads : {1, 4}) {
    const Threads pool(threads);
    for (int round = 0; round < 50; ++round) CHECK_THROWS_WITH_AS(parallel_chunks(64, [](int64_t i) { DETENT_CHECK(i < 5, "chunk ", i); }), "chunk 5", Error);
  }
}

TEST_CASE("the_number_of_threads_cannot_change_inside_a_parallel_loop") {
  for (const int threads : {1, 3}) {
    const Threads pool(threads);
    for (const int64_t chunks : {1, 20}) {
      CHECK_THROWS_WITH_AS(parallel_chunks(chunks, [](int64_t) { set_num_threads(2); }), "threads: set_num_threads(2) was called inside a parallel_for; call it before or after", Error);
    }
    CHECK(num_threads() == threads);
    std::atomic<int64_t> sum{0};
    parallel_chunks(20, [&](int64_t i) { sum += i; });
    CHECK(sum == 190);
  }
}

TEST_CASE("the_number_of_threads_may_change_while_other_threads_use_the_pool") {
  const Threads pool(3);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([&] {
      while (!stop) {
        std::atomic<int64_t> sum{0};
        parallel_chunks(40, [&](int64_t i) { sum += i; });
        wrong += sum != 780;
      }
    });
  }
  for (int round = 0; round < 60; ++round) set_num_threads(1 + round % 4);
  stop = true;
  for (std::thread& c : callers) c.join();
  CHECK(wrong == 0);
}

TEST_CASE("thread_counts_that_make_no_sense_are_errors") {
  CHECK_THROWS_WITH_AS(set_num_threads(0), "threads: 0 is not in 1..1024", Error);
  CHECK_THROWS_AS(set_num_threads(-3), Error);
  CHECK_THROWS_AS(set_num_threads(1 << 20), Error);
  CHECK(num_threads() >= 1);
}
