// Folds batch norms into the convolutions and dense layers beside them; edits the Graph. Thread-safe for different graphs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "detent/nn/graph.h"

namespace detent::nn {

/// Folds every batch norm behind a Conv2d or Dense that only it reads, and every one before a Conv2d (no padding, one group) or Dense that alone reads it.
/// Others stay as they are. Returns (layer, batch norm) name pairs. Each fold is checked on a probe batch: an output that moves by more than 1e-3 of
/// its largest value is an Error that names the layer; it and those behind it are then left as they were. So is, with nothing changed, one beside a quantizer:
/// fold before the QuantSim is made, or behind training with quant::fold_batch_norms_to_scale.
std::vector<std::pair<std::string, std::string>> fold_batch_norms(Graph& graph);

}  // namespace detent::nn
