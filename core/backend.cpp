#include "detent/core/backend.h"

#include "detent/core/error.h"

namespace detent {

// One function per backend; the only place that knows which exist.
Backend& cpu_backend();

std::string to_string(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : text("cuda:", device.index);
}

Backend& backend(Device device) {
  if (device.type == DeviceType::cpu) return cpu_backend();
  fail("device ", to_string(device), ": this build has no CUDA backend; use the cpu");
}

bool device_available(Device device) { return device.type == DeviceType::cpu; }

}  // namespace detent
