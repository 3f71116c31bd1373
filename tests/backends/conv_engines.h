// What runs the convolution cases: each program that links them says which kernels, and how exact they are.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "detent/core/backend.h"

namespace detent::test {

struct ConvEngine {
  std::string name;
  std::function<void(const Conv2dArgs&)> conv2d;
  std::function<void(const Conv2dBackwardDataArgs&)> backward_data;
  std::function<void(const Conv2dBackwardFilterArgs&)> backward_filter;
  std::function<void(const GemmArgs&)> gemm;
  double rounding = 0.0;    ///< relative error of a factor before it is multiplied: 0 in f32, 2^-11 in TF32, 2^-8 in bf16
  bool coded_bits = false;  ///< codes give the bits of the same values in f32
  bool threads = true;      ///< runs on the library's threads
};

const std::vector<ConvEngine>& conv_engines();

}  // namespace detent::test
