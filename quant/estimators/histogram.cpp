#include "detent/quant/estimators/histogram.h"

#include <algorithm>
#include <cmath>

#include "detent/core/backend.h"

namespace detent::quant {
namespace {

// Counts of x[first, first+n) in the bins of h, by the backend the tensor lives on.
std::vector<double> count(const Tensor& x, int64_t first, int64_t n, const Histogram& h, bool centred, bool clamp_ends) {
  Tensor buffer = Tensor::zeros({h.bins()}, DType::i64, x.device());  // eight bytes a bin: the kernel writes doubles
  HistogramArgs args;
  args.x = x.data<float>() + first;
  args.n = n;
  args.lo = static_cast<float>(h.lo);
  args.width = static_cast<float>(h.width);
  args.bins = h.bins();
  args.centred = centred;
  args.clamp_ends = clamp_ends;
  args.counts = static_cast<double*>(buffer.raw());
  backend(x.device()).kernels().histogram_acc(args);
  const Tensor host = buffer.to(Device{});
  const auto* p = static_cast<const double*>(host.raw());
  return {p, p + h.bins()};
}

// A width that is still a positive float: values may be subnormal or differ by less than a bin can resolve.
double usable_width(double lo, double hi, int bins) {
  const double width = (hi - lo) / bins;
  return std::max(width, 1e-30);
}

}  // namespace

Range occupied_edges(const Histogram& h) {
  int first = 0, last = h.bins() - 1;
  while (first < last && h.counts[first] <= 0.0) ++first;
  while (last > first && h.counts[last] <= 0.0) --last;
  return {h.edge(first), h.edge(last)};
}

void FrozenHistogram::add(const Tensor& x, int64_t first, int64_t n, Range extremes) {
  if (h.counts.empty()) {
    if (extremes.min == 0.0 && extremes.max == 0.0) {
      all_zero = true;
      return;
    }
    all_zero = false;
    double lo = std::max(extremes.min, -kFloatMax), hi = std::min(extremes.max, kFloatMax);
    if (lo == hi) hi += kMinCalibrationWidth;
    const double centre = 0.5 * (lo + hi), half = 1.5 * (hi - lo);
    lo = std::max(centre - half, -kFloatMax);
    hi = std::min(centre + half, kFloatMax);
    h.lo = lo;
    h.width = usable_width(lo, hi, kBins);
    h.counts.assign(kBins, 0.0);
  }
  const std::vector<double> c = count(x, first, n, h, true, false);
  const auto k = static_cast<double>(batches);
  for (int i = 0; i < kBins; ++i) h.counts[i] = (h.counts[i] * k + c[i] / static_cast<double>(n)) / (k + 1.0);
  ++batches;
}

Histogram rebin(const Histogram& source, double lo, double hi, int bins) {
  Histogram out;
  out.lo = lo;
  out.width = usable_width(lo, hi, bins);
  out.counts.assign(static_cast<size_t>(bins), 0.0);
  const auto bin_of = [&](double v) { return static_cast<int>(std::clamp(std::floor((v - lo) / out.width), 0.0, bins - 1.0)); };
  for (int i = 0; i < source.bins(); ++i) {
    const double n = source.counts[i];
    if (n == 0.0) continue;
    const double left = source.edge(i);
    const int to = bin_of(left);
    const double end = out.edge(to + 1);
    if (source.edge(i + 1) <= end || to + 1 == bins) {
      out.counts[to] += n;
      continue;
    }
    const double stay = std::clamp(std::rint((end - left) / source.width * n), 0.0, n);
    out.counts[to] += stay;
    out.counts[bin_of(left + out.width)] += n - stay;
  }
  return out;
}

void GrowingHistogram::add(const Tensor& x, int64_t first, int64_t n, Range extremes) {
  const double lo = std::max(extremes.min, -kFloatMax), hi = std::min(extremes.max, kFloatMax);
  if (h.counts.empty()) {
    seen = {lo, hi};
    h.lo = lo == hi ? lo - 0.5 : lo;
    h.width = usable_width(h.lo, lo == hi ? hi + 0.5 : hi, bins);
    h.counts.assign(static_cast<size_t>(bins), 0.0);
  } else {
    seen = {std::min(seen.min, lo), std::max(seen.max, hi)};
    if (lo < h.lo || hi > h.hi() * (1.0 + 1e-15)) h = rebin(h, std::min(lo, h.lo), std::max(hi, h.hi()), bins);
  }
  const std::vector<double> c = count(x, first, n, h, false, true);
  for (int i = 0; i < bins; ++i) h.counts[i] += c[i];
}

}  // namespace detent::quant
