// The layers that only move elements: Concat, Pad, Slice, Flatten, Reshape, Transpose.
#include "detent/nn/layers.h"

namespace detent::nn {
namespace {

void check_one(std::span<const Shape> inputs, const char* op) { DETENT_CHECK(inputs.size() == 1, op, ": ", inputs.size(), " inputs given, 1 expected"); }

SliceSpec slice_spec(const std::vector<Slice::Range>& ranges, const Shape& x) {
  const auto rank = static_cast<size_t>(x.rank());
  SliceSpec s{std::vector<int64_t>(rank, 0), {x.extents().begin(), x.extents().end()}, std::vector<int64_t>(rank, 1)};
  for (const Slice::Range& r : ranges) {
    const int axis = r.axis < 0 ? r.axis + x.rank() : r.axis;
    DETENT_CHECK(axis >= 0 && axis < x.rank(), "slice: axis ", r.axis, " of a value of shape ", x);
    const auto i = static_cast<size_t>(axis);
    s.starts[i] = r.start;
    s.ends[i] = r.end;
    s.steps[i] = r.step;
  }
  return s;
}

}  // namespace

OpDesc Concat::describe() const { return {"Concat", {{"axis", int64_t{axis_}}}}; }
Shape Concat::infer(std::span<const Shape> inputs) const { return concat_shape(inputs, axis_); }
Var Concat::forward(const Context&, std::span<const Var> inputs) { return concat(inputs, axis_); }

OpDesc Pad::describe() const {
  std::vector<int64_t> pads = before_;
  pads.insert(pads.end(), after_.begin(), after_.end());
  return {"Pad", {{"pads", pads}}};
}
Shape Pad::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "pad");
  return pad_shape(inputs[0], before_, after_);
}
Var Pad::forward(const Context&, std::span<const Var> inputs) { return pad(inputs[0], before_, after_); }

OpDesc Slice::describe() const {
  std::vector<int64_t> axes, starts, ends, steps;
  for (const Range& r : ranges_) {
    axes.push_back(r.axis);
    starts.push_back(r.start);
    ends.push_back(r.end);
    steps.push_back(r.step);
  }
  return {"Slice", {{"axes", axes}, {"starts", starts}, {"ends", ends}, {"steps", steps}}};
}
Shape Slice::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "slice");
  return slice_shape(inputs[0], slice_spec(ranges_, inputs[0]));
}
Var Slice::forward(const Context&, std::span<const Var> inputs) { return slice(inputs[0], slice_spec(ranges_, inputs[0].shape())); }

Shape Flatten::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "flatten");
  return flatten_shape(inputs[0]);
}
Var Flatten::forward(const Context&, std::span<const Var> inputs) { return flatten(inputs[0]); }

OpDesc Reshape::describe() const { return {"Reshape", {{"shape", shape_}}}; }
Shape Reshape::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "reshape");
  std::vector<int64_t> e{inputs[0][0]};
  e.insert(e.end(), shape_.begin(), shape_.end());
  const Shape y{std::span<const int64_t>(e)};
  DETENT_CHECK(y.elements() == inputs[0].elements(), "reshape: ", inputs[0], " to ", y, ": the number of elements differs");
  return y;
}
Var Reshape::forward(const Context&, std::span<const Var> inputs) {
  const Shape in[] = {inputs[0].shape()};
  return reshape(inputs[0], infer(in));
}

OpDesc Transpose::describe() const { return {"Transpose", {{"perm", std::vector<int64_t>(permutation_.begin(), permutation_.end())}}}; }
Shape Transpose::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "transpose");
  return transpose_shape(inputs[0], permutation_);
}
Var Transpose::forward(const Context&, std::span<const Var> inputs) { return transpose(inputs[0], permutation_); }

}  // namespace detent::nn
