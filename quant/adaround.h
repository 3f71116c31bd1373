// The formulas of AdaRound (Nagel et al. 2020, "Up or Down?"; aimet.md section 7): rectified sigmoid, its regulariser and schedule, reconstruction loss.
// Tensors on the CPU. Pure functions; thread-safe.
#pragma once

#include "detent/core/tensor.h"

namespace detent::quant {

struct AdaroundSpec {
  double regularisation = 0.01;
  double zeta = 1.1, gamma = -0.1;  ///< the sigmoid is stretched to [gamma, zeta] and clipped to [0, 1]
  double beta_start = 20.0, beta_end = 2.0;
  double warm_start = 0.2;  ///< share of the iterations without regulariser
};

/// h(alpha) = clip((zeta - gamma) * sigmoid(alpha) + gamma, 0, 1).
double adaround_h(double alpha, const AdaroundSpec& spec = {});
double adaround_dh(double alpha, const AdaroundSpec& spec = {});
/// alpha with h(alpha) = fraction: where optimization starts; fraction is clamped inside (0, 1).
double adaround_alpha(double fraction, const AdaroundSpec& spec = {});
bool adaround_warm(int64_t iteration, int64_t iterations, const AdaroundSpec& spec = {});
/// Cosine from beta_start to beta_end behind the warm start.
double adaround_beta(int64_t iteration, int64_t iterations, const AdaroundSpec& spec = {});
/// d/d alpha of regularisation * (1 - |2h - 1|^beta), where h and its derivative are these.
double adaround_round_slope(double h, double dh, double beta, const AdaroundSpec& spec = {});
/// regularisation * sum(1 - |2h - 1|^beta); with a gradient, d loss / d alpha is added to it.
double adaround_round_loss(const Tensor& alpha, double beta, const AdaroundSpec& spec = {}, Tensor* gradient = nullptr);
/// Mean over batch and space of the squared error summed over channels (last axis).
double adaround_reconstruction_loss(const Tensor& output, const Tensor& target);

}  // namespace detent::quant
