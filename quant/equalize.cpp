#include "detent/quant/equalize.h"
#include "detent/quant/host_only.h"

#include <algorithm>
#include <cmath>

namespace detent::quant {
namespace {

int64_t last_axis(const Tensor& w) {
  DETENT_CHECK(w.defined() && w.rank() >= 2, "equalize: a weight has rank ", w.defined() ? w.rank() : 0, "; expected [k,r,s,c] or [out,in]");
  return w.dim(w.rank() - 1);
}

// Multiplies by factor[channel]; channel is the first or the last axis.
void scale_outputs(Tensor& w, const std::vector<double>& factor) {
  auto* p = host_floats("equalization", w);
  const int64_t inner = w.elements() / w.dim(0);
  for (int64_t i = 0; i < w.elements(); ++i) p[i] = static_cast<float>(p[i] * factor[static_cast<size_t>(i / inner)]);
}

void scale_inputs(Tensor& w, const std::vector<double>& factor) {
  auto* p = host_floats("equalization", w);
  const int64_t c = last_axis(w);
  for (int64_t i = 0; i < w.elements(); ++i) p[i] = static_cast<float>(p[i] * factor[static_cast<size_t>(i % c)]);
}

void scale_bias(Tensor& b, const std::vector<double>& factor) {
  if (!b.defined()) return;
  DETENT_CHECK(b.elements() == static_cast<int64_t>(factor.size()), "equalize: a bias of ", b.elements(), " values for ", factor.size(), " channels");
  auto* p = host_floats("equalization", b);
  for (size_t i = 0; i < factor.size(); ++i) p[i] = static_cast<float>(p[i] * factor[i]);
}

std::vector<double> inverse(const std::vector<double>& s) {
  std::vector<double> out(s.size());
  std::transform(s.begin(), s.end(), out.begin(), [](double v) { return 1.0 / v; });
  return out;
}

bool usable(double v) { return std::isfinite(v) && v > 0.0; }

void check_channels(const char* what, size_t a, size_t b) { DETENT_CHECK(a == b, "equalize: ", what, " has ", b, " channels, the layer before it ", a); }

}  // namespace

std::vector<double> output_channel_ranges(const Tensor& weight) {
  last_axis(weight);
  const auto* p = host_floats("equalization", weight);
  std::vector<double> r(static_cast<size_t>(weight.dim(0)), 0.0);
  const int64_t inner = weight.dim(0) ? weight.elements() / weight.dim(0) : 0;
  for (int64_t i = 0; i < weight.elements(); ++i) {
    double& m = r[static_cast<size_t>(i / inner)];
    m = std::max(m, std::fabs(static_cast<double>(p[i])));
  }
  return r;
}

std::vector<double> input_channel_ranges(const Tensor& weight) {
  const int64_t c = last_axis(weight);
  const auto* p = host_floats("equalization", weight);
  std::vector<double> r(static_cast<size_t>(c), 0.0);
  for (int64_t i = 0; i < weight.elements(); ++i) {
    double& m = r[static_cast<size_t>(i % c)];
    m = std::max(m, std::fabs(static_cast<double>(p[i])));
  }
  return r;
}

std::vector<double> pair_scales(const std::vector<double>& r1, const std::vector<double>& r2) {
  check_channels("layer 2", r1.size(), r2.size());
  std::vector<double> s(r1.size(), 1.0);
  for (size_t i = 0; i < s.size(); ++i) {
    const double v = r1[i] / std::sqrt(r1[i] * r2[i]);
    if (usable(r1[i]) && usable(r2[i]) && usable(v)) s[i] = v;
  }
  return s;
}

TripleScales triple_scales(const std::vector<double>& r1, const std::vector<double>& r2, const std::vector<double>& r3) {
  check_channels("layer 2", r1.size(), r2.size());
  check_channels("layer 3", r1.size(), r3.size());
  TripleScales s{std::vector<double>(r1.size(), 1.0), std::vector<double>(r1.size(), 1.0)};
  for (size_t i = 0; i < r1.size(); ++i) {
    const double c = std::cbrt(r1[i] * r2[i] * r3[i]);
    if (!usable(c) || !usable(r1[i] / c) || !usable(c / r3[i])) continue;
    s.s12[i] = r1[i] / c;
    s.s23[i] = c / r3[i];
  }
  return s;
}

std::vector<double> equalize_pair(Tensor& w1, Tensor& b1, Tensor& w2) {
  const std::vector<double> s = pair_scales(output_channel_ranges(w1), input_channel_ranges(w2)), inv = inverse(s);
  scale_outputs(w1, inv);
  scale_bias(b1, inv);
  scale_inputs(w2, s);
  return s;
}

TripleScales equalize_triple(Tensor& w1, Tensor& b1, Tensor& w2, Tensor& b2, Tensor& w3) {
  DETENT_CHECK(last_axis(w2) == 1, "equalize: the middle layer has ", last_axis(w2), " input channels a group; a depthwise one has 1");
  TripleScales s = triple_scales(output_channel_ranges(w1), output_channel_ranges(w2), input_channel_ranges(w3));
  const std::vector<double> inv12 = inverse(s.s12), inv23 = inverse(s.s23);
  std::vector<double> middle(s.s12.size());
  for (size_t i = 0; i < middle.size(); ++i) middle[i] = s.s12[i] / s.s23[i];
  scale_outputs(w1, inv12);
  scale_bias(b1, inv12);
  scale_outputs(w2, middle);
  scale_bias(b2, inv23);
  scale_inputs(w3, s.s23);
  return s;
}

std::vector<double> fold_high_bias(Tensor& b1, const std::vector<double>& gamma, const std::vector<double>& beta, FoldActivation activation, const Tensor& w2, Tensor& b2) {
  const size_t n = beta.size();
  DETENT_CHECK(gamma.size() == n && b1.defined() && b1.elements() == static_cast<int64_t>(n), "high-bias fold: ", n, " values of beta, ", gamma.size(), " of gamma, ",
               b1.defined() ? b1.elements() : 0, " of the first layer's bias; they must agree");
  const int64_t c = last_axis(w2), k = w2.dim(0);
  const bool depthwise = c == 1 && k == static_cast<int64_t>(n) && n > 1;
  DETENT_CHECK(depthwise || c == static_cast<int64_t>(n), "high-bias fold: layer 2 has ", c, " input channels, layer 1 gives ", n);
  if (!b2.defined()) b2 = Tensor::zeros({k});
  DETENT_CHECK(b2.elements() == k, "high-bias fold: layer 2 has ", k, " channels and a bias of ", b2.elements());
  std::vector<double> a(n);
  for (size_t i = 0; i < n; ++i) a[i] = activation == FoldActivation::none ? beta[i] : std::max(0.0, beta[i] - 3.0 * std::fabs(gamma[i]));
  auto* p1 = host_floats("equalization", b1);
  auto* p2 = host_floats("equalization", b2);
  const auto* w = host_floats("equalization", w2);
  for (size_t i = 0; i < n; ++i) p1[i] = static_cast<float>(p1[i] - a[i]);
  const int64_t inner = w2.elements() / std::max<int64_t>(1, k);
  for (int64_t o = 0; o < k; ++o) {
    double sum = 0.0;
    for (int64_t i = 0; i < inner; ++i) sum += w[o * inner + i] * a[static_cast<size_t>(depthwise ? o : i % c)];
    p2[o] = static_cast<float>(p2[o] + sum);
  }
  return a;
}

}  // namespace detent::quant
