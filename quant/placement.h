// Decides which values and parameters of a Graph get quantizers, by AIMET's rules (aimet.md section 3), and puts them there.
#pragma once

#include <vector>

#include "detent/quant/quantsim.h"

namespace detent::quant {

/// Creates the quantizers and places them in the Graph's slots.
std::vector<Placement> place_quantizers(nn::Graph& graph, const QuantSimOptions& options);

}  // namespace detent::quant
