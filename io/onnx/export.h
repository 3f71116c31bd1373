// A Graph as an ONNX file. Values are [n,h,w,c] in the Graph and [n,c,h,w] in the file, conv weights OIHW; the batch is symbolic ("N"). Names are the Graph's.
// Outputs in order: what accuracy reads (Graph::scores), then the declared outputs that differ from it (a Softmax behind it). Thread-safe for different graphs.
// Opset 17 (19 with a dilated average pool, 21 with grids of 9 to 16 bits). The same network gives the same bytes. Throws Error naming the node that has no ONNX form.
#pragma once

#include <string>

#include "detent/nn/graph.h"

namespace detent::io {

/// none: the float network, quantizers ignored. qdq: every value on a grid goes through QuantizeLinear and DequantizeLinear, also behind operators that only move
/// elements; weights are stored as codes, biases as int32 on the grid s_x * s_w. Grids narrower than their integer type are clipped before QuantizeLinear.
enum class OnnxQuantization : uint8_t { none, qdq };

std::string onnx_bytes(nn::Graph& graph, OnnxQuantization quantization = OnnxQuantization::none);
/// Writes under a temporary name and renames.
void save_onnx(nn::Graph& graph, const std::string& path, OnnxQuantization quantization = OnnxQuantization::none);

}  // namespace detent::io
