#include <algorithm>
#include <cstring>

#include "detent/autograd/op_support.h"

namespace detent {
namespace {

// Start, extent and step of a slice on each axis, resolved against x.
struct Window {
  Shape shape;
  int64_t offset = 0;    // of the first element, in x
  ops::Strides strides;  // in x, of a step
};

Window resolve(const Shape& x, const SliceSpec& spec) {
  const auto rank = static_cast<size_t>(x.rank());
  DETENT_CHECK(spec.starts.size() == rank && spec.ends.size() == rank && (spec.steps.empty() || spec.steps.size() == rank), "slice: x ", x, " has ", rank, " axes, but ",
               spec.starts.size(), " starts, ", spec.ends.size(), " ends and ", spec.steps.size(), " steps are given");
  Window w{x, 0, ops::strides_of(x)};
  for (int i = 0; i < x.rank(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t n = x[i], step = spec.steps.empty() ? 1 : spec.steps[at];
    DETENT_CHECK(step != 0 && step > -INT64_MAX, "slice: step ", step, " on axis ", i);
    // ONNX: a bound below zero counts from the end; then both are clamped to where the walk can be.
    const auto bound = [&](int64_t v, int64_t lo, int64_t hi) {
      const int64_t u = v < 0 ? v + n : v;
      return u < lo ? lo : (u > hi ? hi : u);
    };
    const int64_t begin = step > 0 ? bound(spec.starts[at], 0, n) : bound(spec.starts[at], 0, n - 1);
    const int64_t end = step > 0 ? bound(spec.ends[at], 0, n) : bound(spec.ends[at], -1, n - 1);
    const int64_t span = step > 0 ? end - begin : begin - end, stride = step > 0 ? step : -step;
    const int64_t extent = span > 0 ? (span - 1) / stride + 1 : 0;
    w.shape.set(i, extent);
    if (extent > 0) w.offset += begin * w.strides.at[i];
    // One element takes no step: a huge step must not overflow the stride.
    w.strides.at[i] = extent > 1 ? w.strides.at[i] * step : 0;
  }
  return w;
}

// Ops that only move elements move codes where there are some.
Tensor movable(const Var& x) { return x.coded() ? x.coded()->codes : x.dense(); }
Var moved(const Var& x, Tensor y) { return x.coded() ? Var(Coded{std::move(y), x.coded()->grid, x.coded()->resident}) : Var(std::move(y)); }

bool share_grid(std::span<const Var> xs) {
  return std::all_of(xs.begin(), xs.end(), [&](const Var& x) { return x.coded() && x.coded()->grid == xs[0].coded()->grid; });
}

}  // namespace

Shape concat_shape(std::span<const Shape> xs, int axis) {
  DETENT_CHECK(!xs.empty(), "concat: no values given");
  Shape y = xs[0];
  const int at = ops::check_axis("concat", axis, y.rank());
  for (size_t i = 1; i < xs.size(); ++i) {
    DETENT_CHECK(xs[i].rank() == y.rank(), "concat: value 0 has shape ", xs[0], " and value ", i, " ", xs[i]);
    for (int d = 0; d < y.rank(); ++d) {
      DETENT_CHECK(d == at || xs[i][d] == y[d], "concat along axis ", at, ": value 0 has shape ", xs[0], " and value ", i, " ", xs[i]);
    }
    y.set(at, y[at] + xs[i][at]);
  }
  return y;
}

Var concat(std::span<const Var> xs, int axis) {
  std::vector<Shape> shapes;
  for (const Var& x : xs) {
    ops::check_args("concat", {{"value 0", xs[0]}, {"another value", x}});
    shapes.push_back(x.shape());
  }
  const Shape shape = concat_shape(shapes, axis);
  const int at = ops::check_axis("concat", axis, shape.rank());
  const ops::Strides strides = ops::strides_of(shape);
  const bool codes = share_grid(xs);
  Tensor y(shape, codes ? DType::u8 : DType::f32, xs[0].device());
  int64_t offset = 0;
  for (const Var& x : xs) {
    ops::strided_copy(x.shape(), codes ? x.coded()->codes : x.dense(), 0, ops::strides_of(x.shape()), y, offset, strides);
    offset += x.shape()[at] * strides.at[at];
  }
  return Tape::record("concat", xs, codes ? moved(xs[0], std::move(y)) : Var(std::move(y)), [=](const Tensor& dy, GradSink& sink) {
    int64_t from = 0;
    for (size_t i = 0; i < shapes.size(); ++i) {
      if (sink.needs(static_cast<int>(i))) {
        Tensor dx(shapes[i], DType::f32, dy.device());
        ops::strided_copy(shapes[i], dy, from, strides, dx, 0, ops::strides_of(shapes[i]));
        sink.add(static_cast<int>(i), std::move(dx));
      }
      from += shapes[i][at] * strides.at[at];
    }
  });
}

Shape slice_shape(const Shape& x, const SliceSpec& spec) { return resolve(x, spec).shape; }

Var slice(const Var& x, const SliceSpec& spec) {
  const Device device = ops::check_args("slice", {{"x", x}});
  const Window w = resolve(x.shape(), spec);
  const Tensor from = movable(x);
  Tensor y(w.shape, from.dtype(), device);
  ops::strided_copy(w.shape, from, w.offset, w.strides, y, 0, ops::strides_of(w.shape));
  return Tape::record("slice", {x}, moved(x, std::move(y)), [w, shape = x.shape()](const Tensor& dy, GradSink& sink) {
    Tensor dx = Tensor::zeros(shape, DType::f32, dy.device());
    ops::strided_copy(w.shape, dy, 0, ops::strides_of(w.shape), dx, w.offset, w.strides);
    sink.add(0, std::move(dx));
  });
}

std::vector<Var> split(const Var& x, int axis, std::span<const int64_t> sizes) {
  const int at = ops::check_axis("split", axis, x.shape().rank());
  int64_t total = 0;
  for (const int64_t s : sizes) {
    DETENT_CHECK(s >= 0 && s <= x.shape()[at] - total, "split: the sizes exceed the extent ", x.shape()[at], " of axis ", at, " of x ", x.shape());
    total += s;
  }
  DETENT_CHECK(total == x.shape()[at], "split: the sizes add up to ", total, ", axis ", at, " of x ", x.shape(), " has ", x.shape()[at]);
  SliceSpec spec;
  spec.starts.assign(static_cast<size_t>(x.shape().rank()), 0);
  spec.ends.assign(x.shape().extents().begin(), x.shape().extents().end());
  std::vector<Var> pieces;
  int64_t begin = 0;
  for (const int64_t s : sizes) {
    spec.starts[static_cast<size_t>(at)] = begin;
    spec.ends[static_cast<size_t>(at)] = begin += s;
    pieces.push_back(slice(x, spec));
  }
  return pieces;
}

Shape pad_shape(const Shape& x, std::span<const int64_t> before, std::span<const int64_t> after) {
  const auto rank = static_cast<size_t>(x.rank());
  DETENT_CHECK(before.size() == rank && after.size() == rank, "pad: x ", x, " has ", rank, " axes, ", before.size(), " and ", after.size(), " paddings are given");
  Shape y = x;
  for (int i = 0; i < x.rank(); ++i) {
    const int64_t b = before[static_cast<size_t>(i)], a = after[static_cast<size_t>(i)];
    DETENT_CHECK(b >= 0 && a >= 0, "pad: padding ", b, " and ", a, " on axis ", i, " must not be negative; use slice to crop");
    y.set(i, x[i] + b + a);
  }
  return y;
}

Var pad(const Var& x, std::span<const int64_t> before, std::span<const int64_t> after, float value) {
  const Device device = ops::check_args("pad", {{"x", x}});
  const Shape inner = x.shape(), outer = pad_shape(inner, before, after);
  const ops::Strides strides = ops::strides_of(outer);
  int64_t offset = 0;
  for (int i = 0; i < inner.rank(); ++i) offset += before[static_cast<size_t>(i)] * strides.at[i];
  // The code of 0 is the zero point; only the host's memory is filled with bytes here.
  const bool codes = x.coded() && value == 0.0f && device.type == DeviceType::cpu;
  Tensor y = codes ? Tensor(outer, DType::u8, device) : Tensor::full(outer, value, device);
  if (codes) std::memset(y.raw(), x.coded()->grid.zero_point, static_cast<size_t>(y.bytes()));
  ops::strided_copy(inner, codes ? x.coded()->codes : x.dense(), 0, ops::strides_of(inner), y, offset, strides);
  return Tape::record("pad", {x}, codes ? moved(x, std::move(y)) : Var(std::move(y)), [=](const Tensor& dy, GradSink& sink) {
    Tensor dx(inner, DType::f32, dy.device());
    ops::strided_copy(inner, dy, offset, strides, dx, 0, ops::strides_of(inner));
    sink.add(0, std::move(dx));
  });
}

Var to_device(const Var& x, Device device) {
  DETENT_CHECK(x.defined(), "to_device: x is undefined");
  const Device from = x.device();
  if (from == device) return x;
  Var y = x.coded() ? Var(Coded{x.coded()->codes.to(device), x.coded()->grid}) : Var(x.dense().to(device));
  return Tape::record("to_device", {x}, std::move(y), [from](const Tensor& dy, GradSink& sink) { sink.add(0, dy.to(from)); });
}

Var reshape(const Var& x, const Shape& shape) {
  ops::check_args("reshape", {{"x", x}});
  Var y = x.coded() ? Var(Coded{x.coded()->codes.reshape(shape), x.coded()->grid, x.coded()->resident}) : Var(x.dense().reshape(shape));
  return Tape::record("reshape", {x}, std::move(y), [from = x.shape()](const Tensor& dy, GradSink& sink) { sink.add(0, dy.reshape(from)); });
}

Shape flatten_shape(const Shape& x, int axis) {
  const int at = axis == x.rank() ? axis : ops::check_axis("flatten", axis, x.rank());
  int64_t rows = 1, columns = 1;
  for (int i = 0; i < x.rank(); ++i) (i < at ? rows : columns) *= x[i];
  return {rows, columns};
}

Var flatten(const Var& x, int axis) { return reshape(x, flatten_shape(x.shape(), axis)); }

Shape transpose_shape(const Shape& x, std::span<const int> permutation) {
  DETENT_CHECK(permutation.size() == static_cast<size_t>(x.rank()), "transpose: x ", x, " has ", x.rank(), " axes, the permutation ", permutation.size());
  Shape y = x;
  unsigned seen = 0;
  for (int i = 0; i < x.rank(); ++i) {
    const int p = permutation[static_cast<size_t>(i)];
    DETENT_CHECK(p >= 0 && p < x.rank() && !(seen >> p & 1u), "transpose: entry ", p, " of the permutation is outside or repeated, x is ", x);
    seen |= 1u << p;
    y.set(i, x[p]);
  }
  return y;
}

Var transpose(const Var& x, std::span<const int> permutation) {
  const Device device = ops::check_args("transpose", {{"x", x}});
  const Shape from = x.shape(), to = transpose_shape(from, permutation);
  const ops::Strides own = ops::strides_of(from), out = ops::strides_of(to);
  ops::Strides walk;
  for (int i = 0; i < to.rank(); ++i) walk.at[i] = own.at[permutation[static_cast<size_t>(i)]];
  const Tensor source = movable(x);
  Tensor y(to, source.dtype(), device);
  ops::strided_copy(to, source, 0, walk, y, 0, out);
  return Tape::record("transpose", {x}, moved(x, std::move(y)), [=](const Tensor& dy, GradSink& sink) {
    Tensor dx(from, DType::f32, dy.device());
    ops::strided_copy(to, dy, 0, out, dx, 0, walk);
    sink.add(0, std::move(dx));
  });
}

}  // namespace detent
