// A first calibration batch of dark images: AIMET's histogram, fixed by the first batch, loses what comes later; the growing one does not.
#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "detent/io/data/loader.h"
#include "detent/io/weights.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/support/test_data.h"

using namespace detent;

TEST_CASE("a dark first batch spoils the range of a frozen histogram, not that of a growing one") {
  std::mt19937 rng(5);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const auto batch = [&](float brightness) {
    std::vector<float> v(20000);
    for (float& x : v) x = brightness * std::fabs(normal(rng));
    return Tensor::from<float>({20000}, v);
  };
  std::vector<Tensor> batches{batch(0.02f)};
  for (int i = 0; i < 5; ++i) batches.push_back(batch(1.0f));
  const auto calibrated = [&](quant::HistogramPolicy policy, bool dark_first) {
    quant::QuantizerSpec spec;
    spec.scheme = quant::Scheme::tf_enhanced;
    spec.estimator.histogram = policy;
    quant::Quantizer q("x", spec);
    q.observe();
    for (size_t i = dark_first ? 0 : 1; i < batches.size(); ++i) q.apply({}, Var(batches[i]));
    REQUIRE(q.finish_observing());
    return q.ranges().at(0).max;
  };
  const double good = calibrated(quant::HistogramPolicy::growing, false);
  CHECK(good > 2.0);
  CHECK(calibrated(quant::HistogramPolicy::frozen, true) < 0.2 * good);
  CHECK(calibrated(quant::HistogramPolicy::growing, true) == doctest::Approx(good).epsilon(0.1));
}

namespace {

// The same photographs, 25 times underexposed: pixels are scaled before the normalization of the preprocessing.
Tensor underexposed(const Tensor& images) {
  constexpr float kExposure = 0.04f, kMean[] = {0.485f, 0.456f, 0.406f}, kDeviation[] = {0.229f, 0.224f, 0.225f};
  std::vector<float> v = images.to_vector<float>();
  for (size_t i = 0; i < v.size(); ++i) v[i] = kExposure * v[i] + (kExposure - 1.0f) * kMean[i % 3] / kDeviation[i % 3];
  return Tensor::from<float>(images.shape(), v);
}

struct Calibrated {
  double top1 = 0.0;
  double width = 0.0;  // of the activation ranges, geometric mean
};

}  // namespace

TEST_CASE("ResNet-20 on photographs: a dark first batch costs the frozen histogram its accuracy, the growing one nothing") {
  DETENT_DATA_FILE(weights, "models/resnet20-cifar10.safetensors");
  DETENT_DATA_FILE(folder, "data/cifar10");
  nn::Graph net = nn::models::resnet20_cifar10();
  io::load_weights(net, weights);
  nn::fold_batch_norms(net);
  const auto batches_of = [&](const char* split, int64_t images) {
    const auto set = std::make_shared<io::TfRecordDataset>(folder, split, io::TfRecordOptions{});
    io::Loader loader(set, {.batch = 100, .preprocess = io::Preprocess::cifar, .classes = 10, .limit = images});
    std::vector<io::Batch> all;
    for (const io::Batch& b : loader) all.push_back(b);
    return all;
  };
  const std::vector<io::Batch> calibration = batches_of("train", 500), valid = batches_of("valid", 1000);
  const Tensor dark = underexposed(calibration[0].images);
  const auto run = [&](quant::HistogramPolicy policy, bool dark_first) {
    quant::QuantSimOptions options{.scheme = quant::Scheme::tf_enhanced};
    options.estimator.histogram = policy;
    quant::QuantSim sim(net, options);
    sim.compute_encodings([&] {
      if (dark_first) net(dark);
      for (size_t i = 1; i < calibration.size(); ++i) net(calibration[i].images);
    });
    Calibrated c;
    int n = 0;
    for (const quant::Placement& p : sim.placements()) {
      if (p.parameter) continue;
      const Range r = p.quantizer->ranges().at(0);
      c.width += std::log(r.max - r.min);
      ++n;
    }
    c.width = std::exp(c.width / n);
    c.top1 = nn::evaluate(net, valid).top1();
    return c;
  };
  const double plain = nn::evaluate(net, valid).top1();
  const Calibrated growing = run(quant::HistogramPolicy::growing, false), growing_dark = run(quant::HistogramPolicy::growing, true);
  const Calibrated frozen = run(quant::HistogramPolicy::frozen, false), frozen_dark = run(quant::HistogramPolicy::frozen, true);
  MESSAGE("float " << plain << "; growing " << growing.top1 << " (mean width " << growing.width << "), dark first " << growing_dark.top1 << " (" << growing_dark.width << "); frozen "
                   << frozen.top1 << " (" << frozen.width << "), dark first " << frozen_dark.top1 << " (" << frozen_dark.width << ")");
  CHECK(growing.top1 > plain - 0.01);
  CHECK(frozen.top1 > plain - 0.01);
  CHECK(growing_dark.top1 > growing.top1 - 0.005);
  CHECK(growing_dark.width == doctest::Approx(growing.width).epsilon(0.05));
  CHECK(frozen_dark.width < 0.8 * frozen.width);
  CHECK(frozen_dark.top1 < growing_dark.top1);
}
