// Progress on standard error: a bar with rate and time left on a terminal, a plain line now and then otherwise, nothing when quiet.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace qat {

class Progress {
 public:
  /// `done` units are those of an earlier run: they count, but not in the rate.
  Progress(std::string label, int64_t total, bool quiet, int64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// `done` of total units; `note` is shown behind (loss).
  void update(int64_t done, const std::string& note = {});
  /// The last line, at once: what is said next comes behind it.
  void finish();
  double seconds() const;

 private:
  void draw(int64_t done, const std::string& note, bool last);
  std::string label_;
  int64_t total_, before_;
  bool quiet_, terminal_;
  int64_t done_ = 0;
  std::string note_;
  std::chrono::steady_clock::time_point start_, drawn_;
};

/// A line of its own, unless quiet.
void say(bool quiet, const std::string& line);

}  // namespace qat
