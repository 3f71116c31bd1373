// Decides which values and parameters of a Graph get quantizers, by AIMET's rules (aimet.md section 3), and puts them there.
#pragma once

#include <vector>

#include "detent/quant/quantsim.h"

namespace detent::quant {

/// Whether two values may have one quantizer: what a range of it may be is the same (bits, symmetry, format, fixed bounds, scheme, whether it is kept frozen).
bool may_share(const QuantizerSpec& a, const QuantizerSpec& b);
/// `kept` takes the place of `gone` at every value that has it. Bounds that only one of them has are dropped: what either may hold the other must hold.
void share(nn::Graph& graph, std::vector<Placement>& placements, const std::shared_ptr<Quantizer>& kept, const std::shared_ptr<Quantizer>& gone);

/// Creates the quantizers and places them in the Graph's slots.
std::vector<Placement> place_quantizers(nn::Graph& graph, const QuantSimOptions& options);

}  // namespace detent::quant
