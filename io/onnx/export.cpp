#include "detent/io/onnx/export.h"

#include <algorithm>
#include <cmath>

#include "detent/core/file.h"
#include "detent/io/onnx/exporter.h"

namespace detent::io {

namespace onnx {

using nn::Value;

std::vector<int> layout(int rank) {
  std::vector<int> l;
  for (int i = 0; i < rank; ++i) l.push_back(i);
  if (rank >= 4) std::rotate(l.begin() + 1, l.begin() + 3, l.end());
  return l;
}

std::vector<int64_t> file_dims(const Shape& shape) {
  std::vector<int64_t> dims;
  for (const int axis : layout(shape.rank())) dims.push_back(shape[axis]);
  return dims;
}

namespace {

std::span<const int64_t> without_batch(const std::vector<int64_t>& dims) { return std::span<const int64_t>(dims).subspan(1); }

}  // namespace

Exporter::Exporter(nn::Graph& graph, OnnxQuantization quantization) : graph_(graph), qdq_(quantization == OnnxQuantization::qdq) {
  outputs_ = {graph.scores()};
  for (const Value v : graph.outputs()) {
    if (std::find(outputs_.begin(), outputs_.end(), v) == outputs_.end()) outputs_.push_back(v);
  }
  const auto n = static_cast<size_t>(graph.value_count());
  reachable_.assign(n, false);
  grids_.resize(n);
  readers_.resize(n);
}

void Exporter::mark_reachable() {
  for (const Value v : outputs_) reachable_[static_cast<size_t>(v.id)] = true;
  for (const Value v : graph_.inputs()) reachable_[static_cast<size_t>(v.id)] = true;
  for (auto n = graph_.nodes().rbegin(); n != graph_.nodes().rend(); ++n) {
    if (!reachable_[static_cast<size_t>(n->output.id)]) continue;
    for (const Value v : n->inputs) reachable_[static_cast<size_t>(v.id)] = true;
  }
}

quant::Quantizer* Exporter::acting(const std::shared_ptr<nn::Transform>& t) const {
  auto* q = qdq_ ? dynamic_cast<quant::Quantizer*>(t.get()) : nullptr;
  if (!q || !q->calibrated()) return nullptr;
  return !q->is_float() && (q->state() == quant::QuantizerState::frozen || q->state() == quant::QuantizerState::learning) ? q : nullptr;
}

// As the forward pass does it: a quantizer's own grid, or the input's behind an operator that only moves elements.
void Exporter::find_grids() {
  const auto own = [&](Value v) {
    if (quant::Quantizer* q = acting(graph_.value(v).transform)) grids_[static_cast<size_t>(v.id)] = q->grids().front();
  };
  for (const Value v : graph_.inputs()) own(v);
  for (const Node& n : graph_.nodes()) {
    if (n.module->preserves_grid()) grids_[static_cast<size_t>(n.output.id)] = grids_[static_cast<size_t>(n.inputs[0].id)];
    own(n.output);
  }
}

std::string Exporter::scalar(const std::string& name, float value) {
  const std::string n = b_.fresh(name);
  b_.floats(n, {}, {&value, 1});
  return n;
}

std::string Exporter::int64s(const std::string& name, std::span<const int64_t> values) {
  const std::string n = b_.fresh(name);
  b_.int64s(n, values);
  return n;
}

std::string Exporter::transposed(const std::string& x, const std::string& name, const std::vector<int>& permutation) {
  const std::vector<int64_t> perm(permutation.begin(), permutation.end());
  const std::string out = b_.fresh(name);
  b_.node("Transpose", out, {x}, out).set("perm", perm);
  return out;
}

std::string Exporter::reshaped(const std::string& x, const std::string& name, std::vector<int64_t> dims) {
  dims[0] = 0;  // the batch stays as it is
  const std::string out = b_.fresh(name);
  b_.node("Reshape", out, {x, int64s(name + "_shape", dims)}, out);
  return out;
}

std::string Exporter::in(Value v) {
  const auto flat = flat_.find(v.id);
  if (flat == flat_.end()) return raw_in(v);
  // Elements back into the Graph's order: [n,c*h*w] -> [n,c,h,w] -> [n,h,w,c] -> [n,h*w*c].
  const std::string& name = graph_.value(v).name;
  std::string x = reshaped(raw_in(v), name + "_chw", file_dims(flat->second));
  x = transposed(x, name + "_hwc", {0, 2, 3, 1});
  readers_[static_cast<size_t>(v.id)] = reshaped(x, name + "_flat", file_dims(shape(v)));
  flat_.erase(flat);
  return raw_in(v);
}

ElementType Exporter::type_of(const Grid& g, const std::string& name) {
  if (g.qmin >= 0 && g.qmax <= 255) return kUint8;
  if (g.qmin >= -128 && g.qmax <= 127) return kInt8;
  b_.require_opset(21);
  if (g.qmin >= 0 && g.qmax <= 65535) return kUint16;
  if (g.qmin >= -32768 && g.qmax <= 32767) return kInt16;
  fail("onnx export: \"", name, "\" lies on a grid of codes ", g.qmin, "..", g.qmax, "; ONNX has 8 and 16 bits");
}

bool fills_type(const Grid& g, ElementType type) {
  switch (type) {
    case kUint8:
      return g.qmin == 0 && g.qmax == 255;
    case kInt8:
      return g.qmin == -128 && g.qmax == 127;
    case kUint16:
      return g.qmin == 0 && g.qmax == 65535;
    default:
      return g.qmin == -32768 && g.qmax == 32767;
  }
}

std::string Exporter::quantize(const std::string& x, const std::string& base, const std::string& result, const Grid& g, bool on_grid_already) {
  const ElementType type = type_of(g, base);
  std::string from = x;
  if (!on_grid_already && !fills_type(g, type)) {
    const Range r = effective_range(g);
    const std::string clipped = b_.fresh(base + "_clip");
    b_.node("Clip", clipped, {from, scalar(base + "_clip_min", static_cast<float>(r.min)), scalar(base + "_clip_max", static_cast<float>(r.max))}, clipped);
    from = clipped;
  }
  const std::string scale = scalar(base + "_scale", g.scale), zero = b_.fresh(base + "_zero_point"), codes = b_.fresh(base + "_q");
  b_.integers(zero, type, {}, {&g.zero_point, 1});
  b_.node("QuantizeLinear", codes, {from, scale, zero}, codes);
  b_.node("DequantizeLinear", b_.fresh(base + "_dq"), {codes, scale, zero}, result);
  return result;
}

void Exporter::write_node(const Node& n) {
  const std::string& name = graph_.value(n.output).name;
  const auto& grid = grids_[static_cast<size_t>(n.output.id)];
  const bool is_output = std::find(outputs_.begin(), outputs_.end(), n.output) != outputs_.end();
  const std::string raw = grid && is_output ? b_.fresh(name + "_raw") : name;
  DETENT_CHECK(write_weighted(n, raw) || write_pool(n, raw) || write_pointwise(n, raw) || write_moving(n, raw), "onnx export: node \"", n.name,
               "\": its module, which calls itself ", n.op, ", is none of the layers of nn/layers.h,"
               " and those alone have an ONNX form here; build the network of them to export it");
  auto& reader = readers_[static_cast<size_t>(n.output.id)] = raw;
  if (!grid) return;
  const bool moved = n.module->preserves_grid() && grids_[static_cast<size_t>(n.inputs[0].id)] == grid;
  reader = quantize(raw, name, is_output ? name : b_.fresh(name + "_qdq"), *grid, moved);
}

std::string Exporter::run() {
  mark_reachable();
  find_grids();
  for (const Value v : graph_.inputs()) b_.keep(graph_.value(v).name);
  for (const Node& n : graph_.nodes()) {
    if (reachable_[static_cast<size_t>(n.output.id)]) b_.keep(graph_.value(n.output).name);
  }
  for (const Value v : graph_.inputs()) {
    const std::string& name = graph_.value(v).name;
    b_.input(name, without_batch(file_dims(shape(v))));
    const auto& grid = grids_[static_cast<size_t>(v.id)];
    readers_[static_cast<size_t>(v.id)] = grid ? quantize(name, name, b_.fresh(name + "_qdq"), *grid, false) : name;
  }
  for (const Node& n : graph_.nodes()) {
    if (reachable_[static_cast<size_t>(n.output.id)]) write_node(n);
  }
  for (const Value v : outputs_) {
    const std::string name = graph_.value(v).name, last = in(v);
    DETENT_CHECK(last == name, "onnx export: output \"", name, "\" is a flattened feature map or an input; give it a layer of its own");
    b_.output(name, without_batch(file_dims(shape(v))));
  }
  return b_.serialize();
}

}  // namespace onnx

std::string onnx_bytes(nn::Graph& graph, OnnxQuantization quantization) { return onnx::Exporter(graph, quantization).run(); }

void save_onnx(nn::Graph& graph, const std::string& path, OnnxQuantization quantization) { write_file_atomically(path, std::string_view(onnx_bytes(graph, quantization))); }

}  // namespace detent::io
