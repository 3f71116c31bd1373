// Exports and what comes back from them. Running them in ONNX Runtime is scripts/compare_with_onnxruntime's and scripts/onnx_zoo's.
#include <doctest/doctest.h>

#include "detent/io/onnx/export.h"
#include "detent/io/onnx/import.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/io/onnx_support.h"
#include "detent/tests/io/support.h"

using namespace detent;
using namespace detent::test;

namespace {

nn::Graph network(const char* arch, int64_t size) {
  nn::Graph g = nn::models::make(arch, {.classes = 10, .image_size = size});
  nn::initialize(g, {.seed = 5});
  return g;
}

quant::QuantSimOptions options_of(int bits, const char* config = "integer") {
  return {.scheme = quant::Scheme::range_learning_tf, .param_bits = bits, .output_bits = bits, .config = quant::default_config(config)};
}

void calibrate(quant::QuantSim& sim, const Tensor& x) {
  sim.compute_encodings([&] { sim.graph()(x); });
}

}  // namespace

TEST_CASE("onnx export: the built-in networks come back bit for bit, with their names") {
  for (const auto& row : {std::pair{"resnet20-cifar10", 32}, std::pair{"resnet18", 64}, std::pair{"resnet50-v1", 64}}) {
    const auto& arch = row.first;
    const auto& size = row.second;
    CAPTURE(arch);
    nn::Graph g = network(arch, size);
    const Tensor x = input_for(g, 2);
    for (const bool folded : {false, true}) {
      if (folded) nn::fold_batch_norms(g);
      const std::string file = io::onnx_bytes(g);
      CHECK((file == io::onnx_bytes(g)));
      io::OnnxNetwork back = io::parse_onnx(file, "exported");
      CHECK(same_bits(outputs_of(back.graph, x)[0], g(x).dense()));
      CHECK(back.encodings.activations.empty());
      std::vector<std::string> names, names_back;
      for (const auto& [n, t] : g.state()) names.push_back(n);
      for (const auto& [n, t] : back.graph.state()) names_back.push_back(n);
      CHECK(names == names_back);
    }
  }
}

TEST_CASE("onnx export: a network that ends in Softmax has its scores first, then the Softmax") {
  nn::Graph g = network("resnet50-v1", 32);
  io::OnnxNetwork back = io::parse_onnx(io::onnx_bytes(g), "exported");
  REQUIRE(back.graph.outputs().size() == 2);
  CHECK(back.graph.value(back.graph.outputs()[0]).name == "predictions");
  CHECK(back.graph.value(back.graph.outputs()[1]).name == "predictions_softmax");
}

TEST_CASE("onnx export: QDQ files carry every grid, and simulate to the same bits again") {
  for (const int bits : {8, 4, 12, 16}) {
    for (const char* config : {"integer", "tensorflow_default", "per_channel_default"}) {
      CAPTURE(bits);
      CAPTURE(config);
      nn::Graph g = network("resnet20-cifar10", 16);
      nn::fold_batch_norms(g);
      quant::QuantSim sim(g, options_of(bits, config));
      const Tensor x = input_for(g, 4);
      calibrate(sim, x);
      const std::string file = io::onnx_bytes(g, io::OnnxQuantization::qdq);
      io::OnnxNetwork back = io::parse_onnx(file, "exported");
      quant::QuantSim sim_back(back.graph, options_of(bits, config));
      sim_back.load_encodings(back.encodings, quant::QuantSim::Load::partial);
      for (const quant::Placement& p : sim.placements()) {
        CAPTURE(p.name);
        const quant::Encoding* e = back.encodings.find(p.name);
        REQUIRE(e);
        CHECK(e->grids == p.quantizer->grids());
      }
      CHECK(sim_back.unseen().empty());
      CHECK(same_bits(outputs_of(back.graph, x)[0], outputs_of(g, x)[0]));
    }
  }
}

TEST_CASE("export: quantizers without a range would quantize nothing, and are refused") {
  nn::Graph g = network("resnet20-cifar10", 16);
  nn::fold_batch_norms(g);
  const TempFolder out;
  quant::QuantSim sim(g, options_of(8));
  CHECK_CONTAINS(error_of([&] { sim.export_to(out.path(), "net"); }), "none of the");
  CHECK(list_folder(out.path()).empty());
  calibrate(sim, input_for(g, 4));
  CHECK(sim.export_to(out.path(), "net").size() == 4);
}

TEST_CASE("onnx export: a flattened feature map before a dense layer") {
  nn::Graph g;
  nn::Value v = g.input("x", {3, 4, 2});
  v = g.add<nn::Activation>("relu", {v}, nn::relu_op());
  v = g.add<nn::Flatten>("flat", {v});
  v = g.add<nn::Activation>("clip", {v}, nn::clip_op(0.0f, 6.0f));
  g.output(g.add<nn::Dense>("fc", {v}, nn::Dense::Options{.in = 24, .out = 5}));
  nn::initialize(g, {.seed = 1});
  const std::string file = io::onnx_bytes(g);
  io::OnnxNetwork back = io::parse_onnx(file, "exported");
  const Tensor x = input_for(g, 3);
  CHECK(same_bits(outputs_of(back.graph, x)[0], outputs_of(g, x)[0]));
  CHECK(back.graph.nodes().size() == g.nodes().size());
}

TEST_CASE("onnx export: layers that ONNX has no single operator for, and reshapes of any kind") {
  nn::Graph g;
  nn::Value v = g.input("x", {4, 6, 6});
  v = g.add<nn::Activation>("silu", {v}, Pointwise{PointwiseKind::silu});
  v = g.add<nn::Activation>("affine", {v}, Pointwise{PointwiseKind::affine, 1.5f, -0.25f});
  v = g.add<nn::Reshape>("groups", {v}, std::vector<int64_t>{4, 6, 3, 2});
  v = g.add<nn::Transpose>("swap", {v}, std::vector<int>{0, 1, 2, 4, 3});
  v = g.add<nn::Reshape>("rows", {v}, std::vector<int64_t>{24, 6});
  v = g.add<nn::Reshape>("square", {v}, std::vector<int64_t>{12, 4, 3});
  v = g.add<nn::Resize>("big", {v}, ResizeSpec{.height = 9, .width = 7, .mode = ResizeMode::bilinear});
  v = g.add<nn::ConstantOperand>("scaled", {v}, BinaryOp::mul, Tensor::from({3}, {1.0f, -2.0f, 0.5f}));
  v = g.add<nn::PRelu>("act", {v}, int64_t{3});
  g.output(g.add<nn::Flatten>("flat", {g.add<nn::MaxPool>("pool", {v}, PoolSpec{.kernel = {9, 7}, .stride = {1, 1}})}));
  io::OnnxNetwork back = io::parse_onnx(io::onnx_bytes(g), "exported");
  const Tensor x = input_for(g, 2);
  CHECK(same_bits(outputs_of(back.graph, x)[0], outputs_of(g, x)[0]));
}

TEST_CASE("onnx export: a module of one's own has no form, and the message says which have") {
  struct Own final : nn::Module {
    nn::OpDesc describe() const override { return {"Relu", {}}; }
    Shape infer(std::span<const Shape> in) const override { return in[0]; }
    Var forward(const nn::Context&, std::span<const Var> in) override { return in[0]; }
  };
  nn::Graph g;
  g.output(g.add("mine", std::make_unique<Own>(), {g.input("x", {3})}));
  std::string message;
  try {
    io::onnx_bytes(g);
  } catch (const Error& e) {
    message = e.what();
  }
  CHECK(message == "onnx export: node \"mine\": its module, which calls itself Relu, is none of the layers of nn/layers.h, and those alone have an ONNX form here; build the network of "
                   "them to export it");
}
