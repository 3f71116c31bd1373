// Calibration of ResNet-50 against its float evaluation: kUsage says how.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "detent/bench/help.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/quant/quantsim.h"

namespace {

constexpr char kUsage[] = R"(Calibration of ResNet-50 (224x224, random images) against the float evaluation of the same images by the same folded network, in turns.
  calibration_bench [--images N] [--batch N] [--rounds N] [--threads N] [--scheme S] [--json]
Prints the seconds of both and their ratio (medians over the rounds) for each scheme: statistics, the search for ranges and the encoding of weights included.
)";

using namespace detent;
using Clock = std::chrono::steady_clock;

struct Options {
  std::vector<quant::Scheme> schemes = {quant::Scheme::tf, quant::Scheme::tf_enhanced, quant::Scheme::percentile, quant::Scheme::mse};
  int64_t images = 64, batch = 16, rounds = 3, threads = 0;
  bool json = false;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a == "--json") {
      o.json = true;
      continue;
    }
    int64_t* to = a == "--images" ? &o.images : a == "--batch" ? &o.batch : a == "--rounds" ? &o.rounds : a == "--threads" ? &o.threads : nullptr;
    if (a == "--scheme" && i + 1 < argc) {
      o.schemes = {quant::parse_scheme(argv[++i])};
      continue;
    }
    DETENT_CHECK(to, "unknown option ", a, "; there are --images, --batch, --rounds, --threads, --scheme and --json");
    DETENT_CHECK(i + 1 < argc, a, ": a value is missing");
    char* end = nullptr;
    *to = std::strtoll(argv[++i], &end, 10);
    DETENT_CHECK(*end == 0 && *to >= 1, a, " ", argv[i], ": give a positive whole number");
  }
  return o;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

template <class Fn>
double seconds_of(Fn&& fn) {
  const auto start = Clock::now();
  fn();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int run(const Options& o) {
  if (o.threads) set_num_threads(static_cast<int>(o.threads));
  nn::Graph net = nn::models::resnet50({.classes = 1000, .image_size = 224});
  nn::initialize(net, {.seed = 0});
  nn::fold_batch_norms(net);
  std::vector<Tensor> batches;
  Rng rng(1);
  for (int64_t n = 0; n < o.images; n += o.batch) {
    std::vector<float> v(static_cast<size_t>(std::min(o.batch, o.images - n) * 224 * 224 * 3));
    for (float& x : v) x = 2.0f * rng.uniform() - 1.0f;
    batches.push_back(Tensor::from<float>({std::min(o.batch, o.images - n), 224, 224, 3}, v));
  }
  const auto evaluate = [&] {
    for (const Tensor& b : batches) nn::infer(net, b);
  };
  evaluate();
  const size_t count = o.schemes.size();
  std::vector<std::vector<double>> plain(count), calibrated(count);
  for (int64_t round = 0; round < o.rounds; ++round) {
    for (size_t i = 0; i < count; ++i) {
      plain[i].push_back(seconds_of(evaluate));
      quant::QuantSim sim(net, {.scheme = o.schemes[i]});
      calibrated[i].push_back(seconds_of([&] { sim.compute_encodings([&] {
        for (const Tensor& b : batches) net(b);
      }); }));
    }
  }
  for (size_t i = 0; i < count; ++i) {
    const double a = median(plain[i]), b = median(calibrated[i]);
    const std::string scheme(quant::to_string(o.schemes[i]));
    if (o.json) {
      std::printf("{\"mode\":\"calibration\",\"scheme\":\"%s\",\"images\":%lld,\"batch\":%lld,\"threads\":%d,\"seconds\":{\"float_eval\":%.4f,\"calibration\":%.4f},\"ratio\":%.4f}\n", scheme.c_str(),
                  static_cast<long long>(o.images), static_cast<long long>(o.batch), num_threads(), a, b, b / a);
    } else {
      std::printf("%-16s float evaluation %.3f s, calibration %.3f s: %.3f times\n", scheme.c_str(), a, b, b / a);
    }
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
