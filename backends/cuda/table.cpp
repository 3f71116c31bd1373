#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {

const Kernels& table() {
  static constexpr Kernels kTable = {
      .name = "cuda",
      .fill = fill,
      .accumulate = accumulate,
      .accumulate16 = accumulate16,
      .narrow = narrow,
      .widen = widen,
      .scale = scale,
      .count_nonfinite = count_nonfinite,
      .gather = gather,
      .conv2d = conv2d,
      .conv2d_backward_data = conv2d_backward_data,
      .conv2d_backward_filter = conv2d_backward_filter,
      .gemm = gemm,
      .pointwise = pointwise,
      .pointwise_backward = pointwise_backward,
      .binary = binary,
      .strided_copy = strided_copy,
      .reduce_sum = reduce_sum,
      .max_pool = max_pool,
      .max_pool_backward = max_pool_backward,
      .average_pool = average_pool,
      .average_pool_backward = average_pool_backward,
      .average_codes = average_codes,
      .batch_norm_stats = batch_norm_stats,
      .batch_norm = batch_norm,
      .batch_norm_backward = batch_norm_backward,
      .fake_quant = fake_quant,
      .dequantize = dequantize,
      .fake_quant_backward = fake_quant_backward,
      .add = add,
      .quantized_backward = quantized_backward,
      .range_grads = range_grads,
      .round_bias = round_bias,
      .min_max = min_max,
      .histogram_acc = histogram_acc,
      .resize = resize,
      .resize_backward = resize_backward,
      .softmax = softmax,
      .softmax_backward = softmax_backward,
      .cross_entropy = cross_entropy,
      .sgd_step = sgd_step,
      .adam_step = adam_step,
      .keeps_bf16 = true,
  };
  return kTable;
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
