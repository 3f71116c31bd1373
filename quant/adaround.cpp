#include "detent/quant/adaround.h"
#include "detent/quant/host_only.h"

#include <algorithm>
#include <cmath>

namespace detent::quant {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace

double adaround_h(double alpha, const AdaroundSpec& spec) { return std::clamp((spec.zeta - spec.gamma) * sigmoid(alpha) + spec.gamma, 0.0, 1.0); }

double adaround_dh(double alpha, const AdaroundSpec& spec) {
  const double s = sigmoid(alpha), h = (spec.zeta - spec.gamma) * s + spec.gamma;
  return h <= 0.0 || h >= 1.0 ? 0.0 : (spec.zeta - spec.gamma) * s * (1.0 - s);
}

double adaround_alpha(double fraction, const AdaroundSpec& spec) {
  const double f = std::clamp(fraction, 1e-6, 1.0 - 1e-6), s = (f - spec.gamma) / (spec.zeta - spec.gamma);
  return std::log(s / (1.0 - s));
}

bool adaround_warm(int64_t iteration, int64_t iterations, const AdaroundSpec& spec) { return static_cast<double>(iteration) < spec.warm_start * static_cast<double>(iterations); }

double adaround_beta(int64_t iteration, int64_t iterations, const AdaroundSpec& spec) {
  DETENT_CHECK(iterations > 0, "AdaRound: ", iterations, " iterations; at least 1");
  const double warm = spec.warm_start * static_cast<double>(iterations);
  const double t = std::clamp((static_cast<double>(iteration) - warm) / (static_cast<double>(iterations) - warm), 0.0, 1.0);
  return spec.beta_end + 0.5 * (spec.beta_start - spec.beta_end) * (1.0 + std::cos(t * 3.14159265358979323846));
}

double adaround_round_slope(double h, double dh, double beta, const AdaroundSpec& spec) {
  const double u = 2.0 * h - 1.0, m = std::fabs(u);
  return m > 0.0 ? -spec.regularisation * beta * std::pow(m, beta - 1.0) * (u < 0.0 ? -2.0 : 2.0) * dh : 0.0;
}

double adaround_round_loss(const Tensor& alpha, double beta, const AdaroundSpec& spec, Tensor* gradient) {
  if (gradient) DETENT_CHECK(gradient->shape() == alpha.shape(), "AdaRound: a gradient ", gradient->shape(), " for alpha ", alpha.shape());
  const auto* a = host_floats("AdaRound", alpha);
  auto* da = gradient ? host_floats("AdaRound", *gradient) : nullptr;
  double loss = 0.0;
  for (int64_t i = 0; i < alpha.elements(); ++i) {
    const double h = adaround_h(a[i], spec);
    loss += 1.0 - std::pow(std::fabs(2.0 * h - 1.0), beta);
    if (gradient) da[i] += static_cast<float>(adaround_round_slope(h, adaround_dh(a[i], spec), beta, spec));
  }
  return spec.regularisation * loss;
}

double adaround_reconstruction_loss(const Tensor& output, const Tensor& target) {
  DETENT_CHECK(output.shape() == target.shape() && output.rank() >= 1 && output.elements() > 0, "AdaRound: an output ", output.shape(), " and a target ", target.shape(),
               " must be one non-empty shape");
  const auto* y = host_floats("AdaRound", output);
  const auto* t = host_floats("AdaRound", target);
  double sum = 0.0;
  for (int64_t i = 0; i < output.elements(); ++i) {
    const double e = static_cast<double>(y[i]) - t[i];
    sum += e * e;
  }
  return sum / static_cast<double>(output.elements() / output.dim(-1));
}

}  // namespace detent::quant
