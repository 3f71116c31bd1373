// Weight files into and out of a Graph. Files hold PyTorch's layout (conv weights OIHW); the Graph holds OHWI. Keys are the Graph's parameter and buffer names. One thread a Graph.
#pragma once

#include <span>
#include <string>

#include "detent/io/safetensors.h"
#include "detent/nn/graph.h"

namespace detent::io {

/// Loads a file recognised by its content: safetensors, ONNX (its initializers by name), Keras .h5. Names may carry a common prefix ("module.", "model.", "backbone.") or be Hugging Face's
/// for ResNets (timm's are torchvision's); "*.num_batches_tracked" is ignored.
/// Every missing, left-over or wrongly shaped tensor is named in one Error, and then nothing was changed. Pickled PyTorch files are refused with the way to convert them.
void load_weights(nn::Graph& graph, const std::string& path);

/// The same from tensors already read; `source` stands for the file in messages.
void assign_weights(nn::Graph& graph, std::span<const NamedTensor> tensors, const std::string& source);

/// Copies of parameters and buffers, as stored in a file; transforms (learned ranges) are not part of them. assign_weights() puts them back, or into another Graph of the
/// same kind: that is how a network is copied.
std::vector<NamedTensor> weights_of(nn::Graph& graph);
/// The bytes of a safetensors file.
std::string weights_bytes(nn::Graph& graph);
/// Writes them atomically.
void save_weights(nn::Graph& graph, const std::string& path);

/// [k,r,s,c] -> [k,c,r,s] and back.
Tensor ohwi_to_oihw(const Tensor& w);
Tensor oihw_to_ohwi(const Tensor& w);

}  // namespace detent::io
