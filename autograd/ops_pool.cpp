#include "detent/autograd/op_support.h"
#include "detent/core/integer_kernels.h"
#include "detent/core/math/integer_math.h"

namespace detent {
namespace {

int64_t pooled(int64_t in, int64_t kernel, int64_t stride, int64_t before, int64_t after, int64_t dilation, bool ceil_mode) {
  if (!ceil_mode) return conv_out_size(in, kernel, stride, before, after, dilation);
  const int64_t room = in + before + after - dilation * (kernel - 1) - 1;
  if (room < 0) return 0;
  const int64_t out = (room + stride - 1) / stride + 1;
  return (out - 1) * stride >= in + before ? out - 1 : out;  // a window that starts in the trailing padding is dropped
}

ConvGeometry geometry_of(const Shape& x, const Shape& y, const PoolSpec& s) {
  return {.n = x[0],
          .h = x[1],
          .w = x[2],
          .c = x[3],
          .k = x[3],
          .r = s.kernel[0],
          .s = s.kernel[1],
          .oh = y[1],
          .ow = y[2],
          .stride_h = s.stride[0],
          .stride_w = s.stride[1],
          .pad_top = s.padding.top,
          .pad_left = s.padding.left,
          .dilation_h = s.dilation[0],
          .dilation_w = s.dilation[1]};
}

PoolSpec whole(const Shape& x) { return {.kernel = {x[1], x[2]}}; }

Tensor average_backward(const ConvGeometry& g, const Shape& from, const PoolSpec& spec, const Tensor& dy) {
  Tensor dx(from, DType::f32, dy.device());
  PoolBackwardArgs back;
  back.geometry = g;
  back.dy = dy.data<float>();
  back.dx = dx.data<float>();
  back.count_include_pad = spec.count_include_pad;
  back.pad_bottom = spec.padding.bottom;
  back.pad_right = spec.padding.right;
  ops::kernels(dy.device()).average_pool_backward(back);
  return dx;
}

Var average(const char* op, const Var& x, const PoolSpec& spec) {
  const Device device = ops::check_args(op, {{"x", x}});
  const Shape from = x.shape(), to = pool_shape(op, from, spec);
  const ConvGeometry g = geometry_of(from, to, spec);
  Tensor y(to, DType::f32, device);
  PoolArgs args;
  args.geometry = g;
  args.x = x.dense().data<float>();
  args.y = y.data<float>();
  args.count_include_pad = spec.count_include_pad;
  args.pad_bottom = spec.padding.bottom;
  args.pad_right = spec.padding.right;
  ops::kernels(device).average_pool(args);
  return Tape::record(op, {x}, Var(std::move(y)), [g, from, spec](const Tensor& dy, GradSink& sink) { sink.add(0, average_backward(g, from, spec, dy)); });
}

}  // namespace

Shape pool_shape(const char* op, const Shape& x, const PoolSpec& spec) {
  ops::check_rank(op, "x", x, 4);
  const int64_t before[2] = {spec.padding.top, spec.padding.left}, after[2] = {spec.padding.bottom, spec.padding.right};
  Shape y = x;
  for (int i = 0; i < 2; ++i) {
    DETENT_CHECK(spec.kernel[i] >= 1 && spec.stride[i] >= 1 && spec.dilation[i] >= 1, op, ": kernel ", spec.kernel[i], ", stride ", spec.stride[i], ", dilation ", spec.dilation[i],
                 ", at least 1 wanted");
    const int64_t reach = spec.dilation[i] * (spec.kernel[i] - 1) + 1;
    // Each window then holds at least one element of x where no gap of a dilation falls on it.
    DETENT_CHECK(before[i] >= 0 && after[i] >= 0 && before[i] < reach && after[i] < reach, op, ": padding ", before[i], " and ", after[i],
                 " must be at least 0 and smaller than the window of ", reach);
    y.set(1 + i, pooled(x[1 + i], spec.kernel[i], spec.stride[i], before[i], after[i], spec.dilation[i], spec.ceil_mode));
    DETENT_CHECK(y[1 + i] >= 1, op, ": the window of ", reach, " does not fit into x ", x, " with padding ", before[i], "+", after[i]);
  }
  return y;
}

Var max_pool(const Var& x, const PoolSpec& spec) {
  const Device device = ops::check_args("max_pool", {{"x", x}});
  const Shape from = x.shape(), to = pool_shape("max_pool", from, spec);
  DETENT_CHECK(from[1] * from[2] <= INT32_MAX, "max_pool: x ", from, " is larger than the 2^31 pixels an index can hold");
  const ConvGeometry g = geometry_of(from, to, spec);
  // The largest code is that of the largest value. Without dilation no window is empty.
  const IntegerKernels* codes = x.coded() && !x.tracked() && spec.dilation[0] == 1 && spec.dilation[1] == 1 ? backend(device).integer_kernels() : nullptr;
  if (codes) {
    Tensor q(to, DType::u8, device);
    codes->max_pool({.geometry = g, .x = x.coded()->codes.data<uint8_t>(), .y = q.data<uint8_t>()});
    return Var(Coded{q, x.coded()->grid, x.coded()->resident});
  }
  const Tensor& xt = ops::values_of(x);
  Tensor y(to, xt.dtype(), device);
  const Tensor index = x.tracked() ? Tensor(to, DType::i32, device) : Tensor();
  PoolArgs args;
  args.geometry = g;
  args.x = ops::floats_in(xt);
  args.x16 = ops::words_in(xt);
  args.y = ops::floats_in(y);
  args.y16 = ops::words_in(y);
  args.index = index.defined() ? const_cast<int32_t*>(index.data<int32_t>()) : nullptr;
  ops::kernels(device).max_pool(args);
  return Tape::record("max_pool", {x}, Var(std::move(y)), [g, from, index](const Tensor& dy, GradSink& sink) {
    Tensor dx(from, dy.dtype(), dy.device());
    PoolBackwardArgs back;
    back.geometry = g;
    back.dy = ops::floats_in(dy);
    back.dy16 = ops::words_in(dy);
    back.dx = ops::floats_in(dx);
    back.dx16 = ops::words_in(dx);
    back.index = index.data<int32_t>();
    ops::kernels(dy.device()).max_pool_backward(back);
    sink.add(0, std::move(dx));
  });
}

Var average_pool(const Var& x, const PoolSpec& spec) { return average("average_pool", x, spec); }

Shape global_average_pool_shape(const Shape& x) {
  ops::check_rank("global_average_pool", "x", x, 4);
  DETENT_CHECK(x[1] >= 1 && x[2] >= 1, "global_average_pool: x ", x, " has no pixels");
  return {x[0], 1, 1, x[3]};
}

Var global_average_pool(const Var& x) {
  global_average_pool_shape(x.shape());
  return average("global_average_pool", x, whole(x.shape()));
}

namespace {

// The sums of codes through an epilogue.
void average_codes(const char* op, const Var& x, const Epilogue& epilogue) {
  const Shape& from = x.shape();
  DETENT_CHECK(ops::on_byte_grid(x), op, ": x does not lie on one grid of bytes; quantize it or take global_average_pool");
  const int64_t pixels = from[1] * from[2];
  DETENT_CHECK(pixels <= kMaxAveragePixels, op, ": x ", from, " has ", pixels, " pixels, and an int32 sum of codes holds ", kMaxAveragePixels, "; take global_average_pool");
  const ops::Kept codes = ops::codes_of(x);
  ops::kernels(x.device()).average_codes(
      {.n = from[0], .pixels = pixels, .c = from[3], .x = codes.x.data<uint8_t>(), .from = codes.grid, .resident = grids_in(codes.resident), .epilogue = epilogue});
}

Tensor global_average_backward(const Shape& from, const Tensor& dy) {
  return average_backward(geometry_of(from, global_average_pool_shape(from), whole(from)), from, whole(from), dy);
}

}  // namespace

Var global_average_pool_of_codes(const Var& x) {
  constexpr const char* kOp = "global_average_pool_of_codes";
  const Device device = ops::check_args(kOp, {{"x", x}});
  Tensor y(global_average_pool_shape(x.shape()), DType::f32, device);
  Epilogue epilogue;
  epilogue.y = y.data<float>();
  average_codes(kOp, x, epilogue);
  return Tape::record(kOp, {x}, Var(std::move(y)), [from = x.shape()](const Tensor& dy, GradSink& sink) { sink.add(0, global_average_backward(from, dy)); });
}

Var global_average_pool_quantized(const Var& x, const GridTarget& target) {
  constexpr const char* kOp = "global_average_pool_quantized";
  const Device device = ops::check_args(kOp, {{"x", x}});
  ops::ToGrid to_grid(kOp, global_average_pool_shape(x.shape()), device, target, x.tracked() || target.min.tracked());
  Epilogue epilogue;
  to_grid.fill(epilogue);
  average_codes(kOp, x, epilogue);
  std::vector<Var> inputs{x};
  if (to_grid.learned()) inputs.insert(inputs.end(), {target.min, target.max});
  return Tape::record(kOp, inputs, to_grid.result(), [to_grid, from = x.shape()](const Tensor& dy, GradSink& sink) {
    const Tensor d = to_grid.backward(dy, sink, 1);
    if (sink.needs(0)) sink.add(0, global_average_backward(from, as_type(d, DType::f32)));
  });
}

Shape resize_shape(const Shape& x, const ResizeSpec& spec) {
  ops::check_rank("resize", "x", x, 4);
  DETENT_CHECK(spec.height >= 1 && spec.width >= 1, "resize: size ", spec.height, "x", spec.width, ", at least 1x1 wanted");
  DETENT_CHECK(x[1] >= 1 && x[2] >= 1, "resize: x ", x, " has no pixels");
  return {x[0], spec.height, spec.width, x[3]};
}

Var resize(const Var& x, const ResizeSpec& spec) {
  const Device device = ops::check_args("resize", {{"x", x}});
  const Shape from = x.shape(), to = resize_shape(from, spec);
  Tensor y(to, DType::f32, device);
  ResizeArgs args{.n = from[0],
                  .h = from[1],
                  .w = from[2],
                  .c = from[3],
                  .oh = to[1],
                  .ow = to[2],
                  .mode = spec.mode,
                  .coordinates = spec.coordinates,
                  .nearest_floor = spec.nearest_floor,
                  .x = x.dense().data<float>(),
                  .y = y.data<float>()};
  ops::kernels(device).resize(args);
  return Tape::record("resize", {x}, Var(std::move(y)), [args, from](const Tensor& dy, GradSink& sink) {
    Tensor dx(from, DType::f32, dy.device());
    ResizeArgs back = args;
    back.x = dy.data<float>();
    back.y = dx.data<float>();
    ops::kernels(dy.device()).resize_backward(back);
    sink.add(0, std::move(dx));
  });
}

}  // namespace detent
