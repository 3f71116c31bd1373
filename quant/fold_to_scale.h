// Folding a batch norm into a layer whose weight already has learned ranges: the ranges move with the channels (aimet.md section 4, fold-to-scale). Stateless, thread-safe.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "detent/core/math/quant_math.h"
#include "detent/nn/passes/fold_math.h"
#include "detent/quant/quantsim.h"

namespace detent::quant {

/// The range of factor * x: a negative factor exchanges the ends.
Range scaled_range(const Range& r, double factor);

/// layer -> norm as nn::fold_backward, and each channel's range scaled by gamma/sigma. A per-tensor range (one for several channels) fits only when all
/// factors are one value: an Error otherwise, calibrate the weight anew instead.
void fold_to_scale(Tensor& weight, Tensor& bias, std::vector<Range>& ranges, const nn::NormTerms& norm);

/// After training with batch norms left in: folds every one behind a Conv or Gemm that only it reads, and scales the weight's ranges channel by channel, so
/// that the codes stay those that were trained (but for ties, codes -128 under a negative factor, and channels whose scale the int32 accumulators ask to be
/// larger: QuantSimOptions::protect_accumulators). A weight quantized per tensor becomes one per channel. A bias quantizer gets the range of the folded bias.
/// The batch norm's output quantizer, where it has one, becomes the layer's. Returns (layer, batch norm) name pairs.
std::vector<std::pair<std::string, std::string>> fold_batch_norms_to_scale(QuantSim& sim);

}  // namespace detent::quant
