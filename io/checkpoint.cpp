#include "detent/io/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "detent/core/bytes.h"
#include "detent/core/file.h"
#include "detent/io/data/crc32c.h"
#include "detent/io/weights.h"
#include "detent/nn/train.h"

namespace detent::io {
namespace {

constexpr std::string_view kMagic = "DETENTCK";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostSections = 64;

uint32_t section_crc(std::string_view name, std::string_view payload) { return masked_crc(crc32c(payload.data(), payload.size(), crc32c(name.data(), name.size()))); }

std::string progress_text(const Progress& p) {
  return nlohmann::json{{"step", p.step}, {"epoch", p.epoch}, {"batch", p.batch}, {"options", p.options}, {"report", p.report}}.dump();
}

Progress parse_progress(const std::string& text_, const std::string& path) {
  try {
    const nlohmann::json j = nlohmann::json::parse(text_);
    Progress p{j.at("step").get<int64_t>(), j.at("epoch").get<int64_t>(), j.at("batch").get<int64_t>(), j.at("options").get<std::string>(), j.at("report").get<std::string>()};
    DETENT_CHECK(p.step >= 0 && p.epoch >= 0 && p.batch >= 0, "checkpoint ", path, ": negative progress");
    return p;
  } catch (const nlohmann::json::exception& e) {
    fail("checkpoint ", path, ": section \"progress\": ", e.what());
  }
}

const std::string& section(const Sections& sections, const char* name, const std::string& path) {
  const auto it = sections.find(name);
  DETENT_CHECK(it != sections.end(), "checkpoint ", path, ": section \"", name, "\" is missing");
  return it->second;
}

std::string quantizer_bytes(quant::QuantSim& sim) {
  ByteWriter out;
  out.put<uint64_t>(sim.placements().size());
  for (const quant::Placement& p : sim.placements()) {
    out.put_string(p.name);
    out.put_string(p.quantizer->save());
  }
  return out.take();
}

std::vector<std::string_view> parse_quantizers(quant::QuantSim& sim, const std::string& bytes, const std::string& path) {
  ByteReader in(bytes, text("checkpoint ", path, ": section \"quantizers\""));
  const uint64_t n = in.get_count(16);
  DETENT_CHECK(n == sim.placements().size(), "checkpoint ", path, ": ", n, " quantizers, this network has ", sim.placements().size(), "; use the same --config and bit-widths");
  std::vector<std::string_view> states;
  for (const quant::Placement& p : sim.placements()) {
    const std::string_view name = in.get_string();
    DETENT_CHECK(name == p.name, "checkpoint ", path, ": quantizer \"", name, "\" where this network has \"", p.name, "\"");
    states.push_back(in.get_string());
  }
  return states;
}

void restore_quantizer(const quant::Placement& p, std::string_view bytes, const std::string& path) {
  try {
    p.quantizer->restore(bytes);
  } catch (const Error& e) {
    fail("checkpoint ", path, ": ", e.what());
  }
  const int axis = p.quantizer->spec().channel_axis;
  if (!p.parameter || axis < 0 || !p.quantizer->calibrated()) return;
  const int64_t n = static_cast<int64_t>(p.quantizer->ranges().size()), channels = p.parameter->value.dim(axis);
  DETENT_CHECK(n == channels, "checkpoint ", path, ": quantizer \"", p.name, "\" has ", n, " ranges, this network ", channels, " channels");
}

// Puts quantizers back as they were unless everything fitted.
class QuantizerRollback {
 public:
  explicit QuantizerRollback(quant::QuantSim* sim) : sim_(sim) {
    if (!sim) return;
    for (const quant::Placement& p : sim->placements()) before_.push_back(p.quantizer->save());
  }
  ~QuantizerRollback() {
    if (!sim_) return;
    try {
      for (size_t i = 0; i < before_.size(); ++i) sim_->placements()[i].quantizer->restore(before_[i]);
    } catch (const std::exception&) {
      // No memory to go back with: the error on its way says that nothing can be trusted.
    }
  }
  QuantizerRollback(const QuantizerRollback&) = delete;
  QuantizerRollback& operator=(const QuantizerRollback&) = delete;
  void done() { sim_ = nullptr; }

 private:
  quant::QuantSim* sim_;
  std::vector<std::string> before_;
};

// "conv1.weight/momentum" belongs to conv1.weight and has its shape. State of bounds that do not learn at present has nothing to be compared with.
void check_optimizer_state(nn::Graph& graph, const std::vector<NamedTensor>& state, const std::string& path) {
  std::map<std::string_view, const Tensor*> parameters;
  for (const nn::Parameter* p : graph.parameters()) parameters[p->name] = &p->value;
  for (const NamedTensor& t : state) {
    const auto it = parameters.find(std::string_view(t.name).substr(0, t.name.rfind('/')));
    if (it == parameters.end()) continue;
    DETENT_CHECK(t.tensor.dtype() == DType::f32 && t.tensor.shape() == it->second->shape(), "checkpoint ", path, ": optimizer state \"", t.name, "\" is ", to_string(t.tensor.dtype()), " ",
                 t.tensor.shape(), ", its parameter f32 ", it->second->shape());
  }
}

}  // namespace

void write_checkpoint_file(const std::string& path, const Sections& sections) {
  AtomicFile file(path);
  ByteWriter head;
  head.put(kVersion);
  head.put(static_cast<uint32_t>(sections.size()));
  file.write(kMagic);
  file.write(head.bytes());
  uint32_t all = crc32c(head.bytes().data(), head.bytes().size());
  for (const auto& [name, payload] : sections) {
    ByteWriter h;
    h.put(static_cast<uint32_t>(name.size()));
    file.write(h.bytes());
    file.write(name);
    ByteWriter size;
    size.put<uint64_t>(payload.size());
    file.write(size.bytes());
    file.write(payload);
    ByteWriter crc;
    crc.put(section_crc(name, payload));
    file.write(crc.bytes());
    all = crc32c(crc.bytes().data(), crc.bytes().size(), crc32c(size.bytes().data(), size.bytes().size(), crc32c(name.data(), name.size(), all)));
  }
  ByteWriter tail;
  tail.put(masked_crc(all));
  file.write(tail.bytes());
  file.commit();
}

Sections read_checkpoint_file(const std::string& path) {
  const std::string bytes = read_file(path);
  ByteReader in(bytes, text("checkpoint ", path));
  DETENT_CHECK(bytes.size() >= kMagic.size() && in.get_bytes(kMagic.size()) == kMagic, "checkpoint ", path, ": not a Detent checkpoint");
  const auto version = in.get<uint32_t>();
  DETENT_CHECK(version == kVersion, "checkpoint ", path, ": format version ", version, ", this build reads version ", kVersion);
  const auto count = in.get<uint32_t>();
  DETENT_CHECK(count <= kMostSections, "checkpoint ", path, ": ", count, " sections announced, at most ", kMostSections, " are possible");
  uint32_t all = crc32c(bytes.data() + kMagic.size(), 8);
  Sections sections;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string name(in.get_bytes(in.get<uint32_t>()));
    const auto size = in.get<uint64_t>();
    const uint64_t at = in.offset();
    const std::string_view payload = in.get_bytes(size);
    const auto crc = in.get<uint32_t>();
    DETENT_CHECK(crc == section_crc(name, payload), "checkpoint ", path, ": section \"", name, "\" at offset ", at, ": checksum differs, the file is damaged; use an earlier one");
    all = crc32c(&crc, sizeof crc, crc32c(&size, sizeof size, crc32c(name.data(), name.size(), all)));
    DETENT_CHECK(sections.emplace(name, payload).second, "checkpoint ", path, ": section \"", name, "\" appears twice");
  }
  DETENT_CHECK(in.get<uint32_t>() == masked_crc(all) && in.done(), "checkpoint ", path, ": the end of the file does not match its headers; use an earlier one");
  return sections;
}

void save_checkpoint(const std::string& path, nn::Graph& graph, quant::QuantSim* sim, const nn::Optimizer& optimizer, const Progress& progress) {
  nn::require_finite(graph, text("checkpoint ", path, ": not written"));  // what is saved must be worth going back to
  Sections s;
  s["progress"] = progress_text(progress);
  s["weights"] = safetensors_bytes(weights_of(graph));
  std::vector<NamedTensor> state;
  for (const auto& [name, tensor] : optimizer.state()) state.push_back({name, tensor});
  s["optimizer"] = safetensors_bytes(state, {{"kind", optimizer.kind()}, {"steps", std::to_string(optimizer.steps_done())}});
  if (sim) s["quantizers"] = quantizer_bytes(*sim);
  write_checkpoint_file(path, s);
}

Progress read_progress(const std::string& path) { return parse_progress(section(read_checkpoint_file(path), "progress", path), path); }

Progress load_checkpoint(const std::string& path, nn::Graph& graph, quant::QuantSim* sim, nn::Optimizer& optimizer) {
  const Sections s = read_checkpoint_file(path);
  const Progress progress = parse_progress(section(s, "progress", path), path);
  const auto tensors = [&](const char* name) {
    const std::string& bytes = section(s, name, path);
    return parse_safetensors({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, TensorTypes::nearest, text("checkpoint ", path, " section ", name));
  };
  const SafeTensors weights = tensors("weights"), state = tensors("optimizer");
  const auto steps = state.metadata.find("steps");
  int64_t steps_done = 0;
  DETENT_CHECK(steps != state.metadata.end() && std::from_chars(steps->second.data(), steps->second.data() + steps->second.size(), steps_done).ec == std::errc{}, "checkpoint ", path,
               ": section \"optimizer\" has no step count");
  DETENT_CHECK(steps_done >= 0, "checkpoint ", path, ": ", steps_done, " steps done");
  if (const auto kind = state.metadata.find("kind"); kind != state.metadata.end() && !kind->second.empty() && !optimizer.kind().empty())
    DETENT_CHECK(kind->second == optimizer.kind(), "checkpoint ", path, ": its optimizer is ", kind->second, ", this one is ", optimizer.kind(), "; go on with the same");
  std::vector<std::string_view> quantizers;
  if (sim) quantizers = parse_quantizers(*sim, section(s, "quantizers", path), path);
  QuantizerRollback rollback(sim);
  for (size_t i = 0; i < quantizers.size(); ++i) restore_quantizer(sim->placements()[i], quantizers[i], path);
  check_optimizer_state(graph, state.tensors, path);
  // All that may lack memory comes before the first change.
  nn::Optimizer::Tensors restored;
  for (const NamedTensor& t : state.tensors) restored[t.name] = t.tensor.clone();
  assign_weights(graph, weights.tensors, path);
  optimizer.adopt(std::move(restored), steps_done);
  rollback.done();
  return progress;
}

std::string checkpoint_name(const std::string& prefix, int64_t step) { return text(prefix, ".step-", step, ".ckpt"); }

namespace {

// Newest step first.
std::vector<std::pair<int64_t, std::string>> steps_and_paths(const std::string& folder, const std::string& prefix) {
  std::vector<std::pair<int64_t, std::string>> found;
  if (!folder_exists(folder)) return {};
  const std::string head = prefix + ".step-", tail = ".ckpt";
  for (const std::string& name : list_folder(folder)) {
    if (!name.starts_with(head) || !name.ends_with(tail) || name.size() <= head.size() + tail.size()) continue;
    const std::string_view digits = std::string_view(name).substr(head.size(), name.size() - head.size() - tail.size());
    int64_t step = 0;
    const auto r = std::from_chars(digits.data(), digits.data() + digits.size(), step);
    if (r.ec == std::errc{} && r.ptr == digits.data() + digits.size()) found.emplace_back(step, join_path(folder, name));
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

}  // namespace

std::vector<std::string> list_checkpoints(const std::string& folder, const std::string& prefix) {
  std::vector<std::string> paths;
  for (auto& [step, path] : steps_and_paths(folder, prefix)) paths.push_back(std::move(path));
  return paths;
}

std::string newest_good_checkpoint(const std::string& folder, const std::string& prefix, std::vector<std::string>* skipped) {
  for (const std::string& path : list_checkpoints(folder, prefix)) {
    try {
      read_progress(path);
      return path;
    } catch (const Error& e) {
      if (skipped) skipped->push_back(e.what());
    }
  }
  return {};
}

void prune_checkpoints(const std::string& folder, const std::string& prefix, int keep, int64_t step) {
  int kept = 0;
  for (const auto& [at, path] : steps_and_paths(folder, prefix)) {
    if (at > step || ++kept <= std::max(keep, 1)) continue;
    try {
      remove_file(path);
    } catch (const Error&) {
      if (file_exists(path)) throw;  // else another run was faster
    }
  }
}

}  // namespace detent::io
