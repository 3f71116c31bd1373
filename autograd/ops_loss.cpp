#include "detent/autograd/op_support.h"

namespace detent {
namespace {

// Mean of all elements, [1].
Tensor mean_of(const Tensor& x) { return ops::scaled(ops::reduce_to(x, Shape{1}), static_cast<float>(1.0 / static_cast<double>(x.elements()))); }

// dy is [1]: multiplied on the device, so that nothing waits for its value.
Tensor times(const Tensor& t, const Tensor& dy) { return ops::binary(BinaryOp::mul, t, dy); }

// Rows and classes of logits [n,c], both at least 1.
void check_logits(const char* op, const Shape& x) {
  ops::check_rank(op, "logits", x, 2);
  DETENT_CHECK(x[0] >= 1 && x[1] >= 1, op, ": logits ", x, " are empty");
}

}  // namespace

Shape reduce_shape(const char* op, const Shape& x, std::span<const int> axes, bool keep_dims) {
  bool reduced[Shape::kMaxRank] = {};
  for (const int a : axes) reduced[ops::check_axis(op, a, x.rank())] = true;
  std::vector<int64_t> extents;
  for (int i = 0; i < x.rank(); ++i) {
    if (!reduced[i]) extents.push_back(x[i]);
    if (reduced[i] && keep_dims) extents.push_back(1);
  }
  if (extents.empty()) extents.push_back(1);
  return Shape(extents);
}

Var reduce_sum(const Var& x, std::span<const int> axes, bool keep_dims) {
  ops::check_args("reduce_sum", {{"x", x}});
  const Shape from = x.shape(), kept = reduce_shape("reduce_sum", from, axes, true), to = reduce_shape("reduce_sum", from, axes, keep_dims);
  Tensor y = ops::reduce_to(x.dense(), kept).reshape(to);
  return Tape::record("reduce_sum", {x}, Var(std::move(y)), [from, kept](const Tensor& dy, GradSink& sink) { sink.add(0, ops::broadcast_to(dy.reshape(kept), from)); });
}

Var reduce_mean(const Var& x, std::span<const int> axes, bool keep_dims) {
  const Var total = reduce_sum(x, axes, keep_dims);
  const int64_t n = total.shape().elements() ? x.shape().elements() / total.shape().elements() : 0;
  DETENT_CHECK(n >= 1, "reduce_mean: x ", x.shape(), " has no elements to average");
  return affine(total, static_cast<float>(1.0 / static_cast<double>(n)), 0.0f);
}

Var sum(const Var& x) {
  ops::check_args("sum", {{"x", x}});
  return Tape::record("sum", {x}, Var(ops::reduce_to(x.dense(), Shape{1})), [from = x.shape()](const Tensor& dy, GradSink& sink) { sink.add(0, ops::broadcast_to(dy, from)); });
}

Var mean(const Var& x) {
  DETENT_CHECK(x.shape().elements() >= 1, "mean: x ", x.shape(), " has no elements");
  return affine(sum(x), static_cast<float>(1.0 / static_cast<double>(x.shape().elements())), 0.0f);
}

void check_labels(const char* op, const Tensor& labels, int64_t classes) {
  if (labels.device().type != DeviceType::cpu) return;
  const int64_t* l = labels.data<int64_t>();
  for (int64_t i = 0; i < labels.elements(); ++i) {
    DETENT_CHECK(l[i] >= 0 && l[i] < classes, op, ": label ", l[i], " of row ", i, " is outside the ", classes, " classes; check the label offset and the number of classes (--label-offset, --classes)");
  }
}

Var softmax_cross_entropy(const Var& logits, const Tensor& labels, float label_smoothing) {
  const Device device = ops::check_args("softmax_cross_entropy", {{"logits", logits}});
  const Shape shape = logits.shape();
  check_logits("softmax_cross_entropy", shape);
  // Labels of the host are looked at before they move.
  ops::check_tensor("softmax_cross_entropy", "labels", labels, DType::i64, Shape{shape[0]}, labels.device().type == DeviceType::cpu ? Device{} : device);
  DETENT_CHECK(label_smoothing >= 0.0f && label_smoothing <= 1.0f, "softmax_cross_entropy: label_smoothing ", label_smoothing, " is outside 0..1");
  check_labels("softmax_cross_entropy", labels, shape[1]);
  const Tensor placed = labels.to(device);
  Tensor rows(Shape{shape[0]}, DType::f32, device);
  Tensor dlogits;
  if (logits.tracked()) dlogits = Tensor(shape, DType::f32, device);
  CrossEntropyArgs args;
  args.rows = shape[0];
  args.c = shape[1];
  args.logits = logits.dense().data<float>();
  args.labels = placed.data<int64_t>();
  args.label_smoothing = label_smoothing;
  args.loss = rows.data<float>();
  args.row_scale = static_cast<float>(1.0 / static_cast<double>(shape[0]));
  args.dlogits = dlogits.defined() ? dlogits.data<float>() : nullptr;
  ops::kernels(device).cross_entropy(args);
  return Tape::record("softmax_cross_entropy", {logits}, Var(mean_of(rows)), [dlogits](const Tensor& dy, GradSink& sink) { sink.add(0, times(dlogits, dy)); });
}

Var mean_squared_error(const Var& x, const Tensor& target) {
  const Device device = ops::check_args("mean_squared_error", {{"x", x}});
  ops::check_tensor("mean_squared_error", "target", target, DType::f32, x.shape(), device);
  DETENT_CHECK(target.elements() >= 1, "mean_squared_error: x ", x.shape(), " has no elements");
  const Tensor d = ops::binary(BinaryOp::sub, x.dense(), target);
  return Tape::record("mean_squared_error", {x}, Var(mean_of(ops::binary(BinaryOp::mul, d, d))),
                      [d](const Tensor& dy, GradSink& sink) { sink.add(0, times(ops::scaled(d, static_cast<float>(2.0 / static_cast<double>(d.elements()))), dy)); });
}

Var binary_cross_entropy(const Var& logits, const Tensor& target) {
  const Device device = ops::check_args("binary_cross_entropy", {{"logits", logits}});
  ops::check_tensor("binary_cross_entropy", "target", target, DType::f32, logits.shape(), device);
  DETENT_CHECK(target.elements() >= 1, "binary_cross_entropy: logits ", logits.shape(), " are empty");
  const Tensor x = logits.dense();
  // (1-t) * x + softplus(-x): no difference of large numbers where the prediction is right.
  const Tensor linear = ops::binary(BinaryOp::mul, ops::apply({PointwiseKind::affine, -1.0f, 1.0f}, target), x);
  const Tensor loss = ops::binary(BinaryOp::add, linear, ops::apply({PointwiseKind::softplus}, ops::scaled(x, -1.0f)));
  return Tape::record("binary_cross_entropy", {logits}, Var(mean_of(loss)), [x, target](const Tensor& dy, GradSink& sink) {
    const Tensor d = ops::binary(BinaryOp::sub, ops::apply({PointwiseKind::sigmoid}, x), target);
    sink.add(0, times(ops::scaled(d, static_cast<float>(1.0 / static_cast<double>(d.elements()))), dy));
  });
}

Var distillation(const Var& student, const Tensor& teacher, float temperature) {
  const Device device = ops::check_args("distillation", {{"student", student}});
  const Shape shape = student.shape();
  check_logits("distillation", shape);
  ops::check_tensor("distillation", "teacher", teacher, DType::f32, shape, device);
  DETENT_CHECK(temperature > 0.0f, "distillation: temperature ", temperature, " must be above 0");
  const Kernels& k = ops::kernels(device);
  Tensor target(shape, DType::f32, device);
  const Tensor warm = ops::scaled(teacher, 1.0f / temperature);
  k.softmax({.rows = shape[0], .c = shape[1], .x = warm.data<float>(), .y = target.data<float>()});
  Tensor dlogits;
  if (student.tracked()) dlogits = Tensor(shape, DType::f32, device);
  Tensor cross(Shape{shape[0]}, DType::f32, device), entropy(Shape{shape[0]}, DType::f32, device);
  CrossEntropyArgs args;
  args.rows = shape[0];
  args.c = shape[1];
  args.target = target.data<float>();
  args.temperature = temperature;
  args.logits = teacher.data<float>();
  args.loss = entropy.data<float>();
  k.cross_entropy(args);
  args.logits = student.dense().data<float>();
  args.loss = cross.data<float>();
  args.row_scale = static_cast<float>(static_cast<double>(temperature) * temperature / static_cast<double>(shape[0]));
  args.dlogits = dlogits.defined() ? dlogits.data<float>() : nullptr;
  k.cross_entropy(args);
  // KL = cross entropy - entropy of the teacher.
  const Tensor loss = ops::scaled(mean_of(ops::binary(BinaryOp::sub, cross, entropy)), temperature * temperature);
  return Tape::record("distillation", {student}, Var(loss), [dlogits](const Tensor& dy, GradSink& sink) { sink.add(0, times(dlogits, dy)); });
}

}  // namespace detent
