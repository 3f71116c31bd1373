// A quantizer's state as bytes for checkpoints, and back.
#include <cmath>

#include "detent/core/bytes.h"
#include "detent/quant/quantizer.h"

namespace detent::quant {

std::string Quantizer::save() const {
  ByteWriter out;
  out.put(static_cast<uint8_t>(state_));
  out.put<uint64_t>(grids_.size());
  if (!grids_.empty()) {
    const std::vector<float> lo = min_.value.to_vector<float>(), hi = max_.value.to_vector<float>();
    for (size_t i = 0; i < grids_.size(); ++i) {
      out.put(lo[i]);
      out.put(hi[i]);
      out.put(good_[i]);
      out.put(initial_[i]);
      out.put(grids_[i]);
    }
  }
  out.put_string(estimator_ ? estimator_->save() : std::string());
  out.put(static_cast<uint8_t>(pinned_));
  out.put<uint64_t>(least_scale_.size());
  for (const double s : least_scale_) out.put(s);
  return out.take();
}

void Quantizer::restore(std::string_view bytes) {
  ByteReader in(bytes, text("quantizer \"", name_, "\""));
  const auto state = in.get<uint8_t>();
  DETENT_CHECK(state <= static_cast<uint8_t>(QuantizerState::learning), "quantizer \"", name_, "\": state ", state, " in the checkpoint is unknown");
  const uint64_t n = in.get_count(2 * sizeof(float) + 2 * sizeof(Range) + sizeof(Grid));
  std::vector<float> lo(n), hi(n);
  std::vector<Range> good(n), initial(n);
  std::vector<Grid> grids(n);
  for (uint64_t i = 0; i < n; ++i) {
    lo[i] = in.get<float>();
    hi[i] = in.get<float>();
    good[i] = in.get<Range>();
    initial[i] = in.get<Range>();
    grids[i] = in.get<Grid>();
    DETENT_CHECK(is_valid(grids[i]), "quantizer \"", name_, "\": grid ", i, " in the checkpoint is not valid");
    for (const Range& r : {Range{static_cast<double>(lo[i]), static_cast<double>(hi[i])}, good[i], initial[i]}) {
      DETENT_CHECK(std::isfinite(r.min) && std::isfinite(r.max), "quantizer \"", name_, "\": range ", i, " in the checkpoint, [", r.min, ", ", r.max, "], is not finite");
    }
  }
  const std::string_view statistics = in.get_string();
  std::unique_ptr<RangeEstimator> estimator;
  if (!statistics.empty()) {
    estimator = make_estimator(estimator_of(spec_.scheme), spec_.estimator);
    estimator->load(statistics);
  }
  const bool pinned = in.get<uint8_t>() != 0;
  std::vector<double> least(in.get_count(sizeof(double)));
  for (double& s : least) s = in.get<double>();
  DETENT_CHECK(least.empty() || least.size() == n, "quantizer \"", name_, "\": ", least.size(), " smallest scales for ", n, " grids in the checkpoint");
  DETENT_CHECK(in.done(), "quantizer \"", name_, "\": bytes are left over behind its state in the checkpoint");
  const bool needs_range = state == static_cast<uint8_t>(QuantizerState::frozen) || state == static_cast<uint8_t>(QuantizerState::learning);
  DETENT_CHECK(n > 0 || is_float() || !needs_range, "quantizer \"", name_, "\": the checkpoint holds no range");
  DETENT_CHECK(estimator || state != static_cast<uint8_t>(QuantizerState::observing), "quantizer \"", name_, "\": the checkpoint holds no calibration statistics");
  DETENT_CHECK(n <= 1 || spec_.channel_axis >= 0, "quantizer \"", name_, "\": ", n, " ranges in the checkpoint, this network has one; use the same configuration (--config)");
  if (n > 0) {
    const Shape shape{static_cast<int64_t>(n)};
    min_.value = Tensor::from<float>(shape, lo);
    max_.value = Tensor::from<float>(shape, hi);
  }
  good_ = std::move(good);
  initial_ = std::move(initial);
  grids_ = std::move(grids);
  estimator_ = std::move(estimator);
  least_scale_ = std::move(least);
  pinned_ = pinned;
  encoded_ = 0;
  state_ = static_cast<QuantizerState>(state);
}

}  // namespace detent::quant
