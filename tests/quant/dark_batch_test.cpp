// A first calibration batch of dark images: AIMET's histogram, fixed by the first batch, loses what comes later; the growing one does not.
#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "detent/quant/quantizer.h"

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
