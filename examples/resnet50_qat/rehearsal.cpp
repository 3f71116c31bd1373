// What a Flow asks of its options before the hours that stand behind them: whether patterns, names and widths fit the network.
#include <algorithm>

#include "detent/core/rng.h"
#include "detent/io/encodings.h"
#include "detent/io/onnx/import.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "flow.h"

namespace qat {

using namespace detent;

namespace {

Tensor noise(int64_t size) {
  Rng rng;
  std::vector<float> pixels(static_cast<size_t>(size * size * 3));
  for (float& p : pixels) p = rng.uniform(-1.0f, 1.0f);
  return Tensor::from<float>(Shape{1, size, size, 3}, pixels);
}

// The first of the lines below the heading: a network's worth of them says no more.
std::string shortened(std::string_view list) {
  constexpr int kShown = 3;
  size_t end = list.find('\n');
  for (int i = 0; i < kShown && end != std::string_view::npos; ++i) end = list.find('\n', end + 1);
  if (end == std::string_view::npos) return std::string(list);
  return text(list.substr(0, end), "\nand ", std::count(list.begin() + static_cast<std::ptrdiff_t>(end), list.end(), '\n'), " more");
}

}  // namespace

// Overrides have widths, too.
void Flow::require_writable_widths(const quant::QuantSim& sim) const {
  quant::EncodingMap map;
  for (const quant::Placement& p : sim.placements()) {
    const quant::QuantizerSpec& spec = p.quantizer->spec();
    quant::Encoding e;
    e.name = p.name;
    e.is_float = spec.format != quant::NumberFormat::integer;
    e.bits = spec.grid.bits;
    e.grids = {{1.0f, 0, 0, 1}};
    map.activations.push_back(std::move(e));
  }
  try {
    io::write_encodings(map, o_.encodings_version);
  } catch (const Error& e) {
    fail("--encodings-version ", o_.encodings_version, ": ", e.what());
  }
}

// A network on the host.
void Flow::require_integers(nn::Graph& net) const {
  try {
    net.set_execution(nn::Graph::Execution::integer);
  } catch (const Error& e) {
    fail("--int8-eval: ", shortened(e.what()));
  }
  net.set_execution(nn::Graph::Execution::planned);
}

// On a network like this one with weights of no meaning.
void Flow::rehearse() const {
  nn::Graph net = o_.imported() ? io::load_onnx(o_.arch, {.image_size = o_.image_size}).graph : nn::models::make(o_.arch, shape_);
  if (!o_.imported()) nn::initialize(net);
  if (!o_.keep_batch_norm) nn::fold_batch_norms(net);
  quant::QuantSimOptions options = sim_options();
  if (o_.int8_eval) options.scheme = quant::Scheme::tf;  // the fastest; integers need any range
  quant::QuantSim sim(net, options);
  require_writable_widths(sim);
  if (o_.int8_eval) {
    sim.compute_encodings([&] { net(noise(shape_.image_size)); });
    sim.load_encodings(encodings_, quant::QuantSim::Load::partial);
  }
  if (!o_.encodings.empty()) {
    const bool any = std::any_of(sim.placements().begin(), sim.placements().end(), [&](const quant::Placement& p) { return given_ranges_.find(p.name); });
    DETENT_CHECK(any, "--encodings ", o_.encodings, ": none of its ", given_ranges_.activations.size() + given_ranges_.params.size(),
                 " entries is a quantizer of this network; --print-quantizers lists those");
    sim.load_encodings(given_ranges_, quant::QuantSim::Load::partial);
  }
  if (o_.int8_eval) require_integers(net);
}

}  // namespace qat
