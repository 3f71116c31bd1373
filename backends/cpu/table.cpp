#include <cstring>

#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/integer.h"
#include "detent/backends/cpu/isa.h"
#include "detent/backends/cpu/kernels.h"

namespace detent {
namespace {

constexpr Kernels kTable = {
    .name = "cpu",
    .fill = cpu::fill,
    .accumulate = cpu::accumulate,
    .accumulate16 = cpu::accumulate16,
    .narrow = cpu::narrow,
    .widen = cpu::widen,
    .scale = cpu::scale,
    .count_nonfinite = cpu::count_nonfinite,
    .gather = cpu::gather,
    .conv2d = cpu::conv2d,
    .conv2d_backward_data = cpu::conv2d_backward_data,
    .conv2d_backward_filter = cpu::conv2d_backward_filter,
    .gemm = cpu::gemm,
    .pointwise = cpu::pointwise,
    .pointwise_backward = cpu::pointwise_backward,
    .binary = cpu::binary,
    .strided_copy = cpu::strided_copy,
    .reduce_sum = cpu::reduce_sum,
    .max_pool = cpu::max_pool,
    .max_pool_backward = cpu::max_pool_backward,
    .average_pool = cpu::average_pool,
    .average_pool_backward = cpu::average_pool_backward,
    .average_codes = cpu::average_codes,
    .batch_norm_stats = cpu::batch_norm_stats,
    .batch_norm = cpu::batch_norm,
    .batch_norm_backward = cpu::batch_norm_backward,
    .fake_quant = cpu::fake_quant,
    .dequantize = cpu::dequantize,
    .fake_quant_backward = cpu::fake_quant_backward,
    .add = cpu::add,
    .quantized_backward = cpu::quantized_backward,
    .range_grads = cpu::range_grads,
    .round_bias = cpu::round_bias,
    .min_max = cpu::min_max,
    .histogram_acc = cpu::histogram_acc,
    .resize = cpu::resize,
    .resize_backward = cpu::resize_backward,
    .softmax = cpu::softmax,
    .softmax_backward = cpu::softmax_backward,
    .cross_entropy = cpu::cross_entropy,
    .sgd_step = cpu::sgd_step,
    .adam_step = cpu::adam_step,
    .keeps_bf16 = true,
};

class CpuBackend final : public Backend {
 public:
  CachingAllocator& allocator() override { return host_allocator(); }
  const Kernels& kernels() const override { return kTable; }
  const IntegerKernels* integer_kernels() const override { return &cpu::integer_kernels(); }
  void set_precision(Precision p) override { cpu::set_precision(p); }
  Precision precision() const override { return cpu::precision(); }
  void copy(void* dst, Device, const void* src, Device, size_t bytes) override {
    if (bytes) std::memcpy(dst, src, bytes);
  }
  void zero(void* dst, size_t bytes) override {
    if (bytes) std::memset(dst, 0, bytes);
  }
  void synchronize() override {}
  const char* description() const override { return cpu::isa_name(); }
};

}  // namespace

Backend& cpu_backend() {
  static CpuBackend& backend = *new CpuBackend;
  return backend;
}

}  // namespace detent
