// Update rules of the optimizers for one parameter, once, for host and device. Pure functions: thread-safe.
#pragma once

#include <cmath>
#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent {

/// v = momentum * v + (g + wd * w); w -= lr * (nesterov ? g + wd*w + momentum * v : v). Without momentum v is the gradient itself.
DETENT_HD void sgd_update(float& w, float g, float& v, float lr, float weight_decay, float momentum, bool nesterov) {
  const float d = g + weight_decay * w;
  v = momentum * v + d;
  w -= lr * (nesterov ? d + momentum * v : v);
}

/// Polynomial-decay averaging (Shamir & Zhang 2013, section 4): the average after `step` steps (from 1) moves by this share of the way to the newest weights. It then
/// spans about `span` of all steps so far, the last ones, wherever training ends; span 1 is the plain mean.
inline float newest_share(double span, int64_t step) {
  const double eta = 1.0 / span - 1.0, share = (eta + 1.0) / (static_cast<double>(step) + eta);
  return static_cast<float>(share < 1.0 ? share : 1.0);
}
DETENT_HD void average_update(float& average, float w, float newest) { average += newest * (w - average); }

struct AdamFactors {
  float beta1, beta2, eps;
  float step_size_factor;      ///< 1 / (1 - beta1^t)
  float sqrt_correction;       ///< sqrt(1 - beta2^t)
};

/// step counts from 1.
inline AdamFactors adam_factors(float beta1, float beta2, float eps, int64_t step) {
  const double t = static_cast<double>(step);
  return {beta1, beta2, eps, static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta1), t))), static_cast<float>(std::sqrt(1.0 - std::pow(static_cast<double>(beta2), t)))};
}

/// Kingma & Ba 2015, algorithm 1, in the order of its section 2 (bias corrections folded into the step); decoupled: Loshchilov & Hutter 2019, algorithm 2.
DETENT_HD void adam_update(float& w, float g, float& m, float& v, float lr, float weight_decay, bool decoupled, const AdamFactors& f) {
  if (decoupled) {
    w -= lr * weight_decay * w;
  } else {
    g += weight_decay * w;
  }
  m = f.beta1 * m + (1.0f - f.beta1) * g;
  v = f.beta2 * v + (1.0f - f.beta2) * g * g;
  w -= lr * f.step_size_factor * m / (sqrtf(v) / f.sqrt_correction + f.eps);
}

}  // namespace detent
