// Grids that were given (an encodings file, an ONNX file, a program) against what a quantizer's own are. Stateless, thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "detent/core/math/quant_math.h"

namespace detent::quant {

/// Why these cannot be `wanted` grids of that many bits, or "": their number, a scale or zero point that makes no grid, another number of codes (one code less
/// is a strict symmetric grid).
std::string misfit(const std::vector<Grid>& grids, size_t wanted, int bits);

/// The grid that a range under this spec gives and that means the same: codes may be counted from another zero (an int8 file of uint8 values), the extra
/// negative level of a symmetric grid may come or go, and steps may be narrower than the least scale. Nothing where there is none.
std::optional<Grid> grid_under(const Grid& given, const GridSpec& spec);

/// Why no range under this spec gives these grids, or "".
std::string of_another_kind(const std::vector<Grid>& grids, const GridSpec& spec);

}  // namespace detent::quant
