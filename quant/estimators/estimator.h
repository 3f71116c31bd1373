// RangeEstimator: watches tensors and tells the range to quantize them with, per tensor or per channel. observe() throws Error when a value is NaN.
// An estimator is used by one thread at a time.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "detent/core/backend.h"
#include "detent/core/tensor.h"
#include "detent/quant/scheme.h"

namespace detent::quant {

/// How histograms take in batches: growing over all that is seen, or AIMET's, fixed by the first batch (for comparison with it).
enum class HistogramPolicy : uint8_t { growing, frozen };

/// What min/max makes of a signed symmetric range. absolute: max(|min|, max) is the largest level (AIMET up to v1). extra_level: the extra negative level
/// counts too, scale = max(max / (2^(b-1)-1), |min| / 2^(b-1)) (AIMET 2.42), finer where the extreme is negative.
enum class SymmetricExtreme : uint8_t { absolute, extra_level };

struct EstimatorOptions {
  HistogramPolicy histogram = HistogramPolicy::growing;
  int bins = 2048;            ///< of a growing histogram of a whole tensor; per channel it has 512
  double percentile = 100.0;  ///< 50..100; 100 is min/max
  SymmetricExtreme symmetric = SymmetricExtreme::absolute;
  double momentum = 0.9;      ///< moving average: share of the old range at each batch
};

class RangeEstimator {
 public:
  virtual ~RangeEstimator() = default;

  /// Takes in a batch (f32, any device), seen as [outer, channels, inner]. Empty batches are ignored. Throws Error for NaN or another number of channels.
  /// Returns the smallest and the largest value, zeros for an empty batch; infinities are the caller's affair, as ranges may be made of them.
  Range observe(const Tensor& x, const ChannelView& view);
  /// Per tensor.
  Range observe(const Tensor& x) { return observe(x, ChannelView{1, 1, x.elements()}); }
  bool seen() const { return channels_ > 0; }
  /// 0 before anything was seen.
  int64_t channels() const { return channels_; }
  /// One range per channel, gated (zero inside, width at least 0.01, or what the spec's least scale asks). Throws Error when nothing was seen. grid_from_range of it is the grid meant.
  std::vector<Range> ranges(const GridSpec& spec) const;
  void reset();

  /// Statistics as bytes for a checkpoint; load() throws Error when they are not such bytes, or another estimator's; then
  /// nothing counts as seen.
  std::string save() const;
  void load(std::string_view bytes);

 protected:
  explicit RangeEstimator(EstimatorKind kind) : kind_(kind) {}
  struct Writer;
  struct Reader;

  virtual void resize(int64_t channels) = 0;
  /// n > 0 values of one channel, contiguous at x[first]; extremes may be infinite.
  virtual void update(int64_t channel, const Tensor& x, int64_t first, int64_t n, Range extremes) = 0;
  virtual Range range(int64_t channel, const GridSpec& spec) const = 0;
  virtual bool needs_values() const = 0;  ///< false: extremes suffice, update gets an undefined tensor
  virtual void write(int64_t channel, Writer& out) const = 0;
  virtual void read(int64_t channel, Reader& in) = 0;

 private:
  EstimatorKind kind_;
  int64_t channels_ = 0;
};

/// Throws Error when an option is out of its domain.
std::unique_ptr<RangeEstimator> make_estimator(EstimatorKind kind, const EstimatorOptions& options = {});

}  // namespace detent::quant
