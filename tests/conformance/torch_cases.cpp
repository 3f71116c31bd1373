// What AIMET's torch package defines: affine grids given by scale and offset, growing histograms and the searches on them.
#include <algorithm>

#include "cases.h"
#include "detent/autograd/ops.h"
#include "detent/core/backend.h"
#include "detent/core/error.h"
#include "detent/quant/estimators/search.h"

namespace detent::conformance {
namespace {

struct Affine {
  std::vector<Grid> grids;
  ChannelView view;
};

// offset is added to the code: the zero point is its negative. One grid, or one per row.
Affine affine(const Case& c) {
  const Json& p = c.params();
  const std::vector<double> scale = flatten(p.at("scale")), offset = flatten(p.at("offset"));
  const Shape shape = shape_of(c);
  Affine a;
  for (size_t i = 0; i < scale.size(); ++i) {
    a.grids.push_back({static_cast<float>(scale[i]), static_cast<int32_t>(-offset.at(i)), p.at("qmin").get<int32_t>(), p.at("qmax").get<int32_t>()});
  }
  a.view = scale.size() > 1 ? channel_view(shape, 0) : ChannelView{1, 1, shape.elements()};
  DETENT_CHECK(static_cast<int64_t>(scale.size()) == a.view.channels, scale.size(), " scales for ", a.view.channels, " rows");
  return a;
}

struct Backward {
  std::vector<double> dx, scale_sum, clip_sum;
};

Backward backward(const Affine& a, const Tensor& x, const Tensor& dy) {
  Tensor dx(x.shape());
  Backward b;
  b.scale_sum.resize(a.grids.size());
  b.clip_sum.resize(a.grids.size());
  FakeQuantBackwardArgs args;
  args.view = a.view;
  args.x = x.data<float>();
  args.dy = dy.data<float>();
  args.grids = a.grids.data();
  args.dx = dx.data<float>();
  args.scale_sum = b.scale_sum.data();
  args.clip_sum = b.clip_sum.data();
  detent::backend({}).kernels().fake_quant_backward(args);
  b.dx = to_doubles(dx);
  return b;
}

Json affine_qdq(const Case& c) {
  const Json& nesting = c.inputs().at("x");
  const Affine a = affine(c);
  const Tensor x = to_tensor(c.numbers("x"), shape_of(c));
  const std::string dtype = c.params().value("dtype", "float32");
  DETENT_CHECK(dtype == "float32" || dtype == "bfloat16", "values of type ", dtype);  // the grids of the bfloat16 cases are exact in it
  std::vector<double> q, mask;
  const std::vector<float> values = x.to_vector<float>();
  for (size_t i = 0; i < values.size(); ++i) {
    q.push_back(quantize(values[i], a.grids[static_cast<size_t>(static_cast<int64_t>(i) / a.view.inner % a.view.channels)]));
  }
  for (const double d : backward(a, x, Tensor::full(x.shape(), 1.0f)).dx) mask.push_back(d == 0.0 ? 1.0 : 0.0);
  const std::vector<double> y = to_doubles(fake_quant_ste(Var(x), a.grids, a.view).dense());
  return {{"q", nest(q, nesting)}, {"y", nest(y, nesting)}, {"out_of_range_mask", nest(mask, nesting)}};
}

Json affine_qdq_backward(const Case& c) {
  const Affine a = affine(c);
  const Backward b = backward(a, to_tensor(c.numbers("x"), shape_of(c)), to_tensor(c.numbers("grad_out"), shape_of(c)));
  std::vector<double> doffset;
  for (size_t i = 0; i < a.grids.size(); ++i) doffset.push_back(b.clip_sum[i] * static_cast<double>(a.grids[i].scale));
  return {{"grad_x", nest(b.dx, c.inputs().at("x"))}, {"grad_scale", nest(b.scale_sum, c.params().at("scale"))}, {"grad_offset", nest(doffset, c.params().at("offset"))}};
}

Range extremes(const std::vector<double>& x) {
  const Tensor t = to_tensor(x);
  const std::vector<double> f = to_doubles(t);
  const auto [lo, hi] = std::minmax_element(f.begin(), f.end());
  return {*lo, *hi};
}

quant::GrowingHistogram histogram(const std::vector<std::vector<double>>& batches, int bins) {
  quant::GrowingHistogram h(bins);
  for (const auto& b : batches) h.add(to_tensor(b), 0, static_cast<int64_t>(b.size()), extremes(b));
  return h;
}

Json range_json(const Range& r) { return {{"min", r.min}, {"max", r.max}}; }

int64_t steps_of(const Case& c) { return c.params().at("num_steps").get<int64_t>(); }

// The spec with so many steps: 2^b - 1, or one less when strict.
GridSpec spec_of_steps(const Case& c) {
  GridSpec spec;
  spec.symmetric = c.params().at("symmetric");
  const int64_t levels = steps_of(c) + 1;
  spec.strict = levels % 2 != 0;
  spec.bits = 0;
  while ((int64_t{1} << spec.bits) < levels) ++spec.bits;
  DETENT_CHECK(quant::grid_steps(spec) == steps_of(c), steps_of(c), " steps are no grid");
  return spec;
}

Json minmax_v2(const Case& c) { return range_json(quant::torch_range(extremes(c.numbers("x")), steps_of(c), c.params().at("symmetric"))); }

Json histogram_v2(const Case& c) {
  Json got{{"after", Json::array()}};
  std::vector<std::vector<double>> batches;
  for (const auto& b : batches_of(c)) {
    batches.push_back(b);
    const quant::Histogram h = histogram(batches, c.params().at("num_bins")).h;
    std::vector<double> edges;
    for (int i = 0; i <= h.bins(); ++i) edges.push_back(h.edge(i));
    got["after"].push_back({{"hist", h.counts}, {"edges", edges}});
  }
  return got;
}

Json percentile_v2(const Case& c) {
  const quant::GrowingHistogram g = histogram({c.numbers("x")}, c.params().at("num_bins"));
  return range_json(quant::torch_range(quant::percentile_range(g.h, g.seen, c.params().at("percentile")), steps_of(c), c.params().at("symmetric")));
}

Json sqnr_v2(const Case& c) {
  const quant::GrowingHistogram g = histogram({c.numbers("x")}, c.params().value("num_bins", 2048));
  quant::SqnrOptions options;
  options.gamma = c.params().value("gamma", options.gamma);
  const GridSpec spec = spec_of_steps(c);
  return range_json(effective_range(grid_from_range(quant::sqnr_range(g.h, g.seen, spec, options), spec)));
}

Json sqnr_v2_candidates(const Case& c) {
  quant::SqnrOptions options;
  options.delta_candidates = c.params().at("delta_candidates");
  Json got{{"deltas", Json::array()}};
  for (const quant::Candidate& k : quant::sqnr_candidates({c.inputs().at("min"), c.inputs().at("max")}, steps_of(c), spec_of_steps(c), options)) {
    got["deltas"].push_back(k.delta);
    got["offset"] = k.offset;
  }
  return got;
}

}  // namespace

void add_torch_runners(Runners& r) {
  r["affine_qdq"] = affine_qdq;
  r["affine_qdq_backward"] = affine_qdq_backward;
  r["minmax_v2"] = minmax_v2;
  r["histogram_v2"] = histogram_v2;
  r["percentile_v2"] = percentile_v2;
  r["sqnr_v2"] = sqnr_v2;
  r["sqnr_v2_candidates"] = sqnr_v2_candidates;
}

}  // namespace detent::conformance
