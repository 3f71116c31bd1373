#include "detent/quant/post_training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "detent/nn/layers.h"
#include "detent/nn/train.h"
#include "detent/quant/accumulator.h"
#include "detent/quant/bias_correction.h"
#include "detent/quant/equalize.h"

namespace detent::quant {
namespace {

using nn::Graph;
using nn::Value;

constexpr double kStill = 1e-3;  // a scale this near to 1 moves nothing

struct Layer {
  int node = -1;
  nn::WeightedLayer* module = nullptr;
  bool depthwise = false;  // one filter a channel: may stand between two others
  bool mixes_all = false;  // its last weight axis is its input's channels
};

Layer layer_at(Graph& g, int node) {
  auto* m = dynamic_cast<nn::WeightedLayer*>(g.nodes()[static_cast<size_t>(node)].module.get());
  if (!m) return {};
  const auto* conv = dynamic_cast<const nn::Conv2d*>(m);
  if (!conv) return {node, m, false, true};
  const nn::Conv2d::Options& o = conv->options();
  return {node, m, conv->depthwise() && o.out == o.in, o.spec.groups == 1};
}

bool is_clip_from_zero(const nn::Module& m) {
  const auto* a = dynamic_cast<const nn::Activation*>(&m);
  return a && a->op().kind == PointwiseKind::clip && a->op().a == 0.0f && a->op().b < std::numeric_limits<float>::infinity();
}

// f(s x) = s f(x) for s > 0, channel by channel.
bool keeps_scale(const Graph& g, const Graph::Node& n) {
  static const char* const kOps[] = {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Identity", "Dropout"};
  if (std::find(std::begin(kOps), std::end(kOps), n.op) != std::end(kOps)) return true;
  const Shape& in = g.value(n.inputs[0]).shape;
  return n.op == "Flatten" && in.rank() == 4 && in[1] == 1 && in[2] == 1;
}

// The layer that alone reads this one, or none. Clips on the way are counted as what keeps the scale when they are to become ReLUs.
Layer layer_behind(Graph& g, const Layer& from, const EqualizeOptions& options, std::vector<int>& clips) {
  Value v = g.nodes()[static_cast<size_t>(from.node)].output;
  for (;;) {
    const std::vector<int> readers = g.consumers(v);
    if (readers.size() != 1 || g.is_output(v)) return {};
    if (const Layer next = layer_at(g, readers[0]); next.module) return next.mixes_all || next.depthwise ? next : Layer{};
    const Graph::Node& n = g.nodes()[static_cast<size_t>(readers[0])];
    if (options.relu6_as_relu && is_clip_from_zero(*n.module)) clips.push_back(readers[0]);
    else if (!keeps_scale(g, n)) return {};
    v = n.output;
  }
}

// Two layers, or three around a depthwise one; each set begins with the last layer of the one before it, as AIMET's.
std::vector<std::vector<Layer>> find_sets(Graph& g, const EqualizeOptions& options, std::vector<int>& clips) {
  std::vector<std::vector<Layer>> sets;
  for (int i = 0; i < static_cast<int>(g.nodes().size()); ++i) {
    const Layer first = layer_at(g, i);
    if (!first.module || std::any_of(sets.begin(), sets.end(), [&](const auto& s) { return s.size() == 3 && s[1].node == i; })) continue;
    std::vector<int> passed;
    std::vector<Layer> set{first};
    Layer next = layer_behind(g, first, options, passed);
    if (next.module) set.push_back(next);
    if (next.module && !next.mixes_all) {
      next = layer_behind(g, next, options, passed);
      if (next.module && next.mixes_all) set.push_back(next);
    }
    if (set.size() < 2 || !set.back().mixes_all) continue;
    sets.push_back(set);
    clips.insert(clips.end(), passed.begin(), passed.end());
  }
  return sets;
}

double furthest_from_one(const std::vector<double>& scales) {
  double most = 0.0;
  for (const double s : scales) most = std::max(most, std::fabs(std::log(s)));
  return most;
}

double equalize(const std::vector<Layer>& set) {
  nn::WeightedLayer &first = *set[0].module, &second = *set[1].module;
  if (set.size() == 2) return furthest_from_one(equalize_pair(first.weight.value, first.bias.value, second.weight.value));
  const TripleScales s = equalize_triple(first.weight.value, first.bias.value, second.weight.value, second.bias.value, set[2].module->weight.value);
  return std::max(furthest_from_one(s.s12), furthest_from_one(s.s23));
}

void require_plain(Graph& g) {
  DETENT_CHECK(g.device() == Device{}, "equalize_layers: the network is on ", to_string(g.device()), "; move it to the cpu first");
  DETENT_CHECK(g.transforms().empty(), "equalize_layers: the network has quantizers, whose ranges would no longer fit; equalize before a QuantSim is made");
  for (const Graph::Node& n : g.nodes()) {
    DETENT_CHECK(n.op != "BatchNormalization" || !layer_at(g, std::max(0, g.value(n.inputs[0]).producer)).module, "equalize_layers: the batch norm \"", n.name,
                 "\" stands behind a layer; fold batch norms first");
  }
}

// Per channel, over everything that was seen.
struct ChannelMean {
  std::vector<double> sum;
  int64_t rows = 0;
  void add(const Tensor& x) {
    const std::vector<float> values = x.to_vector<float>();
    const auto c = static_cast<size_t>(x.dim(x.rank() - 1));
    sum.resize(c, 0.0);
    for (size_t i = 0; i < values.size(); ++i) sum[i % c] += static_cast<double>(values[i]);
    rows += static_cast<int64_t>(values.size() / c);
  }
  Tensor mean() const {
    std::vector<float> m;
    for (const double s : sum) m.push_back(static_cast<float>(s / static_cast<double>(rows)));
    return Tensor::from<float>(Shape{1, static_cast<int64_t>(m.size())}, m);
  }
};

using Means = std::unordered_map<int, ChannelMean>;  // by value

// What these values are on average, before their quantizers.
Means means_of(Graph& g, const std::vector<Value>& values, const std::function<void()>& run) {
  Means means;
  for (const Value v : values) means[v.id];
  const nn::EvaluationScope scope(g);
  {
    const nn::TapScope tap(g, [&](Value v, const Var& before, const Var&) {
      if (const auto found = means.find(v.id); found != means.end()) found->second.add(before.dense());
    });
    run();
  }
  for (const auto& [id, mean] : means)
    DETENT_CHECK(mean.rows > 0, "correct_biases: the callback ran no data through \"", g.value(Value{id}).name, "\"; call the network on calibration batches");
  return means;
}

// In the order of the nodes.
std::vector<Layer> layers_of(Graph& g) {
  std::vector<Layer> layers;
  for (int i = 0; i < static_cast<int>(g.nodes().size()); ++i) {
    if (const Layer l = layer_at(g, i); l.module) layers.push_back(l);
  }
  return layers;
}

// On the host, and back to where it was.
void correct(nn::WeightedLayer& layer, const ChannelMean& reference, const ChannelMean& quantized) {
  layer.ensure_bias();
  Tensor b = layer.bias.value.to(Device{}).clone();
  correct_bias_empirically(b, reference.mean(), quantized.mean());
  layer.bias.value.copy_from(b);
}

}  // namespace

Equalized equalize_layers(nn::Graph& graph, const EqualizeOptions& options) {
  DETENT_CHECK(options.passes >= 1, "equalize_layers: ", options.passes, " passes; give at least 1");
  require_plain(graph);
  std::vector<int> clips;
  const std::vector<std::vector<Layer>> sets = find_sets(graph, options, clips);
  Equalized done;
  for (const int node : clips) {
    done.relus.push_back(graph.nodes()[static_cast<size_t>(node)].name);
    graph.replace(node, std::make_unique<nn::Activation>(nn::relu_op()));
  }
  for (int pass = 0; pass < options.passes; ++pass) {
    double moved = 0.0;
    for (const std::vector<Layer>& set : sets) moved = std::max(moved, equalize(set));
    if (moved < kStill) break;
  }
  for (const std::vector<Layer>& set : sets) {
    done.sets.emplace_back();
    for (const Layer& l : set) done.sets.back().push_back(graph.nodes()[static_cast<size_t>(l.node)].name);
  }
  return done;
}

int64_t correct_biases(QuantSim& sim, const std::function<void()>& run) {
  Graph& g = sim.graph();
  const std::vector<Layer> layers = layers_of(g);
  std::vector<Value> outputs;
  for (const Layer& l : layers) outputs.push_back(g.nodes()[static_cast<size_t>(l.node)].output);
  DETENT_CHECK(sim.has_ranges(), "correct_biases: no quantizer has a range; run compute_encodings first");
  const Means reference = [&] {
    const FloatScope full_precision(sim);
    return means_of(g, outputs, run);
  }();
  for (size_t i = 0; i < layers.size(); ++i) {
    const Means quantized = means_of(g, {outputs[i]}, run);
    correct(*layers[i].module, reference.at(outputs[i].id), quantized.at(outputs[i].id));
  }
  if (sim.options().protect_accumulators) protect_accumulators(g);
  return static_cast<int64_t>(layers.size());
}

void ensure_biases(nn::Graph& graph) {
  for (const Layer& l : layers_of(graph)) l.module->ensure_bias();
}

}  // namespace detent::quant
