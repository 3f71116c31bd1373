// Quantizer: sits in the slot of a Graph value or a Parameter and puts it on an integer grid. One thread uses a quantizer at a time.
// States: off -> observing -> frozen | learning; an illegal transition throws Error naming it. Learned bounds are Parameters like any weight.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "detent/autograd/ops.h"
#include "detent/nn/module.h"
#include "detent/quant/estimators/estimator.h"
#include "detent/quant/scheme.h"

namespace detent::quant {

enum class QuantizerState : uint8_t { off, observing, frozen, learning };
std::string_view to_string(QuantizerState s);

/// How learned bounds move.
enum class RangeRule : uint8_t {
  gated,  ///< AIMET's gradients; a step moves a bound by at most half the width, zero stays inside, ReLU's 0 and Clip's bounds are kept
  lsq,    ///< gated, with LSQ's gradient scale 1/sqrt(n * qmax) (Esser et al. 2020 §2.2)
  aimet,  ///< AIMET's exact rule: bounds are free but for a width of 1e-5; the grid is that of learned_range
};
std::string_view to_string(RangeRule r);

struct QuantizerSpec {
  GridSpec grid;
  NumberFormat format = NumberFormat::integer;  ///< otherwise grid.bits is 16 and the rest of `grid` means nothing
  Scheme scheme = Scheme::range_learning_tf;
  RangeRule rule = RangeRule::gated;
  int channel_axis = -1;                       ///< -1: one grid for the tensor
  bool parameter = false;                      ///< a weight: encoded from its values, not from calibration
  bool keep_frozen = false;                    ///< the range is calibrated and never learned
  std::optional<double> min_bound, max_bound;  ///< the range stays inside (ReLU: min 0; Clip(a,b))
  std::optional<double> fixed_min, fixed_max;  ///< encoding_constraints: calibration does not move these
  EstimatorOptions estimator;
};

class Quantizer final : public nn::Transform {
 public:
  Quantizer(std::string name, const QuantizerSpec& spec);

  Var apply(const nn::Context& context, const Var& x) override;
  std::string not_ready() const override;
  /// Per tensor, within a byte, frozen or learning; under RangeRule::aimet nothing, as its gradients are exact.
  std::optional<GridTarget> grid_target(int64_t elements, Device device) override;
  const std::vector<Grid>* active_grids() override;
  const std::vector<Grid>* step_grids() override;
  void set_resident_grids(Tensor grids) override { resident_ = std::move(grids); }
  std::string missing_grids() const override;
  std::vector<Tensor> host_reads() override;
  void deliver(std::span<const float> values) override { delivered_.assign(values.begin(), values.end()); }
  /// The learned bounds "NAME.min" and "NAME.max", while learning.
  void visit(const std::string& prefix, nn::Visitor& visitor) override;

  const std::string& name() const { return name_; }
  const QuantizerSpec& spec() const { return spec_; }
  QuantizerState state() const { return state_; }
  bool calibrated() const { return is_float() || !grids_.empty(); }
  bool is_float() const { return spec_.format != NumberFormat::integer; }

  /// off | frozen -> observing: statistics start anew. While learning it is refused: the learned range would be lost. freeze() first.
  void observe();
  /// observing -> frozen or learning (by the scheme). Without any data: off, and returns false.
  bool finish_observing();
  /// observing -> off: what was observed is dropped (calibration failed).
  void abandon();
  /// A parameter's range from its values; then frozen or learning. Values that already lie on a grid of this spec keep it. Throws Error for NaN and infinities.
  void encode(const Tensor& value);
  /// The parameter this quantizer belongs to. A scheme that does not learn encodes it anew whenever its values have changed, also for grids().
  void follow(const nn::Parameter* parameter) { followed_ = parameter; }
  /// No scale below these, one per grid: the range widens where it would be (int32 accumulators). Throws Error when not calibrated.
  void require_scales(const std::vector<double>& least);
  /// One grid per channel of `axis` from now on, each as the single one was.
  void split_channels(int axis, int64_t channels);
  void rename(const std::string& name);
  /// The range may hold what another quantizer's bounds allow (QuantSim::tie).
  void widen_bounds(const std::optional<double>& min_bound, const std::optional<double>& max_bound);
  void freeze();   ///< learning -> frozen
  /// frozen -> learning; whatever the scheme, the range is a learned one from now on, which freeze() keeps. Throws Error for given grids of another kind.
  void learn();
  void disable();  ///< any -> off; the range is kept
  void enable();   ///< off -> frozen, when there is a range

  /// Learned bounds train at this multiple of the weights' learning rate.
  void set_learning_rate_scale(float scale) { min_.learning_rate_scale = max_.learning_rate_scale = scale; }

  /// Grids as used by the forward pass: one, or one per channel. Throws Error when not calibrated.
  const std::vector<Grid>& grids();
  std::vector<Range> ranges() const;
  /// Sets the range, which a parameter then keeps; the state becomes frozen (or learning when it was). Throws Error for another number of ranges than of grids
  /// here, bounds that are not finite and a min above its max.
  void set_ranges(const std::vector<Range>& ranges);
  /// Sets the grids exactly as given (an encodings file): ranges follow from them; frozen. Throws Error for another number of them, a scale or zero point that
  /// makes no grid, and another width. One of another kind (an asymmetric one here, where they are symmetric) is used as it is, but not learned.
  void set_grids(const std::vector<Grid>& grids);

  /// State, bounds, grids and calibration statistics as bytes for checkpoints; restore() brings back the same bits. Throws Error when they do not fit.
  std::string save() const;
  void restore(std::string_view bytes);

 private:
  [[noreturn]] void refuse(const char* action) const;
  size_t grid_count(size_t otherwise) const;
  void watch(RangeEstimator& estimator, const Tensor& value, const char* what) const;
  void start(const std::vector<Range>& ranges);
  void store(const std::vector<Range>& ranges);
  Grid grid_of(const Range& range, size_t channel) const;
  void update(const Tensor& value);
  bool encodes_anew() const;
  Var round_to_float(const Var& x) const;
  Range gated(Range range, const Range& before) const;
  void refresh();
  void follow_device(Device device);
  ChannelView view(const Shape& shape) const;
  Var learned_bound(nn::Parameter& bound, int64_t elements) const;
  RangeGradient range_gradient() const;
  Tensor resident(Device device) const;

  std::string name_;
  QuantizerSpec spec_;
  QuantizerState state_ = QuantizerState::off;
  std::unique_ptr<RangeEstimator> estimator_;
  nn::Parameter min_, max_;     // [channels]
  std::vector<float> delivered_;  // their values, minima first, while a forward pass lasts on a device
  std::vector<Range> good_;     // the gated bounds that grids_ was computed from
  std::vector<Range> initial_;  // what calibration gave: the scale of the smallest allowed width
  std::vector<Grid> grids_;
  Tensor resident_;             // the same where recorded work reads them
  std::vector<double> least_scale_;  // of require_scales
  const nn::Parameter* followed_ = nullptr;
  uint64_t encoded_ = 0;  // fingerprint of the values last encoded
  bool pinned_ = false;   // the range was given or learned, not computed from the values: it stays
};

}  // namespace detent::quant
