// What runs the convolution cases: each program that links them says which kernels, and how exact they are.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernel_support.h"

namespace detent::test {

struct ConvEngine {
  std::string name;
  std::function<void(const Conv2dArgs&)> conv2d;
  std::function<void(const Conv2dBackwardDataArgs&)> backward_data;
  std::function<void(const Conv2dBackwardFilterArgs&)> backward_filter;
  std::function<void(const GemmArgs&)> gemm;
  double rounding = 0.0;    ///< relative error of a factor before it is multiplied: 0 in f32, 2^-11 in TF32, 2^-8 in bf16
  bool plain_elsewhere = false;  ///< products without anything behind them may be another library's, with other last bits
  bool coded_bits = false;  ///< codes give the bits of the same values in f32
  bool threads = true;      ///< runs on the library's threads
};

const std::vector<ConvEngine>& conv_engines();

/// The table under test, its backend set to a precision before each call.
inline ConvEngine table_engine(std::string name, std::function<void()> set_precision, double rounding, bool library) {
  return {.name = std::move(name),
          .conv2d = [=](const Conv2dArgs& a) { set_precision(), kernels().conv2d(a); },
          .backward_data = [=](const Conv2dBackwardDataArgs& a) { set_precision(), kernels().conv2d_backward_data(a); },
          .backward_filter = [=](const Conv2dBackwardFilterArgs& a) { set_precision(), kernels().conv2d_backward_filter(a); },
          .gemm = [=](const GemmArgs& a) { set_precision(), kernels().gemm(a); },
          .rounding = rounding,
          .plain_elsewhere = library,
          .threads = false};
}
/// f32, TF32 and bf16 of a backend that has them. `library`: it may call one for plain products, which may cut factors to TF32 instead of rounding them.
inline std::vector<ConvEngine> table_engines(void (*set_precision)(Precision), bool library) {
  return {table_engine("f32", [=] { set_precision(Precision::f32); }, 0.0, library),
          table_engine("tf32", [=] { set_precision(Precision::tf32); }, library ? 0x1p-10 : 0x1p-11, library),
          table_engine("bf16", [=] { set_precision(Precision::bf16); }, 0x1p-8, library)};
}

}  // namespace detent::test
