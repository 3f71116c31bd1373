#include "detent/io/export.h"

#include "detent/core/file.h"
#include "detent/io/encodings.h"
#include "detent/io/onnx/export.h"
#include "detent/io/weights.h"
#include "detent/nn/train.h"

namespace detent {

namespace io {

std::vector<std::string> export_quantized(quant::QuantSim& sim, const ExportOptions& o) {
  DETENT_CHECK(sim.placements().empty() || sim.has_ranges(), "export of ", o.prefix, ": none of the ", sim.placements().size(),
               " quantizers has a range and is on, so nothing would be quantized; run compute_encodings or load_encodings, or enable() those that are disabled");
  nn::require_finite(sim.graph(), text("export of ", o.prefix, ": not written"));
  make_folders(o.folder);
  const std::string weights = o.prefix + ".safetensors", encodings = o.prefix + ".encodings", model = o.prefix + ".onnx", qdq = o.prefix + ".qdq.onnx";
  save_weights(sim.graph(), join_path(o.folder, weights));
  write_file_atomically(join_path(o.folder, encodings),
                        std::string_view(write_encodings(sim.encodings(o.int32_bias.value_or(o.encodings_version == "2.0.0")), o.encodings_version)));
  save_onnx(sim.graph(), join_path(o.folder, model));
  save_onnx(sim.graph(), join_path(o.folder, qdq), OnnxQuantization::qdq);
  return {weights, encodings, model, qdq};
}

}  // namespace io

std::vector<std::string> quant::QuantSim::export_to(const std::string& folder, const std::string& prefix, const std::string& encodings_version) {
  return io::export_quantized(*this, {.folder = folder, .prefix = prefix, .encodings_version = encodings_version});
}

}  // namespace detent
