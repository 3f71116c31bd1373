// Parameters, transforms and modules: what a Graph's nodes are made of. One thread uses a module at a time, but that several may run an evaluated Graph (nn/graph.h).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "detent/autograd/ops.h"

namespace detent::nn {

/// What a forward pass is told; passed, never global.
struct Context {
  bool training = false;  ///< batch norm uses and updates batch statistics
  bool bf16 = false;      ///< convolutions keep their results in bf16, where they can (Conv2dSpec::result)
};

struct Visitor;

/// Sits in the slot of a Parameter or of a Graph value and changes what its users see; quant::Quantizer is one.
class Transform {
 public:
  virtual ~Transform() = default;
  virtual Var apply(const Context& context, const Var& x) = 0;
  /// The grid apply() would put a value of so many elements on this device on, when a fused op may do it instead; nothing otherwise.
  virtual std::optional<GridTarget> grid_target(int64_t elements, Device device) {
    (void)elements, (void)device;
    return std::nullopt;
  }
  /// The grids that apply() puts values on as things are, one or one per channel; null: it puts them on none.
  virtual const std::vector<Grid>* active_grids() { return nullptr; }
  /// Those of them that a training step finds and leaves as they are, null when they are made in it. Takes over what the optimizer wrote.
  virtual const std::vector<Grid>* step_grids() { return nullptr; }
  /// Where work that is being recorded reads step_grids() (as bytes in its device's memory); until the next call.
  virtual void set_resident_grids(Tensor grids) { (void)grids; }
  /// Why there are none though there should be (not calibrated, switched off), or "".
  virtual std::string missing_grids() const { return {}; }
  /// Why the network cannot be judged or trained now (calibration is under way), or "".
  virtual std::string not_ready() const { return {}; }
  /// Tensors of a few values that apply() reads on the host. A graph on a GPU reads those of all its transforms at once, as each read waits for the device...
  virtual std::vector<Tensor> host_reads() { return {}; }
  /// ... and hands out their values, one tensor after the other; they hold until deliver({}).
  virtual void deliver(std::span<const float> values) { (void)values; }
  /// Its own parameters (learned ranges), named under the slot's name.
  virtual void visit(const std::string& prefix, Visitor& visitor) = 0;
};

/// A named tensor the optimizer may change. `name` is the key of checkpoints, encodings and exports: "conv1.weight".
struct Parameter : Leaf {
  std::string name;
  std::string kind;        ///< its role in its module: "weight", "bias"
  std::string given_name;  ///< when not empty, its name instead of NODE.KIND: that of an imported file
  bool weight_decay = true;          ///< false: the optimizer leaves it undecayed (biases of ranges, norms when asked)
  float learning_rate_scale = 1.0f;
  std::shared_ptr<Transform> transform;

  /// The parameter as modules see it: the leaf, behind its transform when there is one.
  Var var(const Context& context) {
    Var v = Tape::leaf(*this);
    return transform ? transform->apply(context, v) : v;
  }
};

/// Sees every parameter and buffer of a module or graph by full name.
struct Visitor {
  std::function<void(Parameter&)> parameter;
  std::function<void(const std::string& name, Tensor&)> buffer;
};

/// What a module's visit() does for each of its parameters: names it PREFIX.KIND (or as its file does) and shows it when it has a value. Only what differs is written: every
/// run of a Graph visits its modules, perhaps in several threads at once.
inline void visit_parameter(Parameter& p, const std::string& prefix, const char* kind, Visitor& visitor) {
  if (p.kind != kind) p.kind = kind;
  if (std::string name = p.given_name.empty() ? prefix + "." + kind : p.given_name; p.name != name) p.name = std::move(name);
  if (p.value.defined()) visitor.parameter(p);
}

using Attribute = std::variant<int64_t, float, std::string, std::vector<int64_t>>;

/// What configs, passes and messages call a node: ONNX operator name and attributes, spatial axes in h, w order. A name is not what a node computes: fused kernels, folding,
/// integer execution and the ONNX exporter know the layers of nn/layers.h, by their types; any other module runs its own forward(), and cannot be exported.
struct OpDesc {
  std::string op;
  std::map<std::string, Attribute> attributes;
};

class Module {
 public:
  virtual ~Module() = default;
  virtual OpDesc describe() const = 0;
  /// Output shape from input shapes, whose first axis is that of the images, and the output's too; throws Error when they do not fit.
  virtual Shape infer(std::span<const Shape> inputs) const = 0;
  virtual Var forward(const Context& context, std::span<const Var> inputs) = 0;
  /// Parameters (visit_parameter) and buffers, with their names: the node's is the prefix.
  virtual void visit(const std::string& prefix, Visitor& visitor) { (void)prefix, (void)visitor; }
  /// True when every output element is one of the input's elements (or zero): then the output lies on the input's grid.
  virtual bool preserves_grid() const { return false; }
};

}  // namespace detent::nn
