#include "detent/autograd/op_support.h"

namespace detent::ops {

Device check_args(const char* op, std::initializer_list<Arg> args) {
  const Arg& first = *args.begin();
  for (const Arg& a : args) {
    DETENT_CHECK(a.var.defined(), op, ": ", a.name, " is undefined");
    DETENT_CHECK(a.var.dtype() == DType::f32, op, ": ", a.name, " is ", to_string(a.var.dtype()), a.var.shape(), ", f32 wanted");
    DETENT_CHECK(a.var.device() == first.var.device(), op, ": ", first.name, " is on ", to_string(first.var.device()), " and ", a.name, " on ", to_string(a.var.device()),
                 "; move them to one device with to()");
  }
  return first.var.device();
}

void check_tensor(const char* op, const char* name, const Tensor& t, DType dtype, const Shape& shape, Device device) {
  DETENT_CHECK(t.defined(), op, ": ", name, " is undefined");
  DETENT_CHECK(t.dtype() == dtype, op, ": ", name, " is ", to_string(t.dtype()), t.shape(), ", ", to_string(dtype), " wanted");
  check_shape(op, name, t.shape(), shape);
  DETENT_CHECK(t.device() == device, op, ": ", name, " is on ", to_string(t.device()), " and the other arguments on ", to_string(device), "; move them to one device with to()");
}

void check_rank(const char* op, const char* name, const Shape& shape, int rank) {
  DETENT_CHECK(shape.rank() == rank, op, ": ", name, " has shape ", shape, ", rank ", rank, " wanted");
}

void check_shape(const char* op, const char* name, const Shape& got, const Shape& wanted) {
  DETENT_CHECK(got == wanted, op, ": ", name, " has shape ", got, ", ", wanted, " wanted");
}

int check_axis(const char* op, int axis, int rank) {
  DETENT_CHECK(axis >= -rank && axis < rank, op, ": axis ", axis, " is outside a value of rank ", rank);
  return axis < 0 ? axis + rank : axis;
}

const Kernels& kernels(Device device) { return backend(device).kernels(); }

const Tensor& values_of(const Var& x) { return x.bf16() && kernels(x.device()).keeps_bf16 ? *x.bf16() : x.dense(); }

Strides strides_of(const Shape& shape) {
  Strides s;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    s.at[i] = step;
    step *= shape[i];
  }
  return s;
}

Strides broadcast_strides(const Shape& shape, const Shape& out) {
  const Strides own = strides_of(shape);
  const int lead = out.rank() - shape.rank();
  Strides s;
  for (int i = lead; i < out.rank(); ++i) s.at[i] = shape[i - lead] == 1 ? 0 : own.at[i - lead];
  return s;
}

LoopNest loop_over(const Shape& extents, const Strides& a, const Strides& b, const Strides& y) {
  LoopNest l;
  for (int i = 0; i < extents.rank(); ++i) {
    const int64_t e = extents[i];
    if (e == 1) continue;
    const int p = l.rank - 1;
    if (p >= 0 && l.a_stride[p] == a.at[i] * e && l.b_stride[p] == b.at[i] * e && l.y_stride[p] == y.at[i] * e) {
      l.extent[p] *= e;
      l.a_stride[p] = a.at[i];
      l.b_stride[p] = b.at[i];
      l.y_stride[p] = y.at[i];
      continue;
    }
    l.extent[l.rank] = e;
    l.a_stride[l.rank] = a.at[i];
    l.b_stride[l.rank] = b.at[i];
    l.y_stride[l.rank] = y.at[i];
    ++l.rank;
  }
  if (l.rank == 0) {
    l.rank = 1;
    l.extent[0] = 1;
  }
  return l;
}

void strided_copy(const Shape& extents, const Tensor& a, int64_t a_offset, const Strides& a_strides, Tensor& y, int64_t y_offset, const Strides& y_strides) {
  if (extents.elements() == 0) return;
  StridedCopyArgs args;
  args.loop = loop_over(extents, a_strides, {}, y_strides);
  args.element_bytes = size_of(a.dtype());
  args.a = static_cast<const char*>(a.raw()) + a_offset * args.element_bytes;
  args.y = static_cast<char*>(y.raw()) + y_offset * args.element_bytes;
  kernels(y.device()).strided_copy(args);
}

Tensor binary(BinaryOp op, const Tensor& a, const Tensor& b) {
  const Shape out = broadcast_shape("broadcast", a.shape(), b.shape());
  Tensor y(out, DType::f32, a.device());
  const LoopNest loop = loop_over(out, broadcast_strides(a.shape(), out), broadcast_strides(b.shape(), out), strides_of(out));
  if (y.elements()) kernels(a.device()).binary({op, loop, a.data<float>(), b.data<float>(), y.data<float>()});
  return y;
}

Tensor scaled(const Tensor& x, float factor) {
  Tensor y(x.shape(), DType::f32, x.device());
  kernels(x.device()).scale(y.data<float>(), x.data<float>(), factor, x.elements());
  return y;
}

Tensor apply(const Pointwise& op, const Tensor& x) {
  Tensor y(x.shape(), x.dtype(), x.device());
  kernels(x.device()).pointwise({.op = op, .x = floats_in(x), .out = floats_in(y), .n = x.elements(), .x16 = words_in(x), .out16 = words_in(y)});
  return y;
}

Tensor apply_backward(const Pointwise& op, const Tensor& saved, const Tensor& dy, Tensor dx) {
  if (!dx.defined()) dx = Tensor(dy.shape(), dy.dtype(), dy.device());
  const float* s = floats_in(saved);
  kernels(dy.device())
      .pointwise_backward({.op = op, .x = s, .y = s, .dy = floats_in(dy), .out = floats_in(dx), .n = dy.elements(), .x16 = words_in(saved), .dy16 = words_in(dy), .out16 = words_in(dx)});
  return dx;
}

Tensor reduce_to(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  if (x.elements() == shape.elements() && x.elements() > 0) return x.reshape(shape);
  if (x.elements() == 0) return Tensor::zeros(shape, DType::f32, x.device());
  Tensor y(shape, DType::f32, x.device());
  const LoopNest loop = loop_over(x.shape(), strides_of(x.shape()), {}, broadcast_strides(shape, x.shape()));
  kernels(x.device()).reduce_sum({loop, x.data<float>(), y.data<float>(), y.elements()});
  return y;
}

Tensor broadcast_to(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  Tensor y(shape, DType::f32, x.device());
  strided_copy(shape, x, 0, broadcast_strides(x.shape(), shape), y, 0, strides_of(shape));
  return y;
}

}  // namespace detent::ops
