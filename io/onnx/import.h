// ONNX files (opset 11 to 21) as a Graph, trainable and quantizable like the built-in networks. [n,c,h,w] becomes [n,h,w,c] at the border: the input of the Graph is
// [h,w,c]. Names are kept: values have the names of the file's tensors, parameters those of its initializers. The bytes may come from anywhere: sizes are
// checked before allocation. Throws Error naming the file; what is not supported is one Error that lists every such node with its name, operator and reason. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "detent/io/safetensors.h"
#include "detent/nn/graph.h"
#include "detent/quant/encoding.h"

namespace detent::io {

struct OnnxImportOptions {
  int64_t image_size = 0;  ///< height and width where the file leaves them open; 0: an Error then
};

struct OnnxNetwork {
  nn::Graph graph;
  /// Grids of a file that carries QuantizeLinear and DequantizeLinear: for QuantSim::load_encodings(.., Load::partial), then frozen, or learn()ed.
  quant::EncodingMap encodings;
};

/// Reads a file. External data is read from the file's folder; paths that leave it are refused.
OnnxNetwork load_onnx(const std::string& path, const OnnxImportOptions& options = {});
/// The same from memory; `name` stands for the path in messages, `folder` is where external data lies ("" refuses it).
OnnxNetwork parse_onnx(std::string_view bytes, const std::string& name, const std::string& folder = {}, const OnnxImportOptions& options = {});
/// The float initializers of a file by name, in the layout of the file: weights for a network of the same parameter names.
std::vector<NamedTensor> onnx_initializers(const std::string& path);
/// True when the bytes begin like an ONNX model: its version, then a producer or a graph.
bool is_onnx(std::string_view first_bytes);

}  // namespace detent::io
