#include "detent/autograd/tape.h"

#include <atomic>

#include "detent/core/backend.h"

namespace detent {
namespace {
thread_local Tape* active_tape = nullptr;
thread_local uint64_t active_id = 0;
std::atomic<uint64_t> next_id{1};
}  // namespace

Var::Var(Coded coded) : coded_(std::make_shared<const Coded>(std::move(coded))), shape_(coded_->codes.shape()) { set_grids({coded_->grid}, coded_->resident); }

Tensor as_type(const Tensor& x, DType type) {
  if (x.dtype() == type) return x;
  Tensor y(x.shape(), type, x.device());
  const Kernels& k = backend(x.device()).kernels();
  type == DType::bf16 ? k.narrow(y.data<uint16_t>(), x.data<float>(), x.elements()) : k.widen(y.data<float>(), x.data<uint16_t>(), x.elements());
  return y;
}

const Tensor& Var::dense() const {
  if (!value_.defined() && bf16_.defined()) value_ = as_type(bf16_, DType::f32);
  if (!value_.defined() && coded_) {
    Tensor y(shape_, DType::f32, coded_->codes.device());
    backend(y.device()).kernels().dequantize({coded_->codes.data<uint8_t>(), coded_->grid, grids_in(coded_->resident), y.data<float>(), y.elements()});
    value_ = y;
  }
  DETENT_CHECK(value_.defined(), "var: an undefined value was used");
  return value_;
}

bool Var::tracked() const { return slot_ >= 0 && tape_ == active_id && active_tape != nullptr; }

void GradSink::add(int i, Tensor grad) {
  DETENT_CHECK(i >= 0 && static_cast<size_t>(i) < slots_.size(), "backward of ", op_, ": a gradient for input ", i, ", it has ", slots_.size());
  const int32_t slot = slots_[static_cast<size_t>(i)];
  if (slot < 0) return;
  const GradientLike& like = likes_[static_cast<size_t>(slot)];
  DETENT_CHECK(grad.shape() == like.shape, "backward of ", op_, ": the gradient of input ", i, " is ", grad.shape(), ", the input ", like.shape);
  if (grad.dtype() != like.dtype) grad = as_type(grad, like.dtype);
  Tensor& g = grads_[static_cast<size_t>(slot)];
  if (!g.defined()) {
    g = std::move(grad);
    return;
  }
  // A buffer that something else still reads must not change under it.
  if (!g.unique()) g = g.clone();
  const Kernels& k = backend(g.device()).kernels();
  like.dtype == DType::bf16 ? k.accumulate16(g.data<uint16_t>(), grad.data<uint16_t>(), g.elements()) : k.accumulate(g.data<float>(), grad.data<float>(), g.elements());
}

Tape::Tape() : id_(next_id.fetch_add(1)), outer_(active_tape) {
  active_tape = this;
  active_id = id_;
}

Tape::~Tape() {
  active_tape = outer_;
  active_id = outer_ ? outer_->id_ : 0;
}

NoGrad::NoGrad() : suspended_(active_tape) {
  active_tape = nullptr;
  active_id = 0;
}

NoGrad::~NoGrad() {
  active_tape = suspended_;
  active_id = suspended_ ? suspended_->id_ : 0;
}

Tape* Tape::active() { return active_tape; }

int32_t Tape::new_slot(const Var& value) {
  likes_.push_back({value.shape(), value.gradient_type()});
  return static_cast<int32_t>(likes_.size()) - 1;
}

Var Tape::leaf(Leaf& leaf) {
  Var v(leaf.value);
  if (!active_tape || !leaf.trainable) return v;
  const auto [it, inserted] = active_tape->leaves_.try_emplace(&leaf, 0);
  if (inserted) it->second = active_tape->new_slot(v);
  v.slot_ = it->second;
  v.tape_ = active_id;
  return v;
}

Var Tape::watch(Tensor value) {
  Var v(std::move(value));
  v.slot_ = new_slot(v);
  v.tape_ = id_;
  watched_.push_back(v.slot_);
  return v;
}

Var Tape::record(const char* op, std::span<const Var> inputs, Var output, BackwardFn backward) {
  bool wanted = false;
  for (const Var& v : inputs) wanted = wanted || v.tracked();
  if (!wanted) return output;
  Node node{op, active_tape->new_slot(output), {}, std::move(backward), Profile::current()};
  node.inputs.reserve(inputs.size());
  for (const Var& v : inputs) node.inputs.push_back(v.tracked() ? v.slot_ : -1);
  output.slot_ = node.output;
  output.tape_ = active_id;
  active_tape->nodes_.push_back(std::move(node));
  return output;
}

void Tape::backward(const Var& loss) {
  DETENT_CHECK(loss.shape().elements() == 1, "backward: the loss has shape ", loss.shape(), ", not one element; give the upstream gradient");
  backward(loss, Tensor::full(loss.shape(), 1.0f, loss.dense().device()));
}

void Tape::backward(const Var& y, const Tensor& dy) {
  DETENT_CHECK(!walked_, "backward: this tape was walked already, and what it had saved is gone; add the losses and walk once, or record on a new tape");
  DETENT_CHECK(y.slot_ >= 0 && y.tape_ == id_, "backward: the value was not recorded on this tape, or depends on nothing that is trained");
  DETENT_CHECK(y.shape() == dy.shape(), "backward: upstream gradient ", dy.shape(), " for a value of shape ", y.shape());
  walked_ = true;
  grads_.assign(likes_.size(), Tensor());
  grads_[static_cast<size_t>(y.slot_)] = as_type(dy, likes_[static_cast<size_t>(y.slot_)].dtype);
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    Tensor g = std::move(grads_[static_cast<size_t>(node.output)]);
    grads_[static_cast<size_t>(node.output)] = Tensor();
    if (!g.defined()) continue;
    GradSink sink(node.op, grads_, likes_, node.inputs);
    const Profile::Section section(node.op, node.layer);
    node.backward(g, sink);
  }
  for (auto& [leaf, slot] : leaves_) {
    Tensor& g = grads_[static_cast<size_t>(slot)];
    // Two values may have received one buffer (both sides of an add): a leaf's gradient is its own, so that it can be scaled in place.
    if (g.defined()) leaf->grad = g.unique() ? std::move(g) : g.clone();
  }
}

Tensor Tape::grad(const Var& v) const {
  DETENT_CHECK(v.tape_ == id_ && v.slot_ >= 0, "grad: the value was not recorded on this tape");
  return static_cast<size_t>(v.slot_) < grads_.size() ? grads_[static_cast<size_t>(v.slot_)] : Tensor();
}

}  // namespace detent
