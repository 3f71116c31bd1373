// Bias correction on tensors: takes the mean error that quantized weights cause back out of the bias (Nagel et al. 2019; aimet.md section 7).
// CPU tensors, changed in place; throws Error when shapes do not fit. Thread-safe for different tensors.
#pragma once

#include <vector>

#include "detent/core/tensor.h"
#include "detent/quant/equalize.h"

namespace detent::quant {

/// b[k] -= mean over all but the last axis of (quantized - reference); outputs [n,h,w,k] or [n,k].
void correct_bias_empirically(Tensor& bias, const Tensor& reference, const Tensor& quantized);

/// Expected value of activation(beta + |gamma| * N(0,1)).
double expected_activation(double beta, double gamma, FoldActivation activation);

/// b[k] -= sum over r,s,c of (Wq - W)[k,r,s,c] * E[x_c], the input x being the activation behind a batch norm with beta and gamma ([c] each).
/// Depthwise ([k,r,s,1] with k = c channels) takes E[x_k].
void correct_bias_analytically(Tensor& bias, const Tensor& weight, const Tensor& quantized_weight, const std::vector<double>& beta, const std::vector<double>& gamma,
                               FoldActivation activation);

}  // namespace detent::quant
