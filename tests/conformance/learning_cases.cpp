// Gradients: straight-through and learned ranges, through the library's ops and optimizer.
#include "cases.h"
#include "detent/autograd/ops.h"
#include "detent/core/error.h"
#include "detent/nn/optimizer.h"

namespace detent::conformance {
namespace {

struct Learned {
  std::vector<double> y, dx, dmin, dmax;
};

// One forward and backward of a learned quantizer; min and max have one entry per channel.
Learned learn(const Tensor& x, const Tensor& dy, const std::vector<double>& min, const std::vector<double>& max, const ChannelView& view, const GridSpec& spec) {
  std::vector<Grid> grids;
  for (size_t i = 0; i < min.size(); ++i) grids.push_back(grid_from_range(learned_range({min[i], max.at(i)}, spec), spec));
  Tape tape;
  const Var vx = tape.watch(x), vmin = tape.watch(to_tensor(min)), vmax = tape.watch(to_tensor(max));
  const Var y = fake_quant_learned(vx, vmin, vmax, grids, view, spec);
  tape.backward(y, dy);
  return {to_doubles(y.dense()), to_doubles(tape.grad(vx)), to_doubles(tape.grad(vmin)), to_doubles(tape.grad(vmax))};
}

Json range_learning_backward(const Case& c) {
  const Json& p = c.params();
  const Tensor x = to_tensor(c.numbers("x")), dy = to_tensor(c.numbers("grad_out"));
  const Learned l = learn(x, dy, {p.at("encoding_min").get<double>()}, {p.at("encoding_max").get<double>()}, {1, 1, x.elements()}, c.spec());
  return {{"y", l.y}, {"grad_x", l.dx}, {"grad_min", l.dmin[0]}, {"grad_max", l.dmax[0]}};
}

Json range_learning_backward_per_channel(const Case& c) {
  const Json& p = c.params();
  DETENT_CHECK(c.inputs().at("channel_axis") == "last", "another channel axis than the last");
  const Shape shape = shape_of(c);
  const Learned l = learn(to_tensor(c.numbers("x"), shape), to_tensor(c.numbers("grad_out"), shape), flatten(p.at("encoding_min")), flatten(p.at("encoding_max")), channel_view(shape, -1), c.spec());
  return {{"y", l.y}, {"grad_x", nest(l.dx, c.inputs().at("x"))}, {"grad_min", l.dmin}, {"grad_max", l.dmax}};
}

Json range_learning_forward(const Case& c) {
  const Json& p = c.params();
  const Grid g = grid_from_range(learned_range({p.at("encoding_min"), p.at("encoding_max")}, c.spec()), c.spec());
  const Tensor x = to_tensor(c.numbers("x"));
  return {{"y", to_doubles(fake_quant_ste(Var(x), {&g, 1}, {1, 1, x.elements()}).dense())}};
}

// One step of the library's SGD on the learned bounds; loss = sum(y).
Json range_learning_sgd_step(const Case& c) {
  const Json& p = c.params();
  DETENT_CHECK(p.at("optimizer") == "SGD momentum 0.5" && p.at("loss") == "sum(y)", "another optimizer or loss");
  const Tensor x = to_tensor(c.numbers("x"));
  nn::Parameter min, max;
  min.name = "min", max.name = "max";
  min.value = to_tensor({p.at("encoding_min").get<double>()});
  max.value = to_tensor({p.at("encoding_max").get<double>()});
  const Grid g = grid_from_range({p.at("encoding_min"), p.at("encoding_max")}, c.spec());
  {
    Tape tape;
    const Var y = fake_quant_learned(Var(x), Tape::leaf(min), Tape::leaf(max), {&g, 1}, {1, 1, x.elements()}, c.spec());
    tape.backward(y, to_tensor(c.numbers("grad_out")));
  }
  nn::Sgd sgd({.learning_rate = p.at("lr").get<float>(), .momentum = 0.5f});
  sgd.step(std::vector<nn::Parameter*>{&min, &max});
  return {{"encoding_min", to_doubles(min.value)[0]}, {"encoding_max", to_doubles(max.value)[0]}};
}

Json ste_backward(const Case& c) {
  const Grid g = grid_of_minmax(c.params().at("min"), c.params().at("max"), c.params().value("bw", 8));
  Tape tape;
  const Var x = tape.watch(to_tensor(c.numbers("x")));
  const Var y = fake_quant_ste(x, {&g, 1}, {1, 1, x.shape().elements()});
  tape.backward(y, to_tensor(c.numbers("grad_out")));
  return {{"grad_x", to_doubles(tape.grad(x))}};
}

// A 1x1 convolution of one input channel with input, weight and output on one learned range.
Json learned_conv1x1_backward(const Case& c) {
  const std::vector<double> xs = c.numbers("x"), ws = c.numbers("W");
  GridSpec spec;
  spec.bits = c.params().at("bw");
  const Range range{c.params().at("range").at(0), c.params().at("range").at(1)};
  const Grid g = grid_from_range(range, spec);
  Tape tape;
  const Var x = tape.watch(to_tensor(xs, Shape{1, 1, static_cast<int64_t>(xs.size()), 1})), w = tape.watch(to_tensor(ws, Shape{static_cast<int64_t>(ws.size()), 1, 1, 1}));
  const Var min(to_tensor({range.min})), max(to_tensor({range.max}));
  const auto on_grid = [&](const Var& v) { return fake_quant_learned(v, min, max, {&g, 1}, {1, 1, v.shape().elements()}, spec); };
  const Var y = on_grid(conv2d(on_grid(x), on_grid(w)));
  tape.backward(y, to_tensor(c.numbers("grad_out"), y.shape()));
  return {{"grad_x_elem1", to_doubles(tape.grad(x)).at(1)}, {"grad_W_elem1", to_doubles(tape.grad(w)).at(1)}};
}

}  // namespace

void add_learning_runners(Runners& r) {
  r["range_learning_backward"] = range_learning_backward;
  r["range_learning_backward_per_channel"] = range_learning_backward_per_channel;
  r["range_learning_forward"] = range_learning_forward;
  r["range_learning_sgd_step"] = range_learning_sgd_step;
  r["ste_backward"] = ste_backward;
  r["learned_conv1x1_backward"] = learned_conv1x1_backward;
}

}  // namespace detent::conformance
