#include "detent/io/export.h"

#include <memory>
#include <string_view>
#include <vector>

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
  // All are written before the first appears: a full disk must not leave new weights beside an older model.
  std::vector<std::unique_ptr<AtomicFile>> files;
  const auto put = [&](const std::string& name, std::string_view bytes) {
    files.push_back(std::make_unique<AtomicFile>(join_path(o.folder, name)));
    files.back()->write(bytes);
  };
  put(weights, weights_bytes(sim.graph()));
  put(encodings, write_encodings(sim.encodings(o.int32_bias.value_or(o.encodings_version == "2.0.0")), o.encodings_version));
  put(model, onnx_bytes(sim.graph()));
  put(qdq, onnx_bytes(sim.graph(), OnnxQuantization::qdq));
  for (const auto& file : files) file->commit();
  return {weights, encodings, model, qdq};
}

}  // namespace io

std::vector<std::string> quant::QuantSim::export_to(const std::string& folder, const std::string& prefix, const std::string& encodings_version) {
  return io::export_quantized(*this, {.folder = folder, .prefix = prefix, .encodings_version = encodings_version});
}

}  // namespace detent
