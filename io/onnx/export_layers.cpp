// How each layer is written as ONNX nodes.
#include <algorithm>
#include <cmath>

#include "detent/io/onnx/exporter.h"
#include "detent/io/weights.h"

namespace detent::io::onnx {

using nn::Value;

namespace {

std::vector<int64_t> dims_of(const Shape& s) { return {s.extents().begin(), s.extents().end()}; }

std::vector<int64_t> pads_of(const Padding2d& p) { return {p.top, p.left, p.bottom, p.right}; }

// [out, h*w*c] -> [out, c*h*w].
std::vector<float> columns_to_file_order(const std::vector<float>& w, const Shape& hwc) {
  const int64_t pixels = hwc[1] * hwc[2], channels = hwc[3], in = pixels * channels;
  std::vector<float> out(w.size());
  for (size_t row = 0; row < w.size(); row += static_cast<size_t>(in)) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t c = 0; c < channels; ++c) out[row + static_cast<size_t>(c * pixels + p)] = w[row + static_cast<size_t>(p * channels + c)];
    }
  }
  return out;
}

// The windows of ceil_mode without it, by more padding behind: readers disagree on how many windows it adds and on what these average. Unchanged where the padding would be
// as large as the kernel (dilations), which ONNX Runtime refuses.
PoolSpec in_floor_mode(const PoolSpec& s, const Shape& x, const Shape& y) {
  const auto behind = [&](int i, int64_t before, int64_t after) {
    return std::max(after, (y[1 + i] - 1) * s.stride[i] + s.dilation[i] * (s.kernel[i] - 1) + 1 - x[1 + i] - before);
  };
  PoolSpec f = s;
  f.ceil_mode = false;
  f.padding.bottom = behind(0, s.padding.top, s.padding.bottom);
  f.padding.right = behind(1, s.padding.left, s.padding.right);
  return f.padding == s.padding || (f.padding.bottom < s.kernel[0] && f.padding.right < s.kernel[1]) ? f : s;
}

bool has_clamp(const Conv2dSpec& s) { return s.clamp_min != -kInfinity || s.clamp_max != kInfinity; }

}  // namespace

std::string Exporter::grid_scales(const std::string& base, std::span<const Grid> grids, bool per_channel) {
  std::vector<float> scales;
  for (const Grid& g : grids) scales.push_back(g.scale);
  const int64_t n[] = {static_cast<int64_t>(scales.size())};
  const std::string name = b_.fresh(base + "_scale");
  b_.floats(name, per_channel ? std::span<const int64_t>(n) : std::span<const int64_t>(), scales);
  return name;
}

// A parameter as the file holds it: floats, or codes behind DequantizeLinear. `values` is in the file's order; its first axis is the channel axis of the Graph too.
Exporter::Stored Exporter::weight(nn::Parameter& p, const std::vector<int64_t>& dims, const std::vector<float>& values) {
  quant::Quantizer* q = acting(p.transform);
  b_.keep(p.name);
  if (!q) {
    b_.floats(p.name, dims, values);
    return {p.name, {}};
  }
  const std::vector<Grid> grids = q->grids();
  const bool per_channel = q->spec().channel_axis >= 0;
  const size_t per_grid = values.size() / grids.size();
  std::vector<int32_t> codes(values.size()), zeros;
  for (size_t i = 0; i < values.size(); ++i) codes[i] = detent::quantize(values[i], grids[i / per_grid]);
  for (const Grid& g : grids) zeros.push_back(g.zero_point);
  const ElementType type = type_of(grids[0], p.name);
  b_.integers(p.name, type, dims, codes);
  if (!fills_type(grids[0], type)) b_.metadata(std::string(kCodesKey) + p.name, text(grids[0].qmin, ",", grids[0].qmax));
  const std::string scales = grid_scales(p.name, grids, per_channel), zero = b_.fresh(p.name + "_zero_point"), out = b_.fresh(p.name + "_dq");
  const int64_t n[] = {static_cast<int64_t>(grids.size())};
  b_.integers(zero, type, per_channel ? std::span<const int64_t>(n) : std::span<const int64_t>(), zeros);
  NodeBuilder node = b_.node("DequantizeLinear", out, {p.name, scales, zero}, out);
  if (per_channel) node.set("axis", int64_t{0});
  return {out, grids};
}

// int32 on the accumulator's grid when input and weight lie on grids: the same rounding as the forward pass (nn/layers/linear.cpp).
std::string Exporter::bias(nn::Parameter& p, Value x, const Stored& w) {
  std::vector<float> values = p.value.to_vector<float>();
  const int64_t dims[] = {static_cast<int64_t>(values.size())};
  b_.keep(p.name);
  if (quant::Quantizer* q = acting(p.transform)) {
    const std::vector<Grid>& grids = q->grids();
    for (size_t k = 0; k < values.size(); ++k) values[k] = fake_quantize(values[k], grids[grids.size() == 1 ? 0 : k]);
  }
  const auto& gx = grids_[static_cast<size_t>(x.id)];
  if (!gx || w.grids.empty()) {
    b_.floats(p.name, dims, values);
    return p.name;
  }
  std::vector<Grid> scales;
  std::vector<int32_t> codes;
  for (size_t k = 0; k < values.size(); ++k) {
    const float s = gx->scale * w.grids[w.grids.size() == 1 ? 0 : k].scale;
    const double q = std::rint(static_cast<double>(values[k] / s));
    codes.push_back(static_cast<int32_t>(std::clamp(q, -2147483648.0, 2147483647.0)));
    if (k == 0 || w.grids.size() > 1) scales.push_back({.scale = s});
  }
  const bool per_channel = w.grids.size() > 1;
  b_.integers(p.name, kInt32, dims, codes);
  const std::string scale = grid_scales(p.name, scales, per_channel), out = b_.fresh(p.name + "_dq");
  NodeBuilder node = b_.node("DequantizeLinear", out, {p.name, scale}, out);
  if (per_channel) node.set("axis", int64_t{0});
  return out;
}

bool Exporter::write_weighted(const Node& n, const std::string& out) {
  if (auto* conv = dynamic_cast<nn::Conv2d*>(n.module.get())) {
    const Conv2dSpec& s = conv->options().spec;
    DETENT_CHECK(!has_clamp(s), "onnx export: node \"", n.name, "\": its clamp is fused; export the Graph as built");
    const Tensor oihw = ohwi_to_oihw(conv->weight.value);
    std::vector<std::string> inputs{in(n.inputs[0])};
    const Stored w = weight(conv->weight, dims_of(oihw.shape()), oihw.to_vector<float>());
    inputs.push_back(w.name);
    if (conv->bias.value.defined()) inputs.push_back(bias(conv->bias, n.inputs[0], w));
    const int64_t kernel[] = {conv->options().kernel_h, conv->options().kernel_w};
    b_.node("Conv", n.name, inputs, out).set("dilations", s.dilation).set("group", s.groups).set("kernel_shape", kernel).set("pads", pads_of(s.padding)).set("strides", s.stride);
    return true;
  }
  if (auto* dense = dynamic_cast<nn::Dense*>(n.module.get())) {
    const auto flat = flat_.find(n.inputs[0].id);
    std::vector<float> values = dense->weight.value.to_vector<float>();
    if (flat != flat_.end()) values = columns_to_file_order(values, flat->second);
    std::vector<std::string> inputs{raw_in(n.inputs[0])};
    const Stored w = weight(dense->weight, dims_of(dense->weight.value.shape()), values);
    inputs.push_back(w.name);
    if (dense->bias.value.defined()) inputs.push_back(bias(dense->bias, n.inputs[0], w));
    b_.node("Gemm", n.name, inputs, out).set("transB", int64_t{1});
    return true;
  }
  if (auto* norm = dynamic_cast<nn::BatchNorm*>(n.module.get())) {
    std::vector<std::string> inputs{in(n.inputs[0])};
    const int64_t dims[] = {norm->options().channels};
    const auto add = [&](const std::string& name, const Tensor& t) {
      b_.floats(b_.keep(name), dims, t.to_vector<float>());
      inputs.push_back(name);
    };
    add(norm->weight.name, norm->weight.value);
    add(norm->bias.name, norm->bias.value);
    add(n.name + ".running_mean", norm->running_mean);
    add(n.name + ".running_var", norm->running_var);
    b_.node("BatchNormalization", n.name, inputs, out).set("epsilon", norm->options().eps).set("momentum", 1.0f - norm->options().momentum);
    return true;
  }
  return false;
}

NodeBuilder Exporter::window(const char* op, const Node& n, const std::string& x, const PoolSpec& s, const std::string& out) {
  return b_.node(op, n.name, {x}, out).set("ceil_mode", int64_t{s.ceil_mode}).set("kernel_shape", s.kernel).set("pads", pads_of(s.padding)).set("strides", s.stride);
}

void Exporter::write_average_pool(const nn::AveragePool& pool, const Node& n, const std::string& out) {
  const PoolSpec& given = pool.spec();
  PoolSpec s = in_floor_mode(given, shape(n.inputs[0]), shape(n.output));
  s.count_include_pad = given.count_include_pad && !(given.padding == Padding2d{});
  std::string x = in(n.inputs[0]);
  if (s.count_include_pad && !(s.padding == given.padding)) {
    // The zeros of the padding count, what lies behind them does not.
    const Padding2d& p = given.padding;
    const int64_t pads[] = {0, 0, p.top, p.left, 0, 0, p.bottom, p.right};
    const std::string name = b_.fresh(n.name + "_padded");
    b_.node("Pad", name, {x, int64s(name + "_pads", pads)}, name);
    const auto& grid = grids_[static_cast<size_t>(n.inputs[0].id)];
    x = grid ? quantize(name, name, b_.fresh(name + "_qdq"), *grid, true) : name;
    s.padding = {0, 0, s.padding.bottom - p.bottom, s.padding.right - p.right};
    s.count_include_pad = false;
  }
  NodeBuilder node = window("AveragePool", n, x, s, out);
  node.set("count_include_pad", int64_t{s.count_include_pad});
  if (s.dilation[0] == 1 && s.dilation[1] == 1) return;
  b_.require_opset(19);
  node.set("dilations", s.dilation);
}

bool Exporter::write_pool(const Node& n, const std::string& out) {
  if (const auto* pool = dynamic_cast<const nn::MaxPool*>(n.module.get())) {
    const PoolSpec s = in_floor_mode(pool->spec(), shape(n.inputs[0]), shape(n.output));
    window("MaxPool", n, in(n.inputs[0]), s, out).set("dilations", s.dilation);
    return true;
  }
  if (const auto* pool = dynamic_cast<const nn::AveragePool*>(n.module.get())) {
    // A target's windowed pool has other arithmetic.
    if (pool->is_global(shape(n.inputs[0]))) {
      b_.node("GlobalAveragePool", n.name, {in(n.inputs[0])}, out);
    } else {
      write_average_pool(*pool, n, out);
    }
    return true;
  }
  if (dynamic_cast<const nn::GlobalAveragePool*>(n.module.get())) {
    b_.node("GlobalAveragePool", n.name, {in(n.inputs[0])}, out);
    return true;
  }
  if (const auto* resize = dynamic_cast<const nn::Resize*>(n.module.get())) {
    write_resize(*resize, n, out);
    return true;
  }
  return false;
}

void Exporter::write_resize(const nn::Resize& resize, const Node& n, const std::string& out) {
  const ResizeSpec& s = resize.options();
  static constexpr const char* kCoordinates[] = {"half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"};
  const Shape& x = shape(n.inputs[0]);
  const float scales[] = {1.0f, 1.0f, static_cast<float>(s.height) / static_cast<float>(x[1]), static_cast<float>(s.width) / static_cast<float>(x[2])};
  const auto exact = [](float scale, int64_t from, int64_t to) { return static_cast<double>(scale) * static_cast<double>(from) == static_cast<double>(to); };
  std::vector<std::string> inputs{in(n.inputs[0]), ""};
  if (exact(scales[2], x[1], s.height) && exact(scales[3], x[2], s.width)) {
    const int64_t dims[] = {4};
    inputs.push_back(b_.fresh(n.name + "_scales"));
    b_.floats(inputs.back(), dims, scales);
  } else {
    // A rounded scale may give another size or, next to a tie, another pixel. Sizes need the batch: with axes for two of them ONNX Runtime does not load quantized networks.
    const std::string batch = b_.fresh(n.name + "_batch"), sizes = b_.fresh(n.name + "_sizes");
    const int64_t chw[] = {x[3], s.height, s.width};
    b_.node("Shape", batch, {graph_.value(graph_.inputs()[0]).name}, batch).set("start", int64_t{0}).set("end", int64_t{1});
    b_.node("Concat", sizes, {batch, int64s(n.name + "_chw", chw)}, sizes).set("axis", int64_t{0});
    inputs.insert(inputs.end(), {"", sizes});
  }
  b_.node("Resize", n.name, inputs, out)
      .set("coordinate_transformation_mode", kCoordinates[static_cast<int>(s.coordinates)])
      .set("mode", s.mode == ResizeMode::nearest ? "nearest" : "linear")
      .set("nearest_mode", s.nearest_floor ? "floor" : "round_prefer_floor");
}

void Exporter::write_activation(const Node& n, const Pointwise& op, const std::string& x, const std::string& out) {
  switch (op.kind) {
    case PointwiseKind::identity: b_.node("Identity", n.name, {x}, out); break;
    case PointwiseKind::clip: {
      if (op.a == 0.0f && op.b == kInfinity) {
        b_.node("Relu", n.name, {x}, out);
        break;
      }
      const std::string lo = std::isfinite(op.a) ? scalar(n.name + "_min", op.a) : "", hi = std::isfinite(op.b) ? scalar(n.name + "_max", op.b) : "";
      b_.node("Clip", n.name, hi.empty() ? std::vector<std::string>{x, lo} : std::vector<std::string>{x, lo, hi}, out);
      break;
    }
    case PointwiseKind::leaky_relu: b_.node("LeakyRelu", n.name, {x}, out).set("alpha", op.a); break;
    case PointwiseKind::sigmoid: b_.node("Sigmoid", n.name, {x}, out); break;
    case PointwiseKind::tanh: b_.node("Tanh", n.name, {x}, out); break;
    case PointwiseKind::hard_sigmoid: b_.node("HardSigmoid", n.name, {x}, out).set("alpha", op.a).set("beta", op.b); break;
    case PointwiseKind::hard_swish: b_.node("HardSwish", n.name, {x}, out); break;
    case PointwiseKind::silu: {
      const std::string gate = b_.fresh(n.name + "_sigmoid");
      b_.node("Sigmoid", gate, {x}, gate);
      b_.node("Mul", n.name, {x, gate}, out);
      break;
    }
    case PointwiseKind::softplus: b_.node("Softplus", n.name, {x}, out); break;
    case PointwiseKind::affine: {
      const std::string scaled = b_.fresh(n.name + "_scaled");
      b_.node("Mul", scaled, {x, scalar(n.name + "_factor", op.a)}, scaled);
      b_.node("Add", n.name, {scaled, scalar(n.name + "_offset", op.b)}, out);
      break;
    }
  }
}

bool Exporter::write_pointwise(const Node& n, const std::string& out) {
  if (const auto* act = dynamic_cast<const nn::Activation*>(n.module.get())) {
    const auto flat = flat_.find(n.inputs[0].id);
    if (flat != flat_.end()) flat_[n.output.id] = flat->second;
    write_activation(n, act->op(), raw_in(n.inputs[0]), out);
    return true;
  }
  if (const auto* binary = dynamic_cast<const nn::Binary*>(n.module.get())) {
    const int a = shape(n.inputs[0]).rank(), b = shape(n.inputs[1]).rank();
    DETENT_CHECK(a == b, "onnx export: node \"", n.name, "\": operands of ranks ", a, " and ", b, "; give them one rank");
    b_.node(binary->describe().op.c_str(), n.name, {in(n.inputs[0]), in(n.inputs[1])}, out);
    return true;
  }
  if (const auto* operand = dynamic_cast<const nn::ConstantOperand*>(n.module.get())) {
    write_constant_operand(*operand, n, out);
    return true;
  }
  if (const auto* prelu = dynamic_cast<const nn::PRelu*>(n.module.get())) {
    std::vector<int64_t> dims{prelu->weight.value.elements()};
    for (int i = 2; i < shape(n.output).rank(); ++i) dims.push_back(1);
    b_.floats(b_.keep(prelu->weight.name), dims, prelu->weight.value.to_vector<float>());
    b_.node("PRelu", n.name, {in(n.inputs[0]), prelu->weight.name}, out);
    return true;
  }
  if (dynamic_cast<const nn::Softmax*>(n.module.get())) {
    b_.node("Softmax", n.name, {in(n.inputs[0])}, out).set("axis", int64_t{shape(n.output).rank() >= 4 ? 1 : shape(n.output).rank() - 1});
    return true;
  }
  return false;
}

void Exporter::write_constant_operand(const nn::ConstantOperand& operand, const Node& n, const std::string& out) {
  const Tensor& c = operand.constant();
  const int rank = shape(n.output).rank();
  DETENT_CHECK(shape(n.inputs[0]).rank() == rank, "onnx export: node \"", n.name, "\": its constant has a higher rank than its input");
  // Leading ones up to the value's rank, then the file's order of axes.
  std::vector<int64_t> ours(static_cast<size_t>(rank - c.rank()), 1);
  for (const int64_t d : c.shape().extents()) ours.push_back(d);
  const std::string name = b_.keep(operand.stored_name.empty() ? n.name + ".constant" : operand.stored_name);
  Tensor stored = c.reshape(Shape(std::span<const int64_t>(ours)));
  if (rank >= 4) stored = transpose(Var(stored), layout(rank)).dense();
  b_.floats(name, dims_of(stored.shape()), stored.to_vector<float>());
  std::vector<std::string> inputs{in(n.inputs[0]), name};
  if (operand.constant_first()) std::swap(inputs[0], inputs[1]);
  b_.node(operand.describe().op.c_str(), n.name, inputs, out);
}

bool Exporter::write_moving(const Node& n, const std::string& out) {
  if (dynamic_cast<const nn::Flatten*>(n.module.get())) {
    write_flatten(n, out);
  } else if (dynamic_cast<const nn::Reshape*>(n.module.get())) {
    write_reshape(n, out);
  } else if (const auto* pad = dynamic_cast<const nn::Pad*>(n.module.get())) {
    write_pad(*pad, n, out);
  } else if (const auto* slice = dynamic_cast<const nn::Slice*>(n.module.get())) {
    write_slice(*slice, n, out);
  } else if (const auto* concat = dynamic_cast<const nn::Concat*>(n.module.get())) {
    const int rank = shape(n.output).rank();
    const std::vector<int> l = layout(rank);
    const int axis = concat->axis() < 0 ? concat->axis() + rank : concat->axis();
    std::vector<std::string> inputs;
    for (const Value v : n.inputs) inputs.push_back(in(v));
    b_.node("Concat", n.name, inputs, out).set("axis", int64_t{std::find(l.begin(), l.end(), axis) - l.begin()});
  } else if (const auto* t = dynamic_cast<const nn::Transpose*>(n.module.get())) {
    const std::vector<int> l = layout(shape(n.output).rank());
    std::vector<int64_t> perm;
    for (const int axis : l) perm.push_back(std::find(l.begin(), l.end(), t->permutation()[static_cast<size_t>(axis)]) - l.begin());
    b_.node("Transpose", n.name, {in(n.inputs[0])}, out).set("perm", perm);
  } else {
    return false;
  }
  return true;
}

void Exporter::write_flatten(const Node& n, const std::string& out) {
  const Shape& x = shape(n.inputs[0]);
  if (x.rank() > 4) return write_reshape(n, out);
  if (x.rank() == 4 && x[1] * x[2] > 1 && x[3] > 1) flat_[n.output.id] = x;
  b_.node("Flatten", n.name, {in(n.inputs[0])}, out).set("axis", int64_t{1});
}

// Between ranks the order of elements must be the Graph's. It is the file's too when the spatial axes stay in front or are 1.
void Exporter::write_reshape(const Node& n, const std::string& out) {
  const Shape &x = shape(n.inputs[0]), &y = shape(n.output);
  const auto plain = [](const Shape& s) { return s.rank() < 4 || s[1] * s[2] == 1; };
  const bool kept = x.rank() >= 4 && y.rank() >= 4 && x[1] == y[1] && x[2] == y[2];
  std::string from = in(n.inputs[0]);
  std::vector<int64_t> dims = file_dims(y);
  const bool direct = kept || (plain(x) && plain(y));
  if (!direct && x.rank() >= 4) {
    std::vector<int> back(static_cast<size_t>(x.rank()));
    const std::vector<int> l = layout(x.rank());
    for (size_t j = 0; j < l.size(); ++j) back[static_cast<size_t>(l[j])] = static_cast<int>(j);
    from = transposed(from, n.name + "_channels_last", back);
  }
  if (!direct && y.rank() >= 4) {
    from = reshaped(from, n.name + "_reshaped", dims_of(y));
    const std::vector<int> l = layout(y.rank());
    const std::vector<int64_t> perm(l.begin(), l.end());
    b_.node("Transpose", n.name, {from}, out).set("perm", perm);
    return;
  }
  dims[0] = 0;
  b_.node("Reshape", n.name, {from, int64s(n.name + "_shape", dims)}, out);
}

void Exporter::write_pad(const nn::Pad& pad, const Node& n, const std::string& out) {
  std::vector<int64_t> pads;
  const std::vector<int> l = layout(shape(n.output).rank());
  for (const auto* side : {&pad.before(), &pad.after()}) {
    for (const int axis : l) pads.push_back((*side)[static_cast<size_t>(axis)]);
  }
  b_.node("Pad", n.name, {in(n.inputs[0]), int64s(n.name + "_pads", pads)}, out);
}

void Exporter::write_slice(const nn::Slice& slice, const Node& n, const std::string& out) {
  const int rank = shape(n.output).rank();
  const std::vector<int> l = layout(rank);
  std::vector<int64_t> starts, ends, axes, steps;
  for (const nn::Slice::Range& r : slice.ranges()) {
    const int axis = r.axis < 0 ? r.axis + rank : r.axis;
    axes.push_back(std::find(l.begin(), l.end(), axis) - l.begin());
    starts.push_back(r.start);
    ends.push_back(r.end);
    steps.push_back(r.step);
  }
  b_.node("Slice", n.name, {in(n.inputs[0]), int64s(n.name + "_starts", starts), int64s(n.name + "_ends", ends), int64s(n.name + "_axes", axes), int64s(n.name + "_steps", steps)}, out);
}

}  // namespace detent::io::onnx
