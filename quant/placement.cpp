#include "detent/quant/placement.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "detent/nn/layers.h"

namespace detent::quant {
namespace {

using nn::Graph;
using nn::Value;

class Placer {
 public:
  Placer(Graph& graph, const QuantSimOptions& options) : graph_(graph), options_(options), config_(options.config), wanted_(static_cast<size_t>(graph.value_count()), false), inner_(wanted_) {}

  std::vector<Placement> run() {
    check_overrides();
    mark_outputs();
    match_supergroups();
    mark_inputs();
    apply_overrides();
    mark_ends();
    place_inputs();
    for (size_t i = 0; i < graph_.nodes().size(); ++i) {
      place_parameters(graph_.nodes()[i]);
      if (wanted(graph_.nodes()[i].output)) place_activation(graph_.nodes()[i].output);
    }
    if (config_.grid_preserving_rules) tie_concats();
    return std::move(placements_);
  }

 private:
  const Graph::Node& node(int i) const { return graph_.nodes()[static_cast<size_t>(i)]; }
  std::vector<bool>::reference wanted(Value v) { return wanted_[static_cast<size_t>(v.id)]; }

  void keep_inside(Value v) {
    wanted(v) = false;
    inner_[static_cast<size_t>(v.id)] = true;
  }

  // The only reader of a value, or -1: branches end every chain.
  int sole_consumer(Value v) const {
    const std::vector<int> c = graph_.consumers(v);
    return c.size() == 1 && !graph_.is_output(v) ? c[0] : -1;
  }

  void mark_outputs() {
    for (const Graph::Node& n : graph_.nodes()) {
      const bool moves_only = n.module->preserves_grid() && !config_.names_output_of(n.op) && (config_.grid_preserving_rules || n.op != "MaxPool");
      wanted(n.output) = n.op != "Identity" && !moves_only && config_.quantizes_output(n.op);
    }
    // A batch norm that folds into its producer takes the output quantizer over.
    for (const Graph::Node& n : graph_.nodes()) {
      if (n.op != "BatchNormalization") continue;
      const int p = graph_.value(n.inputs[0]).producer;
      if (p >= 0 && foldable(node(p).op) && sole_consumer(n.inputs[0]) >= 0) keep_inside(n.inputs[0]);
    }
    for (const Value v : graph_.outputs()) {
      if (config_.model_output_quantized) wanted(v) = true;
    }
  }

  // A pattern that matches no layer is most often a typing error.
  void check_overrides() const {
    std::vector<std::string_view> names;
    for (const Graph::Node& n : graph_.nodes()) names.insert(names.end(), {n.name, graph_.value(n.output).name});
    for (const Value v : graph_.inputs()) names.push_back(graph_.value(v).name);
    for (size_t i = 0; i < config_.overrides.size(); ++i) {
      const std::string& pattern = config_.overrides[i].pattern;
      const bool found = std::any_of(names.begin(), names.end(), [&](std::string_view n) { return glob_match(pattern, n); });
      DETENT_CHECK(found, config_.source, ": /overrides/", i, "/name: \"", pattern, "\" matches no layer of the network", nearest_name(pattern, names.data(), names.size()));
    }
  }

  // What a layer's own setting says wins over all rules but one: what stays inside a group that the target computes at once is never quantized. Inputs that
  // lie on a grid already are not quantized again.
  void apply_overrides() {
    if (config_.overrides.empty()) return;
    const auto decide = [&](Value v, const Override& o) {
      if (o.output_quantized) wanted(v) = *o.output_quantized && !inner_[static_cast<size_t>(v.id)];
    };
    for (const Value v : graph_.inputs()) decide(v, config_.override_for(graph_.value(v).name));
    for (const Graph::Node& n : graph_.nodes()) {
      const Override o = config_.override_for(graph_.value(n.output).name, n.name);
      decide(n.output, o);
      if (!o.input_quantized) continue;
      for (const Value v : n.inputs) {
        if (!*o.input_quantized && graph_.value(v).producer < 0) wanted(v) = false;
        if (*o.input_quantized && !on_grid(v)) wanted(v) = true;
      }
    }
  }

  static bool foldable(const std::string& op) { return op == "Conv" || op == "ConvTranspose" || op == "Gemm"; }

  // Longest pattern first; a node joins one group only.
  void match_supergroups() {
    std::vector<std::vector<std::string>> patterns = config_.supergroups;
    std::stable_sort(patterns.begin(), patterns.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
    std::vector<bool> grouped(graph_.nodes().size(), false);
    for (const std::vector<std::string>& pattern : patterns) {
      for (int i = 0; i < static_cast<int>(graph_.nodes().size()); ++i) match(pattern, i, grouped);
    }
  }

  void match(const std::vector<std::string>& pattern, int first, std::vector<bool>& grouped) {
    std::vector<int> chain;
    int at = first;
    for (size_t k = 0; k < pattern.size(); ++k) {
      if (at < 0 || grouped[static_cast<size_t>(at)] || node(at).op != pattern[k]) return;
      chain.push_back(at);
      if (k + 1 == pattern.size()) break;
      int next = sole_consumer(node(at).output);
      if (next >= 0 && node(next).op == "BatchNormalization" && pattern[k + 1] != "BatchNormalization") {
        chain.push_back(next);
        next = sole_consumer(node(next).output);
      }
      at = next;
    }
    for (const int i : chain) grouped[static_cast<size_t>(i)] = true;
    for (size_t k = 0; k + 1 < chain.size(); ++k) keep_inside(node(chain[k]).output);
  }

  void mark_inputs() {
    for (const Graph::Node& n : graph_.nodes()) {
      if (!config_.quantizes_input(n.op)) continue;
      for (const Value v : n.inputs) {
        if (!on_grid(v)) wanted(v) = true;
      }
    }
    if (config_.model_input_quantized) {
      for (const Value v : graph_.inputs()) wanted(v) = true;
    }
  }

  // True when the value lies on a quantizer's grid, its own or one passed on by operators that only move elements.
  bool on_grid(Value v) {
    for (;;) {
      if (wanted(v)) return true;
      const int p = graph_.value(v).producer;
      if (p < 0 || !node(p).module->preserves_grid()) return false;
      v = node(p).inputs[0];
    }
  }

  // A value is at an end when no layer with weights computes towards it, or none reads on from it; a layer, when it reads the one or gives the other.
  void mark_ends() {
    if (options_.first_last_bits == 0) return;
    const auto count = static_cast<size_t>(graph_.value_count());
    std::vector<bool> computed(count, false), read(count, false);
    const auto at = [](std::vector<bool>& of, Value v) { return of[static_cast<size_t>(v.id)]; };
    const std::vector<Graph::Node>& nodes = graph_.nodes();
    for (const Graph::Node& n : nodes) {
      at(computed, n.output) = foldable(n.op) || std::any_of(n.inputs.begin(), n.inputs.end(), [&](Value v) { return at(computed, v); });
    }
    for (auto n = nodes.rbegin(); n != nodes.rend(); ++n) {
      for (const Value v : n->inputs) at(read, v) = at(read, v) || foldable(n->op) || at(read, n->output);
    }
    at_end_.resize(count);
    for (size_t i = 0; i < count; ++i) at_end_[i] = !computed[i] || !read[i];
    for (const Graph::Node& n : nodes) {
      if (foldable(n.op) && (!at(computed, n.inputs[0]) || !at(read, n.output))) end_layers_.insert(n.name);
    }
  }

  // What an override says wins.
  std::optional<int> own_bits(const std::optional<int>& bits, bool at_end) const { return bits || !at_end ? bits : std::optional<int>(options_.first_last_bits); }

  void place_inputs() {
    for (const Value v : graph_.inputs()) {
      if (wanted(v)) place_activation(v);
    }
  }

  QuantizerSpec base_spec(const Override& o) const {
    QuantizerSpec s;
    s.scheme = o.scheme.value_or(options_.scheme);
    s.rule = options_.range_rule;
    s.keep_frozen = o.frozen.value_or(false);
    s.grid.strict = config_.strict_symmetric;
    s.grid.unsigned_symmetric = config_.unsigned_symmetric;
    s.grid.least_scale = options_.range_rule == RangeRule::aimet ? 0.0 : kLeastScale;
    s.estimator = options_.estimator;
    return s;
  }

  // A layer's own width without a format means integers; its own 16-bit float needs no width.
  static void set_width(QuantizerSpec& s, const std::optional<int>& own_bits, int bits, const std::optional<NumberFormat>& own_format, NumberFormat format) {
    s.format = own_format.value_or(own_bits && *own_bits != 16 ? NumberFormat::integer : format);
    s.grid.bits = own_format && s.format != NumberFormat::integer ? 16 : own_bits.value_or(bits);
  }

  void place_activation(Value v) {
    Graph::ValueInfo& info = graph_.value(v);
    const Graph::Node* producer = info.producer < 0 ? nullptr : &node(info.producer);
    const std::string op = producer ? producer->op : "";
    const Override o = config_.override_for(info.name, producer ? producer->name : std::string());
    QuantizerSpec s = base_spec(o);
    set_width(s, own_bits(o.output_bits, !at_end_.empty() && at_end_[static_cast<size_t>(v.id)]), options_.output_bits, o.output_format, options_.output_format);
    if (!o.output_quantized.value_or(true) || s.grid.bits == 32) return;
    s.grid.symmetric = o.output_symmetric.value_or(config_.symmetric_output(op));
    if (const OpRule* rule = config_.rule(op)) {
      s.fixed_min = rule->range_min;
      s.fixed_max = rule->range_max;
    }
    if (producer) {
      if (const auto* act = dynamic_cast<const nn::Activation*>(producer->module.get()); act && act->op().kind == PointwiseKind::clip) {
        // Zero is on every grid: a clip above it bounds nothing below.
        if (act->op().a <= 0.0f && std::isfinite(act->op().a)) s.min_bound = static_cast<double>(act->op().a);
        if (act->op().b >= 0.0f && std::isfinite(act->op().b)) s.max_bound = static_cast<double>(act->op().b);
      }
    }
    Placement p;
    p.kind = Placement::Kind::activation;
    p.name = info.name;
    p.producer = producer ? producer->name : "";
    p.op = op;
    for (const int c : graph_.consumers(v)) p.consumers.push_back(node(c).name);
    p.value = v;
    p.quantizer = std::make_shared<Quantizer>(info.name, s);
    info.transform = p.quantizer;
    placements_.push_back(std::move(p));
  }

  void place_parameters(Graph::Node& n) {
    if (!foldable(n.op)) return;
    nn::Visitor visitor;
    visitor.buffer = [](const std::string&, Tensor&) {};
    visitor.parameter = [&](nn::Parameter& parameter) {
      const std::string& kind = parameter.kind;
      const Override o = config_.override_for(graph_.value(n.output).name, n.name);
      QuantizerSpec s = base_spec(o);
      set_width(s, own_bits(o.param_bits, end_layers_.contains(n.name)), options_.param_bits, o.param_format, options_.param_format);
      bool on = config_.quantizes_param(n.op, kind);
      if (kind == "weight") on = o.params_quantized.value_or(on);
      if (!on || s.grid.bits == 32) return;
      s.parameter = true;
      s.estimator.symmetric = SymmetricExtreme::extra_level;
      s.grid.symmetric = o.param_symmetric.value_or(config_.symmetric_param(n.op, kind));
      s.channel_axis = o.per_channel.value_or(config_.per_channel_params(n.op)) ? 0 : -1;
      Placement p;
      p.kind = kind == "bias" ? Placement::Kind::bias : Placement::Kind::weight;
      p.name = parameter.name;
      p.op = n.op;
      p.consumers = {n.name};
      p.parameter = &parameter;
      p.quantizer = std::make_shared<Quantizer>(parameter.name, s);
      p.quantizer->follow(&parameter);
      parameter.transform = p.quantizer;
      placements_.push_back(std::move(p));
    };
    n.module->visit(n.name, visitor);
  }

  // A Concat's inputs and output share one grid, its own quantizer's, with whatever else they share one already: what an earlier Concat joined. Inputs whose
  // quantizer is to be another by the config keep it.
  void tie_concats() {
    for (const Graph::Node& n : graph_.nodes()) {
      const auto own = std::static_pointer_cast<Quantizer>(graph_.value(n.output).transform);
      if (n.op != "Concat" || !own) continue;
      for (Value v : n.inputs) {
        while (!graph_.value(v).transform && graph_.value(v).producer >= 0 && node(graph_.value(v).producer).module->preserves_grid()) v = node(graph_.value(v).producer).inputs[0];
        const auto before = std::static_pointer_cast<Quantizer>(graph_.value(v).transform);
        if (before && may_share(own->spec(), before->spec())) share(graph_, placements_, own, before);
      }
    }
  }

  Graph& graph_;
  const QuantSimOptions& options_;
  const QuantConfig& config_;
  std::vector<bool> wanted_, inner_, at_end_;
  std::set<std::string> end_layers_;
  std::vector<Placement> placements_;
};

void check_bits(int bits, NumberFormat format, const char* what) {
  DETENT_CHECK(format == NumberFormat::integer || bits == 16, what, ": ", bits, " bits of ", to_string(format), "; give 16");
  DETENT_CHECK((bits >= 2 && bits <= 16) || bits == 32, what, ": ", bits, " bits; give 2..16, or 32 for float");
}

// Of two sims the first to go would take out the other's quantizers.
void require_free(Graph& graph) {
  std::string taken;
  for (int id = 0; id < graph.value_count(); ++id) {
    if (graph.value(Value{id}).transform) taken = graph.value(Value{id}).name;
  }
  for (const nn::Parameter* p : graph.parameters()) {
    if (p->transform) taken = p->name;
  }
  DETENT_CHECK(taken.empty(), "QuantSim: \"", taken, "\" has a quantizer of another QuantSim; let that one go before a new one is made (reset() the pointer that holds it)");
}

}  // namespace

bool may_share(const QuantizerSpec& a, const QuantizerSpec& b) {
  return a.grid.bits == b.grid.bits && a.grid.symmetric == b.grid.symmetric && a.format == b.format && a.fixed_min == b.fixed_min && a.fixed_max == b.fixed_max &&
         a.scheme == b.scheme && a.keep_frozen == b.keep_frozen;
}

void share(Graph& graph, std::vector<Placement>& placements, const std::shared_ptr<Quantizer>& kept, const std::shared_ptr<Quantizer>& gone) {
  kept->widen_bounds(gone->spec().min_bound, gone->spec().max_bound);
  for (Placement& p : placements) {
    if (p.quantizer != gone) continue;
    p.quantizer = kept;
    graph.value(p.value).transform = kept;
  }
}

std::vector<Placement> place_quantizers(Graph& graph, const QuantSimOptions& options) {
  require_free(graph);
  check_bits(options.param_bits, options.param_format, "param_bits");
  check_bits(options.output_bits, options.output_format, "output_bits");
  if (options.first_last_bits != 0) check_bits(options.first_last_bits, NumberFormat::integer, "first_last_bits");
  return Placer(graph, options).run();
}

}  // namespace detent::quant
