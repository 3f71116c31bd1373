#include "detent/quant/fold_to_scale.h"

#include <algorithm>

#include "detent/nn/layers.h"
#include "detent/quant/accumulator.h"

namespace detent::quant {

Range scaled_range(const Range& r, double factor) { return factor < 0.0 ? Range{r.max * factor, r.min * factor} : Range{r.min * factor, r.max * factor}; }

void fold_to_scale(Tensor& weight, Tensor& bias, std::vector<Range>& ranges, const nn::NormTerms& norm) {
  const auto factor = [&](size_t i) { return norm.gamma[i] / norm.sigma[i]; };
  const size_t k = norm.sigma.size();
  DETENT_CHECK(ranges.size() == k || ranges.size() == 1, "fold to scale: ", ranges.size(), " ranges for ", k, " channels");
  if (ranges.size() == 1) {
    for (size_t i = 1; i < k; ++i) {
      DETENT_CHECK(factor(i) == factor(0), "fold to scale: one range for the whole weight cannot take factors ", factor(0), " and ", factor(i),
                   " of different channels; fold the batch norm before quantization, or quantize the weight per channel");
    }
  }
  nn::fold_backward(weight, bias, norm);
  for (size_t i = 0; i < ranges.size(); ++i) ranges[i] = scaled_range(ranges[i], factor(i));
}

namespace {

// Index of the next batch norm that folds, or -1.
int next_norm(const nn::Graph& g) {
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const nn::Graph::Node& n = g.nodes()[i];
    if (!dynamic_cast<const nn::BatchNorm*>(n.module.get())) continue;
    const nn::Graph::ValueInfo& in = g.value(n.inputs[0]);
    if (in.producer < 0 || in.transform || g.consumers(n.inputs[0]).size() != 1 || g.is_output(n.inputs[0])) continue;
    if (dynamic_cast<const nn::WeightedLayer*>(g.nodes()[static_cast<size_t>(in.producer)].module.get())) return static_cast<int>(i);
  }
  return -1;
}

Quantizer* on_grid(nn::Parameter& p) {
  auto* q = dynamic_cast<Quantizer*>(p.transform.get());
  return q && !q->is_float() && q->calibrated() ? q : nullptr;
}

void fold_weight(nn::WeightedLayer& layer, const nn::NormTerms& norm) {
  Quantizer* q = on_grid(layer.weight);
  if (!q) return nn::fold_backward(layer.weight.value, layer.bias.value, norm);
  const QuantizerState state = q->state();
  q->grids();  // takes over what the optimizer wrote last
  q->split_channels(0, layer.weight.value.dim(0));
  std::vector<Range> ranges = q->ranges();
  fold_to_scale(layer.weight.value, layer.bias.value, ranges, norm);
  q->require_scales({});
  q->set_ranges(ranges);
  if (state == QuantizerState::off) q->disable();
}

// The folded bias is another one: its range is made anew, in the state that the old one had.
void encode_bias(nn::Parameter& bias) {
  Quantizer* q = on_grid(bias);
  if (!q) return;
  const QuantizerState state = q->state();
  q->encode(bias.value);
  if (state == QuantizerState::frozen) q->freeze();
  if (state == QuantizerState::learning) q->learn();
  if (state == QuantizerState::off) q->disable();
}

// Quantizers within a scope as they are when on: what protects the accumulators needs the grids of all.
class EnabledScope {
 public:
  EnabledScope(QuantSim& sim, bool disabled) : sim_(sim), disabled_(disabled) {
    if (disabled_) sim_.enable();
  }
  ~EnabledScope() {
    try {
      if (disabled_) sim_.disable();
    } catch (const Error&) {  // of a range that is NaN, which stopped the folding already
    }
  }
  EnabledScope(const EnabledScope&) = delete;
  EnabledScope& operator=(const EnabledScope&) = delete;

 private:
  QuantSim& sim_;
  bool disabled_;
};

}  // namespace

std::vector<std::pair<std::string, std::string>> fold_batch_norms_to_scale(QuantSim& sim) {
  const NoGrad no_grad;
  const EnabledScope enabled(sim, !sim.saved_states_.empty() && !sim.has_ranges());
  nn::Graph& g = sim.graph();
  std::vector<std::pair<std::string, std::string>> folded;
  for (int i = next_norm(g); i >= 0; i = next_norm(g)) {
    const nn::Graph::Node& n = g.nodes()[static_cast<size_t>(i)];
    const nn::Value from = n.output, to = n.inputs[0];
    nn::Graph::Node& node = g.nodes()[static_cast<size_t>(g.value(to).producer)];
    auto& norm = static_cast<nn::BatchNorm&>(*n.module);
    auto& layer = static_cast<nn::WeightedLayer&>(*node.module);
    fold_weight(layer, nn::norm_terms(norm.weight.value, norm.bias.value, norm.running_mean, norm.running_var, static_cast<double>(norm.options().eps)));
    layer.ensure_bias();
    encode_bias(layer.bias);
    folded.emplace_back(node.name, n.name);
    g.value(to).transform = g.value(from).transform;
    for (Placement& p : sim.placements_) {
      for (std::string& c : p.consumers) {
        if (c == n.name) c = node.name;
      }
      if (p.parameter || !(p.value == from)) continue;
      p.name = g.value(to).name;
      p.producer = node.name;
      p.op = node.op;
      p.value = to;
      p.quantizer->rename(p.name);
    }
    g.value(from).transform = nullptr;
    g.bypass(i);
  }
  if (!folded.empty() && sim.options().protect_accumulators) protect_accumulators(g);
  return folded;
}

}  // namespace detent::quant
