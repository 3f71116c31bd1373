#include "detent/nn/graph.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "detent/autograd/ops_integer.h"
#include "detent/autograd/profile.h"
#include "detent/core/error.h"
#include "detent/nn/host_reads.h"
#include "detent/nn/integer_plan.h"
#include "detent/nn/plan.h"

namespace detent::nn {

// More images than a layer's options speak of: what it does to the first axis shows.
constexpr int64_t kManyImages = 1000003;

struct Graph::State {
  Graph* self = nullptr;
  uint64_t edits = 0;
  std::mutex preparing;  // of integer_, by the threads that run the network
};

Graph::Graph() { state_here(); }
Graph::~Graph() = default;
Graph::Graph(Graph&& other) noexcept { *this = std::move(other); }

Graph& Graph::operator=(Graph&& other) noexcept {
  if (this == &other) return *this;
  nodes_ = std::exchange(other.nodes_, {});
  values_ = std::exchange(other.values_, {});
  inputs_ = std::exchange(other.inputs_, {});
  outputs_ = std::exchange(other.outputs_, {});
  mode_ = other.mode_;
  execution_ = other.execution_;
  products_ = other.products_;
  integer_ = std::exchange(other.integer_, nullptr);
  tap_ = std::exchange(other.tap_, nullptr);
  state_ = std::exchange(other.state_, nullptr);
  if (state_) state_->self = this;
  return *this;
}

Graph::State& Graph::state_here() {
  if (!state_) {
    state_ = std::make_shared<State>();
    state_->self = this;
  }
  return *state_;
}

void Graph::edited() {
  ++state_here().edits;
  integer_.reset();
}

Graph::Watch::Watch(Graph& graph) : edits_(graph.state_here().edits) { state_ = graph.state_; }

Graph* Graph::Watch::graph() const {
  const std::shared_ptr<State> s = state_.lock();
  return s ? s->self : nullptr;
}

bool Graph::Watch::edited() const {
  const std::shared_ptr<State> s = state_.lock();
  return !s || s->edits != edits_;
}

static Shape with_batch(const Shape& shape) {
  std::vector<int64_t> e{1};
  for (int64_t d : shape.extents()) e.push_back(d);
  return Shape(std::span<const int64_t>(e));
}

Value Graph::input(const std::string& name, const Shape& shape) {
  DETENT_CHECK(find_value(name).id < 0, "graph: the name \"", name, "\" is taken; names are keys and must be unique");
  edited();
  values_.push_back({name, with_batch(shape), -1, nullptr});
  inputs_.push_back({value_count() - 1, state_.get()});
  return inputs_.back();
}

// Declared for one image, run with any number of them: the first axis must pass as it is.
Shape Graph::shape_of(const Module& module, const std::vector<Value>& inputs) const {
  std::vector<Shape> shapes;
  for (const Value v : inputs) shapes.push_back(value(v).shape);
  const Shape one = module.infer(shapes);
  if (inputs.empty()) return one;
  for (Shape& s : shapes) s.set(0, kManyImages);
  Shape many, wanted = one;
  try {
    many = module.infer(shapes);
  } catch (const Error& e) {
    fail("it makes ", one, " of one image and takes no ", kManyImages, " (the first axis is that of the images, of which there may be any number): ", e.what());
  }
  if (wanted.rank() > 0) wanted.set(0, kManyImages);
  DETENT_CHECK(one.rank() > 0 && one[0] == 1 && many == wanted, "it makes ", one, " of one image and ", many, " of ", kManyImages,
               "; the first axis is that of the images, which no node may change");
  return one;
}

Value Graph::add(const std::string& name, std::unique_ptr<Module> module, std::vector<Value> inputs) {
  DETENT_CHECK(!name.empty(), "graph: a node needs a name");
  DETENT_CHECK(module, "graph: node \"", name, "\" was given no module");
  DETENT_CHECK(find_value(name).id < 0, "graph: the name \"", name, "\" is taken; names are keys and must be unique");
  for (const Value v : inputs) value(v);
  const OpDesc desc = module->describe();
  Shape shape;
  try {
    shape = shape_of(*module, inputs);
  } catch (const Error& e) {
    fail("graph: node \"", name, "\" (", desc.op, "): ", e.what());
  }
  name_parameters(name, *module);
  edited();
  const Value out{value_count(), state_.get()};
  values_.push_back({name, shape, static_cast<int>(nodes_.size()), nullptr});
  nodes_.push_back({name, std::move(module), std::move(inputs), out, desc.op});
  return out;
}

// Names are keys of optimizers, checkpoints and exports: a module that leaves one out would share another's state.
void Graph::name_parameters(const std::string& name, Module& module) {
  Visitor naming;
  naming.parameter = [&](Parameter& p) { DETENT_CHECK(!p.name.empty(), "graph: node \"", name, "\": its visit() gives a parameter without a name; set it from the prefix"); };
  naming.buffer = [](const std::string&, Tensor&) {};
  module.visit(name, naming);
}

void Graph::check_node(const char* what, int node) const {
  DETENT_CHECK(node >= 0 && node < std::ssize(nodes_), "graph: ", what, " of node ", node, ", there are ", nodes_.size());
}

void Graph::output(Value v) {
  value(v);
  edited();
  outputs_.push_back({v.id, state_.get()});
}

const Graph::ValueInfo& Graph::value(Value v) const {
  DETENT_CHECK(v.id >= 0 && v.id < value_count(), "graph: value ", v.id, " does not exist");
  DETENT_CHECK(!v.graph || v.graph == state_.get(), "graph: value ", v.id, " is one of another graph; here it would be \"", values_[static_cast<size_t>(v.id)].name,
               "\". Use what this graph's input(), add() and find_value() return");
  return values_[static_cast<size_t>(v.id)];
}

Graph::ValueInfo& Graph::value(Value v) { return const_cast<ValueInfo&>(std::as_const(*this).value(v)); }

const Graph::Node* Graph::find(const std::string& name) const {
  for (const Node& n : nodes_) {
    if (n.name == name) return &n;
  }
  return nullptr;
}

Graph::Node* Graph::find(const std::string& name) { return const_cast<Node*>(std::as_const(*this).find(name)); }

Value Graph::find_value(const std::string& name) const {
  for (int i = 0; i < value_count(); ++i) {
    if (values_[static_cast<size_t>(i)].name == name) return {i, state_.get()};
  }
  return {};
}

std::vector<int> Graph::consumers(Value v) const {
  std::vector<int> found;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    for (Value in : nodes_[i].inputs) {
      if (in == v) found.push_back(static_cast<int>(i));
    }
  }
  return found;
}

bool Graph::is_output(Value v) const { return std::find(outputs_.begin(), outputs_.end(), v) != outputs_.end(); }

std::vector<bool> Graph::live_values() const {
  std::vector<bool> live(values_.size(), false);
  for (const Value v : outputs_) live[static_cast<size_t>(v.id)] = true;
  for (auto n = nodes_.rbegin(); n != nodes_.rend(); ++n) {
    if (!live[static_cast<size_t>(n->output.id)]) continue;
    for (const Value v : n->inputs) live[static_cast<size_t>(v.id)] = true;
  }
  return live;
}

Value Graph::scores() const {
  DETENT_CHECK(!outputs_.empty(), "graph: no output was declared");
  const Value out = outputs_[0];
  const int producer = value(out).producer;
  if (producer >= 0 && nodes_[static_cast<size_t>(producer)].op == "Softmax") return nodes_[static_cast<size_t>(producer)].inputs[0];
  return out;
}

void Graph::remove_node(int node) {
  edited();
  // The value of a removed node stays as an unreachable entry: ids of the others do not move.
  nodes_.erase(nodes_.begin() + node);
  for (ValueInfo& v : values_) {
    if (v.producer > node) --v.producer;
  }
}

void Graph::bypass(int node) {
  check_node("bypass", node);
  const Node& n = nodes_[static_cast<size_t>(node)];
  DETENT_CHECK(n.inputs.size() == 1 && value(n.inputs[0]).shape == value(n.output).shape, "graph: node \"", n.name, "\" cannot be bypassed: it changes the shape");
  const Value from = n.output, to = n.inputs[0];
  for (Node& m : nodes_) std::replace(m.inputs.begin(), m.inputs.end(), from, to);
  std::replace(outputs_.begin(), outputs_.end(), from, to);
  value(from).producer = -1;
  value(from).name.clear();
  remove_node(node);
}

void Graph::absorb(int node) {
  check_node("absorb", node);
  const Node& n = nodes_[static_cast<size_t>(node)];
  DETENT_CHECK(!n.inputs.empty(), "graph: node \"", n.name, "\" cannot be absorbed: it has no input");
  const Value gone = n.inputs[0], stays = n.output;
  const int producer = value(gone).producer;
  DETENT_CHECK(producer >= 0 && consumers(gone).size() == 1 && !is_output(gone), "graph: node \"", n.name, "\" cannot be absorbed: its input has other readers");
  nodes_[static_cast<size_t>(producer)].output = stays;
  value(stays).producer = producer;
  value(gone).producer = -1;
  value(gone).name.clear();
  remove_node(node);
}

void Graph::replace(int node, std::unique_ptr<Module> module) {
  check_node("replace", node);
  Node& n = nodes_[static_cast<size_t>(node)];
  DETENT_CHECK(module, "graph: replacing \"", n.name, "\" by no module");
  const Shape shape = shape_of(*module, n.inputs);
  DETENT_CHECK(shape == value(n.output).shape, "graph: replacing \"", n.name, "\" would change its shape from ", value(n.output).shape, " to ", shape);
  name_parameters(n.name, *module);
  n.op = module->describe().op;
  n.module = std::move(module);
  edited();
}

void Graph::set_execution(Execution e) {
  integer_.reset();
  if (e == Execution::integer) {
    DETENT_CHECK(device().type == DeviceType::cpu, "graph: integer execution runs on the cpu, the network is elsewhere; to(Device{}) brings it back");
    integer_ = std::make_shared<const IntegerPlan>(compile_integer_plan(*this));
  }
  execution_ = e;
}

// Of several threads that find the weights written to, one prepares them; each keeps the plan it runs.
std::shared_ptr<const IntegerPlan> Graph::current_plan() {
  const std::lock_guard lock(state_here().preparing);
  DETENT_CHECK(integer_, "graph: the network was edited since set_execution(integer); call it again");
  integer_->require_current(*this);
  if (!integer_->weights_as_prepared()) integer_ = std::make_shared<const IntegerPlan>(compile_integer_plan(*this));
  return integer_;
}

std::vector<std::string> Graph::float_nodes() const {
  std::vector<std::string> found;
  for (const PlanStep& s : integer_ ? integer_->steps : std::vector<PlanStep>()) {
    const Node& n = nodes_[static_cast<size_t>(s.head)];
    if (!s.on_codes) found.push_back(text(n.name, " (", n.op, "): ", s.in_float));
  }
  return found;
}

bool Graph::training() const { return mode_ == Mode::automatic ? grad_enabled() : mode_ == Mode::training; }

Var Graph::moved_here(const Tensor& images) {
  DETENT_CHECK(inputs_.size() == 1, "graph: called with one input, but it has ", inputs_.size());
  return images.to(device());
}

void Graph::run_to(const Tensor& images, Value last) {
  DETENT_CHECK(tap_, "graph: run_to \"", value(last).name, "\" without a tap; set_tap first");
  const Var in = moved_here(images);
  run({.training = training()}, {&in, 1}, {&last, 1});
}

Var Graph::operator()(const Tensor& images) {
  const Var in = moved_here(images);
  // Every declared output runs too (a Softmax behind the scores has a quantizer to calibrate).
  std::vector<Value> wanted{scores()};
  for (Value v : outputs_) wanted.push_back(v);
  return run({.training = training()}, {&in, 1}, wanted)[0];
}

std::vector<Var> Graph::forward(const Context& context, std::span<const Var> inputs) { return run(context, inputs, outputs_); }

// A quantizer makes numbers of NaN and infinity: nothing behind it would notice.
void Graph::require_finite_input(const ValueInfo& info, const Var& x) {
  if (!info.transform || !info.transform->active_grids() || x.coded() || x.dtype() != DType::f32 || backend(x.device()).recording()) return;
  const FloatSpan span{x.dense().data<float>(), x.shape().elements()};
  int64_t bad = 0;
  backend(x.device()).kernels().count_nonfinite(&span, 1, &bad);
  DETENT_CHECK(bad == 0, "graph: input \"", info.name, "\" ", x.shape(), " holds ", bad, " values that are NaN or infinite; look at the data");
}

void Graph::check_images(const Tensor& images) {
  if (inputs_.size() == 1) require_finite_input(value(inputs_[0]), images);
}

std::vector<Var> Graph::run(const Context& given, std::span<const Var> inputs, std::span<const Value> wanted) {
  DETENT_CHECK(inputs.size() == inputs_.size(), "graph: ", inputs.size(), " inputs given, ", inputs_.size(), " expected");
  const std::vector<Transform*> all_transforms = transforms();
  const Device device = inputs.empty() ? Device{} : inputs[0].device();
  const HostReads reads(all_transforms, device);
  Context context = given;
  // A float network that is trained in bf16 keeps its values so between the layers: half the memory, and half the traffic that a GPU waits for. Quantizers see f32.
  context.bf16 = context.bf16 || (all_transforms.empty() && grad_enabled() && backend(device).keeps_bf16());
  std::vector<Var> vars(values_.size());
  const bool integer = execution_ == Execution::integer;
  DETENT_CHECK(!integer || !grad_enabled(), "graph: integer execution has no gradients; set_execution(planned) to train");
  const std::shared_ptr<const IntegerPlan> plan = integer ? current_plan() : nullptr;
  const auto place = [&](Value v, const Var& x) {
    const ValueInfo& info = values_[static_cast<size_t>(v.id)];
    const bool codes = integer && plan->grids[static_cast<size_t>(v.id)];
    Var y = codes ? to_codes(x, *plan->grids[static_cast<size_t>(v.id)]) : info.transform ? info.transform->apply(context, x) : x;
    if (codes && info.transform) y.set_grids(*info.transform->active_grids());
    if (tap_) tap_(v, x, y);
    return y;
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    const ValueInfo& info = value(inputs_[i]);
    const Shape& s = inputs[i].shape();
    bool fits = s.rank() == info.shape.rank() && s[0] > 0;
    for (int d = 1; fits && d < s.rank(); ++d) fits = s[d] == info.shape[d];
    DETENT_CHECK(fits, "graph: input \"", info.name, "\" is ", s, ", expected ", info.shape, " with any batch size of at least 1");
    require_finite_input(info, inputs[i]);
    vars[static_cast<size_t>(inputs_[i].id)] = place(inputs_[i], inputs[i]);
  }
  // A tap sees every value, so nothing may be fused under it (but what is computed on codes); integers have no values inside a step to show.
  const bool planned = integer || (execution_ == Execution::planned && !tap_);
  const std::vector<PlanStep> compiled = integer ? std::vector<PlanStep>() : compile_plan(*this, planned ? Fuse::all : Fuse::integers);
  const std::vector<PlanStep>& steps = integer ? plan->steps : compiled;
  std::vector<int> uses(values_.size(), 0);
  for (const PlanStep& s : steps) {
    for (const Value v : step_inputs(*this, s)) ++uses[static_cast<size_t>(v.id)];
  }
  for (const Value v : wanted) ++uses[static_cast<size_t>(v.id)];
  std::vector<Var> in;
  const auto missing = [&](Value v) { return !vars[static_cast<size_t>(v.id)].defined(); };
  for (const PlanStep& s : steps) {
    if (std::none_of(wanted.begin(), wanted.end(), missing)) break;
    in.clear();
    for (const Value v : step_inputs(*this, s)) {
      Var& x = vars[static_cast<size_t>(v.id)];
      in.push_back(x);
      if (--uses[static_cast<size_t>(v.id)] == 0) x = Var();
    }
    if (uses[static_cast<size_t>(s.output.id)] == 0) continue;
    const Profile::Section section(value(s.output).name);
    Var y;
    if (planned) {
      y = run_step(*this, s, context, in);
      if (integer && tap_) {
        // Shown on the quantizer's own grid: bytes may be shifted.
        Var shown = y;
        if (const std::optional<Grid>& own = plan->prepared[static_cast<size_t>(s.output.id)]) shown.set_grids({*own});
        tap_(s.output, shown, shown);
      }
    } else if (is_on_codes(*this, s, in)) {
      y = run_step(*this, s, context, in);
      if (tap_) tap_(s.output, y, y);
    } else {
      y = place(s.output, run_apart(*this, s, context, in));
    }
    in.clear();
    vars[static_cast<size_t>(s.output.id)] = std::move(y);
  }
  std::vector<Var> result;
  for (Value v : wanted) result.push_back(vars[static_cast<size_t>(v.id)]);
  return result;
}

// Each once: a tied transform sits in several slots.
std::vector<Transform*> Graph::transforms() {
  std::vector<Transform*> all;
  const auto take = [&](const std::shared_ptr<Transform>& t) {
    if (t && std::find(all.begin(), all.end(), t.get()) == all.end()) all.push_back(t.get());
  };
  for (const ValueInfo& v : values_) take(v.transform);
  Visitor v;
  v.parameter = [&](Parameter& p) { take(p.transform); };
  visit(v, false);
  return all;
}

void Graph::visit(Visitor& visitor, bool with_transforms) {
  Visitor outer;
  outer.buffer = [&](const std::string& name, Tensor& t) {
    if (visitor.buffer) visitor.buffer(name, t);
  };
  outer.parameter = [&](Parameter& p) {
    if (visitor.parameter) visitor.parameter(p);
    if (with_transforms && p.transform) p.transform->visit(p.name, visitor);
  };
  if (with_transforms) {
    for (Value v : inputs_) {
      if (value(v).transform) value(v).transform->visit(value(v).name, visitor);
    }
  }
  for (Node& n : nodes_) {
    n.module->visit(n.name, outer);
    const ValueInfo& out = value(n.output);
    if (with_transforms && out.transform) out.transform->visit(out.name, visitor);
  }
}

void Graph::to(Device device) {
  Visitor v;
  v.parameter = [&](Parameter& p) {
    p.value = p.value.to(device);
    if (p.grad.defined()) p.grad = p.grad.to(device);
  };
  v.buffer = [&](const std::string&, Tensor& t) { t = t.to(device); };
  visit(v);
}

Device Graph::device() {
  Device found;
  bool seen = false;
  Visitor v;
  v.parameter = [&](Parameter& p) {
    if (!seen) found = p.value.device();
    seen = true;
  };
  visit(v, false);
  return found;
}

std::vector<Parameter*> Graph::parameters() {
  std::vector<Parameter*> all;
  Visitor v;
  v.parameter = [&](Parameter& p) {
    // A tied transform sits in several slots; it is one set of parameters.
    if (std::find(all.begin(), all.end(), &p) == all.end()) all.push_back(&p);
  };
  visit(v);
  return all;
}

std::vector<std::pair<std::string, Tensor*>> Graph::state() {
  std::vector<std::pair<std::string, Tensor*>> all;
  Visitor v;
  v.parameter = [&](Parameter& p) { all.emplace_back(p.name, &p.value); };
  v.buffer = [&](const std::string& name, Tensor& t) { all.emplace_back(name, &t); };
  visit(v, false);
  return all;
}

int64_t Graph::parameter_count() {
  int64_t n = 0;
  Visitor v;
  v.parameter = [&](Parameter& p) { n += p.value.elements(); };
  visit(v, false);
  return n;
}

}  // namespace detent::nn
