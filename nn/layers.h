// The layers a Graph is built of. Shapes are [n,h,w,c]; conv weights [k,r,s,c/groups]; dense weights [out,in].
// Options that make no sense throw Error from the constructor or from infer(), and from Graph::add() when they would change the number of images, the first axis.
// A layer is used by one thread at a time, but that several may run an evaluated Graph (nn/graph.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "detent/autograd/ops.h"
#include "detent/core/rng.h"
#include "detent/nn/module.h"

namespace detent::nn {

/// What Conv2d and Dense are: output channels first in the weight, and a bias per channel.
class WeightedLayer : public Module {
 public:
  void visit(const std::string& prefix, Visitor& visitor) override;
  bool has_bias() const { return bias.value.defined(); }
  /// Gives the layer a bias of zeros when it has none.
  void ensure_bias();
  Parameter weight;
  Parameter bias;  ///< value undefined when there is none
};

/// ONNX Conv. Weights start uninitialised: initialize() or a weight file fills them.
class Conv2d final : public WeightedLayer {
 public:
  struct Options {
    int64_t in = 0, out = 0;
    int64_t kernel_h = 1, kernel_w = 1;
    Conv2dSpec spec = {};
    bool bias = false;
  };
  explicit Conv2d(const Options& options);
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;

  const Options& options() const { return options_; }
  /// That of the options, with what the context says.
  Conv2dSpec spec(const Context& context) const;
  bool depthwise() const { return options_.spec.groups == options_.in && options_.spec.groups > 1; }

 private:
  Options options_;
};

/// ONNX Gemm (transB = 1).
class Dense final : public WeightedLayer {
 public:
  struct Options {
    int64_t in = 0, out = 0;
    bool bias = true;
  };
  explicit Dense(const Options& options);
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  const Options& options() const { return options_; }

 private:
  Options options_;
};

/// ONNX BatchNormalization over the last axis. running = (1 - momentum) * running + momentum * batch, as PyTorch.
class BatchNorm final : public Module {
 public:
  struct Options {
    int64_t channels = 0;
    float eps = 1e-5f;
    float momentum = 0.1f;
  };
  explicit BatchNorm(const Options& options);
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  void visit(const std::string& prefix, Visitor& visitor) override;
  const Options& options() const { return options_; }
  Options& options() { return options_; }
  Parameter weight, bias;  ///< gamma, beta
  Tensor running_mean, running_var;
  bool frozen = false;  ///< true: statistics fixed, also while training

 private:
  Options options_;
};

/// A pointwise function: Relu, Clip, LeakyRelu, Sigmoid, HardSwish...
class Activation final : public Module {
 public:
  explicit Activation(Pointwise op);
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  const Pointwise& op() const { return op_; }

 private:
  Pointwise op_;
};
Pointwise relu_op();
Pointwise clip_op(float lo, float hi);

/// Add, Sub, Mul, Div of two values with broadcasting.
class Binary final : public Module {
 public:
  explicit Binary(BinaryOp op) : op_(op) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  BinaryOp op() const { return op_; }

 private:
  BinaryOp op_;
};

/// Add, Sub, Mul, Div of a value and a constant that broadcasts to it. The constant is a buffer: stored with the weights, not trained.
class ConstantOperand final : public Module {
 public:
  /// constant_first: the constant is the left operand.
  ConstantOperand(BinaryOp op, Tensor constant, bool constant_first = false);
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  void visit(const std::string& prefix, Visitor& visitor) override;
  BinaryOp op() const { return op_; }
  bool constant_first() const { return constant_first_; }
  const Tensor& constant() const { return constant_; }
  std::string stored_name;  ///< when not empty, the buffer's name instead of NODE.constant

 private:
  BinaryOp op_;
  Tensor constant_;
  bool constant_first_;
};

/// ONNX PRelu: one slope for each channel, or one for all.
class PRelu final : public Module {
 public:
  explicit PRelu(int64_t slopes);
  OpDesc describe() const override { return {"PRelu", {}}; }
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  void visit(const std::string& prefix, Visitor& visitor) override;
  Parameter weight;
};

class Concat final : public Module {
 public:
  explicit Concat(int axis) : axis_(axis) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  int axis() const { return axis_; }

 private:
  int axis_;
};

class MaxPool final : public Module {
 public:
  explicit MaxPool(const PoolSpec& spec) : spec_(spec) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  bool preserves_grid() const override { return true; }
  const PoolSpec& spec() const { return spec_; }

 private:
  PoolSpec spec_;
};

class AveragePool final : public Module {
 public:
  explicit AveragePool(const PoolSpec& spec) : spec_(spec) {}
  /// One window over the whole of x [n,h,w,c]: a global pool, and exported as one.
  bool is_global(const Shape& x) const;
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  const PoolSpec& spec() const { return spec_; }

 private:
  PoolSpec spec_;
};

/// [n,h,w,c] -> [n,1,1,c].
class GlobalAveragePool final : public Module {
 public:
  OpDesc describe() const override { return {"GlobalAveragePool", {}}; }
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
};

/// Zero padding; amounts per dimension, batch included (0).
class Pad final : public Module {
 public:
  Pad(std::vector<int64_t> before, std::vector<int64_t> after) : before_(std::move(before)), after_(std::move(after)) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  bool preserves_grid() const override { return true; }
  const std::vector<int64_t>& before() const { return before_; }
  const std::vector<int64_t>& after() const { return after_; }

 private:
  std::vector<int64_t> before_, after_;
};

/// x[start:end:step] on some axes.
class Slice final : public Module {
 public:
  struct Range {
    int axis = 0;
    int64_t start = 0;
    int64_t end = INT64_MAX;
    int64_t step = 1;
  };
  explicit Slice(std::vector<Range> ranges) : ranges_(std::move(ranges)) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  bool preserves_grid() const override { return true; }
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  std::vector<Range> ranges_;
};

/// [n, ...] -> [n, product].
class Flatten final : public Module {
 public:
  OpDesc describe() const override { return {"Flatten", {{"axis", int64_t{1}}}}; }
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  bool preserves_grid() const override { return true; }
};

/// [n, ...] -> [n, shape...].
class Reshape final : public Module {
 public:
  explicit Reshape(std::vector<int64_t> shape) : shape_(std::move(shape)) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  bool preserves_grid() const override { return true; }
  const std::vector<int64_t>& shape() const { return shape_; }

 private:
  std::vector<int64_t> shape_;
};

class Transpose final : public Module {
 public:
  explicit Transpose(std::vector<int> permutation) : permutation_(std::move(permutation)) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  bool preserves_grid() const override { return true; }
  const std::vector<int>& permutation() const { return permutation_; }

 private:
  std::vector<int> permutation_;
};

class Resize final : public Module {
 public:
  explicit Resize(const ResizeSpec& options) : options_(options) {}
  OpDesc describe() const override;
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
  bool preserves_grid() const override { return options_.mode == ResizeMode::nearest; }
  const ResizeSpec& options() const { return options_; }

 private:
  ResizeSpec options_;
};

/// Over the last axis.
class Softmax final : public Module {
 public:
  OpDesc describe() const override { return {"Softmax", {{"axis", int64_t{-1}}}}; }
  Shape infer(std::span<const Shape> inputs) const override;
  Var forward(const Context& context, std::span<const Var> inputs) override;
};

class Graph;
struct InitOptions {
  uint64_t seed = 0;
  bool zero_last_norm_scale = false;  ///< zero gamma of a batch norm that feeds an Add (Goyal et al. 2017 §5.1): residual branches start silent
};
/// He-normal (fan out) conv weights, uniform dense weights, unit batch norms: a fresh start, a function of seed and parameter names only.
void initialize(Graph& graph, const InitOptions& options = {});

}  // namespace detent::nn
