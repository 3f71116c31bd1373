// The CPU's kernels: the table, and the convolutions of every instruction set.
#include "conv_engines.h"
#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/kernels.h"
#include "kernel_support.h"

using namespace detent;

const Kernels& test::kernels() { return backend(Device{}).kernels(); }
void test::finish_kernels() {}

namespace {

void add_engine(std::vector<test::ConvEngine>* v, const char* name, const cpu::ConvIsa* isa) {
  v->push_back({.name = name,
                .conv2d = [isa](const Conv2dArgs& a) { cpu::conv2d(*isa, a); },
                .backward_data = [isa](const Conv2dBackwardDataArgs& a) { cpu::conv2d_backward_data(*isa, a); },
                .backward_filter = [isa](const Conv2dBackwardFilterArgs& a) { cpu::conv2d_backward_filter(*isa, a); },
                .gemm = [isa](const GemmArgs& a) { cpu::gemm(*isa, a); },
                .coded_bits = true,
                .sums_in_tiles = true});
}

// What bf16 does not compute is left to floats.
void add_bf16(std::vector<test::ConvEngine>* v, const cpu::Bf16Isa& isa) {
  const cpu::ConvIsa& floats = *cpu::conv_isa_avx512();
  v->push_back({.name = "bf16",
                .conv2d = [&](const Conv2dArgs& a) { if (!cpu::bf16_forward(isa, a)) cpu::conv2d(floats, a); },
                .backward_data = [&](const Conv2dBackwardDataArgs& a) { if (!cpu::bf16_backward_data(isa, a)) cpu::conv2d_backward_data(floats, a); },
                .backward_filter = [&](const Conv2dBackwardFilterArgs& a) { if (!cpu::bf16_backward_filter(isa, a)) cpu::conv2d_backward_filter(floats, a); },
                .gemm = [&](const GemmArgs& a) { cpu::gemm(floats, a); },
                .rounding = 0x1p-8,
                .sums_in_tiles = true});
}

}  // namespace

const std::vector<test::ConvEngine>& test::conv_engines() {
  static const std::vector<ConvEngine> engines = [] {
    std::vector<ConvEngine> v;
    v.push_back({.name = "scalar", .conv2d = cpu::scalar::conv2d, .backward_data = cpu::scalar::conv2d_backward_data, .backward_filter = cpu::scalar::conv2d_backward_filter, .gemm = cpu::scalar::gemm,
                 .coded_bits = true, .sums_in_tiles = true});
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add_engine(&v, "avx2", cpu::conv_isa_avx2());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      add_engine(&v, "avx512", cpu::conv_isa_avx512());
      if (const cpu::Bf16Isa* isa = cpu::bf16_isa()) add_bf16(&v, *isa);
    }
#endif
    return v;
  }();
  return engines;
}

TEST_CASE("a second call of the same shape makes no new raw allocation") {
  const ConvGeometry g{.n = 2, .h = 28, .w = 28, .c = 64, .k = 64, .r = 3, .s = 3, .oh = 28, .ow = 28, .pad_top = 1, .pad_left = 1};
  const std::vector<float> x = test::random_values(g.n * g.h * g.w * g.c), w = test::random_values(g.k * 9 * g.c);
  std::vector<float> y(x.size()), dx(x.size()), dw(w.size());
  const auto step = [&] {
    Conv2dArgs a{g, {}, w.data(), {}};
    a.input.x = x.data();
    a.epilogue.y = y.data();
    cpu::conv2d(a);
    cpu::conv2d_backward_data({g, y.data(), w.data(), dx.data()});
    cpu::conv2d_backward_filter({g, a.input, y.data(), dw.data(), nullptr});
  };
  step();
  const int64_t before = host_allocator().stats().raw_allocations, live = host_allocator().stats().live_bytes;
  for (int i = 0; i < 5; ++i) step();
  CHECK(host_allocator().stats().raw_allocations == before);
  CHECK(host_allocator().stats().live_bytes == live);
}
