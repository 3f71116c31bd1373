#include "detent/nn/optimizer.h"

#include <algorithm>
#include <cmath>

#include "detent/core/backend.h"
#include "detent/core/math/optimizer_math.h"

namespace detent::nn {

void Optimizer::step(std::span<Parameter* const> parameters) {
  DETENT_CHECK(std::isfinite(learning_rate) && learning_rate >= 0.0f, "optimizer: learning rate ", learning_rate, " is not a finite number of at least 0");
  DETENT_CHECK(averaged_share >= 0.0f && averaged_share <= 1.0f, "optimizer: the share of steps that are averaged is ", averaged_share, "; give 0 (none) to 1 (all)");
  std::vector<Parameter*> ready;
  for (Parameter* p : parameters) {
    DETENT_CHECK(p, "optimizer: one of the ", parameters.size(), " parameters is null");
    if (!p->trainable || !p->grad.defined()) continue;
    DETENT_CHECK(p->grad.shape() == p->value.shape(), "optimizer: gradient of \"", p->name, "\" is ", p->grad.shape(), ", the parameter ", p->value.shape());
    DETENT_CHECK(p->grad.device() == p->value.device() && p->value.device() == (ready.empty() ? p : ready[0])->value.device(), "optimizer: \"", p->name, "\" is on ",
                 to_string(p->value.device()), ", its gradient on ", to_string(p->grad.device()), ", other parameters on ",
                 to_string((ready.empty() ? p : ready[0])->value.device()), "; move the whole graph with to()");
    ready.push_back(p);
  }
  ++steps_;
  try {
    update(ready);
  } catch (...) {
    --steps_;  // no memory for the state: the step was not done and may be tried again
    throw;
  }
  for (Parameter* p : ready) p->grad = Tensor();
}

float* Optimizer::state_of(const Parameter& p, const char* kind) {
  Tensor& t = tensors_[text(p.name, "/", kind)];
  if (!t.defined()) t = Tensor::zeros(p.value.shape(), DType::f32, p.value.device());
  if (t.device() != p.value.device()) t = t.to(p.value.device());  // restored from a file
  DETENT_CHECK(t.shape() == p.value.shape(), "optimizer: the state \"", p.name, "/", kind, "\" is ", t.shape(), ", the parameter ", p.value.shape(),
               "; it belongs to another network");
  return t.data<float>();
}

float* Optimizer::average_of(const Parameter& p) {
  if (averaged_share == 0.0f) return nullptr;
  Tensor& t = tensors_[text(p.name, "/average")];
  if (!t.defined()) t = p.value.clone();
  return state_of(p, "average");
}

float Optimizer::newest() const { return averaged_share > 0.0f ? newest_share(static_cast<double>(averaged_share), steps_) : 1.0f; }

void Optimizer::use_averages(std::span<Parameter* const> parameters) const {
  std::vector<std::pair<Parameter*, Tensor>> found;
  for (Parameter* p : parameters) {
    const auto at = tensors_.find(text(p->name, "/average"));
    if (at == tensors_.end()) continue;
    DETENT_CHECK(at->second.shape() == p->value.shape(), "optimizer: the average of \"", p->name, "\" is ", at->second.shape(), ", the parameter ", p->value.shape(),
                 "; it belongs to another network");
    found.emplace_back(p, at->second.to(p->value.device()));
  }
  DETENT_CHECK(!found.empty(), "optimizer: no averages were kept; set averaged_share before the first step");
  for (auto& [p, average] : found) p->value.copy_from(average);
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> all(tensors_.begin(), tensors_.end());
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return all;
}

void Optimizer::restore(std::span<const std::pair<std::string, Tensor>> state, int64_t steps) {
  Tensors copies;
  for (const auto& [name, tensor] : state) copies[name] = tensor.clone();
  adopt(std::move(copies), steps);
}

void Optimizer::adopt(Tensors&& state, int64_t steps) noexcept {
  tensors_.swap(state);
  steps_ = steps;
}

Sgd::Sgd(const Options& o) : momentum_(o.momentum), nesterov_(o.nesterov) {
  learning_rate = o.learning_rate;
  weight_decay = o.weight_decay;
  DETENT_CHECK(o.momentum >= 0.0f && o.momentum < 1.0f, "sgd: momentum ", o.momentum, " is not in [0,1)");
  DETENT_CHECK(o.weight_decay >= 0.0f && std::isfinite(o.weight_decay), "sgd: weight decay ", o.weight_decay, " is not a finite number of at least 0");
}

void Sgd::update(std::span<Parameter* const> parameters) {
  std::vector<SgdTensor> list;
  for (Parameter* p : parameters) {
    list.push_back({.w = p->value.data<float>(),
                    .g = p->grad.data<float>(),
                    .momentum = momentum_ > 0.0f ? state_of(*p, "momentum") : nullptr,
                    .average = average_of(*p),
                    .n = p->value.elements(),
                    .learning_rate = learning_rate * p->learning_rate_scale,
                    .weight_decay = p->weight_decay ? weight_decay : 0.0f});
  }
  if (!list.empty()) {
    backend(parameters[0]->value.device())
        .kernels()
        .sgd_step({.tensors = list.data(), .count = static_cast<int64_t>(list.size()), .momentum = momentum_, .nesterov = nesterov_, .newest = newest()});
  }
}

Adam::Adam(const Options& o) : options_(o) {
  learning_rate = o.learning_rate;
  weight_decay = o.weight_decay;
  DETENT_CHECK(o.beta1 >= 0.0f && o.beta1 < 1.0f && o.beta2 >= 0.0f && o.beta2 < 1.0f, "adam: betas ", o.beta1, ", ", o.beta2, " are not in [0,1)");
  DETENT_CHECK(o.eps > 0.0f && std::isfinite(o.eps), "adam: eps ", o.eps, " is not a finite number above 0");
  DETENT_CHECK(o.weight_decay >= 0.0f && std::isfinite(o.weight_decay), "adam: weight decay ", o.weight_decay, " is not a finite number of at least 0");
}

void Adam::update(std::span<Parameter* const> parameters) {
  std::vector<AdamTensor> list;
  for (Parameter* p : parameters) {
    list.push_back({.w = p->value.data<float>(),
                    .g = p->grad.data<float>(),
                    .m = state_of(*p, "m"),
                    .v = state_of(*p, "v"),
                    .average = average_of(*p),
                    .n = p->value.elements(),
                    .learning_rate = learning_rate * p->learning_rate_scale,
                    .weight_decay = p->weight_decay ? weight_decay : 0.0f});
  }
  if (!list.empty()) {
    backend(parameters[0]->value.device())
        .kernels()
        .adam_step({.tensors = list.data(),
                    .count = static_cast<int64_t>(list.size()),
                    .beta1 = options_.beta1,
                    .beta2 = options_.beta2,
                    .eps = options_.eps,
                    .decoupled = options_.decoupled,
                    .step = steps_,
                    .newest = newest()});
  }
}

void Schedule::check() const {
  DETENT_CHECK(warmup_steps >= 0, "schedule: warmup_steps is ", warmup_steps, "; give 0 or more");
  DETENT_CHECK(kind != Kind::step || decay_every > 0, "schedule: decay_every is ", decay_every, "; kind step needs the steps per division");
  DETENT_CHECK(kind != Kind::cosine || total_steps > warmup_steps, "schedule: total_steps is ", total_steps, ", warmup_steps ", warmup_steps,
               "; kind cosine ends at total_steps, behind the warm-up");
}

float Schedule::at(int64_t step) const {
  check();
  if (step < warmup_steps) return base * static_cast<float>(step + 1) / static_cast<float>(warmup_steps);
  switch (kind) {
    case Kind::constant:
      return base;
    case Kind::step:
      return base * std::pow(decay_factor, static_cast<float>(step / decay_every));
    case Kind::cosine: {
      const double span = static_cast<double>(total_steps - warmup_steps);
      const double t = std::min(1.0, static_cast<double>(step - warmup_steps) / span);
      return static_cast<float>(0.5 * (1.0 + std::cos(3.14159265358979323846 * t)) * static_cast<double>(base));
    }
  }
  return base;
}

}  // namespace detent::nn
