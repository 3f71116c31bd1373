#include "detent/autograd/op_support.h"

namespace detent {
namespace {

// Which value the derivative reads. Where the mask can be read off y, y is kept: the next op mostly keeps the same buffer.
enum class Reads { x, y, nothing };

Reads derivative_reads(const Pointwise& op) {
  switch (op.kind) {
    case PointwiseKind::identity:
    case PointwiseKind::affine:
      return Reads::nothing;
    case PointwiseKind::clip:
    case PointwiseKind::sigmoid:
    case PointwiseKind::tanh:
      return Reads::y;
    case PointwiseKind::leaky_relu:
      return op.a > 0.0f ? Reads::y : Reads::x;  // y has the sign of x
    default:
      return Reads::x;
  }
}

}  // namespace

Var pointwise(const Var& x, const Pointwise& op) {
  ops::check_args(name_of(op.kind), {{"x", x}});
  const Tensor xt = ops::values_of(x);
  Tensor y = ops::apply(op, xt);
  if (!x.tracked()) return Var(std::move(y));
  const Reads reads = derivative_reads(op);
  const Tensor saved = reads == Reads::x ? xt : (reads == Reads::y ? y : Tensor());
  return Tape::record(name_of(op.kind), {x}, Var(std::move(y)),
                      [op, saved](const Tensor& dy, GradSink& sink) { sink.add(0, ops::apply_backward(op, saved.defined() ? saved : dy, dy)); });
}

Var relu(const Var& x) { return pointwise(x, {PointwiseKind::clip, 0.0f, kInfinity}); }
Var clip(const Var& x, float lo, float hi) {
  DETENT_CHECK(lo <= hi, "clip: the lower bound ", lo, " is above the upper bound ", hi);
  return pointwise(x, {PointwiseKind::clip, lo, hi});
}
Var leaky_relu(const Var& x, float slope) { return pointwise(x, {PointwiseKind::leaky_relu, slope, 0.0f}); }
Var sigmoid(const Var& x) { return pointwise(x, {PointwiseKind::sigmoid}); }
Var tanh(const Var& x) { return pointwise(x, {PointwiseKind::tanh}); }
Var hard_sigmoid(const Var& x, float alpha, float beta) { return pointwise(x, {PointwiseKind::hard_sigmoid, alpha, beta}); }
Var hard_swish(const Var& x) { return pointwise(x, {PointwiseKind::hard_swish}); }
Var silu(const Var& x) { return pointwise(x, {PointwiseKind::silu}); }
Var softplus(const Var& x) { return pointwise(x, {PointwiseKind::softplus}); }
Var affine(const Var& x, float factor, float offset) { return pointwise(x, {PointwiseKind::affine, factor, offset}); }

Var prelu(const Var& x, const Var& slope) {
  ops::check_args("prelu", {{"x", x}, {"slope", slope}});
  DETENT_CHECK(x.shape().rank() >= 1 && slope.shape().rank() == 1 && (slope.shape()[0] == 1 || slope.shape()[0] == x.shape()[-1]), "prelu: slope has shape ", slope.shape(),
               ", [1] or the last extent of x ", x.shape(), " wanted");
  const Pointwise positive{PointwiseKind::clip, 0.0f, kInfinity}, negative{PointwiseKind::clip, -kInfinity, 0.0f};
  const Tensor xt = x.dense(), st = slope.dense();
  const Tensor y = ops::binary(BinaryOp::add, ops::apply(positive, xt), ops::binary(BinaryOp::mul, ops::apply(negative, xt), st));
  return Tape::record("prelu", {x, slope}, Var(y), [=](const Tensor& dy, GradSink& sink) {
    if (sink.needs(0)) {
      const Tensor below = ops::binary(BinaryOp::mul, ops::apply_backward(negative, xt, dy), st);
      sink.add(0, ops::binary(BinaryOp::add, ops::apply_backward(positive, xt, dy), below));
    }
    if (sink.needs(1)) sink.add(1, ops::reduce_to(ops::binary(BinaryOp::mul, dy, ops::apply(negative, xt)), st.shape()));
  });
}

Shape broadcast_shape(const char* op, const Shape& a, const Shape& b) {
  const int rank = a.rank() > b.rank() ? a.rank() : b.rank();
  Shape y = a.rank() == rank ? a : b;
  for (int i = 1; i <= rank; ++i) {
    const int64_t ea = i <= a.rank() ? a[-i] : 1, eb = i <= b.rank() ? b[-i] : 1;
    DETENT_CHECK(ea == eb || ea == 1 || eb == 1, op, ": a ", a, " and b ", b, " do not broadcast: extents ", ea, " and ", eb, " at axis -", i);
    y.set(rank - i, ea == 1 ? eb : ea);
  }
  return y;
}

namespace {
Var combine(const char* name, BinaryOp op, const Var& a, const Var& b, BackwardFn backward) {
  return Tape::record(name, {a, b}, Var(ops::binary(op, a.dense(), b.dense())), std::move(backward));
}

void check_pair(const char* name, const Var& a, const Var& b) {
  ops::check_args(name, {{"a", a}, {"b", b}});
  broadcast_shape(name, a.shape(), b.shape());
}
}  // namespace

Var add(const Var& a, const Var& b) {
  check_pair("add", a, b);
  if (a.bf16() && b.bf16() && a.shape() == b.shape()) return add_clamped(a, b, -kInfinity, kInfinity);  // kept so
  return combine("add", BinaryOp::add, a, b, [sa = a.shape(), sb = b.shape()](const Tensor& dy, GradSink& sink) {
    if (sink.needs(0)) sink.add(0, ops::reduce_to(dy, sa));
    if (sink.needs(1)) sink.add(1, ops::reduce_to(dy, sb));
  });
}

Var sub(const Var& a, const Var& b) {
  check_pair("sub", a, b);
  return combine("sub", BinaryOp::sub, a, b, [sa = a.shape(), sb = b.shape()](const Tensor& dy, GradSink& sink) {
    if (sink.needs(0)) sink.add(0, ops::reduce_to(dy, sa));
    if (sink.needs(1)) sink.add(1, ops::scaled(ops::reduce_to(dy, sb), -1.0f));
  });
}

Var mul(const Var& a, const Var& b) {
  check_pair("mul", a, b);
  const Tensor kept_a = b.tracked() ? a.dense() : Tensor(), kept_b = a.tracked() ? b.dense() : Tensor();
  return combine("mul", BinaryOp::mul, a, b, [=, sa = a.shape(), sb = b.shape()](const Tensor& dy, GradSink& sink) {
    if (sink.needs(0)) sink.add(0, ops::reduce_to(ops::binary(BinaryOp::mul, dy, kept_b), sa));
    if (sink.needs(1)) sink.add(1, ops::reduce_to(ops::binary(BinaryOp::mul, dy, kept_a), sb));
  });
}

Var div(const Var& a, const Var& b) {
  check_pair("div", a, b);
  const Tensor y = ops::binary(BinaryOp::div, a.dense(), b.dense());
  const Tensor kept_y = b.tracked() ? y : Tensor();
  return Tape::record("div", {a, b}, Var(y), [=, bt = b.dense(), sa = a.shape()](const Tensor& dy, GradSink& sink) {
    const Tensor quotient = ops::binary(BinaryOp::div, dy, bt);  // da; db = -dy * y / b
    if (sink.needs(0)) sink.add(0, ops::reduce_to(quotient, sa));
    if (sink.needs(1)) sink.add(1, ops::scaled(ops::reduce_to(ops::binary(BinaryOp::mul, quotient, kept_y), bt.shape()), -1.0f));
  });
}

}  // namespace detent
