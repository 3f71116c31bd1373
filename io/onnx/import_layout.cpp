// Operators that move elements. Where the file only renames axes nothing is computed: a Feature's axes change. A real Transpose is made when a reader needs one.
#include <algorithm>
#include <limits>

#include "detent/io/onnx/exporter.h"
#include "detent/io/onnx/importer.h"

namespace detent::io::onnx {

using nn::Value;

namespace {

int checked_axis(int64_t axis, size_t rank, const char* what) {
  const auto r = static_cast<int64_t>(rank);
  if (axis < -r || axis >= r) unsupported(what, " ", axis, " of a value of rank ", r);
  return static_cast<int>(axis < 0 ? axis + r : axis);
}

Shape shape_of(const std::vector<int64_t>& d) { return Shape(std::span<const int64_t>(d)); }

// Which axes of the old shape become which of the new one; extents of 1 belong to no group.
struct Group {
  std::vector<int> from, to;
};

std::vector<Group> groups(const std::vector<int64_t>& from, const std::vector<int64_t>& to) {
  std::vector<Group> all;
  size_t i = 1, j = 1;
  for (;;) {
    while (i < from.size() && from[i] == 1) ++i;
    while (j < to.size() && to[j] == 1) ++j;
    if (i >= from.size() || j >= to.size()) return all;
    Group g;
    int64_t a = from[i], b = to[j];
    g.from.push_back(static_cast<int>(i++));
    g.to.push_back(static_cast<int>(j++));
    while (a != b) {
      if (a < b) {
        a *= from[i];
        if (from[i] != 1) g.from.push_back(static_cast<int>(i));
        ++i;
      } else {
        b *= to[j];
        if (to[j] != 1) g.to.push_back(static_cast<int>(j));
        ++j;
      }
    }
    all.push_back(std::move(g));
  }
}

// Axes whose extent is not 1, in the order they lie in memory, without the batch.
std::vector<int> memory_order(const std::vector<int>& axes, const std::vector<int64_t>& dims) {
  std::vector<int> order;
  for (int i = 1; i < static_cast<int>(axes.size()); ++i) {
    if (dims[static_cast<size_t>(i)] != 1) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](int a, int b) { return axes[static_cast<size_t>(a)] < axes[static_cast<size_t>(b)]; });
  return order;
}

// The memory order of the new axes, or nothing when the old ones do not lie as the groups need it.
std::optional<std::vector<int>> reshaped_order(const std::vector<int>& old_order, const std::vector<Group>& all) {
  std::vector<int> order;
  for (size_t at = 0; at < old_order.size();) {
    const auto g = std::find_if(all.begin(), all.end(), [&](const Group& x) { return x.from[0] == old_order[at]; });
    if (g == all.end()) return {};
    for (const int axis : g->from) {
      if (at >= old_order.size() || old_order[at++] != axis) return {};
    }
    order.insert(order.end(), g->to.begin(), g->to.end());
  }
  return order;
}

}  // namespace

// Physical position k holds axis order[k] of the file.
Feature Importer::with_axes(const Feature& f, const std::vector<int>& order) {
  Feature out = f;
  const std::vector<int64_t> d = dims(f);
  std::vector<int64_t> ours;
  std::vector<int> permutation;
  for (size_t k = 0; k < order.size(); ++k) {
    const auto axis = static_cast<size_t>(order[k]);
    out.axes[axis] = static_cast<int>(k);
    permutation.push_back(f.axes[axis]);
    ours.push_back(k == 0 ? 1 : d[axis]);
  }
  if (out.axes == f.axes) return f;
  const std::string base = net_.graph.value(f.value).name;
  if (memory_order(f.axes, d) != memory_order(out.axes, d)) {
    const std::string name = node_name(base + "_transpose", "");
    out.value = add_module(name, name, std::make_unique<nn::Transpose>(permutation), {f.value});
  } else if (!(shape_of(ours) == shape(f))) {
    const std::string name = node_name(base + "_reshape", "");
    out.value = add_module(name, name, std::make_unique<nn::Reshape>(std::vector<int64_t>(ours.begin() + 1, ours.end())), {f.value});
  }
  return out;
}

Feature Importer::plain(const Feature& f) {
  if (!f.flat()) return f;
  const std::string base = net_.graph.value(f.value).name;
  const auto step = [&](const char* suffix, std::unique_ptr<nn::Module> module, Value x) {
    const std::string name = node_name(base + suffix, "");
    return add_module(name, name, std::move(module), {x});
  };
  Value v = step("_hwc", std::make_unique<nn::Reshape>(std::vector<int64_t>{f.chw[1], f.chw[2], f.chw[3]}), f.value);
  v = step("_chw", std::make_unique<nn::Transpose>(std::vector<int>{0, 3, 1, 2}), v);
  return {step("_flat", std::make_unique<nn::Flatten>(), v), {0, 1}, {}};
}

Feature Importer::canonical(const Feature& f) {
  const Feature p = plain(f);
  const std::vector<int> l = layout(static_cast<int>(p.axes.size()));
  std::vector<int> order(l.size());
  for (size_t i = 0; i < l.size(); ++i) order[static_cast<size_t>(l[i])] = static_cast<int>(i);
  return with_axes(p, order);
}

std::optional<Feature> Importer::reshape_in_place(const NodeProto& n, const Feature& f, const std::vector<int64_t>& d) {
  const std::vector<int64_t> from = dims(f);
  const std::optional<std::vector<int>> order = reshaped_order(memory_order(f.axes, from), groups(from, d));
  if (!order) return {};
  Feature out{f.value, layout(static_cast<int>(d.size())), {}};
  if (memory_order(out.axes, d) != *order) {
    // Extents of 1 go last.
    int position = 1;
    for (const int axis : *order) out.axes[static_cast<size_t>(axis)] = position++;
    for (size_t i = 1; i < d.size(); ++i) {
      if (d[i] == 1) out.axes[i] = position++;
    }
  }
  std::vector<int64_t> ours(d.size(), 1);
  for (size_t i = 1; i < d.size(); ++i) ours[static_cast<size_t>(out.axes[i])] = d[i];
  if (shape_of(ours) == shape(f)) return out;
  if (d.size() == 2) {
    out.value = add<nn::Flatten>(n, n.name(), {f.value});
  } else {
    out.value = add<nn::Reshape>(n, n.name(), {f.value}, std::vector<int64_t>(ours.begin() + 1, ours.end()));
  }
  return out;
}

void Importer::reshape(const NodeProto& n, const Feature& given, const std::vector<int64_t>& d) {
  if (d == dims(given)) return put(n.output(0), given);
  if (d.empty() || d[0] != batch_) unsupported("it changes the batch axis");
  if (d.size() > Shape::kMaxRank) unsupported("a result of rank ", d.size(), "; at most ", Shape::kMaxRank);
  const Feature f = plain(given);
  if (auto r = reshape_in_place(n, f, d)) return put(n.output(0), *r);
  const Feature c = canonical(f);
  if (auto r = reshape_in_place(n, c, d)) return put(n.output(0), *r);
  if (d.size() == 2 && c.axes.size() == 4) return put(n.output(0), Feature{add<nn::Flatten>(n, n.name(), {c.value}), {0, 1}, shape(c)});
  std::vector<int> identity;
  for (int i = 0; i < static_cast<int>(f.axes.size()); ++i) identity.push_back(i);
  const auto r = reshape_in_place(n, with_axes(f, identity), d);
  if (!r) unsupported("its reshape cannot be followed");
  put(n.output(0), *r);
}

void Importer::import_reshape(const NodeProto& n) {
  const Feature f = feature(n, 0);
  const std::vector<int64_t> from = dims(f);
  std::vector<int64_t> d = int64_list(n, 1, "shape", {});
  const bool zero_is_zero = attribute(n, "allowzero", int64_t{0}) != 0;
  int64_t known = 1, total = 1;
  int open = -1;
  for (const int64_t e : from) total *= e;
  for (size_t i = 0; i < d.size(); ++i) {
    if (d[i] == 0 && !zero_is_zero) {
      if (i >= from.size()) unsupported("its shape copies dimension ", i, " of a value of rank ", from.size());
      d[i] = from[i];
    }
    if (d[i] == -1 && open < 0) {
      open = static_cast<int>(i);
      continue;
    }
    if (d[i] <= 0 || d[i] > total) unsupported("its shape has the extent ", d[i], " for ", total, " elements");
    known *= d[i];
    if (known > total) unsupported("its shape has more than the value's ", total, " elements");
  }
  if (open >= 0) d[static_cast<size_t>(open)] = total / known;
  if (open >= 0 ? total % known != 0 : known != total) unsupported("its shape does not have the value's ", total, " elements");
  reshape(n, f, d);
}

void Importer::import_flatten(const NodeProto& n) {
  const Feature f = feature(n, 0);
  const std::vector<int64_t> from = dims(f);
  const int64_t axis = attribute(n, "axis", int64_t{1});
  const auto rank = static_cast<int64_t>(from.size());
  if (axis < -rank || axis > rank) unsupported("axis ", axis);
  std::vector<int64_t> d{1, 1};
  for (int64_t i = 0; i < rank; ++i) d[i < (axis < 0 ? axis + rank : axis) ? 0 : 1] *= from[static_cast<size_t>(i)];
  reshape(n, f, d);
}

void Importer::import_squeeze(const NodeProto& n) {
  const Feature f = feature(n, 0);
  std::vector<int64_t> d = dims(f), axes = int64_list(n, 1, "axes", {});
  if (n.op_type() == "Squeeze") {
    std::vector<bool> gone(d.size(), false);
    for (const int64_t a : axes) gone[static_cast<size_t>(checked_axis(a, d.size(), "axis"))] = true;
    if (axes.empty()) {
      for (size_t i = 1; i < d.size(); ++i) gone[i] = d[i] == 1;
    }
    std::vector<int64_t> kept;
    for (size_t i = 0; i < d.size(); ++i) {
      if (!gone[i]) kept.push_back(d[i]);
      if (gone[i] && (d[i] != 1 || i == 0)) unsupported("it squeezes axis ", i, " of extent ", d[i]);
    }
    return reshape(n, f, kept);
  }
  const size_t rank = d.size() + axes.size();
  std::vector<bool> fresh(rank, false);
  for (const int64_t a : axes) fresh[static_cast<size_t>(checked_axis(a, rank, "axis"))] = true;
  if (fresh[0]) unsupported("it changes the batch axis");
  std::vector<int64_t> grown;
  size_t at = 0;
  for (size_t i = 0; i < rank; ++i) {
    if (!fresh[i] && at >= d.size()) unsupported("its axes repeat");
    grown.push_back(fresh[i] ? 1 : d[at++]);
  }
  reshape(n, f, grown);
}

void Importer::import_transpose(const NodeProto& n) {
  const Feature f = plain(feature(n, 0));
  const size_t rank = f.axes.size();
  std::vector<int64_t> perm = attribute(n, "perm", std::vector<int64_t>{});
  if (perm.empty()) {
    for (size_t i = rank; i-- > 0;) perm.push_back(static_cast<int64_t>(i));
  }
  Feature out = f;
  std::vector<bool> seen(rank, false);
  if (perm.size() != rank) unsupported("perm has ", perm.size(), " entries for rank ", rank);
  for (size_t i = 0; i < rank; ++i) {
    const int a = checked_axis(perm[i], rank, "perm");
    if (seen[static_cast<size_t>(a)]) unsupported("perm repeats axis ", a);
    seen[static_cast<size_t>(a)] = true;
    out.axes[i] = f.axes[static_cast<size_t>(a)];
  }
  if (out.axes[0] != 0) unsupported("it moves the batch axis");
  put(n.output(0), out);
}

void Importer::import_slice(const NodeProto& n) {
  const Feature f = plain(feature(n, 0));
  const std::vector<int64_t> starts = int64_list(n, 1, "starts", {}), ends = int64_list(n, 2, "ends", {});
  std::vector<int64_t> axes = int64_list(n, 3, "axes", {}), steps = int64_list(n, 4, "steps", {});
  if (axes.empty()) {
    for (size_t i = 0; i < starts.size(); ++i) axes.push_back(static_cast<int64_t>(i));
  }
  if (steps.empty()) steps.assign(starts.size(), 1);
  if (starts.size() != ends.size() || starts.size() != axes.size() || starts.size() != steps.size()) unsupported("starts, ends, axes and steps differ in length");
  std::vector<nn::Slice::Range> ranges;
  for (size_t i = 0; i < starts.size(); ++i) {
    const int axis = f.axes[static_cast<size_t>(checked_axis(axes[i], f.axes.size(), "axis"))];
    const bool whole = starts[i] == 0 && steps[i] == 1 && ends[i] >= std::numeric_limits<int32_t>::max();
    if (axis == 0 && !whole) unsupported("it slices the batch axis");
    if (axis != 0) ranges.push_back({.axis = axis, .start = starts[i], .end = ends[i], .step = steps[i]});
  }
  if (ranges.empty()) return put(n.output(0), f);
  add_like<nn::Slice>(n, f, ranges);
}

void Importer::import_split(const NodeProto& n) {
  const Feature f = plain(feature(n, 0));
  const int file_axis = checked_axis(attribute(n, "axis", int64_t{0}), f.axes.size(), "axis"), axis = f.axes[static_cast<size_t>(file_axis)];
  if (axis == 0) unsupported("it splits the batch axis");
  const int64_t extent = shape(f)[axis];
  const auto parts = static_cast<int64_t>(n.output_size());
  std::vector<int64_t> sizes = int64_list(n, 1, "split", {});
  if (sizes.empty()) {
    const int64_t each = (extent + parts - 1) / parts;
    for (int64_t left = extent; left > 0; left -= each) sizes.push_back(std::min(each, left));
  }
  int64_t total = 0;
  for (const int64_t s : sizes) {
    if (s <= 0 || s > extent) unsupported("a part of ", s, " of ", extent);
    total += s;
  }
  if (static_cast<int64_t>(sizes.size()) != parts || total != extent) unsupported(sizes.size(), " parts of together ", total, " for ", parts, " outputs of together ", extent);
  int64_t begin = 0;
  for (int i = 0; i < n.output_size(); ++i) {
    const int64_t end = begin + sizes[static_cast<size_t>(i)];
    const std::string& out = n.output(i);
    if (!out.empty()) {
      const std::vector<nn::Slice::Range> range{{.axis = axis, .start = begin, .end = end}};
      put(out, Feature{add_module(node_name(n.name().empty() ? out : text(n.name(), "_", i), out), out, std::make_unique<nn::Slice>(range), {f.value}), f.axes, {}});
    }
    begin = end;
  }
}

void Importer::import_pad(const NodeProto& n) {
  const Feature f = plain(feature(n, 0));
  const std::string mode = attribute(n, "mode", "constant");
  if (mode != "constant") unsupported("mode ", mode.substr(0, 32), "; only constant padding with 0 is supported");
  if (const Constant* value = optional_constant(n, 2, "padding value"); value && (value->is_float ? value->floats : std::vector<float>(value->ints.begin(), value->ints.end())) != std::vector<float>{0.0f}) {
    unsupported("it pads with another value than 0");
  }
  const std::vector<int64_t> pads = int64_list(n, 1, "pads", {});
  std::vector<int64_t> axes = int64_list(n, 3, "axes", {});
  const size_t rank = f.axes.size();
  if (axes.empty()) {
    for (size_t i = 0; i < rank; ++i) axes.push_back(static_cast<int64_t>(i));
  }
  if (pads.size() != 2 * axes.size()) unsupported(pads.size(), " pads for ", axes.size(), " axes");
  std::vector<int64_t> before(rank, 0), after(rank, 0);
  constexpr int64_t kMost = 1 << 16;
  for (size_t i = 0; i < axes.size(); ++i) {
    const auto axis = static_cast<size_t>(f.axes[static_cast<size_t>(checked_axis(axes[i], rank, "axis"))]);
    before[axis] = pads[i];
    after[axis] = pads[i + axes.size()];
    if (before[axis] < 0 || after[axis] < 0 || before[axis] > kMost || after[axis] > kMost) unsupported("pads ", before[axis], " and ", after[axis], " of an axis");
  }
  if (before[0] || after[0]) unsupported("it pads the batch axis");
  add_like<nn::Pad>(n, f, before, after);
}

void Importer::import_concat(const NodeProto& n) {
  std::vector<Value> inputs;
  Feature first;
  for (int i = 0; i < n.input_size(); ++i) {
    const Feature f = canonical(feature(n, i));
    if (i == 0) first = f;
    if (f.axes.size() != first.axes.size()) unsupported("inputs of ranks ", first.axes.size(), " and ", f.axes.size());
    inputs.push_back(f.value);
  }
  if (inputs.empty()) unsupported("it has no input");
  if (inputs.size() == 1) return put(n.output(0), first);
  const int axis = first.axes[static_cast<size_t>(checked_axis(attribute(n, "axis", int64_t{1}), first.axes.size(), "axis"))];
  if (axis == 0) unsupported("it joins along the batch axis");
  put(n.output(0), Feature{add<nn::Concat>(n, n.name(), inputs, axis), first.axes, {}});
}

}  // namespace detent::io::onnx
