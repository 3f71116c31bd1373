// The flow of the program: float accuracy, folding, calibration, quantized accuracy, range-learning training, accuracy, export.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "detent/io/checkpoint.h"
#include "detent/io/data/loader.h"
#include "detent/nn/graph.h"
#include "detent/nn/models/models.h"
#include "detent/nn/optimizer.h"
#include "detent/quant/quantsim.h"
#include "options.h"
#include "report.h"

namespace qat {

/// Set by SIGINT and SIGTERM: the step in progress is finished and saved.
extern std::atomic<bool> stop_requested;

class Flow {
 public:
  explicit Flow(Options options);
  ~Flow();
  /// Returns the process's exit code: 0, or 3 when it was asked to stop and saved its work.
  int run();

 private:
  void open_data();
  void build_network();
  void train_built_in();
  detent::io::LoaderOptions loader_options(bool training) const;
  detent::nn::Accuracy validate(const std::string& stage);
  void fold();
  void quantize();
  void calibrate();
  bool train();
  void save(const detent::io::Progress& progress);
  void resume();
  void finish();
  std::string path(const std::string& suffix) const;

  Options o_;
  detent::nn::Graph net_;
  std::unique_ptr<detent::quant::QuantSim> sim_;
  std::shared_ptr<detent::io::TfRecordDataset> train_set_, valid_set_;
  std::unique_ptr<detent::nn::Sgd> sgd_;
  detent::nn::models::ResNetOptions shape_;
  detent::io::Preprocess preprocess_ = detent::io::Preprocess::keras;
  Report report_;
  detent::io::Progress progress_;
  std::string resume_from_;
  bool wrote_log_ = false, saved_checkpoint_ = false;
};

}  // namespace qat
