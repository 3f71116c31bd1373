#include "detent/core/recorded_step.h"

#include "detent/core/error.h"

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

std::vector<Tensor> RecordedStep::record(Entry& e, const std::vector<Tensor>& inputs, const Work& work) {
  e.inputs.clear();  // an attempt that an error cut short may have left some
  for (const Tensor& t : inputs) {
    e.inputs.emplace_back(t.shape(), t.dtype(), device_);
    e.inputs.back().copy_from(t);
  }
  backend_.begin_recording();
  std::string why;
  try {
    e.results = work(e.inputs);
  } catch (const Error& error) {
    why = error.what();
  } catch (...) {
    backend_.end_recording(false);
    throw;
  }
  if (why.empty()) {
    try {
      e.recording = backend_.end_recording(true);
    } catch (const Error& error) {
      why = error.what();
    }
  } else {
    backend_.end_recording(false);
  }
  if (why.empty()) {
    backend_.replay(e.recording);  // recording ran nothing
    return e.results;
  }
  e.inputs.clear();
  e.results.clear();
  refusal_ = e.refusal = why;
  std::vector<Tensor> on_device;
  for (const Tensor& t : inputs) on_device.push_back(t.to(device_));
  return work(on_device);
}

std::vector<Tensor> RecordedStep::run(const std::string& key, const std::vector<Tensor>& inputs, const Work& work) {
  refusal_.clear();
  if (!backend_.records()) {
    refusal_ = text(to_string(device_), " does not record");
  } else {
    Entry& e = entries_[key_of(key, backend_.precision(), inputs)];
    if (e.recording) {
      for (size_t i = 0; i < inputs.size(); ++i) e.inputs[i].copy_from(inputs[i]);
      backend_.replay(e.recording);
      ++replays_;
      return e.results;
    }
    // The first run is a plain one: what is made once (libraries, tables, state) is made then.
    if (e.seen && e.refusal.empty()) return record(e, inputs, work);
    refusal_ = e.refusal;
    e.seen = true;
  }
  std::vector<Tensor> on_device;
  for (const Tensor& t : inputs) on_device.push_back(t.to(device_));
  return work(on_device);
}

}  // namespace detent
