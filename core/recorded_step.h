// Work that a device repeats: run once, recorded the second time, replayed from then on (a CUDA graph). One thread uses a RecordedStep.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "detent/core/backend.h"
#include "detent/core/tensor.h"

namespace detent {

class RecordedStep {
 public:
  /// Maps inputs on the device to results there. Given the same shapes and key it must ask the device for the same work; it may not read results on the host.
  using Work = std::function<std::vector<Tensor>(const std::vector<Tensor>& inputs)>;

  static constexpr int64_t kMost = 4;

  explicit RecordedStep(Device device);
  ~RecordedStep();
  RecordedStep(const RecordedStep&) = delete;
  RecordedStep& operator=(const RecordedStep&) = delete;

  /// Runs the work on these inputs (moved to the device). `key` names what else the work depends on, besides the device's precision. Results of a replay are valid
  /// until the next call with the same shapes, precision and key. Each recording holds the memory of a whole run: of more than kMost, and where memory runs out, the one
  /// used longest ago is dropped, and recorded again when its turn comes. Work that ran out of memory is then run again. Work that cannot be recorded (it reads results on the host, or the device does not record) runs step by step.
  std::vector<Tensor> run(const std::string& key, const std::vector<Tensor>& inputs, const Work& work);
  /// Drops every recording: what the work does has changed.
  void forget();

  int64_t recordings() const;
  int64_t replays() const { return replays_; }
  /// Why the work of the last call was not recorded, or "".
  const std::string& refusal() const { return refusal_; }

 private:
  struct Entry {
    bool seen = false;
    int64_t used = 0;  // by which call of run() last
    std::string refusal;
    void* recording = nullptr;
    std::vector<Tensor> inputs, results;
  };
  std::vector<Tensor> plain(const std::vector<Tensor>& inputs, const Work& work);
  std::vector<Tensor> record(Entry& entry, const std::vector<Tensor>& inputs, const Work& work);
  std::string try_to_record(Entry& entry, const std::vector<Tensor>& inputs, const Work& work);
  bool drop_oldest() noexcept;

  Device device_;
  Backend& backend_;
  std::map<std::string, Entry> entries_;
  int64_t replays_ = 0, calls_ = 0;
  std::string refusal_;
};

}  // namespace detent
