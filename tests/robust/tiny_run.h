// A whole run made small: a convolutional network of 300 parameters, images of 8x8, quantizers, three training steps with a checkpoint each, export.
// Everything in it is a function of the seed, so that two runs leave the same bytes. Not thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "detent/core/file.h"
#include "detent/core/parallel.h"
#include "detent/io/checkpoint.h"
#include "detent/io/data/loader.h"
#include "detent/io/data/example.h"
#include "detent/io/data/synthetic.h"
#include "detent/io/export.h"
#include "detent/nn/graph.h"
#include "detent/nn/layers.h"
#include "detent/nn/optimizer.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/quant/quantsim.h"

namespace detent::test {

constexpr int64_t kTinySize = 8, kTinyBatch = 4, kTinySteps = 3;

inline nn::Graph tiny_network(uint64_t seed = 5) {
  nn::Graph g;
  nn::Value x = g.input("images", {kTinySize, kTinySize, 3});
  x = g.add<nn::Conv2d>("conv1", {x}, nn::Conv2d::Options{.in = 3, .out = 6, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}}});
  x = g.add<nn::BatchNorm>("bn1", {x}, nn::BatchNorm::Options{.channels = 6});
  x = g.add<nn::Activation>("relu1", {x}, nn::relu_op());
  x = g.add<nn::GlobalAveragePool>("pool", {x});
  x = g.add<nn::Flatten>("flatten", {x});
  x = g.add<nn::Dense>("fc", {x}, nn::Dense::Options{.in = 6, .out = io::kSyntheticClasses});
  g.output(x);
  nn::initialize(g, {.seed = seed});
  return g;
}

/// Twelve training images and four others, in two files and one.
inline void write_tiny_data(const std::string& folder) {
  io::write_synthetic(folder, {.train_images = 12, .valid_images = 4, .train_files = 2, .image_size = kTinySize});
}

class TinyRun {
 public:
  /// threads: that decode; 0 keeps every file access on this thread and in one order.
  TinyRun(const std::string& data, std::string output, int threads = 0)
      : output_(std::move(output)),
        net_(tiny_network()),
        sgd_({.learning_rate = 0.05f}),
        train_(std::make_shared<io::TfRecordDataset>(data, "train")),
        valid_(std::make_shared<io::TfRecordDataset>(data, "valid")),
        options_{.batch = kTinyBatch, .shuffle = true, .augment = true, .preprocess = io::Preprocess::cifar, .image_size = kTinySize, .classes = io::kSyntheticClasses, .threads = threads} {
    nn::fold_batch_norms(net_);
    sim_ = std::make_unique<quant::QuantSim>(net_);
  }

  /// Calibrates, or goes on behind the newest good checkpoint; trains to the last step with a checkpoint after each; validates; exports.
  nn::Accuracy run() {
    make_folders(output_);
    io::Progress at;
    const std::string newest = io::newest_good_checkpoint(output_, "m");
    if (newest.empty()) {
      io::Loader loader(train_, options_);
      sim_->compute_encodings([&] {
        for (const io::Batch& b : loader) net_(b.images);
      });
    } else {
      at = io::load_checkpoint(newest, net_, sim_.get(), sgd_);
    }
    train(at);
    io::Loader loader(valid_, {.batch = 4, .preprocess = io::Preprocess::cifar, .image_size = kTinySize, .classes = io::kSyntheticClasses, .threads = 0});
    const nn::Accuracy a = nn::evaluate(net_, loader);
    io::export_quantized(*sim_, {.folder = output_, .prefix = "m"});
    return a;
  }

  nn::Graph& net() { return net_; }
  quant::QuantSim& sim() { return *sim_; }
  nn::Sgd& sgd() { return sgd_; }

 private:
  void train(io::Progress at) {
    io::Loader loader(train_, options_);
    nn::Trainer trainer(net_, sgd_, {.base = 0.05f});
    trainer.set_steps_done(at.step);
    loader.seek(at.epoch, at.batch);
    OutputFile log(join_path(output_, "m.log"), FileSystem::Open::append);
    log.truncate(log_bytes(at.step));
    io::Batch batch;
    while (at.step < kTinySteps && loader.next(batch)) {
      const nn::StepInfo info = trainer.step(batch.images, batch.labels);
      at.step = info.step;
      at.batch = batch.index + 1;
      log.write(text(info.step, " ", info.loss, "\n"));
      log.sync();
      io::save_checkpoint(join_path(output_, io::checkpoint_name("m", at.step)), net_, sim_.get(), sgd_, at);
      io::prune_checkpoints(output_, "m", 2, at.step);
    }
    log.close();
  }

  // Line k of the log is step k; what was logged after the checkpoint is dropped.
  int64_t log_bytes(int64_t steps) const {
    const std::string path = join_path(output_, "m.log");
    if (!file_exists(path)) return 0;
    const std::string all = read_file(path);
    size_t at = 0;
    for (; steps > 0 && at < all.size(); --steps) at = std::min(all.find('\n', at), all.size() - 1) + 1;
    return static_cast<int64_t>(at);
  }

  std::string output_;
  nn::Graph net_;
  nn::Sgd sgd_;
  std::shared_ptr<io::TfRecordDataset> train_, valid_;
  io::LoaderOptions options_;
  std::unique_ptr<quant::QuantSim> sim_;
};

}  // namespace detent::test
