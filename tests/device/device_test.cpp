// What happens above the kernels when tensors live on a device: transfers, errors, training, quantization, recording, loading. Runs on a GPU when there is one,
// and on host_module.cpp, where a host access to device memory faults and a kernel that is given host memory breaks the device.
#include "detent/core/recorded_step.h"
#include "detent/io/data/dataset.h"
#include "detent/io/data/loader.h"
#include "detent/quant/quantsim.h"
#include "device_support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

namespace {

// conv - relu - max pool - depthwise conv - relu6 - concat with what it read - 1x1 conv - average pool - dense: values that move, narrow groups, a clamp with two ends.
Graph mixed_network() {
  Graph g;
  Value x = g.input("input", {8, 8, 3});
  x = g.add<Conv2d>("conv1", {x}, Conv2d::Options{.in = 3, .out = 8, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}}, .bias = true});
  x = g.add<MaxPool>("pool1", {g.add<Activation>("relu1", {x}, relu_op())}, PoolSpec{.kernel = {2, 2}, .stride = {2, 2}});
  Value y = g.add<Conv2d>("conv2", {x}, Conv2d::Options{.in = 8, .out = 8, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}, .groups = 8}, .bias = true});
  y = g.add<Concat>("concat", {x, g.add<Activation>("relu6", {y}, clip_op(0.0f, 6.0f))}, 3);
  y = g.add<Conv2d>("conv3", {y}, Conv2d::Options{.in = 16, .out = 8, .kernel_h = 1, .kernel_w = 1, .bias = false});
  y = g.add<Activation>("relu2", {g.add<Binary>("add", {y, x}, BinaryOp::add)}, clip_op(0.0f, 6.0f));
  y = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("pool2", {y})});
  g.output(g.add<Dense>("fc", {y}, Dense::Options{.in = 8, .out = 4}));
  initialize(g, {.seed = 2});
  return g;
}

Graph quantizable(const std::string& name) {
  if (name == "mixed") return mixed_network();
  Graph g = name == "small" ? small_network() : models::resnet20_cifar10({.classes = 4, .image_size = 8});
  randomize(g, 1);
  fold_batch_norms(g);
  return g;
}

}  // namespace

TEST_CASE("tensors go to a device and back unchanged, at any size and offset") {
  NEEDS_DEVICE();
  for (const int64_t n : {int64_t{1}, int64_t{7}, int64_t{1024}, int64_t{1025}, int64_t{70001}}) {
    const Tensor x = random_tensor({n}, 3);
    const Tensor there = x.to(kGpu);
    CHECK(there.device() == kGpu);
    CHECK(same_bits(there.to(Device{}), x));
    CHECK(same_bits(there.clone(), x));
    Tensor filled = Tensor::full({n}, 2.5f, kGpu);
    CHECK(filled.to_vector<float>() == std::vector<float>(static_cast<size_t>(n), 2.5f));
    filled.rows(n / 2, n).copy_from(x.rows(n / 2, n));
    const std::vector<float> mixed = filled.to_vector<float>();
    CHECK(mixed[0] == (n / 2 > 0 ? 2.5f : x.to_vector<float>()[0]));
    CHECK(mixed.back() == x.to_vector<float>().back());
    const Tensor bytes = Tensor::zeros({n}, DType::u8, kGpu);
    CHECK(bytes.to_vector<uint8_t>() == std::vector<uint8_t>(static_cast<size_t>(n), 0));
  }
}

TEST_CASE("to_device passes the gradient back") {
  NEEDS_DEVICE();
  Tape tape;
  const Var x = tape.watch(random_tensor({5}, 1));
  tape.backward(sum(mul(to_device(x, kGpu), to_device(x, kGpu))));
  CHECK(tape.grad(x).device() == Device{});
  const std::vector<float> v = x.dense().to_vector<float>(), dx = tape.grad(x).to_vector<float>();
  for (size_t i = 0; i < v.size(); ++i) CHECK(dx[i] == 2.0f * v[i]);
}

TEST_CASE("tensors of two devices in one op are an error that names the op and both") {
  NEEDS_DEVICE();
  const Var a(random_tensor({2, 3}, 1)), b(random_tensor({2, 3}, 2).to(kGpu));
  const std::string message = message_of([&] { add(a, b); });
  CHECK_MENTIONS(message, "add");
  CHECK_MENTIONS(message, "cpu");
  CHECK_MENTIONS(message, "cuda:0");
  CHECK_MENTIONS(message_of([&] { dense(b, a); }), "cuda:0");
  CHECK_MENTIONS(message_of([&] { fake_quant_learned(b, Var(Tensor::full({1}, -1.0f)), Var(Tensor::full({1}, 1.0f)), std::vector<Grid>{{0.1f, 8, 0, 255}}, {1, 1, 6}, {}); }), "fake_quant_learned");
  CHECK_MENTIONS(message_of([&] { mean_squared_error(b, a.dense()); }), "mean_squared_error");
  if (device_available({DeviceType::cuda, 1})) CHECK_MENTIONS(message_of([&] { mul(b, Var(a.dense().to({DeviceType::cuda, 1}))); }), "cuda:1");
  Graph g = network(false);
  g.to(kGpu);
  g.parameters()[0]->value = g.parameters()[0]->value.to(Device{});
  CHECK_MENTIONS(message_of([&] { g.forward({}, std::vector<Var>{Var(images().to(kGpu))}); }), "conv2d");
}

TEST_CASE("more memory than a device has is an error, and a smaller batch then works") {
  NEEDS_DEVICE();
  const std::string message = message_of([] { Tensor t({int64_t{1} << 44}, DType::u8, kGpu); });
  CHECK_MENTIONS(message, "cuda:0");
  CHECK_MENTIONS(message, "17592186044416 bytes asked");
  CHECK_MENTIONS(message, "bytes are free");
  CHECK(Tensor::full({1000}, 1.0f, kGpu).to_vector<float>()[999] == 1.0f);
}

TEST_CASE("a second training step on a device allocates nothing") {
  NEEDS_DEVICE();
  Graph g = network(false);
  g.to(kGpu);
  Sgd sgd({.learning_rate = 0.01f});
  Trainer trainer(g, sgd, {.base = 0.01f});
  for (int i = 0; i < 2; ++i) trainer.step(images(), labels());
  const int64_t before = backend(kGpu).allocator().stats().raw_allocations;
  trainer.step(images(), labels());
  CHECK(backend(kGpu).allocator().stats().raw_allocations == before);
}

TEST_CASE("training on a device follows the cpu and repeats to the bit") {
  NEEDS_DEVICE();
  for (const bool adam : {false, true}) {
    CAPTURE(adam);
    const Training cpu = train_float(Device{}, false, adam), once = train_float(kGpu, false, adam), twice = train_float(kGpu, false, adam);
    check_same(once, twice);
    check_close(once, cpu, 2e-3);
    CHECK(cpu.losses.front() != cpu.losses.back());
  }
}

TEST_CASE("a recorded training step gives the same bits, is keyed by shape, and can be dropped") {
  NEEDS_DEVICE();
  const Training plain = train_float(kGpu, false), recorded = train_float(kGpu, true);
  CHECK(recorded.refusal == "");
  CHECK(recorded.replays == 4);  // of 6 steps the first ran, the second was recorded
  check_same(recorded, plain);

  Graph g = network(false);
  g.to(kGpu);
  Sgd sgd({.learning_rate = 0.01f});
  Trainer trainer(g, sgd, {.base = 0.01f});
  trainer.record = true;
  for (int i = 0; i < 3; ++i) trainer.step(images(), labels());
  CHECK(trainer.recorded().recordings() == 1);
  for (int i = 0; i < 3; ++i) trainer.step(images().rows(0, 3), labels().rows(0, 3));
  CHECK(trainer.recorded().recordings() == 2);
  CHECK(trainer.recorded().replays() == 2);
  CHECK_MENTIONS(message_of([&] { trainer.step(images(), class_labels(6, 9)); }), "label 4");
  trainer.forget_recordings();
  CHECK(trainer.recorded().recordings() == 0);
  trainer.step(images(), labels());
  CHECK(trainer.recorded().replays() == 2);
}

TEST_CASE("a recorded step that a teacher takes part in gives the same bits, is keyed by its weight, and follows the cpu") {
  NEEDS_DEVICE();
  const auto run = [](Device device, bool record) {
    Graph teacher = network(true, 3), g = network(false);
    static_cast<Conv2d&>(*g.find("conv2")->module).bias.trainable = false;
    teacher.to(device);
    g.to(device);
    Sgd sgd({.learning_rate = 0.05f, .momentum = 0.9f});
    return train(g, record, sgd, 6, {.teacher = &teacher, .weight = 0.7f, .temperature = 2.0f});
  };
  const Training plain = run(kGpu, false), recorded = run(kGpu, true);
  CHECK(recorded.refusal == "");
  CHECK(recorded.replays == 4);
  check_same(recorded, plain);
  check_close(plain, run(Device{}, false), 2e-3);

  Graph teacher = network(true, 3), g = network(false);
  g.to(kGpu);
  Sgd sgd({.learning_rate = 0.01f});
  Trainer trainer(g, sgd, {.base = 0.01f});
  trainer.record = true;
  trainer.distillation = {.teacher = &teacher};
  CHECK_MENTIONS(message_of([&] { trainer.step(images(), labels()); }), "the teacher is on cpu, the network on cuda:0");
  teacher.to(kGpu);
  for (const float weight : {1.0f, 0.5f}) {
    trainer.distillation.weight = weight;
    for (int i = 0; i < 3; ++i) trainer.step(images(), labels());
  }
  CHECK(trainer.recorded().recordings() == 2);
  CHECK(trainer.recorded().replays() == 2);
}

TEST_CASE("a recorded step follows the device's precision") {
  NEEDS_DEVICE();
  const auto factor = [] { return Tensor::full({1, 1}, 1.0f + 1.0f / 1024.0f, kGpu); };  // bf16 rounds it to 1
  RecordedStep step(kGpu);
  const Precision before = backend(kGpu).precision();
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::f32}) {
    backend(kGpu).set_precision(precision);
    for (int i = 0; i < 3; ++i) {
      const std::vector<Tensor> y = step.run("", {Tensor::full({1, 1}, 1.0f + 1.0f / 1024.0f)}, [&](const std::vector<Tensor>& in) { return std::vector<Tensor>{dense(Var(in[0]), Var(factor())).dense()}; });
      CHECK((y[0].item() == 1.0f) == (precision == Precision::bf16));
    }
  }
  CHECK(step.recordings() == 2);
  backend(kGpu).set_precision(before);
}

// The device's memory, or less of it.
struct LessMemory final : RawMemory {
  std::unique_ptr<RawMemory> below;
  size_t limit = SIZE_MAX, held = 0;
  void* acquire(size_t bytes) override {
    void* p = held + bytes <= limit ? below->acquire(bytes) : nullptr;
    if (p) held += bytes;
    return p;
  }
  void release(void* p, size_t bytes) override {
    held -= std::min(held, bytes);  // it may be older than this
    below->release(p, bytes);
  }
};

TEST_CASE("the recording used longest ago gives way to a fifth one, and where memory runs out") {
  NEEDS_DEVICE();
  RecordedStep step(kGpu);
  const auto run = [&](int64_t n) {
    const Tensor x = random_tensor({n}, static_cast<uint64_t>(n));
    const auto work = [](const Var& v) { return sum(mul(v, v)).dense(); };
    const std::vector<Tensor> y = step.run("", {x}, [&](const std::vector<Tensor>& in) { return std::vector<Tensor>{work(Var(in[0]))}; });
    CHECK(y[0].item() == doctest::Approx(static_cast<double>(work(Var(x)).item())).epsilon(1e-5));
  };
  for (int64_t n = 1; n <= RecordedStep::kMost + 2; ++n) {
    for (int i = 0; i < 3; ++i) run(n);
  }
  CHECK(step.recordings() == RecordedStep::kMost);
  const int64_t replays = step.replays();
  run(3);
  CHECK(step.replays() == replays + 1);
  run(1);  // dropped: recorded again at once, in the place of 4, as 3 was just used
  run(3);
  run(4);
  CHECK(step.replays() == replays + 2);
  CHECK(step.recordings() == RecordedStep::kMost);
  step.forget();

  auto less = std::make_unique<LessMemory>();
  LessMemory& memory = *less;
  memory.below = backend(kGpu).allocator().exchange_raw(std::move(less));
  memory.limit = 800 << 10;  // one recording of 64 Ki floats and their squares
  for (const int64_t n : {1 << 16, (1 << 16) + 512, 1 << 16}) {
    for (int i = 0; i < 3; ++i) run(n);
    CHECK(step.recordings() == 1);
  }
  CHECK_MENTIONS(message_of([&] { run(1 << 20); }), "out of memory");
  CHECK(step.recordings() == 0);
  run(1 << 16);
  CHECK(step.recordings() == 1);
  step.forget();
  backend(kGpu).allocator().trim();  // while the blocks' source is still below
  backend(kGpu).allocator().exchange_raw(std::move(memory.below));
}

TEST_CASE("work that reads results on the host is not recorded and runs all the same") {
  NEEDS_DEVICE();
  RecordedStep step(kGpu);
  const Tensor x = random_tensor({8}, 1);
  for (int i = 0; i < 4; ++i) {
    const std::vector<Tensor> y = step.run("", {x}, [](const std::vector<Tensor>& in) {
      const float first = in[0].to_vector<float>()[0];
      return std::vector<Tensor>{Tensor::full({1}, first, kGpu)};
    });
    CHECK(y[0].item() == x.to_vector<float>()[0]);
    CHECK((step.refusal() == "") == (i == 0));
  }
  CHECK(step.recordings() == 0);
  CHECK(step.replays() == 0);
  // An exception that is no Error leaves the device usable.
  const auto broken = [&](const std::vector<Tensor>&) -> std::vector<Tensor> { throw std::runtime_error("disk"); };
  CHECK_THROWS_AS(step.run("a", {x}, broken), std::runtime_error);
  CHECK_THROWS_AS(step.run("a", {x}, broken), std::runtime_error);
  CHECK(Tensor::full({3}, 1.0f, kGpu).to_vector<float>()[2] == 1.0f);
}

TEST_CASE("a recorded step sees new inputs and runs on the cpu without being recorded") {
  for (const Device device : {Device{}, kGpu}) {
    if (device == kGpu && !available()) return;
    RecordedStep step(device);
    for (int i = 0; i < 5; ++i) {
      const Tensor x = random_tensor({8}, static_cast<uint64_t>(i));
      const std::vector<Tensor> y = step.run("", {x}, [](const std::vector<Tensor>& in) { return std::vector<Tensor>{sum(Var(in[0])).dense()}; });
      CHECK(y[0].item() == doctest::Approx(static_cast<double>(sum(Var(x)).dense().item())).epsilon(1e-6));
    }
    CHECK(step.replays() == (device == kGpu ? 3 : 0));
  }
}

TEST_CASE("quantization on a device: encodings, outputs and learned ranges follow the cpu") {
  NEEDS_DEVICE();
  for (const Scheme scheme : {Scheme::range_learning_tf, Scheme::range_learning_tf_enhanced, Scheme::tf, Scheme::percentile, Scheme::mse}) {
    for (const bool planned : {true, false}) {
      CAPTURE(to_string(scheme));
      CAPTURE(planned);
      const auto run = [&](Device device) {
        Graph g = network(true);
        g.to(device);
        if (!planned) g.set_execution(Graph::Execution::node_by_node);
        QuantSim sim(g, {.scheme = scheme});
        sim.compute_encodings([&] { g(images()); });
        std::vector<Tensor> results{infer(g, images()).to(Device{})};
        Sgd sgd({.learning_rate = 0.01f});
        const Training t = train(g, true, sgd, 4);  // weights that are encoded at each step are read on the host: refused, and trained all the same
        if (device == kGpu && planned) CHECK((t.refusal == "") == learns_ranges(scheme));
        results.insert(results.end(), t.parameters.begin(), t.parameters.end());
        results.push_back(Tensor::from<float>({std::ssize(t.losses)}, std::span<const float>(t.losses)));
        for (const Placement& p : sim.placements()) {
          if (!p.quantizer->calibrated()) continue;
          for (const Grid& grid : p.quantizer->grids()) results.push_back(Tensor::full({1}, grid.scale));
        }
        return results;
      };
      const std::vector<Tensor> cpu = run(Device{}), gpu = run(kGpu), again = run(kGpu);
      REQUIRE(cpu.size() == gpu.size());
      for (size_t i = 0; i < cpu.size(); ++i) {
        CHECK(same_bits(gpu[i], again[i]));
        CHECK(relative_difference(gpu[i], cpu[i]) <= 2e-2);  // a code that rounds the other way moves a small network
      }
    }
  }
}

TEST_CASE("a recorded step with learned ranges gives the same bits while its grids move") {
  NEEDS_DEVICE();
  int zeros = 0;  // zero points that moved
  for (const char* name : {"small", "mixed", "residual"}) {
#if defined(__SANITIZE_ADDRESS__)
    if (std::string_view(name) == "residual") continue;  // ten minutes of the same code
#endif
    for (const int bits : {8, 4}) {
      CAPTURE(name);
      CAPTURE(bits);
      constexpr int64_t kSteps = 7;
      const auto run = [&](bool record) {
        Graph g = quantizable(name);
        g.to(kGpu);
        QuantSim sim(g, {.scheme = Scheme::range_learning_tf, .param_bits = bits, .output_bits = bits});
        sim.compute_encodings([&] { g(images()); });
        std::map<std::string, Grid> before;
        for (const Placement& p : sim.placements()) before[p.name] = p.quantizer->grids().front();
        Sgd sgd({.learning_rate = 0.05f, .momentum = 0.9f});
        Training t = train(g, record, sgd, kSteps);
        int scales = 0;
        for (const Placement& p : sim.placements()) {
          const Grid& now = p.quantizer->grids().front();
          scales += now.scale != before[p.name].scale;
          zeros += now.zero_point != before[p.name].zero_point;
        }
        CHECK(scales > 3);
        return t;
      };
      const Training plain = run(false), recorded = run(true);
      CHECK(recorded.refusal == "");
      CHECK(recorded.replays >= kSteps - 4);  // one plain run and one recording for each of the ways in which grids are equal: those of calibration, and learned ones
      check_same(recorded, plain);
    }
  }
  CHECK(zeros > 0);
}

TEST_CASE("an optimizer's state that comes from the host follows its parameters") {
  NEEDS_DEVICE();
  Graph g = network(false);
  Sgd sgd({.learning_rate = 0.01f});
  Trainer(g, sgd, {.base = 0.01f}).step(images(), labels());
  const auto state = sgd.state();
  g.to(kGpu);
  Sgd restored({.learning_rate = 0.01f});
  restored.restore(state, 1);
  Trainer(g, restored, {.base = 0.01f}).step(images(), labels());
  for (const auto& [name, tensor] : restored.state()) CHECK(tensor.device() == kGpu);
}

namespace {

struct Pictures final : io::Dataset {
  int64_t bad = -1;
  int64_t size() const override { return 23; }
  std::string where(int64_t record) const override { return text("record ", record); }
  void read(int64_t record, io::Sample& s) const override {
    DETENT_CHECK(record != bad, "disk ", record);
    s.label = record % 4 + 1;
    s.image.height = s.image.width = 8;
    s.image.pixels.resize(8 * 8 * 3);
    for (size_t i = 0; i < s.image.pixels.size(); ++i) s.image.pixels[i] = static_cast<uint8_t>(record * 31 + static_cast<int64_t>(i));
  }
  void report_bad(int64_t, const std::string& message) const override { throw Error(message); }
};

}  // namespace

TEST_CASE("a loader delivers the same batches on a device, ahead of their use, and errors in their turn") {
  NEEDS_DEVICE();
  for (const int threads : {0, 2}) {
    CAPTURE(threads);
    const auto data = std::make_shared<Pictures>();
    io::LoaderOptions o{.batch = 5, .shuffle = true, .augment = true, .seed = 3, .preprocess = io::Preprocess::cifar, .image_size = 8, .classes = 4, .threads = threads};
    io::Loader host(data, o);
    o.device = kGpu;
    io::Loader there(data, o);
    for (int epoch = 0; epoch < 2; ++epoch) {
      if (epoch == 1) {
        host.seek(1, 2);
        there.seek(1, 2);
      }
      io::Batch a, b;
      int64_t batches = 0;
      while (host.next(a)) {
        REQUIRE(there.next(b));
        CHECK(b.images.device() == kGpu);
        CHECK(same_bits(a.images, b.images));
        CHECK(a.labels.to_vector<int64_t>() == b.labels.to_vector<int64_t>());
        CHECK(a.index == b.index);
        ++batches;
        if (epoch == 0 && batches == 3) break;  // one is on its way when seek() comes
      }
      CHECK(batches == 3);
      if (epoch == 1) CHECK_FALSE(there.next(b));
    }
    data->bad = 12;
    o.shuffle = false;
    io::Loader failing(data, o);
    io::Batch b;
    CHECK(failing.next(b));
    CHECK(failing.next(b));
    CHECK_MENTIONS(message_of([&] { failing.next(b); }), "disk 12");
    CHECK_MENTIONS(message_of([&] { failing.next(b); }), "disk 12");
  }
}
