// Values on a given or calibrated grid: codes and dequantized values.
#include <functional>

#include "cases.h"
#include "detent/autograd/ops.h"
#include "detent/core/error.h"
#include "detent/core/math/half.h"

namespace detent::conformance {
namespace {

std::vector<float> floats(const std::vector<double>& v) {
  std::vector<float> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) out[i] = static_cast<float>(v[i]);
  return out;
}

// Codes on the unsigned grid, or on the signed one ("shift to signed" subtracts 2^(bits-1)).
std::vector<double> codes(const std::vector<double>& x, const Grid& g, int bits, bool is_signed) {
  std::vector<double> out;
  const int64_t target = is_signed ? -(int64_t{1} << (bits - 1)) : 0;
  for (const float v : floats(x)) out.push_back(static_cast<double>(quantize(v, g) - static_cast<int64_t>(g.qmin) + target));
  return out;
}

std::vector<double> fake(const std::vector<double>& x, const Grid& g) { return to_doubles(fake_quant_ste(Var(to_tensor(x)), {&g, 1}, {1, 1, static_cast<int64_t>(x.size())}).dense()); }

Grid minmax_grid(const Case& c) { return grid_of_minmax(c.params().at("min"), c.params().at("max"), c.params().at("bw")); }

Json qdq_minmax(const Case& c) {
  const Json& p = c.params();
  const std::vector<double> x = c.numbers("x");
  const Grid g = minmax_grid(c);
  return {{"y", fake(x, g)}, {"q_unsigned", codes(x, g, p.at("bw"), false)}, {"encoding", encoding_json({p.at("min"), p.at("max")}, c.spec())}};
}

Json quantize_minmax(const Case& c) { return {{"q", codes(c.numbers("x"), minmax_grid(c), c.params().at("bw"), c.params().at("signed"))}}; }

Json dequantize_minmax(const Case& c) {
  const Grid g = minmax_grid(c);
  const int64_t base = c.params().value("signed", false) ? -(int64_t{1} << (c.params().at("bw").get<int>() - 1)) : 0;
  std::vector<double> y;
  for (const double q : c.numbers("q")) y.push_back(static_cast<double>(dequantize(static_cast<int32_t>(static_cast<int64_t>(q) - base + g.qmin), g)));
  return {{"y", y}};
}

Json qdq_encoding(const Case& c) {
  const Json& p = c.params();
  return {{"y", fake(c.numbers("x"), grid_of_delta(p.at("delta"), p.at("offset"), p.at("bw")))}};
}

Json calibrate_and_qdq(const Case& c) {
  const Range r = calibrate(c, {{}, c.numbers("calib")}, {}, -1).at(0);  // an empty batch first: it must not count
  const Json e = encoding_json(r, c.spec());
  return {{"y", fake(c.numbers("x"), grid_from_range(r, c.spec()))}, {"encoding_contains_zero", e["min"] <= 0.0 && e["max"] >= 0.0}};
}

Json calibrate_and_quantize(const Case& c) {
  const std::vector<double> x = c.numbers("x");
  const Range r = calibrate(c, {x}, {}, -1).at(0);
  return {{"q", codes(x, grid_from_range(r, c.spec()), c.params().at("bw"), c.params().value("signed", false))}, {"encoding", encoding_json(r, c.spec())}};
}

struct PerChannel {
  std::vector<Grid> grids;
  ChannelView view;
  Json encodings = Json::array();
};

PerChannel per_channel(const Case& c) {
  PerChannel out;
  const int axis = c.params().at("axis");
  for (const Range& r : calibrate(c, {c.numbers("x")}, shape_of(c), axis)) {
    out.grids.push_back(grid_from_range(r, c.spec()));
    out.encodings.push_back(encoding_json(r, c.spec()));
  }
  out.view = channel_view(shape_of(c), axis);
  return out;
}

Json per_channel_qdq(const Case& c) {
  const PerChannel p = per_channel(c);
  return {{"y", to_doubles(fake_quant_ste(Var(to_tensor(c.numbers("x"), shape_of(c))), p.grids, p.view).dense())}, {"encodings", p.encodings}};
}

Json per_channel_quantize_packed(const Case& c) {
  const PerChannel p = per_channel(c);
  const std::vector<double> x = c.numbers("x");
  std::vector<double> q;
  for (size_t i = 0; i < x.size(); ++i) {
    const Grid& g = p.grids[static_cast<size_t>(static_cast<int64_t>(i) / p.view.inner % p.view.channels)];
    q.push_back(codes({x[i]}, g, c.params().at("bw"), c.params().value("signed", false))[0]);
  }
  return {{"q", q}, {"encodings", p.encodings}};
}

Json per_channel_qdq_minmax(const Case& c) {
  const Json& p = c.params();
  const std::vector<double> min = flatten(p.at("min")), max = flatten(p.at("max"));
  std::vector<Grid> grids;
  for (size_t i = 0; i < min.size(); ++i) grids.push_back(grid_of_minmax(min[i], max.at(i), p.at("bw")));
  const Shape shape = shape_of(c);
  const Var y = fake_quant_ste(Var(to_tensor(c.numbers("x"), shape)), grids, channel_view(shape, p.at("axis")));
  return {{"y", nest(to_doubles(y.dense()), c.inputs().at("x"))}};
}

// The grid of every element, the encodings being broadcast over the shape.
Json broadcast_qdq(const Case& c) {
  const Json& p = c.params();
  const std::vector<double> x = c.numbers("x"), min = flatten(p.at("min")), max = flatten(p.at("max"));
  const auto grid_shape = p.at("encoding_shape").get<std::vector<int64_t>>();
  const Shape shape = shape_of(c);
  DETENT_CHECK(static_cast<int>(grid_shape.size()) == shape.rank(), "the encodings have rank ", grid_shape.size(), ", x ", shape.rank());
  std::vector<double> y;
  for (size_t i = 0; i < x.size(); ++i) {
    int64_t rest = static_cast<int64_t>(i), stride = 1, at = 0;
    for (int d = shape.rank() - 1; d >= 0; --d) {
      const auto extent = grid_shape[static_cast<size_t>(d)];
      if (extent != 1) at += rest % shape[d] * stride;
      rest /= shape[d];
      stride *= extent;
    }
    const auto k = static_cast<size_t>(at);
    const int bits = p.value("bw", 8);
    const Grid g = p.contains("delta") ? grid_of_delta(flatten(p.at("delta")).at(k), static_cast<int64_t>(flatten(p.at("offset")).at(k)), bits) : grid_of_minmax(min.at(k), max.at(k), bits);
    y.push_back(static_cast<double>(fake_quantize(static_cast<float>(x[i]), g)));
  }
  return {{"y", y}};
}

// A scale for every block of block_size elements (-1: the whole axis), symmetric about zero.
Json blockwise_quantize(const Case& c) {
  const Json& p = c.params();
  DETENT_CHECK(p.at("offset") == 0 && p.at("signed") == true, "blocks with an offset or unsigned");
  const Shape shape = shape_of(c);
  const auto block = p.at("block_size").get<std::vector<int64_t>>(), blocks = extents(p.at("scale"));
  const std::vector<double> scale = flatten(p.at("scale")), x = c.numbers("x");
  const int bits = p.at("bw");
  std::vector<double> q, y;
  for (size_t i = 0; i < x.size(); ++i) {
    int64_t rest = static_cast<int64_t>(i), stride = 1, at = 0;
    for (int d = shape.rank() - 1; d >= 0; --d) {
      const auto k = static_cast<size_t>(d);
      at += rest % shape[d] / (block.at(k) < 0 ? shape[d] : block.at(k)) * stride;
      rest /= shape[d];
      stride *= blocks.at(k);
    }
    const Grid g{static_cast<float>(scale.at(static_cast<size_t>(at))), 0, signed_qmin(bits, false), signed_qmax(bits)};
    q.push_back(quantize(static_cast<float>(x[i]), g));
    y.push_back(static_cast<double>(fake_quantize(static_cast<float>(x[i]), g)));
  }
  return {{"q", nest(q, c.inputs().at("x"))}, {"y", nest(y, c.inputs().at("x"))}};
}

Json fp16_roundtrip(const Case& c) {
  std::vector<double> y;
  for (const float v : floats(c.numbers("x"))) y.push_back(static_cast<double>(round_to_half(v)));
  return {{"y", y}};
}

// x W + b with a quantized weight; W is [in][out].
Json dense_forward_quantized(const Case& c) {
  DETENT_CHECK(c.params().at("weight") == "asymmetric per-tensor" && c.params().at("bias") == "float" && c.params().at("output") == "float", "other settings than per-tensor weights");
  const Json& weight = c.inputs().at("W");
  const Range r = calibrate(c, {flatten(weight)}, {}, -1).at(0);
  const int swap[] = {1, 0};
  const Tensor w = to_tensor(flatten(weight), Shape(extents(weight)));
  const Grid g = grid_from_range(r, c.spec());
  const Var q = fake_quant_ste(transpose(Var(w), swap), {&g, 1}, {1, 1, w.elements()});
  const Var b(to_tensor(c.numbers("b")));
  return {{"y", nest(to_doubles(dense(Var(to_tensor(c.numbers("x"), shape_of(c))), q, &b).dense()), c.expected().at("y"))}};
}

// NHWC x, HWIO weights quantized per output channel.
Json conv2d_forward(const Case& c) {
  const std::string setting = c.params().at("weight");
  const Json& x = c.inputs().at("x_nhwc");
  const Json& w = c.inputs().at("W_hwio");
  const int axes[] = {3, 0, 1, 2};
  Var weight = transpose(Var(to_tensor(flatten(w), Shape(extents(w)))), axes);
  if (setting == "per-channel asymmetric 8-bit tf") {
    Json params = c.json;
    params["params"] = {{"scheme", "tf"}, {"bw", 8}};
    const Case eight{params, c.datasets};
    std::vector<Grid> grids;
    for (const Range& r : calibrate(eight, {to_doubles(weight.dense())}, weight.shape(), 0)) grids.push_back(grid_from_range(r, eight.spec()));
    weight = fake_quant_ste(weight, grids, channel_view(weight.shape(), 0));
  } else {
    DETENT_CHECK(setting == "float", "weights as ", setting);
  }
  const Var b(to_tensor(c.numbers("b")));
  const Var y = conv2d(Var(to_tensor(flatten(x), Shape(extents(x)))), weight, &b);
  return {{"y_nhwc", nest(to_doubles(y.dense()), c.expected().at("y_nhwc"))}};
}

}  // namespace

void add_quantize_runners(Runners& r) {
  r["qdq_minmax"] = qdq_minmax;
  r["quantize_minmax"] = quantize_minmax;
  r["dequantize_minmax"] = dequantize_minmax;
  r["qdq_encoding"] = qdq_encoding;
  r["calibrate_and_qdq"] = calibrate_and_qdq;
  r["calibrate_and_quantize"] = calibrate_and_quantize;
  r["per_channel_qdq"] = per_channel_qdq;
  r["per_channel_quantize_packed"] = per_channel_quantize_packed;
  r["per_channel_qdq_minmax"] = per_channel_qdq_minmax;
  r["broadcast_qdq"] = broadcast_qdq;
  r["blockwise_quantize"] = blockwise_quantize;
  r["fp16_roundtrip"] = fp16_roundtrip;
  r["dense_forward_quantized"] = dense_forward_quantized;
  r["conv2d_forward"] = conv2d_forward;
}

}  // namespace detent::conformance
