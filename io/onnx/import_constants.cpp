// What the file computes from constants and shapes alone is computed once, here.
#include <algorithm>
#include <cmath>

#include "detent/io/onnx/builder.h"
#include "detent/io/onnx/importer.h"

namespace detent::io::onnx {
namespace {

int64_t product(const std::vector<int64_t>& d) {
  int64_t n = 1;
  for (const int64_t e : d) {
    if (e < 0 || (e > 0 && n > (int64_t{1} << 40) / e)) unsupported("a constant with the extent ", e);
    n *= e;
  }
  return n;
}

std::vector<int64_t> strides(const std::vector<int64_t>& d) {
  std::vector<int64_t> s(d.size(), 1);
  for (size_t i = d.size(); i-- > 1;) s[i - 1] = s[i] * d[i];
  return s;
}

int64_t axis_of(int64_t axis, size_t rank) {
  const auto r = static_cast<int64_t>(rank);
  if (axis < -r || axis >= r) unsupported("axis ", axis, " of a constant of rank ", r);
  return axis < 0 ? axis + r : axis;
}

// The elements of c at the positions that `index` gives for each position of a result of shape d.
template <class Index>
Constant gathered(const Constant& c, const std::vector<int64_t>& d, Index index) {
  Constant out;
  out.dims = d;
  out.is_float = c.is_float;
  out.type = c.type;
  const int64_t n = product(d);
  c.is_float ? out.floats.resize(static_cast<size_t>(n)) : out.ints.resize(static_cast<size_t>(n));
  std::vector<int64_t> at(d.size(), 0);
  for (int64_t i = 0; i < n; ++i) {
    const auto from = static_cast<size_t>(index(at));
    c.is_float ? void(out.floats[static_cast<size_t>(i)] = c.floats.at(from)) : void(out.ints[static_cast<size_t>(i)] = c.ints.at(from));
    for (size_t k = d.size(); k-- > 0;) {
      if (++at[k] < d[k]) break;
      at[k] = 0;
    }
  }
  return out;
}

Constant with_dims(const Constant& c, std::vector<int64_t> d) {
  Constant out = c;
  out.dims = std::move(d);
  if (product(out.dims) != static_cast<int64_t>(c.size())) unsupported("a constant of ", c.size(), " values given another number of elements");
  return out;
}

Constant transposed(const Constant& c, std::vector<int64_t> perm) {
  if (perm.empty()) {
    for (size_t i = c.dims.size(); i-- > 0;) perm.push_back(static_cast<int64_t>(i));
  }
  if (perm.size() != c.dims.size()) unsupported("perm has ", perm.size(), " entries");
  const std::vector<int64_t> s = strides(c.dims);
  std::vector<int64_t> d, step;
  for (const int64_t p : perm) {
    const auto a = static_cast<size_t>(axis_of(p, perm.size()));
    d.push_back(c.dims[a]);
    step.push_back(s[a]);
  }
  Constant out = gathered(c, d, [&](const std::vector<int64_t>& at) {
    int64_t i = 0;
    for (size_t k = 0; k < at.size(); ++k) i += at[k] * step[k];
    return i;
  });
  out.name = c.name;
  out.grids = c.grids;
  if (c.axis >= 0) {
    for (size_t k = 0; k < perm.size(); ++k) {
      if (axis_of(perm[k], perm.size()) == c.axis) out.axis = static_cast<int>(k);
    }
  }
  return out;
}

std::vector<int64_t> broadcast_dims(const Constant& a, const Constant& b) {
  const size_t rank = std::max(a.dims.size(), b.dims.size());
  std::vector<int64_t> d(rank, 1);
  for (const Constant* c : {&a, &b}) {
    for (size_t i = 0; i < c->dims.size(); ++i) {
      int64_t& e = d[rank - c->dims.size() + i];
      if (c->dims[i] != 1 && e != 1 && c->dims[i] != e) unsupported("constants of extents ", e, " and ", c->dims[i]);
      if (c->dims[i] != 1) e = c->dims[i];
    }
  }
  return d;
}

Constant broadcast_to(const Constant& c, const std::vector<int64_t>& d) {
  if (c.dims == d) return c;
  const std::vector<int64_t> s = strides(c.dims);
  const size_t lead = d.size() - c.dims.size();
  return gathered(c, d, [&](const std::vector<int64_t>& at) {
    int64_t i = 0;
    for (size_t k = 0; k < c.dims.size(); ++k) i += c.dims[k] == 1 ? 0 : at[lead + k] * s[k];
    return i;
  });
}

int64_t integer_op(const std::string& op, int64_t a, int64_t b) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  const bool small = std::abs(a) < kLimit && std::abs(b) < kLimit;
  if (!small || (op == "Div" && b == 0)) unsupported("constants ", a, " and ", b);
  if (op == "Add") return a + b;
  if (op == "Sub") return a - b;
  if (op == "Mul") return a * b;
  if (op == "Equal") return a == b;
  return a / b;
}

float float_op(const std::string& op, float a, float b) {
  if (op == "Add") return a + b;
  if (op == "Sub") return a - b;
  if (op == "Mul") return a * b;
  return a / b;
}

Constant arithmetic(const std::string& op, const Constant& x, const Constant& y) {
  const std::vector<int64_t> d = broadcast_dims(x, y);
  const Constant a = broadcast_to(x, d), b = broadcast_to(y, d);
  if (a.is_float != b.is_float || (a.is_float && op == "Equal")) unsupported("constants of these types");
  Constant out = a;
  out.name.clear();
  out.grids.clear();
  for (size_t i = 0; i < out.size(); ++i) a.is_float ? void(out.floats[i] = float_op(op, a.floats[i], b.floats[i])) : void(out.ints[i] = integer_op(op, a.ints[i], b.ints[i]));
  return out;
}

Constant cast(const Constant& c, int64_t to) {
  Constant out = c;
  out.type = static_cast<int32_t>(to);
  out.is_float = to == kFloat || to == kDouble || to == kFloat16 || to == kBfloat16;
  if (out.is_float && !c.is_float) out.floats.assign(c.ints.begin(), c.ints.end()), out.ints.clear();
  if (!out.is_float && c.is_float) {
    out.floats.clear();
    for (const float v : c.floats) {
      if (!(std::abs(v) < 1e18f)) unsupported("the constant ", v, " as an integer");
      out.ints.push_back(to == kBool ? v != 0.0f : static_cast<int64_t>(v));
    }
  }
  return out;
}

Constant sliced(const Constant& c, const std::vector<int64_t>& starts, const std::vector<int64_t>& ends, std::vector<int64_t> axes, std::vector<int64_t> steps) {
  if (axes.empty()) {
    for (size_t i = 0; i < starts.size(); ++i) axes.push_back(static_cast<int64_t>(i));
  }
  if (steps.empty()) steps.assign(starts.size(), 1);
  if (ends.size() != starts.size() || axes.size() != starts.size() || steps.size() != starts.size()) unsupported("starts, ends, axes and steps differ in length");
  std::vector<int64_t> d = c.dims, first(d.size(), 0), step(d.size(), 1);
  for (size_t i = 0; i < starts.size(); ++i) {
    const auto a = static_cast<size_t>(axis_of(axes[i], d.size()));
    const int64_t extent = c.dims[a];
    if (steps[i] == 0) unsupported("a step of 0 on a constant");
    // Backwards the first and the last element bound the start; the end may lie one before the first.
    const bool back = steps[i] < 0;
    const int64_t top = back ? std::max<int64_t>(extent - 1, 0) : extent, stride = std::clamp(steps[i], -extent - 1, extent + 1);
    const auto clamp = [&](int64_t v, int64_t least) { return std::clamp(v < 0 ? v + extent : v, least, top); };
    first[a] = clamp(starts[i], 0);
    step[a] = stride;
    const int64_t end = clamp(ends[i], back ? -1 : 0), span = back ? first[a] - end : end - first[a];
    d[a] = extent == 0 ? 0 : std::max<int64_t>(0, (span + std::abs(stride) - 1) / std::abs(stride));
  }
  const std::vector<int64_t> s = strides(c.dims);
  return gathered(c, d, [&](const std::vector<int64_t>& at) {
    int64_t i = 0;
    for (size_t k = 0; k < at.size(); ++k) i += (first[k] + at[k] * step[k]) * s[k];
    return i;
  });
}

Constant taken(const Constant& c, const Constant& indices, int64_t axis) {
  if (indices.is_float || c.dims.empty()) unsupported("a gather with these constants");
  const auto a = static_cast<size_t>(axis_of(axis, c.dims.size()));
  std::vector<int64_t> d(c.dims.begin(), c.dims.begin() + static_cast<std::ptrdiff_t>(a));
  d.insert(d.end(), indices.dims.begin(), indices.dims.end());
  d.insert(d.end(), c.dims.begin() + static_cast<std::ptrdiff_t>(a) + 1, c.dims.end());
  const std::vector<int64_t> s = strides(c.dims), t = strides(indices.dims);
  return gathered(c, d, [&](const std::vector<int64_t>& at) {
    int64_t i = 0, j = 0;
    for (size_t k = 0; k < a; ++k) i += at[k] * s[k];
    for (size_t k = 0; k < indices.dims.size(); ++k) j += at[a + k] * t[k];
    const int64_t index = axis_of(indices.ints.at(static_cast<size_t>(j)), static_cast<size_t>(c.dims[a]));
    for (size_t k = a + 1; k < c.dims.size(); ++k) i += at[k - 1 + indices.dims.size()] * s[k];
    return i + index * s[a];
  });
}

Constant joined(const std::vector<const Constant*>& all, int64_t axis) {
  // Only vectors: shapes put together.
  Constant out;
  out.type = all[0]->type;
  for (const Constant* c : all) {
    if (c->dims.size() != 1 || c->is_float != all[0]->is_float || axis_of(axis, 1) != 0) unsupported("constants of rank ", c->dims.size(), " joined");
    out.ints.insert(out.ints.end(), c->ints.begin(), c->ints.end());
    out.floats.insert(out.floats.end(), c->floats.begin(), c->floats.end());
  }
  out.is_float = all[0]->is_float;
  out.dims = {static_cast<int64_t>(out.size())};
  return out;
}

Constant integers(std::vector<int64_t> v) {
  Constant c;
  c.type = kInt64;
  c.dims = {static_cast<int64_t>(v.size())};
  c.ints = std::move(v);
  return c;
}

Constant of_attribute(const NodeProto& n, const Source& source) {
  for (const AttributeProto& a : n.attribute()) {
    Constant c;
    if (a.name() == "value" && a.has_t()) {
      c = decode(a.t(), source);
      c.name.clear();
      return c;
    }
    if (a.name() == "value_int" || a.name() == "value_ints") {
      c = integers(a.has_i() ? std::vector<int64_t>{a.i()} : std::vector<int64_t>(a.ints().begin(), a.ints().end()));
      if (a.has_i()) c.dims.clear();
      return c;
    }
    if (a.name() == "value_float" || a.name() == "value_floats") {
      c.type = kFloat;
      c.is_float = true;
      c.floats = a.has_f() ? std::vector<float>{a.f()} : std::vector<float>(a.floats().begin(), a.floats().end());
      if (!a.has_f()) c.dims = {a.floats_size()};
      return c;
    }
  }
  unsupported("it has no value that is supported");
}

Constant filled(const NodeProto& n, const Constant& shape, const Source& source) {
  Constant value;
  value.is_float = true;
  value.type = kFloat;
  value.floats = {0.0f};
  if (const AttributeProto* a = find_attribute(n, "value"); a && a->has_t()) value = decode(a->t(), source);
  if (shape.is_float || value.size() != 1) unsupported("a shape or value of the wrong type");
  value.dims.clear();
  if (shape.ints.size() > 8 || product(shape.ints) > (1 << 20)) unsupported("a constant of more than 2^20 elements");
  return broadcast_to(value, shape.ints);
}

}  // namespace

Constant Importer::evaluate(const NodeProto& n) {
  const std::string& op = n.op_type();
  const Constant& x = constant(n, 0, "input");
  if (op == "Identity") {
    // Exporters that share equal initializers give the second one its name here.
    Constant c = x;
    c.name = n.output(0);
    return c;
  }
  if (op == "Gather") return taken(x, constant(n, 1, "indices"), attribute(n, "axis", int64_t{0}));
  if (op == "Reshape") {
    std::vector<int64_t> d = int64_list(n, 1, "shape", {});
    int64_t known = 1;
    for (size_t i = 0; i < d.size(); ++i) {
      if (d[i] == 0 && i < x.dims.size()) d[i] = x.dims[i];
      if (d[i] != -1) known = product({known, d[i]});
    }
    for (int64_t& e : d) e = e == -1 && known > 0 ? static_cast<int64_t>(x.size()) / known : e;
    return with_dims(x, d);
  }
  if (op == "Unsqueeze" || op == "Squeeze") {
    const std::vector<int64_t> axes = int64_list(n, 1, "axes", {});
    std::vector<int64_t> d;
    const bool grow = op == "Unsqueeze";
    const size_t rank = grow ? x.dims.size() + axes.size() : x.dims.size();
    std::vector<bool> marked(rank, false);
    for (const int64_t a : axes) marked[static_cast<size_t>(axis_of(a, rank))] = true;
    for (size_t i = 0, at = 0; i < rank; ++i) {
      if (!grow && axes.empty()) marked[i] = x.dims[i] == 1;
      if (grow) d.push_back(marked[i] || at >= x.dims.size() ? 1 : x.dims[at++]);
      if (!grow && !marked[i]) d.push_back(x.dims[i]);
    }
    return with_dims(x, d);
  }
  if (op == "Transpose") return transposed(x, attribute(n, "perm", std::vector<int64_t>{}));
  if (op == "Slice") return sliced(x, int64_list(n, 1, "starts", {}), int64_list(n, 2, "ends", {}), int64_list(n, 3, "axes", {}), int64_list(n, 4, "steps", {}));
  if (op == "Cast") return cast(x, attribute(n, "to", int64_t{0}));
  if (op == "ConstantOfShape") return filled(n, x, source_);
  if (op == "Expand") {
    const Constant shape = constant(n, 1, "shape");
    if (shape.is_float || shape.ints.size() > 8 || product(shape.ints) > (1 << 20)) unsupported("a constant of more than 2^20 elements");
    Constant like;
    like.dims = shape.ints;
    return broadcast_to(x, broadcast_dims(x, like));
  }
  if (op == "Where") {
    const Constant &a = constant(n, 1, "input"), &b = constant(n, 2, "input");
    if (x.dims != a.dims || x.dims != b.dims || a.is_float || b.is_float || x.is_float) unsupported("a choice between these constants");
    Constant out = a;
    for (size_t i = 0; i < out.ints.size(); ++i) out.ints[i] = x.ints[i] ? a.ints[i] : b.ints[i];
    return out;
  }
  if (op == "Concat") {
    std::vector<const Constant*> all;
    for (int i = 0; i < n.input_size(); ++i) all.push_back(&constant(n, i, "input"));
    return joined(all, attribute(n, "axis", int64_t{0}));
  }
  if (op == "Floor" || op == "Ceil" || op == "Sqrt" || op == "Neg") {
    Constant out = x;
    for (float& v : out.floats) v = op == "Floor" ? std::floor(v) : op == "Ceil" ? std::ceil(v) : op == "Sqrt" ? std::sqrt(v) : -v;
    for (int64_t& v : out.ints) v = op == "Neg" ? -std::clamp(v, -INT64_MAX, INT64_MAX) : v;
    return out;
  }
  return arithmetic(op, x, constant(n, 1, "second operand"));
}

// True when the node is no layer: its output is known now.
bool Importer::folds(const std::string& op) {
  static const std::set<std::string> kFoldable = {"Identity", "Gather", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Cast", "ConstantOfShape",
                                                  "Expand",   "Where",  "Concat",  "Floor",     "Ceil",    "Sqrt",      "Neg",   "Add",  "Sub",
                                                  "Mul",      "Div",    "Equal",   "Constant",  "Shape"};
  return kFoldable.count(op) > 0;
}

bool Importer::fold(const NodeProto& n) {
  const std::string& op = n.op_type();
  if (op == "Constant") {
    put(n.output(0), of_attribute(n, source_));
    return true;
  }
  if (op == "Shape" && has_input(n, 0)) {
    std::vector<int64_t> d = is_constant(n.input(0)) ? constant(n.input(0)).dims : dims(feature(n, 0));
    const auto rank = static_cast<int64_t>(d.size());
    const auto clamp = [&](int64_t v) { return std::clamp<int64_t>(v < 0 ? v + rank : v, 0, rank); };
    const int64_t begin = clamp(attribute(n, "start", int64_t{0})), end = clamp(attribute(n, "end", rank));
    put(n.output(0), integers(begin < end ? std::vector<int64_t>(d.begin() + begin, d.begin() + end) : std::vector<int64_t>{}));
    return true;
  }
  if (!folds(op) || op == "Shape" || n.input_size() == 0) return false;
  for (const std::string& in : n.input()) {
    if (!in.empty() && !is_constant(in)) return false;
  }
  Constant c = evaluate(n);
  folded_elements_ += static_cast<int64_t>(c.size());
  const int64_t budget = 4 * source_.bytes + (int64_t{1} << 22);
  if (folded_elements_ > budget) unsupported("its constants are too many to compute (more than ", budget, " elements)");
  put(n.output(0), std::move(c));
  return true;
}

}  // namespace detent::io::onnx
