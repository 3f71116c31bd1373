// Plan: a throw-away schedule of a Graph that computes the same values in fewer passes. A step is a node, or a chain that one kernel runs:
// conv/dense + batch norm + add + clamp + quantize, batch norm + clamp, add + clamp + quantize. Compiled anew whenever the Graph or its transforms changed.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "detent/nn/graph.h"
#include "detent/nn/layers.h"

namespace detent::nn {

struct PlanStep {
  int head = -1;                 ///< the node that computes: a Conv2d, Dense, BatchNorm, addition, or any other run as it is
  int norm = -1;                 ///< a batch norm behind a convolution or dense layer
  Value addend;                  ///< valid: what an Add behind a convolution adds to it; computed by an earlier step
  float clamp_min = -kInfinity, clamp_max = kInfinity;
  Value output;                  ///< the value that the chain's last node computes
  /// Integer execution (nn/integer_plan.h): computes the step on codes; null: in float, and `in_float` says why.
  std::function<Var(Graph&, const Context&, std::span<const Var>)> on_codes = nullptr;
  std::string in_float = {};
  std::optional<Grid> codes = std::nullopt;  ///< ... and then goes on as codes of this grid
};

enum class Fuse : bool {
  integers,  ///< only what an integer target computes as one: an addition, convolution or dense layer and the clamp behind it, where a transform follows
  all
};
/// Chains are cut at values that others read, that are outputs or that carry a transform.
std::vector<PlanStep> compile_plan(const Graph& graph, Fuse fuse = Fuse::all);

/// The values a step reads: its head's inputs, and the addend behind them.
std::vector<Value> step_inputs(const Graph& graph, const PlanStep& step);

/// The node's module when it is the library's own layer of that operator, or null: a module of one's own may call itself the same, and runs its own forward().
template <class Layer>
Layer* library_layer(const Graph::Node& node, std::string_view op) {
  return node.op == op ? dynamic_cast<Layer*>(node.module.get()) : nullptr;
}
/// A Conv2d or Dense, or null.
WeightedLayer* weighted_layer(const Graph::Node& node);
/// The sum of two values of one shape.
bool is_addition(const Graph& graph, const Graph::Node& node);
/// A global average pool, or one whose window is its whole input.
bool is_global_average(const Graph& graph, const Graph::Node& node);

/// True when the step is computed on codes, from bytes to bytes, with one rounding (core/math/integer_math.h), however the Graph is run: a sum, or products and global
/// averages as integers (Graph::set_products).
bool is_on_codes(Graph& graph, const PlanStep& step, std::span<const Var> inputs);
/// The step's operations one after the other, its transform left out.
Var run_apart(Graph& graph, const PlanStep& step, const Context& context, std::span<const Var> inputs);
/// Runs one step on its step_inputs and returns the value of step.output behind its transform.
Var run_step(Graph& graph, const PlanStep& step, const Context& context, std::span<const Var> inputs);

}  // namespace detent::nn
