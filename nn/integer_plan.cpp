#include "detent/nn/integer_plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "detent/autograd/ops_integer.h"
#include "detent/core/math/integer_math.h"

namespace detent::nn {
namespace {

using Work = std::function<Var(Graph&, const Context&, std::span<const Var>)>;
using Table = std::array<uint8_t, 256>;

// The grid that a transform puts its value on, where the value can travel as codes.
std::optional<Grid> grid_now(const Graph::ValueInfo& v) {
  const std::vector<Grid>* grids = v.transform ? v.transform->active_grids() : nullptr;
  return grids && grids->size() == 1 ? std::optional(grids->front()) : std::nullopt;
}

void check_quantizers(Graph& g) {
  std::string problems;
  const auto look = [&](const std::string& name, Transform* t, bool activation) {
    if (!t) return;
    std::string problem = t->missing_grids();
    const std::vector<Grid>* grids = problem.empty() ? t->active_grids() : nullptr;
    for (const Grid& grid : grids ? *grids : std::vector<Grid>()) {
      if (fits_byte(grid)) continue;
      problem = text(activation ? "value \"" : "parameter \"", name, "\" lies on a grid of codes ", grid.qmin, "..", grid.qmax,
                     ", and a code is a byte; quantize it to 8 bits or leave it in float");
      break;
    }
    if (!problem.empty()) problems += "\n  " + problem;
  };
  const std::vector<bool> live = g.live_values();
  for (int i = 0; i < g.value_count(); ++i) {
    if (live[static_cast<size_t>(i)]) look(g.value({i}).name, g.value({i}).transform.get(), true);
  }
  Visitor v;
  v.parameter = [&](Parameter& p) { look(p.name, p.transform.get(), false); };
  g.visit(v, false);
  DETENT_CHECK(problems.empty(), "integer execution is not possible:", problems);
}

class Compiler {
 public:
  explicit Compiler(Graph& g) : g_(g) { plan_.grids.resize(static_cast<size_t>(g.value_count())); }

  IntegerPlan run() {
    check_quantizers(g_);
    for (int i = 0; i < g_.value_count(); ++i) plan_.prepared.push_back(grid_now(g_.value({i})));
    for (const Value v : g_.inputs()) grid(v) = grid_now(g_.value(v));
    plan_.steps = compile_plan(g_);
    bool any = false;
    for (PlanStep& s : plan_.steps) {
      target_ = grid_now(g_.value(s.output));
      if (target_) target_ = byte_grid(*target_);
      s.on_codes = work(s);
      if (!s.on_codes) s.in_float = why_;
      s.codes = target_;
      if (!target_ && s.on_codes) s.codes = grid(node(s).inputs[0]);
      grid(s.output) = s.codes;
      any = any || s.on_codes;
      if (const WeightedLayer* layer = weighted_layer(node(s))) plan_.layers.push_back({s.head, layer, s.on_codes != nullptr, prepared(layer->weight), prepared(layer->bias)});
    }
    DETENT_CHECK(any, "integer execution: every node would run in float; quantize and calibrate the network first (QuantSim::compute_encodings). First node: \"",
                 plan_.steps.empty() ? std::string() : node(plan_.steps[0]).name, "\": ", plan_.steps.empty() ? std::string("there is none") : plan_.steps[0].in_float);
    return std::move(plan_);
  }

 private:
  const Graph::Node& node(const PlanStep& s) const { return g_.nodes()[static_cast<size_t>(s.head)]; }
  std::optional<Grid>& grid(Value v) { return plan_.grids[static_cast<size_t>(v.id)]; }
  Work refuse(std::string why) {
    why_ = std::move(why);
    return nullptr;
  }

  static PreparedParameter prepared(const Parameter& p) {
    const std::vector<Grid>* grids = p.transform ? p.transform->active_grids() : nullptr;
    return {p.transform.get(), grids ? *grids : std::vector<Grid>(), p.value.stamp()};
  }

  Work work(const PlanStep& s) {
    const Graph::Node& n = node(s);
    for (const Value v : n.inputs) {
      if (!grid(v)) return refuse(text("its input \"", g_.value(v).name, "\" lies on no grid"));
      grid(v) = byte_grid(*grid(v));
    }
    if (n.module->preserves_grid()) return move(s);
    if (!target_) return refuse("its result lies on no grid");
    if (weighted_layer(n)) return layer(s);
    if (const auto* a = dynamic_cast<const Activation*>(n.module.get())) return table(s, *a);
    if (is_addition(g_, n)) return addition(s);
    if (is_global_average(g_, n)) return average(s);
    if (library_layer<Concat>(n, "Concat")) return concatenation(s);
    return refuse("there is no integer kernel for it");
  }

  Work layer(const PlanStep& s) {
    const Graph::Node& n = node(s);
    if (s.norm >= 0) return refuse(text("the batch norm \"", g_.nodes()[static_cast<size_t>(s.norm)].name, "\" is not folded"));
    if (s.addend.id >= 0) return refuse(text("its result goes unrounded into the addition \"", g_.value(s.output).name, "\""));
    WeightedLayer& layer = *weighted_layer(n);
    const auto* conv = dynamic_cast<const Conv2d*>(&layer);
    const std::vector<Grid>* grids = layer.weight.transform ? layer.weight.transform->active_grids() : nullptr;
    if (!grids) return refuse("its weights lie on no grid");
    FilterSource source{.w = layer.weight.var({}).dense(),
                        .w_grids = *grids,
                        .bias = layer.has_bias() ? layer.bias.var({}).dense() : Tensor(),
                        .spec = conv ? conv->options().spec : Conv2dSpec(),
                        .input = *grid(n.inputs[0]),
                        .output = *target_};
    source.spec.clamp_min = s.clamp_min;
    source.spec.clamp_max = s.clamp_max;
    if (std::string why = refusal(source); !why.empty()) return refuse(std::move(why));
    return [filter = prepare_filter(source)](Graph&, const Context&, std::span<const Var> in) { return conv2d_integer(to_codes(in[0], filter.input), filter); };
  }

  Work addition(const PlanStep& s) {
    const Grid a = *grid(node(s).inputs[0]), b = *grid(node(s).inputs[1]), to = *target_;
    return
        [a, b, to, lo = s.clamp_min, hi = s.clamp_max](Graph&, const Context&, std::span<const Var> in) { return add_integer(to_codes(in[0], a), to_codes(in[1], b), lo, hi, to); };
  }

  Work average(const PlanStep& s) {
    const Shape& x = g_.value(node(s).inputs[0]).shape;
    if (x[1] * x[2] > kMaxAveragePixels) return refuse(text("the sum of ", x[1] * x[2], " codes may be beyond int32"));
    const GridTarget to{.grid = *target_, .spec = {}, .min = {}, .max = {}};
    return [from = *grid(node(s).inputs[0]), to](Graph&, const Context&, std::span<const Var> in) { return global_average_pool_quantized(to_codes(in[0], from), to); };
  }

  // A function of one value is a table; its entries are what the float path gives for each code.
  Work table(const PlanStep& s, const Activation& activation) {
    const Grid from = *grid(node(s).inputs[0]), to = *target_;
    Tensor x(Shape{256});
    for (int32_t q = 0; q < 256; ++q) x.data<float>()[q] = dequantize(std::clamp(q, from.qmin, from.qmax), from);
    const Tensor y = pointwise(Var(x), activation.op()).dense();
    Table entries{};
    for (size_t q = 0; q < 256; ++q) entries[q] = static_cast<uint8_t>(quantize(y.data<float>()[q], to));
    return [from, to, entries](Graph&, const Context&, std::span<const Var> in) { return regrid_codes(to_codes(in[0], from), entries, to); };
  }

  static Table regrid_table(const Grid& from, const Grid& to) {
    Table entries{};
    for (int32_t q = 0; q < 256; ++q) entries[static_cast<size_t>(q)] = static_cast<uint8_t>(regrid(std::clamp(q, from.qmin, from.qmax), from, to));
    return entries;
  }

  // Elements that only move keep their codes; a quantizer of their own regrids them.
  Work move(const PlanStep& s) {
    const Grid from = *grid(node(s).inputs[0]), to = target_.value_or(from);
    return [head = s.head, from, to, entries = regrid_table(from, to)](Graph& g, const Context& context, std::span<const Var> in) {
      const Var x = to_codes(in[0], from);
      const Var y = to_codes(g.nodes()[static_cast<size_t>(head)].module->forward(context, {&x, 1}), from);
      return from == to ? y : regrid_codes(y, entries, to);
    };
  }

  Work concatenation(const PlanStep& s) {
    const Grid to = *target_;
    std::vector<Grid> from;
    std::vector<Table> tables;
    for (const Value v : node(s).inputs) {
      from.push_back(*grid(v));
      tables.push_back(regrid_table(from.back(), to));
    }
    return [head = s.head, from, to, tables](Graph& g, const Context& context, std::span<const Var> in) {
      std::vector<Var> codes;
      for (size_t i = 0; i < in.size(); ++i) {
        const Var x = to_codes(in[i], from[i]);
        codes.push_back(from[i] == to ? x : regrid_codes(x, tables[i], to));
      }
      return g.nodes()[static_cast<size_t>(head)].module->forward(context, codes);
    };
  }

  Graph& g_;
  IntegerPlan plan_;
  std::optional<Grid> target_;
  std::string why_;
};

}  // namespace

// Grids that follow the values are not asked for: encoding them anew looks at every value, and those have their stamps.
static bool same_grids(const Parameter& p, const PreparedParameter& was) {
  if (p.transform.get() != was.transform) return false;
  if (!p.transform) return true;
  const std::vector<Grid>* now = p.transform->step_grids();
  return now ? *now == was.grids : p.transform->missing_grids().empty();
}

void IntegerPlan::require_current(const Graph& g) const {
  constexpr const char* kChanged = "\" has another range or state than set_execution(integer) prepared for; call it again";
  for (int i = 0; i < g.value_count(); ++i) {
    DETENT_CHECK(grid_now(g.value({i})) == prepared[static_cast<size_t>(i)], "graph: the quantizer of \"", g.value({i}).name, kChanged);
  }
  for (const PreparedLayer& l : layers) {
    DETENT_CHECK(g.nodes()[static_cast<size_t>(l.node)].module.get() == l.layer, "graph: the network was edited since set_execution(integer); call it again");
    DETENT_CHECK(same_grids(l.layer->weight, l.weight), "graph: the quantizer of \"", l.layer->weight.name, kChanged);
    DETENT_CHECK(same_grids(l.layer->bias, l.bias), "graph: the quantizer of \"", l.layer->bias.name, kChanged);
  }
}

bool IntegerPlan::weights_as_prepared() const {
  return std::all_of(layers.begin(), layers.end(), [](const PreparedLayer& l) {
    return !l.on_codes || (l.layer->weight.value.stamp() == l.weight.values && l.layer->bias.value.stamp() == l.bias.values);
  });
}

IntegerPlan compile_integer_plan(Graph& graph) {
  const NoGrad no_grad;
  return Compiler(graph).run();
}

}  // namespace detent::nn
