// The CUDA backend's kernels, as table.cpp lists them. How to write one: launch.h.
#pragma once

#include "detent/backends/cuda/launch.h"
#include "detent/core/backend.h"

namespace detent::DETENT_CUDA_NAMESPACE {

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
/// sum over rows of y[rows, c] (floats or bf16), in a fixed order.
template <class T>
void column_sums(const T* y, int64_t rows, int64_t c, float* out);
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

const Kernels& table();

/// Of convolutions and matrix products launched from now on, by any thread.
void set_precision(Precision p);
Precision precision();

}  // namespace detent::DETENT_CUDA_NAMESPACE
