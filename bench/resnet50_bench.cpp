// Images per second of ResNet-50, float and quantized: kUsage says how.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "detent/autograd/profile.h"
#include "detent/bench/help.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/quant/quantsim.h"

namespace {

constexpr char kUsage[] = R"(ResNet-50 at 224x224 on random images: images per second of evaluation and training, float and quantized. One JSON line with --json.
  resnet50_bench --mode eval|train|qat-train|qat-eval|int8-eval --batch N --threads N --steps N --device cpu|cuda|auto [--precision f32|tf32|bf16] [--record 0] --json
--products floats: quantized layers multiply floats, the reference of multiplying integers.
On a GPU forward and backward of a training step are recorded and replayed (a CUDA graph), unless --record 0; the JSON line says how many steps were replays.
--profile: after the timed steps as many more, with a table of the time of each layer.
train: the unfolded network with batch norm in training mode; with --folded 1 that of qat-*, in float. qat-*: folded, W8A8, learned ranges. int8-eval: that network by integer execution.
)";

using namespace detent;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string mode = "eval", device = "cpu", config, precision, products = "integers";
  int64_t batch = 16, steps = 5, warmup = 2, image_size = 224;
  int threads = 0;
  bool json = false, record = true, profile = false, folded = false;
};

int64_t number(const std::string& option, const char* text_) {
  char* end = nullptr;
  const long long v = std::strtoll(text_, &end, 10);
  DETENT_CHECK(end != text_ && *end == 0 && v >= 1, option, " ", text_, ": give a positive whole number");
  return v;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a == "--json") {
      o.json = true;
      continue;
    }
    if (a == "--profile") {
      o.profile = true;
      continue;
    }
    DETENT_CHECK(i + 1 < argc, a, ": a value is missing, or the option is unknown");
    const char* v = argv[++i];
    if (a == "--mode") o.mode = v;
    else if (a == "--device") o.device = v;
    else if (a == "--precision") o.precision = v;
    else if (a == "--config") o.config = v;
    else if (a == "--batch") o.batch = number(a, v);
    else if (a == "--steps") o.steps = number(a, v);
    else if (a == "--warmup") o.warmup = number(a, v);
    else if (a == "--image-size") o.image_size = number(a, v);
    else if (a == "--products") o.products = v;
    else if (a == "--folded") o.folded = std::strcmp(v, "1") == 0;
    else if (a == "--record") o.record = std::strcmp(v, "0") != 0;
    else if (a == "--threads") o.threads = static_cast<int>(number(a, v));
    else fail("unknown option ", a);
  }
  DETENT_CHECK(o.mode == "eval" || o.mode == "train" || o.mode == "qat-train" || o.mode == "qat-eval" || o.mode == "int8-eval", "--mode ", o.mode, ": give eval, train, qat-train, qat-eval or int8-eval");
  return o;
}

Tensor random_images(int64_t n, int64_t size) {
  std::vector<float> v(static_cast<size_t>(n * size * size * 3));
  Rng rng(1);
  for (float& x : v) x = 2.0f * rng.uniform() - 1.0f;
  return Tensor::from<float>({n, size, size, 3}, v);
}

// Since the process was started, by the kernel's clock (hundredths of a second).
double seconds_since_start() {
  std::ifstream stat("/proc/self/stat"), uptime("/proc/uptime");
  std::string line;
  std::getline(stat, line);
  double up = 0.0;
  uptime >> up;
  const char* at = std::strrchr(line.c_str(), ')');
  if (!at) return 0.0;
  unsigned long long ticks = 0;
  int field = 2;
  for (const char* p = at + 1; *p && field < 22; ++p) {
    if (*p == ' ' && ++field == 22) ticks = std::strtoull(p + 1, nullptr, 10);
  }
  return up - static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

void print_profile(const Profile& profile, int64_t steps) {
  const double all = profile.seconds(), ms = 1e3 / static_cast<double>(steps);
  std::printf("%-44s %10s %10s %7s\n", "layer", "forward ms", "backward", "share");
  for (const Profile::Row& r : profile.rows()) {
    std::printf("%-44s %10.2f %10.2f %6.2f%%\n", r.name.c_str(), ms * r.forward, ms * r.backward, 100.0 * (r.forward + r.backward) / all);
  }
  std::printf("%-44s %21.2f\n", "all", ms * all);
}

int run(const Options& o) {
  if (o.threads) set_num_threads(o.threads);
  const Device device = device_named(o.device);
  if (!o.precision.empty()) backend(device).set_precision(precision_named(o.precision));
  nn::Graph net = nn::models::resnet50({.classes = 1000, .image_size = o.image_size});
  nn::initialize(net, {.seed = 0});
  DETENT_CHECK(o.products == "integers" || o.products == "floats", "--products ", o.products, ": give integers or floats");
  if (o.products == "floats") net.set_products(Products::floats);
  net.to(device);
  nn::infer(net, random_images(1, o.image_size));
  backend(device).synchronize();
  const double first = seconds_since_start();

  const Tensor images = random_images(o.batch, o.image_size).to(device);
  std::vector<int64_t> classes(static_cast<size_t>(o.batch));
  for (size_t i = 0; i < classes.size(); ++i) classes[i] = static_cast<int64_t>(i * 37 % 1000);
  const Tensor labels = Tensor::from<int64_t>({o.batch}, classes);
  std::unique_ptr<quant::QuantSim> sim;
  if (o.folded || o.mode.starts_with("qat") || o.mode == "int8-eval") nn::fold_batch_norms(net);
  if (o.mode.starts_with("qat") || o.mode == "int8-eval") {
    quant::QuantSimOptions options;
    options.scheme = quant::Scheme::range_learning_tf;
    if (!o.config.empty()) options.config = quant::default_config(o.config);
    sim = std::make_unique<quant::QuantSim>(net, options);
    sim->compute_encodings([&] { net(images); });
    if (o.mode == "int8-eval") net.set_execution(nn::Graph::Execution::integer);
  }
  nn::Sgd sgd({.learning_rate = 1e-5f});
  nn::Trainer trainer(net, sgd, {.base = 1e-5f});
  trainer.record = o.record;
  // Recorded is the second step of its kind, and learned ranges leave calibration's in the first.
  const int64_t warmup = std::max<int64_t>(o.warmup, o.record && backend(device).records() ? 4 : 0);
  const bool training = o.mode.ends_with("train");
  std::vector<double> rates;
  for (int64_t i = 0; i < warmup + o.steps; ++i) {
    const auto start = Clock::now();
    if (training) trainer.step(images, labels);
    else nn::infer(net, images);
    backend(device).synchronize();
    if (i >= warmup) rates.push_back(static_cast<double>(o.batch) / std::chrono::duration<double>(Clock::now() - start).count());
  }
  if (o.profile) {
    Profile profile(device);
    for (int64_t i = 0; i < o.steps; ++i) training ? (void)trainer.step(images, labels) : (void)nn::infer(net, images);
    print_profile(profile, o.steps);
  }
  std::sort(rates.begin(), rates.end());
  const size_t n = rates.size();
  const double median = n % 2 ? rates[n / 2] : 0.5 * (rates[n / 2 - 1] + rates[n / 2]);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const long long rss = static_cast<long long>(usage.ru_maxrss) * 1024;
  if (o.json) {
    std::printf("{\"mode\":\"%s\",\"device\":\"%s\",\"batch\":%lld,\"threads\":%d,\"steps\":%lld,\"replayed\":%lld,\"images_per_second\":{\"median\":%.4f,\"min\":%.4f,\"max\":%.4f},\"peak_rss_bytes\":%lld,\"seconds_to_first_batch\":%.2f}\n",
                o.mode.c_str(), device.type == DeviceType::cpu ? "cpu" : "cuda", static_cast<long long>(o.batch), num_threads(), static_cast<long long>(o.steps), static_cast<long long>(trainer.recorded().replays()), median, rates.front(), rates.back(), rss, first);
  } else {
    std::printf("%s, %s, %d threads, batch %lld: %.2f images/s (%.2f..%.2f), peak memory %.0f MB, first result after %.2f s\n", o.mode.c_str(), backend(device).description(), num_threads(),
                static_cast<long long>(o.batch), median, rates.front(), rates.back(), static_cast<double>(rss) / 1e6, first);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (detent::bench::prints_help(argc, argv, kUsage)) return 0;
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
}
