// operator new that fails on purpose, in the binary that links failing_new.cpp: the k-th call of this thread, or every one from there on. Also counts
// the blocks that are not given back. What is counted and what fails belongs to the calling thread; blocks in use are the process's.
#pragma once

#include <cstdint>

namespace detent::test {

/// From its construction to its end, or stop().
class FailingNew {
 public:
  enum class Mode { count, once, lasting };
  FailingNew(Mode mode, int64_t at);
  ~FailingNew() { stop(); }
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
  static void stop();
  /// Calls of operator new since the last construction.
  static int64_t calls();
  /// Of them, those that failed.
  static int64_t failures();
  /// Calls that were to fail and did not: those inside nlohmann-json and Protocol Buffers, which do not survive a refusal.
  static int64_t spared();
};

/// Blocks of operator new in use now.
int64_t new_blocks();

}  // namespace detent::test
