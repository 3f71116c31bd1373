// The flow of the program: float accuracy, folding, calibration, quantized accuracy, range-learning training, accuracy, export.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "detent/core/file.h"
#include "detent/io/checkpoint.h"
#include "detent/io/data/loader.h"
#include "detent/nn/graph.h"
#include "detent/nn/models/models.h"
#include "detent/nn/optimizer.h"
#include "detent/nn/train.h"
#include "detent/quant/quantsim.h"
#include "given.h"
#include "options.h"
#include "report.h"

namespace qat {

/// Set by SIGINT, SIGTERM and SIGHUP: the step in progress is finished and saved.
extern std::atomic<bool> stop_requested;

/// Thrown where there is no training step to finish.
struct Stopped {};
void stop_if_asked();

/// The process was asked to stop and did so in order; what was trained is in a checkpoint.
inline constexpr int kExitStopped = 3;

class TrainingLog;

class Flow {
 public:
  explicit Flow(Options options);
  ~Flow();
  /// Returns the process's exit code: 0 or kExitStopped.
  int run();

 private:
  int run_stages();
  void open_data();
  void build_network();
  void import_network();
  void load_float_weights(detent::nn::Graph& net);
  void train_built_in(detent::nn::Graph& net);
  void make_teacher();
  detent::io::LoaderOptions loader_options(bool training) const;
  detent::io::LoaderOptions calibration_options(int64_t images) const;
  detent::nn::Accuracy validate(const std::string& stage);
  void fold();
  detent::quant::QuantSimOptions sim_options() const;
  void quantize();
  void calibrate();
  void require_records(int64_t seen, const detent::io::Loader& loader) const;
  void load_ranges();
  void warn_when_training_lost() const;
  std::vector<detent::Tensor> calibration_images(int64_t images);
  int64_t layers() const;
  void learn_rounding();
  void correct_biases();
  void measure_sensitivity();
  void warn_of_strangers(const detent::quant::EncodingMap& map) const;
  void fold_to_scale();
  void check_integers();
  void require_writable_widths(const detent::quant::QuantSim& sim) const;
  void require_integers(detent::nn::Graph& net) const;
  void rehearse() const;
  template <class Fn>
  void on_integers(Fn&& fn);
  void evaluate_integers();
  detent::nn::Schedule schedule(int64_t steps_of_epoch) const;
  int64_t total_steps() const;
  bool train();
  bool next_batch(detent::io::Loader& loader, detent::io::Batch& batch, TrainingLog& log);
  template <class Fn>
  auto naming_last_checkpoint(Fn&& fn);
  std::string options_key() const;
  enum class Prune : uint8_t { no, yes };
  std::string checkpoint_path() const;  ///< of the present step
  void save(Prune prune);
  void save_trained();
  void save_failing(const detent::Error& why);
  void say_stopped() const;
  void remove_left_overs() const;
  std::string obstacle(const detent::io::Progress& then, const nlohmann::json& now) const;
  std::string checkpoint_to_resume(const nlohmann::json& now) const;
  void resume();
  void dump_layers();
  void dump_layers_into(const std::string& folder);
  void finish();
  std::string path(const std::string& suffix) const;

  Options o_;
  std::optional<RunLock> lock_;
  detent::Device device_;
  detent::quant::QuantConfig config_;
  detent::nn::Graph net_;
  detent::nn::Graph teacher_;                ///< the float network, with --distill
  detent::quant::EncodingMap encodings_;     ///< grids that the ONNX file of --arch carries
  detent::quant::EncodingMap given_ranges_;  ///< those of --encodings
  std::unique_ptr<detent::quant::QuantSim> sim_;
  std::shared_ptr<detent::io::TfRecordDataset> train_set_, valid_set_;
  std::unique_ptr<detent::nn::Sgd> sgd_;
  detent::nn::models::ResNetOptions shape_;
  detent::io::Preprocess preprocess_ = detent::io::Preprocess::keras;
  Report report_;
  detent::io::Progress progress_;
  std::string resume_from_, last_checkpoint_;
  int64_t checkpoint_step_ = -1;    ///< that last_checkpoint_ holds
  std::string log_failure_;         ///< why the log lacks its end, or ""
  bool trained_ = false;            ///< what follows changes the network: it can no longer be saved
  std::string trained_checkpoint_;  ///< written at the end of training, removed when the results are there
};

// What fails behind a checkpoint (NaN, no memory, a full disk) names it: it is still good.
template <class Fn>
auto Flow::naming_last_checkpoint(Fn&& fn) {
  try {
    return fn();
  } catch (const detent::Error& e) {
    if (last_checkpoint_.empty()) throw;
    detent::fail(e.what(), "; the last good checkpoint is ", last_checkpoint_);
  }
}

/// A line for each step of training, for those who watch it too. What it holds behind `steps` is dropped first: a resumed log equals an uninterrupted one. A run that fails takes
/// its log along unless it was continued, or there is a checkpoint to go on from. A line that cannot be written ends the log, with a warning, not the training.
class TrainingLog {
 public:
  TrainingLog(std::string path, int64_t steps);
  ~TrainingLog();
  TrainingLog(const TrainingLog&) = delete;
  TrainingLog& operator=(const TrainingLog&) = delete;
  void add(const detent::nn::StepInfo& step);
  void sync();
  void keep() { kept_ = true; }
  /// All of it is on the disk, and stays.
  void close();
  /// Why its end is missing, or "".
  const std::string& failure() const { return failure_; }

 private:
  template <class Fn>
  void guarded(Fn&& fn);
  std::string path_, failure_;
  bool kept_;
  std::unique_ptr<detent::OutputFile> file_;  ///< null behind a failure
  std::chrono::steady_clock::time_point flushed_ = std::chrono::steady_clock::now();
};

}  // namespace qat
