// Cross-layer equalization and high-bias folding on tensors (Nagel et al. 2019, "Data-Free Quantization"; aimet.md section 7). Thread-safe for different tensors.
// Weights are [k,r,s,c] or [out,in] on the CPU, biases [k] or undefined (then there is none); everything is changed in place. Throws Error when channels do not fit.
#pragma once

#include <vector>

#include "detent/core/tensor.h"

namespace detent::quant {

enum class FoldActivation : uint8_t { none, relu, relu6 };

/// Largest magnitude per output channel (first axis), or per input channel (last axis; groups == 1).
std::vector<double> output_channel_ranges(const Tensor& weight);
std::vector<double> input_channel_ranges(const Tensor& weight);

/// s[i] = r1[i] / sqrt(r1[i] * r2[i]); 1 where a range is 0 or not finite.
std::vector<double> pair_scales(const std::vector<double>& r1, const std::vector<double>& r2);
struct TripleScales {
  std::vector<double> s12, s23;
};
/// c = (r1 r2 r3)^(1/3), s12 = r1/c, s23 = c/r3.
TripleScales triple_scales(const std::vector<double>& r1, const std::vector<double>& r2, const std::vector<double>& r3);

/// layer 1 -> layer 2: W1 /= s, b1 /= s per output channel, W2 *= s per input channel. Returns s.
std::vector<double> equalize_pair(Tensor& w1, Tensor& b1, Tensor& w2);
/// layer 1 -> depthwise layer 2 [c,r,s,1] -> layer 3.
TripleScales equalize_triple(Tensor& w1, Tensor& b1, Tensor& w2, Tensor& b2, Tensor& w3);

/// Moves the part a of layer 1's bias that its activation never cuts into layer 2: a = max(0, beta - 3|gamma|) behind ReLU, beta without activation;
/// b1 -= a, b2 += K a, K = layer 2 summed over space. gamma and beta: [k1], of the batch norm that was folded into layer 1 (scaled like layer 1 if it was
/// equalized). layer 2 is depthwise when its last axis is 1 and layer 1 has as many channels as it. Returns a.
std::vector<double> fold_high_bias(Tensor& b1, const std::vector<double>& gamma, const std::vector<double>& beta, FoldActivation activation, const Tensor& w2, Tensor& b2);

}  // namespace detent::quant
