// What a Flow measures and writes beside training: accuracies, integers, bias correction, sensitivities, layer dumps.
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "detent/io/layer_dump.h"
#include "detent/quant/learned_rounding.h"
#include "detent/quant/post_training.h"
#include "flow.h"
#include "progress.h"

namespace qat {

using namespace detent;

nn::Accuracy Flow::validate(const std::string& stage) {
  io::Loader loader(valid_set_, loader_options(false));
  Progress progress("evaluate " + stage, loader.images(), o_.quiet);
  // Judged apart from what training rounds.
  std::optional<FullPrecision> full_precision;
  if (backend(device_).precision() == Precision::bf16) full_precision.emplace(device_);
  const nn::Accuracy a = nn::evaluate(net_, loader, [&](int64_t done) {
    progress.update(done);
    stop_if_asked();
  });
  report_.accuracy[stage] = a;
  report_.images["valid"] = a.images;
  report_.images_per_second[stage == "int8" ? "eval_int8" : sim_ ? "eval_quantized" : "eval_float"] = rate(a.images, progress.seconds());
  return a;
}

// The loss alone hides a network that has died: it stays where it is, at the logarithm of the number of classes.
void Flow::warn_when_training_lost() const {
  const nn::Accuracy &before = report_.accuracy.at("ptq"), &after = report_.accuracy.at("qat");
  const double p = before.top1(), noise = std::sqrt(2.0 * p * (1.0 - p) / static_cast<double>(std::max<int64_t>(1, before.images)));
  if (before.images != after.images || after.top1() >= p - 3.0 * noise) return;
  say(false, text("warning: training ended at ", 100.0 * after.top1(), " %, the calibrated network was at ", 100.0 * p, " %: --lr ", o_.lr, " is too high, divide it by 10",
                  o_.keep_batch_norm ? "" : "; where that is too slow (below 8 bits), --batch-norm keep stands higher rates"));
}

std::vector<Tensor> Flow::calibration_images(int64_t images) {
  io::Loader loader(train_set_, calibration_options(images));
  std::vector<Tensor> batches;
  for (const io::Batch& b : loader) batches.push_back(b.images);
  return batches;
}

int64_t Flow::layers() const {
  return std::count_if(net_.nodes().begin(), net_.nodes().end(), [](const nn::Graph::Node& n) { return n.op == "Conv" || n.op == "Gemm"; });
}

// After the ranges have their final place, before they are trained.
void Flow::learn_rounding() {
  if (o_.adaround == 0) return;
  const std::vector<Tensor> images = calibration_images(o_.adaround);
  int64_t steps = 0;
  Progress progress("learn rounding", layers() * o_.adaround_iterations, o_.quiet);
  report_.rounded = quant::learn_rounding(*sim_, images, {.iterations = o_.adaround_iterations, .seed = o_.seed}, [&](const quant::RoundedLayer& l) {
    progress.update(steps += o_.adaround_iterations, l.name);
    stop_if_asked();
  });
  if (o_.epochs > 0) say(false, text("warning: --adaround ", o_.adaround, ": the training that follows (--epochs ", o_.epochs, ") moves the weights again; --epochs 0 keeps what was learned"));
  int64_t weights = 0, moved = 0;
  for (const quant::RoundedLayer& l : report_.rounded) weights += l.weights, moved += l.moved;
  say(o_.quiet, text("learned the rounding of ", report_.rounded.size(), " layers: ", moved, " of ", weights, " weights are rounded to the farther neighbour"));
}

void Flow::correct_biases() {
  if (o_.correct_biases == 0) return;
  const FullPrecision full_precision(device_);
  io::Loader loader(train_set_, calibration_options(o_.correct_biases));
  Progress progress("correct biases", loader.images() * (1 + layers()), o_.quiet);
  int64_t done = 0;
  const int64_t corrected = quant::correct_biases(*sim_, [&] {
    for (const io::Batch& b : loader) {
      net_(b.images);
      progress.update(done += b.images.dim(0));
      stop_if_asked();
    }
  });
  say(o_.quiet, text("corrected the biases of ", corrected, " layers"));
}

// Integer execution refuses some ranges: told before they train.
void Flow::check_integers() {
  if (!o_.int8_eval) return;
  net_.to(Device{});
  require_integers(net_);
  net_.to(device_);
}

template <class Fn>
void Flow::on_integers(Fn&& fn) {
  const Device device = std::exchange(device_, Device{});  // the loader's too
  net_.to(device_);
  net_.set_execution(nn::Graph::Execution::integer);
  fn();
  net_.set_execution(nn::Graph::Execution::planned);
  device_ = device;
  net_.to(device_);
}

void Flow::evaluate_integers() {
  if (!o_.int8_eval) return;
  on_integers([&] {
    for (const std::string& node : net_.float_nodes()) say(o_.quiet, "in float: " + node);
    validate("int8");
  });
}

// The codes (with --int8-eval those of the integers), and in a folder of their own the values of the float network, for comparison with a device.
void Flow::dump_layers() {
  const auto codes = [&] { dump_layers_into(o_.dump_layers); };
  o_.int8_eval ? on_integers(codes) : codes();
  const quant::FloatScope full_precision(*sim_);
  dump_layers_into(join_path(o_.dump_layers, "float"));
}

void Flow::dump_layers_into(const std::string& folder) {
  io::LayerDump dump(net_, {.folder = folder, .layer_images = o_.dump_layer_images});
  io::LoaderOptions options = loader_options(false);
  options.limit = o_.dump_images;
  io::Loader loader(valid_set_, options);
  for (const io::Batch& b : loader) dump.add(b.images);
  dump.finish();
}

void Flow::measure_sensitivity() {
  if (o_.sensitivity == 0) return;
  const FullPrecision full_precision(device_);
  const std::vector<Tensor> batches = calibration_images(o_.sensitivity);
  Progress progress("sensitivity", static_cast<int64_t>(sim_->placements().size()), o_.quiet);
  report_.sensitivities = quant::sensitivities(*sim_, batches, [&](int64_t done) {
    progress.update(done);
    stop_if_asked();
  });
}

}  // namespace qat
