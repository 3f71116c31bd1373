// The readers that take hostile bytes, each as one function: it returns or throws detent::Error; anything else is a finding. Not thread-safe.
// fuzz.cpp runs them under libFuzzer, tests/robust replays the seed corpora in corpus/NAME and bytes derived from them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace detent::fuzz {

struct Target {
  const char* name;
  void (*run)(std::span<const uint8_t> bytes);
  /// Memory a reader may take at most: this many times the input, and a constant.
  double memory_factor;
};

std::span<const Target> targets();
/// Throws Error listing the names.
const Target& target(std::string_view name);

/// Small valid inputs of a target: file name and bytes.
std::vector<std::pair<std::string, std::string>> seeds(std::string_view target_name);

}  // namespace detent::fuzz
