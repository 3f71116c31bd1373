#include "detent/quant/accumulator.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "detent/nn/layers.h"

namespace detent::quant {
namespace {

using nn::Graph;
using nn::Value;

constexpr double kLimit = 2147483648.0 - 32768.0;  // 2^31 - 2^15: room for what rounding adds
const double kLeastFactor = std::exp2(-23.5);      // smaller requantization factors are misread by some targets

std::optional<Grid> grid_at(const Graph& g, Value v) {
  auto* q = dynamic_cast<Quantizer*>(g.value(v).transform.get());
  if (!q || q->is_float() || q->state() == QuantizerState::off || q->state() == QuantizerState::observing || q->grids().size() != 1) return std::nullopt;
  return q->grids().front();
}

// The grid a value lies on, its own or one passed on by operators that only move elements.
std::optional<Grid> grid_before(const Graph& g, Value v) {
  for (;;) {
    if (const auto grid = grid_at(g, v)) return grid;
    const int p = g.value(v).producer;
    if (p < 0 || g.value(v).transform || !g.nodes()[static_cast<size_t>(p)].module->preserves_grid()) return std::nullopt;
    v = g.nodes()[static_cast<size_t>(p)].inputs[0];
  }
}

// The grid a layer's sums are requantized to: its own output's, or that behind the one activation that reads it.
std::optional<Grid> grid_behind(const Graph& g, Value v) {
  for (;;) {
    if (g.value(v).transform) return grid_at(g, v);
    const std::vector<int> readers = g.consumers(v);
    if (readers.size() != 1 || g.is_output(v)) return std::nullopt;
    const Graph::Node& n = g.nodes()[static_cast<size_t>(readers[0])];
    if (!dynamic_cast<const nn::Activation*>(n.module.get())) return std::nullopt;
    v = n.output;
  }
}

Quantizer* acting(nn::Parameter& p) {
  auto* q = dynamic_cast<Quantizer*>(p.transform.get());
  return q && !q->is_float() && q->calibrated() && q->state() != QuantizerState::off ? q : nullptr;
}

}  // namespace

std::vector<IntegerLayer> integer_layers(Graph& g) {
  std::vector<IntegerLayer> layers;
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    Graph::Node& n = g.nodes()[i];
    auto* layer = dynamic_cast<nn::WeightedLayer*>(n.module.get());
    if (!layer) continue;
    IntegerLayer l;
    l.node = static_cast<int>(i);
    l.weight = &layer->weight;
    l.bias = layer->has_bias() ? &layer->bias : nullptr;
    l.weight_quantizer = acting(*l.weight);
    if (!l.weight_quantizer) continue;
    l.input = grid_before(g, n.inputs[0]);
    l.output = grid_behind(g, n.output);
    layers.push_back(l);
  }
  return layers;
}

std::vector<double> least_weight_scales(const IntegerLayer& l) {
  const auto channels = static_cast<size_t>(l.weight->value.dim(0));
  std::vector<double> least(l.weight_quantizer->grids().size(), 0.0);
  if (!l.input) return least;
  const auto s_in = static_cast<double>(l.input->scale);
  const auto zero = static_cast<double>(l.input->zero_point);
  const double largest_code = std::max(l.input->qmax - zero, zero - l.input->qmin);
  const bool byte = l.input->qmax - l.input->qmin <= 255;
  const std::vector<float> w = l.weight->value.to_vector<float>();
  const std::vector<float> b = l.bias ? l.bias->value.to_vector<float>() : std::vector<float>(channels, 0.0f);
  const size_t row = w.size() / channels;
  for (size_t k = 0; k < channels; ++k) {
    const auto bias = static_cast<double>(b[k]);
    double s = std::fabs(bias) / (kLimit * s_in);
    if (l.output) {
      const double bottom = effective_range(*l.output).min;
      s = std::max({s, kLeastFactor * static_cast<double>(l.output->scale) / s_in, std::fabs(bias + bottom) / (kLimit * s_in)});
    }
    if (byte) {
      double sum = 0.0;
      for (size_t i = k * row; i < (k + 1) * row; ++i) sum += std::fabs(static_cast<double>(w[i]));
      s = std::max(s, (sum * largest_code + std::fabs(bias) / s_in) / kLimit);
    }
    double& to = least[least.size() == 1 ? 0 : k];
    to = std::max(to, s);
  }
  return least;
}

void protect_accumulators(Graph& graph) {
  for (const IntegerLayer& layer : integer_layers(graph)) layer.weight_quantizer->require_scales(least_weight_scales(layer));
}

Encoding bias_encoding(const IntegerLayer& l) {
  Encoding e;
  e.name = l.bias->name;
  e.bits = 32;
  e.symmetric = true;
  const std::vector<Grid>& w = l.weight_quantizer->grids();
  const auto entry = [&](float scale) {
    e.grids.push_back({std::max(scale, std::numeric_limits<float>::min()), 0, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()});
  };
  if (l.input) {
    for (const Grid& g : w) entry(l.input->scale * g.scale);
  } else {
    double largest = kMinWidth;
    for (const float b : l.bias->value.to_vector<float>()) largest = std::max(largest, std::fabs(static_cast<double>(b)));
    entry(static_cast<float>(largest / std::numeric_limits<int32_t>::max()));
  }
  e.channel_axis = e.grids.size() > 1 || (l.input && l.weight_quantizer->spec().channel_axis >= 0) ? 0 : -1;
  return e;
}

}  // namespace detent::quant
