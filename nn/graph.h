// Graph: a network as a list of uniquely named nodes, each owning a Module; edges are values whose shapes are known before anything runs.
// Names are the keys of checkpoints, encodings, exports and messages. Passes that change meaning edit the Graph.
// A Graph is used by one thread at a time; different Graphs may run in different threads at once. Inference is the exception: after set_mode(Mode::evaluation) and one run,
// with ranges frozen, without a tap, on the cpu, operator(), forward() and nn::infer may run in any number of threads at once, while nothing else is done to the Graph.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "detent/nn/module.h"

namespace detent::nn {

/// Handle of a value in a Graph.
struct Value {
  int id = -1;
  const void* graph = nullptr;  ///< tells the values of one Graph from those of others; null (made from an id): not checked
  friend bool operator==(Value a, Value b) { return a.id == b.id; }
};

/// Batch norm's mode: automatic = training while a Tape is active on this thread.
enum class Mode : uint8_t { automatic, training, evaluation };

struct IntegerPlan;

class Graph {
 public:
  struct Node {
    std::string name;
    std::unique_ptr<Module> module;
    std::vector<Value> inputs;
    Value output;
    std::string op;  ///< module->describe().op
  };
  struct ValueInfo {
    std::string name;
    Shape shape;                           ///< with batch size 1
    int producer = -1;                     ///< index into nodes(), -1 for a graph input
    std::shared_ptr<Transform> transform;  ///< applied to the value for all its consumers
  };

  /// For those who keep a reference to a Graph, or pointers to what is in it: what has become of it.
  class Watch;

  Graph();
  ~Graph();
  /// Values stay those of the network, wherever it moves. What holds a reference to a Graph (QuantSim, Trainer) does not follow.
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;

  /// An input; `shape` without the batch dimension, e.g. {224,224,3}.
  Value input(const std::string& name, const Shape& shape);
  /// Appends a node; throws Error when the name is taken, a value is of another graph, the shapes do not fit, or the number of images would change. The value has the
  /// node's name.
  Value add(const std::string& name, std::unique_ptr<Module> module, std::vector<Value> inputs);
  template <class M, class... Args>
  Value add(const std::string& name, std::vector<Value> inputs, Args&&... args) {
    return add(name, std::make_unique<M>(std::forward<Args>(args)...), std::move(inputs));
  }
  /// Declares an output, in order.
  void output(Value v);

  const std::vector<Node>& nodes() const { return nodes_; }
  std::vector<Node>& nodes() { return nodes_; }
  const ValueInfo& value(Value v) const;
  ValueInfo& value(Value v);
  const std::vector<Value>& inputs() const { return inputs_; }
  const std::vector<Value>& outputs() const { return outputs_; }
  int value_count() const { return static_cast<int>(values_.size()); }
  /// The node of a name, or null.
  Node* find(const std::string& name);
  const Node* find(const std::string& name) const;
  Value find_value(const std::string& name) const;
  /// Indices of the nodes that read a value (a node that reads it twice appears twice).
  std::vector<int> consumers(Value v) const;
  bool is_output(Value v) const;
  /// By value: does an output depend on it? What none depends on is never computed.
  std::vector<bool> live_values() const;
  /// What losses and accuracies read: the first output, or the value before it when it is a Softmax.
  Value scores() const;

  /// Removes a node with one input that keeps the shape; its consumers read its input instead (a graph output moves too).
  void bypass(int node);
  /// The same when the surviving name must be the removed node's: the producer's output takes the value of the removed node.
  void absorb(int node);
  /// Puts another module in a node's place; inputs unchanged. Throws Error when the output shape would change.
  void replace(int node, std::unique_ptr<Module> module);

  /// node_by_node: every node runs by itself, the reference of the Plan (nn/plan.h). integer: as an integer target runs it, on the cpu: values on 8-bit grids
  /// travel as codes, layers multiply codes, with ONNX Runtime's arithmetic; a value that quantization leaves alone is float at its node (float_nodes()).
  enum class Execution : uint8_t { planned, node_by_node, integer };
  /// For `integer` the weights are prepared here, and anew by the run that finds them written to (Tensor::stamp). When ranges, quantizers or the graph have changed a run
  /// throws Error: call it again. Throws Error when a quantizer has no range, a grid has more than 256 codes, no value is on a grid, or the network is not on the cpu.
  void set_execution(Execution e);
  Execution execution() const { return execution_; }
  /// How a simulated quantized layer multiplies (autograd/ops.h), in training and evaluation, however it is scheduled. The default gives the codes of the integer target
  /// and is the fast one; floats is its reference. Values outside byte grids are floats either way.
  void set_products(Products p) { products_ = p; }
  Products products() const { return products_; }
  /// Under integer execution: "NODE (OP): why" for each node that runs in float.
  std::vector<std::string> float_nodes() const;

  void set_mode(Mode mode) { mode_ = mode; }
  Mode mode() const { return mode_; }

  /// Moves parameters, their gradients and buffers into a device's memory; the network then runs there. Optimizers must be made after it, or have no state yet.
  void to(Device device);
  /// Where its first parameter is; the cpu when it has none.
  Device device();

  /// Runs the network on images [n,h,w,c], which are moved to its device, and returns the scores [n,classes] there.
  Var operator()(const Tensor& images);
  /// What a run looks at first, for those who run it from a recording: throws Error for NaN and infinity that a quantizer of the input would hide.
  void check_images(const Tensor& images);
  /// Runs with every input given; returns every output.
  std::vector<Var> forward(const Context& context, std::span<const Var> inputs);
  /// Called with each value before and after its transform, in execution order; empty = none. For calibration reports and layer dumps. What is computed on codes has no
  /// value before: it is shown as it is, twice.
  using Tap = std::function<void(Value, const Var& before, const Var& after)>;
  void set_tap(Tap tap) { tap_ = std::move(tap); }
  /// Shows the tap every value up to this one, as operator() would, and computes none behind it. Throws Error without a tap.
  void run_to(const Tensor& images, Value last);

  /// All parameters, in node order, those of transforms (learned ranges) included.
  std::vector<Parameter*> parameters();
  /// Name -> tensor of parameters and buffers without those of transforms: what a weight file holds.
  std::vector<std::pair<std::string, Tensor*>> state();
  void visit(Visitor& visitor, bool with_transforms = true);
  int64_t parameter_count();
  /// Those in the slots of values and parameters, each once.
  std::vector<Transform*> transforms();

 private:
  struct State;
  /// Of every change to nodes, inputs and outputs.
  void edited();
  State& state_here();
  Shape shape_of(const Module& module, const std::vector<Value>& inputs) const;
  std::shared_ptr<const IntegerPlan> current_plan();
  std::vector<Var> run(const Context& context, std::span<const Var> inputs, std::span<const Value> wanted);
  Var moved_here(const Tensor& images);
  void remove_node(int node);
  static void name_parameters(const std::string& name, Module& module);
  void check_node(const char* what, int node) const;
  static void require_finite_input(const ValueInfo& info, const Var& x);
  bool training() const;

  std::vector<Node> nodes_;
  std::vector<ValueInfo> values_;
  std::vector<Value> inputs_, outputs_;
  Mode mode_ = Mode::automatic;
  Execution execution_ = Execution::planned;
  Products products_ = Products::integers;
  std::shared_ptr<const IntegerPlan> integer_;  // null: not prepared, or the graph was edited since
  Tap tap_;
  std::shared_ptr<State> state_;  // goes where the network goes; null: moved away
};

class Graph::Watch {
 public:
  Watch() = default;
  explicit Watch(Graph& graph);
  /// Where the network is now; null when it was destroyed, or another was moved into its place.
  Graph* graph() const;
  /// True when nodes, inputs or outputs have changed since.
  bool edited() const;

 private:
  std::weak_ptr<State> state_;
  uint64_t edits_ = 0;
};

}  // namespace detent::nn
