// Cases that are not run, and why: predicates on op and parameters. Each reason is a place where AIMET contradicts itself and Detent takes the other side
// (docs: rounding, one shared grid), or a technique Detent does not have.
#include <cmath>

#include "cases.h"
#include "detent/core/backend.h"
#include "detent/core/error.h"

namespace detent::conformance {
namespace {

bool is_one_of(const Case& c, std::initializer_list<const char*> ops) {
  for (const char* op : ops) {
    if (c.op() == op) return true;
  }
  return false;
}

// Does x on this grid lie on a tie that rounding half away from zero (of the code on the unsigned grid, as AIMET's core) and half to even (of x/scale, as
// ONNX) send to different codes?
bool tie_rounds_apart(double x, const Grid& g) {
  const double t = static_cast<double>(static_cast<float>(x)) / static_cast<double>(g.scale);
  const double code = t + g.zero_point;
  if (code <= g.qmin || code >= g.qmax) return false;
  if (std::fabs(std::fabs(t - std::trunc(t)) - 0.5) > 1e-6 * std::fmax(1.0, std::fabs(t))) return false;
  const double lower = std::floor(t);
  const bool even_goes_up = std::fmod(lower, 2.0) != 0.0;  // the even neighbour is above
  const bool away_goes_up = code - g.qmin > 0.0;           // codes counted from the lower end are positive
  return even_goes_up != away_goes_up;
}

// Forward ops of AIMET's C++ core, which round values half away.
bool value_tie(const Case& c) {
  const Json& p = c.params();
  std::vector<Grid> grids;
  ChannelView view{1, 1, 1};
  if (is_one_of(c, {"qdq_encoding"})) {
    grids.push_back(grid_of_delta(p.at("delta"), p.at("offset"), p.at("bw")));
  } else if (is_one_of(c, {"qdq_minmax", "quantize_minmax"})) {
    grids.push_back(grid_of_minmax(p.at("min"), p.at("max"), p.at("bw")));
  } else if (is_one_of(c, {"calibrate_and_qdq", "calibrate_and_quantize"})) {
    grids.push_back(grid_from_range(calibrate(c, {c.numbers(c.op() == "calibrate_and_qdq" ? "calib" : "x")}, {}, -1).at(0), c.spec()));
  } else if (is_one_of(c, {"per_channel_qdq", "per_channel_quantize_packed"})) {
    const int axis = p.at("axis");
    const Shape shape = shape_of(c);
    for (const Range& r : calibrate(c, {c.numbers("x")}, shape, axis)) grids.push_back(grid_from_range(r, c.spec()));
    view.channels = shape[axis];
    for (int i = axis + 1; i < shape.rank(); ++i) view.inner *= shape[i];
  } else {
    return false;
  }
  const std::vector<double> x = c.numbers("x");
  for (size_t i = 0; i < x.size(); ++i) {
    if (tie_rounds_apart(x[i], grids[static_cast<size_t>(static_cast<int64_t>(i) / view.inner % view.channels)])) return true;
  }
  return false;
}

// Backward of AIMET's TensorFlow quantizers: the zero point is computed in float32 with half to even; on a tie of -min/delta it is another one than the
// forward's. Only the gradients of the bounds see it.
bool zero_point_tie(const Case& c) {
  if (!is_one_of(c, {"range_learning_backward", "range_learning_backward_per_channel"}) || c.params().value("symmetric", false)) return false;
  if (!c.expected().contains("grad_min") && !c.expected().contains("grad_max")) return false;
  const std::vector<double> min = flatten(c.params().at("encoding_min")), max = flatten(c.params().at("encoding_max"));
  const double steps = std::ldexp(1.0, c.params().at("bw").get<int>()) - 1.0;
  for (size_t i = 0; i < min.size(); ++i) {
    const double z = -min[i] * steps / (max.at(i) - min[i]);
    if (std::fabs(z - std::floor(z) - 0.5) < 1e-4) return true;
  }
  return false;
}

// A quantizer given by (min, max) that happens to have min == -max loses one level in AIMET's core, symmetric or not.
bool opposite_bounds(const Case& c) {
  if (!is_one_of(c, {"qdq_minmax", "quantize_minmax", "dequantize_minmax", "per_channel_qdq_minmax", "broadcast_qdq", "fill_encoding"})) return false;
  const Json& bounds = c.params().contains("min") ? c.params() : c.inputs();
  if (c.params().contains("delta") || !bounds.contains("min") || c.params().value("bw", 8) > 16) return false;
  const std::vector<double> min = flatten(bounds.at("min")), max = flatten(bounds.at("max"));
  for (size_t i = 0; i < min.size(); ++i) {
    if (min[i] == -max.at(i) && min[i] < 0.0) return true;
  }
  return false;
}

// Blocks of one row of scales each are channels of a reshaped tensor and run; LPBQ's shared scales and blocks that cut a reshaped tensor do not.
bool blockwise(const Case& c) { return c.op().starts_with("lpbq_") || (c.op() == "broadcast_qdq" && c.has("block_size")); }

struct Skip {
  const char* reason;
  bool (*applies)(const Case&);
};

constexpr Skip kSkips[] = {
    {"values on a tie round half to even (ONNX), AIMET's core rounds them half away", value_tie},
    {"the range gradient uses the forward's zero point, AIMET's backward another one in float32", zero_point_tie},
    {"opposite bounds keep all levels, AIMET's core drops one when min == -max", opposite_bounds},
    {"LPBQ weights and blocks across axes are not supported", blockwise},
};

}  // namespace

const char* skip_reason(const Case& c) {
  for (const Skip& s : kSkips) {
    try {
      if (s.applies(c)) return s.reason;
    } catch (const std::exception&) {
      // A malformed case is not skipped: running it reports what is wrong.
    }
  }
  return nullptr;
}

}  // namespace detent::conformance
