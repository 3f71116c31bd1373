// Tape: records operations while it is alive on this thread; no tape = inference. backward() walks it once in reverse, moving each closure out,
// so what it saved is freed as the walk proceeds. One tape per thread is active at a time (the innermost).
#pragma once

#include <functional>
#include <initializer_list>
#include <span>
#include <unordered_map>
#include <vector>

#include "detent/autograd/profile.h"
#include "detent/autograd/var.h"

namespace detent {

/// What a gradient is like: its value's shape and type (f32 or bf16).
struct GradientLike {
  Shape shape;
  DType dtype = DType::f32;
};

/// Where a backward closure puts the gradients of the op's inputs.
class GradSink {
 public:
  /// Is the gradient of input i wanted? Skip its computation when not.
  bool needs(int i) const { return slots_[static_cast<size_t>(i)] >= 0; }
  /// Gives the gradient of input i, of its shape, as f32 or bf16: the first is moved in, later ones are added in place. Throws Error for another shape, and for an input
  /// that the op does not have.
  void add(int i, Tensor grad);

 private:
  friend class Tape;
  GradSink(const char* op, std::vector<Tensor>& grads, std::span<const GradientLike> likes, std::span<const int32_t> slots) : op_(op), grads_(grads), likes_(likes), slots_(slots) {}
  const char* op_;
  std::vector<Tensor>& grads_;
  std::span<const GradientLike> likes_;  // of all slots
  std::span<const int32_t> slots_;
};

/// dy is f32, or bf16 for an op whose result is kept so.
using BackwardFn = std::function<void(const Tensor& dy, GradSink& sink)>;

class Tape {
 public:
  Tape();
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// The innermost tape of this thread, or null.
  static Tape* active();

  /// The leaf as a Var; tracked when the leaf is trainable and a tape is active.
  static Var leaf(Leaf& leaf);
  /// A Var that gradients are wanted for without being a leaf (tests, distillation on inputs); read with grad().
  Var watch(Tensor value);

  /// Records an op. Without an active tape or tracked input the result is a constant and the closure is dropped.
  static Var record(const char* op, std::span<const Var> inputs, Var output, BackwardFn backward);
  static Var record(const char* op, std::initializer_list<Var> inputs, Var output, BackwardFn backward) {
    return record(op, std::span<const Var>(inputs.begin(), inputs.size()), std::move(output), std::move(backward));
  }

  /// d loss / d leaf into Leaf::grad for every leaf reached (overwriting), and into grad() for watched Vars. The loss has one element. Consumes the tape:
  /// a second walk is an Error. Several losses are added first.
  void backward(const Var& loss);
  /// The same from a given upstream gradient of any shape.
  void backward(const Var& y, const Tensor& dy);
  /// The gradient of a watched Var after backward; undefined when none reached it.
  Tensor grad(const Var& v) const;

  size_t size() const { return nodes_.size(); }

 private:
  friend class NoGrad;
  struct Node {
    const char* op;
    int32_t output;
    std::vector<int32_t> inputs;
    BackwardFn backward;
    Profile::Mark layer;
  };
  int32_t new_slot(const Var& value);

  uint64_t id_;
  Tape* outer_;
  bool walked_ = false;
  std::vector<GradientLike> likes_;  // by slot
  std::vector<Node> nodes_;
  std::unordered_map<Leaf*, int32_t> leaves_;
  std::vector<int32_t> watched_;
  std::vector<Tensor> grads_;
};

/// While alive no tape records on this thread; the tape that was active continues afterwards.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  Tape* suspended_;
};

/// True while a tape records on this thread: modules in training mode consult Context::training instead.
inline bool grad_enabled() { return Tape::active() != nullptr; }

}  // namespace detent
