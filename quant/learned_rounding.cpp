#include "detent/quant/learned_rounding.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "detent/core/parallel.h"
#include "detent/nn/layers.h"
#include "detent/nn/train.h"
#include "detent/quant/accumulator.h"

namespace detent::quant {
namespace {

using nn::Graph;
using nn::Value;

constexpr int64_t kGrain = 4096;

struct Layer {
  nn::WeightedLayer* module = nullptr;
  nn::Conv2d* conv = nullptr;            // null: a dense layer
  nn::Activation* activation = nullptr;  // the one that alone reads it, or null
  Quantizer* quantizer = nullptr;
  Value input, output;  // output behind the activation
  std::string name;
  uint64_t index = 0;
};

std::vector<Layer> layers_of(Graph& g) {
  std::vector<Layer> layers;
  for (const IntegerLayer& found : integer_layers(g)) {
    const Graph::Node& n = g.nodes()[static_cast<size_t>(found.node)];
    Layer l;
    l.module = &static_cast<nn::WeightedLayer&>(*n.module);
    l.conv = dynamic_cast<nn::Conv2d*>(l.module);
    l.quantizer = found.weight_quantizer;
    l.input = n.inputs[0];
    l.output = n.output;
    l.name = n.name;
    l.index = layers.size();
    const std::vector<int> readers = g.consumers(n.output);
    if (readers.size() == 1 && !g.is_output(n.output) && !g.value(n.output).transform) {
      const Graph::Node& next = g.nodes()[static_cast<size_t>(readers[0])];
      l.activation = dynamic_cast<nn::Activation*>(next.module.get());
      if (l.activation) l.output = next.output;
    }
    layers.push_back(l);
  }
  return layers;
}

// ---- samples -------------------------------------------------------------------------------------------------------------------------------------------

// Rows [y, y + h) and columns [x, x + w) of each image, zero outside of it; origins[i] is the (y, x) of image i.
Tensor windows(const Tensor& from, const std::vector<std::pair<int64_t, int64_t>>& origins, int64_t h, int64_t w) {
  const int64_t n = from.dim(0), height = from.dim(1), width = from.dim(2), c = from.dim(3);
  Tensor to = Tensor::zeros({n, h, w, c});
  for (int64_t i = 0; i < n; ++i) {
    const auto [y0, x0] = origins[static_cast<size_t>(i)];
    const int64_t first = std::max<int64_t>(0, -x0), last = std::min(w, width - x0);
    for (int64_t y = std::max<int64_t>(0, -y0); y < std::min(h, height - y0) && first < last; ++y) {
      const float* const src = from.data<float>() + ((i * height + y0 + y) * width + x0 + first) * c;
      std::copy_n(src, (last - first) * c, to.data<float>() + ((i * h + y) * w + first) * c);
    }
  }
  return to;
}

// What a layer reads in the quantized network and what it should give: windows of whole images, paired.
struct Samples {
  std::vector<Tensor> inputs, targets;
  int64_t images = 0;
};

// The value as the tap shows it, behind its transform.
Tensor value_of(Graph& g, const Tensor& images, Value wanted) {
  Tensor found;
  const nn::TapScope tap(g, [&](Value v, const Var&, const Var& after) {
    if (v == wanted) found = after.dense();
  });
  g.run_to(images, wanted);
  return found.to(Device{});
}

// Weights as they were before they were rounded.
using Originals = std::vector<std::pair<nn::Parameter*, Tensor>>;

// The network with its original weights, within a scope.
class OriginalScope {
 public:
  explicit OriginalScope(Originals& originals) : originals_(originals) { swap(); }
  ~OriginalScope() { swap(); }
  OriginalScope(const OriginalScope&) = delete;
  OriginalScope& operator=(const OriginalScope&) = delete;

 private:
  void swap() {
    for (auto& [p, value] : originals_) std::swap(p->value, value);
  }
  Originals& originals_;
};

Tensor float_value_of(Graph& g, const Tensor& images, Value wanted, Originals& originals) {
  const OriginalScope scope(originals);
  return value_of(g, images, wanted);
}

// Activations stay in float: fitted to inputs with their noise, a layer would learn to give less than it should.
Samples samples_of(QuantSim& sim, const Layer& l, const std::vector<Tensor>& batches, Originals& originals, const RoundingOptions& o) {
  Graph& g = sim.graph();
  const nn::EvaluationScope evaluation(g);
  const FloatScope full_precision(sim);
  Samples s;
  Rng rng(o.seed, 2 * l.index);
  for (const Tensor& images : batches) {
    const Tensor input = value_of(g, images, l.input);
    const Tensor target = float_value_of(g, images, l.output, originals);
    s.images += images.dim(0);
    if (!l.conv) {
      s.inputs.push_back(input);
      s.targets.push_back(target);
      continue;
    }
    const Conv2dSpec& spec = l.conv->options().spec;
    const int64_t h = std::min(o.window, target.dim(1)), w = std::min(o.window, target.dim(2));
    std::vector<std::pair<int64_t, int64_t>> out, in;
    for (int64_t i = 0; i < images.dim(0); ++i) {
      const int64_t y = rng.below(target.dim(1) - h + 1), x = rng.below(target.dim(2) - w + 1);
      out.emplace_back(y, x);
      in.emplace_back(y * spec.stride[0] - spec.padding.top, x * spec.stride[1] - spec.padding.left);
    }
    const auto reach = [&](int i, int64_t pixels, int64_t kernel) { return (pixels - 1) * spec.stride[i] + spec.dilation[i] * (kernel - 1) + 1; };
    s.inputs.push_back(windows(input, in, reach(0, h, l.conv->options().kernel_h), reach(1, w, l.conv->options().kernel_w)));
    s.targets.push_back(windows(target, out, h, w));
  }
  return s;
}

// The images of the given indices.
Tensor gathered(const std::vector<Tensor>& from, const std::vector<int64_t>& indices) {
  Shape shape = from[0].shape();
  const int64_t size = shape.elements() / shape[0];
  shape.set(0, static_cast<int64_t>(indices.size()));
  Tensor to(shape);
  for (size_t i = 0; i < indices.size(); ++i) {
    int64_t at = indices[i];
    size_t batch = 0;
    for (; at >= from[batch].dim(0); ++batch) at -= from[batch].dim(0);
    std::copy_n(from[batch].data<float>() + at * size, size, to.data<float>() + static_cast<int64_t>(i) * size);
  }
  return to;
}

// ---- weights -------------------------------------------------------------------------------------------------------------------------------------------

// floor(w / s) + h(alpha) on a layer's grids. Weights beyond their grid have one place only.
class SoftWeights {
 public:
  SoftWeights(const Tensor& w, const std::vector<Grid>& grids, const AdaroundSpec& spec) : w_(w), grids_(grids), spec_(spec), low_(static_cast<size_t>(w.elements())) {
    alpha.name = "alpha";
    alpha.value = Tensor(w.shape());
    for_each([&](int64_t i, const Grid& g) {
      const double u = static_cast<double>(w.data<float>()[i]) / static_cast<double>(g.scale), below = std::floor(u);
      const double code = std::clamp(below + static_cast<double>(g.zero_point), static_cast<double>(g.qmin) - 1.0, static_cast<double>(g.qmax));
      low_[static_cast<size_t>(i)] = static_cast<int32_t>(code);
      alpha.value.data<float>()[i] = static_cast<float>(adaround_alpha(u - below, spec_));
    });
  }

  nn::Parameter alpha;

  void soften(Tensor& to) const {
    const float* const a = alpha.value.data<float>();
    float* const w = to.data<float>();
    for_each([=, this](int64_t i, const Grid& g) {
      const double h = movable(i, g) ? adaround_h(static_cast<double>(a[i]), spec_) : 0.0;
      const double code = std::clamp(static_cast<double>(low(i)) + h, static_cast<double>(g.qmin), static_cast<double>(g.qmax));
      w[i] = static_cast<float>((code - static_cast<double>(g.zero_point)) * static_cast<double>(g.scale));
    });
  }

  // alpha's gradient from the weights'; without beta the regulariser rests.
  void chain(const Tensor& dw, std::optional<double> beta) {
    if (!alpha.grad.defined()) alpha.grad = Tensor(dw.shape());
    const float *const alphas = alpha.value.data<float>(), *const slopes = dw.data<float>();
    float* const to = alpha.grad.data<float>();
    for_each([=, this](int64_t i, const Grid& g) {
      const auto a = static_cast<double>(alphas[i]);
      double d = 0.0;
      if (movable(i, g)) {
        const double dh = adaround_dh(a, spec_);
        d = static_cast<double>(slopes[i]) * static_cast<double>(g.scale) * dh;
        if (beta) d += adaround_round_slope(adaround_h(a, spec_), dh, *beta, spec_);
      }
      to[i] = static_cast<float>(d);
    });
  }

  Tensor nearest() const {
    return on_grid([&](int64_t i, const Grid& g) { return quantize(w_.data<float>()[i], g); });
  }
  Tensor rounded() const {
    return on_grid([&](int64_t i, const Grid& g) { return std::clamp(low(i) + (movable(i, g) && alpha.value.data<float>()[i] >= 0.0f ? 1 : 0), g.qmin, g.qmax); });
  }

 private:
  int32_t low(int64_t i) const { return low_[static_cast<size_t>(i)]; }
  bool movable(int64_t i, const Grid& g) const { return low(i) >= g.qmin && low(i) < g.qmax; }

  template <class Fn>
  void for_each(Fn&& fn) const {
    const int64_t row = w_.elements() / w_.dim(0);
    parallel_for(w_.elements(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fn(i, grids_[grids_.size() == 1 ? 0 : static_cast<size_t>(i / row)]);
    });
  }
  template <class Fn>
  Tensor on_grid(Fn&& code) const {
    Tensor to(w_.shape());
    for_each([&](int64_t i, const Grid& g) { to.data<float>()[i] = dequantize(code(i, g), g); });
    return to;
  }

  Tensor w_;
  std::vector<Grid> grids_;
  AdaroundSpec spec_;
  std::vector<int32_t> low_;  // code of the grid point below, from qmin - 1 to qmax
};

// ---- learning ------------------------------------------------------------------------------------------------------------------------------------------

// The layer and its activation on windows that hold their own padding.
Var forward(const Layer& l, const Tensor& x, const Var& w, const Tensor& bias) {
  const Var b(bias);
  const Var* const bias_or_none = bias.defined() ? &b : nullptr;
  Var y;
  if (l.conv) {
    Conv2dSpec spec = l.conv->options().spec;
    spec.padding = {};
    y = conv2d(Var(x), w, bias_or_none, spec);
  } else {
    y = dense(Var(x), w, bias_or_none);
  }
  return l.activation ? l.activation->forward({}, {&y, 1}) : y;
}

double error_of(const Layer& l, const Samples& s, const Tensor& weights, const Tensor& bias) {
  const NoGrad no_grad;
  double sum = 0.0;
  for (size_t i = 0; i < s.inputs.size(); ++i)
    sum += adaround_reconstruction_loss(forward(l, s.inputs[i], Var(weights), bias).dense(), s.targets[i]) * static_cast<double>(s.inputs[i].dim(0));
  return sum / static_cast<double>(s.images);
}

// d loss / d output of the reconstruction loss.
Tensor slope_of(const Tensor& output, const Tensor& target) {
  Tensor dy(output.shape());
  const float factor = 2.0f * static_cast<float>(output.dim(-1)) / static_cast<float>(output.elements());
  const float *const y = output.data<float>(), *const t = target.data<float>();
  float* const to = dy.data<float>();
  parallel_for(output.elements(), kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = factor * (y[i] - t[i]);
  });
  return dy;
}

void learn(const Layer& l, const Samples& s, const Tensor& bias, const RoundingOptions& o, SoftWeights& soft) {
  nn::Adam adam({.learning_rate = o.learning_rate});
  Leaf weight{.value = Tensor(soft.alpha.value.shape()), .grad = {}};
  Rng rng(o.seed, 2 * l.index + 1);
  std::vector<int64_t> indices(static_cast<size_t>(std::min(o.batch, s.images)));
  for (int64_t i = 0; i < o.iterations; ++i) {
    for (int64_t& at : indices) at = rng.below(s.images);
    soft.soften(weight.value);
    Tape tape;
    const Var y = forward(l, gathered(s.inputs, indices), Tape::leaf(weight), bias);
    tape.backward(y, slope_of(y.dense(), gathered(s.targets, indices)));
    soft.chain(weight.grad, adaround_warm(i, o.iterations, o.formula) ? std::nullopt : std::optional(adaround_beta(i, o.iterations, o.formula)));
    adam.step(std::vector<nn::Parameter*>{&soft.alpha});
  }
}

RoundedLayer round_layer(QuantSim& sim, const Layer& l, const std::vector<Tensor>& batches, Originals& originals, const RoundingOptions& o) {
  const Samples s = samples_of(sim, l, batches, originals, o);
  const std::vector<Grid> grids = l.quantizer->grids();
  nn::Parameter& weight = l.module->weight;
  const Tensor bias = l.module->has_bias() ? l.module->bias.value.to(Device{}) : Tensor();
  SoftWeights soft(weight.value.to(Device{}), grids, o.formula);
  const Tensor nearest = soft.nearest();
  RoundedLayer done{.name = l.name, .weights = nearest.elements(), .nearest = error_of(l, s, nearest, bias)};
  learn(l, s, bias, o, soft);
  Tensor kept = soft.rounded();
  done.learned = error_of(l, s, kept, bias);
  if (!(done.learned < done.nearest)) {
    kept = nearest;
    done.learned = done.nearest;
  }
  for (int64_t i = 0; i < kept.elements(); ++i) done.moved += kept.data<float>()[i] != nearest.data<float>()[i];
  const QuantizerState state = l.quantizer->state();
  originals.emplace_back(&weight, weight.value);
  weight.value = kept.to(weight.value.device());
  l.quantizer->set_grids(grids);  // also of a scheme that encodes weights anew when they have changed
  if (state == QuantizerState::learning) l.quantizer->learn();
  return done;
}

void check_formula(const AdaroundSpec& f) {
  DETENT_CHECK(std::isfinite(f.regularisation) && f.regularisation >= 0.0, "learn_rounding: regularisation ", f.regularisation, "; give a finite number of at least 0");
  DETENT_CHECK(std::isfinite(f.zeta) && std::isfinite(f.gamma) && f.zeta > 1.0 && f.gamma < 0.0, "learn_rounding: the sigmoid is stretched to [", f.gamma, ", ", f.zeta,
               "], which must reach beyond [0, 1]; give gamma below 0 and zeta above 1");
  DETENT_CHECK(f.beta_start > 0.0 && std::isfinite(f.beta_start) && f.beta_end > 0.0 && std::isfinite(f.beta_end), "learn_rounding: beta from ", f.beta_start, " to ",
               f.beta_end, "; both must be positive");
  DETENT_CHECK(f.warm_start >= 0.0 && f.warm_start <= 1.0, "learn_rounding: warm_start ", f.warm_start, " is a share of the iterations; give 0..1");
}

}  // namespace

std::vector<RoundedLayer> learn_rounding(QuantSim& sim, const std::vector<Tensor>& batches, const RoundingOptions& o, const std::function<void(const RoundedLayer&)>& on_layer) {
  DETENT_CHECK(!batches.empty(), "learn_rounding: no images were given; some hundred calibration images are enough");
  DETENT_CHECK(o.iterations >= 1 && o.batch >= 1 && o.window >= 1, "learn_rounding: ", o.iterations, " iterations of ", o.batch, " images with windows of ", o.window,
               ": give at least 1 of each");
  DETENT_CHECK(std::isfinite(o.learning_rate) && o.learning_rate > 0.0f, "learn_rounding: the learning rate is ", o.learning_rate, "; give a positive one");
  check_formula(o.formula);
  DETENT_CHECK(sim.has_ranges(), "learn_rounding: no quantizer has a range; run compute_encodings first");
  const FullPrecision full_precision(Device{});
  std::vector<RoundedLayer> done;
  Originals originals;
  for (const Layer& l : layers_of(sim.graph())) {
    done.push_back(round_layer(sim, l, batches, originals, o));
    if (on_layer) on_layer(done.back());
  }
  return done;
}

}  // namespace detent::quant
