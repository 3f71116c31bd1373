#include "detent/autograd/op_support.h"

namespace detent {
namespace {

// running = (1 - momentum) * running + share * batch, in place.
void blend(Tensor& running, const Tensor& batch, float momentum, float share) {
  const Kernels& k = ops::kernels(running.device());
  k.scale(running.data<float>(), running.data<float>(), 1.0f - momentum, running.elements());
  const Tensor part = ops::scaled(batch, share);
  k.accumulate(running.data<float>(), part.data<float>(), running.elements());
}

}  // namespace

Var batch_norm(const Var& x, const Var& gamma, const Var& beta, Tensor& running_mean, Tensor& running_var, const BatchNormSpec& spec, bool training) {
  const Device device = ops::check_args("batch_norm", {{"x", x}, {"gamma", gamma}, {"beta", beta}});
  DETENT_CHECK(x.shape().rank() >= 2, "batch_norm: x has shape ", x.shape(), ", rank 2 or more wanted");
  const int64_t c = x.shape()[-1];
  const int64_t rows = c ? x.shape().elements() / c : 0;
  ops::check_shape("batch_norm", "gamma", gamma.shape(), Shape{c});
  ops::check_shape("batch_norm", "beta", beta.shape(), Shape{c});
  ops::check_tensor("batch_norm", "running_mean", running_mean, DType::f32, Shape{c}, device);
  ops::check_tensor("batch_norm", "running_var", running_var, DType::f32, Shape{c}, device);
  DETENT_CHECK(!training || rows >= 2, "batch_norm: x ", x.shape(), " gives ", rows, " values per channel; training needs at least 2");

  const Kernels& k = ops::kernels(device);
  const Tensor xt = ops::values_of(x), gt = gamma.dense(), bt = beta.dense();
  Tensor mean = running_mean, var = running_var;
  if (training) {
    if (spec.statistics) {
      ops::check_tensor("batch_norm", "statistics.mean", spec.statistics->mean, DType::f32, Shape{c}, device);
      ops::check_tensor("batch_norm", "statistics.var", spec.statistics->var, DType::f32, Shape{c}, device);
      mean = spec.statistics->mean;
      var = spec.statistics->var;
    } else {
      mean = Tensor(Shape{c}, DType::f32, device);
      var = Tensor(Shape{c}, DType::f32, device);
      k.batch_norm_stats({rows, c, ops::floats_in(xt), mean.data<float>(), var.data<float>(), ops::words_in(xt)});
    }
    blend(running_mean, mean, spec.momentum, spec.momentum);
    blend(running_var, var, spec.momentum, static_cast<float>(spec.momentum * static_cast<double>(rows) / static_cast<double>(rows - 1)));
  }
  Tensor y(x.shape(), xt.dtype(), device);
  k.batch_norm({.rows = rows,
                .c = c,
                .eps = spec.eps,
                .x = ops::floats_in(xt),
                .mean = mean.data<float>(),
                .var = var.data<float>(),
                .gamma = gt.data<float>(),
                .beta = bt.data<float>(),
                .clamp_min = spec.clamp_min,
                .clamp_max = spec.clamp_max,
                .y = ops::floats_in(y),
                .x16 = ops::words_in(xt),
                .y16 = ops::words_in(y)});
  if (!x.tracked() && !gamma.tracked() && !beta.tracked()) return Var(std::move(y));

  if (!training) {  // the running statistics may be updated before the backward pass
    mean = mean.clone();
    var = var.clone();
  }
  return Tape::record("batch_norm", {x, gamma, beta}, Var(std::move(y)), [=](const Tensor& dy, GradSink& sink) {
    const auto wanted = [&](int i, const Shape& shape, DType type) { return sink.needs(i) ? Tensor(shape, type, dy.device()) : Tensor(); };
    Tensor d[3] = {wanted(0, xt.shape(), xt.dtype()), wanted(1, Shape{c}, DType::f32), wanted(2, Shape{c}, DType::f32)};
    ops::kernels(dy.device())
        .batch_norm_backward({.rows = rows,
                              .c = c,
                              .eps = spec.eps,
                              .training = training,
                              .x = ops::floats_in(xt),
                              .dy = ops::floats_in(dy),
                              .mean = mean.data<float>(),
                              .var = var.data<float>(),
                              .gamma = gt.data<float>(),
                              .beta = bt.data<float>(),
                              .clamp_min = spec.clamp_min,
                              .clamp_max = spec.clamp_max,
                              .dx = ops::floats_in(d[0]),
                              .dgamma = ops::floats_in(d[1]),
                              .dbeta = ops::floats_in(d[2]),
                              .x16 = ops::words_in(xt),
                              .dy16 = ops::words_in(dy),
                              .dx16 = ops::words_in(d[0])});
    for (int i = 0; i < 3; ++i) {
      if (d[i].defined()) sink.add(i, std::move(d[i]));
    }
  });
}

Var softmax(const Var& x) {
  const Device device = ops::check_args("softmax", {{"x", x}});
  DETENT_CHECK(x.shape().rank() >= 1, "softmax: x has no axes");
  const int64_t c = x.shape()[-1];
  const int64_t rows = c ? x.shape().elements() / c : 0;
  Tensor y(x.shape(), DType::f32, device);
  ops::kernels(device).softmax({.rows = rows, .c = c, .x = x.dense().data<float>(), .y = y.data<float>()});
  return Tape::record("softmax", {x}, Var(y), [=](const Tensor& dy, GradSink& sink) {
    Tensor dx(dy.shape(), DType::f32, dy.device());
    ops::kernels(dy.device()).softmax_backward({rows, c, y.data<float>(), dy.data<float>(), dx.data<float>()});
    sink.add(0, std::move(dx));
  });
}

}  // namespace detent
