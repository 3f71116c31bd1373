// What a run found out: kept in checkpoints, printed as the final table, written as PREFIX.summary.json.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "detent/io/data/dataset.h"
#include "detent/nn/train.h"
#include "detent/quant/learned_rounding.h"
#include "detent/quant/sensitivity.h"
#include "options.h"

namespace qat {

struct Report {
  std::map<std::string, detent::nn::Accuracy> accuracy;   ///< "float", "folded", "ptq", "qat"
  std::map<std::string, double> seconds;                  ///< "float", "ptq", "qat_train"
  std::map<std::string, double> images_per_second;        ///< "eval_float", "eval_quantized", "train_float", "train_qat"
  std::map<std::string, int64_t> images;                  ///< "train", "valid", "calibration"
  double waiting_share = 0.0;                             ///< of training time, for data
  std::vector<std::string> unseen;                        ///< quantizers that no calibration image reached
  std::vector<detent::quant::RoundedLayer> rounded;       ///< by --adaround
  std::vector<detent::quant::Sensitivity> sensitivities;  ///< the noisiest first
  int64_t resumed_from_step = 0;
  int64_t train_files = 0;                           ///< that hold the images of "train"
  std::vector<detent::io::RecordPlace> bad_records;  ///< of "train", left out

  std::string to_json() const;
  /// Throws detent::Error for text that to_json() did not write.
  static Report from_json(const std::string& text);
};

/// Images per second; 0 when no time passed.
double rate(int64_t images, double seconds);
/// The final table.
std::string table(const Report& report, const Options& options);
/// The noisiest quantizers, or "" when they were not measured.
std::string sensitivity_table(const Report& report);
/// PREFIX.summary.json (design: format 1).
std::string summary_json(const Report& report, const Options& options, const std::string& device, detent::quant::QuantizerCounts counts, const std::vector<std::string>& files);

}  // namespace qat
