// Recognizes weights that were quantized before: values that all are whole multiples of one scale. Thread-safe.
#pragma once

#include <optional>
#include <vector>

#include "detent/core/backend.h"
#include "detent/core/math/quant_math.h"
#include "detent/core/tensor.h"

namespace detent::quant {

/// For each channel the grid of this spec its values lie on, bit for bit. Nothing at all unless every channel that tells lies on one. A channel tells when it
/// has three different magnitudes; up to 4 bits fewer are enough when they repeat. The others have none.
std::vector<std::optional<Grid>> grids_of_values(const Tensor& x, const ChannelView& view, const GridSpec& spec);

}  // namespace detent::quant
