// Numbers that stop being numbers: training stops, says where, and has changed nothing.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "detent/tests/io/support.h"
#include "detent/tests/robust/tiny_run.h"

using namespace detent;
using namespace detent::test;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

struct Training {
  nn::Graph net = tiny_network();
  std::unique_ptr<quant::QuantSim> sim;
  nn::Sgd sgd{{.learning_rate = 0.01f}};
  Tensor images = Tensor({kTinyBatch, kTinySize, kTinySize, 3}, DType::f32);
  Tensor labels = Tensor::from<int64_t>({kTinyBatch}, std::vector<int64_t>{0, 1, 2, 3});

  explicit Training(bool quantized) {
    Rng rng(9);
    for (int64_t i = 0; i < images.elements(); ++i) images.data<float>()[i] = rng.uniform(-1.0f, 1.0f);
    nn::fold_batch_norms(net);
    if (!quantized) return;
    sim = std::make_unique<quant::QuantSim>(net);
    sim->compute_encodings([&] { net(images); });
  }
  std::string step(float learning_rate = 0.01f) {
    nn::Trainer trainer(net, sgd, {.base = learning_rate});
    return error_of([&] { trainer.step(images, labels); });
  }
  Tensor& weight(const std::string& name) {
    for (nn::Parameter* p : net.parameters()) {
      if (p->name == name) return p->value;
    }
    FAIL("no parameter " << name);
    return images;
  }
  std::vector<float> all() {
    std::vector<float> v;
    for (nn::Parameter* p : net.parameters()) {
      for (const float x : p->value.to_vector<float>()) v.push_back(x);
    }
    return v;
  }
};

}  // namespace

TEST_CASE("a loss that is not finite stops training with the first layer's name and unchanged weights") {
  for (const float bad : {kNaN, kInf, -kInf}) {
    Training t(false);
    t.weight("fc.weight").data<float>()[3] = bad;
    const std::vector<float> before = t.all();
    const std::string message = t.step();
    CHECK_CONTAINS(message, "at step 1");
    CHECK_CONTAINS(message, "\"fc\"");
    const std::vector<float> after = t.all();
    for (size_t i = 0; i < before.size(); ++i) CHECK((before[i] == after[i] || std::isnan(before[i])));
  }
  Training t(false);
  t.images.data<float>()[0] = kNaN;
  CHECK_CONTAINS(t.step(), "\"images\"");
}

TEST_CASE("a gradient that is not finite stops training with the parameter's name and unchanged weights") {
  Training t(false);
  // The loss stays finite: the convolution yields its bias, the scores are 18 for class 0 and -18 for the others. The gradient of the convolution's weights is
  // about 1e44 in exact arithmetic, so it overflows whatever the order of its sum: 5e37 from each wrongly classified image, times pixels of 1e6.
  const auto fill = [](Tensor& v, float x) { std::fill_n(v.data<float>(), v.elements(), x); };
  Tensor& fc = t.weight("fc.weight");
  fill(fc, -1e38f);
  std::fill_n(fc.data<float>(), fc.dim(1), 1e38f);
  fill(t.weight("fc.bias"), 0.0f);
  fill(t.weight("conv1.weight"), 0.0f);
  fill(t.weight("conv1.bias"), 3e-38f);
  fill(t.images, 1e6f);
  const std::vector<float> before = t.all();
  const std::string message = t.step();
  CHECK_CONTAINS(message, "the gradient of \"conv1.weight\" is not finite at step 1");
  CHECK(t.all() == before);
}

TEST_CASE("a learned range that is not finite stops training with the quantizer's name") {
  Training t(true);
  REQUIRE(t.step().empty());
  for (nn::Parameter* p : t.net.parameters()) {
    if (p->name == "conv1.weight.max") p->value.data<float>()[0] = kNaN;
  }
  CHECK_CONTAINS(t.step(), "\"conv1.weight\"");
}

TEST_CASE("calibration data that is not finite stops calibration with the value's name") {
  Training t(false);
  quant::QuantSim sim(t.net);
  t.images.data<float>()[0] = kNaN;
  CHECK_CONTAINS(error_of([&] { sim.compute_encodings([&] { t.net(t.images); }); }), "\"images\"");
}

TEST_CASE("a learning rate that is no number is refused before anything changes") {
  Training t(true);
  const std::vector<float> before = t.all();
  for (const float bad : {kNaN, kInf, -1.0f}) CHECK_CONTAINS(t.step(bad), "learning rate");
  CHECK(t.all() == before);
}

TEST_CASE("a state that is not finite is not saved as a checkpoint, and the one before stays") {
  const TempFolder dir;
  const std::string path = dir / "m.step-1.ckpt";
  for (const char* name : {"conv1.weight", "conv1.weight.max"}) {
    Training t(true);
    io::save_checkpoint(path, t.net, t.sim.get(), t.sgd, {.step = 1});
    const std::string before = slurp(path);
    for (nn::Parameter* p : t.net.parameters()) {
      if (p->name == name) p->value.data<float>()[0] = kInf;
    }
    const std::string message = error_of([&] { io::save_checkpoint(path, t.net, t.sim.get(), t.sgd, {.step = 2}); });
    CHECK_CONTAINS(message, std::string(name));
    CHECK_CONTAINS(message, "not finite");
    CHECK(slurp(path) == before);
  }
}
