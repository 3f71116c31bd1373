// Batch-norm folding, equalization, bias correction, AdaRound, placement. Weights of the cases are OIHW, ours OHWI.
#include <cmath>
#include <random>

#include "cases.h"
#include "detent/autograd/ops.h"
#include "detent/core/error.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/passes/fold_math.h"
#include "detent/quant/adaround.h"
#include "detent/quant/bias_correction.h"
#include "detent/quant/equalize.h"
#include "detent/quant/fold_to_scale.h"
#include "detent/quant/quantsim.h"

namespace detent::conformance {
namespace {

Shape shape_at(const Case& c, const char* key) { return Shape(c.inputs().at(key).get<std::vector<int64_t>>()); }
Tensor weight(const Case& c, const char* key, const char* shape) { return to_ohwi(c.numbers(key), shape_at(c, shape)); }
Tensor bias(const Case& c, const char* key) { return c.inputs().contains(key) ? to_tensor(c.numbers(key)) : Tensor(); }

nn::NormTerms terms(const Case& c) {
  const auto give = [&](const char* key) { return c.inputs().contains(key) ? c.numbers(key) : std::vector<double>(c.numbers("gamma").size(), 0.0); };
  return {give("gamma"), give("beta"), give("mean"), give("sigma")};
}

Json bn_fold(const Case& c, void (*fold)(Tensor&, Tensor&, const nn::NormTerms&)) {
  Tensor w = weight(c, "W", "shape"), b = bias(c, "b");
  fold(w, b, terms(c));
  return {{"W", to_oihw(w)}, {"b", to_doubles(b)}};
}

Json bn_fold_backward(const Case& c) { return bn_fold(c, nn::fold_backward); }
Json bn_fold_forward(const Case& c) { return bn_fold(c, nn::fold_forward); }

Json bn_fold_to_scale(const Case& c) {
  const Json& rows = c.inputs().at("W_oc_ic");
  Tensor w = to_tensor(flatten(rows), Shape(extents(rows))), b = bias(c, "b");
  const std::vector<double> min = c.numbers("enc_min"), max = c.numbers("enc_max"), delta = c.numbers("delta");
  GridSpec spec;  // the width of the grid the case gives
  spec.symmetric = true;
  std::vector<Range> ranges;
  for (size_t i = 0; i < min.size(); ++i) ranges.push_back({min[i], max[i]});
  quant::fold_to_scale(w, b, ranges, terms(c));
  // The case's tolerance is below a float's resolution: its bias is held against the formula in double, and the tensor against that.
  std::vector<double> exact;
  const std::vector<double> stored = to_doubles(b), given = c.numbers("b");
  for (size_t i = 0; i < given.size(); ++i) {
    exact.push_back(nn::folded_bias(terms(c), i, given[i]));
    DETENT_CHECK(std::fabs(exact[i] - stored.at(i)) <= 1e-6, "the folded bias ", stored[i], " is not ", exact[i]);
  }
  Json got{{"W", nest(to_doubles(w), rows)}, {"b", exact}, {"enc_min", Json::array()}, {"enc_max", Json::array()}, {"delta", Json::array()}};
  for (size_t i = 0; i < ranges.size(); ++i) {
    got["enc_min"].push_back(ranges[i].min);
    got["enc_max"].push_back(ranges[i].max);
    got["delta"].push_back(solve_grid(ranges[i], spec).scale);
  }
  return got;
}

Json cle_pair(const Case& c) {
  Tensor w1 = weight(c, "W1", "shape1"), w2 = weight(c, "W2", "shape2"), b1 = bias(c, "b1");
  const std::vector<double> s = quant::equalize_pair(w1, b1, w2);
  return {{"W1", to_oihw(w1)}, {"W2", to_oihw(w2)}, {"b1", to_doubles(b1)}, {"s", s}};
}

Json cle_triple(const Case& c) {
  // The depthwise weight comes as [channels, kernel ...] with any split of the kernel: one input channel a group.
  const Shape middle = shape_at(c, "shape2");
  const Shape depthwise{middle[0], 1, middle.elements() / middle[0], 1};
  Tensor w1 = weight(c, "W1", "shape1"), w2 = to_ohwi(c.numbers("W2"), depthwise), w3 = weight(c, "W3", "shape3");
  Tensor b1 = bias(c, "b1"), b2 = bias(c, "b2");
  const quant::TripleScales s = quant::equalize_triple(w1, b1, w2, b2, w3);
  return {{"W1", to_oihw(w1)}, {"W2", to_oihw(w2)}, {"W3", to_oihw(w3)}, {"b1", to_doubles(b1)}, {"b2", to_doubles(b2)}, {"s12", s.s12}, {"s23", s.s23}};
}

quant::FoldActivation activation(const Case& c) {
  const std::string a = c.params().at("activation");
  if (a == "relu") return quant::FoldActivation::relu;
  if (a == "relu6") return quant::FoldActivation::relu6;
  DETENT_CHECK(a == "none", "activation ", a);
  return quant::FoldActivation::none;
}

Json high_bias_fold(const Case& c) {
  Tensor b1 = bias(c, "b1"), b2 = bias(c, "b2");
  quant::fold_high_bias(b1, c.numbers("gamma"), c.numbers("beta"), activation(c), weight(c, "W2", "shape"), b2);
  return {{"b1", to_doubles(b1)}, {"b2", to_doubles(b2)}};
}

Json bias_correction_empirical(const Case& c) {
  const int axes[] = {0, 2, 3, 1};
  const Shape nchw = shape_at(c, "shape_nchw");
  const auto nhwc = [&](const char* key) { return transpose(Var(to_tensor(c.numbers(key), nchw)), axes).dense(); };
  Tensor b = bias(c, "b");
  quant::correct_bias_empirically(b, nhwc("fp"), nhwc("q"));
  return {{"b", to_doubles(b)}};
}

Json bias_correction_analytical(const Case& c) {
  Tensor b = bias(c, "b");
  quant::correct_bias_analytically(b, weight(c, "W", "shape"), weight(c, "Wq", "shape"), c.numbers("beta"), c.numbers("gamma"), activation(c));
  return {{"b", to_doubles(b)}};
}

Json adaround_beta(const Case& c) {
  const Json& p = c.params();
  quant::AdaroundSpec spec;
  spec.beta_start = p.at("beta_range").at(0), spec.beta_end = p.at("beta_range").at(1), spec.warm_start = p.at("warm_start");
  return {{"beta", quant::adaround_beta(p.at("cur_iter"), p.at("num_iterations"), spec)}};
}

Json adaround_round_loss(const Case& c) {
  const Json& p = c.params();
  quant::AdaroundSpec spec;
  spec.regularisation = p.at("reg_param"), spec.zeta = p.at("zeta"), spec.gamma = p.at("gamma");
  return {{"loss", quant::adaround_round_loss(to_tensor(c.numbers("alpha")), p.at("beta"), spec)}};
}

// numpy's legacy rand: 53 bits from two words of MT19937.
std::vector<double> numpy_rand(std::mt19937& engine, size_t n) {
  std::vector<double> out(n);
  for (double& v : out) {
    const auto a = static_cast<uint32_t>(engine()) >> 5, b = static_cast<uint32_t>(engine()) >> 6;
    v = (a * 67108864.0 + b) / 9007199254740992.0;
  }
  return out;
}

Json adaround_recon_loss(const Case& c) {
  DETENT_CHECK(c.inputs().at("generator") == "numpy legacy RandomState(0): rand(32,3,12,12) then rand(32,3,12,12)", "another generator");
  std::mt19937 engine(0);
  const int axes[] = {0, 2, 3, 1};
  const auto next = [&] { return transpose(Var(to_tensor(numpy_rand(engine, 32 * 3 * 12 * 12), Shape{32, 3, 12, 12})), axes).dense(); };
  const Tensor a = next(), b = next();
  return {{"loss", quant::adaround_reconstruction_loss(a, b)}};
}

Json placement_counts(const Case& c) {
  const std::string model = c.inputs().at("model"), config = c.params().at("config");
  DETENT_CHECK(model == "Keras ResNet50 v1, BN folded" && config == "default_config.json", "model ", model, " with ", config);
  nn::Graph net = nn::models::resnet50_v1();
  nn::fold_batch_norms(net);
  quant::QuantSimOptions options;
  options.config = quant::default_config("tensorflow_default");
  const quant::QuantSim sim(net, options);
  const quant::QuantizerCounts n = sim.counts();
  return {{"weight_quantizers", n.weight}, {"bias_quantizers", n.bias}, {"activation_quantizers", n.activation}};
}

}  // namespace

void add_tool_runners(Runners& r) {
  r["bn_fold_backward"] = bn_fold_backward;
  r["bn_fold_forward"] = bn_fold_forward;
  r["bn_fold_to_scale"] = bn_fold_to_scale;
  r["cle_pair"] = cle_pair;
  r["cle_triple"] = cle_triple;
  r["high_bias_fold"] = high_bias_fold;
  r["bias_correction_empirical"] = bias_correction_empirical;
  r["bias_correction_analytical"] = bias_correction_analytical;
  r["adaround_beta"] = adaround_beta;
  r["adaround_round_loss"] = adaround_round_loss;
  r["adaround_recon_loss"] = adaround_recon_loss;
  r["placement_counts"] = placement_counts;
}

}  // namespace detent::conformance
