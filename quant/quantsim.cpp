#include "detent/quant/quantsim.h"

#include <algorithm>
#include <sstream>

#include "detent/nn/train.h"
#include "detent/quant/accumulator.h"
#include "detent/quant/given_grids.h"
#include "detent/quant/placement.h"

namespace detent::quant {
namespace {

// Tied quantizers appear in several placements; each is driven once.
std::vector<Quantizer*> distinct(const std::vector<Placement>& placements) {
  std::vector<Quantizer*> all;
  for (const Placement& p : placements) {
    if (std::find(all.begin(), all.end(), p.quantizer.get()) == all.end()) all.push_back(p.quantizer.get());
  }
  return all;
}

// Tab-separated rows as columns of equal width.
std::string align_columns(const std::string& rows) {
  std::vector<std::vector<std::string>> cells;
  std::vector<size_t> widths;
  std::istringstream lines(rows);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    cells.emplace_back();
    for (std::string cell; std::getline(fields, cell, '\t');) cells.back().push_back(cell);
    widths.resize(std::max(widths.size(), cells.back().size()), 0);
    for (size_t i = 0; i < cells.back().size(); ++i) widths[i] = std::max(widths[i], cells.back()[i].size());
  }
  std::string out;
  for (const std::vector<std::string>& row : cells) {
    for (size_t i = 0; i < row.size(); ++i) out += i + 1 < row.size() ? row[i] + std::string(widths[i] + 2 - row[i].size(), ' ') : row[i];
    out += '\n';
  }
  return out;
}

}  // namespace

QuantSim::QuantSim(nn::Graph& graph, const QuantSimOptions& options) : graph_(graph), watch_(graph), options_(options), placements_(place_quantizers(graph, options)) {
  for (Quantizer* q : distinct(placements_)) q->set_learning_rate_scale(options.range_learning_rate);
}

// What the placements point to may be gone: the slots are looked for in the graph as it is.
QuantSim::~QuantSim() {
  nn::Graph* const graph = watch_.graph();
  if (!graph) return;
  try {
    const std::vector<Quantizer*> own = distinct(placements_);
    const auto take_out = [&](std::shared_ptr<nn::Transform>& slot) {
      if (slot && std::find(own.begin(), own.end(), slot.get()) != own.end()) slot = nullptr;
    };
    for (int id = 0; id < graph->value_count(); ++id) take_out(graph->value(nn::Value{id}).transform);
    nn::Visitor visitor;
    visitor.parameter = [&](nn::Parameter& p) { take_out(p.transform); };
    graph->visit(visitor, false);
  } catch (...) {  // no memory, or a module of one's own that throws from visit(): a destructor does not
  }
}

void QuantSim::require_graph(const char* action) {
  const nn::Graph* const now = watch_.graph();
  DETENT_CHECK(now, "QuantSim::", action, ": its network is gone, destroyed or replaced by another; a sim must go before its network does");
  DETENT_CHECK(now == &graph_, "QuantSim::", action, ": its network was moved away from where the sim was made; make the sim when the network is in its place");
  if (!watch_.edited()) return;
  // Edits elsewhere are nobody's business.
  std::vector<const nn::Parameter*> there;
  nn::Visitor visitor;
  visitor.parameter = [&](nn::Parameter& p) {
    if (p.transform) there.push_back(&p);
  };
  graph_.visit(visitor, false);
  for (const Placement& p : placements_) {
    const bool found = p.parameter ? std::find(there.begin(), there.end(), p.parameter) != there.end() && p.parameter->transform == p.quantizer
                                   : graph_.value(p.value).name == p.name && graph_.value(p.value).transform == p.quantizer;
    DETENT_CHECK(found, "QuantSim::", action, ": \"", p.name, "\" was taken out of the network or replaced, with its quantizer; edit a network before its sim is made");
  }
  watch_ = nn::Graph::Watch(graph_);
}

void QuantSim::compute_encodings(const std::function<void()>& callback) {
  require_graph("compute_encodings");
  const std::vector<Quantizer*> all = distinct(placements_);
  std::vector<QuantizerState> before;
  std::vector<std::string> saved;
  for (const Quantizer* q : all) {
    before.push_back(q->state());
    DETENT_CHECK(q->state() != QuantizerState::observing, "compute_encodings: quantizer \"", q->name(), "\" is observing: a calibration is under way already");
    DETENT_CHECK(q->state() != QuantizerState::learning, "compute_encodings: quantizer \"", q->name(),
                 "\" is learning: calibrating again would throw its range away; freeze() first when that is meant");
    saved.push_back(q->save());
  }
  try {
    calibrate(all, callback);
  } catch (...) {  // nothing half-calibrated stays in force
    for (size_t i = 0; i < all.size(); ++i) {
      try {
        all[i]->restore(saved[i]);
      } catch (const std::exception&) {  // no memory: it is off all the same
      }
      all[i]->state() == QuantizerState::observing ? all[i]->abandon() : all[i]->disable();
    }
    // Those that had a range before have it again: enable() goes back to it.
    if (saved_states_.empty() && std::any_of(before.begin(), before.end(), [](QuantizerState s) { return s != QuantizerState::off; })) saved_states_ = before;
    throw;
  }
  saved_states_.clear();
}

void QuantSim::calibrate(const std::vector<Quantizer*>& all, const std::function<void()>& callback) {
  for (Placement& p : placements_) {
    if (!p.parameter) continue;
    if (!p.quantizer->is_float() && p.quantizer->calibrated()) p.quantizer->require_scales({});
    p.quantizer->encode(p.parameter->value);
  }
  bool any = false;
  for (Quantizer* q : all) {
    if (q->spec().parameter) continue;
    q->observe();
    any = true;
  }
  {
    const nn::EvaluationScope scope(graph_);
    callback();
  }
  std::vector<std::string> unseen;
  size_t seen = 0;
  for (Quantizer* q : all) {
    if (q->spec().parameter) continue;
    if (q->finish_observing()) {
      ++seen;
    } else {
      unseen.push_back(q->name());
    }
  }
  DETENT_CHECK(!any || seen > 0, "compute_encodings: the callback ran no data through the network; call it on calibration batches");
  if (options_.protect_accumulators) protect_accumulators(graph_);
  unseen_ = std::move(unseen);
}

QuantizerCounts QuantSim::counts() const {
  QuantizerCounts n;
  for (const Placement& p : placements_) {
    ++(p.kind == Placement::Kind::weight ? n.weight : p.kind == Placement::Kind::bias ? n.bias : n.activation);
  }
  return n;
}

Quantizer* QuantSim::find(const std::string& name) {
  require_graph("find");
  for (Placement& p : placements_) {
    if (p.name == name) return p.quantizer.get();
  }
  return nullptr;
}

std::string QuantSim::table() {
  require_graph("table");
  std::string out = "value\tproducer\tconsumers\tbits\tsymmetric\tstate\trange\tgrid\n";
  for (Placement& p : placements_) {
    Quantizer& q = *p.quantizer;
    std::string consumers;
    for (const std::string& c : p.consumers) consumers += (consumers.empty() ? "" : ",") + c;
    out += text(p.name, '\t', p.producer.empty() ? "-" : p.producer, '\t', consumers.empty() ? "-" : consumers, '\t', q.spec().grid.bits, '\t',
                q.spec().grid.symmetric ? "yes" : "no", '\t', to_string(q.state()), '\t');
    if (!q.calibrated() || q.state() == QuantizerState::observing) {
      out += "-\t-\n";
      continue;
    }
    if (q.is_float()) {
      out += text("-\t", to_string(q.spec().format), '\n');
      continue;
    }
    const std::vector<Grid>& grids = q.grids();
    const Range r = range_of(grids[0]);
    out += text('[', static_cast<float>(r.min), ", ", static_cast<float>(r.max), ']', grids.size() > 1 ? text(" (1 of ", grids.size(), ")") : std::string(), '\t', grids[0].scale,
                " * (q - ", grids[0].zero_point, "), ", grids[0].qmin, "..", grids[0].qmax, '\n');
  }
  return align_columns(out);
}

bool QuantSim::has_ranges() const {
  return std::any_of(placements_.begin(), placements_.end(), [](const Placement& p) { return p.quantizer->calibrated() && p.quantizer->state() != QuantizerState::off; });
}

void QuantSim::tie(const std::string& first, const std::string& second) {
  require_graph("tie");
  Placement *a = nullptr, *b = nullptr;
  for (Placement& p : placements_) {
    if (p.name == first) a = &p;
    if (p.name == second) b = &p;
  }
  for (const auto& [name, p] : {std::pair(first, a), std::pair(second, b)}) {
    DETENT_CHECK(p && !p->parameter, "QuantSim::tie: \"", name, "\" is ", p ? "a parameter" : "no quantized value", "; table() lists the values there are");
    DETENT_CHECK(!p->quantizer->calibrated() || p->quantizer->is_float(), "QuantSim::tie: \"", name, "\" has a range already; tie before compute_encodings");
  }
  DETENT_CHECK(may_share(a->quantizer->spec(), b->quantizer->spec()), "QuantSim::tie: \"", first, "\" and \"", second,
               "\" differ in bits, symmetry, format, fixed bounds, scheme or is_frozen; give both the same in the config");
  // A copy: what it is found by changes on the way.
  share(graph_, placements_, a->quantizer, std::shared_ptr<Quantizer>(b->quantizer));
}

void QuantSim::freeze() {
  require_graph("freeze");
  for (Quantizer* q : distinct(placements_)) {
    if (q->state() == QuantizerState::learning) q->freeze();
  }
}

void QuantSim::learn() {
  require_graph("learn");
  DETENT_CHECK(saved_states_.empty() || has_ranges(), "QuantSim::learn: the quantizers are disabled; enable() them first");
  std::vector<Quantizer*> frozen = distinct(placements_);
  std::erase_if(frozen, [](const Quantizer* q) { return q->state() != QuantizerState::frozen || q->spec().keep_frozen || q->is_float(); });
  std::string wrong;
  for (Quantizer* q : frozen) {
    if (const std::string other = of_another_kind(q->grids(), q->spec().grid); !other.empty()) wrong += text("\n  ", q->name(), ": ", other);
  }
  DETENT_CHECK(wrong.empty(), "QuantSim::learn: these grids were given and cannot be learned; give their symmetry in the config, or calibrate:", wrong);
  for (Quantizer* q : frozen) q->learn();
}

void QuantSim::disable() {
  require_graph("disable");
  const std::vector<Quantizer*> all = distinct(placements_);
  const auto acts = [](const Quantizer* q) { return q->state() != QuantizerState::off; };
  DETENT_CHECK(saved_states_.empty() || std::any_of(all.begin(), all.end(), acts), "QuantSim::disable: the quantizers are disabled already");
  for (Quantizer* q : all) {
    if (q->state() == QuantizerState::learning) q->grids();  // takes over what the optimizer wrote last; a bound that is NaN stops before anything changes
  }
  // Some may have been given a range since: what they do now counts.
  saved_states_.resize(all.size(), QuantizerState::off);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!acts(all[i])) continue;
    saved_states_[i] = all[i]->state();
    all[i]->disable();
  }
}

void QuantSim::enable() {
  require_graph("enable");
  const std::vector<Quantizer*> all = distinct(placements_);
  DETENT_CHECK(saved_states_.size() == all.size(), "QuantSim::enable: the quantizers are not disabled");
  for (size_t i = 0; i < all.size(); ++i) {
    if (saved_states_[i] == QuantizerState::off || all[i]->state() != QuantizerState::off) continue;
    all[i]->enable();
    if (saved_states_[i] == QuantizerState::learning) all[i]->learn();
  }
  saved_states_.clear();
}

FloatScope::~FloatScope() {
  try {
    sim_.enable();
  } catch (const Error&) {
    // Somebody enabled them within the scope: they are as he wants them.
  }
}

EncodingMap QuantSim::encodings(bool int32_bias) {
  require_graph("encodings");
  for (const Placement& p : placements_)
    DETENT_CHECK(p.quantizer->state() != QuantizerState::observing, "QuantSim::encodings: quantizer \"", p.name, "\" is observing; wait for the end of compute_encodings");
  EncodingMap map;
  map.args = {.activation_bitwidth = options_.output_bits,
              .param_bitwidth = options_.param_bits,
              .symmetric = options_.config.param_symmetric,
              .per_channel = options_.config.per_channel,
              .quant_scheme = std::string(aimet_name(options_.scheme))};
  for (Placement& p : placements_) {
    Quantizer& q = *p.quantizer;
    if (q.state() == QuantizerState::off || !q.calibrated()) continue;
    Encoding e;
    e.name = p.name;
    e.bits = q.spec().grid.bits;
    e.is_float = q.is_float();
    if (!e.is_float) {
      e.grids = q.grids();
      e.symmetric = q.spec().grid.symmetric && of_another_kind(e.grids, q.spec().grid).empty();
      e.ranges = q.ranges();
      e.channel_axis = q.spec().channel_axis;
    }
    (p.parameter ? map.params : map.activations).push_back(std::move(e));
  }
  if (!int32_bias) return map;
  for (const IntegerLayer& layer : integer_layers(graph_)) {
    if (layer.bias && !map.find(layer.bias->name)) map.params.push_back(bias_encoding(layer));
  }
  return map;
}

void QuantSim::load_encodings(const EncodingMap& encodings, Load mode) {
  require_graph("load_encodings");
  // Everything is matched before anything changes.
  std::string wrong;
  std::vector<std::string> biases;
  nn::Visitor visitor;
  visitor.parameter = [&](nn::Parameter& p) {
    if (p.name.ends_with(".bias")) biases.push_back(p.name);
  };
  graph_.visit(visitor, false);
  std::vector<std::pair<Placement*, const Encoding*>> matched;
  const auto match = [&](const std::vector<Encoding>& list) {
    for (const Encoding& e : list) {
      const auto p = std::find_if(placements_.begin(), placements_.end(), [&](const Placement& x) { return x.name == e.name; });
      if (p == placements_.end()) {
        if (e.bits == 32 && std::find(biases.begin(), biases.end(), e.name) != biases.end()) continue;
        if (mode == Load::strict) wrong += text("\n  ", e.name, ": no such quantizer in this network");
        continue;
      }
      if (e.is_float || p->quantizer->is_float()) {
        if (e.is_float != p->quantizer->is_float())
          wrong += text("\n  ", e.name, ": ", e.is_float ? "a float" : "a grid", " in the file, ", e.is_float ? "a grid" : "a float", " here");
        matched.emplace_back(&*p, &e);
        continue;
      }
      const GridSpec& spec = p->quantizer->spec().grid;
      if (e.bits != spec.bits) wrong += text("\n  ", e.name, ": ", e.bits, " bits in the file, ", spec.bits, " here");
      const int axis = p->quantizer->spec().channel_axis;
      const size_t channels = axis < 0 ? 1 : static_cast<size_t>(p->parameter->value.dim(axis));
      // One grid for the tensor is the same grid for each channel.
      if (e.grids.size() != channels && e.grids.size() != 1) wrong += text("\n  ", e.name, ": ", e.grids.size(), " grids in the file, ", channels, " here");
      std::string reason = misfit(e.grids, e.grids.size(), e.bits);
      if (reason.empty() && e.bits == spec.bits && mode == Load::strict) reason = of_another_kind(e.grids, spec);
      if (!reason.empty()) wrong += text("\n  ", e.name, ": ", reason);
      matched.emplace_back(&*p, &e);
    }
  };
  match(encodings.activations);  // which list an entry stands in is the format's affair: 2.0.0 has one
  match(encodings.params);
  if (mode == Load::strict) {
    const std::vector<bool> live = graph_.live_values();  // what no image reaches has no range in any file
    for (const Placement& p : placements_) {
      if (!p.parameter && !live[static_cast<size_t>(p.value.id)]) continue;
      const bool found = std::any_of(matched.begin(), matched.end(), [&](const auto& m) { return m.first == &p; });
      if (!found && !p.quantizer->is_float()) wrong += text("\n  ", p.name, ": no entry in the file");
    }
  }
  DETENT_CHECK(wrong.empty(), "load_encodings: the encodings are those of another network or configuration:", wrong);
  for (const auto& [placement, encoding] : matched) {
    if (encoding->is_float) {
      if (placement->quantizer->state() == QuantizerState::off) placement->quantizer->enable();
      continue;
    }
    const int axis = placement->quantizer->spec().channel_axis;
    const size_t channels = axis < 0 ? 1 : static_cast<size_t>(placement->parameter->value.dim(axis));
    placement->quantizer->set_grids(encoding->grids.size() == 1 ? std::vector<Grid>(channels, encoding->grids[0]) : encoding->grids);
  }
}

}  // namespace detent::quant
