// The CUDA module on a machine without a GPU: module.cpp and the kernels' host build on the runtime of fake_cuda/. Before each kernel its arguments are looked at: a
// pointer to ordinary memory breaks the device, as the kernel would.
#include "fake_cuda/fake_cuda.h"

#include <cstdio>
#include <initializer_list>
#include <type_traits>

#include "detent/backends/cuda/kernels.h"
#include "detent/core/device_module.h"

extern "C" const detent::DeviceModule* detent_cuda_module_unchecked();

namespace detent::cuda_host {

void launch(const char* name, std::function<void()> work) {
  fake_cuda::launch(static_cast<cudaStream_t>(current_stream()), std::move(work));
  check_launch(name);
}

}  // namespace detent::cuda_host

namespace {

using namespace detent;

// ---- what a kernel is given: the pointers of each argument --------------------------------------------------------------------------------------------

bool on_host(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (p && !fake_cuda::on_device(p)) return true;
  }
  return false;
}
bool on_host(const Epilogue& e) { return on_host({e.scale, e.bias, e.addend, e.y, e.y16, e.codes, e.residual, e.resident}); }
bool on_host(const ConvInput& i) { return on_host({i.x, i.x16, i.codes, i.resident}); }
bool on_host(const Conv2dArgs& a) { return on_host(a.input) || on_host(a.epilogue) || on_host({a.w, a.mean, a.var}); }
bool on_host(const Conv2dBackwardDataArgs& a) { return on_host({a.dy, a.w, a.dx, a.dy16, a.dx16}); }
bool on_host(const Conv2dBackwardFilterArgs& a) { return on_host(a.input) || on_host({a.dy, a.dw, a.dbias, a.dy16}); }
bool on_host(const GemmArgs& a) { return on_host({a.a, a.b, a.y}); }
bool on_host(const PointwiseArgs& a) { return on_host({a.x, a.y, a.dy, a.out, a.x16, a.dy16, a.out16}); }
bool on_host(const BinaryArgs& a) { return on_host({a.a, a.b, a.y}); }
bool on_host(const StridedCopyArgs& a) { return on_host({a.a, a.y}); }
bool on_host(const ReduceSumArgs& a) { return on_host({a.a, a.y}); }
bool on_host(const PoolArgs& a) { return on_host({a.x, a.y, a.index, a.x16, a.y16}); }
bool on_host(const PoolBackwardArgs& a) { return on_host({a.dy, a.dx, a.index, a.dy16, a.dx16}); }
bool on_host(const AverageCodesArgs& a) { return on_host(a.epilogue) || on_host({a.x, a.resident}); }
bool on_host(const BatchNormStatsArgs& a) { return on_host({a.x, a.mean, a.var, a.x16}); }
bool on_host(const BatchNormArgs& a) { return on_host({a.x, a.mean, a.var, a.gamma, a.beta, a.y, a.x16, a.y16}); }
bool on_host(const BatchNormBackwardArgs& a) { return on_host({a.x, a.dy, a.mean, a.var, a.gamma, a.beta, a.dx, a.dgamma, a.dbeta, a.x16, a.dy16, a.dx16}); }
bool on_host(const FakeQuantArgs& a) { return on_host({a.x, a.grids, a.y, a.codes}); }
bool on_host(const DequantizeArgs& a) { return on_host({a.codes, a.resident, a.y}); }
bool on_host(const FakeQuantBackwardArgs& a) { return on_host({a.x, a.dy, a.grids, a.dx, a.scale_sum, a.clip_sum}); }
bool on_host(const AddArgs& a) { return on_host(a.a) || on_host(a.b) || on_host(a.epilogue); }
bool on_host(const QuantizedBackwardArgs& a) { return on_host({a.codes, a.residual, a.resident, a.dy, a.dx, a.dbias, a.scale_sum, a.clip_sum, a.dy16, a.dx16}); }
bool on_host(const RangeGradsArgs& a) { return on_host({a.scale_sum, a.clip_sum, a.min, a.max, a.dmin, a.dmax}); }
bool on_host(const RoundBiasArgs& a) { return on_host({a.b, a.resident, a.grids, a.y}); }
bool on_host(const MinMaxArgs& a) { return on_host({a.x, a.min, a.max, a.nan}); }
bool on_host(const HistogramArgs& a) { return on_host({a.x, a.counts}); }
bool on_host(const ResizeArgs& a) { return on_host({a.x, a.y}); }
bool on_host(const SoftmaxArgs& a) { return on_host({a.x, a.dy, a.y}); }
bool on_host(const CrossEntropyArgs& a) { return on_host({a.logits, a.labels, a.target, a.loss, a.dlogits}); }
bool on_host(const SgdTensor& t) { return on_host({t.w, t.g, t.momentum, t.average}); }
bool on_host(const AdamTensor& t) { return on_host({t.w, t.g, t.m, t.v, t.average}); }
bool on_host(const float* p) { return on_host({p}); }
bool on_host(const uint16_t* p) { return on_host({p}); }
bool on_host(float) { return false; }
bool on_host(int64_t) { return false; }
bool on_host(int64_t*) { return false; }          // counts, which are the host's
bool on_host(const FloatSpan*) { return false; }  // so is the list of spans

// Grids that lie on the device are given by value too: what is recorded finds another one there, so that a kernel that reads it does so in vain.
void spoil(Grid& g, const Grid* resident) {
  if (resident) g = {.scale = 1e4f * g.scale, .zero_point = g.qmin + g.qmax - g.zero_point, .qmin = g.qmin, .qmax = g.qmax};
}
void spoil(Epilogue& e) { spoil(e.grid, e.resident); }
void spoil(ConvInput& i) { spoil(i.grid, i.resident); }
void spoil(Conv2dArgs& a) { spoil(a.input), spoil(a.epilogue); }
void spoil(Conv2dBackwardFilterArgs& a) { spoil(a.input); }
void spoil(AverageCodesArgs& a) { spoil(a.from, a.resident), spoil(a.epilogue); }
void spoil(DequantizeArgs& a) { spoil(a.grid, a.resident); }
void spoil(AddArgs& a) { spoil(a.a), spoil(a.b), spoil(a.epilogue); }
void spoil(QuantizedBackwardArgs& a) { spoil(a.grid, a.resident); }
void spoil(RoundBiasArgs& a) { spoil(a.input, a.resident); }
template <class T>
void spoil(T&) {}

const Kernels& bodies() { return cuda_host::table(); }

void must_be_on_device(bool host, const char* where) {
  if (!host) return;
  std::fprintf(stderr, "%s: a kernel was given a pointer to host memory\n", where);
  fake_cuda::break_device();
}

template <class T>
T spoiled(T args) {
  if (fake_cuda::capturing()) spoil(args);
  return args;
}

template <auto Member>
struct Wrap;
template <class... A, void (*Kernels::*Member)(A...)>
struct Wrap<Member> {
  static void call(A... args) {
    must_be_on_device((on_host(args) || ...), __PRETTY_FUNCTION__);
    (bodies().*Member)(spoiled(std::remove_cvref_t<A>(args))...);
  }
};
// The list itself is the host's; what its tensors point to is not.
template <class Args, void (*Kernels::*Member)(const Args&)>
void step(const Args& args) {
  for (int64_t i = 0; i < args.count; ++i) must_be_on_device(on_host(args.tensors[i]), __PRETTY_FUNCTION__);
  (bodies().*Member)(args);
}

const Kernels& kernels() {
  static const Kernels k = [] {
    Kernels t = {};
    t.name = "cuda on the host";
    t.keeps_bf16 = bodies().keeps_bf16;
#define DETENT_WRAP(name) t.name = Wrap<&Kernels::name>::call;
    DETENT_WRAP(fill)
    DETENT_WRAP(accumulate) DETENT_WRAP(accumulate16) DETENT_WRAP(narrow) DETENT_WRAP(widen) DETENT_WRAP(scale) DETENT_WRAP(count_nonfinite) DETENT_WRAP(gather) DETENT_WRAP(conv2d) DETENT_WRAP(conv2d_backward_data)
        DETENT_WRAP(conv2d_backward_filter) DETENT_WRAP(gemm) DETENT_WRAP(pointwise) DETENT_WRAP(pointwise_backward) DETENT_WRAP(binary) DETENT_WRAP(strided_copy)
            DETENT_WRAP(reduce_sum) DETENT_WRAP(max_pool) DETENT_WRAP(max_pool_backward) DETENT_WRAP(average_pool) DETENT_WRAP(average_pool_backward) DETENT_WRAP(average_codes)
                DETENT_WRAP(batch_norm_stats) DETENT_WRAP(batch_norm) DETENT_WRAP(batch_norm_backward) DETENT_WRAP(fake_quant) DETENT_WRAP(dequantize)
                    DETENT_WRAP(fake_quant_backward) DETENT_WRAP(add) DETENT_WRAP(quantized_backward) DETENT_WRAP(range_grads) DETENT_WRAP(round_bias) DETENT_WRAP(min_max)
                        DETENT_WRAP(histogram_acc) DETENT_WRAP(resize) DETENT_WRAP(resize_backward) DETENT_WRAP(softmax) DETENT_WRAP(softmax_backward) DETENT_WRAP(cross_entropy)
#undef DETENT_WRAP
                            t.sgd_step = step<SgdArgs, &Kernels::sgd_step>;
    t.adam_step = step<AdamArgs, &Kernels::adam_step>;
    return t;
  }();
  return k;
}

}  // namespace

extern "C" const detent::DeviceModule* detent_cuda_module() {
  static const DeviceModule module = [] {
    DeviceModule m = *detent_cuda_module_unchecked();
    m.kernels = &kernels();
    return m;
  }();
  return &module;
}
