#include "detent/autograd/profile.h"

#include <atomic>

#include "detent/core/backend.h"
#include "detent/core/error.h"

namespace detent {
namespace {
thread_local Profile* active_profile = nullptr;
std::atomic<uint64_t> next_id{1};
}  // namespace

Profile::Profile(Device device) : id_(next_id.fetch_add(1)), device_(device) {
  DETENT_CHECK(!active_profile, "profile: this thread has one already; end it first");
  active_profile = this;
}

Profile::~Profile() { active_profile = nullptr; }

Profile* Profile::active() { return active_profile; }
Profile::Mark Profile::current() { return active_profile ? Mark{active_profile->id_, active_profile->current_} : Mark{}; }

int Profile::row(const std::string& name) {
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i].name == name) return static_cast<int>(i);
  }
  rows_.push_back({.name = name});
  return static_cast<int>(rows_.size()) - 1;
}

double Profile::seconds() const {
  double sum = 0.0;
  for (const Row& r : rows_) sum += r.forward + r.backward;
  return sum;
}

void Profile::wait() const {
  if (device_.type != DeviceType::cpu) backend(device_).synchronize();
}

Profile::Section::Section(const std::string& name, int row) : profile_(active_profile) {
  if (!profile_) return;
  outer_ = profile_->current_;
  row_ = row >= 0 ? row : profile_->row(name);
  profile_->current_ = row_;
  profile_->wait();
  start_ = std::chrono::steady_clock::now();
}

Profile::Section::Section(const char* op, const Mark& mark)
    : Section(active_profile ? std::string(op) : std::string(), active_profile && mark.profile == active_profile->id_ ? mark.row : -1) {
  backward_ = true;
}

Profile::Section::~Section() {
  if (!profile_) return;
  profile_->wait();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  // A section within another takes its time out of that one's.
  Row& own = profile_->rows_[static_cast<size_t>(row_)];
  (backward_ ? own.backward : own.forward) += seconds;
  profile_->current_ = outer_;
  if (outer_ >= 0) profile_->rows_[static_cast<size_t>(outer_)].forward -= seconds;
}

}  // namespace detent
