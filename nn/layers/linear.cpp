// The layers that carry weights: Conv2d and Dense, with the bias on the grid that an integer target gives it.
#include <cmath>

#include "detent/nn/layers.h"

namespace detent::nn {
namespace {

void check_one(std::span<const Shape> inputs, const char* op) { DETENT_CHECK(inputs.size() == 1, op, ": ", inputs.size(), " inputs given, 1 expected"); }

}  // namespace

void WeightedLayer::visit(const std::string& prefix, Visitor& visitor) {
  visit_parameter(weight, prefix, "weight", visitor);
  visit_parameter(bias, prefix, "bias", visitor);
}

void WeightedLayer::ensure_bias() {
  if (!has_bias()) bias.value = Tensor::zeros({weight.value.dim(0)}, DType::f32, weight.value.device());
}

Conv2d::Conv2d(const Options& options) : options_(options) {
  const auto& o = options_;
  DETENT_CHECK(o.in > 0 && o.out > 0 && o.kernel_h > 0 && o.kernel_w > 0, "conv2d: ", o.in, " input and ", o.out, " output channels with a ", o.kernel_h, "x", o.kernel_w,
               " kernel: all must be positive");
  DETENT_CHECK(o.spec.groups > 0 && o.in % o.spec.groups == 0 && o.out % o.spec.groups == 0, "conv2d: ", o.in, " and ", o.out, " channels cannot be split into ", o.spec.groups,
               " groups");
  DETENT_CHECK(o.spec.clamp_min <= o.spec.clamp_max, "conv2d: clamp bounds ", o.spec.clamp_min, " and ", o.spec.clamp_max, "; the first must be the lower one");
  weight.value = Tensor::zeros({o.out, o.kernel_h, o.kernel_w, o.in / o.spec.groups});
  if (o.bias) ensure_bias();
}

OpDesc Conv2d::describe() const {
  const Conv2dSpec& s = options_.spec;
  return {"Conv",
          {{"kernel_shape", std::vector<int64_t>{options_.kernel_h, options_.kernel_w}},
           {"strides", std::vector<int64_t>{s.stride[0], s.stride[1]}},
           {"pads", std::vector<int64_t>{s.padding.top, s.padding.left, s.padding.bottom, s.padding.right}},
           {"dilations", std::vector<int64_t>{s.dilation[0], s.dilation[1]}},
           {"group", s.groups}}};
}

Shape Conv2d::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "conv2d");
  return conv2d_shape(inputs[0], weight.value.shape(), options_.spec);
}

Var Conv2d::forward(const Context& context, std::span<const Var> inputs) {
  const Var w = weight.var(context);
  if (!has_bias()) return conv2d(inputs[0], w, nullptr, spec(context));
  const Var b = round_bias(bias.var(context), inputs[0], w);
  return conv2d(inputs[0], w, &b, spec(context));
}

Conv2dSpec Conv2d::spec(const Context& context) const {
  Conv2dSpec spec = options_.spec;
  if (context.bf16) spec.result = DType::bf16;
  return spec;
}

Dense::Dense(const Options& options) : options_(options) {
  DETENT_CHECK(options.in > 0 && options.out > 0, "dense: ", options.in, " inputs and ", options.out, " outputs: both must be positive");
  weight.value = Tensor::zeros({options.out, options.in});
  if (options.bias) ensure_bias();
}

OpDesc Dense::describe() const { return {"Gemm", {{"transB", int64_t{1}}}}; }

Shape Dense::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "dense");
  return dense_shape(inputs[0], weight.value.shape());
}

Var Dense::forward(const Context& context, std::span<const Var> inputs) {
  const Var w = weight.var(context);
  if (!has_bias()) return dense(inputs[0], w, nullptr);
  const Var b = round_bias(bias.var(context), inputs[0], w);
  return dense(inputs[0], w, &b);
}

BatchNorm::BatchNorm(const Options& options) : options_(options) {
  const Shape c{options.channels};
  DETENT_CHECK(options.channels > 0, "batch_norm: ", options.channels, " channels");
  DETENT_CHECK(options.eps >= 0.0f && std::isfinite(options.eps), "batch_norm: eps ", options.eps, " is not a finite number of at least 0");
  DETENT_CHECK(options.momentum >= 0.0f && options.momentum <= 1.0f, "batch_norm: momentum ", options.momentum, " is not in 0..1");
  weight.value = Tensor::full(c, 1.0f);
  bias.value = Tensor::zeros(c);
  running_mean = Tensor::zeros(c);
  running_var = Tensor::full(c, 1.0f);
}

OpDesc BatchNorm::describe() const { return {"BatchNormalization", {{"epsilon", options_.eps}}}; }

Shape BatchNorm::infer(std::span<const Shape> inputs) const {
  check_one(inputs, "batch_norm");
  DETENT_CHECK(inputs[0].rank() >= 2 && inputs[0][-1] == options_.channels, "batch_norm: input ", inputs[0], " has not ", options_.channels, " channels last");
  return inputs[0];
}

Var BatchNorm::forward(const Context& context, std::span<const Var> inputs) {
  return batch_norm(inputs[0], weight.var(context), bias.var(context), running_mean, running_var, {.eps = options_.eps, .momentum = options_.momentum},
                    context.training && !frozen);
}

void BatchNorm::visit(const std::string& prefix, Visitor& visitor) {
  visit_parameter(weight, prefix, "weight", visitor);
  visit_parameter(bias, prefix, "bias", visitor);
  visitor.buffer(prefix + ".running_mean", running_mean);
  visitor.buffer(prefix + ".running_var", running_var);
}

}  // namespace detent::nn
