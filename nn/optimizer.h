// Optimizers over parameters, and learning-rate schedules. One kernel call updates all parameters. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "detent/nn/module.h"

namespace detent::nn {

/// Common to all: parameters without a gradient are left alone; gradients are consumed (undefined afterwards).
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// Throws Error when the learning rate is not finite or negative.
  void step(std::span<Parameter* const> parameters);
  void step(const std::vector<Parameter*>& parameters) { step(std::span<Parameter* const>(parameters)); }

  float learning_rate = 1e-3f;
  float weight_decay = 0.0f;
  /// Above 0: beside each parameter its average over about this share of the steps so far, the last ones, is kept ("conv1.weight/average", of the parameter's size):
  /// polynomial-decay averaging (Shamir & Zhang 2013). It takes the noise of single steps out of the result, as a learning rate that falls to zero would; at most 1.
  float averaged_share = 0.0f;
  int64_t steps_done() const { return steps_; }
  /// The parameters become their averages, to be judged and kept; training does not go on from there. Those that were never updated stay. Throws Error when there are none.
  void use_averages(std::span<Parameter* const> parameters) const;

  /// The optimizer's tensors by name ("conv1.weight/momentum"), for checkpoints. They share its memory: clone() what is to outlive the next step.
  std::vector<std::pair<std::string, Tensor>> state() const;
  void restore(std::span<const std::pair<std::string, Tensor>> state, int64_t steps);
  using Tensors = std::unordered_map<std::string, Tensor>;
  /// The same of tensors that are given away: nothing is copied, and nothing can fail.
  void adopt(Tensors&& state, int64_t steps) noexcept;
  /// Whose state it is, for checkpoints: another kind's would be taken for its own. Empty: not looked at.
  virtual std::string kind() const { return {}; }

 protected:
  virtual void update(std::span<Parameter* const> parameters) = 0;
  /// The state tensor of a parameter, zero at first.
  float* state_of(const Parameter& p, const char* kind);
  /// The running average of a parameter, its value at first; null: none is kept.
  float* average_of(const Parameter& p);
  float newest() const;
  int64_t steps_ = 0;

 private:
  Tensors tensors_;
};

/// v = momentum*v + g + decay*w; w -= lr*v (Nesterov: lr*(g + decay*w + momentum*v)). As PyTorch's SGD and TensorFlow's MomentumOptimizer.
class Sgd final : public Optimizer {
 public:
  struct Options {
    float learning_rate = 1e-3f;
    float momentum = 0.9f;
    bool nesterov = false;
    float weight_decay = 0.0f;
  };
  explicit Sgd(const Options& options);
  std::string kind() const override { return momentum_ > 0.0f ? "sgd with momentum" : "sgd"; }

 private:
  void update(std::span<Parameter* const> parameters) override;
  float momentum_;
  bool nesterov_;
};

/// Kingma & Ba 2015; decoupled weight decay is AdamW (Loshchilov & Hutter 2019).
class Adam final : public Optimizer {
 public:
  struct Options {
    float learning_rate = 1e-3f;
    float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;
    float weight_decay = 0.0f;
    bool decoupled = false;
  };
  explicit Adam(const Options& options);
  std::string kind() const override { return "adam"; }

 private:
  void update(std::span<Parameter* const> parameters) override;
  Options options_;
};

/// Learning rate by step: linear warm-up over `warmup_steps`, then constant, staircase division by 10, or half a cosine to zero at total_steps.
struct Schedule {
  enum class Kind : uint8_t { constant, step, cosine };
  Kind kind = Kind::constant;
  float base = 1e-3f;
  int64_t warmup_steps = 0;
  int64_t decay_every = 0;    ///< step: steps per division
  float decay_factor = 0.1f;  ///< step
  int64_t total_steps = 0;    ///< cosine: more than warmup_steps
  /// The learning rate of this step, counted from 0. Throws as check().
  float at(int64_t step) const;
  /// Throws Error when a field that the kind needs was left out.
  void check() const;
};

}  // namespace detent::nn
