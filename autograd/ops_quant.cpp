#include "detent/autograd/op_support.h"

namespace detent {
namespace {

void check_grids(const char* op, const Shape& x, std::span<const Grid> grids, const ChannelView& view) {
  DETENT_CHECK(view.channels >= 1 && view.outer * view.channels * view.inner == x.elements(), op, ": the view ", view.outer, "x", view.channels, "x", view.inner,
               " does not cover x ", x);
  DETENT_CHECK(static_cast<int64_t>(grids.size()) == view.channels, op, ": ", grids.size(), " grids for ", view.channels, " channels of x ", x);
  for (size_t i = 0; i < grids.size(); ++i) {
    const Grid& g = grids[i];
    DETENT_CHECK(g.scale > 0.0f && g.scale < kInfinity, op, ": the grid of channel ", i, " has scale ", g.scale);
    DETENT_CHECK(g.qmin < g.qmax && g.zero_point >= g.qmin && g.zero_point <= g.qmax, op, ": the grid of channel ", i, " has zero point ", g.zero_point, " and codes ", g.qmin,
                 "..", g.qmax);
  }
}

Var quantized(const Tensor& x, std::span<const Grid> grids, const Tensor& placed, const ChannelView& view, EmitCodes emit, const Tensor& resident) {
  const Device device = x.device();
  const bool coded = emit == EmitCodes::yes && grids.size() == 1 && grids[0].qmin >= 0 && grids[0].qmax <= 255;
  FakeQuantArgs args;
  args.view = view;
  args.x = x.data<float>();
  args.grids = grids_in(placed);
  Tensor out(x.shape(), coded ? DType::u8 : DType::f32, device);
  if (coded) {
    args.codes = out.raw();
  } else {
    args.y = out.data<float>();
  }
  ops::kernels(device).fake_quant(args);
  return coded ? Var(Coded{out, grids[0], resident}) : Var(out);
}

}  // namespace

bool ops::on_byte_grid(const Var& x) { return x.grids() && x.grids()->size() == 1 && x.grids()->front().qmin >= 0 && x.grids()->front().qmax <= 255; }

ops::Kept ops::codes_of(const Var& x) {
  if (x.coded()) return keep(x);
  const Tensor xt = x.dense(), placed = ops::placed(*x.grids(), x.resident_grids(), xt.device());
  return keep(quantized(xt, *x.grids(), placed, {1, 1, xt.elements()}, EmitCodes::yes, x.resident_grids()));
}

ChannelView channel_view(const Shape& shape, int axis) {
  const int at = ops::check_axis("channel_view", axis, shape.rank());
  ChannelView v;
  v.channels = shape[at];
  for (int i = 0; i < shape.rank(); ++i) {
    if (i != at) (i < at ? v.outer : v.inner) *= shape[i];
  }
  return v;
}

Var fake_quant_ste(const Var& x, std::span<const Grid> grids, const ChannelView& view, EmitCodes emit, const Tensor& resident) {
  const Device device = ops::check_args("fake_quant_ste", {{"x", x}});
  check_grids("fake_quant_ste", x.shape(), grids, view);
  const Tensor xt = x.dense(), placed = ops::placed(grids, resident, device);
  return Tape::record("fake_quant_ste", {x}, quantized(xt, grids, placed, view, emit, resident), [=](const Tensor& dy, GradSink& sink) {
    Tensor dx(xt.shape(), DType::f32, device);
    FakeQuantBackwardArgs args;
    args.view = view;
    args.x = xt.data<float>();
    args.dy = dy.data<float>();
    args.grids = grids_in(placed);
    args.mask_on_value = true;
    args.dx = dx.data<float>();
    ops::kernels(device).fake_quant_backward(args);
    sink.add(0, std::move(dx));
  });
}

Var fake_quant_learned(const Var& x, const Var& min, const Var& max, std::span<const Grid> grids, const ChannelView& view, const GridSpec& spec, RangeGradient rule,
                       EmitCodes emit, const Tensor& resident) {
  const Device device = ops::check_args("fake_quant_learned", {{"x", x}, {"min", min}, {"max", max}});
  check_grids("fake_quant_learned", x.shape(), grids, view);
  ops::check_shape("fake_quant_learned", "min", min.shape(), Shape{view.channels});
  ops::check_shape("fake_quant_learned", "max", max.shape(), Shape{view.channels});
  const Tensor xt = x.dense(), placed = ops::placed(grids, resident, device);
  Var y = quantized(xt, grids, placed, view, emit, resident);
  if (!x.tracked() && !min.tracked() && !max.tracked()) return y;

  const Tensor lo = min.dense(), hi = max.dense();
  return Tape::record("fake_quant_learned", {x, min, max}, std::move(y), [=](const Tensor& dy, GradSink& sink) {
    const bool range = sink.needs(1) || sink.needs(2);
    const int64_t channels = view.channels;
    Tensor dx, sums;
    FakeQuantBackwardArgs args;
    args.view = view;
    args.x = xt.data<float>();
    args.dy = dy.data<float>();
    args.grids = grids_in(placed);
    if (sink.needs(0)) {
      dx = Tensor(xt.shape(), DType::f32, device);
      args.dx = dx.data<float>();
    }
    if (range) {  // doubles in the memory of 2 * channels 64-bit integers
      sums = Tensor(Shape{2, channels}, DType::i64, device);
      args.scale_sum = static_cast<double*>(sums.raw());
      args.clip_sum = args.scale_sum + channels;
    }
    ops::kernels(device).fake_quant_backward(args);
    if (dx.defined()) sink.add(0, std::move(dx));
    if (!range) return;
    ops::add_range_grads(sums, lo, hi, spec, rule, sink, 1);
  });
}

Var round_bias(const Var& bias, const Var& x, const Var& w) {
  if (!x.grids() || !w.grids() || x.grids()->size() != 1) return bias;
  const Device device = ops::check_args("round_bias", {{"bias", bias}});
  ops::check_rank("round_bias", "bias", bias.shape(), 1);
  const int64_t n = bias.shape()[0], grids = static_cast<int64_t>(w.grids()->size());
  DETENT_CHECK(grids == 1 || grids == n, "round_bias: ", grids, " grids of weights for ", n, " biases");
  const Tensor b = bias.dense(), in_place = ops::placed(*w.grids(), w.resident_grids(), device);
  Tensor y(bias.shape(), DType::f32, device);
  ops::kernels(device).round_bias({.n = n, .b = b.data<float>(), .input = x.grids()->front(), .resident = grids_in(x.resident_grids()), .grids = grids_in(in_place), .per_channel = grids > 1, .y = y.data<float>()});
  return Tape::record("round_bias", {bias}, Var(std::move(y)), [](const Tensor& dy, GradSink& sink) { sink.add(0, dy); });
}

}  // namespace detent
