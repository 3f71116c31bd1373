// Memory-bound kernels in GB/s and in percent of memcpy, measured in the same run on buffers of the same size (preallocated, touched; read + write).
// Rates are the best of the run, as STREAM reports them; median_percent is the ratio of the medians.
// Bytes counted per element: fake-quant forward 8, backward 12, batch norm 8, add+relu 12; statistics 4. Argument: threads (0: all cores).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <vector>

#include "detent/core/backend.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"
#include "detent/core/tensor.h"

using namespace detent;

namespace {

constexpr int64_t kElements = int64_t{16} * 112 * 112 * 64;  // 51 MB: the first activation of ResNet-50, 16 images
constexpr int64_t kChannels = 64;

const Kernels& kernels() { return backend(Device{}).kernels(); }

Tensor random_tensor(uint64_t seed, float lo, float hi) {
  Tensor t{Shape{kElements}};
  Rng rng(seed);
  float* p = t.data<float>();
  for (int64_t i = 0; i < kElements; ++i) p[i] = rng.uniform(lo, hi);
  return t;
}

struct Buffers {
  Tensor x = random_tensor(1, -1.0f, 4.0f), dy = random_tensor(2, -1.0f, 1.0f), y = random_tensor(3, 0.0f, 1.0f), z = random_tensor(4, 0.0f, 1.0f);
};

Buffers& buffers() {
  static Buffers& b = *new Buffers;
  return b;
}

// memcpy in the pool's chunks, timed beside each measurement so that both see the same machine; bytes read + written per second.
double memcpy_once() {
  const auto start = std::chrono::steady_clock::now();
  float* y = buffers().z.data<float>();
  const float* x = buffers().x.data<float>();
  if (num_threads() == 1) {
    std::memcpy(y, x, kElements * sizeof(float));
  } else {
    const int64_t part = (kElements + num_threads() - 1) / num_threads();
    parallel_for(kElements, part, [&](int64_t begin, int64_t end) { std::memcpy(y + begin, x + begin, static_cast<size_t>(end - begin) * sizeof(float)); });
  }
  benchmark::ClobberMemory();
  return 8.0 * static_cast<double>(kElements) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + std::ssize(v) / 2, v.end());
  return v[v.size() / 2];
}

template <class Fn>
void measure(benchmark::State& state, double bytes_per_element, Fn&& fn) {
  const int before = num_threads();
  if (state.range(0) > 0) set_num_threads(static_cast<int>(state.range(0)));
  fn();
  std::vector<double> copy, rate;
  for (auto _ : state) {
    copy.push_back(memcpy_once());
    const auto start = std::chrono::steady_clock::now();
    fn();
    benchmark::ClobberMemory();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    rate.push_back(bytes_per_element * static_cast<double>(kElements) / seconds);
    state.SetIterationTime(seconds);
  }
  const double best_rate = *std::max_element(rate.begin(), rate.end()), best_copy = *std::max_element(copy.begin(), copy.end());
  state.counters["threads"] = num_threads();
  state.counters["GB/s"] = best_rate * 1e-9;
  state.counters["memcpy_GB/s"] = best_copy * 1e-9;
  state.counters["percent_of_memcpy"] = 100.0 * best_rate / best_copy;
  state.counters["median_percent"] = 100.0 * median(rate) / median(copy);
  state.SetLabel(backend(Device{}).description());
  set_num_threads(before);
}

const Grid kGrid{.scale = 3.0f / 255.0f, .zero_point = 0, .qmin = 0, .qmax = 255};
const ChannelView kWhole{1, 1, kElements};

float* x() { return buffers().x.data<float>(); }
float* dy() { return buffers().dy.data<float>(); }
float* y() { return buffers().y.data<float>(); }

void fake_quant_forward(benchmark::State& s) {
  measure(s, 8, [] { kernels().fake_quant({.view = kWhole, .x = x(), .grids = &kGrid, .y = y()}); });
}
void fake_quant_backward(benchmark::State& s) {
  double scale = 0.0, clip = 0.0;
  measure(s, 12, [&] { kernels().fake_quant_backward({.view = kWhole, .x = x(), .dy = dy(), .grids = &kGrid, .dx = y(), .scale_sum = &scale, .clip_sum = &clip}); });
}
void fake_quant_codes(benchmark::State& s) {
  measure(s, 5, [] { kernels().fake_quant({.view = kWhole, .x = x(), .grids = &kGrid, .codes = y()}); });
}
void fake_quant_per_channel(benchmark::State& s) {
  static const std::vector<Grid> grids(2048, kGrid);
  measure(s, 8, [] { kernels().fake_quant({.view = {1, 2048, kElements / 2048}, .x = x(), .grids = grids.data(), .y = y()}); });
}
void fake_quant_backward_per_channel(benchmark::State& s) {
  static const std::vector<Grid> grids(2048, kGrid);
  static std::vector<double> sums(4096);
  measure(s, 12, [] {
    kernels().fake_quant_backward(
        {.view = {1, 2048, kElements / 2048}, .x = x(), .dy = dy(), .grids = grids.data(), .dx = y(), .scale_sum = sums.data(), .clip_sum = sums.data() + 2048});
  });
}
void straight_through_mask(benchmark::State& s) {
  measure(s, 12, [] { kernels().fake_quant_backward({.view = kWhole, .x = x(), .dy = dy(), .grids = &kGrid, .mask_on_value = true, .dx = y()}); });
}
void min_max(benchmark::State& s) {
  float lo, hi;
  int64_t nan;
  measure(s, 4, [&] { kernels().min_max({.view = kWhole, .x = x(), .min = &lo, .max = &hi, .nan = &nan}); });
}
void histogram(benchmark::State& s) {
  static std::vector<double> counts(512);
  measure(s, 4, [] { kernels().histogram_acc({.x = x(), .n = kElements, .lo = -6.0f, .width = 15.0f / 512.0f, .counts = counts.data()}); });
}

struct NormState {
  std::vector<float> mean = std::vector<float>(kChannels), var = std::vector<float>(kChannels, 1.0f), gamma = var, beta = mean, dgamma = mean, dbeta = mean;
};
NormState& norm() {
  static NormState& n = *new NormState;
  return n;
}
void batch_norm_stats(benchmark::State& s) {
  measure(s, 4, [] { kernels().batch_norm_stats({.rows = kElements / kChannels, .c = kChannels, .x = x(), .mean = norm().mean.data(), .var = norm().var.data()}); });
}
void batch_norm_relu(benchmark::State& s) {
  measure(s, 8, [] {
    kernels().batch_norm({.rows = kElements / kChannels, .c = kChannels, .x = x(), .mean = norm().mean.data(), .var = norm().var.data(), .gamma = norm().gamma.data(),
                          .beta = norm().beta.data(), .clamp_min = 0.0f, .y = y()});
  });
}
void batch_norm_backward(benchmark::State& s) {
  measure(s, 20, [] {  // x and dy twice, dx once
    kernels().batch_norm_backward({.rows = kElements / kChannels, .c = kChannels, .x = x(), .dy = dy(), .mean = norm().mean.data(), .var = norm().var.data(),
                                   .gamma = norm().gamma.data(), .dx = y(), .dgamma = norm().dgamma.data(), .dbeta = norm().dbeta.data()});
  });
}
void relu(benchmark::State& s) {
  const Pointwise op{PointwiseKind::clip, 0.0f, std::numeric_limits<float>::infinity()};
  measure(s, 8, [&] { kernels().pointwise({.op = op, .x = x(), .out = y(), .n = kElements}); });
}
void add(benchmark::State& s) {
  BinaryArgs a{.op = BinaryOp::add, .loop = {}, .a = x(), .b = dy(), .y = y()};
  a.loop.rank = 1;
  a.loop.extent[0] = kElements;
  a.loop.a_stride[0] = a.loop.b_stride[0] = a.loop.y_stride[0] = 1;
  measure(s, 12, [&] { kernels().binary(a); });
}
void max_pool_3x3_s2(benchmark::State& s) {
  static std::vector<int32_t> index(kElements / 4);
  PoolArgs a{.geometry = {}, .x = x(), .y = y(), .index = index.data()};
  ConvGeometry& g = a.geometry;
  g.n = 16, g.h = g.w = 112, g.c = g.k = 64, g.r = g.s = 3, g.oh = g.ow = 56, g.stride_h = g.stride_w = 2, g.pad_top = g.pad_left = 1;
  measure(s, 6, [&] { kernels().max_pool(a); });  // 4 read, 1 + 1 written
}
void sgd_momentum(benchmark::State& s) {
  const SgdTensor t{.w = y(), .g = dy(), .momentum = x(), .n = kElements, .learning_rate = 1e-12f};
  measure(s, 20, [&] { kernels().sgd_step({.tensors = &t, .count = 1}); });
}
void bias_gradient(benchmark::State& s) {
  ReduceSumArgs a{.loop = {}, .a = x(), .y = norm().dbeta.data(), .y_elements = kChannels};
  a.loop.rank = 2;
  a.loop.extent[0] = kElements / kChannels;
  a.loop.extent[1] = kChannels;
  a.loop.a_stride[0] = kChannels;
  a.loop.a_stride[1] = a.loop.y_stride[1] = 1;
  measure(s, 4, [&] { kernels().reduce_sum(a); });
}
void nhwc_to_nchw(benchmark::State& s) {
  StridedCopyArgs a{.loop = {}, .a = x(), .y = y()};
  a.loop.rank = 3;
  const int64_t pixels = 112 * 112;
  const int64_t extent[] = {16, kChannels, pixels}, from[] = {pixels * kChannels, 1, kChannels}, to[] = {pixels * kChannels, pixels, 1};
  for (int d = 0; d < 3; ++d) a.loop.extent[d] = extent[d], a.loop.a_stride[d] = from[d], a.loop.y_stride[d] = to[d];
  measure(s, 8, [&] { kernels().strided_copy(a); });
}

#define DETENT_BENCH(f) BENCHMARK(f)->Arg(1)->Arg(0)->UseManualTime()->Unit(benchmark::kMillisecond)
DETENT_BENCH(fake_quant_forward);
DETENT_BENCH(fake_quant_backward);
DETENT_BENCH(fake_quant_codes);
DETENT_BENCH(fake_quant_per_channel);
DETENT_BENCH(fake_quant_backward_per_channel);
DETENT_BENCH(straight_through_mask);
DETENT_BENCH(min_max);
DETENT_BENCH(histogram);
DETENT_BENCH(batch_norm_stats);
DETENT_BENCH(batch_norm_relu);
DETENT_BENCH(batch_norm_backward);
DETENT_BENCH(relu);
DETENT_BENCH(add);
DETENT_BENCH(max_pool_3x3_s2);
DETENT_BENCH(bias_gradient);
DETENT_BENCH(nhwc_to_nchw);
DETENT_BENCH(sgd_momentum);

}  // namespace

BENCHMARK_MAIN();
