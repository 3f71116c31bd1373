#include "detent/nn/passes/fold_batch_norm.h"

#include <algorithm>
#include <cmath>

#include "detent/nn/layers.h"
#include "detent/nn/passes/fold_math.h"

namespace detent::nn {
namespace {

constexpr double kTolerance = 1e-3;
constexpr int64_t kProbeSide = 32;  // what a fold does is decided by channels: of large feature maps a corner shows it

bool takes_fold(const Module& m, bool forward) {
  const auto* conv = dynamic_cast<const Conv2d*>(&m);
  if (conv && forward) return conv->options().spec.padding == Padding2d{} && conv->options().spec.groups == 1;
  return dynamic_cast<const WeightedLayer*>(&m);
}

struct Fold {
  int norm = -1, layer = -1;
  bool forward = false;
};

// How node i folds in that direction, or nothing.
Fold fold_of(const Graph& g, int i, bool forward) {
  const auto& nodes = g.nodes();
  const Graph::Node& n = nodes[static_cast<size_t>(i)];
  if (!dynamic_cast<const BatchNorm*>(n.module.get())) return {};
  const Value between = forward ? n.output : n.inputs[0];
  const std::vector<int> readers = g.consumers(between);
  if (readers.size() != 1 || g.is_output(between)) return {};
  const int layer = forward ? readers[0] : g.value(between).producer;
  if (layer < 0 || !takes_fold(*nodes[static_cast<size_t>(layer)].module, forward)) return {};
  return {i, layer, forward};
}

// The next batch norm that can fold; backward has priority, as in AIMET.
Fold next_fold(const Graph& g) {
  for (const bool forward : {false, true}) {
    for (int i = 0; i < static_cast<int>(g.nodes().size()); ++i) {
      if (const Fold f = fold_of(g, i, forward); f.norm >= 0) return f;
    }
  }
  return {};
}

// A fold would leave a quantizer of these with the range of another value.
void require_unquantized(const Graph& g, const Fold& f) {
  const Graph::Node &norm = g.nodes()[static_cast<size_t>(f.norm)], &layer = g.nodes()[static_cast<size_t>(f.layer)];
  const auto& weights = static_cast<const WeightedLayer&>(*layer.module);
  std::string quantized;
  for (const Parameter* p : {&weights.weight, &weights.bias}) {
    if (p->transform) quantized = p->name;
  }
  for (const Value v : {norm.inputs[0], norm.output}) {
    if (g.value(v).transform) quantized = g.value(v).name;
  }
  DETENT_CHECK(quantized.empty(), "fold_batch_norms: \"", norm.name, "\" folds into \"", layer.name, "\", but \"", quantized,
               "\" has a quantizer; fold before the QuantSim is made, or behind training with quant::fold_batch_norms_to_scale");
}

// Input of the layer (or of the batch norm before it) that the fold is checked on.
Tensor probe(const Shape& one, const Module& layer) {
  Shape s = one;
  s.set(0, 2);
  if (const auto* conv = dynamic_cast<const Conv2d*>(&layer)) {
    const Conv2d::Options& o = conv->options();
    const int64_t reach[] = {o.spec.dilation[0] * (o.kernel_h - 1) + 1, o.spec.dilation[1] * (o.kernel_w - 1) + 1};
    for (int i = 0; i < 2; ++i) s.set(1 + i, std::min(s[1 + i], std::max(kProbeSide, reach[i])));
  }
  std::vector<float> v(static_cast<size_t>(s.elements()));
  Rng rng(1, 0x70726f6265);
  rng.normals(v.data(), s.elements());
  return Tensor::from<float>(s, v);
}

double relative_move(const Tensor& before, const Tensor& after) {
  const std::vector<float> u = before.to_vector<float>(), v = after.to_vector<float>();
  double largest = 0.0, moved = 0.0;
  for (size_t i = 0; i < u.size(); ++i) {
    const double a = static_cast<double>(u[i]), b = static_cast<double>(v[i]);
    if (!std::isfinite(a) || !std::isfinite(b)) return INFINITY;
    largest = std::max(largest, std::fabs(a));
    moved = std::max(moved, std::fabs(a - b));
  }
  return moved == 0.0 ? 0.0 : moved / largest;
}

Tensor run(Module& m, const Tensor& x) {
  const Var in(x);
  return m.forward({.training = false}, {&in, 1}).dense();
}

}  // namespace

std::vector<std::pair<std::string, std::string>> fold_batch_norms(Graph& g) {
  const NoGrad no_grad;
  const FullPrecision full_precision(g.device());
  // All before any is folded.
  for (int i = 0; i < static_cast<int>(g.nodes().size()); ++i) {
    Fold f = fold_of(g, i, false);
    if (f.norm < 0) f = fold_of(g, i, true);
    if (f.norm >= 0) require_unquantized(g, f);
  }
  std::vector<std::pair<std::string, std::string>> folded;
  for (Fold f = next_fold(g); f.norm >= 0; f = next_fold(g)) {
    require_unquantized(g, f);  // of one behind another
    const Graph::Node& norm_node = g.nodes()[static_cast<size_t>(f.norm)];
    const Graph::Node& layer_node = g.nodes()[static_cast<size_t>(f.layer)];
    auto& norm = static_cast<BatchNorm&>(*norm_node.module);
    auto& layer = static_cast<WeightedLayer&>(*layer_node.module);

    const Graph::Node& first = f.forward ? norm_node : layer_node;
    const Tensor x = probe(g.value(first.inputs[0]).shape, layer).to(layer.weight.value.device());
    const Tensor before = f.forward ? run(layer, run(norm, x)) : run(norm, run(layer, x));

    const NormTerms terms = norm_terms(norm.weight.value, norm.bias.value, norm.running_mean, norm.running_var, static_cast<double>(norm.options().eps));
    const Tensor weight = layer.weight.value, bias = layer.bias.value;
    (f.forward ? fold_forward : fold_backward)(layer.weight.value, layer.bias.value, terms);
    const double move = relative_move(before, run(layer, x));
    if (!(move <= kTolerance)) {
      layer.weight.value = weight;
      layer.bias.value = bias;
      fail("fold_batch_norms: folding \"", norm_node.name, "\" into \"", layer_node.name, "\" would move its output by ", move, " of its largest value (limit ", kTolerance,
           "): its statistics do not fold in float32; re-estimate or leave them");
    }
    layer.ensure_bias();
    folded.emplace_back(layer_node.name, norm_node.name);
    g.bypass(f.norm);
  }
  return folded;
}

}  // namespace detent::nn
