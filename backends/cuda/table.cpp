#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {

const Kernels& table() {
  static constexpr Kernels kTable = {
      .name = "cuda",
      .fill = fill,
      .accumulate = accumulate,
      .scale = scale,
      .count_nonfinite = count_nonfinite,
      .conv2d = conv2d,
      .conv2d_backward_data = conv2d_backward_data,
      .conv2d_backward_filter = conv2d_backward_filter,
      .gemm = gemm,
      .pointwise = pointwise,
      .pointwise_backward = pointwise_backward,
      .binary = nullptr,
      .strided_copy = nullptr,
      .reduce_sum = nullptr,
      .max_pool = nullptr,
      .max_pool_backward = nullptr,
      .average_pool = nullptr,
      .average_pool_backward = nullptr,
      .batch_norm_stats = batch_norm_stats,
      .batch_norm = batch_norm,
      .batch_norm_backward = batch_norm_backward,
      .fake_quant = nullptr,
      .dequantize = nullptr,
      .fake_quant_backward = nullptr,
      .add = nullptr,
      .quantized_backward = nullptr,
      .min_max = nullptr,
      .histogram_acc = nullptr,
      .resize = nullptr,
      .resize_backward = nullptr,
      .softmax = nullptr,
      .softmax_backward = nullptr,
      .cross_entropy = nullptr,
      .sgd_step = nullptr,
      .adam_step = nullptr,
  };
  return kTable;
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
