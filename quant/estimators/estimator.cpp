#include "detent/quant/estimators/estimator.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "detent/core/parallel.h"
#include "detent/quant/estimators/search.h"

namespace detent::quant {

// Little-endian doubles and integers, one after the other.
struct RangeEstimator::Writer {
  std::string bytes;
  template <class T>
  void put(T v) {
    char raw[sizeof(T)];
    std::memcpy(raw, &v, sizeof(T));
    bytes.append(raw, sizeof(T));
  }
};

struct RangeEstimator::Reader {
  std::string_view bytes;
  size_t at = 0;
  template <class T>
  T get() {
    DETENT_CHECK(bytes.size() - at >= sizeof(T), "estimator state ends at byte ", bytes.size(), " in the middle of a value; the checkpoint is damaged");
    T v;
    std::memcpy(&v, bytes.data() + at, sizeof(T));
    at += sizeof(T);
    return v;
  }
  double number() {
    const auto v = get<double>();
    DETENT_CHECK(v == v, "estimator state holds NaN at byte ", at - 8, "; the checkpoint is damaged");
    return v;
  }
};

namespace {

constexpr int64_t kMaxChannels = int64_t{1} << 24;
constexpr uint32_t kMagic = 0x31457244;  // "DrE1"

struct Extremes {
  std::vector<float> min, max;
};

Extremes extremes_of(const Tensor& x, const ChannelView& view) {
  const Shape channels{view.channels};
  Tensor min(channels, DType::f32, x.device()), max(channels, DType::f32, x.device()), nan(channels, DType::i64, x.device());
  MinMaxArgs args;
  args.view = view;
  args.x = x.data<float>();
  args.min = min.data<float>();
  args.max = max.data<float>();
  args.nan = nan.data<int64_t>();
  backend(x.device()).kernels().min_max(args);
  int64_t nans = 0;
  for (const int64_t n : nan.to_vector<int64_t>()) nans += n;
  DETENT_CHECK(nans == 0, "calibration: ", nans, " of ", x.elements(), " values of a tensor of shape ", x.shape(), " are NaN; look at the weights and the input before it");
  return {min.to_vector<float>(), max.to_vector<float>()};
}

// [outer, channels, inner] -> [channels, outer, inner], on the device of x.
Tensor channels_first(const Tensor& x, const ChannelView& v) {
  Tensor y({v.channels, v.outer, v.inner}, DType::f32, x.device());
  StridedCopyArgs args;
  args.loop.rank = 3;
  const int64_t extent[3] = {v.channels, v.outer, v.inner}, from[3] = {v.inner, v.channels * v.inner, 1}, to[3] = {v.outer * v.inner, v.inner, 1};
  for (int i = 0; i < 3; ++i) {
    args.loop.extent[i] = extent[i];
    args.loop.a_stride[i] = from[i];
    args.loop.y_stride[i] = to[i];
  }
  args.element_bytes = 4;
  args.a = x.raw();
  args.y = y.raw();
  backend(x.device()).kernels().strided_copy(args);
  return y;
}

}  // namespace

Range RangeEstimator::observe(const Tensor& x, const ChannelView& view) {
  DETENT_CHECK(view.outer * view.channels * view.inner == x.elements(), "calibration: a tensor of shape ", x.shape(), " has not ", view.channels, " channels of ",
               view.outer * view.inner, " values");
  if (x.elements() == 0) return {};
  DETENT_CHECK(channels_ == 0 || channels_ == view.channels, "calibration: ", view.channels, " channels after batches of ", channels_, " channels");
  const Extremes e = extremes_of(x, view);
  if (channels_ == 0) {
    resize(view.channels);
    channels_ = view.channels;
  }
  Tensor values;
  if (needs_values()) values = view.outer > 1 && view.channels > 1 ? channels_first(x, view) : x;
  const int64_t n = view.outer * view.inner;
  for (int64_t c = 0; c < channels_; ++c) update(c, values, c * n, n, Range{e.min[c], e.max[c]});
  return {*std::min_element(e.min.begin(), e.min.end()), *std::max_element(e.max.begin(), e.max.end())};
}

std::vector<Range> RangeEstimator::ranges(const GridSpec& spec) const {
  DETENT_CHECK(seen(), "calibration: a range was asked for before any value was seen; run compute_encodings with data");
  std::vector<Range> out(static_cast<size_t>(channels_));
  parallel_for(channels_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) out[static_cast<size_t>(c)] = range(c, spec);
  });
  return out;
}

void RangeEstimator::reset() {
  channels_ = 0;
  resize(0);
}

std::string RangeEstimator::save() const {
  Writer out;
  out.put(kMagic);
  out.put(static_cast<uint32_t>(kind_));
  out.put(channels_);
  for (int64_t c = 0; c < channels_; ++c) write(c, out);
  return std::move(out.bytes);
}

void RangeEstimator::load(std::string_view bytes) {
  reset();  // unseen when anything below throws
  Reader in{bytes};
  const auto magic = in.get<uint32_t>();
  DETENT_CHECK(magic == kMagic, "estimator state begins with ", magic, ", not ", kMagic, "; it is not an estimator's");
  const auto kind = in.get<uint32_t>();
  DETENT_CHECK(kind == static_cast<uint32_t>(kind_), "estimator state is of kind ", kind, ", this estimator is ", static_cast<uint32_t>(kind_), "; calibrate with the same scheme");
  const auto channels = in.get<int64_t>();
  DETENT_CHECK(channels >= 0 && channels <= kMaxChannels && channels * 16 <= static_cast<int64_t>(bytes.size()), "estimator state claims ", channels, " channels in ", bytes.size(),
               " bytes; the checkpoint is damaged");
  resize(channels);
  for (int64_t c = 0; c < channels; ++c) read(c, in);
  DETENT_CHECK(in.at == bytes.size(), "estimator state has ", bytes.size() - in.at, " bytes left over; the checkpoint is damaged");
  channels_ = channels;
}

namespace {

Range symmetric_if_asked(Range r, const GridSpec& spec) {
  if (!is_signed_symmetric(r, spec)) return r;
  const double m = std::max(-r.min, r.max);
  return {-m, m};
}

class MinMax final : public RangeEstimator {
 public:
  explicit MinMax(SymmetricExtreme symmetric) : RangeEstimator(EstimatorKind::min_max), symmetric_(symmetric) {}

 private:
  void resize(int64_t channels) override { seen_.assign(static_cast<size_t>(channels), {INFINITY, -INFINITY}); }
  bool needs_values() const override { return false; }
  void update(int64_t channel, const Tensor&, int64_t, int64_t, Range e) override {
    Range& r = seen_[static_cast<size_t>(channel)];
    r = {std::min(r.min, e.min), std::max(r.max, e.max)};
  }
  Range range(int64_t channel, const GridSpec& spec) const override {
    const Range seen = seen_[static_cast<size_t>(channel)], r = gate_range(seen, narrowest_width(spec, kMinCalibrationWidth));
    if (symmetric_ == SymmetricExtreme::absolute || !is_signed_symmetric(r, spec)) return symmetric_if_asked(r, spec);
    const double most = torch_range(spec.least_scale > 0.0 ? gate_range(seen, 0.0) : r, grid_steps(spec), true, spec.least_scale).max;
    return {-most, most};
  }
  void write(int64_t channel, Writer& out) const override { out.put(seen_[static_cast<size_t>(channel)].min), out.put(seen_[static_cast<size_t>(channel)].max); }
  void read(int64_t channel, Reader& in) override {
    const double lo = in.number(), hi = in.number();
    seen_[static_cast<size_t>(channel)] = {lo, hi};
  }
  std::vector<Range> seen_;
  SymmetricExtreme symmetric_;
};

class MovingAverage final : public RangeEstimator {
 public:
  explicit MovingAverage(double momentum) : RangeEstimator(EstimatorKind::moving_average), momentum_(momentum) {}

 private:
  struct Average {
    Range range;
    int64_t batches = 0;
  };
  void resize(int64_t channels) override { average_.assign(static_cast<size_t>(channels), {}); }
  bool needs_values() const override { return false; }
  void update(int64_t channel, const Tensor&, int64_t, int64_t, Range e) override {
    Average& a = average_[static_cast<size_t>(channel)];
    const Range r{std::max(e.min, -kFloatMax), std::min(e.max, kFloatMax)};
    const double keep = a.batches++ == 0 ? 0.0 : momentum_;
    a.range = {keep * a.range.min + (1.0 - keep) * r.min, keep * a.range.max + (1.0 - keep) * r.max};
  }
  Range range(int64_t channel, const GridSpec& spec) const override {
    return symmetric_if_asked(gate_range(average_[static_cast<size_t>(channel)].range, narrowest_width(spec, kMinCalibrationWidth)), spec);
  }
  void write(int64_t channel, Writer& out) const override {
    const Average& a = average_[static_cast<size_t>(channel)];
    out.put(a.range.min), out.put(a.range.max), out.put(a.batches);
  }
  void read(int64_t channel, Reader& in) override {
    Average& a = average_[static_cast<size_t>(channel)];
    a.range.min = in.number(), a.range.max = in.number(), a.batches = in.get<int64_t>();
  }
  double momentum_;
  std::vector<Average> average_;
};

constexpr int kEntropyBins = 512;
constexpr int kChannelBins = 512;  // a channel of a weight has few values, and there are many channels

class HistogramEstimator final : public RangeEstimator {
 public:
  HistogramEstimator(EstimatorKind kind, const EstimatorOptions& options) : RangeEstimator(kind), kind_(kind), options_(options) {}

 private:
  // Entropy's histogram grows in AIMET too.
  bool frozen() const { return options_.histogram == HistogramPolicy::frozen && kind_ != EstimatorKind::entropy; }
  void resize(int64_t channels) override {
    const auto n = static_cast<size_t>(channels);
    frozen_.assign(frozen() ? n : 0, {});
    growing_.assign(frozen() ? 0 : n, GrowingHistogram(kind_ == EstimatorKind::entropy ? kEntropyBins : (channels > 1 ? std::min(options_.bins, kChannelBins) : options_.bins)));
  }
  bool needs_values() const override { return true; }
  void update(int64_t channel, const Tensor& x, int64_t first, int64_t n, Range e) override {
    if (frozen()) {
      frozen_[static_cast<size_t>(channel)].add(x, first, n, e);
    } else {
      if (kind_ == EstimatorKind::entropy) {  // as AIMET: zeros alone say nothing, a constant gets a little width
        if (e.min == 0.0 && e.max == 0.0) return;
        if (e.min == e.max) e.max += kMinCalibrationWidth;
      }
      growing_[static_cast<size_t>(channel)].add(x, first, n, e);
    }
  }
  Range range(int64_t channel, const GridSpec& spec) const override {
    const auto c = static_cast<size_t>(channel);
    return symmetric_if_asked(gate_range(frozen() ? search(frozen_[c], spec) : search(growing_[c], spec), narrowest_width(spec, kMinCalibrationWidth)), spec);
  }
  Range search(const FrozenHistogram& f, const GridSpec& spec) const {
    if (f.h.counts.empty()) return all_zero_range(spec);
    switch (kind_) {
      case EstimatorKind::tf_enhanced:
        return sqnr_range_core(f.h, spec);
      case EstimatorKind::percentile:
        return percentile_range_core(f.h, options_.percentile);
      default:
        return mse_range(f.h, spec, MseSearch::full);
    }
  }
  Range search(const GrowingHistogram& g, const GridSpec& spec) const {
    if (kind_ == EstimatorKind::entropy) return g.h.counts.empty() ? all_zero_range(spec) : entropy_range(g.h, g.seen, spec);
    if (g.seen.min == 0.0 && g.seen.max == 0.0) return g.seen;
    switch (kind_) {
      case EstimatorKind::tf_enhanced:
        return sqnr_range(g.h, g.seen, spec, {.refine = true});
      case EstimatorKind::percentile:
        return percentile_range(g.h, g.seen, options_.percentile);
      default:
        return mse_range(g.h, spec, MseSearch::coarse);
    }
  }
  void write(int64_t channel, Writer& out) const override;
  void read(int64_t channel, Reader& in) override;
  static void write_histogram(const Histogram& h, Writer& out) {
    out.put(h.lo), out.put(h.width), out.put(static_cast<int64_t>(h.bins()));
    for (const double c : h.counts) out.put(c);
  }
  static void read_histogram(Histogram& h, Reader& in) {
    h.lo = in.number(), h.width = in.number();
    const auto bins = in.get<int64_t>();
    DETENT_CHECK(bins >= 0 && bins <= (int64_t{1} << 20) && static_cast<size_t>(bins) * 8 <= in.bytes.size(), "estimator state claims ", bins, " bins; the checkpoint is damaged");
    DETENT_CHECK(bins == 0 || (std::isfinite(h.lo) && std::isfinite(h.width) && h.width > 0.0), "estimator state has bins of width ", h.width, " from ", h.lo,
                 "; the checkpoint is damaged");
    h.counts.resize(static_cast<size_t>(bins));
    for (double& c : h.counts) {
      c = in.number();
      DETENT_CHECK(c >= 0.0 && std::isfinite(c), "estimator state holds a count of ", c, "; the checkpoint is damaged");
    }
  }

  EstimatorKind kind_;
  EstimatorOptions options_;
  std::vector<FrozenHistogram> frozen_;
  std::vector<GrowingHistogram> growing_;
};

void HistogramEstimator::write(int64_t channel, Writer& out) const {
  const auto c = static_cast<size_t>(channel);
  out.put(static_cast<int64_t>(frozen() ? 1 : 0));
  if (frozen()) {
    out.put(frozen_[c].batches), out.put(static_cast<int64_t>(frozen_[c].all_zero));
    write_histogram(frozen_[c].h, out);
  } else {
    out.put(growing_[c].seen.min), out.put(growing_[c].seen.max);
    write_histogram(growing_[c].h, out);
  }
}

void HistogramEstimator::read(int64_t channel, Reader& in) {
  const auto c = static_cast<size_t>(channel);
  const bool was_frozen = in.get<int64_t>() != 0;
  DETENT_CHECK(was_frozen == frozen(), "estimator state is of a ", was_frozen ? "frozen" : "growing", " histogram, this estimator's is ", frozen() ? "frozen" : "growing");
  if (frozen()) {
    frozen_[c].batches = in.get<int64_t>(), frozen_[c].all_zero = in.get<int64_t>() != 0;
    read_histogram(frozen_[c].h, in);
    DETENT_CHECK(frozen_[c].h.counts.empty() || frozen_[c].h.bins() == FrozenHistogram::kBins, "estimator state has ", frozen_[c].h.bins(), " bins, not ", FrozenHistogram::kBins);
  } else {
    growing_[c].seen.min = in.number(), growing_[c].seen.max = in.number();
    read_histogram(growing_[c].h, in);
    DETENT_CHECK(growing_[c].h.counts.empty() || growing_[c].h.bins() == growing_[c].bins, "estimator state has ", growing_[c].h.bins(), " bins, not ", growing_[c].bins,
                 "; calibrate with the same options");
  }
}

}  // namespace

std::unique_ptr<RangeEstimator> make_estimator(EstimatorKind kind, const EstimatorOptions& options) {
  DETENT_CHECK(options.percentile >= 50.0 && options.percentile <= 100.0, "estimator: percentile ", options.percentile, " is not in 50..100");
  DETENT_CHECK(options.momentum >= 0.0 && options.momentum < 1.0, "estimator: momentum ", options.momentum, " is not in [0,1)");
  DETENT_CHECK(options.bins >= 16 && options.bins <= (1 << 20), "estimator: ", options.bins, " bins; choose 16..1048576");
  switch (kind) {
    case EstimatorKind::min_max: return std::make_unique<MinMax>(options.symmetric);
    case EstimatorKind::moving_average: return std::make_unique<MovingAverage>(options.momentum);
    case EstimatorKind::tf_enhanced:
    case EstimatorKind::percentile:
    case EstimatorKind::mse:
    case EstimatorKind::entropy:
      return std::make_unique<HistogramEstimator>(kind, options);
  }
  fail("estimator: unknown kind ", static_cast<int>(kind));
}

}  // namespace detent::quant
