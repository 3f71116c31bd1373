#include "detent/autograd/op_support.h"
#include "detent/core/math/integer_math.h"

namespace detent {

namespace ops {

Tensor reuse(const Tensor& dy) { return dy.unique() ? dy : Tensor(dy.shape(), dy.dtype(), dy.device()); }

ConvInput Kept::input() const {
  ConvInput in;
  if (x.dtype() == DType::u8) {
    in.codes = x.data<uint8_t>();
    in.grid = grid;
    in.resident = grids_in(resident);
  } else {
    in.x = floats_in(x);
    in.x16 = words_in(x);
  }
  return in;
}

Kept keep(const Var& x) { return x.coded() ? Kept{x.coded()->codes, x.coded()->grid, x.coded()->resident} : Kept{x.dense(), {}, {}}; }
Kept keep_values(const Var& x) { return x.coded() ? keep(x) : Kept{values_of(x), {}, {}}; }

Tensor placed(std::span<const Grid> grids, const Tensor& resident, Device device) {
  if (resident.defined()) return resident;
  Tensor t(Shape{static_cast<int64_t>(grids.size_bytes())}, DType::u8, device);
  backend(device).copy(t.raw(), device, grids.data(), Device{}, grids.size_bytes());
  return t;
}

ToGrid::ToGrid(const char* op, const Shape& shape, Device device, const GridTarget& t, bool keep_residual)
    : codes_(shape, DType::u8, device), grid_(t.grid), resident_(t.resident), spec_(t.spec), rule_(t.rule) {
  DETENT_CHECK(is_valid(t.grid) && t.grid.qmin >= 0 && t.grid.qmax <= 255, op, ": the grid with scale ", t.grid.scale, " and codes ", t.grid.qmin, "..", t.grid.qmax, " does not fit a byte");
  if (keep_residual) {
    residual_ = Tensor(shape, DType::s8, device);
    // The products of the backward pass round their factors in any case.
    if (backend(device).keeps_bf16()) gradient_ = DType::bf16;
  }
  if (t.min.defined()) {
    check_args(op, {{"min", t.min}, {"max", t.max}});
    check_tensor(op, "min", t.min.dense(), DType::f32, Shape{1}, device);
    check_tensor(op, "max", t.max.dense(), DType::f32, Shape{1}, device);
    min_ = t.min.dense();
    max_ = t.max.dense();
  }
}

void add_range_grads(const Tensor& sums, const Tensor& min, const Tensor& max, const GridSpec& spec, RangeGradient rule, GradSink& sink, int at) {
  if (!sink.needs(at) && !sink.needs(at + 1)) return;
  Tensor dmin(min.shape(), DType::f32, sums.device()), dmax(min.shape(), DType::f32, sums.device());
  RangeGradsArgs args;
  args.channels = min.elements();
  args.scale_sum = static_cast<const double*>(sums.raw());
  args.clip_sum = args.scale_sum + args.channels;
  args.min = min.data<float>();
  args.max = max.data<float>();
  args.spec = spec;
  args.rule = rule;
  args.dmin = dmin.data<float>();
  args.dmax = dmax.data<float>();
  kernels(sums.device()).range_grads(args);
  if (sink.needs(at)) sink.add(at, std::move(dmin));
  if (sink.needs(at + 1)) sink.add(at + 1, std::move(dmax));
}

void ToGrid::fill(Epilogue& e) {
  Tensor codes = codes_, residual = residual_;
  e.quantize = true;
  e.grid = grid_;
  e.resident = grids_in(resident_);
  e.codes = codes.data<uint8_t>();
  e.residual = residual.defined() ? residual.data<int8_t>() : nullptr;
  e.mask_on_value = !learned();
  clamp_min_ = e.clamp_min;
  clamp_max_ = e.clamp_max;
}

Var ToGrid::result() const { return Var(Coded{codes_, grid_, resident_, gradient_}); }

Tensor ToGrid::backward(const Tensor& dy, GradSink& sink, int at, Tensor* column_sum) const {
  Tensor dx = reuse(dy);
  const int64_t c = dy.shape().rank() ? dy.shape()[-1] : 1;
  Tensor sums(Shape{2, 1}, DType::i64, dy.device());  // doubles in the memory of 64-bit integers
  QuantizedBackwardArgs args{.rows = c ? dy.elements() / c : 0,
                             .c = c,
                             .codes = codes_.data<uint8_t>(),
                             .residual = residual_.data<int8_t>(),
                             .grid = grid_,
                             .resident = grids_in(resident_),
                             .clamp_min = clamp_min_,
                             .clamp_max = clamp_max_,
                             .dy = floats_in(dy),
                             .dx = floats_in(dx)};
  args.dy16 = words_in(dy);
  args.dx16 = words_in(dx);
  args.scale_sum = static_cast<double*>(sums.raw());
  args.clip_sum = args.scale_sum + 1;
  args.dbias = column_sum ? column_sum->data<float>() : nullptr;
  kernels(dy.device()).quantized_backward(args);
  if (learned()) add_range_grads(sums, min_, max_, spec_, rule_, sink, at);
  return dx;
}

}  // namespace ops

namespace {

Var fused_add(const char* op, const Var& a, const Var& b, float lo, float hi, const GridTarget* target) {
  const Device device = ops::check_args(op, {{"a", a}, {"b", b}});
  ops::check_shape(op, "b", b.shape(), a.shape());
  const bool on_codes = target && ops::on_byte_grid(a) && ops::on_byte_grid(b);  // the kernel adds codes where the target's grid absorbs the clamp
  const bool in_bf16 = !target && a.bf16() && b.bf16() && ops::kernels(device).keeps_bf16;
  const auto kept = [&](const Var& v) { return on_codes ? ops::codes_of(v) : in_bf16 ? ops::keep_values(v) : ops::keep(v); };
  const ops::Kept ka = kept(a), kb = kept(b);
  AddArgs args{.n = a.shape().elements(), .a = ka.input(), .b = kb.input(), .epilogue = {}};
  args.epilogue.clamp_min = lo;
  args.epilogue.clamp_max = hi;
  const bool wanted = a.tracked() || b.tracked() || (target && target->min.tracked());
  std::vector<Var> inputs{a, b};
  if (!target) {
    Tensor y(a.shape(), in_bf16 ? DType::bf16 : DType::f32, device);
    args.epilogue.y = ops::floats_in(y);
    args.epilogue.y16 = ops::words_in(y);
    ops::kernels(device).add(args);
    return Tape::record(op, inputs, Var(y), [=](const Tensor& dy, GradSink& sink) {
      const Tensor d = lo > -kInfinity || hi < kInfinity ? ops::apply_backward({PointwiseKind::clip, lo, hi}, y, dy, ops::reuse(dy)) : dy;
      for (int i = 0; i < 2; ++i) {
        if (sink.needs(i)) sink.add(i, d);
      }
    });
  }
  ops::ToGrid to_grid(op, a.shape(), device, *target, wanted);
  to_grid.fill(args.epilogue);
  ops::kernels(device).add(args);
  if (to_grid.learned()) inputs.insert(inputs.end(), {target->min, target->max});
  return Tape::record(op, inputs, to_grid.result(), [=](const Tensor& dy, GradSink& sink) {
    const Tensor d = to_grid.backward(dy, sink, 2);
    for (int i = 0; i < 2; ++i) {
      if (sink.needs(i)) sink.add(i, d);
    }
  });
}

}  // namespace

Var add_clamped(const Var& a, const Var& b, float lo, float hi) { return fused_add("add_clamped", a, b, lo, hi, nullptr); }
Var add_quantized(const Var& a, const Var& b, float lo, float hi, const GridTarget& target) { return fused_add("add_quantized", a, b, lo, hi, &target); }

}  // namespace detent
