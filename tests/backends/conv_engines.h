// What runs the convolution cases: each program that links them says which kernels, and how exact they are.
#pragma once

#include <cmath>
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
  bool sums_in_tiles = false;  ///< statistics are gathered while a tile's sums are in registers, not by batch_norm_stats
};

const std::vector<ConvEngine>& conv_engines();

/// Mean and variance [k] of rows y [rows,k], against sums in double. wide: the values lie far apart, by which sums in f32 are off.
inline void check_statistics(const std::vector<float>& y, const float* mean, const float* var, int64_t k, bool wide = false) {
  const size_t channels = static_cast<size_t>(k), rows = y.size() / channels;
  for (size_t c = 0; c < channels; ++c) {
    double sum = 0.0, squares = 0.0;
    for (size_t p = 0; p < rows; ++p) sum += static_cast<double>(y[p * channels + c]) / static_cast<double>(rows);
    for (size_t p = 0; p < rows; ++p) squares += std::pow(static_cast<double>(y[p * channels + c]) - sum, 2.0) / static_cast<double>(rows);
    // Rounding of the values themselves, where the bias is added, and of sums over a few hundred of them.
    const double noise = 2e-7 * (std::abs(sum) + 1.0 + (wide ? std::sqrt(squares) : 0.0)), got_mean = static_cast<double>(mean[c]), got_var = static_cast<double>(var[c]);
    if (!(std::abs(got_mean - sum) <= 4 * noise)) FAIL_CHECK("mean of channel ", c, ": ", got_mean, " not ", sum);
    if (!(std::abs(got_var - squares) <= 1e-5 * squares + 4 * noise * std::sqrt(squares) + noise * noise)) FAIL_CHECK("variance of channel ", c, ": ", got_var, " not ", squares);
  }
}

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
