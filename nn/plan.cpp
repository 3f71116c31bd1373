#include "detent/nn/plan.h"

#include <algorithm>

#include "detent/autograd/op_support.h"
#include "detent/autograd/ops_integer.h"
#include "detent/core/math/integer_math.h"
#include "detent/nn/passes/fold_math.h"

namespace detent::nn {
namespace {

bool is_clamp(const Graph::Node& n) {
  const auto* a = dynamic_cast<const Activation*>(n.module.get());
  return a && a->op().kind == PointwiseKind::clip;
}

bool active(const Graph::ValueInfo& v) { return v.transform && v.transform->active_grids(); }

// The node that alone reads this value, or -1.
int next_in_chain(const Graph& g, const std::vector<std::vector<int>>& readers, Value v) {
  const std::vector<int>& r = readers[static_cast<size_t>(v.id)];
  return r.size() == 1 && !g.is_output(v) && !(g.scores() == v) && !g.value(v).transform ? r[0] : -1;
}

BatchNorm* batch_norm_of(const Graph::Node& n) { return library_layer<BatchNorm>(n, "BatchNormalization"); }

bool starts_chain(const Graph& g, const Graph::Node& n) { return weighted_layer(n) || batch_norm_of(n) || is_addition(g, n); }

struct Operands {
  Var weight, bias;
  bool has_bias = false;
  Tensor channel_scale;  // of an evaluated batch norm
};

// Weight and bias as the layer's own forward takes them; an evaluated batch norm becomes a scale per channel and a bias.
Operands operands(WeightedLayer& layer, BatchNorm* norm, const Context& context, const Var& x) {
  Operands o;
  o.weight = layer.weight.var(context);
  if (layer.has_bias()) {
    o.bias = round_bias(layer.bias.var(context), x, o.weight);
    o.has_bias = true;
  }
  if (norm) {
    const NormTerms terms = norm_terms(norm->weight.value, norm->bias.value, norm->running_mean, norm->running_var, static_cast<double>(norm->options().eps));
    const ChannelAffine a = channel_affine(o.has_bias ? o.bias.dense() : Tensor(), terms, x.device());
    o.channel_scale = a.scale;
    o.bias = Var(a.shift);
    o.has_bias = true;
  }
  return o;
}

// A layer that integers can be multiplied by, and shall.
bool multiplies_integers(const Graph& g, const Graph::Node& n) {
  const WeightedLayer* layer = g.products() == Products::integers ? weighted_layer(n) : nullptr;
  const std::vector<Grid>* grids = layer && layer->weight.transform ? layer->weight.transform->active_grids() : nullptr;
  return grids && std::all_of(grids->begin(), grids->end(), [](const Grid& q) { return q.zero_point == 0 && q.qmin >= -128 && q.qmax <= 127; });
}

// A pool over all pixels, whose sums of codes are exact.
bool averages_codes(const Graph& g, const Graph::Node& n, const Var& x) {
  return g.products() == Products::integers && is_global_average(g, n) && ops::on_byte_grid(x) && x.shape()[1] * x.shape()[2] <= kMaxAveragePixels;
}

Var run_layer(WeightedLayer& layer, BatchNorm* norm, const PlanStep& s, const Context& context, const Var& x, const Tensor& addend, const GridTarget* target,
              BatchStatistics* statistics = nullptr) {
  const Operands o = operands(layer, norm, context, x);
  const Var* bias = o.has_bias ? &o.bias : nullptr;
  if (auto* conv = dynamic_cast<Conv2d*>(&layer)) {
    Conv2dSpec spec = conv->spec(context);
    spec.clamp_min = s.clamp_min;
    spec.clamp_max = s.clamp_max;
    spec.channel_scale = o.channel_scale;
    spec.addend = addend;
    spec.statistics = statistics;
    return target ? conv2d_quantized(x, o.weight, bias, spec, *target) : conv2d(x, o.weight, bias, spec);
  }
  if (target) return dense_quantized(x, o.weight, bias, *target, s.clamp_min, s.clamp_max);
  const Var y = dense(x, o.weight, bias);
  return s.clamp_min == -kInfinity && s.clamp_max == kInfinity ? y : clip(y, s.clamp_min, s.clamp_max);
}

Var run_norm(BatchNorm& n, const PlanStep& s, const Context& context, const Var& x, const BatchStatistics* statistics = nullptr) {
  return batch_norm(x, n.weight.var(context), n.bias.var(context), n.running_mean, n.running_var,
                    {.eps = n.options().eps, .momentum = n.options().momentum, .clamp_min = s.clamp_min, .clamp_max = s.clamp_max, .statistics = statistics},
                    context.training && !n.frozen);
}

}  // namespace

namespace {

class Planner {
 public:
  Planner(const Graph& g, Fuse fuse)
      : g_(g), fuse_(fuse), readers_(static_cast<size_t>(g.value_count())), taken_(g.nodes().size(), false), computed_(static_cast<size_t>(g.value_count()), false) {
    for (size_t i = 0; i < g.nodes().size(); ++i) {
      for (const Value v : g.nodes()[i].inputs) readers_[static_cast<size_t>(v.id)].push_back(static_cast<int>(i));
    }
    for (const Value v : g.inputs()) computed_[static_cast<size_t>(v.id)] = true;
  }

  std::vector<PlanStep> run() {
    std::vector<PlanStep> steps;
    for (int i = 0; i < static_cast<int>(g_.nodes().size()); ++i) {
      if (taken_[static_cast<size_t>(i)]) continue;
      steps.push_back(step_from(i));
      computed_[static_cast<size_t>(steps.back().output.id)] = true;
    }
    return steps;
  }

 private:
  PlanStep step_from(int head) {
    const Graph::Node& n = node(head);
    PlanStep step{.head = head, .norm = -1, .addend = {}, .output = n.output};
    if (fuse_ == Fuse::integers) {
      const int next = is_addition(g_, n) || multiplies_integers(g_, n) ? next_in_chain(g_, readers_, n.output) : -1;
      if (next >= 0 && is_clamp(node(next)) && active(g_.value(node(next).output))) take_clamp(step, next);
      return step;
    }
    if (!starts_chain(g_, n)) return step;
    if (const int next = next_in_chain(g_, readers_, step.output); next >= 0 && weighted_layer(n) && batch_norm_of(node(next))) {
      step.norm = next;
      take(step, next);
    }
    if (const int next = next_in_chain(g_, readers_, step.output); next >= 0 && library_layer<Conv2d>(n, "Conv") && is_addition(g_, node(next))) {
      const Value other = node(next).inputs[node(next).inputs[0] == step.output ? 1 : 0];
      if (computed_[static_cast<size_t>(other.id)]) {
        step.addend = other;
        take(step, next);
      }
    }
    if (const int next = next_in_chain(g_, readers_, step.output); next >= 0 && is_clamp(node(next))) take_clamp(step, next);
    return step;
  }

  void take_clamp(PlanStep& step, int next) {
    const Pointwise& op = static_cast<const Activation&>(*node(next).module).op();
    step.clamp_min = op.a;
    step.clamp_max = op.b;
    take(step, next);
  }

  void take(PlanStep& step, int next) {
    step.output = node(next).output;
    taken_[static_cast<size_t>(next)] = true;
  }
  const Graph::Node& node(int i) const { return g_.nodes()[static_cast<size_t>(i)]; }

  const Graph& g_;
  Fuse fuse_;
  std::vector<std::vector<int>> readers_;
  std::vector<bool> taken_;
  std::vector<bool> computed_;  // values that the steps so far yield
};

Var run_add(const Var& a, const Var& b, const PlanStep& s, const GridTarget* target) {
  return target ? add_quantized(a, b, s.clamp_min, s.clamp_max, *target) : add_clamped(a, b, s.clamp_min, s.clamp_max);
}

// A convolution or dense layer with what follows it. What needs gradients or batch statistics runs the parts one after another: they keep the values between.
Var run_convolution(Graph& g, const PlanStep& s, WeightedLayer& layer, const Context& context, std::span<const Var> inputs, const GridTarget* target) {
  BatchNorm* norm = s.norm >= 0 ? batch_norm_of(g.nodes()[static_cast<size_t>(s.norm)]) : nullptr;
  const bool adds = s.addend.id >= 0, dense_layer = !dynamic_cast<const Conv2d*>(&layer);
  // Dense layers have no scale per channel.
  const bool apart = (norm && (context.training || grad_enabled() || dense_layer)) || (adds && grad_enabled());
  if (!apart) return run_layer(layer, norm, s, context, inputs[0], adds ? inputs[1].dense() : Tensor(), target);
  const PlanStep plain{.head = s.head, .norm = -1, .addend = {}, .output = {}};
  BatchStatistics statistics;
  const bool gathers = norm && context.training && !norm->frozen && !dense_layer;
  Var y = run_layer(layer, nullptr, plain, context, inputs[0], {}, nullptr, gathers ? &statistics : nullptr);
  if (norm) y = run_norm(*norm, adds ? plain : s, context, y, gathers ? &statistics : nullptr);
  return adds ? run_add(y, inputs[1], s, target) : y;
}

}  // namespace

WeightedLayer* weighted_layer(const Graph::Node& n) {
  if (auto* conv = library_layer<Conv2d>(n, "Conv")) return conv;
  return library_layer<Dense>(n, "Gemm");
}

bool is_addition(const Graph& g, const Graph::Node& n) { return library_layer<Binary>(n, "Add") && g.value(n.inputs[0]).shape == g.value(n.inputs[1]).shape; }

bool is_global_average(const Graph& g, const Graph::Node& n) {
  const auto* pool = library_layer<AveragePool>(n, "AveragePool");
  return library_layer<GlobalAveragePool>(n, "GlobalAveragePool") || (pool && pool->is_global(g.value(n.inputs[0]).shape));
}

std::vector<PlanStep> compile_plan(const Graph& g, Fuse fuse) { return Planner(g, fuse).run(); }

std::vector<Value> step_inputs(const Graph& graph, const PlanStep& step) {
  std::vector<Value> in = graph.nodes()[static_cast<size_t>(step.head)].inputs;
  if (step.addend.id >= 0) in.push_back(step.addend);
  return in;
}

bool is_on_codes(Graph& g, const PlanStep& s, std::span<const Var> inputs) {
  const Graph::ValueInfo& out = g.value(s.output);
  const Graph::Node& head = g.nodes()[static_cast<size_t>(s.head)];
  if (!out.transform || !ops::on_byte_grid(inputs[0])) return false;
  const std::optional<GridTarget> target = out.transform->grid_target(inputs[0].shape().elements(), inputs[0].device());
  if (!target) return false;
  if (multiplies_integers(g, head)) return s.norm < 0 && s.addend.id < 0;
  if (averages_codes(g, head, inputs[0])) return true;
  return is_addition(g, head) && ops::on_byte_grid(inputs[1]) && absorbs_clamp(target->grid, s.clamp_min, s.clamp_max);
}

Var run_apart(Graph& g, const PlanStep& s, const Context& context, std::span<const Var> inputs) {
  Module& m = *g.nodes()[static_cast<size_t>(s.head)].module;
  Var y = m.forward(context, inputs);
  if (m.preserves_grid()) y.inherit_grids(inputs[0]);
  return s.clamp_min == -kInfinity && s.clamp_max == kInfinity ? y : clip(y, s.clamp_min, s.clamp_max);
}

namespace {

Var run_in_float(Graph& g, const PlanStep& s, const Context& context, std::span<const Var> inputs) {
  Graph::Node& head = g.nodes()[static_cast<size_t>(s.head)];
  const Graph::ValueInfo& out = g.value(s.output);
  std::optional<GridTarget> target;
  if (out.transform) {
    Shape shape = out.shape;
    shape.set(0, inputs[0].shape()[0]);
    target = out.transform->grid_target(shape.elements(), inputs[0].device());
    if (target) target->products = g.products();
  }
  Var y;
  const GridTarget* to = target ? &*target : nullptr;
  if (WeightedLayer* layer = weighted_layer(head)) {
    y = run_convolution(g, s, *layer, context, inputs, to);
  } else if (BatchNorm* norm = batch_norm_of(head)) {
    y = run_norm(*norm, s, context, inputs[0]);
  } else if (is_addition(g, head)) {
    y = run_add(inputs[0], inputs[1], s, to);
  } else if (to && averages_codes(g, head, inputs[0])) {
    y = global_average_pool_quantized(inputs[0], *to);
  } else {
    y = head.module->forward(context, inputs);
    if (head.module->preserves_grid()) y.inherit_grids(inputs[0]);
  }
  // Codes may be of the target's grid already, or of the input's where elements only moved.
  if (!out.transform || (y.coded() && to && y.coded()->grid == to->grid)) return y;
  return out.transform->apply(context, y);
}

}  // namespace

Var run_step(Graph& g, const PlanStep& s, const Context& context, std::span<const Var> inputs) {
  if (s.on_codes) return s.on_codes(g, context, inputs);
  Var y = run_in_float(g, s, context, inputs);
  return s.codes ? to_codes(y, *s.codes) : y;
}

}  // namespace detent::nn
