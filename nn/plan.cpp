#include "detent/nn/plan.h"

#include "detent/nn/layers.h"
#include "detent/nn/passes/fold_math.h"

namespace detent::nn {
namespace {

bool is_clamp(const Graph::Node& n) {
  const auto* a = dynamic_cast<const Activation*>(n.module.get());
  return a && a->op().kind == PointwiseKind::clip;
}

// The node that alone reads this value, or -1.
int next_in_chain(const Graph& g, const std::vector<std::vector<int>>& readers, Value v) {
  const std::vector<int>& r = readers[static_cast<size_t>(v.id)];
  return r.size() == 1 && !g.is_output(v) && !(g.scores() == v) && !g.value(v).transform ? r[0] : -1;
}

bool starts_chain(const Graph& g, const Graph::Node& n) {
  if (n.op == "Conv" || n.op == "Gemm" || n.op == "BatchNormalization") return true;
  return n.op == "Add" && n.inputs.size() == 2 && g.value(n.inputs[0]).shape == g.value(n.inputs[1]).shape;
}

Parameter* bias_of(Module& m) {
  if (auto* conv = dynamic_cast<Conv2d*>(&m)) return conv->bias.value.defined() ? &conv->bias : nullptr;
  auto& dense = static_cast<Dense&>(m);
  return dense.bias.value.defined() ? &dense.bias : nullptr;
}

struct Operands {
  Var weight, bias;
  bool has_bias = false;
};

// Weight and bias as the layer's own forward takes them, or with an evaluated batch norm folded in.
Operands operands(Module& m, BatchNorm* norm, const Context& context, const Var& x) {
  auto* conv = dynamic_cast<Conv2d*>(&m);
  Operands o;
  o.weight = conv ? conv->weight.var(context) : static_cast<Dense&>(m).weight.var(context);
  Parameter* bias = bias_of(m);
  if (norm) {
    Tensor w = o.weight.dense(), b = bias ? bias->value : Tensor();
    fold_backward(w, b, norm_terms(norm->weight.value, norm->bias.value, norm->running_mean, norm->running_var, static_cast<double>(norm->options().eps)));
    o.weight = Var(w);
    o.bias = Var(b);
    o.has_bias = true;
  } else if (bias) {
    o.bias = on_accumulator_grid(bias->var(context), x, o.weight);
    o.has_bias = true;
  }
  return o;
}

Var run_layer(Module& m, BatchNorm* norm, const PlanStep& s, const Context& context, const Var& x, const GridTarget* target) {
  const Operands o = operands(m, norm, context, x);
  const Var* bias = o.has_bias ? &o.bias : nullptr;
  if (auto* conv = dynamic_cast<Conv2d*>(&m)) {
    Conv2dSpec spec = conv->options().spec;
    spec.clamp_min = s.clamp_min;
    spec.clamp_max = s.clamp_max;
    return target ? conv2d_quantized(x, o.weight, bias, spec, *target) : conv2d(x, o.weight, bias, spec);
  }
  if (target && s.clamp_min == -kInfinity && s.clamp_max == kInfinity) return dense_quantized(x, o.weight, bias, *target);
  const Var y = dense(x, o.weight, bias);
  return s.clamp_min == -kInfinity && s.clamp_max == kInfinity ? y : clip(y, s.clamp_min, s.clamp_max);
}

Var run_norm(BatchNorm& n, const PlanStep& s, const Context& context, const Var& x) {
  return batch_norm(x, n.weight.var(context), n.bias.var(context), n.running_mean, n.running_var,
                    {.eps = n.options().eps, .momentum = n.options().momentum, .clamp_min = s.clamp_min, .clamp_max = s.clamp_max}, context.training && !n.frozen);
}

}  // namespace

std::vector<PlanStep> compile_plan(const Graph& g) {
  std::vector<std::vector<int>> readers(static_cast<size_t>(g.value_count()));
  const auto& nodes = g.nodes();
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (const Value v : nodes[i].inputs) readers[static_cast<size_t>(v.id)].push_back(static_cast<int>(i));
  }
  std::vector<bool> taken(nodes.size(), false);
  std::vector<PlanStep> steps;
  for (int i = 0; i < static_cast<int>(nodes.size()); ++i) {
    const Graph::Node& n = nodes[static_cast<size_t>(i)];
    if (taken[static_cast<size_t>(i)]) continue;
    PlanStep step{.head = i, .norm = -1, .output = n.output};
    if (starts_chain(g, n)) {
      int next = next_in_chain(g, readers, n.output);
      if (next >= 0 && (n.op == "Conv" || n.op == "Gemm") && nodes[static_cast<size_t>(next)].op == "BatchNormalization") {
        step.norm = next;
        step.output = nodes[static_cast<size_t>(next)].output;
        taken[static_cast<size_t>(next)] = true;
        next = next_in_chain(g, readers, step.output);
      }
      if (next >= 0 && is_clamp(nodes[static_cast<size_t>(next)])) {
        const Pointwise& op = static_cast<const Activation&>(*nodes[static_cast<size_t>(next)].module).op();
        step.clamp_min = op.a;
        step.clamp_max = op.b;
        step.output = nodes[static_cast<size_t>(next)].output;
        taken[static_cast<size_t>(next)] = true;
      }
    }
    steps.push_back(step);
  }
  return steps;
}

Var run_step(Graph& g, const PlanStep& s, const Context& context, std::span<const Var> inputs) {
  Graph::Node& head = g.nodes()[static_cast<size_t>(s.head)];
  const Graph::ValueInfo& out = g.value(s.output);
  std::optional<GridTarget> target;
  if (out.transform) {
    Shape shape = out.shape;
    shape.set(0, inputs[0].shape()[0]);
    target = out.transform->grid_target(shape.elements());
  }
  Var y;
  if (head.op == "Conv" || head.op == "Gemm") {
    auto* norm = s.norm >= 0 ? static_cast<BatchNorm*>(g.nodes()[static_cast<size_t>(s.norm)].module.get()) : nullptr;
    // Batch statistics, or gradients to gamma and beta, need the value before the norm.
    const bool apart = norm && (context.training || grad_enabled());
    if (!apart) {
      y = run_layer(*head.module, norm, s, context, inputs[0], target ? &*target : nullptr);
    } else {
      const PlanStep plain{.head = s.head, .norm = -1, .output = {}};
      y = run_norm(*norm, s, context, run_layer(*head.module, nullptr, plain, context, inputs[0], nullptr));
    }
  } else if (head.op == "BatchNormalization") {
    y = run_norm(static_cast<BatchNorm&>(*head.module), s, context, inputs[0]);
  } else if (head.op == "Add" && s.head >= 0 && inputs.size() == 2 && inputs[0].shape() == inputs[1].shape()) {
    y = target ? add_quantized(inputs[0], inputs[1], s.clamp_min, s.clamp_max, *target) : add_clamped(inputs[0], inputs[1], s.clamp_min, s.clamp_max);
  } else {
    y = head.module->forward(context, inputs);
    if (head.module->preserves_grid()) y.inherit_grids(inputs[0]);
  }
  if (!out.transform || y.coded()) return y;
  return out.transform->apply(context, y);
}

}  // namespace detent::nn
