// IntegerPlan: the Plan of a Graph with its steps prepared to run on codes: weights as packed integers, scales and biases of the grids as they are now.
// Values on a per-tensor grid of at most 256 codes travel as bytes. What quantization leaves in float runs as in the Plan, from decoded inputs.
#pragma once

#include <optional>
#include <vector>

#include "detent/nn/plan.h"

namespace detent::nn {

/// A parameter as it was when its layer was prepared.
struct PreparedParameter {
  const Transform* transform = nullptr;
  std::vector<Grid> grids;  ///< empty: on none
  TensorStamp values;
};

struct PreparedLayer {
  int node = -1;
  const WeightedLayer* layer = nullptr;
  bool on_codes = false;  ///< holds a copy of the weights; a layer in float reads them as they are
  PreparedParameter weight, bias;
};

struct IntegerPlan {
  std::vector<PlanStep> steps;
  std::vector<std::optional<Grid>> grids;     ///< by value: the grid it travels on as codes
  std::vector<std::optional<Grid>> prepared;  ///< by value: that of its quantizer

  std::vector<PreparedLayer> layers;                 ///< all Conv2d and Dense

  /// Throws Error when a quantizer no longer puts its value or parameter on the grid that was prepared for.
  void require_current(const Graph& graph) const;
  /// False when weights or biases were written to since. Of a plan that is current.
  bool weights_as_prepared() const;
};

/// Throws Error as Graph::set_execution says.
IntegerPlan compile_integer_plan(Graph& graph);

}  // namespace detent::nn
