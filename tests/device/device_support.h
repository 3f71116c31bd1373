// Helpers of the device tests: the device, or a word that there is none; networks on it, trained for a few steps.
#pragma once

#include <cstdlib>

#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/tests/nn/support.h"

namespace detent::test {

using namespace nn;


constexpr Device kGpu{DeviceType::cuda, 0};

inline bool available() {
  std::string why;
  if (device_available(kGpu, &why)) {
    backend(kGpu).set_precision(Precision::f32);  // comparable with the CPU
    return true;
  }
  CHECK_MESSAGE(!std::getenv("DETENT_CUDA_MODULE"), why);  // the module that was named must work
  MESSAGE("SKIPPED: no GPU: " << why);
  return false;
}

#define NEEDS_DEVICE() \
  if (!available()) return

inline Graph network(bool fold, uint64_t seed = 1) {
  Graph g = small_network();
  randomize(g, seed);
  if (fold) fold_batch_norms(g);
  return g;
}

inline Tensor images(uint64_t seed = 5) { return random_tensor({6, 8, 8, 3}, seed); }
inline Tensor labels() { return class_labels(6, 4); }

struct Training {
  std::vector<float> losses;
  std::vector<Tensor> parameters;  // on the host
  int64_t replays = 0;
  std::string refusal;
};

// A few steps, the batches in turn.
inline Training train(Graph& g, bool record, Optimizer& optimizer, int64_t steps = 6, const Distillation& distillation = {}) {
  Trainer trainer(g, optimizer, {.base = 0.05f});
  trainer.distillation = distillation;
  trainer.record = record;
  Training t;
  for (int64_t i = 0; i < steps; ++i) t.losses.push_back(trainer.step(images(static_cast<uint64_t>(20 + i % 3)), labels()).loss);
  for (const Parameter* p : g.parameters()) t.parameters.push_back(p->value.to(Device{}));
  for (const auto& [name, tensor] : g.state()) t.parameters.push_back(tensor->to(Device{}).clone());
  t.replays = trainer.recorded().replays();
  t.refusal = trainer.recorded().refusal();
  return t;
}

inline Training train_float(Device device, bool record, bool adam = false) {
  Graph g = network(false);
  // A bias before a batch norm has no gradient but rounding, which Adam makes as large as any.
  static_cast<Conv2d&>(*g.find("conv2")->module).bias.trainable = false;
  g.to(device);
  if (adam) {
    Adam optimizer({.learning_rate = 0.01f, .weight_decay = 0.01f, .decoupled = true});
    return train(g, record, optimizer);
  }
  Sgd optimizer({.learning_rate = 0.05f, .momentum = 0.9f, .nesterov = true, .weight_decay = 1e-3f});
  return train(g, record, optimizer);
}

inline void check_close(const Training& got, const Training& want, double tolerance) {
  REQUIRE(got.losses.size() == want.losses.size());
  for (size_t i = 0; i < got.losses.size(); ++i) CHECK(std::abs(static_cast<double>(got.losses[i] - want.losses[i])) <= tolerance);
  REQUIRE(got.parameters.size() == want.parameters.size());
  for (size_t i = 0; i < got.parameters.size(); ++i) {
    CAPTURE(i);
    CHECK(relative_difference(got.parameters[i], want.parameters[i]) <= tolerance);
  }
}

inline void check_same(const Training& a, const Training& b) {
  CHECK(a.losses == b.losses);
  REQUIRE(a.parameters.size() == b.parameters.size());
  for (size_t i = 0; i < a.parameters.size(); ++i) CHECK(same_bits(a.parameters[i], b.parameters[i]));
}

}  // namespace detent::test
