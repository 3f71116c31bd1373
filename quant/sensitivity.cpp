#include "detent/quant/sensitivity.h"

#include <algorithm>
#include <unordered_set>

#include "detent/nn/train.h"

namespace detent::quant {
namespace {

class OnScope {
 public:
  explicit OnScope(Quantizer& q) : q_(q) { q_.enable(); }
  ~OnScope() { q_.disable(); }
  OnScope(const OnScope&) = delete;
  OnScope& operator=(const OnScope&) = delete;

 private:
  Quantizer& q_;
};

std::vector<float> scores(nn::Graph& g, const std::vector<Tensor>& batches) {
  std::vector<float> all;
  for (const Tensor& b : batches) {
    const std::vector<float> some = nn::infer(g, b).to_vector<float>();
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

std::vector<float> scores_with(Quantizer& q, nn::Graph& g, const std::vector<Tensor>& batches) {
  const OnScope on(q);
  return scores(g, batches);
}

double noise(const std::vector<float>& x, const std::vector<float>& reference) {
  double error = 0.0, signal = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double r = static_cast<double>(reference[i]), d = static_cast<double>(x[i]) - r;
    error += d * d;
    signal += r * r;
  }
  return signal > 0.0 ? error / signal : 0.0;
}

}  // namespace

std::vector<Sensitivity> sensitivities(QuantSim& sim, const std::vector<Tensor>& batches, const std::function<void(int64_t)>& on_each) {
  DETENT_CHECK(!batches.empty(), "sensitivities: no images were given; some calibration batches are enough");
  DETENT_CHECK(sim.has_ranges(), "sensitivities: no quantizer has a range; run compute_encodings first");
  std::vector<Sensitivity> found;
  std::unordered_set<const Quantizer*> seen;
  const FloatScope all_off(sim);
  const std::vector<float> reference = scores(sim.graph(), batches);
  for (const Placement& p : sim.placements()) {
    if (!p.quantizer->calibrated() || !seen.insert(p.quantizer.get()).second) continue;
    found.push_back({p.name, p.quantizer->spec().grid.bits, noise(scores_with(*p.quantizer, sim.graph(), batches), reference)});
    if (on_each) on_each(static_cast<int64_t>(found.size()));
  }
  std::stable_sort(found.begin(), found.end(), [](const Sensitivity& a, const Sensitivity& b) { return a.noise > b.noise; });
  return found;
}

}  // namespace detent::quant
