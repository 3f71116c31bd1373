// The int32 accumulators of an integer target: what scale a layer's bias has there, and how small a weight scale may be before bias or sum overflow.
// Reads the quantizers of a Graph as they are now; one thread uses a Graph at a time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "detent/nn/graph.h"
#include "detent/quant/encoding.h"
#include "detent/quant/quantizer.h"

namespace detent::quant {

/// A Conv or Gemm with a quantized weight, seen by its integer target.
struct IntegerLayer {
  int node = -1;
  nn::Parameter* weight = nullptr;
  nn::Parameter* bias = nullptr;  ///< null when there is none
  Quantizer* weight_quantizer = nullptr;
  std::optional<Grid> input, output;  ///< grids of what it reads and writes; the output's also behind the activation that follows
};

/// Every Conv and Gemm whose weight is on a grid, in node order.
std::vector<IntegerLayer> integer_layers(nn::Graph& graph);

/// The smallest weight scale per grid of the weight quantizer for which (aimet-2.42.md section 5) the bias and its sum with the output's zero point fit into
/// int32, the requantization factor is at least 2^-23.5, and, with inputs of at most 8 bits, no sum of products can overflow. 0 where nothing is required.
std::vector<double> least_weight_scales(const IntegerLayer& layer);

/// Asks every such layer's weight quantizer for its least scales: after calibration, and whenever weights, biases or ranges were changed behind it.
void protect_accumulators(nn::Graph& graph);

/// The int32 entry of the layer's bias: s_in * s_w per channel, or its own largest magnitude where the input has no grid.
Encoding bias_encoding(const IntegerLayer& layer);

}  // namespace detent::quant
