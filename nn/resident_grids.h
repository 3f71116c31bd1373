// The grids of a graph's transforms in a device's memory, where the steps of a recording read them. Internal to nn/. Used by one thread.
#pragma once

#include <string>
#include <vector>

#include "detent/nn/module.h"

namespace detent::nn {

class ResidentGrids {
 public:
  /// Has each transform take over what the optimizer wrote, and copies the grids to where they were the last time. Returns what the work of a step depends on besides
  /// their values: where they are, and which are equal (a value that lies on its quantizer's grid already is not rounded again).
  std::string update(std::span<Transform* const> transforms, Device device);

 private:
  std::vector<Grid> grids_;
  Tensor memory_;  // [grids, bytes of a Grid]
  int64_t moves_ = 0;
};

}  // namespace detent::nn
