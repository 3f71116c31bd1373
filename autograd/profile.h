// Profile: where the time of evaluation and training goes, by layer. While one lives, Graphs that run on its thread and tapes that record there tell it what they
// do. The time of a layer's backward pass is that of the closures it recorded. Thread-safe in that each thread has its own; one Profile of a thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "detent/core/device.h"

namespace detent {

class Profile {
 public:
  struct Row {
    std::string name;  ///< the value that a step of the Graph yields, or an operation outside any
    double forward = 0.0, backward = 0.0;  ///< seconds
  };

  /// Throws Error when this thread has a Profile already. `device`: waited for at the ends of each section.
  explicit Profile(Device device = {});
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  /// That of this thread, or null.
  static Profile* active();

  /// In order of first use.
  const std::vector<Row>& rows() const { return rows_; }
  double seconds() const;
  void clear() { rows_.clear(); }

  /// The row of a name; made when there is none.
  int row(const std::string& name);

  /// A row of a certain Profile; what a tape keeps of the layer that recorded.
  struct Mark {
    uint64_t profile = 0;  // 0: none
    int row = -1;
  };
  /// The section that is open on this thread.
  static Mark current();

  /// Forward time of a layer: from here to the end of the scope; what is recorded meanwhile is the layer's. Without an active Profile nothing happens.
  class Section {
   public:
    explicit Section(const std::string& name) : Section(name, -1) {}
    /// Backward time of the marked row, or of the operation when the mark is not of the active Profile.
    Section(const char* op, const Mark& mark);
    ~Section();
    Section(const Section&) = delete;
    Section& operator=(const Section&) = delete;

   private:
    Section(const std::string& name, int row);
    Profile* profile_;
    bool backward_ = false;
    int outer_ = -1, row_ = -1;
    std::chrono::steady_clock::time_point start_;
  };

 private:
  void wait() const;
  uint64_t id_;
  Device device_;
  std::vector<Row> rows_;
  int current_ = -1;
};

}  // namespace detent
