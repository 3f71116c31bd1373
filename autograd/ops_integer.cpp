#include "detent/autograd/ops_integer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "detent/autograd/op_support.h"
#include "detent/core/integer_kernels.h"

namespace detent {
namespace {

const IntegerKernels& integer_kernels(const char* op, Device device) {
  const IntegerKernels* k = backend(device).integer_kernels();
  DETENT_CHECK(k, op, ": this device has no kernels for integer execution; run it on the cpu");
  return *k;
}

const Coded& coded_argument(const char* op, const char* name, const Var& x) {
  DETENT_CHECK(x.coded(), op, ": ", name, " has no codes; it must lie on an 8-bit grid");
  DETENT_CHECK(!x.tracked(), op, ": a gradient of ", name, " is wanted, but integer execution is for inference");
  return *x.coded();
}

ConvGeometry filter_geometry(const FilterSource& f) {
  const Shape& w = f.w.shape();
  if (w.rank() == 2) return {.c = w[1], .k = w[0]};
  return {.c = w[3] * f.spec.groups,
          .k = w[0],
          .r = w[1],
          .s = w[2],
          .stride_h = f.spec.stride[0],
          .stride_w = f.spec.stride[1],
          .pad_top = f.spec.padding.top,
          .pad_left = f.spec.padding.left,
          .dilation_h = f.spec.dilation[0],
          .dilation_w = f.spec.dilation[1],
          .groups = f.spec.groups};
}

const Grid& grid_of(std::span<const Grid> grids, int64_t k) { return grids[grids.size() == 1 ? 0 : static_cast<size_t>(k)]; }

}  // namespace

bool fits_byte(const Grid& g) { return is_valid(g) && static_cast<int64_t>(g.qmax) - std::min(g.qmin, 0) <= 255; }

Grid byte_grid(const Grid& g) {
  DETENT_CHECK(fits_byte(g), "integer execution: the grid with scale ", g.scale, " and codes ", g.qmin, "..", g.qmax, " does not fit a byte");
  const int32_t shift = -std::min(g.qmin, 0);
  return {g.scale, g.zero_point + shift, g.qmin + shift, g.qmax + shift};
}

Var to_codes(const Var& x, const Grid& grid) {
  const Grid g = byte_grid(grid);
  if (x.coded() && x.coded()->grid == g) return x;
  return fake_quant_ste(x, {&g, 1}, {.outer = 1, .channels = 1, .inner = x.shape().elements()}, EmitCodes::yes);
}

std::string refusal(const FilterSource& f) {
  const int64_t k = f.w.dim(0), row = f.w.elements() / std::max<int64_t>(1, k);
  if (f.w_grids.size() != 1 && static_cast<int64_t>(f.w_grids.size()) != k) return text(f.w_grids.size(), " weight grids for ", k, " output channels");
  for (const Grid& g : f.w_grids) {
    if (g.zero_point != 0 || g.qmin < -128 || g.qmax > 127) return text("weight codes ", g.qmin, "..", g.qmax, " with zero point ", g.zero_point, "; -128..127 with zero point 0 can be multiplied");
  }
  const double reach = std::max(f.input.qmax - f.input.zero_point, f.input.zero_point - f.input.qmin);
  const float* w = f.w.data<float>();
  const float* b = f.bias.defined() ? f.bias.data<float>() : nullptr;
  for (int64_t i = 0; i < k; ++i) {
    const float s = grid_of(f.w_grids, i).scale;
    double sum = 0.0;
    for (int64_t j = i * row; j < (i + 1) * row; ++j) sum += std::fabs(static_cast<double>(weight_code(w[j], s)));
    const double bias = b ? std::fabs(std::rint(static_cast<double>(b[i] / (f.input.scale * s)))) : 0.0;
    if (!(sum * reach + bias <= 2147483647.0)) return text("sums of output channel ", i, " may reach ", sum * reach + bias, ", beyond int32");
  }
  return {};
}

IntegerFilter prepare_filter(const FilterSource& source) {
  constexpr const char* kOp = "prepare_filter";
  const Shape& w_shape = source.w.shape();
  DETENT_CHECK(w_shape.rank() == 4 || w_shape.rank() == 2, kOp, ": w ", w_shape, " has neither four axes nor two");
  DETENT_CHECK(source.w.device().type == DeviceType::cpu, kOp, ": w must be on the cpu");
  if (source.bias.defined()) ops::check_shape(kOp, "bias", source.bias.shape(), Shape{w_shape[0]});
  IntegerFilter f;
  f.input = byte_grid(source.input);
  f.output = byte_grid(source.output);
  const std::string refused = refusal(source);
  DETENT_CHECK(refused.empty(), kOp, ": ", refused);
  f.geometry = filter_geometry(source);
  f.spec = source.spec;
  f.w_shape = w_shape;
  f.range = code_range(source.spec.clamp_min, source.spec.clamp_max, f.output);
  const int64_t k = w_shape[0], row = source.w.elements() / std::max<int64_t>(1, k);
  Tensor codes(Shape{source.w.elements()}, DType::s8), offset(Shape{k}, DType::i32), multiplier(Shape{k});
  const float* w = source.w.data<float>();
  const float* b = source.bias.defined() ? source.bias.data<float>() : nullptr;
  int8_t* q = codes.data<int8_t>();
  for (int64_t i = 0; i < k; ++i) {
    const float s = grid_of(source.w_grids, i).scale;
    int32_t sum = 0;
    for (int64_t j = i * row; j < (i + 1) * row; ++j) sum += q[j] = static_cast<int8_t>(weight_code(w[j], s));
    offset.data<int32_t>()[i] = wrapping_add(b ? accumulator_bias(b[i], f.input.scale, s) : 0, wrapping_multiply(-f.input.zero_point, sum));
    multiplier.data<float>()[i] = accumulator_scale(f.input.scale, s, f.output.scale).multiplier;
  }
  const IntegerKernels& kernels = integer_kernels(kOp, Device{});
  f.packed = Tensor(Shape{std::max<int64_t>(1, kernels.packed_bytes(f.geometry))}, DType::u8);
  kernels.pack(f.geometry, q, f.packed.raw());
  f.offset = offset;
  f.multiplier = multiplier;
  return f;
}

Var conv2d_integer(const Var& x, const IntegerFilter& f) {
  constexpr const char* kOp = "conv2d_integer";
  const Coded& in = coded_argument(kOp, "x", x);
  DETENT_CHECK(in.grid == f.input, kOp, ": x lies on a grid with scale ", in.grid.scale, " and zero point ", in.grid.zero_point, ", the layer was prepared for ", f.input.scale, " and ", f.input.zero_point);
  const bool dense = f.w_shape.rank() == 2;
  const Shape shape = dense ? dense_shape(x.shape(), f.w_shape) : conv2d_shape(x.shape(), f.w_shape, f.spec);
  Tensor y(shape, DType::u8, x.device());
  IntegerConv2dArgs args{.geometry = f.geometry};
  ConvGeometry& g = args.geometry;
  g.n = dense ? 1 : x.shape()[0];
  g.h = dense ? 1 : x.shape()[1];
  g.w = dense ? x.shape()[0] : x.shape()[2];
  g.oh = dense ? 1 : shape[1];
  g.ow = dense ? x.shape()[0] : shape[2];
  args.x = in.codes.data<uint8_t>();
  args.x_zero = f.input.zero_point;
  args.packed = f.packed.raw();
  args.offset = f.offset.data<int32_t>();
  args.multiplier = f.multiplier.data<float>();
  args.grid = f.output;
  args.range = f.range;
  args.y = y.data<uint8_t>();
  integer_kernels(kOp, x.device()).conv2d(args);
  return Var(Coded{y, f.output});
}

Var add_integer(const Var& a, const Var& b, float lo, float hi, const Grid& output) {
  constexpr const char* kOp = "add_integer";
  const Coded &ca = coded_argument(kOp, "a", a), &cb = coded_argument(kOp, "b", b);
  ops::check_shape(kOp, "b", b.shape(), a.shape());
  const Grid grid = byte_grid(output);
  Tensor y(a.shape(), DType::u8, a.device());
  integer_kernels(kOp, a.device()).add({.n = y.elements(),
                                        .a = ca.codes.data<uint8_t>(),
                                        .b = cb.codes.data<uint8_t>(),
                                        .formula = integer_add(ca.grid, cb.grid, grid),
                                        .range = code_range(lo, hi, grid),
                                        .y = y.data<uint8_t>()});
  return Var(Coded{y, grid});
}

Var regrid_codes(const Var& x, std::span<const uint8_t> table, const Grid& output) {
  constexpr const char* kOp = "regrid_codes";
  const Coded& in = coded_argument(kOp, "x", x);
  DETENT_CHECK(table.size() == 256, kOp, ": a table of ", table.size(), " entries, 256 wanted");
  Tensor y(x.shape(), DType::u8, x.device());
  integer_kernels(kOp, x.device()).regrid(in.codes.data<uint8_t>(), table.data(), y.data<uint8_t>(), y.elements());
  return Var(Coded{y, byte_grid(output)});
}

}  // namespace detent
