// From values or from (min, max) to an encoding.
#include <cmath>

#include "cases.h"
#include "detent/autograd/ops.h"
#include "detent/core/error.h"
#include "detent/quant/estimators/search.h"
#include "detent/quant/quantizer.h"

namespace detent::conformance {
namespace {

// Fixed bounds go the way they go in the library: through a Quantizer.
Range constrained(const Case& c, const std::vector<std::vector<double>>& batches) {
  const Json& bounds = c.params().at("encoding_constraints");
  quant::QuantizerSpec spec;
  spec.grid = c.spec();
  spec.scheme = quant::parse_scheme(c.params().at("scheme").get<std::string>());
  if (bounds.contains("min")) spec.fixed_min = bounds.at("min").get<double>();
  if (bounds.contains("max")) spec.fixed_max = bounds.at("max").get<double>();
  quant::Quantizer quantizer("x", spec);
  quantizer.observe();
  for (const auto& b : batches) quantizer.apply({}, Var(to_tensor(b)));
  quantizer.finish_observing();
  return quantizer.ranges().at(0);
}

Json compute_encoding(const Case& c) {
  const auto batches = batches_of(c);
  const GridSpec spec = c.spec();
  const Range range = c.has("encoding_constraints") ? constrained(c, batches) : calibrate(c, batches, {}, -1).at(0);
  Json got = encoding_json(range, spec);
  const double min = got["min"], max = got["max"], delta = got["delta"];
  got["finite"] = std::isfinite(min) && std::isfinite(max) && std::isfinite(delta);
  got["min_lt_max"] = min < max;
  got["delta_gt_0"] = static_cast<float>(delta) > 0.0f;
  got["delta_is_max_over"] = std::round(max / delta * 1e6) * 1e-6;
  if (c.expected().contains("tf_min")) {  // the same data under the tf scheme
    Json tf = c.json;
    tf["params"]["scheme"] = "tf";
    const Json other = encoding_json(calibrate(Case{tf, c.datasets}, batches, {}, -1).at(0), spec);
    got["tf_min"] = other["min"];
    got["tf_max"] = other["max"];
  }
  return got;
}

Range minmax(const Case& c) { return {c.inputs().at("min").get<double>(), c.inputs().at("max").get<double>()}; }

Json encoding_from_minmax(const Case& c) { return encoding_json(minmax(c), c.spec()); }

// A calibrated pair: the wider gate.
Json encoding_from_calibrated_minmax(const Case& c) { return encoding_json(gate_range(minmax(c), c.params().value("min_range", kMinCalibrationWidth)), c.spec()); }

Json partial_encoding(const Case& c) {
  const double delta = c.inputs().at("delta"), offset = c.inputs().at("offset");
  const GridSpec spec = c.spec();
  if (delta == 0.0) return encoding_json(minmax(c), spec);
  // Given scale and offset: the range the grid covers.
  const GridSolution shape = solve_grid({spec.symmetric ? -1.0 : 0.0, 1.0}, spec);
  const Grid g{static_cast<float>(delta), static_cast<int32_t>(shape.qmin - static_cast<int64_t>(offset)), shape.qmin, shape.qmax};
  DETENT_CHECK(is_valid(g), "scale ", delta, " and offset ", offset, " make no grid");
  const Range r = effective_range(g);
  return {{"min", r.min}, {"max", r.max}, {"delta", static_cast<double>(g.scale)}, {"offset", static_cast<int64_t>(g.qmin) - g.zero_point}, {"bw", spec.bits}};
}

Json regrid_minmax(const Case& c) {
  Json got = encoding_json(minmax(c), c.spec());
  const Grid g = grid_from_range(minmax(c), c.spec());
  got["qdq_of_-100"] = fake_quantize(-100.0f, g);
  got["qdq_of_100"] = fake_quantize(100.0f, g);
  return got;
}

Json per_channel_encodings(const Case& c) {
  const std::vector<double> x = c.numbers("x");
  const Shape shape = shape_of(c);
  const int axis = c.params().at("axis");
  Json got;
  got["encodings"] = Json::array();
  for (const Range& r : calibrate(c, {x}, shape, axis)) got["encodings"].push_back(encoding_json(r, c.spec()));
  if (c.expected().contains("split")) {
    const std::vector<int64_t> ones(static_cast<size_t>(shape[axis]), 1);
    got["split"] = Json::array();
    for (const Var& slice : split(Var(to_tensor(x, shape)), axis, ones)) {
      got["split"].push_back(to_doubles(slice.dense()));
      const auto e = slice.shape().extents();
      got["split_shape"] = std::vector<int64_t>(e.begin(), e.end());
    }
  }
  return got;
}

// A block along the last axis of a matrix is a channel of the matrix seen with one row for each block.
Json blockwise_encodings(const Case& c) {
  const Shape shape = shape_of(c);
  const int64_t size = c.params().at("block_size");
  DETENT_CHECK(shape.rank() == 2 && c.params().at("block_axis") == 1 && c.params().at("channel_axis") == 0 && shape[1] % size == 0, "blocks along another axis");
  Json got{{"encodings", Json::array()}};
  for (const Range& r : calibrate(c, {c.numbers("x")}, Shape{shape.elements() / size, size}, 0)) got["encodings"].push_back(encoding_json(r, c.spec()));
  return got;
}

Json num_steps(const Case& c) {
  Json got{{"n", Json::array()}, {"p", Json::array()}};
  for (const Json& j : c.params().at("cases")) {
    GridSpec spec;
    spec.bits = j.at("bw"), spec.symmetric = j.at("symmetric"), spec.strict = j.at("strict");
    got["n"].push_back(0);
    got["p"].push_back(quant::grid_steps(spec));
  }
  return got;
}

}  // namespace

void add_encoding_runners(Runners& r) {
  r["compute_encoding"] = compute_encoding;
  r["encoding_from_minmax"] = encoding_from_minmax;
  r["encoding_from_minmax_tf"] = encoding_from_calibrated_minmax;
  r["encoding_from_minmax_tfe"] = encoding_from_calibrated_minmax;
  r["delta_offset_from_minmax"] = encoding_from_minmax;
  r["fill_encoding"] = encoding_from_minmax;
  r["partial_encoding"] = partial_encoding;
  r["regrid_minmax"] = regrid_minmax;
  r["per_channel_encodings"] = per_channel_encodings;
  r["blockwise_encodings"] = blockwise_encodings;
  r["num_steps"] = num_steps;
}

}  // namespace detent::conformance
