// The conformance runner's parts: a case, its inputs, the runners by op and the skips. Runners call the library and return what it computed;
// compare.cpp holds that against what the case expects.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "detent/core/math/quant_math.h"
#include "detent/core/tensor.h"

namespace detent::conformance {

using Json = nlohmann::json;

struct Case {
  const Json& json;
  const Json& datasets;
  const Json& inputs() const { return json.at("inputs"); }
  const Json& params() const { return json.at("params"); }
  const Json& expected() const { return json.at("expected"); }
  std::string op() const { return json.at("op").get<std::string>(); }

  /// inputs[key] as numbers: a list (nested or not), a dataset, a generator, {fill,n} or {range}; with its transform.
  std::vector<double> numbers(const std::string& key) const { return numbers_of(inputs().at(key)); }
  std::vector<double> numbers_of(const Json& value) const;
  bool has(const char* key) const { return params().contains(key); }
  /// bw, symmetric, strict_symmetric, unsigned_symmetric.
  GridSpec spec() const;
};

/// Every scalar of a nested list, in order, and its extents.
std::vector<double> flatten(const Json& nested);
std::vector<int64_t> extents(const Json& nested);
/// The flat values in the nesting of `like`.
Json nest(const std::vector<double>& values, const Json& like);
/// inputs.shape, or the extents of inputs.x.
Shape shape_of(const Case& c);

Tensor to_tensor(const std::vector<double>& values, const Shape& shape);
Tensor to_tensor(const std::vector<double>& values);
std::vector<double> to_doubles(const Tensor& t);
/// OIHW -> OHWI and back.
Tensor to_ohwi(const std::vector<double>& oihw, const Shape& shape);
std::vector<double> to_oihw(const Tensor& ohwi);

/// {min, max, delta, offset, bw} of what a range becomes.
Json encoding_json(const Range& range, const GridSpec& spec);
/// AIMET's (min, max, bits) at use: an asymmetric grid of the gated range.
Grid grid_of_minmax(double min, double max, int bits);
/// The grid of AIMET's delta and offset over `bits` unsigned bits.
Grid grid_of_delta(double delta, int64_t offset, int bits);
/// The batches of inputs.batches, or inputs.x as the only one.
std::vector<std::vector<double>> batches_of(const Case& c);
/// Ranges by the library's estimator with AIMET's frozen histogram; per channel when axis >= 0.
std::vector<Range> calibrate(const Case& c, const std::vector<std::vector<double>>& batches, const Shape& shape, int axis);

using Runner = Json (*)(const Case&);
using Runners = std::map<std::string, Runner>;
void add_encoding_runners(Runners& runners);
void add_quantize_runners(Runners& runners);
void add_learning_runners(Runners& runners);
void add_torch_runners(Runners& runners);
void add_tool_runners(Runners& runners);
void add_export_runners(Runners& runners);

/// Failures of `got` against the case's expected values under its tolerance, one line each.
std::vector<std::string> compare(const Case& c, const Json& got);

/// The reason why a case is not run, or null. The table of reasons is in skips.cpp.
const char* skip_reason(const Case& c);

}  // namespace detent::conformance
