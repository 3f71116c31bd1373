// What a quantized network leaves on disk. QuantSim::export_to (quant/quantsim.h) is defined here. Thread-safe for different graphs and files.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "detent/quant/quantsim.h"

namespace detent::io {

struct ExportOptions {
  std::string folder = ".";
  std::string prefix = "model";
  std::string encodings_version = "1.0.0";
  std::optional<bool> int32_bias = {};  ///< entries for biases in the encodings; unset: only in 2.0.0, as AIMET's
};

/// Writes PREFIX.safetensors (the float weights as they are), PREFIX.encodings, PREFIX.onnx and PREFIX.qdq.onnx (io/onnx/export.h), each complete or not at all.
/// Returns the file names in order. Throws Error naming a weight that is not finite.
std::vector<std::string> export_quantized(quant::QuantSim& sim, const ExportOptions& options);

}  // namespace detent::io
