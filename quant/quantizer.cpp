#include "detent/quant/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "detent/core/math/half.h"
#include "detent/core/parallel.h"
#include "detent/quant/estimators/on_grid.h"
#include "detent/quant/given_grids.h"

namespace detent::quant {
namespace {

constexpr double kLargestBound = 1e30;  // keeps max - min and every product with a level finite in float
// A learned range keeps at least this share of its calibrated width: it can shrink but not collapse.
constexpr double kSmallestShare = 1.0 / 1024.0;

double bounded(double v) { return std::clamp(v, -kLargestBound, kLargestBound); }

// Tells whether values have changed; 0 for a tensor that cannot be looked at here.
uint64_t fingerprint(const Tensor& t) {
  if (t.device().type != DeviceType::cpu) return 0;
  constexpr int64_t kChunk = 1 << 17;
  const auto* p = static_cast<const uint32_t*>(t.raw());
  const int64_t n = t.elements();
  std::vector<uint64_t> chunks(static_cast<size_t>((n + kChunk - 1) / kChunk));
  parallel_for(n, kChunk, [&](int64_t begin, int64_t end) {
    uint64_t lane[4] = {1, 2, 3, 4};
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) {
      for (int64_t l = 0; l < 4; ++l) {
        uint64_t two;
        std::memcpy(&two, p + i + 2 * l, sizeof(two));
        lane[l] = (lane[l] ^ two ^ (lane[l] >> 32)) * 0x9e3779b97f4a7c15u;
      }
    }
    for (; i < end; ++i) lane[0] = (lane[0] ^ p[i]) * 0x9e3779b97f4a7c15u;
    uint64_t h = 0;
    for (const uint64_t l : lane) h = (h ^ (l >> 29) ^ l) * 0xbf58476d1ce4e5b9u;
    chunks[static_cast<size_t>(begin / kChunk)] = h;
  });
  uint64_t h = static_cast<uint64_t>(n);
  for (const uint64_t c : chunks) h = (h ^ (c >> 29) ^ c) * 0xbf58476d1ce4e5b9u;
  return h | 1u;
}

}  // namespace

std::string_view to_string(QuantizerState s) {
  constexpr std::string_view names[] = {"off", "observing", "frozen", "learning"};
  return names[static_cast<int>(s)];
}

std::string_view to_string(RangeRule r) {
  constexpr std::string_view names[] = {"gated", "lsq", "aimet"};
  return names[static_cast<int>(r)];
}

Quantizer::Quantizer(std::string name, const QuantizerSpec& spec) : name_(std::move(name)), spec_(spec) {
  DETENT_CHECK(spec.grid.bits >= 2 && spec.grid.bits <= 16, "quantizer \"", name_, "\": ", spec.grid.bits, " bits; give 2..16, or 32 to leave the value in float");
  DETENT_CHECK(!is_float() || spec.grid.bits == 16, "quantizer \"", name_, "\": ", spec.grid.bits, " bits of ", to_string(spec.format), "; it has 16");
  rename(name_);
  min_.weight_decay = max_.weight_decay = false;
}

void Quantizer::refuse(const char* action) const {
  const char* why = state_ == QuantizerState::observing  ? "what it has seen is not complete; let compute_encodings (or finish_observing) end first"
                    : state_ == QuantizerState::learning ? "that would throw its learned range away; freeze() it first"
                    : calibrated()                       ? "enable() it first"
                                                         : "run compute_encodings first";
  fail("quantizer \"", name_, "\": cannot ", action, " while ", to_string(state_), calibrated() ? "" : " and not calibrated", "; ", why);
}

void Quantizer::rename(const std::string& name) {
  name_ = name;
  min_.name = name_ + ".min";
  max_.name = name_ + ".max";
}

void Quantizer::widen_bounds(const std::optional<double>& min_bound, const std::optional<double>& max_bound) {
  spec_.min_bound = spec_.min_bound && min_bound ? std::optional(std::min(*spec_.min_bound, *min_bound)) : std::nullopt;
  spec_.max_bound = spec_.max_bound && max_bound ? std::optional(std::max(*spec_.max_bound, *max_bound)) : std::nullopt;
}

ChannelView Quantizer::view(const Shape& shape) const {
  if (spec_.channel_axis < 0) return {.outer = 1, .channels = 1, .inner = shape.elements()};
  return channel_view(shape, spec_.channel_axis);
}

void Quantizer::observe() {
  if (spec_.parameter) refuse("observe a parameter (encode it from its values)");
  if (state_ == QuantizerState::observing || state_ == QuantizerState::learning) refuse("start observing");
  estimator_ = make_estimator(estimator_of(spec_.scheme), spec_.estimator);
  state_ = QuantizerState::observing;
}

std::string Quantizer::not_ready() const {
  if (state_ != QuantizerState::observing) return {};
  return text("quantizer \"", name_, "\" is observing: values pass it in float while the ranges are calibrated; run forward passes only, and evaluate or train when compute_encodings has ended");
}

bool Quantizer::finish_observing() {
  if (state_ != QuantizerState::observing) refuse("finish observing");
  if (!estimator_->seen()) {
    state_ = QuantizerState::off;
    return false;
  }
  if (is_float()) {
    state_ = QuantizerState::frozen;
    return true;
  }
  pinned_ = false;
  start(estimator_->ranges(spec_.grid));
  return true;
}

void Quantizer::abandon() {
  if (state_ != QuantizerState::observing) refuse("abandon observing");
  estimator_.reset();
  state_ = QuantizerState::off;
}

// A range that reaches infinity would leave every value one code: whatever made it is the mistake.
void Quantizer::watch(RangeEstimator& estimator, const Tensor& value, const char* what) const {
  Range seen;
  try {
    seen = estimator.observe(value, is_float() ? ChannelView{1, 1, value.elements()} : view(value.shape()));
  } catch (const Error& e) {
    fail(what, " \"", name_, "\": ", e.what());
  }
  DETENT_CHECK(is_float() || (std::isfinite(seen.min) && std::isfinite(seen.max)), what, " \"", name_, "\": a tensor of shape ", value.shape(), " holds values of ", seen.min,
               "..", seen.max, "; look at the weights and the input before it");
}

void Quantizer::encode(const Tensor& value) {
  if (!spec_.parameter) refuse("encode an activation from one tensor (calibrate it)");
  if (is_float()) {
    state_ = QuantizerState::frozen;
    return;
  }
  std::unique_ptr<RangeEstimator> estimator = make_estimator(estimator_of(spec_.scheme), spec_.estimator);
  watch(*estimator, value, "quantizer");
  std::vector<Range> ranges = estimator->ranges(spec_.grid);
  const std::vector<std::optional<Grid>> kept = grids_of_values(value, view(value.shape()), spec_.grid);
  for (size_t c = 0; c < kept.size(); ++c) {
    if (kept[c]) ranges[c] = range_of(*kept[c]);
  }
  start(ranges);
  for (size_t c = 0; c < kept.size(); ++c) {
    if (kept[c] && (c >= least_scale_.size() || static_cast<double>(kept[c]->scale) >= least_scale_[c])) grids_[c] = *kept[c];
  }
  // Last: after an Error the next call finds the values changed still.
  encoded_ = fingerprint(value);
  pinned_ = false;
}

bool Quantizer::encodes_anew() const {
  return spec_.parameter && state_ == QuantizerState::frozen && !is_float() && !learns_ranges(spec_.scheme) && !spec_.keep_frozen && !pinned_;
}

// Without range learning a weight is encoded anew whenever its values have moved: at every step, and for evaluation and export after the last one.
void Quantizer::update(const Tensor& value) {
  if (!encodes_anew()) return;
  if (const uint64_t now = fingerprint(value); now == 0 || now != encoded_) encode(value);
}

void Quantizer::require_scales(const std::vector<double>& least) {
  DETENT_CHECK(!grids_.empty() && (least.empty() || least.size() == grids_.size()), "quantizer \"", name_, "\": ", least.size(), " smallest scales for ", grids_.size(), " grids");
  least_scale_ = least;
  for (size_t i = 0; i < least.size(); ++i) {
    if (static_cast<double>(grids_[i].scale) < least[i]) return store(good_);
  }
}

void Quantizer::split_channels(int axis, int64_t channels) {
  spec_.channel_axis = axis;
  if (grids_.size() != 1 || channels == 1) return;
  const auto n = static_cast<size_t>(channels);
  const bool pinned = pinned_;
  const std::vector<Grid> grids(n, grids_[0]);
  const std::vector<Range> initial(n, initial_[0]);
  if (!least_scale_.empty()) least_scale_.assign(n, least_scale_[0]);
  store(std::vector<Range>(n, good_[0]));
  initial_ = initial;
  grids_ = grids;
  pinned_ = pinned;
}

// The grid of a range as it is used: AIMET's bounds may lie anywhere, and no scale is below what was required.
Grid Quantizer::grid_of(const Range& range, size_t channel) const {
  const Range r = spec_.rule == RangeRule::aimet ? learned_range(range, spec_.grid) : range;
  const Grid g = grid_from_range(r, spec_.grid);
  if (channel >= least_scale_.size() || static_cast<double>(g.scale) >= least_scale_[channel]) return g;
  const double wider = least_scale_[channel] / static_cast<double>(g.scale) * (1.0 + 1e-6);
  const Range ends = range_of(g);
  return grid_from_range({ends.min * wider, ends.max * wider}, spec_.grid);
}

void Quantizer::start(const std::vector<Range>& ranges) {
  std::vector<Range> bounded_ranges = ranges;
  for (Range& r : bounded_ranges) {
    if (spec_.fixed_min) r.min = *spec_.fixed_min;
    if (spec_.fixed_max) r.max = *spec_.fixed_max;
    if (spec_.rule != RangeRule::aimet) {
      if (spec_.min_bound) r.min = std::max(r.min, *spec_.min_bound);
      if (spec_.max_bound) r.max = std::min(r.max, std::max(*spec_.max_bound, 0.0));
    }
  }
  store(bounded_ranges);
  state_ = learns_ranges(spec_.scheme) && !spec_.keep_frozen ? QuantizerState::learning : QuantizerState::frozen;
}

void Quantizer::store(const std::vector<Range>& ranges) {
  std::vector<float> lo, hi;
  std::vector<Range> kept;
  std::vector<Grid> grids;
  for (const Range& r : ranges) {
    DETENT_CHECK(std::isfinite(r.min) && std::isfinite(r.max), "quantizer \"", name_, "\": its range [", r.min, ", ", r.max, "] is not finite");
    // Bounds are kept as the grid's own ends: symmetric ones as -max..max, their extra negative level comes back with the grid.
    const Range ends = range_of(grid_from_range(r, spec_.grid));
    lo.push_back(static_cast<float>(bounded(ends.min)));
    hi.push_back(static_cast<float>(bounded(ends.max)));
    kept.push_back({static_cast<double>(lo.back()), static_cast<double>(hi.back())});
    grids.push_back(grid_of(kept.back(), kept.size() - 1));
  }
  const Shape shape{static_cast<int64_t>(ranges.size())};
  const bool same = min_.value.defined() && min_.value.shape() == shape;
  // The tensors stay in place when they can: an optimizer may hold them.
  if (same) {
    min_.value.copy_from(Tensor::from<float>(shape, lo));
    max_.value.copy_from(Tensor::from<float>(shape, hi));
  } else {
    min_.value = Tensor::from<float>(shape, lo);
    max_.value = Tensor::from<float>(shape, hi);
  }
  good_ = initial_ = kept;
  grids_ = grids;
}

Range Quantizer::gated(Range r, const Range& before) const {
  DETENT_CHECK(!std::isnan(r.min) && !std::isnan(r.max), "quantizer \"", name_, "\": its learned range became NaN (it was [", before.min, ", ", before.max,
               "]); lower the learning rate and look for NaN in the gradients");
  if (spec_.rule == RangeRule::aimet) {
    r = {bounded(r.min), bounded(r.max)};
    r.max = std::max(r.max, r.min + narrowest_width(spec_.grid));
    return r;
  }
  const double half = 0.5 * (before.max - before.min);
  r.min = std::clamp(bounded(r.min), before.min - half, before.min + half);
  r.max = std::clamp(bounded(r.max), before.max - half, before.max + half);
  if (spec_.grid.symmetric) r.min = before.min < 0.0 ? -r.max : 0.0;
  if (spec_.min_bound) r.min = std::max(r.min, *spec_.min_bound);
  if (spec_.max_bound) r.max = std::min(r.max, std::max(*spec_.max_bound, 0.0));
  if (spec_.fixed_min) r.min = *spec_.fixed_min;
  if (spec_.fixed_max) r.max = *spec_.fixed_max;
  return {std::min(r.min, 0.0), std::max(r.max, 0.0)};
}

// Takes over the bounds the optimizer wrote: gates them and derives the grids, once a step. Recorded work finds that done (step_grids).
void Quantizer::refresh() {
  if (backend(min_.value.device()).recording()) return;
  std::vector<float> lo, hi;
  if (delivered_.empty()) {
    lo = min_.value.to_vector<float>();
    hi = max_.value.to_vector<float>();
  } else {
    const auto middle = delivered_.begin() + std::ssize(delivered_) / 2;
    lo.assign(delivered_.begin(), middle);
    hi.assign(middle, delivered_.end());
  }
  const std::vector<float> written_lo = lo, written_hi = hi;
  std::vector<Range> good = good_;
  std::vector<Grid> grids = grids_;
  bool changed = false;
  for (size_t i = 0; i < lo.size(); ++i) {
    const Range now{static_cast<double>(lo[i]), static_cast<double>(hi[i])};
    if (now.min == good[i].min && now.max == good[i].max) continue;
    changed = true;
    Range r = gated(now, good[i]);
    const double floor = std::max(narrowest_width(spec_.grid), kSmallestShare * (initial_[i].max - initial_[i].min));
    if (spec_.rule != RangeRule::aimet && r.max - r.min < floor) {
      // A step that would close the range: keep the last good width.
      r = good[i].max - good[i].min >= floor ? good[i] : Range{std::min(r.min, -0.5 * floor), std::max(r.max, 0.5 * floor)};
    }
    lo[i] = static_cast<float>(r.min);
    hi[i] = static_cast<float>(r.max);
    good[i] = {static_cast<double>(lo[i]), static_cast<double>(hi[i])};
    grids[i] = grid_of(good[i], i);
  }
  if (!changed) return;
  // The optimizer's bounds stand unless the gate moved them.
  if (lo == written_lo && hi == written_hi) {
    good_ = std::move(good);
    grids_ = std::move(grids);
    return;
  }
  // All or nothing: without memory for these the next call gates the same bounds again.
  const Tensor new_min = Tensor::from<float>(min_.value.shape(), lo), new_max = Tensor::from<float>(max_.value.shape(), hi);
  min_.value.copy_from(new_min);
  max_.value.copy_from(new_max);
  if (!delivered_.empty()) {
    delivered_ = lo;
    delivered_.insert(delivered_.end(), hi.begin(), hi.end());
  }
  good_ = std::move(good);
  grids_ = std::move(grids);
}

std::vector<Tensor> Quantizer::host_reads() {
  if (state_ != QuantizerState::learning) return {};
  return {min_.value, max_.value};
}

// Learned bounds live where the value is: they are made on the host.
void Quantizer::follow_device(Device device) {
  if (min_.value.device() == device) return;
  min_.value = min_.value.to(device);
  max_.value = max_.value.to(device);
}

Var Quantizer::learned_bound(nn::Parameter& bound, int64_t elements) const {
  Var v = Tape::leaf(bound);
  if (spec_.rule != RangeRule::lsq) return v;
  const double levels = static_cast<double>(spec_.grid.symmetric ? (1 << (spec_.grid.bits - 1)) - 1 : (1 << spec_.grid.bits) - 1);
  const auto factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(elements) * levels));
  return Tape::record("lsq_scale", {v}, Var(v.dense()), [factor](const Tensor& dy, GradSink& sink) {
    Tensor dx(dy.shape(), DType::f32, dy.device());
    backend(dy.device()).kernels().scale(dx.data<float>(), dy.data<float>(), factor, dy.elements());
    sink.add(0, std::move(dx));
  });
}

Var Quantizer::apply(const nn::Context&, const Var& x) {
  switch (state_) {
    case QuantizerState::off:
      return x;
    case QuantizerState::observing:
      DETENT_CHECK(!grad_enabled(), "training is refused: ", not_ready());
      watch(*estimator_, x.dense(), "calibration of");
      return x;
    case QuantizerState::frozen:
    case QuantizerState::learning:
      break;
  }
  if (is_float()) return round_to_float(x);
  if (state_ == QuantizerState::frozen) update(x.dense());
  if (x.grids() && *x.grids() == grids_) return x;  // already there: a tied quantizer, or a value that was only moved
  Var y;
  if (state_ == QuantizerState::frozen) {
    y = fake_quant_ste(x, grids_, view(x.shape()), EmitCodes::no, resident(x.device()));
  } else {
    follow_device(x.device());
    refresh();
    const ChannelView v = view(x.shape());
    const int64_t each = x.shape().elements() / v.channels;
    y = fake_quant_learned(x, learned_bound(min_, each), learned_bound(max_, each), grids_, v, spec_.grid, range_gradient(), EmitCodes::no, resident(x.device()));
  }
  y.set_grids(grids_, resident(x.device()));
  return y;
}

// The gradient passes straight through, as AIMET's.
Var Quantizer::round_to_float(const Var& x) const {
  const Tensor from = x.dense().to(Device{});
  Tensor y(from.shape());
  const bool half = spec_.format == NumberFormat::float16;
  const float* in = from.data<float>();
  float* out = y.data<float>();
  parallel_for(from.elements(), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = half ? round_to_half(in[i]) : round_to_bfloat(in[i]);
  });
  return Tape::record("round_to_float", {x}, Var(y.to(x.dense().device())), [](const Tensor& dy, GradSink& sink) { sink.add(0, dy); });
}

RangeGradient Quantizer::range_gradient() const {
  return spec_.rule != RangeRule::aimet && spec_.min_bound && *spec_.min_bound == 0.0 ? RangeGradient::keep_min : RangeGradient::aimet;
}

std::optional<GridTarget> Quantizer::grid_target(int64_t elements, Device device) {
  if (spec_.parameter || is_float() || spec_.rule == RangeRule::aimet || (state_ != QuantizerState::frozen && state_ != QuantizerState::learning)) return std::nullopt;
  if (state_ == QuantizerState::learning) follow_device(device);
  const Grid g = grids().front();
  if (grids_.size() != 1 || g.qmin < 0 || g.qmax > 255) return std::nullopt;
  GridTarget t{.grid = g, .spec = spec_.grid, .rule = range_gradient(), .min = {}, .max = {}, .resident = resident(device)};
  if (state_ == QuantizerState::learning) {
    t.min = learned_bound(min_, elements);
    t.max = learned_bound(max_, elements);
  }
  return t;
}

const std::vector<Grid>* Quantizer::active_grids() {
  const bool acts = state_ == QuantizerState::frozen || state_ == QuantizerState::learning;
  return acts && !is_float() ? &grids() : nullptr;
}

const std::vector<Grid>* Quantizer::step_grids() { return encodes_anew() ? nullptr : active_grids(); }

Tensor Quantizer::resident(Device device) const {
  if (!backend(device).recording()) return {};
  DETENT_CHECK(resident_.defined() && resident_.device() == device && resident_.bytes() == std::ssize(grids_) * static_cast<int64_t>(sizeof(Grid)), "quantizer \"", name_,
               "\": its grids are not in the device's memory, and work that is replayed needs them there");
  return resident_;
}

std::string Quantizer::missing_grids() const {
  if (is_float() || state_ == QuantizerState::frozen || state_ == QuantizerState::learning) return {};
  if (state_ == QuantizerState::observing) return not_ready();
  return text("quantizer \"", name_, calibrated() ? "\" is off; enable() it" : "\" has no range; run compute_encodings, or load its encoding");
}

void Quantizer::visit(const std::string&, nn::Visitor& visitor) {
  if (state_ == QuantizerState::learning && visitor.parameter) {
    visitor.parameter(min_);
    visitor.parameter(max_);
  }
}

void Quantizer::freeze() {
  if (state_ == QuantizerState::frozen) return;
  if (state_ != QuantizerState::learning) refuse("freeze");
  refresh();
  state_ = QuantizerState::frozen;
}

void Quantizer::learn() {
  if (state_ == QuantizerState::learning) return;
  if (state_ != QuantizerState::frozen) refuse("learn");
  if (is_float()) return;  // there is nothing to learn
  if (followed_) update(followed_->value);
  const std::string other = of_another_kind(grids_, spec_.grid);
  DETENT_CHECK(other.empty(), "quantizer \"", name_, "\": cannot learn ", other, "; calibrate it, or give the grid's symmetry in the config");
  std::vector<Grid> own;
  std::vector<Range> ranges;
  for (const Grid& g : grids_) {
    own.push_back(*grid_under(g, spec_.grid));
    ranges.push_back(range_of(own.back()));
  }
  if (own != grids_) {  // what the first step starts from is in force from now on
    store(ranges);
    grids_ = own;
  }
  pinned_ = true;
  state_ = QuantizerState::learning;
}

void Quantizer::disable() {
  if (state_ == QuantizerState::observing) refuse("disable");
  if (state_ == QuantizerState::learning) refresh();
  state_ = QuantizerState::off;
}

void Quantizer::enable() {
  if (state_ != QuantizerState::off || !calibrated()) refuse("enable");
  state_ = QuantizerState::frozen;
}

const std::vector<Grid>& Quantizer::grids() {
  DETENT_CHECK(!is_float(), "quantizer \"", name_, "\" keeps its value in ", to_string(spec_.format), ": it has no grid");
  if (state_ == QuantizerState::observing) refuse("give a grid");
  DETENT_CHECK(calibrated(), "quantizer \"", name_, "\" has no range yet; run compute_encodings");
  if (followed_) update(followed_->value);
  if (state_ == QuantizerState::learning) refresh();
  return grids_;
}

std::vector<Range> Quantizer::ranges() const { return good_; }

// How many grids there are; `otherwise` where nothing tells.
size_t Quantizer::grid_count(size_t otherwise) const {
  if (spec_.channel_axis < 0) return 1;
  if (followed_) return static_cast<size_t>(followed_->value.dim(spec_.channel_axis));
  return grids_.empty() ? otherwise : grids_.size();
}

void Quantizer::set_ranges(const std::vector<Range>& ranges) {
  if (state_ == QuantizerState::observing) refuse("set the range");
  DETENT_CHECK(!is_float(), "quantizer \"", name_, "\" keeps its value in ", to_string(spec_.format), ": it has no range");
  const size_t wanted = grid_count(ranges.size());
  DETENT_CHECK(!ranges.empty() && ranges.size() == wanted, "quantizer \"", name_, "\": ", ranges.size(), " ranges are given where there are ", wanted);
  for (const Range& r : ranges) {
    const bool ordered = std::isfinite(r.min) && std::isfinite(r.max) && r.min <= r.max;
    DETENT_CHECK(ordered, "quantizer \"", name_, "\": [", r.min, ", ", r.max, "] is no range; give finite bounds, the lower one first");
  }
  const bool learning = state_ == QuantizerState::learning;
  store(ranges);
  pinned_ = true;
  state_ = learning ? QuantizerState::learning : QuantizerState::frozen;
}

void Quantizer::set_grids(const std::vector<Grid>& grids) {
  if (state_ == QuantizerState::observing) refuse("set the grid");
  DETENT_CHECK(!is_float(), "quantizer \"", name_, "\" keeps its value in ", to_string(spec_.format), ": it has no grid");
  const std::string wrong = misfit(grids, grid_count(grids.size()), spec_.grid.bits);
  DETENT_CHECK(wrong.empty(), "quantizer \"", name_, "\": ", wrong);
  std::vector<Range> ranges;
  for (const Grid& g : grids) ranges.push_back(range_of(grid_under(g, spec_.grid).value_or(g)));
  least_scale_.clear();
  store(ranges);
  grids_ = grids;
  pinned_ = true;
  state_ = QuantizerState::frozen;
}

}  // namespace detent::quant
