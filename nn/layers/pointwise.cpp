// Activation, Binary, pools, Resize, Softmax.
#include <cmath>
#include <limits>

#include "detent/autograd/op_support.h"
#include "detent/core/math/integer_math.h"
#include "detent/nn/layers.h"

namespace detent::nn {
namespace {

void check_inputs(std::span<const Shape> inputs, size_t n, const char* op) { DETENT_CHECK(inputs.size() == n, op, ": ", inputs.size(), " inputs given, ", n, " expected"); }

OpDesc pool_desc(const char* op, const PoolSpec& s) {
  return {op,
          {{"kernel_shape", std::vector<int64_t>{s.kernel[0], s.kernel[1]}},
           {"strides", std::vector<int64_t>{s.stride[0], s.stride[1]}},
           {"pads", std::vector<int64_t>{s.padding.top, s.padding.left, s.padding.bottom, s.padding.right}},
           {"ceil_mode", int64_t{s.ceil_mode}}}};
}

// The mean of codes whose result stays in float: an integer target averages codes, whose sum is exact, so the mean becomes that sum times one factor. (What goes to a grid is
// global_average_pool_quantized.)
Var global_average(const Var& x) {
  const int64_t pixels = x.shape()[1] * x.shape()[2];
  if (ops::on_byte_grid(x) && pixels <= kMaxAveragePixels) return global_average_pool_of_codes(x);
  const Var mean = global_average_pool(x);
  if (!x.grids() || x.grids()->size() != 1) return mean;
  const float scale = x.grids()->front().scale, factor = average_scale(scale, 1.0f, pixels).value;
  std::vector<float> v = mean.dense().to_vector<float>();
  for (float& m : v) m = static_cast<float>(std::rint(static_cast<double>(m) * static_cast<double>(pixels) / static_cast<double>(scale))) * factor;
  Tensor y = Tensor::from<float>(mean.shape(), v).to(mean.device());
  return Tape::record("mean_of_codes", {mean}, Var(std::move(y)), [](const Tensor& dy, GradSink& sink) { sink.add(0, dy); });
}

}  // namespace

Pointwise relu_op() { return {PointwiseKind::clip, 0.0f, std::numeric_limits<float>::infinity()}; }
Pointwise clip_op(float lo, float hi) { return {PointwiseKind::clip, lo, hi}; }

Activation::Activation(Pointwise op) : op_(op) {
  DETENT_CHECK(op.kind != PointwiseKind::clip || op.a <= op.b, "clip: bounds ", op.a, " and ", op.b, "; the first must be the lower one");
}

OpDesc Activation::describe() const {
  switch (op_.kind) {
    case PointwiseKind::identity: return {"Identity", {}};
    case PointwiseKind::clip:
      if (op_.a == 0.0f && op_.b == std::numeric_limits<float>::infinity()) return {"Relu", {}};
      return {"Clip", {{"min", op_.a}, {"max", op_.b}}};
    case PointwiseKind::leaky_relu: return {"LeakyRelu", {{"alpha", op_.a}}};
    case PointwiseKind::sigmoid: return {"Sigmoid", {}};
    case PointwiseKind::tanh: return {"Tanh", {}};
    case PointwiseKind::hard_sigmoid: return {"HardSigmoid", {{"alpha", op_.a}, {"beta", op_.b}}};
    case PointwiseKind::hard_swish: return {"HardSwish", {}};
    case PointwiseKind::silu: return {"Silu", {}};
    case PointwiseKind::softplus: return {"Softplus", {}};
    case PointwiseKind::affine: return {"Affine", {{"scale", op_.a}, {"shift", op_.b}}};
  }
  return {"Identity", {}};
}
Shape Activation::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, "activation");
  return inputs[0];
}
Var Activation::forward(const Context&, std::span<const Var> inputs) { return pointwise(inputs[0], op_); }

OpDesc Binary::describe() const {
  constexpr const char* names[] = {"Add", "Sub", "Mul", "Div"};
  return {names[static_cast<int>(op_)], {}};
}
Shape Binary::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 2, describe().op.c_str());
  return broadcast_shape(describe().op.c_str(), inputs[0], inputs[1]);
}
Var Binary::forward(const Context&, std::span<const Var> inputs) {
  constexpr Var (*kOps[])(const Var&, const Var&) = {add, sub, mul, div};
  return kOps[static_cast<int>(op_)](inputs[0], inputs[1]);
}

ConstantOperand::ConstantOperand(BinaryOp op, Tensor constant, bool constant_first) : op_(op), constant_(std::move(constant)), constant_first_(constant_first) {
  DETENT_CHECK(constant_.defined() && constant_.dtype() == DType::f32, "constant operand: an f32 tensor is needed");
}
OpDesc ConstantOperand::describe() const { return Binary(op_).describe(); }
Shape ConstantOperand::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, describe().op.c_str());
  return broadcast_shape(describe().op.c_str(), inputs[0], constant_.shape());
}
Var ConstantOperand::forward(const Context& context, std::span<const Var> inputs) {
  const Var c(constant_);
  const Var operands[] = {constant_first_ ? c : inputs[0], constant_first_ ? inputs[0] : c};
  return Binary(op_).forward(context, operands);
}
void ConstantOperand::visit(const std::string& prefix, Visitor& visitor) { visitor.buffer(stored_name.empty() ? prefix + ".constant" : stored_name, constant_); }

PRelu::PRelu(int64_t slopes) {
  DETENT_CHECK(slopes > 0, "prelu: ", slopes, " slopes");
  weight.value = Tensor::full({slopes}, 0.25f);
}
Shape PRelu::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, "prelu");
  const int64_t n = weight.value.elements();
  DETENT_CHECK(n == 1 || n == inputs[0][-1], "prelu: ", n, " slopes for input ", inputs[0]);
  return inputs[0];
}
Var PRelu::forward(const Context& context, std::span<const Var> inputs) { return prelu(inputs[0], weight.var(context)); }
void PRelu::visit(const std::string& prefix, Visitor& visitor) { visit_parameter(weight, prefix, "weight", visitor); }

OpDesc MaxPool::describe() const { return pool_desc("MaxPool", spec_); }
Shape MaxPool::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, "max_pool");
  return pool_shape("max_pool", inputs[0], spec_);
}
Var MaxPool::forward(const Context&, std::span<const Var> inputs) { return max_pool(inputs[0], spec_); }

OpDesc AveragePool::describe() const {
  OpDesc d = pool_desc("AveragePool", spec_);
  d.attributes["count_include_pad"] = int64_t{spec_.count_include_pad};
  return d;
}
Shape AveragePool::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, "average_pool");
  return pool_shape("average_pool", inputs[0], spec_);
}
bool AveragePool::is_global(const Shape& x) const { return spec_.kernel[0] == x[1] && spec_.kernel[1] == x[2] && spec_.padding == Padding2d{}; }
Var AveragePool::forward(const Context&, std::span<const Var> inputs) {
  const Shape& x = inputs[0].shape();
  return is_global(x) ? global_average(inputs[0]) : average_pool(inputs[0], spec_);
}

Shape GlobalAveragePool::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, "global_average_pool");
  return global_average_pool_shape(inputs[0]);
}
Var GlobalAveragePool::forward(const Context&, std::span<const Var> inputs) {
  return global_average(inputs[0]);
}

OpDesc Resize::describe() const {
  return {"Resize", {{"mode", std::string(options_.mode == ResizeMode::nearest ? "nearest" : "linear")}, {"sizes", std::vector<int64_t>{options_.height, options_.width}}}};
}
Shape Resize::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, "resize");
  return resize_shape(inputs[0], options_);
}
Var Resize::forward(const Context&, std::span<const Var> inputs) { return resize(inputs[0], options_); }

Shape Softmax::infer(std::span<const Shape> inputs) const {
  check_inputs(inputs, 1, "softmax");
  return inputs[0];
}
Var Softmax::forward(const Context&, std::span<const Var> inputs) { return softmax(inputs[0]); }

}  // namespace detent::nn
