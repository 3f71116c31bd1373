// The CPU's kernels, as table.cpp lists them. One file per family; the simple twin of every fast kernel stays as its reference.
#pragma once

#include "detent/core/backend.h"

namespace detent::cpu {

void fill(float* y, float value, int64_t n);
void accumulate(float* y, const float* x, int64_t n);
void accumulate16(uint16_t* y, const uint16_t* x, int64_t n);
void narrow(uint16_t* y, const float* x, int64_t n);
void widen(float* y, const uint16_t* x, int64_t n);
void scale(float* y, const float* x, float factor, int64_t n);
void count_nonfinite(const FloatSpan* spans, int64_t count, int64_t* nonfinite);
void gather(const FloatSpan* spans, int64_t count, float* y);
void conv2d(const Conv2dArgs&);
void conv2d_backward_data(const Conv2dBackwardDataArgs&);
void conv2d_backward_filter(const Conv2dBackwardFilterArgs&);
void gemm(const GemmArgs&);
void pointwise(const PointwiseArgs&);
void pointwise_backward(const PointwiseArgs&);
void binary(const BinaryArgs&);
void strided_copy(const StridedCopyArgs&);
void reduce_sum(const ReduceSumArgs&);
void max_pool(const PoolArgs&);
void max_pool_backward(const PoolBackwardArgs&);
void average_pool(const PoolArgs&);
void average_pool_backward(const PoolBackwardArgs&);
void average_codes(const AverageCodesArgs&);
void batch_norm_stats(const BatchNormStatsArgs&);
void batch_norm(const BatchNormArgs&);
void batch_norm_backward(const BatchNormBackwardArgs&);
void fake_quant(const FakeQuantArgs&);
void dequantize(const DequantizeArgs&);
void fake_quant_backward(const FakeQuantBackwardArgs&);
void add(const AddArgs&);
void quantized_backward(const QuantizedBackwardArgs&);
void range_grads(const RangeGradsArgs&);
void round_bias(const RoundBiasArgs&);
void min_max(const MinMaxArgs&);
void histogram_acc(const HistogramArgs&);
void resize(const ResizeArgs&);
void resize_backward(const ResizeArgs&);
void softmax(const SoftmaxArgs&);
void softmax_backward(const SoftmaxArgs&);
void cross_entropy(const CrossEntropyArgs&);
void sgd_step(const SgdArgs&);
void adam_step(const AdamArgs&);

/// Scalar twins: plain loops in the order of the formula, for tests and for processors without the fast path.
namespace scalar {
void conv2d(const Conv2dArgs&);
void conv2d_backward_data(const Conv2dBackwardDataArgs&);
void conv2d_backward_filter(const Conv2dBackwardFilterArgs&);
void gemm(const GemmArgs&);
}  // namespace scalar

}  // namespace detent::cpu
