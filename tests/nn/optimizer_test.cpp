// Optimizers and schedules against loops in double written from the papers, and against PyTorch (tests/golden/make_nn.py).
#include "detent/io/safetensors.h"
#include "detent/nn/train.h"
#include "detent/tests/nn/support.h"
#include "detent/tests/support/test_data.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::test;

namespace {

// One element under an optimizer, as its paper states it.
struct Reference {
  virtual ~Reference() = default;
  virtual double step(double w, double g) = 0;
};

struct SgdReference : Reference {
  double lr, mu, decay, v = 0.0;
  bool nesterov;
  SgdReference(double l, double m, double d, bool n) : lr(l), mu(m), decay(d), nesterov(n) {}
  double step(double w, double g) override {
    g += decay * w;
    v = mu * v + g;  // Sutskever et al. 2013 in PyTorch's and TensorFlow's form: the rate is outside v
    return w - lr * (nesterov ? g + mu * v : v);
  }
};

struct AdamReference : Reference {  // Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2
  double lr, decay, m = 0.0, v = 0.0;
  int t = 0;
  bool decoupled;
  AdamReference(double l, double d, bool dec) : lr(l), decay(d), decoupled(dec) {}
  double step(double w, double g) override {
    const double start = w;
    if (!decoupled) g += decay * w;
    ++t;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const double mhat = m / (1.0 - std::pow(0.9, t)), vhat = v / (1.0 - std::pow(0.999, t));
    w -= lr * mhat / (std::sqrt(vhat) + 1e-8);
    return decoupled ? w - lr * decay * start : w;
  }
};

std::vector<float> formula(const std::string& name, int64_t n) {
  uint64_t h = 1469598103934665603ull;
  for (const char c : name) h = (h ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  std::vector<float> v;
  for (int64_t i = 1; i <= n; ++i) v.push_back(static_cast<float>(Rng::mix(h + static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull) >> 40) * 0x1p-24f - 0.5f);
  return v;
}

struct Case {
  std::string name;
  std::unique_ptr<Optimizer> optimizer;
  std::function<std::unique_ptr<Reference>()> reference;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto sgd = [&](const char* name, float mu, float decay, bool nesterov) {
    all.push_back({name, std::make_unique<Sgd>(Sgd::Options{.learning_rate = 0.1f, .momentum = mu, .nesterov = nesterov, .weight_decay = decay}),
                   [=] { return std::make_unique<SgdReference>(0.1, static_cast<double>(mu), static_cast<double>(decay), nesterov); }});
  };
  const auto adam = [&](const char* name, float decay, bool decoupled) {
    all.push_back({name, std::make_unique<Adam>(Adam::Options{.learning_rate = 0.1f, .weight_decay = decay, .decoupled = decoupled}),
                   [=] { return std::make_unique<AdamReference>(0.1, static_cast<double>(decay), decoupled); }});
  };
  sgd("sgd", 0.0f, 0.0f, false);
  sgd("momentum", 0.9f, 0.0f, false);
  sgd("momentum_decay", 0.9f, 0.01f, false);
  sgd("nesterov", 0.9f, 0.01f, true);
  adam("adam", 0.0f, false);
  adam("adam_decay", 0.01f, false);
  adam("adamw", 0.01f, true);
  return all;
}

}  // namespace

TEST_CASE("optimizers_match_papers_and_pytorch") {
  const io::SafeTensors file = io::load_safetensors(golden("nn.safetensors"));
  for (Case& c : cases()) {
    INFO(c.name);
    const std::vector<float> start = formula("start", 9);
    Parameter p;
    p.name = "w";
    p.value = Tensor::from<float>(Shape{9}, start);
    std::vector<double> w(start.begin(), start.end());
    std::vector<std::unique_ptr<Reference>> references;
    for (size_t i = 0; i < 9; ++i) references.push_back(c.reference());
    for (int step = 0; step < 12; ++step) {
      const std::vector<float> g = formula(text("gradient", step), 9);
      p.grad = Tensor::from<float>(Shape{9}, g);
      c.optimizer->step(std::vector<Parameter*>{&p});
      CHECK_FALSE(p.grad.defined());
      for (size_t i = 0; i < 9; ++i) w[i] = references[i]->step(w[i], static_cast<double>(g[i]));
    }
    CHECK(c.optimizer->steps_done() == 12);
    const std::vector<float> torch = file.find("optimizer." + c.name)->to_vector<float>(), got = p.value.to_vector<float>();
    for (size_t i = 0; i < 9; ++i) {
      // 12 steps of a few roundings each, at values of at most 4.
      CHECK(std::abs(static_cast<double>(got[i]) - w[i]) < 12 * 4 * 4 * 6e-8);
      CHECK(std::abs(w[i] - static_cast<double>(torch[i])) < 1e-6);
    }
  }
}

TEST_CASE("optimizer_leaves_what_it_should") {
  Sgd sgd({.learning_rate = 0.5f, .momentum = 0.0f, .weight_decay = 0.1f});
  Parameter frozen, idle, plain, slow;
  int i = 0;
  for (Parameter* p : {&frozen, &idle, &plain, &slow}) {
    p->name = text("p", i++);
    p->value = Tensor::full(Shape{3}, 1.0f);
    p->grad = Tensor::full(Shape{3}, 1.0f);
  }
  frozen.trainable = false;
  idle.grad = Tensor();
  plain.weight_decay = false;
  slow.learning_rate_scale = 0.1f;
  sgd.step(std::vector<Parameter*>{&frozen, &idle, &plain, &slow});
  CHECK(frozen.value.data<float>()[0] == 1.0f);
  CHECK(idle.value.data<float>()[0] == 1.0f);
  CHECK(plain.value.data<float>()[0] == 0.5f);
  CHECK(slow.value.data<float>()[0] == doctest::Approx(1.0 - 0.05 * 1.1));
}

TEST_CASE("optimizer_errors") {
  CHECK_MENTIONS(message_of([] { Sgd s({.momentum = 1.0f}); }), "momentum");
  CHECK_MENTIONS(message_of([] { Sgd s({.weight_decay = NAN}); }), "weight decay");
  CHECK_MENTIONS(message_of([] { Adam s({.beta1 = 1.0f}); }), "beta");
  CHECK_MENTIONS(message_of([] { Adam s({.weight_decay = NAN}); }), "weight decay");
  CHECK_MENTIONS(message_of([] { Adam s({.eps = -1.0f}); }), "eps");
  Sgd sgd({.learning_rate = 0.1f});
  Parameter p;
  p.name = "layer.weight";
  p.value = Tensor::full(Shape{2}, 1.0f);
  p.grad = Tensor::full(Shape{3}, 1.0f);
  CHECK_MENTIONS(message_of([&] { sgd.step(std::vector<Parameter*>{&p}); }), "layer.weight");
  for (const float lr : {NAN, INFINITY, -1.0f}) {
    sgd.learning_rate = lr;
    p.grad = Tensor::full(Shape{2}, 1.0f);
    CHECK_MENTIONS(message_of([&] { sgd.step(std::vector<Parameter*>{&p}); }), "learning rate");
  }
  CHECK(p.value.data<float>()[0] == 1.0f);
  // A state of another size is refused, not read beyond its end.
  sgd.learning_rate = 0.1f;
  const std::vector<std::pair<std::string, Tensor>> state{{"layer.weight/momentum", Tensor::zeros(Shape{1})}};
  sgd.restore(state, 3);
  CHECK_MENTIONS(message_of([&] { sgd.step(std::vector<Parameter*>{&p}); }), "layer.weight/momentum");
}

TEST_CASE("optimizer_state_continues_to_the_same_bits") {
  for (Case& c : cases()) {
    INFO(c.name);
    const auto run = [&](Optimizer& o, Parameter& p, int from, int to) {
      for (int s = from; s < to; ++s) {
        p.grad = random_tensor({33}, static_cast<uint64_t>(s));
        o.step(std::vector<Parameter*>{&p});
      }
    };
    Parameter p;
    p.name = "w";
    p.value = random_tensor({33}, 100);
    run(*c.optimizer, p, 0, 5);
    Parameter q;
    q.name = "w";
    q.value = p.value.clone();
    std::vector<std::pair<std::string, Tensor>> state;
    for (const auto& [name, t] : c.optimizer->state()) state.emplace_back(name, t.clone());
    const int64_t steps = c.optimizer->steps_done();
    run(*c.optimizer, p, 5, 9);
    for (Case& again : cases()) {
      if (again.name != c.name) continue;
      again.optimizer->restore(state, steps);
      run(*again.optimizer, q, 5, 9);
    }
    CHECK(same_bits(p.value, q.value));
  }
}

TEST_CASE("averages_of_the_last_steps") {
  // The weight of step t in the average after n steps is share(t) * product over s > t of (1 - share(s)), share(t) = (eta + 1) / (t + eta): about (t / n)^eta.
  for (const float span : {1.0f, 0.25f, 0.1f}) {
    for (const bool adam : {false, true}) {
      CAPTURE(span);
      CAPTURE(adam);
      std::unique_ptr<Optimizer> o;
      if (adam) {
        o = std::make_unique<Adam>(Adam::Options{.learning_rate = 0.05f});
      } else {
        o = std::make_unique<Sgd>(Sgd::Options{.learning_rate = 0.05f});
      }
      o->averaged_share = span;
      Parameter p, still;
      p.name = "w";
      p.value = random_tensor({5}, 1);
      still.name = "still";
      still.value = random_tensor({5}, 2);
      const Tensor untouched = still.value.clone();
      constexpr int kSteps = 40;
      std::vector<std::vector<float>> seen;
      for (int s = 0; s < kSteps; ++s) {
        p.grad = random_tensor({5}, static_cast<uint64_t>(10 + s));
        o->step(std::vector<Parameter*>{&p, &still});
        seen.push_back(p.value.to_vector<float>());
      }
      const double eta = 1.0 / static_cast<double>(span) - 1.0;
      std::vector<double> want(5, 0.0);
      double weight_of_last = 0.0, weights = 0.0;
      for (int t = 1; t <= kSteps; ++t) {
        double weight = std::min(1.0, (eta + 1.0) / (t + eta));
        for (int s = t + 1; s <= kSteps; ++s) weight *= 1.0 - std::min(1.0, (eta + 1.0) / (s + eta));
        weights += weight;
        if (t > kSteps * (1.0 - 2.0 * static_cast<double>(span))) weight_of_last += weight;
        for (size_t i = 0; i < 5; ++i) want[i] += weight * static_cast<double>(seen[static_cast<size_t>(t - 1)][i]);
      }
      CHECK(weights == doctest::Approx(1.0));
      CHECK(weight_of_last > 0.8);  // twice the span holds most of it
      o->use_averages(std::vector<Parameter*>{&p, &still});
      for (size_t i = 0; i < 5; ++i) CHECK(std::abs(static_cast<double>(p.value.data<float>()[i]) - want[i]) < 2e-6);
      CHECK(same_bits(still.value, untouched));
      if (span == 1.0f) {
        double mean = 0.0;
        for (const auto& v : seen) mean += static_cast<double>(v[0]) / kSteps;
        CHECK(static_cast<double>(p.value.data<float>()[0]) == doctest::Approx(mean));
      }
    }
  }
}

TEST_CASE("averages_go_on_after_a_restore_and_refuse_what_does_not_fit") {
  const auto run = [](Sgd& o, Parameter& p, int from, int to) {
    for (int s = from; s < to; ++s) {
      p.grad = random_tensor({9}, static_cast<uint64_t>(s));
      o.step(std::vector<Parameter*>{&p});
    }
  };
  Parameter p, q;
  p.name = q.name = "w";
  p.value = random_tensor({9}, 50);
  Sgd one({.learning_rate = 0.1f}), two({.learning_rate = 0.1f});
  one.averaged_share = two.averaged_share = 0.1f;
  CHECK_MENTIONS(message_of([&] { one.use_averages(std::vector<Parameter*>{&p}); }), "no averages");
  run(one, p, 0, 7);
  q.value = p.value.clone();
  two.restore(one.state(), one.steps_done());
  run(one, p, 7, 20);
  run(two, q, 7, 20);
  CHECK_FALSE(same_bits(p.value, [&] {
    Parameter last;
    last.name = "w";
    last.value = p.value.clone();
    one.use_averages(std::vector<Parameter*>{&last});
    return last.value;
  }()));
  one.use_averages(std::vector<Parameter*>{&p});
  two.use_averages(std::vector<Parameter*>{&q});
  CHECK(same_bits(p.value, q.value));
  Parameter other;
  other.name = "w";
  other.value = Tensor::zeros({4});
  CHECK_MENTIONS(message_of([&] { one.use_averages(std::vector<Parameter*>{&other}); }), "another network");
  one.averaged_share = 1.5f;
  p.grad = random_tensor({9}, 3);
  CHECK_MENTIONS(message_of([&] { one.step(std::vector<Parameter*>{&p}); }), "1.5");
}

TEST_CASE("schedules") {
  const Schedule constant{.base = 0.3f};
  CHECK(constant.at(0) == 0.3f);
  CHECK(constant.at(1'000'000) == 0.3f);
  const Schedule warm{.base = 0.4f, .warmup_steps = 4};
  for (int i = 0; i < 4; ++i) CHECK(warm.at(i) == doctest::Approx(0.1 * (i + 1)));
  CHECK(warm.at(4) == 0.4f);
  const Schedule stairs{.kind = Schedule::Kind::step, .base = 1.0f, .decay_every = 10};
  CHECK(stairs.at(9) == 1.0f);
  CHECK(stairs.at(10) == doctest::Approx(0.1));
  CHECK(stairs.at(29) == doctest::Approx(0.01));
  const Schedule cosine{.kind = Schedule::Kind::cosine, .base = 2.0f, .warmup_steps = 10, .total_steps = 110};
  CHECK(cosine.at(10) == doctest::Approx(2.0));
  CHECK(cosine.at(60) == doctest::Approx(1.0));
  CHECK(cosine.at(35) == doctest::Approx(1.0 + std::sqrt(0.5)));
  CHECK(cosine.at(110) == doctest::Approx(0.0));
  CHECK(cosine.at(500) == doctest::Approx(0.0));
  for (const Schedule& good : {constant, warm, stairs, cosine}) CHECK(message_of([&] { good.check(); }).empty());
  CHECK_MENTIONS(message_of([] { Schedule{.kind = Schedule::Kind::step}.check(); }), "decay_every is 0");
  CHECK_MENTIONS(message_of([] { Schedule{.kind = Schedule::Kind::cosine}.check(); }), "total_steps is 0");
  CHECK_MENTIONS(message_of([] { Schedule{.kind = Schedule::Kind::cosine, .warmup_steps = 10, .total_steps = 10}.check(); }), "behind the warm-up");
  CHECK_MENTIONS(message_of([] { Schedule{.warmup_steps = -1}.check(); }), "warmup_steps is -1");
  Graph g = small_network();
  Sgd sgd({.learning_rate = 0.1f});
  CHECK_MENTIONS(message_of([&] { Trainer(g, sgd, {.kind = Schedule::Kind::cosine, .base = 0.1f}); }), "total_steps");
}
