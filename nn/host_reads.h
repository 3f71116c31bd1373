// Reads what a graph's transforms want on the host in one go, for the length of a forward pass. Internal to nn/. Used by one thread.
#pragma once

#include <vector>

#include "detent/nn/module.h"

namespace detent::nn {

class HostReads {
 public:
  /// On the host itself nothing needs to be gathered; work that is being recorded cannot read.
  HostReads(std::span<Transform* const> transforms, Device device);
  ~HostReads();
  HostReads(const HostReads&) = delete;
  HostReads& operator=(const HostReads&) = delete;

 private:
  std::vector<Transform*> served_;
};

}  // namespace detent::nn
