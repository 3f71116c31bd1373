// Times every convolution of ResNet-50, MobileNetV2 and ResNet-20 against the FMA peak: kUsage says how.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <string>
#include <vector>

#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/fma_peak.h"
#include "detent/backends/cpu/integer.h"
#include "detent/backends/cpu/isa.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/bench/help.h"
#include "detent/core/allocator.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"
#include "shapes.h"

namespace {

constexpr char kUsage[] = R"(Times every convolution of ResNet-50, MobileNetV2 (batch 16) and ResNet-20 (batch 128) in three directions, and forward on integers, in GFLOP/s and as a share
of the FMA peak (integers: of their multiply-add peak), and prints for each network and direction the share weighted by the time its layers take.
  conv_bench [--threads=1,2] [--codes] [--bf16] [google-benchmark options]
--codes: the input of backward-filter is codes too, and there is a forward that decodes them. --bf16: products of that precision, the peak is theirs.
The peak is measured at once before each layer, on as many threads, because a shared machine changes speed under way.
Other options are Google Benchmark's: --benchmark_filter=REGEX, --benchmark_list_tests, --benchmark_out=FILE ...
)";

using namespace detent;

enum Direction { kForward, kForwardCodes, kBackwardData, kBackwardFilter, kInteger };
constexpr const char* kDirections[] = {"forward", "forward_codes", "backward_data", "backward_filter", "integer"};

struct Total {
  double seconds = 0.0, cpu_seconds = 0.0, peak_seconds = 0.0, cpu_peak_seconds = 0.0;
};
std::map<std::string, Total>& totals() {
  static std::map<std::string, Total> t;
  return t;
}

double seconds_since(std::chrono::steady_clock::time_point t) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count(); }

// Processor time of all threads: on a machine shared with other work the better measure of the kernels, though blind to waiting.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// FLOP/s of all threads together, by the clock and by processor time; the best of a few short runs.
struct Peak {
  double wall = 0.0, cpu = 0.0;
};
Peak peak(int threads, bool integer) {
  Peak best;
  for (int i = 0; i < 5; ++i) {
    const auto t = std::chrono::steady_clock::now();
    const double c = cpu_seconds();
    const int64_t chunks = 16 * threads;
    std::vector<double> each(static_cast<size_t>(chunks));
    parallel_chunks(chunks, [&](int64_t k) { each[static_cast<size_t>(k)] = integer ? cpu::integer_burst(100000) : cpu::bf16_products() ? cpu::bf16_burst(100000) : cpu::fma_burst(cpu::isa(), 100000); });
    double flop = 0.0;
    for (double f : each) flop += f;
    best.cpu = std::max(best.cpu, flop / (cpu_seconds() - c) * threads);
    best.wall = std::max(best.wall, flop / seconds_since(t));
  }
  return best;
}

// Memory as tensors have it.
template <class T>
struct Buffer {
  size_t n;
  T* p;
  explicit Buffer(int64_t count) : n(static_cast<size_t>(count)), p(static_cast<T*>(host_allocator().allocate(n * sizeof(T)))) {
    Rng rng(1, 1);
    for (size_t i = 0; i < n; ++i) p[i] = static_cast<T>(rng.uniform(sizeof(T) == 1 ? 0.0f : -1.0f, sizeof(T) == 1 ? 255.9f : 1.0f));
  }
  ~Buffer() { host_allocator().release(p, n * sizeof(T)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return p; }
};

struct Buffers {
  Buffer<float> x, w, y, dx, dw;
  Buffer<uint8_t> codes, y_codes, packed;
  Buffer<int32_t> offset;
  explicit Buffers(const ConvGeometry& g)
      : x(g.n * g.h * g.w * g.c), w(g.k * g.r * g.s * g.c / g.groups), y(g.n * g.oh * g.ow * g.k), dx(g.n * g.h * g.w * g.c), dw(g.k * g.r * g.s * g.c / g.groups), codes(g.n * g.h * g.w * g.c),
        y_codes(g.n * g.oh * g.ow * g.k), packed(cpu::integer_kernels().packed_bytes(g)), offset(g.k) {}
};

bool filter_codes = false;

void call(Direction d, const ConvGeometry& g, Buffers& b) {
  if (d == kInteger) {
    // Any bytes are packed weights, any floats multipliers.
    return cpu::integer_kernels().conv2d({g, b.codes.data(), 3, b.packed.data(), b.offset.data(), b.y.data(), {0.01f, 3, 0, 255}, {0, 255}, b.y_codes.data()});
  }
  ConvInput input;
  if (d == kForwardCodes || (d == kBackwardFilter && filter_codes)) {
    input.codes = b.codes.data();
    input.grid = {0.01f, 3, 0, 255};
  } else {
    input.x = b.x.data();
  }
  if (d == kForward || d == kForwardCodes) {
    Conv2dArgs a{g, input, b.w.data(), {}};
    a.epilogue.y = b.y.data();
    cpu::conv2d(a);
  } else if (d == kBackwardData) {
    cpu::conv2d_backward_data({g, b.y.data(), b.w.data(), b.dx.data()});
  } else {
    cpu::conv2d_backward_filter({g, input, b.y.data(), b.dw.data(), nullptr});
  }
}

void run(benchmark::State& state, const char* network, const bench::ConvShape& shape, int64_t batch, Direction d, int threads) {
  set_num_threads(threads);
  const ConvGeometry g = bench::geometry_of(shape, batch);
  Buffers b(g);
  call(d, g, b);
  const Peak limit = peak(threads, d == kInteger);
  double best = 1e30, best_cpu = 1e30;
  for (auto _ : state) {
    const auto t = std::chrono::steady_clock::now();
    const double cpu = cpu_seconds();
    call(d, g, b);
    best_cpu = std::min(best_cpu, (cpu_seconds() - cpu) / threads);
    const double s = seconds_since(t);
    best = std::min(best, s);
    state.SetIterationTime(s);
  }
  const double rate = bench::flops(g) / best;
  state.counters["GFLOPS"] = rate * 1e-9;
  state.counters["peak_GFLOPS"] = limit.wall * 1e-9;
  state.counters["percent"] = 100.0 * rate / limit.wall;
  state.counters["cpu_percent"] = 100.0 * bench::flops(g) / best_cpu / limit.cpu;
  Total& total = totals()[std::string(network) + "/" + kDirections[d] + "/threads:" + std::to_string(threads)];
  total.seconds += best * static_cast<double>(shape.count);
  total.cpu_seconds += best_cpu * static_cast<double>(shape.count);
  total.cpu_peak_seconds += bench::flops(g) / limit.cpu * static_cast<double>(shape.count);
  total.peak_seconds += bench::flops(g) / limit.wall * static_cast<double>(shape.count);
}

template <size_t N>
void add(const char* network, const bench::ConvShape (&shapes)[N], int64_t batch, const std::vector<int>& threads, bool codes) {
  for (int t : threads) {
    for (int d = kForward; d <= kInteger; ++d) {
      if (d == kForwardCodes && !codes) continue;
      for (const bench::ConvShape& s : shapes) {
        if (d == kBackwardData && &s == shapes) continue;  // the first layer's input needs no gradient
        const std::string name = std::string(network) + "/" + kDirections[d] + "/threads:" + std::to_string(t) + "/" + s.name;
        benchmark::RegisterBenchmark(name.c_str(), [=, &s](benchmark::State& state) { run(state, network, s, batch, static_cast<Direction>(d), t); })
            ->UseManualTime()
            ->Iterations(20)
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (detent::bench::prints_help(argc, argv, kUsage)) return 0;
  std::vector<int> threads = {1, 2};
  bool codes = false;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--threads=", 10) == 0) {
      threads.clear();
      for (const char* p = argv[i] + 10; *p; p += *p == ',') {
        char* end = nullptr;
        threads.push_back(static_cast<int>(std::strtol(p, &end, 10)));
        if (end == p || threads.back() < 1) {
          std::fprintf(stderr, "conv_bench: %s: give numbers, as in --threads=1,2\n", argv[i]);
          return 2;
        }
        p = end;
      }
    } else if (std::strcmp(argv[i], "--codes") == 0) {
      codes = filter_codes = true;
    } else if (std::strcmp(argv[i], "--bf16") == 0) {
      cpu::set_precision(Precision::bf16);
      if (!cpu::bf16_products()) {
        std::fprintf(stderr, "conv_bench: --bf16: this processor has no bf16 products, or they are slower than those of floats (DETENT_ISA=avx512_bf16 insists on them)\n");
        return 2;
      }
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  add("resnet50", bench::kResNet50, 16, threads, codes);
  add("mobilenetv2", bench::kMobileNetV2, 16, threads, codes);
  add("resnet20", bench::kResNet20, 128, threads, codes);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  for (const auto& [name, t] : totals()) {
    std::printf("summary %-40s %8.2f ms, %5.1f %% of the peak, time-weighted (%5.1f %% by processor time)\n", name.c_str(), 1e3 * t.seconds, 100.0 * t.peak_seconds / t.seconds,
                100.0 * t.cpu_peak_seconds / t.cpu_seconds);
  }
}
