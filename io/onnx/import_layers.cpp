// Layers with numbers of their own: convolution, dense, norms, activations, pools.
#include <algorithm>
#include <cmath>

#include "detent/io/onnx/exporter.h"
#include "detent/io/onnx/importer.h"
#include "detent/io/weights.h"

namespace detent::io::onnx {

using nn::Value;

namespace {

Tensor vector_of(const Constant& c, int64_t n, const char* what) {
  if (!c.is_float || static_cast<int64_t>(c.size()) != n) unsupported("its ", what, " has ", c.size(), " values, ", n, " are needed");
  return Tensor::from<float>(Shape{n}, c.floats);
}

float scalar_of(const Constant& c, const char* what) {
  if (c.size() != 1) unsupported("its ", what, " has ", c.size(), " values, one is needed");
  return c.is_float ? c.floats[0] : static_cast<float>(c.ints[0]);
}

void two(const std::vector<int64_t>& v, int64_t (&out)[2], const char* what) {
  if (v.empty()) return;
  if (v.size() != 2) unsupported(what, " of ", v.size(), " dimensions; only two-dimensional layers are supported");
  for (int i = 0; i < 2; ++i) {
    if (v[static_cast<size_t>(i)] < 1 || v[static_cast<size_t>(i)] > (1 << 16)) unsupported(what, " ", v[static_cast<size_t>(i)]);
    out[i] = v[static_cast<size_t>(i)];
  }
}

}  // namespace

// "layer1.0.conv1.weight" names its layer.
std::string Importer::weight_prefix(const NodeProto& n, const Constant& w) const {
  const std::string suffix = ".weight";
  if (w.name.size() > suffix.size() && w.name.ends_with(suffix)) return w.name.substr(0, w.name.size() - suffix.size());
  return n.name();
}

void Importer::name_parameter(nn::Parameter& p, const std::string& node, const Constant& c) {
  if (c.name.empty() || !parameter_names_.insert(c.name).second) return;
  if (c.name != node + "." + p.kind) p.given_name = c.name;
}

void Importer::keep_grids(const Constant& c, const std::string& parameter) {
  if (c.grids.empty() || (c.axis > 0 && c.grids.size() > 1)) return;
  quant::Encoding e;
  e.name = parameter;
  e.grids = c.grids;
  e.channel_axis = c.axis;
  const int64_t levels = static_cast<int64_t>(c.grids[0].qmax) - c.grids[0].qmin;
  for (e.bits = 2; (int64_t{1} << e.bits) <= levels;) ++e.bits;
  e.symmetric = std::all_of(c.grids.begin(), c.grids.end(), [](const Grid& g) { return g.zero_point == 0 && g.qmin < 0; });
  net_.encodings.params.push_back(std::move(e));
}

Padding2d Importer::padding(const NodeProto& n, const int64_t (&extent)[2], const int64_t (&kernel)[2], const int64_t (&stride)[2], const int64_t (&dilation)[2]) const {
  const std::string mode = attribute(n, "auto_pad", "NOTSET");
  std::vector<int64_t> p = attribute(n, "pads", std::vector<int64_t>{0, 0, 0, 0});
  if (mode == "SAME_UPPER" || mode == "SAME_LOWER") {
    for (size_t i = 0; i < 2; ++i) {
      const int64_t out = (extent[i] + stride[i] - 1) / stride[i], total = std::max<int64_t>(0, (out - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - extent[i]);
      p[i] = mode == "SAME_UPPER" ? total / 2 : total - total / 2;
      p[i + 2] = total - p[i];
    }
  } else if (mode == "VALID") {
    p = {0, 0, 0, 0};
  } else if (mode != "NOTSET") {
    unsupported("auto_pad ", mode.substr(0, 32));
  }
  if (p.size() != 4) unsupported("pads of ", p.size() / 2, " dimensions; only two-dimensional layers are supported");
  for (const int64_t v : p) {
    if (v < 0 || v > (1 << 16)) unsupported("a padding of ", v);
  }
  return {p[0], p[1], p[2], p[3]};
}

void Importer::import_conv(const NodeProto& n) {
  const Feature x = canonical(feature(n, 0));
  const Constant& w = constant(n, 1, "weight");
  const Constant* b = optional_constant(n, 2, "bias");
  if (x.axes.size() != 4 || w.dims.size() != 4 || !w.is_float)
    unsupported("a weight of rank ", w.dims.size(), " on an input of rank ", x.axes.size(), "; only two-dimensional convolutions are supported");
  nn::Conv2d::Options o;
  o.spec.groups = attribute(n, "group", int64_t{1});
  if (o.spec.groups < 1 || o.spec.groups > (1 << 20) || w.size() == 0) unsupported("group ", o.spec.groups, " with ", w.size(), " weights");
  o.in = w.dims[1] * o.spec.groups;
  o.out = w.dims[0];
  o.kernel_h = w.dims[2];
  o.kernel_w = w.dims[3];
  o.bias = b != nullptr;
  two(attribute(n, "strides", std::vector<int64_t>{}), o.spec.stride, "strides");
  two(attribute(n, "dilations", std::vector<int64_t>{}), o.spec.dilation, "dilations");
  const int64_t extent[2] = {shape(x)[1], shape(x)[2]}, kernel[2] = {o.kernel_h, o.kernel_w};
  o.spec.padding = padding(n, extent, kernel, o.spec.stride, o.spec.dilation);
  if (shape(x)[3] != o.in) unsupported("weights for ", o.in, " input channels on a value of ", shape(x)[3]);
  auto conv = std::make_unique<nn::Conv2d>(o);
  conv->weight.value = oihw_to_ohwi(Tensor::from<float>(Shape(std::span<const int64_t>(w.dims)), w.floats));
  if (b) conv->bias.value = vector_of(*b, o.out, "bias");
  const std::string name = node_name(weight_prefix(n, w), n.output(0));
  conv->weight.kind = "weight";
  conv->bias.kind = "bias";
  name_parameter(conv->weight, name, w);
  if (b) name_parameter(conv->bias, name, *b);
  nn::Conv2d& added = *conv;
  put(n.output(0), Feature{add_module(name, n.output(0), std::move(conv), {x.value}), x.axes, {}});
  keep_grids(w, added.weight.name);
}

void Importer::import_batch_norm(const NodeProto& n) {
  const Feature x = canonical(feature(n, 0));
  const Constant &scale = constant(n, 1, "scale"), &shift = constant(n, 2, "bias"), &mean = constant(n, 3, "mean"), &var = constant(n, 4, "variance");
  const int64_t c = shape(x)[-1];
  auto norm = std::make_unique<nn::BatchNorm>(nn::BatchNorm::Options{.channels = c, .eps = attribute(n, "epsilon", 1e-5f), .momentum = 1.0f - attribute(n, "momentum", 0.9f)});
  norm->weight.value = vector_of(scale, c, "scale");
  norm->bias.value = vector_of(shift, c, "bias");
  norm->running_mean = vector_of(mean, c, "mean");
  norm->running_var = vector_of(var, c, "variance");
  for (const float v : var.floats) {
    if (!(v >= 0.0f)) unsupported("its variance has the value ", v);
  }
  const std::string name = node_name(weight_prefix(n, scale), n.output(0));
  norm->weight.kind = "weight";
  norm->bias.kind = "bias";
  name_parameter(norm->weight, name, scale);
  name_parameter(norm->bias, name, shift);
  put(n.output(0), Feature{add_module(name, n.output(0), std::move(norm), {x.value}), x.axes, {}});
}

void Importer::add_dense(const NodeProto& n, Feature x, const Constant& w, bool transposed, float alpha, const Constant* bias, float beta) {
  if (w.dims.size() != 2 || !w.is_float || w.size() == 0) unsupported("a weight of rank ", w.dims.size());
  const int64_t out = w.dims[transposed ? 0 : 1], in = w.dims[transposed ? 1 : 0];
  if (x.axes.size() != 2 || dims(x)[1] != in) unsupported("a weight for ", in, " inputs on a value of rank ", x.axes.size(), " with ", shape(x)[-1]);
  // Columns into the Graph's order of elements when they follow a flattened feature map.
  std::vector<size_t> column(static_cast<size_t>(in));
  for (size_t i = 0; i < column.size(); ++i) {
    const auto pixels = x.flat() ? static_cast<size_t>(x.chw[1] * x.chw[2]) : 1, channels = x.flat() ? static_cast<size_t>(x.chw[3]) : column.size();
    column[i] = x.flat() ? i % channels * pixels + i / channels : i;
  }
  std::vector<float> values(w.size());
  for (int64_t k = 0; k < out; ++k) {
    for (int64_t i = 0; i < in; ++i) {
      const int64_t c = static_cast<int64_t>(column[static_cast<size_t>(i)]);
      values[static_cast<size_t>(k * in + i)] = alpha * w.floats[static_cast<size_t>(transposed ? k * in + c : c * out + k)];
    }
  }
  auto dense = std::make_unique<nn::Dense>(nn::Dense::Options{.in = in, .out = out, .bias = bias != nullptr});
  dense->weight.value = Tensor::from<float>({out, in}, values);
  if (bias) {
    std::vector<float> b = bias->floats;
    if (bias->size() == 1) b.assign(static_cast<size_t>(out), scalar_of(*bias, "bias"));
    if (static_cast<int64_t>(b.size()) != out || (bias->dims.size() > 1 && bias->dims.back() != out)) unsupported("its bias has ", b.size(), " values, ", out, " are needed");
    for (float& v : b) v *= beta;
    dense->bias.value = Tensor::from<float>({out}, b);
  }
  const std::string name = node_name(weight_prefix(n, w), n.output(0));
  dense->weight.kind = "weight";
  dense->bias.kind = "bias";
  name_parameter(dense->weight, name, w);
  if (bias) name_parameter(dense->bias, name, *bias);
  nn::Dense& added = *dense;
  put(n.output(0), Feature{add_module(name, n.output(0), std::move(dense), {x.value}), {0, 1}, {}});
  if (alpha != 1.0f) return;
  Constant codes;  // the channel axis of the Graph's weight is 0
  codes.grids = w.grids;
  if (w.grids.size() > 1) codes.axis = w.axis == (transposed ? 0 : 1) ? 0 : 1;
  keep_grids(codes, added.weight.name);
}

void Importer::import_gemm(const NodeProto& n) {
  if (attribute(n, "transA", int64_t{0}) != 0) unsupported("transA = 1");
  add_dense(n, feature(n, 0), constant(n, 1, "weight"), attribute(n, "transB", int64_t{0}) != 0, attribute(n, "alpha", 1.0f), optional_constant(n, 2, "bias"),
            attribute(n, "beta", 1.0f));
}

void Importer::import_matmul(const NodeProto& n) { add_dense(n, feature(n, 0), constant(n, 1, "second operand"), false, 1.0f, nullptr, 1.0f); }

void Importer::import_clip(const NodeProto& n) {
  if (narrows_grid(n)) return;
  const Constant *lo = optional_constant(n, 1, "min"), *hi = optional_constant(n, 2, "max");
  const float a = lo ? scalar_of(*lo, "min") : attribute(n, "min", -kInfinity), b = hi ? scalar_of(*hi, "max") : attribute(n, "max", kInfinity);
  if (!(a <= b)) unsupported("min ", a, " above max ", b);
  add_like<nn::Activation>(n, feature(n, 0), nn::clip_op(a, b));
}

void Importer::import_prelu(const NodeProto& n) {
  const Feature x = canonical(feature(n, 0));
  const Constant& slope = constant(n, 1, "slope");
  const auto count = static_cast<int64_t>(slope.size());
  if (!slope.is_float || (count != 1 && (count != shape(x)[-1] || *std::max_element(slope.dims.begin(), slope.dims.end()) != count)))
    unsupported("a slope for something else than channels");
  auto prelu = std::make_unique<nn::PRelu>(count);
  prelu->weight.value = Tensor::from<float>({count}, slope.floats);
  prelu->weight.kind = "weight";
  const std::string name = node_name(weight_prefix(n, slope), n.output(0));
  name_parameter(prelu->weight, name, slope);
  put(n.output(0), Feature{add_module(name, n.output(0), std::move(prelu), {x.value}), x.axes, {}});
}

void Importer::import_constant_operand(const NodeProto& n, BinaryOp op, const Feature& given, const Constant& c, bool constant_first) {
  const Feature x = plain(given);
  const size_t rank = x.axes.size();
  if (!c.is_float) unsupported("an integer constant");
  if (c.dims.size() > rank) unsupported("a constant of rank ", c.dims.size(), " on a value of rank ", rank);
  std::vector<int64_t> file(rank - c.dims.size(), 1), ours(rank, 1);
  file.insert(file.end(), c.dims.begin(), c.dims.end());
  if (file[0] != 1) unsupported("a constant that differs along the batch");
  if (c.size() == 0 || c.size() > size_t{1} << 24) unsupported("a constant of ", c.size(), " values");
  for (size_t i = 0; i < rank; ++i) {
    if (file[i] != 1 && file[i] != shape(x)[x.axes[i]]) unsupported("a constant of extent ", file[i], " on ", shape(x)[x.axes[i]]);
    ours[static_cast<size_t>(x.axes[i])] = file[i];
  }
  std::vector<int> permutation(rank);
  for (size_t i = 0; i < rank; ++i) permutation[static_cast<size_t>(x.axes[i])] = static_cast<int>(i);
  const Tensor t = transpose(Var(Tensor::from<float>(Shape(std::span<const int64_t>(file)), c.floats)), permutation).dense();
  auto module = std::make_unique<nn::ConstantOperand>(op, t, constant_first);
  if (!c.name.empty() && parameter_names_.insert(c.name).second) module->stored_name = c.name;
  put(n.output(0), Feature{add_module(node_name(n.name(), n.output(0)), n.output(0), std::move(module), {x.value}), x.axes, {}});
}

void Importer::import_binary(const NodeProto& n, BinaryOp op) {
  if (!has_input(n, 0) || !has_input(n, 1)) unsupported("an operand is missing");
  if (is_constant(n.input(1))) return import_constant_operand(n, op, feature(n, 0), constant(n.input(1)), false);
  if (is_constant(n.input(0))) return import_constant_operand(n, op, feature(n, 1), constant(n.input(0)), true);
  Feature a = feature(n, 0), b = feature(n, 1);
  const bool alike = a.axes == b.axes && a.chw == b.chw;
  if (!alike) {
    a = canonical(a);
    b = canonical(b);
  }
  if (a.axes.size() != b.axes.size()) unsupported("operands of ranks ", a.axes.size(), " and ", b.axes.size());
  put(n.output(0), Feature{add<nn::Binary>(n, n.name(), {a.value, b.value}, op), a.axes, a.chw});
}

PoolSpec Importer::pool_spec(const NodeProto& n, const Feature& x) {
  if (x.axes.size() != 4) unsupported("an input of rank ", x.axes.size(), "; only two-dimensional pools are supported");
  PoolSpec s;
  two(attribute(n, "kernel_shape", std::vector<int64_t>{}), s.kernel, "kernel_shape");
  two(attribute(n, "strides", std::vector<int64_t>{}), s.stride, "strides");
  two(attribute(n, "dilations", std::vector<int64_t>{}), s.dilation, "dilations");
  const int64_t extent[2] = {shape(x)[1], shape(x)[2]};
  s.padding = padding(n, extent, s.kernel, s.stride, s.dilation);
  s.ceil_mode = attribute(n, "ceil_mode", int64_t{0}) != 0;
  s.count_include_pad = attribute(n, "count_include_pad", int64_t{0}) != 0;
  return s;
}

void Importer::import_pool(const NodeProto& n) {
  const Feature x = canonical(feature(n, 0));
  const std::string& op = n.op_type();
  if (op == "GlobalAveragePool") return add_like<nn::GlobalAveragePool>(n, x);
  if (op == "GlobalMaxPool") {
    if (x.axes.size() != 4) unsupported("an input of rank ", x.axes.size());
    PoolSpec s;
    s.kernel[0] = shape(x)[1];
    s.kernel[1] = shape(x)[2];
    return add_like<nn::MaxPool>(n, x, s);
  }
  const PoolSpec s = pool_spec(n, x);
  if (op == "AveragePool") return add_like<nn::AveragePool>(n, x, s);
  if (n.output_size() > 1 && !n.output(1).empty()) unsupported("its indices are used");
  add_like<nn::MaxPool>(n, x, s);
}

void Importer::import_reduce_mean(const NodeProto& n) {
  const Feature x = canonical(feature(n, 0));
  std::vector<int64_t> axes = int64_list(n, 1, "axes", {});
  for (int64_t& a : axes) a += a < 0 ? static_cast<int64_t>(x.axes.size()) : 0;
  std::sort(axes.begin(), axes.end());
  if (x.axes.size() != 4 || axes != std::vector<int64_t>{2, 3}) unsupported("a mean over other axes than height and width");
  if (attribute(n, "keepdims", int64_t{1}) != 0) return add_like<nn::GlobalAveragePool>(n, x);
  const std::string name = node_name(n.name().empty() ? n.output(0) + "_pool" : n.name(), "");
  const Value pooled = add_module(name, tensor_names_.count(name) ? name + "_pooled" : name, std::make_unique<nn::GlobalAveragePool>(), {x.value});
  put(n.output(0), Feature{add_module(node_name(name + "_flatten", ""), n.output(0), std::make_unique<nn::Flatten>(), {pooled}), {0, 1}, {}});
}

void Importer::import_resize(const NodeProto& n) {
  const Feature x = canonical(feature(n, 0));
  if (x.axes.size() != 4) unsupported("an input of rank ", x.axes.size());
  const std::string mode = attribute(n, "mode", "nearest"), coordinates = attribute(n, "coordinate_transformation_mode", "half_pixel"),
                    nearest = attribute(n, "nearest_mode", "round_prefer_floor");
  ResizeSpec s;
  if (mode != "nearest" && mode != "linear") unsupported("mode ", mode.substr(0, 32));
  s.mode = mode == "nearest" ? ResizeMode::nearest : ResizeMode::bilinear;
  static constexpr const char* kCoordinates[] = {"half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"};
  const auto at = std::find(std::begin(kCoordinates), std::end(kCoordinates), coordinates);
  if (at == std::end(kCoordinates)) unsupported("coordinate_transformation_mode ", coordinates.substr(0, 32));
  s.coordinates = static_cast<ResizeCoordinates>(at - std::begin(kCoordinates));
  if (s.mode == ResizeMode::nearest && nearest != "floor" && nearest != "round_prefer_floor") unsupported("nearest_mode ", nearest.substr(0, 32));
  s.nearest_floor = nearest == "floor";
  if (attribute(n, "antialias", int64_t{0}) != 0) unsupported("antialias");
  std::vector<int64_t> axes = attribute(n, "axes", std::vector<int64_t>{0, 1, 2, 3});
  const std::vector<int64_t> from = dims(x);
  std::vector<int64_t> target = from;
  const Constant* sizes = has_input(n, 3) ? &constant(n, 3, "sizes") : nullptr;
  const Constant& c = sizes ? *sizes : constant(n, 2, "scales");
  if (c.size() != axes.size()) unsupported(c.size(), " sizes for ", axes.size(), " axes");
  for (size_t i = 0; i < axes.size(); ++i) {
    const int64_t a = axes[i] < 0 ? axes[i] + 4 : axes[i];
    if (a < 0 || a > 3) unsupported("axis ", axes[i]);
    int64_t& t = target[static_cast<size_t>(a)];
    if (sizes) {
      t = sizes->is_float ? 0 : sizes->ints[i];
    } else {
      const float v = c.is_float ? std::floor(c.floats[i] * static_cast<float>(t)) : 0.0f;  // in float, as ONNX Runtime
      t = v >= 1.0f && v <= 65536.0f ? static_cast<int64_t>(v) : 0;
    }
    if (t < 1 || t > 65536) unsupported("a size of ", t);
    if (sizes || s.coordinates == ResizeCoordinates::align_corners) continue;
    // The file's coordinates follow the scale, the Graph's the sizes.
    const double exact = static_cast<double>(c.floats[i]) * static_cast<double>(from[static_cast<size_t>(a)]), size = static_cast<double>(t);
    if (std::abs(exact - size) > 1e-6 * size) unsupported("a scale of ", c.floats[i], " gives ", exact, " pixels, which is no whole number; resize to sizes instead");
  }
  if (target[0] != from[0] || target[1] != from[1]) unsupported("it resizes batch or channels");
  s.height = target[2];
  s.width = target[3];
  add_like<nn::Resize>(n, x, s);
}

void Importer::import_softmax(const NodeProto& n) {
  const Feature x = canonical(feature(n, 0));
  const auto rank = static_cast<int64_t>(x.axes.size());
  const int64_t axis = attribute(n, "axis", int64_t{opset_ >= 13 ? -1 : 1}), at = axis < 0 ? axis + rank : axis;
  const bool last = at >= 0 && at < rank && x.axes[static_cast<size_t>(at)] == rank - 1;
  if (!last || (opset_ < 13 && rank != 2)) unsupported("axis ", axis, " of rank ", rank, "; only the channels are supported");
  add_like<nn::Softmax>(n, x);
}

const std::map<std::string, Importer::Import>& Importer::layer_imports() {
  const auto act = [](auto&& op) { return [op](Importer& i, const NodeProto& n) { i.add_like<nn::Activation>(n, i.feature(n, 0), op(i, n)); }; };
  const auto fixed = [&](const Pointwise& f) { return act([f](Importer&, const NodeProto&) { return f; }); };
  const auto binary = [](BinaryOp op) { return [op](Importer& i, const NodeProto& n) { i.import_binary(n, op); }; };
  static const std::map<std::string, Import> imports = {
      {"Conv", &Importer::import_conv},
      {"BatchNormalization", &Importer::import_batch_norm},
      {"Gemm", &Importer::import_gemm},
      {"MatMul", &Importer::import_matmul},
      {"Clip", &Importer::import_clip},
      {"PRelu", &Importer::import_prelu},
      {"MaxPool", &Importer::import_pool},
      {"AveragePool", &Importer::import_pool},
      {"GlobalMaxPool", &Importer::import_pool},
      {"GlobalAveragePool", &Importer::import_pool},
      {"ReduceMean", &Importer::import_reduce_mean},
      {"Resize", &Importer::import_resize},
      {"Softmax", &Importer::import_softmax},
      {"Reshape", &Importer::import_reshape},
      {"Flatten", &Importer::import_flatten},
      {"Squeeze", &Importer::import_squeeze},
      {"Unsqueeze", &Importer::import_squeeze},
      {"Transpose", &Importer::import_transpose},
      {"Slice", &Importer::import_slice},
      {"Split", &Importer::import_split},
      {"Pad", &Importer::import_pad},
      {"Concat", &Importer::import_concat},
      {"QuantizeLinear", &Importer::import_quantize},
      {"DequantizeLinear", &Importer::import_dequantize},
      {"Identity", &Importer::import_identity},
      {"Dropout", &Importer::import_identity},
      {"Cast", &Importer::import_cast},
      {"Relu", fixed(nn::relu_op())},
      {"Sigmoid", fixed({PointwiseKind::sigmoid})},
      {"Tanh", fixed({PointwiseKind::tanh})},
      {"Softplus", fixed({PointwiseKind::softplus})},
      {"HardSwish", fixed({PointwiseKind::hard_swish})},
      {"LeakyRelu", act([](Importer&, const NodeProto& n) {
         return Pointwise{PointwiseKind::leaky_relu, attribute(n, "alpha", 0.01f), 0.0f};
       })},
      {"HardSigmoid", act([](Importer&, const NodeProto& n) {
         return Pointwise{PointwiseKind::hard_sigmoid, attribute(n, "alpha", 0.2f), attribute(n, "beta", 0.5f)};
       })},
      {"Add", binary(BinaryOp::add)},
      {"Sub", binary(BinaryOp::sub)},
      {"Mul", binary(BinaryOp::mul)},
      {"Div", binary(BinaryOp::div)},
  };
  return imports;
}

void Importer::import_identity(const NodeProto& n) {
  if (n.output_size() > 1 && !readers(n.output(1)).empty()) unsupported("its mask is used");
  put(n.output(0), Feature(feature(n, 0)));
}

void Importer::import_cast(const NodeProto& n) {
  if (attribute(n, "to", int64_t{0}) != 1) unsupported("the operator is not supported");
  put(n.output(0), Feature(feature(n, 0)));
}

bool Importer::import_layer(const NodeProto& n) {
  const auto it = layer_imports().find(n.op_type());
  if (it == layer_imports().end()) return false;
  it->second(*this, n);
  return true;
}

}  // namespace detent::io::onnx
