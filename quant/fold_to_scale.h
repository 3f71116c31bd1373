// Folding a batch norm into a layer whose weight already has learned ranges: the ranges move with the channels (aimet.md section 4, fold-to-scale). Stateless, thread-safe.
#pragma once

#include <vector>

#include "detent/core/math/quant_math.h"
#include "detent/nn/passes/fold_math.h"

namespace detent::quant {

/// The range of factor * x: a negative factor exchanges the ends.
Range scaled_range(const Range& r, double factor);

/// layer -> norm as nn::fold_backward, and each channel's range scaled by gamma/sigma. A per-tensor range (one for several channels) fits only when all
/// factors are one value: an Error otherwise, calibrate the weight anew instead.
void fold_to_scale(Tensor& weight, Tensor& bias, std::vector<Range>& ranges, const nn::NormTerms& norm);

}  // namespace detent::quant
