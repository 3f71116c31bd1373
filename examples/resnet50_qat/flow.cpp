#include "flow.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

#include "built_in.h"
#include "detent/core/file.h"
#include "detent/core/parallel.h"
#include "detent/io/export.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/passes/reestimate_batch_norm.h"
#include "detent/quant/fold_to_scale.h"
#include "detent/quant/post_training.h"
#include "given.h"
#include "progress.h"

namespace qat {

using namespace detent;

std::atomic<bool> stop_requested{false};

void stop_if_asked() {
  if (stop_requested.load()) throw Stopped{};
}

Flow::Flow(Options options) : o_(std::move(options)) {
  set_num_threads(o_.threads);
  try {
    device_ = device_named(o_.device);
    backend(device_).set_precision(precision_named(o_.precision));
  } catch (const Error& e) {
    std::string_view why = e.what();
    const std::string said = text("device ", o_.device, ": ");
    if (why.starts_with(said)) why.remove_prefix(said.size());
    fail("--device ", o_.device, ": ", why);
  }
}

Flow::~Flow() = default;

std::string Flow::path(const std::string& suffix) const { return join_path(o_.output, o_.prefix + suffix); }

void Flow::open_data() {
  const std::string folder = o_.built_in() ? built_in_data(o_.quiet) : o_.data;
  const auto log = [this](const std::string& line) { say(o_.quiet, line); };
  constexpr int64_t kCacheBytes = int64_t{512} << 20;  // small sets are decoded once
  train_set_ = std::make_shared<io::TfRecordDataset>(folder, "train", io::TfRecordOptions{.skip_bad_records = o_.skip_bad_records, .log = log, .cache_bytes = kCacheBytes});
  valid_set_ = std::make_shared<io::TfRecordDataset>(folder, "valid", io::TfRecordOptions{.cache_bytes = kCacheBytes});
}

io::LoaderOptions Flow::loader_options(bool training) const {
  return {.batch = training ? o_.batch : o_.eval_batch,
          .shuffle = training,
          .augment = training,
          .seed = o_.seed,
          .preprocess = preprocess_,
          .image_size = shape_.image_size,
          .label_offset = o_.label_offset,
          .classes = shape_.classes,
          .threads = o_.threads,
          .limit = training ? 0 : o_.eval_samples,
          .device = device_};
}

void Flow::fold() {
  if (o_.keep_batch_norm) return;
  const auto folded = nn::fold_batch_norms(net_);
  if (!folded.empty()) say(o_.quiet, text("folded ", folded.size(), " batch norms"));
  if (o_.equalize == "no") return;
  net_.to(Device{});
  const quant::Equalized equalized = quant::equalize_layers(net_, {.relu6_as_relu = o_.equalize == "relu6"});
  net_.to(device_);
  say(o_.quiet, text("equalized ", equalized.sets.size(), " sets of layers", equalized.relus.empty() ? "" : text("; ", equalized.relus.size(), " clips became ReLUs")));
}

quant::QuantSimOptions Flow::sim_options() const {
  return {.scheme = o_.scheme,
          .param_bits = o_.param_bits,
          .output_bits = o_.output_bits,
          .first_last_bits = o_.first_last_bits,
          .param_format = o_.param_format,
          .output_format = o_.output_format,
          .config = config_,
          .range_rule = o_.range_rule,
          .range_learning_rate = o_.range_lr_scale,
          .estimator = {.percentile = o_.percentile}};
}

void Flow::quantize() {
  net_.set_products(o_.products == "floats" ? Products::floats : Products::integers);
  sim_ = std::make_unique<quant::QuantSim>(net_, sim_options());
  const quant::QuantizerCounts n = sim_->counts();
  say(o_.quiet, text("placed ", n.weight, " weight, ", n.activation, " activation and ", n.bias, " bias quantizers"));
  if (n.weight + n.activation + n.bias == 0) say(false, "warning: the configuration leaves nothing quantized");
}

// Training images as evaluation sees them.
io::LoaderOptions Flow::calibration_options(int64_t images) const {
  io::LoaderOptions options = loader_options(true);
  options.batch = o_.eval_batch;
  options.augment = false;
  options.limit = images;
  return options;
}

// Of what was left out as broken (--skip-bad-records) something must have been left.
void Flow::require_records(int64_t seen, const io::Loader& loader) const {
  DETENT_CHECK(seen > 0, "--data ", o_.data, ": the ", loader.images(), " training records that were read are broken, all of them; nothing is left of them to work with");
}

void Flow::calibrate() {
  // Ranges are measured in full precision, whatever a device trains in: they are then the same everywhere.
  const FullPrecision full_precision(device_);
  io::Loader loader(train_set_, calibration_options(o_.calibration_samples));
  Progress progress("calibrate", loader.images(), o_.quiet);
  int64_t done = 0;
  sim_->compute_encodings([&] {
    for (const io::Batch& b : loader) {
      net_(b.images);
      progress.update(done += b.images.dim(0));
      stop_if_asked();
    }
    require_records(done, loader);
  });
  report_.images["calibration"] = done;
  if (!encodings_.activations.empty() || !encodings_.params.empty()) {
    sim_->load_encodings(encodings_, quant::QuantSim::Load::partial);
    if (learns_ranges(o_.scheme)) sim_->learn();
    say(o_.quiet, "grids from " + o_.arch);
  }
  report_.unseen = sim_->unseen();
  for (const std::string& name : report_.unseen) say(false, "warning: the quantizer of \"" + name + "\" never saw data and stays off");
}

void Flow::load_ranges() {
  if (o_.encodings.empty()) return;
  const quant::EncodingMap& map = given_ranges_;
  sim_->load_encodings(map, quant::QuantSim::Load::partial);
  int64_t loaded = 0;
  for (const quant::Placement& p : sim_->placements()) {
    const quant::Encoding* e = map.find(p.name);
    if (!e) continue;
    ++loaded;
    if (!o_.freeze_encodings && !e->is_float && quant::learns_ranges(p.quantizer->spec().scheme) && !p.quantizer->spec().keep_frozen) p.quantizer->learn();
  }
  warn_of_strangers(map);
  say(o_.quiet, text("loaded ", loaded, " of ", sim_->placements().size(), " ranges from ", o_.encodings));
}

// A file may name some quantizers only; what it names and the network lacks is told.
void Flow::warn_of_strangers(const quant::EncodingMap& map) const {
  std::string names;
  int64_t count = 0;
  for (const auto* list : {&map.activations, &map.params}) {
    for (const quant::Encoding& e : *list) {
      if (sim_->find(e.name) || e.bits == 32) continue;
      if (++count <= 10) names += (count > 1 ? ", " : "") + e.name;
    }
  }
  if (count > 0) say(false, text("warning: --encodings ", o_.encodings, ": ", count, " entries are no quantizers of this network: ", names, count > 10 ? ", ..." : ""));
}

// Measures batch norms that stayed in anew, then takes them into the weights and their scales.
void Flow::fold_to_scale() {
  if (!o_.keep_batch_norm) return;
  if (o_.reestimate_bn > 0 && progress_.step > 0) {
    io::Loader loader(train_set_, loader_options(true));
    io::Batch batch;
    const auto undo = nn::reestimate_batch_norm(
        net_,
        [&] {
          if (!loader.next(batch)) return false;
          net_(batch.images);
          return true;
        },
        o_.reestimate_bn);
    say(o_.quiet, text("batch-norm statistics measured anew on ", undo.batches(), " batches"));
  }
  net_.to(Device{});  // weights are rewritten on the host
  const auto folded = quant::fold_batch_norms_to_scale(*sim_);
  net_.to(device_);
  say(o_.quiet, text("folded ", folded.size(), " batch norms into the scales"));
}

nn::Schedule Flow::schedule(int64_t steps_of_epoch) const {
  if (o_.schedule == "cosine") return {.kind = nn::Schedule::Kind::cosine, .base = o_.lr, .total_steps = o_.epochs * steps_of_epoch};
  return {.kind = nn::Schedule::Kind::step, .base = o_.lr, .decay_every = o_.decay_steps * steps_of_epoch};
}

int64_t Flow::total_steps() const {
  const int64_t steps = (train_set_->size() + o_.batch - 1) / o_.batch * o_.epochs;
  return o_.max_steps ? std::min(steps, o_.max_steps) : steps;
}

// A record that cannot be read costs none of the steps before it.
bool Flow::next_batch(io::Loader& loader, io::Batch& batch, TrainingLog& log) {
  try {
    return loader.next(batch);
  } catch (const Error& e) {
    if (progress_.step == 0) throw;
    log.sync();
    log.keep();
    save_failing(e);
    throw;
  }
}

bool Flow::train() {
  io::Loader loader(train_set_, loader_options(true));
  report_.images["train"] = loader.images();
  report_.train_files = train_set_->files();
  const int64_t per_epoch = loader.batches(), total = total_steps();
  nn::Trainer trainer(net_, *sgd_, schedule(per_epoch));
  trainer.set_steps_done(progress_.step);
  trainer.freeze_batch_norm_after = o_.freeze_bn_after;
  trainer.record = true;
  make_teacher();
  if (o_.distill > 0.0f) trainer.distillation = {.teacher = &teacher_, .weight = o_.distill, .temperature = o_.distill_temperature};

  TrainingLog log(path(".log.jsonl"), progress_.step);
  // The last batch of an epoch may be smaller.
  const auto images_until = [&](int64_t step) { return step / per_epoch * loader.images() + std::min(step % per_epoch * o_.batch, loader.images()); };
  Progress bar("train", images_until(total), o_.quiet, images_until(progress_.step));
  const double seconds_before = report_.seconds["qat_train"];
  int64_t images = 0;
  while (progress_.step < total) {
    loader.seek(progress_.epoch, progress_.batch);
    const bool whole_epoch = progress_.batch == 0;
    const int64_t step_before = progress_.step;
    io::Batch batch;
    while (progress_.step < total && next_batch(loader, batch, log)) {
      const nn::StepInfo info = naming_last_checkpoint([&] { return trainer.step(batch.images, batch.labels); });
      progress_.step = info.step;
      progress_.batch = batch.index + 1;
      images += info.images;
      report_.seconds["qat_train"] = seconds_before + bar.seconds();
      log.add(info);
      const bool stop = stop_requested.load();
      if (stop || (o_.checkpoint_every && info.step % o_.checkpoint_every == 0)) {
        log.sync();
        save(Prune::yes);
        log.keep();
      }
      bar.update(images_until(info.step), text("loss ", std::round(info.loss * 1e4f) / 1e4f));
      if (stop) {
        bar.finish();
        say_stopped();
        return false;
      }
    }
    if (progress_.step >= total) break;
    if (whole_epoch) require_records(progress_.step - step_before, loader);
    ++progress_.epoch;
    progress_.batch = 0;
  }
  naming_last_checkpoint([&] { nn::require_finite(net_, "training"); });
  log.close();
  log_failure_ = log.failure();
  if (images > 0) {  // else the checkpoint was that of the end
    report_.images_per_second["train_qat"] = rate(images, bar.seconds());
    report_.waiting_share = bar.seconds() > 0 ? loader.seconds_waiting() / bar.seconds() : 0.0;
  }
  if (progress_.step > 0) save_trained();
  if (o_.average_weights > 0.0f && progress_.step > 0) sgd_->use_averages(net_.parameters());
  return true;
}

void Flow::finish() {
  measure_sensitivity();
  net_.to(Device{});  // files are written from the host's memory
  io::ExportOptions options{.folder = o_.output, .prefix = o_.prefix, .encodings_version = o_.encodings_version, .int32_bias = o_.int32_bias};
  std::vector<std::string> files = io::export_quantized(*sim_, options);
  if (o_.epochs > 0) files.push_back(o_.prefix + ".log.jsonl");
  files.push_back(o_.prefix + ".summary.json");
  report_.bad_records = train_set_->bad_places();
  write_file_atomically(path(".summary.json"), std::string_view(summary_json(report_, o_, device_.type == DeviceType::cpu ? "cpu" : "cuda", sim_->counts(), files)));
  if (!o_.dump_layers.empty()) {  // behind the results: nothing that fails here loses them
    net_.to(device_);
    dump_layers();
  }
  std::string out = table(report_, o_) + sensitivity_table(report_);
  if (o_.print_quantizers) out += "\n" + sim_->table();
  out += "\nwritten to " + o_.output + ":";
  for (const std::string& f : files) out += " " + f;
  std::printf("%s\n", out.c_str());
  DETENT_CHECK(std::fflush(stdout) == 0 && !std::ferror(stdout), "the table cannot be written to standard output; the results are in ", o_.output);
  if (!log_failure_.empty()) say(false, text("warning: ", o_.prefix, ".log.jsonl lacks its end: ", log_failure_));
}

int Flow::run() {
  try {
    return run_stages();
  } catch (const Stopped&) {
    const bool saved = checkpoint_step_ == progress_.step;
    DETENT_CHECK(saved || !trained_, "stopped behind the training, of which no checkpoint could be written: nothing is saved; make room in ", o_.output, " and run again");
    if (progress_.step > 0) {
      if (!saved) save(Prune::yes);
      say_stopped();
    } else {
      say(false, "stopped before the first training step: nothing to save; run again with the same options");
    }
    return kExitStopped;
  }
}

int Flow::run_stages() {
  require_files(o_);
  config_ = load_config(o_.config);
  given_ranges_ = read_ranges(o_.encodings);
  progress_.options = options_key();
  open_data();
  resume();
  build_network();
  require_folders(o_);
  lock_.emplace(o_);
  remove_left_overs();
  sgd_ = std::make_unique<nn::Sgd>(nn::Sgd::Options{.learning_rate = o_.lr, .momentum = o_.momentum, .weight_decay = o_.weight_decay});
  sgd_->averaged_share = o_.average_weights;
  if (!resume_from_.empty()) {
    nn::initialize(net_);  // the checkpoint overwrites it, but folding looks at values
    fold();
    quantize();
    require_writable_widths(*sim_);
    if (o_.correct_biases > 0) quant::ensure_biases(net_);  // layers had none beside the batch norms left in
    progress_ = io::load_checkpoint(resume_from_, net_, sim_.get(), *sgd_);
    report_ = Report::from_json(progress_.report);
    report_.resumed_from_step = progress_.step;
    train_set_->leave_out(report_.bad_records);
    last_checkpoint_ = resume_from_;
    checkpoint_step_ = progress_.step;
    net_.to(device_);
    say(o_.quiet, text("resumed from ", resume_from_));
  } else {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
    DETENT_CHECK(o_.built_in() || o_.imported() || !o_.weights.empty(), "--resume ", o_.resume, ": there is no checkpoint in ", o_.output,
                 "; also give --weights with the trained float network to start from");
    rehearse();
    auto start = Clock::now();
    load_float_weights(net_);
    net_.to(device_);
    validate("float");
    fold();
    if (!o_.keep_batch_norm) validate("folded");
    report_.seconds["float"] = since(start);
    start = Clock::now();
    quantize();
    calibrate();
    load_ranges();
    learn_rounding();
    correct_biases();
    validate("ptq");
    report_.seconds["ptq"] = since(start);
  }
  check_integers();
  if (o_.epochs > 0) {
    if (!train()) return kExitStopped;
    fold_to_scale();
    validate("qat");
    warn_when_training_lost();
  } else {
    fold_to_scale();
    if (o_.keep_batch_norm) validate("ptq");  // of what is exported
  }
  evaluate_integers();
  naming_last_checkpoint([&] { finish(); });
  if (!trained_checkpoint_.empty()) remove_file(trained_checkpoint_);
  return 0;
}

}  // namespace qat
