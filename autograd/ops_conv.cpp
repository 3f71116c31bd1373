#include <algorithm>
#include <optional>

#include "detent/autograd/op_support.h"

namespace detent {
namespace {

bool clamps(float lo, float hi) { return lo > -kInfinity || hi < kInfinity; }

ConvGeometry geometry_of(const Shape& x, const Shape& w, const Shape& y, const Conv2dSpec& spec) {
  return {.n = x[0],
          .h = x[1],
          .w = x[2],
          .c = x[3],
          .k = w[0],
          .r = w[1],
          .s = w[2],
          .oh = y[1],
          .ow = y[2],
          .stride_h = spec.stride[0],
          .stride_w = spec.stride[1],
          .pad_top = spec.padding.top,
          .pad_left = spec.padding.left,
          .dilation_h = spec.dilation[0],
          .dilation_w = spec.dilation[1],
          .groups = spec.groups};
}

// The grids of w where a device may multiply its integers. The CPU does it on the way to a grid.
struct PlacedGrids {
  Tensor memory;
  bool per_channel = false;
  int32_t magnitude = 0;
  WeightGrid get() const {
    WeightGrid g;
    if (magnitude > 0) g = {static_cast<const Grid*>(memory.raw()), per_channel, magnitude};
    return g;
  }
};

PlacedGrids weight_grids(const Var& w, Device device, const GridTarget* target) {
  PlacedGrids p;
  const bool wanted = device.type != DeviceType::cpu || (target && target->products == Products::integers);
  if (!wanted || !w.grids() || (w.grids()->size() != 1 && static_cast<int64_t>(w.grids()->size()) != w.shape()[0])) return p;
  int32_t magnitude = 0;
  for (const Grid& g : *w.grids()) {
    constexpr int32_t kExact = 1 << 22;  // what rint(w / scale) recovers
    if (g.zero_point != 0 || g.qmin < -kExact || g.qmax >= kExact) return p;
    magnitude = std::max({magnitude, -g.qmin, g.qmax + 1});
  }
  p.memory = ops::placed(*w.grids(), w.resident_grids(), device);
  p.per_channel = w.grids()->size() > 1;
  p.magnitude = magnitude;
  return p;
}

// Values that lie on a byte's grid but came as floats (through a max pool, say) are coded again where the weights' integers can be multiplied: exact, and the
// backward pass keeps a quarter of the bytes.
ops::Kept keep_input(const Var& x, const PlacedGrids& w, const GridTarget* target) {
  constexpr int32_t kByte = 128;
  if (w.magnitude > 0 && w.magnitude <= kByte && ops::on_byte_grid(x)) return ops::codes_of(x);
  return w.magnitude == 0 && !target ? ops::keep_values(x) : ops::keep(x);
}

// Dense is a convolution of one image of a single row: the same kernels, the same coded inputs.
Var convolve(const char* op, const Var& x, const Var& w, const Var* bias, const ConvGeometry& g, const Shape& y_shape, const Conv2dSpec& spec, const GridTarget* target) {
  const float lo = spec.clamp_min, hi = spec.clamp_max;
  const Device device = x.device();
  const PlacedGrids w_grids = weight_grids(w, device, target);
  const ops::Kept kept_x = keep_input(x, w_grids, target);
  const Tensor wt = w.dense();
  const bool wanted = x.tracked() || w.tracked() || (bias && bias->tracked()) || (target && target->min.tracked());
  DETENT_CHECK(!(wanted && (spec.channel_scale.defined() || spec.addend.defined())), op, ": channel_scale and addend are for inference, but a gradient of an input is wanted");
  std::optional<ops::ToGrid> to_grid;
  if (target) to_grid.emplace(op, y_shape, device, *target, wanted);
  Tensor y;
  Conv2dArgs args{.geometry = g, .input = kept_x.input(), .w = wt.data<float>(), .epilogue = {}, .w_grid = w_grids.get()};
  args.epilogue.scale = spec.channel_scale.defined() ? spec.channel_scale.data<float>() : nullptr;
  args.epilogue.addend = spec.addend.defined() ? spec.addend.data<float>() : nullptr;
  args.epilogue.bias = bias ? bias->dense().data<float>() : nullptr;
  args.epilogue.clamp_min = lo;
  args.epilogue.clamp_max = hi;
  if (to_grid) {
    to_grid->fill(args.epilogue);
  } else {
    const bool in_bf16 = spec.result == DType::bf16 && ops::kernels(device).keeps_bf16 && w_grids.magnitude == 0 && kept_x.x.dtype() != DType::u8;
    y = Tensor(y_shape, in_bf16 ? DType::bf16 : DType::f32, device);
    args.epilogue.y = ops::floats_in(y);
    args.epilogue.y16 = ops::words_in(y);
  }
  if (spec.statistics) {
    DETENT_CHECK(!target && !clamps(lo, hi) && !spec.channel_scale.defined() && !spec.addend.defined(), op, ": statistics are gathered of sums and bias alone, not with a clamp, a scale, an addend or a grid");
    *spec.statistics = {Tensor(Shape{g.k}, DType::f32, device), Tensor(Shape{g.k}, DType::f32, device)};
    args.mean = spec.statistics->mean.data<float>();
    args.var = spec.statistics->var.data<float>();
  }
  ops::kernels(device).conv2d(args);
  if (!wanted) return to_grid ? to_grid->result() : Var(std::move(y));

  const bool needs_bias = bias && bias->tracked();
  const ops::Kept saved_x = w.tracked() || needs_bias ? kept_x : ops::Kept{};
  const Tensor saved_w = x.tracked() ? wt : Tensor();
  const Tensor saved_y = !to_grid && clamps(lo, hi) ? y : Tensor();
  const int range_at = bias ? 3 : 2;
  const Shape x_shape = x.shape(), w_shape = w.shape();
  const DType dx_type = ops::kernels(device).keeps_bf16 ? x.gradient_type() : DType::f32;
  BackwardFn backward = [=](const Tensor& upstream, GradSink& sink) {
    Tensor db;
    if (needs_bias && (to_grid || sink.needs(1))) db = Tensor(Shape{g.k}, DType::f32, upstream.device());
    const Tensor dy = to_grid              ? to_grid->backward(upstream, sink, range_at, needs_bias ? &db : nullptr)
                      : saved_y.defined() ? ops::apply_backward({PointwiseKind::clip, lo, hi}, saved_y, upstream, ops::reuse(upstream))
                                          : upstream;
    const Kernels& k = ops::kernels(dy.device());
    if (sink.needs(0)) {
      Tensor dx(x_shape, dx_type, dy.device());
      k.conv2d_backward_data({g, ops::floats_in(dy), saved_w.data<float>(), ops::floats_in(dx), w_grids.get(), ops::words_in(dy), ops::words_in(dx)});
      sink.add(0, std::move(dx));
    }
    if (sink.needs(1)) {
      Tensor dw(w_shape, DType::f32, dy.device());
      k.conv2d_backward_filter({g, saved_x.input(), ops::floats_in(dy), dw.data<float>(), needs_bias && !to_grid ? db.data<float>() : nullptr, ops::words_in(dy)});
      sink.add(1, std::move(dw));
    }
    if (needs_bias) sink.add(2, db.defined() ? std::move(db) : ops::reduce_to(as_type(dy, DType::f32), Shape{g.k}));
  };
  std::vector<Var> inputs{x, w};
  if (bias) inputs.push_back(*bias);
  if (to_grid && to_grid->learned()) inputs.insert(inputs.end(), {target->min, target->max});
  return Tape::record(op, inputs, to_grid ? to_grid->result() : Var(std::move(y)), std::move(backward));
}

void check_common(const char* op, const Var& x, const Var& w, const Var* bias) {
  if (bias) {
    ops::check_args(op, {{"x", x}, {"w", w}, {"bias", *bias}});
  } else {
    ops::check_args(op, {{"x", x}, {"w", w}});
  }
}

}  // namespace

Shape conv2d_shape(const Shape& x, const Shape& w, const Conv2dSpec& spec) {
  ops::check_rank("conv2d", "x", x, 4);
  ops::check_rank("conv2d", "w", w, 4);
  for (int i = 0; i < 2; ++i) {
    DETENT_CHECK(spec.stride[i] >= 1, "conv2d: stride ", spec.stride[i], ", at least 1 wanted");
    DETENT_CHECK(spec.dilation[i] >= 1, "conv2d: dilation ", spec.dilation[i], ", at least 1 wanted");
  }
  const Padding2d& p = spec.padding;
  DETENT_CHECK(p.top >= 0 && p.left >= 0 && p.bottom >= 0 && p.right >= 0, "conv2d: padding top ", p.top, ", left ", p.left, ", bottom ", p.bottom, ", right ", p.right,
               " must not be negative");
  DETENT_CHECK(spec.groups >= 1 && x[3] % spec.groups == 0 && w[0] % spec.groups == 0, "conv2d: ", spec.groups, " groups do not divide the ", x[3], " channels of x ", x,
               " and the ", w[0], " output channels of w ", w);
  DETENT_CHECK(w[3] == x[3] / spec.groups, "conv2d: w ", w, " has ", w[3], " input channels, x ", x, " in ", spec.groups, " groups gives ", x[3] / spec.groups);
  DETENT_CHECK(w[1] >= 1 && w[2] >= 1, "conv2d: w ", w, " has an empty window");
  const Shape y{x[0], conv_out_size(x[1], w[1], spec.stride[0], p.top, p.bottom, spec.dilation[0]), conv_out_size(x[2], w[2], spec.stride[1], p.left, p.right, spec.dilation[1]),
                w[0]};
  DETENT_CHECK(y[1] >= 1 && y[2] >= 1, "conv2d: the window of w ", w, " does not fit into x ", x, " with padding ", p.top, "+", p.bottom, " and ", p.left, "+", p.right);
  return y;
}

static Var checked_conv2d(const char* op, const Var& x, const Var& w, const Var* bias, const Conv2dSpec& spec, const GridTarget* target) {
  check_common(op, x, w, bias);
  const Shape y = conv2d_shape(x.shape(), w.shape(), spec);
  if (bias) ops::check_shape(op, "bias", bias->shape(), Shape{y[3]});
  if (spec.channel_scale.defined()) ops::check_tensor(op, "channel_scale", spec.channel_scale, DType::f32, Shape{y[3]}, x.device());
  if (spec.addend.defined()) ops::check_tensor(op, "addend", spec.addend, DType::f32, y, x.device());
  return convolve(op, x, w, bias, geometry_of(x.shape(), w.shape(), y, spec), y, spec, target);
}

Var conv2d(const Var& x, const Var& w, const Var* bias, const Conv2dSpec& spec) { return checked_conv2d("conv2d", x, w, bias, spec, nullptr); }

Var conv2d_quantized(const Var& x, const Var& w, const Var* bias, const Conv2dSpec& spec, const GridTarget& target) {
  return checked_conv2d("conv2d_quantized", x, w, bias, spec, &target);
}

Shape dense_shape(const Shape& x, const Shape& w) {
  ops::check_rank("dense", "x", x, 2);
  ops::check_rank("dense", "w", w, 2);
  DETENT_CHECK(x[1] == w[1], "dense: w ", w, " takes ", w[1], " inputs, x ", x, " has ", x[1]);
  return {x[0], w[0]};
}

static Var checked_dense(const char* op, const Var& x, const Var& w, const Var* bias, const Conv2dSpec& spec, const GridTarget* target) {
  check_common(op, x, w, bias);
  const Shape y = dense_shape(x.shape(), w.shape());
  if (bias) ops::check_shape(op, "bias", bias->shape(), Shape{y[1]});
  const ConvGeometry g{.n = 1, .h = 1, .w = y[0], .c = x.shape()[1], .k = y[1], .oh = 1, .ow = y[0]};
  return convolve(op, x, w, bias, g, y, spec, target);
}

Var dense(const Var& x, const Var& w, const Var* bias) { return checked_dense("dense", x, w, bias, {}, nullptr); }
Var dense_quantized(const Var& x, const Var& w, const Var* bias, const GridTarget& target, float lo, float hi) {
  return checked_dense("dense_quantized", x, w, bias, {.clamp_min = lo, .clamp_max = hi}, &target);
}

}  // namespace detent
