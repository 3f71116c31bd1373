#include "detent/core/recorded_step.h"

#include <utility>

#include "detent/core/out_of_memory.h"

namespace detent {
namespace {

std::string key_of(const std::string& key, Precision precision, const std::vector<Tensor>& inputs) {
  std::string all = text(static_cast<int>(precision), " ", key);
  for (const Tensor& t : inputs) all += text(" ", to_string(t.dtype()), t.shape());
  return all;
}

}  // namespace

RecordedStep::RecordedStep(Device device) : device_(device), backend_(backend(device)) {}

RecordedStep::~RecordedStep() { forget(); }

void RecordedStep::forget() {
  for (auto& [key, e] : entries_) backend_.drop_recording(e.recording);
  entries_.clear();
}

int64_t RecordedStep::recordings() const {
  int64_t n = 0;
  for (const auto& [key, e] : entries_) n += e.recording != nullptr;
  return n;
}

bool RecordedStep::drop_oldest() noexcept {
  Entry* oldest = nullptr;
  for (auto& [key, e] : entries_) {
    if (e.recording && (!oldest || e.used < oldest->used)) oldest = &e;
  }
  if (!oldest) return false;
  // Blocks that tensors still hold stay with them when the recording's pool is dropped.
  oldest->inputs.clear();
  oldest->results.clear();
  backend_.drop_recording(std::exchange(oldest->recording, nullptr));
  return true;
}

std::vector<Tensor> RecordedStep::plain(const std::vector<Tensor>& inputs, const Work& work) {
  for (;;) {
    try {
      std::vector<Tensor> on_device;
      for (const Tensor& t : inputs) on_device.push_back(t.to(device_));
      return work(on_device);
    } catch (const OutOfMemory&) {
      if (!drop_oldest()) throw;
    }
  }
}

// "", or why it cannot be recorded. Throws OutOfMemory.
std::string RecordedStep::try_to_record(Entry& e, const std::vector<Tensor>& inputs, const Work& work) {
  e.inputs.clear();  // an attempt that an error cut short may have left some
  for (const Tensor& t : inputs) {
    e.inputs.emplace_back(t.shape(), t.dtype(), device_);
    e.inputs.back().copy_from(t);
  }
  backend_.begin_recording();
  std::string why;
  try {
    e.results = work(e.inputs);
  } catch (const OutOfMemory&) {
    backend_.end_recording(false);
    throw;
  } catch (const Error& error) {
    why = error.what();
  } catch (...) {
    backend_.end_recording(false);
    throw;
  }
  if (!why.empty()) {
    backend_.end_recording(false);
    return why;
  }
  try {
    e.recording = backend_.end_recording(true);
  } catch (const Error& error) {
    why = error.what();
  }
  return why;
}

std::vector<Tensor> RecordedStep::record(Entry& e, const std::vector<Tensor>& inputs, const Work& work) {
  std::string why;
  for (bool again = true; again;) {
    again = false;
    try {
      why = try_to_record(e, inputs, work);
    } catch (const OutOfMemory& error) {
      why = error.what();
      again = drop_oldest();
    }
  }
  if (why.empty()) {
    backend_.replay(e.recording);  // recording ran nothing
    return e.results;
  }
  e.inputs.clear();
  e.results.clear();
  refusal_ = e.refusal = why;
  return plain(inputs, work);
}

std::vector<Tensor> RecordedStep::run(const std::string& key, const std::vector<Tensor>& inputs, const Work& work) {
  refusal_.clear();
  if (!backend_.records()) {
    refusal_ = text(to_string(device_), " does not record");
    return plain(inputs, work);
  }
  Entry& e = entries_[key_of(key, backend_.precision(), inputs)];
  e.used = ++calls_;
  if (e.recording) {
    for (size_t i = 0; i < inputs.size(); ++i) e.inputs[i].copy_from(inputs[i]);
    backend_.replay(e.recording);
    ++replays_;
    return e.results;
  }
  // The first run is a plain one: what is made once (libraries, tables, state) is made then.
  if (e.seen && e.refusal.empty()) {
    while (recordings() >= kMost && drop_oldest()) {
    }
    return record(e, inputs, work);
  }
  refusal_ = e.refusal;
  e.seen = true;
  return plain(inputs, work);
}

}  // namespace detent
