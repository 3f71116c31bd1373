#include "detent/quant/bias_correction.h"
#include "detent/quant/host_only.h"

#include <cmath>

namespace detent::quant {

void correct_bias_empirically(Tensor& bias, const Tensor& reference, const Tensor& quantized) {
  DETENT_CHECK(reference.shape() == quantized.shape(), "bias correction: outputs ", reference.shape(), " and ", quantized.shape(), " differ in shape");
  const int64_t k = bias.elements();
  DETENT_CHECK(reference.rank() >= 1 && reference.dim(-1) == k && reference.elements() > 0, "bias correction: outputs ", reference.shape(), " do not end in the ", k, " channels of the bias");
  const auto* f = host_floats("bias correction", reference);
  const auto* q = host_floats("bias correction", quantized);
  std::vector<double> sum(static_cast<size_t>(k), 0.0);
  for (int64_t i = 0; i < reference.elements(); ++i) sum[static_cast<size_t>(i % k)] += static_cast<double>(q[i]) - f[i];
  const double rows = static_cast<double>(reference.elements() / k);
  auto* b = host_floats("bias correction", bias);
  for (size_t c = 0; c < sum.size(); ++c) b[c] = static_cast<float>(b[c] - sum[c] / rows);
}

namespace {

double density(double x) { return 0.3989422804014327 * std::exp(-0.5 * x * x); }
double cumulative(double x) { return 0.5 * std::erfc(-x * 0.7071067811865476); }

}  // namespace

double expected_activation(double beta, double gamma, FoldActivation activation) {
  const double sigma = std::fabs(gamma);
  if (activation == FoldActivation::none) return beta;
  const double top = activation == FoldActivation::relu6 ? 6.0 : INFINITY;
  if (sigma == 0.0) return std::fmin(std::fmax(beta, 0.0), top);
  // Mean of a normal value clipped to [0, top]: the part inside, plus top times the part above it.
  const double a = (0.0 - beta) / sigma;
  if (activation == FoldActivation::relu) return beta * (1.0 - cumulative(a)) + sigma * density(a);
  const double b = (top - beta) / sigma;
  return beta * (cumulative(b) - cumulative(a)) + sigma * (density(a) - density(b)) + top * (1.0 - cumulative(b));
}

void correct_bias_analytically(Tensor& bias, const Tensor& weight, const Tensor& quantized_weight, const std::vector<double>& beta, const std::vector<double>& gamma,
                               FoldActivation activation) {
  DETENT_CHECK(weight.shape() == quantized_weight.shape() && weight.rank() >= 2, "bias correction: weights ", weight.shape(), " and ", quantized_weight.shape(), " must be one shape of rank 2 or more");
  const int64_t k = weight.dim(0), c = weight.dim(-1), inner = k ? weight.elements() / k : 0;
  const auto n = static_cast<int64_t>(beta.size());
  const bool depthwise = c == 1 && n == k && n > 1;
  DETENT_CHECK(gamma.size() == beta.size() && (depthwise || n == c), "bias correction: ", n, " values of beta and ", gamma.size(), " of gamma for weights ", weight.shape());
  DETENT_CHECK(bias.elements() == k, "bias correction: a bias of ", bias.elements(), " values for weights ", weight.shape());
  std::vector<double> mean(beta.size());
  for (size_t i = 0; i < mean.size(); ++i) mean[i] = expected_activation(beta[i], gamma[i], activation);
  const auto* w = host_floats("bias correction", weight);
  const auto* q = host_floats("bias correction", quantized_weight);
  auto* b = host_floats("bias correction", bias);
  for (int64_t o = 0; o < k; ++o) {
    double shift = 0.0;
    for (int64_t i = 0; i < inner; ++i) shift += (static_cast<double>(q[o * inner + i]) - w[o * inner + i]) * mean[static_cast<size_t>(depthwise ? o : i % c)];
    b[o] = static_cast<float>(b[o] - shift);
  }
}

}  // namespace detent::quant
