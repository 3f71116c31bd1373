// Integer execution: every step on the simulation's codes gives the simulation's codes: the very ones where the simulation multiplies integers too, and but for the
// rounding of float sums where it multiplies floats; the whole network gives ONNX Runtime's codes (DETENT_PY: a Python with onnx and onnxruntime); and what it refuses.
#include <cstdlib>

#include "detent/autograd/ops_integer.h"
#include "detent/core/parallel.h"
#include "detent/io/data/loader.h"
#include "detent/io/layer_dump.h"
#include "detent/io/weights.h"
#include "detent/nn/integer_plan.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"
#include "detent/tests/support/test_data.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

namespace {

using Execution = Graph::Execution;

struct Counts {
  int64_t codes = 0, differ = 0, most = 0, integer_steps = 0;
};

// Every value of the simulation, node by node.
std::map<int, Var> simulate(Graph& g, const Tensor& x) {
  std::map<int, Var> values;
  g.set_execution(Execution::planned);
  g.set_tap([&](Value v, const Var&, const Var& after) { values[v.id] = after; });
  infer(g, x);
  g.set_tap({});
  return values;
}

void compare_codes(const Var& got, const Var& want, Counts& c) {
  REQUIRE(got.coded());
  REQUIRE(want.coded());
  REQUIRE(got.coded()->grid == want.coded()->grid);
  REQUIRE(got.shape() == want.shape());
  const std::vector<uint8_t> a = got.coded()->codes.to_vector<uint8_t>(), b = want.coded()->codes.to_vector<uint8_t>();
  for (size_t i = 0; i < a.size(); ++i) {
    c.differ += a[i] != b[i];
    c.most = std::max<int64_t>(c.most, std::abs(int{a[i]} - int{b[i]}));
  }
  c.codes += static_cast<int64_t>(a.size());
}

// Each integer step on the simulation's codes of its inputs.
Counts compare_steps(Graph& g, const Tensor& x) {
  std::map<int, Var> values = simulate(g, x);
  const IntegerPlan plan = compile_integer_plan(g);
  const NoGrad no_grad;
  Counts c;
  for (const PlanStep& s : plan.steps) {
    if (!s.on_codes) continue;
    std::vector<Var> in;
    for (const Value v : step_inputs(g, s)) in.push_back(to_codes(values.at(v.id), *plan.grids[static_cast<size_t>(v.id)]));
    INFO(g.value(s.output).name);
    compare_codes(run_step(g, s, {}, in), to_codes(values.at(s.output.id), *s.codes), c);
    ++c.integer_steps;
  }
  return c;
}

Graph folded(Graph g, uint64_t seed = 1) {
  randomize(g, seed);
  fold_batch_norms(g);
  return g;
}

QuantConfig symmetric_activations() {
  return parse_config(R"({"defaults": {"ops": {"is_output_quantized": "True", "is_symmetric": "True"}, "params": {"is_quantized": "True", "is_symmetric": "True"}}, "params": {"bias": {"is_quantized": "False"}},
    "op_type": {}, "supergroups": [{"op_list": ["Conv", "Relu"]}, {"op_list": ["Add", "Relu"]}], "model_input": {"is_input_quantized": "True"}, "model_output": {}})", "test");
}

void compare_network(Graph g, const Shape& input, const QuantConfig& config) {
  const Tensor x = random_tensor(input, 8);
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf, .config = config});
  sim.compute_encodings([&] { g(x); });
  const Counts same = compare_steps(g, x);
  CHECK(same.integer_steps >= 3);
  CHECK(same.differ == 0);
  g.set_products(Products::floats);
  const Counts c = compare_steps(g, x);
  MESSAGE(c.integer_steps << " integer steps: " << c.differ << " of " << c.codes << " codes differ from those of float sums, by at most " << c.most);
  CHECK(c.integer_steps == same.integer_steps);
  // A float sum may round past a tie that the integer one does not reach.
  CHECK(c.most <= 1);
  CHECK(c.differ <= 1e-4 * static_cast<double>(c.codes) + 2);
  g.set_products(Products::integers);

  const int before = num_threads();
  std::vector<Tensor> scores;
  g.set_execution(Execution::integer);
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    scores.push_back(infer(g, x));
  }
  set_num_threads(before);
  CHECK(same_bits(scores[0], scores[1]));
}

struct Trained {
  Graph net;
  std::vector<io::Batch> calibration, valid;
};

std::vector<io::Batch> batches_of(const std::string& folder, const char* split, int64_t images) {
  const auto set = std::make_shared<io::TfRecordDataset>(folder, split, io::TfRecordOptions{});
  io::Loader loader(set, {.batch = 100, .preprocess = io::Preprocess::cifar, .classes = 10, .limit = images});
  std::vector<io::Batch> all;
  for (const io::Batch& b : loader) all.push_back(b);
  return all;
}

Trained trained_resnet20(const std::string& weights, const std::string& folder) {
  Trained t{models::resnet20_cifar10(), batches_of(folder, "train", 300), batches_of(folder, "valid", 1000)};
  io::load_weights(t.net, weights);
  fold_batch_norms(t.net);
  return t;
}

}  // namespace

TEST_CASE("integer steps give the simulation's codes: small network") { compare_network(folded(small_network()), {3, 8, 8, 3}, default_config("integer")); }
TEST_CASE("integer steps give the simulation's codes: AIMET's default rules") { compare_network(folded(small_network()), {3, 8, 8, 3}, default_config()); }
TEST_CASE("integer steps give the simulation's codes: signed activations") { compare_network(folded(small_network()), {3, 8, 8, 3}, symmetric_activations()); }
TEST_CASE("integer steps give the simulation's codes: ResNet-20") { compare_network(folded(models::resnet20_cifar10({.classes = 10, .image_size = 16})), {2, 16, 16, 3}, default_config("integer")); }
TEST_CASE("integer steps give the simulation's codes: ResNet-50 v1, whose max pool has its own grid") {
  compare_network(folded(models::resnet50_v1({.classes = 10, .image_size = 32})), {2, 32, 32, 3}, default_config());
}
TEST_CASE("integer steps give the simulation's codes: MobileNetV2") {
  compare_network(folded(models::mobilenet_v2_cifar10({.classes = 10, .image_size = 32})), {2, 32, 32, 3}, default_config("integer"));
}

TEST_CASE("integer steps give the simulation's codes: an average pool on its input's grid, as ONNX Runtime's quantizer leaves it: a quarter of the averages are ties") {
  Graph g;
  const Value x = g.add<Conv2d>("conv", {g.input("input", {4, 4, 3})}, Conv2d::Options{.in = 3, .out = 256, .kernel_h = 3, .kernel_w = 3, .spec = {.stride = {2, 2}, .padding = {1, 1, 1, 1}}});
  const Value p = g.add<AveragePool>("pool", {g.add<Activation>("relu", {x}, relu_op())}, PoolSpec{.kernel = {2, 2}, .stride = {2, 2}});
  g.output(g.add<Dense>("fc", {g.add<Flatten>("flatten", {p})}, Dense::Options{.in = 256, .out = 3}));
  randomize(g, 1);
  const Tensor images = random_tensor({64, 4, 4, 3}, 2);
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf, .config = default_config("integer")});
  sim.compute_encodings([&] { g(images); });
  const Grid grid = sim.find("relu")->grids()[0];
  sim.find("pool")->set_ranges({range_of(grid)});
  REQUIRE(sim.find("pool")->grids()[0] == grid);
  const Counts same = compare_steps(g, images);
  CHECK(same.integer_steps == 4);
  CHECK(same.differ == 0);
  g.set_products(Products::floats);
  CHECK(compare_steps(g, images).differ > 20);
}

TEST_CASE("integer execution of the trained ResNet-20 against its simulation") {
  DETENT_DATA_FILE(weights, "models/resnet20-cifar10.safetensors");
  DETENT_DATA_FILE(folder, "data/cifar10");
  Trained t = trained_resnet20(weights, folder);
  for (const char* config : {"integer", "tensorflow_default"}) {
    QuantSim sim(t.net, {.scheme = Scheme::tf, .config = default_config(config)});
    sim.compute_encodings([&] {
      for (const io::Batch& b : t.calibration) t.net(b.images);
    });
    Counts c;
    for (size_t i = 0; i < 2; ++i) {
      const Counts part = compare_steps(t.net, t.valid[i].images);
      c = {c.codes + part.codes, c.differ + part.differ, std::max(c.most, part.most), part.integer_steps};
    }
    t.net.set_execution(Execution::planned);
    const Accuracy simulated = evaluate(t.net, t.valid);
    t.net.set_execution(Execution::integer);
    const Accuracy integer = evaluate(t.net, t.valid);
    const std::vector<std::string> in_float = t.net.float_nodes();
    MESSAGE(std::string(config) << ": " << c.differ << " of " << c.codes << " codes differ from the simulation's, by at most " << c.most << "; top-1 " << integer.correct1 << ", simulated " << simulated.correct1
                   << " of " << integer.images << "; float nodes " << in_float.size());
    CHECK(c.most <= 1);
    CHECK(c.differ == 0);
    CHECK(integer.correct1 == simulated.correct1);
    CHECK(integer.correct5 == simulated.correct5);
    // AIMET's rules leave the global pool's result in float, and so what reads it.
    CHECK(in_float.size() == (std::string(config) == "integer" ? 0 : 3));
    t.net.set_execution(Execution::planned);
  }
}

TEST_CASE("integer execution of the trained ResNet-20 gives ONNX Runtime's codes, layer by layer and in the end") {
  DETENT_DATA_FILE(weights, "models/resnet20-cifar10.safetensors");
  DETENT_DATA_FILE(folder, "data/cifar10");
  const char* python = std::getenv("DETENT_PY");
  if (!python || !*python) {
    MESSAGE("SKIPPED: DETENT_PY names no Python with onnx and onnxruntime");
    return;
  }
  Trained t = trained_resnet20(weights, folder);
  QuantSim sim(t.net, {.scheme = Scheme::tf, .config = default_config("integer")});
  sim.compute_encodings([&] {
    for (const io::Batch& b : t.calibration) t.net(b.images);
  });
  const TemporaryFolder out;
  sim.export_to(out.path().string(), "net");
  t.net.set_execution(Execution::integer);
  {
    io::LayerDump dump(t.net, {.folder = out.file("dump"), .layer_images = 100});
    for (const io::Batch& b : t.valid) dump.add(b.images);
    dump.finish();
  }
  const std::string compare = text(python, " ", DETENT_SOURCE_ROOT, "/scripts/compare_with_onnxruntime ", out.file("net.qdq.onnx"), " ", out.file("dump"), " --json ", out.file("result.json"));
  REQUIRE(std::system(compare.c_str()) == 0);
  const char* const exact =
      " -c 'import json, sys; j = json.load(open(sys.argv[1])); e = j[\"end_to_end\"][\"optimized\"]; d = sum(l[\"optimized\"] for l in j[\"layers\"]); "
      "print(d, e); sys.exit(not (d == 0 and len(j[\"layers\"]) > 20 and e[\"images\"] == 1000 and e[\"top1_equal\"] == 1000 and e[\"scores_equal\"] == 1.0))' ";
  CHECK(std::system((python + std::string(exact) + out.file("result.json")).c_str()) == 0);
}

TEST_CASE("integer execution refuses what it cannot run, by name") {
  const Tensor x = random_tensor({2, 8, 8, 3}, 5);
  Graph g = folded(small_network());
  const auto go = [&] { g.set_execution(Execution::integer); };
  CHECK_MENTIONS(message_of(go), "every node would run in float");
  {
    QuantSim sim(g);
    CHECK_MENTIONS(message_of(go), "\"relu1\" has no range; run compute_encodings");
    sim.compute_encodings([&] {
      g(x);
      CHECK_MENTIONS(message_of(go), "\"relu1\" is observing");
    });
    sim.disable();
    CHECK_MENTIONS(message_of(go), "\"relu1\" is off; enable() it");
    CHECK(g.execution() == Execution::planned);
    sim.enable();
    go();
    const Tensor y = infer(g, x);
    sim.find("relu1")->set_ranges({{0.0, 1.0}});
    CHECK_MENTIONS(message_of([&] { infer(g, x); }), "\"relu1\" has another range");
    go();
    CHECK_FALSE(same_bits(infer(g, x), y));
    CHECK_MENTIONS(message_of([&] {
      Tape tape;
      g(x);
    }), "no gradients");
    g.replace(static_cast<int>(g.value(g.find_value("relu1")).producer), std::make_unique<Activation>(relu_op()));
    CHECK_MENTIONS(message_of([&] { infer(g, x); }), "edited since set_execution(integer)");
    g.set_execution(Execution::planned);
  }
  QuantSim wide(g, {.output_bits = 16});
  wide.compute_encodings([&] { g(x); });
  CHECK_MENTIONS(message_of(go), "value \"relu1\" lies on a grid of codes 0..65535");
}

TEST_CASE("sums that could leave int32 run in float and are listed") {
  Graph g;
  const Value in = g.input("input", {70000});
  g.output(g.add<Dense>("fc", {g.add<Activation>("relu", {in}, relu_op())}, Dense::Options{.in = 70000, .out = 2}));
  Tensor& w = static_cast<Dense&>(*g.find("fc")->module).weight.value;
  w.fill(1.0f);
  QuantSim sim(g, {.scheme = Scheme::tf, .config = default_config("integer"), .protect_accumulators = false});
  const Tensor x = Tensor::full({1, 70000}, 1.0f);
  sim.compute_encodings([&] { g(x); });
  g.set_execution(Execution::integer);
  REQUIRE(g.float_nodes().size() == 1);
  CHECK_MENTIONS(g.float_nodes()[0], "fc (Gemm): sums of output channel 0 may reach");
  CHECK(infer(g, x).to_vector<float>()[0] == doctest::Approx(70000.0).epsilon(0.01));
}
