#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "detent/nn/models/models.h"

namespace qat {
namespace {

using detent::fail;
using detent::text;

constexpr const char* kVersion = "resnet50_qat (Detent 0.1.0)";

// Counts stay far from where products of them leave 64 bits.
constexpr int64_t kMost = 1'000'000'000, kMostBatch = 1 << 20;

void at_least(const char* option, int64_t value, int64_t least, int64_t most = kMost) {
  DETENT_CHECK(value >= least, option, " ", value, ": give at least ", least);
  DETENT_CHECK(value <= most, option, " ", value, ": give at most ", most);
}

void finite(const char* option, float value, float least) {
  DETENT_CHECK(std::isfinite(value) && value >= least, option, " ", value, ": give a finite number of at least ", least);
}

// Numbers are decimal: the library behind the command line reads 020 as sixteen, and a seed of -1 as 2^64 - 1.
void check_numbers(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    if (option->results().empty() || (type.rfind("INT", 0) != 0 && type.rfind("UINT", 0) != 0)) continue;
    const std::string& given = option->results().back();
    const size_t sign = type[0] == 'I' && (given[0] == '-' || given[0] == '+') ? 1 : 0;
    const bool digits = given.size() > sign && given.find_first_not_of("0123456789", sign) == std::string::npos;
    DETENT_CHECK(digits && (given[sign] != '0' || given.size() == sign + 1), option->get_name(), " ", given, ": give a whole number in decimal digits",
                 sign || type[0] == 'I' ? "" : ", 0 or more");
    // The library behind the command line takes the nearest number there is.
    uint64_t value = 0;
    const auto read = std::from_chars(given.data() + sign, given.data() + given.size(), value);
    DETENT_CHECK(read.ec == std::errc{} && (type[0] == 'U' || value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())), option->get_name(), " ", given,
                 ": give a smaller number; at most ", type[0] == 'U' ? std::numeric_limits<uint64_t>::max() : std::numeric_limits<int64_t>::max(), " can be counted");
  }
}

void one_of(const char* option, const std::string& value, std::initializer_list<std::string_view> allowed) {
  std::string list;
  for (const std::string_view a : allowed) {
    if (a == value) return;
    list += (list.empty() ? "" : ", ") + std::string(a);
  }
  fail(option, " \"", value, "\"", detent::nearest_name(value, allowed.begin(), allowed.size()), ": give one of ", list);
}

void check(const Options& o, int threads) {
  if (!o.imported()) detent::nn::models::published(o.arch);
  if (!o.device.starts_with("cuda:")) one_of("--device", o.device, {"auto", "cpu", "cuda", "cuda:N"});
  one_of("--precision", o.precision, {"f32", "tf32", "bf16"});
  one_of("--products", o.products, {"integers", "floats"});
  one_of("--equalize", o.equalize, {"no", "yes", "relu6"});
  DETENT_CHECK(o.equalize == "no" || !o.keep_batch_norm, "--equalize ", o.equalize, ": leave --batch-norm keep out; batch norms are folded before layers are equalized");
  DETENT_CHECK(o.equalize == "no" || o.encodings.empty(), "--equalize ", o.equalize, ": --encodings ", o.encodings, " has ranges of the network as it was; leave one of them out");
  at_least("--adaround", o.adaround, 0);
  at_least("--adaround-iterations", o.adaround_iterations, 1);
  at_least("--correct-biases", o.correct_biases, 0);
  at_least("--sensitivity", o.sensitivity, 0);
  one_of("--encodings-version", o.encodings_version, {"0.6.1", "1.0.0", "2.0.0"});
  at_least("--threads", threads, 1, 1024);
  at_least("--batch", o.batch, 1, kMostBatch);
  at_least("--eval-batch", o.eval_batch, 1, kMostBatch);
  at_least("--calibration-samples", o.calibration_samples, 1);
  at_least("--epochs", o.epochs, 0);
  at_least("--decay-steps", o.decay_steps, 1);
  at_least("--max-steps", o.max_steps, 0);
  at_least("--eval-samples", o.eval_samples, 0);
  at_least("--classes", o.classes, 0, 1'000'000);
  at_least("--image-size", o.image_size, 0, 8192);
  at_least("--checkpoint-every", o.checkpoint_every, 0);
  at_least("--keep-checkpoints", o.keep_checkpoints, 1);
  at_least("--skip-bad-records", o.skip_bad_records, 0);
  at_least("--float-steps", o.float_steps, 1);
  at_least("--dump-images", o.dump_images, 1);
  at_least("--dump-layer-images", o.dump_layer_images, 1);
  at_least("--freeze-bn-after", o.freeze_bn_after, -1);
  at_least("--reestimate-bn", o.reestimate_bn, 0);
  DETENT_CHECK(!o.output.empty(), "--output \"\": give a folder; . is the present one");
  DETENT_CHECK(o.keep_batch_norm || o.freeze_bn_after < 0, "--freeze-bn-after ", o.freeze_bn_after, ": also give --batch-norm keep; folded batch norms have no statistics");
  DETENT_CHECK(!o.freeze_encodings || !o.encodings.empty(), "--freeze-encodings: also give --encodings with the file to keep");
  for (const auto& [option, bits] : {std::pair{"--param-bw", o.param_bits}, std::pair{"--output-bw", o.output_bits}}) {
    DETENT_CHECK((bits >= 2 && bits <= 16) || bits == 32, option, " ", bits, ": give 2..16, or 32 for float");
  }
  DETENT_CHECK(o.first_last_bits == 0 || (o.first_last_bits >= 2 && o.first_last_bits <= 16) || o.first_last_bits == 32, "--first-last-bw ", o.first_last_bits,
               ": give 2..16, 32 for float, or 0 for the bits of the rest");
  finite("--lr", o.lr, 0.0f);
  finite("--range-lr-scale", o.range_lr_scale, 0.0f);
  finite("--momentum", o.momentum, 0.0f);
  finite("--weight-decay", o.weight_decay, 0.0f);
  finite("--average-weights", o.average_weights, 0.0f);
  DETENT_CHECK(o.average_weights <= 1.0f, "--average-weights ", o.average_weights, ": give a share of the steps, at most 1");
  finite("--distill", o.distill, 0.0f);
  DETENT_CHECK(o.distill <= 1.0f, "--distill ", o.distill, ": give a share of the loss, at most 1");
  DETENT_CHECK(std::isfinite(o.distill_temperature) && o.distill_temperature >= 0.1f && o.distill_temperature <= 100.0f, "--distill-temperature ", o.distill_temperature,
               ": give 0.1..100");
  DETENT_CHECK(o.distill == 0.0f || o.epochs > 0, "--distill ", o.distill, ": --epochs 0 trains nothing; leave one of them out");
  DETENT_CHECK(o.distill == 0.0f || o.built_in() || o.imported() || !o.weights.empty(), "--distill ", o.distill,
               ": also give --weights with the trained float network, which teaches; a checkpoint holds the quantized one only");
  DETENT_CHECK(o.momentum < 1.0f, "--momentum ", o.momentum, ": give a number below 1");
  DETENT_CHECK(!o.prefix.empty() && o.prefix.find('/') == std::string::npos, "--prefix \"", o.prefix, "\": give a file name without a folder; the folder is --output");
  DETENT_CHECK(o.prefix.size() <= 200, "--prefix: ", o.prefix.size(), " characters; file names begin with it, give at most 200");
  DETENT_CHECK(std::none_of(o.prefix.begin(), o.prefix.end(), [](unsigned char c) { return c < 32 || c == 127; }),
               "--prefix: it holds a control character; give letters, digits, - and _");
  DETENT_CHECK(!(o.built_in() && o.imported()), "--arch ", o.arch, ": also give --data; an imported network is not trained on the built-in data set");
  DETENT_CHECK(!(o.built_in() && !o.weights.empty()), "--weights ", o.weights, ": also give --data; without it the built-in data set and its own float weights are used");
  DETENT_CHECK(o.built_in() || o.imported() || !o.weights.empty() || !o.resume.empty(), "--data ", o.data, ": also give --weights with the trained float network");
}

}  // namespace

bool parse(int argc, char** argv, Options& o, std::string& out) {
  CLI::App app(
      "Quantization-aware training with learned ranges: float accuracy, batch-norm folding, calibration, quantized accuracy, training, export.\n"
      "Without --data a small built-in data set is made, and the network of --arch trained on it first; both are kept in $XDG_CACHE_HOME/detent (~/.cache/detent).",
      "resnet50_qat");
  app.footer(
      "Ctrl-C, SIGTERM or a closed terminal (SIGHUP): the training step in progress is finished and saved; --resume auto goes on to the same bits. A second one ends at once.\n"
      "Exit code: 0 done; 2 wrong usage or input; 3 stopped as asked, what was trained is in a checkpoint (before the first step there is nothing to save).");
  std::string scheme(detent::quant::to_string(o.scheme)), rule(to_string(o.range_rule)), preprocess, batch_norm = "fold";
  std::string int32_bias = "auto", param_type = "int", output_type = "int";
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  app.option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--data", o.data, "folder of TFRecords train*, valid* (image/encoded, image/class/label)");
  app.add_option("--arch", o.arch,
                 "resnet50-v1 (Keras), resnet50-v1.5 (torchvision), resnet34, resnet18, resnet20-cifar10, mobilenet-v2, mobilenet-v2-cifar10; or FILE.onnx, weights included");
  app.add_option("--weights", o.weights, "trained float weights (safetensors, ONNX, Keras .h5); needed with --data, unless --arch is an ONNX file");
  app.add_option("--label-offset", o.label_offset, "subtracted from the stored labels");
  app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N");
  app.add_option("--precision", o.precision,
                 "of floats in training: tf32 on a GPU, f32 on a CPU; or f32; or bf16, the least memory, the fastest on a GPU and on AMD's CPUs since Zen 4. Sums are f32, integers exact");
  app.add_option("--products", o.products, "how layers between 8-bit grids multiply forward: integers, as the target (fast), or floats");
  app.add_option("--threads", threads, "threads of computation; results do not depend on it");
  app.add_option("--seed", o.seed, "seed of shuffling, augmentation and initial weights");
  app.add_option("--batch", o.batch, "images a training step");
  app.add_option("--eval-batch", o.eval_batch, "images a batch of evaluation and calibration");
  app.add_option("--quant-scheme", scheme, "tf, tf-enhanced, percentile, mse, moving-average, entropy: fixed ranges; range-learning-tf and so on: where learned ranges start");
  app.add_option("--param-bw", o.param_bits, "bits of weights, 2..16, or 32 for float");
  app.add_option("--output-bw", o.output_bits, "bits of activations, 2..16, or 32 for float");
  app.add_option("--first-last-bw", o.first_last_bits,
                 "bits of the first and last layers' weights, the network's input and output: 8 where the rest has 4 or fewer; 0: as the rest");
  app.add_option("--param-type", param_type, "what weights are kept in: int (a grid of --param-bw bits), float16 or bfloat16");
  app.add_option("--output-type", output_type, "what activations are kept in: int (a grid of --output-bw bits), float16 or bfloat16");
  app.add_option("--percentile", o.percentile, "of the percentile schemes, 50..100: the share of values on one side that the range holds; 100 is minimum and maximum");
  app.add_option("--config", o.config, "AIMET quantsim JSON, or the name of a shipped one: tensorflow_default, per_channel_default, integer");
  app.add_option("--range-gradient", rule, "how learned ranges move: gated, lsq (with its gradient scale), aimet (its exact rule, unguarded)");
  app.add_option("--range-lr-scale", o.range_lr_scale, "learning rate of ranges relative to that of weights");
  app.add_option("--batch-norm", batch_norm, "fold: into the layers before quantization; keep: train with them, fold into the scales afterwards");
  app.add_option("--freeze-bn-after", o.freeze_bn_after, "with --batch-norm keep: steps after which batch-norm statistics stay as they are; -1: never");
  app.add_option("--reestimate-bn", o.reestimate_bn, "with --batch-norm keep: training batches on which statistics are measured anew after training; 0: none");
  app.add_option("--encodings", o.encodings, "encodings file (0.6.1, 1.0.0, 2.0.0) whose ranges replace the calibrated ones; it may name some quantizers only");
  app.add_flag("--freeze-encodings", o.freeze_encodings, "ranges of --encodings are kept while training");
  app.add_option("--equalize", o.equalize,
                 "neighbouring layers' channels before quantization: no, yes, or relu6 (also through ReLU6, which becomes ReLU); for weights quantized per tensor");
  app.add_option("--adaround", o.adaround, "calibration images on which it is learned which way each weight is rounded (AdaRound), layer by layer; 0: to nearest");
  app.add_option("--adaround-iterations", o.adaround_iterations, "steps of --adaround for each layer");
  app.add_option("--correct-biases", o.correct_biases, "calibration images on which the mean error of quantization is taken out of the biases, layer by layer; 0: not");
  app.add_option("--calibration-samples", o.calibration_samples, "training images the ranges are calibrated on");
  app.add_option("--epochs", o.epochs, "epochs of quantization-aware training");
  app.add_option("--lr", o.lr, "learning rate");
  app.add_option("--schedule", o.schedule, "of the learning rate: step (divided by 10 every --decay-steps epochs), cosine (to zero at the end of --epochs)");
  app.add_option("--decay-steps", o.decay_steps, "epochs per division of the learning rate by 10");
  app.add_option("--momentum", o.momentum, "of SGD");
  app.add_option("--weight-decay", o.weight_decay, "of SGD");
  app.add_option("--average-weights", o.average_weights,
                 "the result's weights and ranges are averages over about this share of the steps, the last ones; 0: those of the last step");
  app.add_option("--distill", o.distill,
                 "share of the loss that is the distance to the float network's scores (distillation), 0..1; the rest is the labels'. For 4 bits and fewer: 1");
  app.add_option("--distill-temperature", o.distill_temperature, "of --distill: scores are divided by it");
  app.add_option("--max-steps", o.max_steps, "stop training after so many steps; 0: no limit");
  app.add_option("--eval-samples", o.eval_samples, "validate on the first so many images; 0: all");
  app.add_option("--classes", o.classes, "classes of the network; 0: as published");
  app.add_option("--image-size", o.image_size, "input height and width; 0: as published");
  app.add_option("--preprocess", preprocess, "keras, torchvision or cifar; default by architecture");
  app.add_option("--output", o.output, "folder for the results");
  app.add_option("--prefix", o.prefix, "beginning of the result files' names");
  app.add_option("--encodings-version", o.encodings_version, "0.6.1, 1.0.0 or 2.0.0");
  app.add_option("--int32-bias", int32_bias, "encodings with an int32 entry per bias: auto (in 2.0.0), yes, no");
  app.add_option("--checkpoint-every", o.checkpoint_every, "save PREFIX.step-N.ckpt every so many steps; 0: never");
  app.add_option("--keep-checkpoints", o.keep_checkpoints, "newest checkpoints that stay");
  app.add_option("--resume", o.resume, "a checkpoint, or auto: the newest good one in --output, else from the start");
  app.add_option("--skip-bad-records", o.skip_bad_records, "broken training records left out before the next one is an error");
  app.add_option("--float-steps", o.float_steps, "steps of float training on the built-in data set");
  app.add_option("--dump-layers", o.dump_layers,
                 "write every layer's codes for validation images into this folder (scripts/compare_with_onnxruntime); with --int8-eval the integers'");
  app.add_option("--dump-images", o.dump_images, "validation images of the dump");
  app.add_option("--dump-layer-images", o.dump_layer_images, "of those, the ones that all layers are written for");
  app.add_option("--sensitivity", o.sensitivity, "training images on which each quantizer is measured alone, the noisiest are printed; 0: not");
  app.add_flag("--print-quantizers", o.print_quantizers, "print every quantizer with its range and grid at the end");
  app.add_flag("--int8-eval", o.int8_eval, "also the final network's accuracy by integer execution on the cpu (8-bit grids), as ONNX Runtime runs PREFIX.qdq.onnx");
  app.add_flag("--quiet", o.quiet, "no progress; only the final table");
  app.set_version_flag("--version", kVersion);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    out = app.help();
    return false;
  } catch (const CLI::CallForVersion&) {
    out = std::string(kVersion) + "\n";
    return false;
  } catch (const CLI::ParseError& e) {
    std::string what = e.what();
    for (char& c : what) c = c == '\n' ? ' ' : c;
    fail("command line: ", what, "; see --help");
  }
  check_numbers(app);
  DETENT_CHECK(app.get_option("--data")->count() == 0 || !o.data.empty(), "--data \"\": give a folder, or leave it out for the built-in data set");
  while (o.data.size() > 1 && o.data.back() == '/') o.data.pop_back();  // the same folder, also to --resume
  o.scheme = detent::quant::parse_scheme(scheme);
  const auto format = [&](const char* type_option, const std::string& type, const char* bits_option, int& bits, detent::quant::NumberFormat& to) {
    one_of(type_option, type, {"int", "float16", "bfloat16"});
    to = detent::quant::parse_number_format(type);
    if (to == detent::quant::NumberFormat::integer) return;
    if (app.get_option(bits_option)->count() == 0) bits = 16;
    DETENT_CHECK(bits == 16, bits_option, " ", bits, ": ", type_option, " ", type, " has 16 bits; leave ", bits_option, " out");
  };
  format("--param-type", param_type, "--param-bw", o.param_bits, o.param_format);
  format("--output-type", output_type, "--output-bw", o.output_bits, o.output_format);
  DETENT_CHECK(o.percentile >= 50.0 && o.percentile <= 100.0, "--percentile ", o.percentile, ": give 50..100");
  one_of("--schedule", o.schedule, {"step", "cosine"});
  DETENT_CHECK(o.schedule == "step" || app.get_option("--decay-steps")->count() == 0, "--decay-steps ", o.decay_steps, ": --schedule cosine has no steps; leave one of them out");
  one_of("--batch-norm", batch_norm, {"fold", "keep"});
  o.keep_batch_norm = batch_norm == "keep";
  one_of("--int32-bias", int32_bias, {"auto", "yes", "no"});
  if (int32_bias != "auto") o.int32_bias = int32_bias == "yes";
  one_of("--range-gradient", rule, {"gated", "lsq", "aimet"});
  for (const auto r : {detent::quant::RangeRule::gated, detent::quant::RangeRule::lsq, detent::quant::RangeRule::aimet}) {
    if (to_string(r) == rule) o.range_rule = r;
  }
  DETENT_CHECK(o.distill > 0.0f || app.get_option("--distill-temperature")->count() == 0, "--distill-temperature ", o.distill_temperature, ": also give --distill");
  for (const auto& [option, other, there] : {std::tuple{"--adaround-iterations", "--adaround", o.adaround > 0}, {"--dump-images", "--dump-layers", !o.dump_layers.empty()},
                                             {"--dump-layer-images", "--dump-layers", !o.dump_layers.empty()}})
    DETENT_CHECK(there || app.get_option(option)->count() == 0, option, " ", app.get_option(option)->results().back(), ": also give ", other);
  DETENT_CHECK(app.get_option("--percentile")->count() == 0 || scheme.find("percentile") != std::string::npos, "--percentile ", o.percentile, ": --quant-scheme ", scheme,
               " has no percentile; give percentile or range-learning-percentile");
  DETENT_CHECK(o.keep_batch_norm || app.get_option("--reestimate-bn")->count() == 0, "--reestimate-bn ", o.reestimate_bn,
               ": also give --batch-norm keep; folded batch norms have no statistics");
  if (!preprocess.empty()) o.preprocess = detent::io::parse_preprocess(preprocess);
  check(o, threads);
  o.threads = threads;
  return true;
}

std::string resume_key(const Options& o) {
  nlohmann::json key = {{"arch", o.arch},
                        {"data", o.data},
                        {"batch", o.batch},
                        {"seed", o.seed},
                        {"quant-scheme", detent::quant::to_string(o.scheme)},
                        {"param-bw", o.param_bits},
                        {"output-bw", o.output_bits},
                        {"param-type", detent::quant::to_string(o.param_format)},
                        {"output-type", detent::quant::to_string(o.output_format)},
                        {"percentile", o.percentile},
                        {"config", o.config},
                        {"range-gradient", to_string(o.range_rule)},
                        {"range-lr-scale", o.range_lr_scale},
                        {"batch-norm", o.keep_batch_norm ? "keep" : "fold"},
                        {"freeze-bn-after", o.freeze_bn_after},
                        {"encodings", o.encodings},
                        {"freeze-encodings", o.freeze_encodings},
                        {"calibration-samples", o.calibration_samples},
                        {"lr", o.lr},
                        {"decay-steps", o.decay_steps},
                        {"momentum", o.momentum},
                        {"weight-decay", o.weight_decay},
                        {"average-weights", o.average_weights},
                        {"classes", o.classes},
                        {"image-size", o.image_size},
                        {"label-offset", o.label_offset},
                        {"preprocess", o.preprocess ? detent::io::to_string(*o.preprocess) : std::string_view()}};
  // Named where it is not the rule only: files from before it was an option go on.
  if (o.schedule != "step") key["schedule"] = o.schedule, key["epochs"] = o.epochs;  // the rate of a step depends on where the end is
  if (o.equalize != "no") key["equalize"] = o.equalize;
  if (o.adaround > 0) key["adaround"] = o.adaround, key["adaround-iterations"] = o.adaround_iterations;
  if (o.correct_biases > 0) key["correct-biases"] = o.correct_biases;
  if (o.first_last_bits != 0) key["first-last-bw"] = o.first_last_bits;
  if (o.distill > 0.0f) key["distill"] = o.distill, key["distill-temperature"] = o.distill_temperature, key["weights"] = o.weights;  // the teacher's
  if (o.distill > 0.0f && o.built_in()) key["float-steps"] = o.float_steps;
  if (o.keep_batch_norm) key["reestimate-bn"] = o.reestimate_bn;
  if (o.products != "integers") key["products"] = o.products;
  if (o.precision != "tf32") key["precision"] = o.precision;
  return key.dump();
}

}  // namespace qat
