// The program's command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "detent/io/data/preprocess.h"
#include "detent/quant/quantsim.h"

namespace qat {

struct Options {
  std::string data;  ///< empty: the built-in set
  std::string arch = "resnet50-v1";
  std::string weights;
  int64_t label_offset = 1;
  std::string device = "auto", precision = "tf32";
  std::string products = "integers";  ///< of quantized layers
  int threads = 0;                    ///< 0: all cores
  uint64_t seed = 0;
  int64_t batch = 32, eval_batch = 64;
  detent::quant::Scheme scheme = detent::quant::Scheme::range_learning_tf_enhanced;
  int param_bits = 8, output_bits = 8;
  int first_last_bits = 0;  ///< 0: as the rest
  detent::quant::NumberFormat param_format = detent::quant::NumberFormat::integer, output_format = detent::quant::NumberFormat::integer;
  double percentile = 99.99;
  std::string config;
  detent::quant::RangeRule range_rule = detent::quant::RangeRule::gated;
  float range_lr_scale = 1.0f;
  std::string equalize = "no";  ///< yes; relu6: clips become ReLUs for it
  int64_t adaround = 0;         ///< calibration images; 0: not
  int64_t adaround_iterations = 1000;
  int64_t correct_biases = 0;     ///< calibration images; 0: not
  bool keep_batch_norm = false;   ///< train with batch norms left in, fold them into the scales afterwards
  int64_t freeze_bn_after = -1;   ///< steps; -1: never
  int64_t reestimate_bn = 100;    ///< batches; 0: not
  std::string encodings;          ///< a file to load over the calibration, or instead of it when it has every quantizer
  bool freeze_encodings = false;  ///< loaded ranges are not trained
  int64_t calibration_samples = 500;
  int64_t epochs = 1;
  float lr = 1e-3f;
  std::string schedule = "step";  ///< or cosine: to zero at the end of the last epoch
  int64_t decay_steps = 5;        ///< epochs, of step
  float momentum = 0.9f, weight_decay = 0.0f;
  float average_weights = 0.1f;
  float distill = 0.0f, distill_temperature = 4.0f;  ///< share of the loss that the float network teaches; 0: not
  int64_t max_steps = 0, eval_samples = 0;
  int64_t classes = 0, image_size = 0;  ///< 0: by architecture
  std::optional<detent::io::Preprocess> preprocess;
  std::string output = "./output";
  std::string prefix = "resnet50_after_qat_range_learning";
  std::string encodings_version = "1.0.0";
  std::optional<bool> int32_bias;  ///< entries for biases; unset: in 2.0.0
  int64_t checkpoint_every = 0;
  int keep_checkpoints = 3;
  std::string resume;         ///< empty, "auto" or a file
  int64_t float_steps = 300;  ///< of the built-in data set's float training
  int64_t skip_bad_records = 0;
  std::string dump_layers;  ///< folder, or empty; the float network goes into its folder "float"
  int64_t dump_images = 64, dump_layer_images = 32;
  int64_t sensitivity = 0;  ///< images; 0: not measured
  bool print_quantizers = false;
  bool int8_eval = false;  ///< also the accuracy of integer execution
  bool quiet = false;

  bool built_in() const { return data.empty(); }
  /// --arch names an ONNX file, which holds the weights too.
  bool imported() const { return arch.ends_with(".onnx"); }
};

/// Parses and checks. Throws detent::Error for bad usage. Returns false when --help or --version was asked for; `text` is then what to print.
bool parse(int argc, char** argv, Options& options, std::string& text);

/// What must be equal for a checkpoint to continue this run, as JSON.
std::string resume_key(const Options& options);

}  // namespace qat
