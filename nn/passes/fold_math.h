// Batch-norm folding of one layer's tensors (aimet.md section 4). sigma = sqrt(var + eps); an undefined gamma is all ones, an undefined beta all zeros. Thread-safe: no state.
#pragma once

#include "detent/core/tensor.h"

namespace detent::nn {

/// The statistics and scales of a batch norm over c channels, as host vectors.
struct NormTerms {
  std::vector<double> gamma, beta, mean, sigma;
};
NormTerms norm_terms(const Tensor& gamma, const Tensor& beta, const Tensor& mean, const Tensor& var, double eps);

/// gamma/sigma of a channel, and the bias of that channel behind a layer that had `bias`.
inline double fold_factor(const NormTerms& norm, size_t i) { return norm.gamma[i] / norm.sigma[i]; }
inline double folded_bias(const NormTerms& norm, size_t i, double bias) { return norm.beta[i] - (norm.mean[i] - bias) * fold_factor(norm, i); }

/// The same norm without touching the weight: y = scale * (W x) + shift, per channel, as f32 tensors. An undefined bias is zero.
struct ChannelAffine {
  Tensor scale, shift;
};
ChannelAffine channel_affine(const Tensor& bias, const NormTerms& norm, Device device);

/// layer -> norm: W'[k,...] = W[k,...] * s[k], b' = beta - (mean - b) * s with s = gamma/sigma. The weight's first dimension is the channel; an undefined bias is created.
void fold_backward(Tensor& weight, Tensor& bias, const NormTerms& norm);

/// norm -> layer: b'[k] = b[k] + sum over r,s,c of W[k,r,s,c] * (beta[c] - mean[c] * s[c]), W'[...,c] = W[...,c] * s[c]. Valid without padding and with one group.
void fold_forward(Tensor& weight, Tensor& bias, const NormTerms& norm);

}  // namespace detent::nn
