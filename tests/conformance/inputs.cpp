#include <algorithm>
#include <cmath>
#include <random>

#include "cases.h"
#include "detent/autograd/ops.h"
#include "detent/core/error.h"
#include "detent/quant/estimators/estimator.h"
#include "detent/quant/scheme.h"

namespace detent::conformance {
namespace {

std::vector<double> generate(const Json& g) {
  const auto seed = g.at("seed").get<uint32_t>();
  const auto n = g.at("n").get<size_t>();
  const std::string distribution = g.at("distribution").get<std::string>();
  DETENT_CHECK(n <= 10'000'000, "a generator of ", n, " values");
  std::mt19937 engine(seed);
  std::vector<double> out(n);
  if (distribution == "std::normal_distribution<float>") {
    std::normal_distribution<float> d(g.at("mean").get<float>(), g.at("stddev").get<float>());
    for (double& v : out) v = static_cast<double>(d(engine));
  } else if (distribution == "std::normal_distribution<double>") {
    std::normal_distribution<double> d(g.at("mean").get<double>(), g.at("stddev").get<double>());
    for (double& v : out) v = d(engine);
  } else {
    fail("unknown generator ", distribution);
  }
  return out;
}

void flatten_into(const Json& nested, std::vector<double>& out) {
  if (nested.is_array()) {
    for (const Json& j : nested) flatten_into(j, out);
  } else {
    out.push_back(nested.get<double>());
  }
}

Json nest_from(const std::vector<double>& values, const Json& like, size_t& at) {
  if (!like.is_array()) return values.at(at++);
  Json out = Json::array();
  for (const Json& j : like) out.push_back(nest_from(values, j, at));
  return out;
}

}  // namespace

std::vector<double> flatten(const Json& nested) {
  std::vector<double> out;
  flatten_into(nested, out);
  return out;
}

Json nest(const std::vector<double>& values, const Json& like) {
  size_t at = 0;
  return nest_from(values, like, at);
}

std::vector<int64_t> extents(const Json& nested) {
  std::vector<int64_t> out;
  for (const Json* j = &nested; j->is_array(); j = &j->at(0)) {
    out.push_back(static_cast<int64_t>(j->size()));
    if (j->empty()) break;
  }
  return out;
}

Shape shape_of(const Case& c) {
  const auto extent = c.inputs().contains("shape") ? c.inputs().at("shape").get<std::vector<int64_t>>() : extents(c.inputs().at("x"));
  return Shape(extent);
}

std::vector<double> Case::numbers_of(const Json& value) const {
  std::vector<double> out;
  if (value.is_array() || value.is_number()) return flatten(value);
  if (value.contains("dataset")) {
    const Json& d = datasets.at(value.at("dataset").get<std::string>());
    out = flatten(d.is_array() ? d : d.at("data"));
  } else if (value.contains("generator")) {
    out = generate(value.at("generator"));
  } else if (value.contains("fill")) {
    out.assign(value.at("n").get<size_t>(), value.at("fill").get<double>());
  } else if (value.contains("range")) {
    for (double v = value.at("range").at(0); v < value.at("range").at(1).get<double>(); v += 1.0) out.push_back(v);
  } else {
    fail("unknown form of input ", value.dump().substr(0, 60));
  }
  if (value.contains("append")) {
    for (const double v : flatten(value.at("append"))) out.push_back(v);
  }
  if (value.contains("transform")) {
    const auto t = value.at("transform").get<std::string>();
    DETENT_CHECK(t == "max(x,0)", "unknown transform ", t);
    for (double& v : out) v = std::max(v, 0.0);
  }
  return out;
}

GridSpec Case::spec() const {
  GridSpec s;
  s.bits = params().at("bw").get<int>();
  s.symmetric = params().value("symmetric", false);
  s.strict = params().value("strict_symmetric", false);
  s.unsigned_symmetric = params().value("unsigned_symmetric", false);
  return s;
}

Tensor to_tensor(const std::vector<double>& values, const Shape& shape) {
  std::vector<float> f(values.size());
  for (size_t i = 0; i < f.size(); ++i) f[i] = static_cast<float>(values[i]);
  return Tensor::from<float>(shape, f);
}

Tensor to_tensor(const std::vector<double>& values) { return to_tensor(values, Shape{static_cast<int64_t>(values.size())}); }

std::vector<double> to_doubles(const Tensor& t) {
  const std::vector<float> f = t.to_vector<float>();
  return {f.begin(), f.end()};
}

Tensor to_ohwi(const std::vector<double>& oihw, const Shape& shape) {
  const int axes[] = {0, 2, 3, 1};
  return transpose(Var(to_tensor(oihw, shape)), axes).dense();
}

std::vector<double> to_oihw(const Tensor& ohwi) {
  const int axes[] = {0, 3, 1, 2};
  return to_doubles(transpose(Var(ohwi), axes).dense());
}

Json encoding_json(const Range& range, const GridSpec& spec) {
  const GridSolution g = solve_grid(range, spec);
  return {{"min", g.min}, {"max", g.max}, {"delta", g.scale}, {"offset", g.offset()}, {"bw", spec.bits}};
}

Grid grid_of_minmax(double min, double max, int bits) {
  GridSpec spec;
  spec.bits = bits;
  return grid_from_range({min, max}, spec);
}

Grid grid_of_delta(double delta, int64_t offset, int bits) {
  const Grid g{static_cast<float>(delta), static_cast<int32_t>(-offset), 0, static_cast<int32_t>((int64_t{1} << bits) - 1)};
  DETENT_CHECK(is_valid(g), "delta ", delta, " and offset ", offset, " make no grid");
  return g;
}

std::vector<std::vector<double>> batches_of(const Case& c) {
  std::vector<std::vector<double>> batches;
  if (c.inputs().contains("batches")) {
    for (const Json& b : c.inputs().at("batches")) batches.push_back(c.numbers_of(b));
  } else {
    batches.push_back(c.numbers("x"));
  }
  return batches;
}

std::vector<Range> calibrate(const Case& c, const std::vector<std::vector<double>>& batches, const Shape& shape, int axis) {
  quant::EstimatorOptions options;
  options.histogram = quant::HistogramPolicy::frozen;
  options.percentile = c.params().value("percentile", 100.0);
  const auto estimator = quant::make_estimator(quant::estimator_of(quant::parse_scheme(c.params().at("scheme").get<std::string>())), options);
  for (const std::vector<double>& batch : batches) {
    if (axis < 0) {
      estimator->observe(to_tensor(batch));
    } else {
      const Tensor x = to_tensor(batch, shape);
      estimator->observe(x, channel_view(x.shape(), axis));
    }
  }
  return estimator->ranges(c.spec());
}

}  // namespace detent::conformance
