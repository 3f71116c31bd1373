// Where a tensor lives. Plain data.
#pragma once

#include <string>
#include <string_view>

namespace detent {

enum class DeviceType : unsigned char { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// "cpu" or "cuda:0".
std::string to_string(Device device);

/// "cpu", "cuda", "cuda:1", or "auto": the first GPU when there is one that works, else the cpu. Throws Error for another name, or a GPU that cannot be used.
Device device_named(std::string_view name);

}  // namespace detent
