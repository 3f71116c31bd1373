// Memory-bound kernels in percent of memcpy: kUsage says how.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <vector>

#include "detent/bench/help.h"
#include "detent/core/backend.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"
#include "detent/core/tensor.h"

using namespace detent;

namespace {

constexpr char kUsage[] = R"(Memory-bound kernels in GB/s and in percent of memcpy, measured in the same run on buffers of the same size (preallocated, touched; read + write).
  quant_bench [--device cpu|cuda|cuda:N] [google-benchmark options]
--device cuda: the same on a GPU with 67 M elements, against its copy within the device; ten runs are timed at once.
Rates are the best of the run, as STREAM reports them; median_percent is the ratio of the medians.
Bytes counted per element: fake-quant forward 8, backward 12, batch norm 8, add+relu 12; statistics 4. Argument: threads (0: all cores).
Other options are Google Benchmark's: --benchmark_filter=REGEX, --benchmark_list_tests, --benchmark_out=FILE ...
)";

constexpr int64_t kChannels = 64, kSide = 112;
Device g_device;
int64_t g_images = 16;  // 51 MB of the first activation of ResNet-50

bool on_host() { return g_device.type == DeviceType::cpu; }
int64_t elements() { return g_images * kSide * kSide * kChannels; }
const Kernels& kernels() { return backend(g_device).kernels(); }

Tensor random_tensor(uint64_t seed, float lo, float hi) {
  Tensor t{Shape{elements()}};
  Rng rng(seed);
  float* p = t.data<float>();
  for (int64_t i = 0; i < elements(); ++i) p[i] = rng.uniform(lo, hi);
  return t.to(g_device);
}

// Plain values where the kernels read and write them.
template <class T>
class Placed {
 public:
  explicit Placed(const std::vector<T>& values) : memory_(Shape{static_cast<int64_t>(values.size() * sizeof(T))}, DType::u8, g_device) {
    backend(g_device).copy(memory_.raw(), g_device, values.data(), Device{}, values.size() * sizeof(T));
  }
  T* get() { return static_cast<T*>(memory_.raw()); }

 private:
  Tensor memory_;
};

struct Buffers {
  Tensor x = random_tensor(1, -1.0f, 4.0f), dy = random_tensor(2, -1.0f, 1.0f), y = random_tensor(3, 0.0f, 1.0f), z = random_tensor(4, 0.0f, 1.0f);
};

Buffers& buffers() {
  static Buffers& b = *new Buffers;
  return b;
}

// A launch is asynchronous: waiting for each would count the wait.
int repeats() { return on_host() ? 1 : 10; }

// memcpy in the pool's chunks, timed beside each measurement so that both see the same machine; bytes read + written per second.
double memcpy_once() {
  const auto start = std::chrono::steady_clock::now();
  float* y = buffers().z.data<float>();
  const float* x = buffers().x.data<float>();
  const auto bytes = static_cast<size_t>(elements()) * sizeof(float);
  if (!on_host()) {
    for (int i = 0; i < repeats(); ++i) backend(g_device).copy(y, g_device, x, g_device, bytes);
    backend(g_device).synchronize();
    return repeats() * 2.0 * static_cast<double>(bytes) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  if (num_threads() == 1) {
    std::memcpy(y, x, bytes);
  } else {
    const int64_t part = (elements() + num_threads() - 1) / num_threads();
    parallel_for(elements(), part, [&](int64_t begin, int64_t end) { std::memcpy(y + begin, x + begin, static_cast<size_t>(end - begin) * sizeof(float)); });
  }
  benchmark::ClobberMemory();
  return 2.0 * static_cast<double>(bytes) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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
  backend(g_device).synchronize();
  std::vector<double> copy, rate;
  for (auto _ : state) {
    copy.push_back(memcpy_once());
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats(); ++i) fn();
    backend(g_device).synchronize();
    benchmark::ClobberMemory();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats();
    rate.push_back(bytes_per_element * static_cast<double>(elements()) / seconds);
    state.SetIterationTime(seconds);
  }
  const double best_rate = *std::max_element(rate.begin(), rate.end()), best_copy = *std::max_element(copy.begin(), copy.end());
  state.counters["threads"] = num_threads();
  state.counters["GB/s"] = best_rate * 1e-9;
  state.counters["memcpy_GB/s"] = best_copy * 1e-9;
  state.counters["percent_of_memcpy"] = 100.0 * best_rate / best_copy;
  state.counters["median_percent"] = 100.0 * median(rate) / median(copy);
  state.SetLabel(backend(g_device).description());
  set_num_threads(before);
}

const Grid kGrid{.scale = 3.0f / 255.0f, .zero_point = 0, .qmin = 0, .qmax = 255};
ChannelView whole() { return {1, 1, elements()}; }
const Grid* one_grid() {
  static Placed<Grid>& grid = *new Placed<Grid>({kGrid});
  return grid.get();
}
const Grid* many_grids() {
  static Placed<Grid>& grids = *new Placed<Grid>(std::vector<Grid>(2048, kGrid));
  return grids.get();
}
double* sums() {
  static Placed<double>& sums = *new Placed<double>(std::vector<double>(4096));
  return sums.get();
}

float* x() { return buffers().x.data<float>(); }
float* dy() { return buffers().dy.data<float>(); }
float* y() { return buffers().y.data<float>(); }

void fake_quant_forward(benchmark::State& s) {
  measure(s, 8, [] { kernels().fake_quant({.view = whole(), .x = x(), .grids = one_grid(), .y = y()}); });
}
void fake_quant_backward(benchmark::State& s) {
  measure(s, 12, [] { kernels().fake_quant_backward({.view = whole(), .x = x(), .dy = dy(), .grids = one_grid(), .dx = y(), .scale_sum = sums(), .clip_sum = sums() + 1}); });
}
void fake_quant_codes(benchmark::State& s) {
  measure(s, 5, [] { kernels().fake_quant({.view = whole(), .x = x(), .grids = one_grid(), .codes = y()}); });
}
void fake_quant_per_channel(benchmark::State& s) {
  measure(s, 8, [] { kernels().fake_quant({.view = {1, 2048, elements() / 2048}, .x = x(), .grids = many_grids(), .y = y()}); });
}
void fake_quant_backward_per_channel(benchmark::State& s) {
  measure(s, 12, [] {
    kernels().fake_quant_backward(
        {.view = {1, 2048, elements() / 2048}, .x = x(), .dy = dy(), .grids = many_grids(), .dx = y(), .scale_sum = sums(), .clip_sum = sums() + 2048});
  });
}
void straight_through_mask(benchmark::State& s) {
  measure(s, 12, [] { kernels().fake_quant_backward({.view = whole(), .x = x(), .dy = dy(), .grids = one_grid(), .mask_on_value = true, .dx = y()}); });
}
void min_max(benchmark::State& s) {
  static Placed<float>& ends = *new Placed<float>(std::vector<float>(2));
  static Placed<int64_t>& nan = *new Placed<int64_t>(std::vector<int64_t>(1));
  measure(s, 4, [] { kernels().min_max({.view = whole(), .x = x(), .min = ends.get(), .max = ends.get() + 1, .nan = nan.get()}); });
}
void histogram(benchmark::State& s) {
  measure(s, 4, [] { kernels().histogram_acc({.x = x(), .n = elements(), .lo = -6.0f, .width = 15.0f / 512.0f, .counts = sums()}); });
}

struct NormState {
  using Values = std::vector<float>;
  Placed<float> mean{Values(kChannels)}, var{Values(kChannels, 1.0f)}, gamma{Values(kChannels, 1.0f)}, beta{Values(kChannels)}, dgamma{Values(kChannels)}, dbeta{Values(kChannels)};
};
NormState& norm() {
  static NormState& n = *new NormState;
  return n;
}
void batch_norm_stats(benchmark::State& s) {
  measure(s, 4, [] { kernels().batch_norm_stats({.rows = elements() / kChannels, .c = kChannels, .x = x(), .mean = norm().mean.get(), .var = norm().var.get()}); });
}
void batch_norm_relu(benchmark::State& s) {
  measure(s, 8, [] {
    kernels().batch_norm({.rows = elements() / kChannels, .c = kChannels, .x = x(), .mean = norm().mean.get(), .var = norm().var.get(), .gamma = norm().gamma.get(),
                          .beta = norm().beta.get(), .clamp_min = 0.0f, .y = y()});
  });
}
void batch_norm_backward(benchmark::State& s) {
  measure(s, 20, [] {  // x and dy twice, dx once
    kernels().batch_norm_backward({.rows = elements() / kChannels, .c = kChannels, .x = x(), .dy = dy(), .mean = norm().mean.get(), .var = norm().var.get(),
                                   .gamma = norm().gamma.get(), .dx = y(), .dgamma = norm().dgamma.get(), .dbeta = norm().dbeta.get()});
  });
}
void relu(benchmark::State& s) {
  const Pointwise op{PointwiseKind::clip, 0.0f, std::numeric_limits<float>::infinity()};
  measure(s, 8, [&] { kernels().pointwise({.op = op, .x = x(), .out = y(), .n = elements()}); });
}
void add(benchmark::State& s) {
  BinaryArgs a{.op = BinaryOp::add, .loop = {}, .a = x(), .b = dy(), .y = y()};
  a.loop.rank = 1;
  a.loop.extent[0] = elements();
  a.loop.a_stride[0] = a.loop.b_stride[0] = a.loop.y_stride[0] = 1;
  measure(s, 12, [&] { kernels().binary(a); });
}
void max_pool_3x3_s2(benchmark::State& s) {
  static Tensor& index = *new Tensor(Shape{elements() / 4}, DType::i32, g_device);
  PoolArgs a{.geometry = {}, .x = x(), .y = y(), .index = index.data<int32_t>()};
  ConvGeometry& g = a.geometry;
  g.n = g_images, g.h = g.w = kSide, g.c = g.k = 64, g.r = g.s = 3, g.oh = g.ow = 56, g.stride_h = g.stride_w = 2, g.pad_top = g.pad_left = 1;
  measure(s, 6, [&] { kernels().max_pool(a); });  // 4 read, 1 + 1 written
}
void sgd_momentum(benchmark::State& s) {
  const SgdTensor t{.w = y(), .g = dy(), .momentum = x(), .n = elements(), .learning_rate = 1e-12f};
  measure(s, 20, [&] { kernels().sgd_step({.tensors = &t, .count = 1}); });
}
void bias_gradient(benchmark::State& s) {
  ReduceSumArgs a{.loop = {}, .a = x(), .y = norm().dbeta.get(), .y_elements = kChannels};
  a.loop.rank = 2;
  a.loop.extent[0] = elements() / kChannels;
  a.loop.extent[1] = kChannels;
  a.loop.a_stride[0] = kChannels;
  a.loop.a_stride[1] = a.loop.y_stride[1] = 1;
  measure(s, 4, [&] { kernels().reduce_sum(a); });
}
void nhwc_to_nchw(benchmark::State& s) {
  StridedCopyArgs a{.loop = {}, .a = x(), .y = y()};
  a.loop.rank = 3;
  const int64_t pixels = kSide * kSide;
  const int64_t extent[] = {g_images, kChannels, pixels}, from[] = {pixels * kChannels, 1, kChannels}, to[] = {pixels * kChannels, pixels, 1};
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

int main(int argc, char** argv) {
  if (detent::bench::prints_help(argc, argv, kUsage)) return 0;
  try {
    for (int i = 1; i + 1 < argc; ++i) {
      if (std::strcmp(argv[i], "--device") != 0) continue;
      g_device = device_named(argv[i + 1]);
      if (!on_host()) g_images = 84;
      std::rotate(argv + i, argv + i + 2, argv + argc);  // the rest is for the benchmark library
      argc -= 2;
      break;
    }
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
  return 0;
}
