// QuantizeLinear and DequantizeLinear: grids instead of layers.
#include <algorithm>
#include <cmath>

#include "detent/io/onnx/builder.h"
#include "detent/io/onnx/importer.h"

namespace detent::io::onnx {
namespace {

bool ends_of(int32_t type, Grid& g) {
  switch (type) {
    case kUint8: g.qmin = 0, g.qmax = 255; return true;
    case kInt8: g.qmin = -128, g.qmax = 127; return true;
    case kUint16: g.qmin = 0, g.qmax = 65535; return true;
    case kInt16: g.qmin = -32768, g.qmax = 32767; return true;
    case kUint4: g.qmin = 0, g.qmax = 15; return true;
    case kInt4: g.qmin = -8, g.qmax = 7; return true;
    case kInt32: g.qmin = INT32_MIN, g.qmax = INT32_MAX; return true;
    default: return false;
  }
}

// A bound of a narrower grid lies on a code.
bool on_code(double bound, const Grid& g, int32_t& code) {
  // The bound is a float: its own rounding is allowed for.
  const double steps = bound / static_cast<double>(g.scale), q = steps + g.zero_point, r = std::rint(q);
  if (!(std::abs(q - r) <= 1e-4 + 2e-7 * std::abs(steps)) || r < g.qmin || r > g.qmax) return false;
  code = static_cast<int32_t>(r);
  return true;
}

}  // namespace

// The grids of a Q or DQ node. `type`: of the codes, when there is no zero point to tell it.
std::vector<Grid> Importer::grids_of(const NodeProto& n, int32_t type) {
  const Constant& scale = constant(n, 1, "scale");
  const Constant* zero = optional_constant(n, 2, "zero point");
  if (!scale.is_float || scale.size() == 0 || scale.dims.size() > 1) unsupported("its scale has rank ", scale.dims.size(), "; blockwise quantization is not supported");
  if (attribute(n, "block_size", int64_t{0}) != 0) unsupported("blockwise quantization");
  if (zero && (zero->is_float || zero->size() != scale.size())) unsupported(zero->size(), " zero points for ", scale.size(), " scales");
  std::vector<Grid> grids(scale.size());
  for (size_t i = 0; i < grids.size(); ++i) {
    Grid& g = grids[i];
    if (!ends_of(zero ? zero->type : type, g)) unsupported("codes of element type ", zero ? zero->type : type);
    g.scale = scale.floats[i];
    g.zero_point = zero ? static_cast<int32_t>(zero->ints[i]) : 0;
    if (!is_valid(g)) unsupported("a grid of scale ", g.scale, " and zero point ", g.zero_point);
  }
  return grids;
}

// A Clip that only QuantizeLinear reads and whose bounds are codes inside those of the type: the grid has fewer levels than its type.
bool Importer::narrows_grid(const NodeProto& n) {
  const std::vector<int>& r = readers(n.output(0));
  if (r.size() != 1 || is_graph_output(n.output(0)) || !has_input(n, 1) || !has_input(n, 2) || !features_.count(n.input(0))) return false;
  const NodeProto& q = model_.graph().node(r[0]);
  if (q.op_type() != "QuantizeLinear" || !has_input(q, 2) || !is_constant(q.input(1)) || !is_constant(q.input(2)) || !is_constant(n.input(1)) || !is_constant(n.input(2))) return false;
  const Constant &lo = constant(n.input(1)), &hi = constant(n.input(2));
  if (!lo.is_float || !hi.is_float || lo.size() != 1 || hi.size() != 1) return false;
  const std::vector<Grid> grids = grids_of(q, kUint8);
  Grid g = grids[0];
  if (grids.size() != 1 || !on_code(static_cast<double>(lo.floats[0]), grids[0], g.qmin) || !on_code(static_cast<double>(hi.floats[0]), grids[0], g.qmax)) return false;
  if (!is_valid(g) || (g.qmin == grids[0].qmin && g.qmax == grids[0].qmax)) return false;
  put(n.output(0), Feature(feature(n, 0)));
  narrow_[n.output(0)] = {static_cast<double>(g.qmin), static_cast<double>(g.qmax)};
  return true;
}

// Our own files say how many codes a parameter's grid has.
void Importer::narrow_codes(Constant& c, const std::vector<int64_t>& codes) const {
  const auto it = narrow_parameters_.find(c.name);
  if (it == narrow_parameters_.end()) return;
  const auto [lo, hi] = it->second;
  for (Grid& g : c.grids) {
    if (lo < g.qmin || hi > g.qmax || lo > g.zero_point || hi < g.zero_point || lo >= hi) return;
  }
  for (const int64_t q : codes) {
    if (q < lo || q > hi) return;
  }
  for (Grid& g : c.grids) g.qmin = lo, g.qmax = hi;
}

// The grid of a value, or of the value whose elements it has.
const Grid* Importer::grid_behind(nn::Value v) const {
  for (;;) {
    if (const auto it = grids_.find(v.id); it != grids_.end()) return &it->second;
    const int producer = net_.graph.value(v).producer;
    if (producer < 0) return nullptr;
    const nn::Graph::Node& n = net_.graph.nodes()[static_cast<size_t>(producer)];
    if (!n.module->preserves_grid()) return nullptr;
    v = n.inputs[0];
  }
}

void Importer::import_quantize(const NodeProto& n) {
  const int64_t wanted = attribute(n, "output_dtype", int64_t{0});
  std::vector<Grid> grids = grids_of(n, wanted ? static_cast<int32_t>(wanted) : kUint8);
  if (has_input(n, 0) && is_constant(n.input(0))) {  // a weight kept in float
    const Constant& x = constant(n.input(0));
    Constant c = x;
    const int64_t axis = attribute(n, "axis", int64_t{1});
    c.axis = grids.size() > 1 ? static_cast<int>(axis < 0 ? axis + static_cast<int64_t>(c.dims.size()) : axis) : -1;
    if (!x.is_float || (c.axis >= 0 && (c.axis >= static_cast<int>(c.dims.size()) || c.dims[static_cast<size_t>(c.axis)] != static_cast<int64_t>(grids.size())))) unsupported(grids.size(), " scales along axis ", c.axis);
    int64_t inner = 1;
    for (int i = c.axis + 1; c.axis >= 0 && i < static_cast<int>(c.dims.size()); ++i) inner *= c.dims[static_cast<size_t>(i)];
    c.is_float = false;
    c.type = has_input(n, 2) ? constant(n.input(2)).type : kUint8;
    c.ints.resize(x.floats.size());
    for (size_t i = 0; i < x.floats.size(); ++i) c.ints[i] = quantize(x.floats[i], grids[c.axis < 0 ? 0 : i / static_cast<size_t>(inner) % grids.size()]);
    c.floats.clear();
    return put(n.output(0), std::move(c));
  }
  const Feature x = feature(n, 0);
  if (grids.size() != 1) unsupported("a value with a grid for each channel; only weights are supported so");
  Grid g = grids[0];
  if (const auto it = narrow_.find(n.input(0)); it != narrow_.end()) {
    g.qmin = static_cast<int32_t>(it->second.min);
    g.qmax = static_cast<int32_t>(it->second.max);
  } else if (const Grid* from = grid_behind(x.value); from && from->scale == g.scale && from->zero_point == g.zero_point && from->qmin >= g.qmin && from->qmax <= g.qmax) {
    g = *from;  // its codes have no more levels than those they come from
  }
  codes_[n.output(0)] = g;
  features_[n.output(0)] = x;
  const nn::Graph::ValueInfo& info = net_.graph.value(x.value);
  const auto [known, is_new] = grids_.emplace(x.value.id, g);
  if (!is_new && known->second != g) unsupported("\"", info.name, "\" is quantized twice, with different grids");
  if (!is_new) return;
  quant::Encoding e;
  e.name = info.name;
  e.grids = {g};
  for (e.bits = 2; (int64_t{1} << e.bits) <= static_cast<int64_t>(g.qmax) - g.qmin;) ++e.bits;
  e.symmetric = g.zero_point == 0 && g.qmin < 0;
  net_.encodings.activations.push_back(std::move(e));
}

void Importer::import_dequantize(const NodeProto& n) {
  if (!has_input(n, 0)) unsupported("it has no input");
  if (!is_constant(n.input(0))) {
    const auto it = codes_.find(n.input(0));
    if (it == codes_.end()) unsupported("its codes do not come from QuantizeLinear");
    const std::vector<Grid> grids = grids_of(n, kUint8);
    if (grids.size() != 1 || grids[0].scale != it->second.scale || grids[0].zero_point != it->second.zero_point) unsupported("its grid is not that of its QuantizeLinear");
    return put(n.output(0), Feature(features_.at(n.input(0))));
  }
  const Constant& x = constant(n.input(0));
  if (x.is_float) unsupported("its codes are floats");
  const std::vector<Grid> grids = grids_of(n, x.type);
  Constant c;
  c.name = x.name;
  c.dims = x.dims;
  c.type = kFloat;
  c.is_float = true;
  const auto rank = static_cast<int64_t>(c.dims.size());
  const int64_t axis = attribute(n, "axis", int64_t{1});
  c.axis = grids.size() > 1 ? static_cast<int>(axis < 0 ? axis + rank : axis) : -1;
  if (c.axis >= 0 && (c.axis >= rank || c.dims[static_cast<size_t>(c.axis)] != static_cast<int64_t>(grids.size()))) unsupported(grids.size(), " scales along axis ", axis);
  size_t inner = 1;
  for (int64_t i = c.axis + 1; c.axis >= 0 && i < rank; ++i) inner *= static_cast<size_t>(c.dims[static_cast<size_t>(i)]);
  c.floats.resize(x.ints.size());
  for (size_t i = 0; i < x.ints.size(); ++i) {
    const Grid& g = grids[c.axis < 0 ? 0 : i / inner % grids.size()];
    if (x.ints[i] < g.qmin || x.ints[i] > g.qmax) unsupported("the code ", x.ints[i], " outside of ", g.qmin, "..", g.qmax);
    c.floats[i] = static_cast<float>(static_cast<double>(g.scale) * static_cast<double>(x.ints[i] - g.zero_point));
  }
  if (x.type != kInt32) c.grids = grids;
  narrow_codes(c, x.ints);
  put(n.output(0), std::move(c));
}

}  // namespace detent::io::onnx
