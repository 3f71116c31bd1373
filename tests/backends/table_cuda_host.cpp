// The CUDA kernels' bodies, run on the host.
#include "conv_engines.h"
#include "detent/backends/cuda/conv.h"
#include "detent/backends/cuda/kernels.h"
#include "kernel_support.h"

using namespace detent;

const Kernels& test::kernels() {
  cuda_host::set_precision(Precision::f32);
  return cuda_host::table();
}

const std::vector<test::ConvEngine>& test::conv_engines() {
  static const std::vector<ConvEngine> engines = [] {
    std::vector<ConvEngine> v;
    const auto add = [&](const char* name, Precision p, double rounding) {
      const cuda_host::ConvOptions o{.precision = p};
      v.push_back({.name = name,
                   .conv2d = [o](const Conv2dArgs& a) { cuda_host::conv2d(o, a); },
                   .backward_data = [o](const Conv2dBackwardDataArgs& a) { cuda_host::conv2d_backward_data(o, a); },
                   .backward_filter = [o](const Conv2dBackwardFilterArgs& a) { cuda_host::conv2d_backward_filter(o, a); },
                   .gemm = [o](const GemmArgs& a) { cuda_host::gemm(o, a); },
                   .rounding = rounding,
                   .threads = false});
    };
    add("f32", Precision::f32, 0.0);
    add("tf32", Precision::tf32, 0x1p-11);
    add("bf16", Precision::bf16, 0x1p-8);
    return v;
  }();
  return engines;
}
