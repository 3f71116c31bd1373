// Import against ONNX Runtime's results (tests/golden/make_onnx.py), export and import again, files of wrong content.
#include <doctest/doctest.h>

#include <filesystem>

#include "detent/io/onnx/import.h"
#include "detent/io/safetensors.h"
#include "detent/io/weights.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/io/onnx_support.h"
#include "detent/tests/io/support.h"
#include "detent/tests/support/test_data.h"

using namespace detent;
using namespace detent::test;

namespace {

// [n,c,h,w] -> [n,h,w,c].
Tensor channels_last(const Tensor& t) {
  if (t.rank() != 4) return t;
  constexpr int kPermutation[] = {0, 2, 3, 1};
  return transpose(Var(t), kPermutation).dense();
}

std::string import_error(const std::string& file_bytes, const std::string& folder = {}) {
  return error_of([&] { io::parse_onnx(file_bytes, "test", folder); });
}

const std::string kInput = onnx_value(11, "x", {1, 3, 8, 8}), kOutput = onnx_value(12, "y", {1, 3, 8, 8});

}  // namespace

TEST_CASE("onnx import: every operator as ONNX Runtime computes it, and through export and import to the same bits") {
  for (const std::string name : {"shuffle", "activations", "windows", "images_last", "spread", "quantized", "pads"}) {
    CAPTURE(name);
    io::OnnxNetwork net = io::load_onnx(golden(std::string("onnx/") + name + ".onnx"));
    const io::SafeTensors data = io::load_safetensors(golden(std::string("onnx/") + name + ".safetensors"));
    const Tensor x = std::string(name) == "images_last" ? *data.find("x") : channels_last(*data.find("x"));
    // The golden of the quantized network has its grids; here they are read, but not in force: a coarse comparison, the exact one is below.
    const Tensor y = outputs_of(net.graph, x)[0];
    const bool quantized = std::string(name) == "quantized";
    // Relative to the largest value: these networks end in sums of hundreds of terms, up to 58 in size.
    const Tensor want = channels_last(*data.find("y"));
    const double size = largest_difference(want, Tensor::zeros(want.shape()));
    CAPTURE(size);
    CHECK(largest_difference(y, want) < (quantized ? 0.3 : 1e-6 * std::max(size, 1.0)));

    const std::string exported = io::onnx_bytes(net.graph);
    io::OnnxNetwork again = io::parse_onnx(exported, "exported");
    CHECK(same_bits(outputs_of(again.graph, x).back(), y));  // scores come before a Softmax
    io::OnnxNetwork third = io::parse_onnx(io::onnx_bytes(again.graph), "exported again");
    CHECK(same_bits(outputs_of(third.graph, x).back(), y));
    std::vector<std::string> names, names_again;
    for (const auto& [n, t] : net.graph.state()) names.push_back(n);
    for (const auto& [n, t] : again.graph.state()) names_again.push_back(n);
    CHECK(names == names_again);
  }
}

TEST_CASE("onnx import: grids of a QDQ file, frozen and learnable") {
  io::OnnxNetwork net = io::load_onnx(golden("onnx/quantized.onnx"));
  const io::SafeTensors data = io::load_safetensors(golden("onnx/quantized.safetensors"));
  const quant::Encoding* first = net.encodings.find("x");
  REQUIRE(first);
  CHECK(first->grids[0] == Grid{0.02f, 3, -128, 127});
  REQUIRE(net.encodings.find("conv.weight"));
  CHECK(net.encodings.find("conv.weight")->grids.size() == 4);
  CHECK(net.encodings.find("fc.weight")->grids.size() == 5);
  quant::QuantConfig config = quant::default_config("per_channel_default");
  quant::QuantSim sim(net.graph, {.scheme = quant::Scheme::range_learning_tf, .config = config});
  sim.load_encodings(net.encodings, quant::QuantSim::Load::partial);
  const Tensor x = channels_last(*data.find("x"));
  quant::Quantizer* out = sim.find("y");
  REQUIRE(out);
  CHECK(out->state() == quant::QuantizerState::frozen);
  const Tensor y = outputs_of(net.graph, x)[0];
  // One step of the output's grid: ONNX Runtime requantizes in float, we in the graph's own order.
  CHECK(largest_difference(y, *data.find("y")) < 0.0101);
}

TEST_CASE("onnx import: names of parameters are those of the initializers") {
  const io::OnnxNetwork net = io::load_onnx(golden("onnx/windows.onnx"));
  const nn::Graph& g = net.graph;
  CHECK(g.find("stem"));
  CHECK(g.find("bn"));
  CHECK(g.find("dil"));
  CHECK(g.find_value("y").id >= 0);
  CHECK(g.find_value("v1").id >= 0);
}

TEST_CASE("onnx import: ResNet-20 equals the safetensors weights, and ONNX Runtime") {
  DETENT_DATA_FILE(model, "models/resnet20-cifar10.onnx");
  DETENT_DATA_FILE(weights, "models/resnet20-cifar10.safetensors");
  io::OnnxNetwork net = io::load_onnx(model);
  nn::Graph built = nn::models::make("resnet20-cifar10", nn::models::published("resnet20-cifar10"));
  io::load_weights(built, weights);
  std::vector<float> v(2 * 32 * 32 * 3);
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(static_cast<double>(i * 2654435761u % 4294967296u) / 4294967296.0 * 4 - 2);
  const Tensor x = Tensor::from<float>({2, 32, 32, 3}, v);
  const Tensor y = outputs_of(net.graph, x)[0];
  CHECK(largest_difference(y, outputs_of(built, x)[0]) < 1e-5);
  const io::SafeTensors golden_logits = io::load_safetensors(golden("onnx/resnet20.safetensors"));
  CHECK(largest_difference(y, *golden_logits.find("y")) < 1e-4);
  // The same names as the weight file: it loads into the imported network, and the ONNX file into the built-in one.
  io::load_weights(net.graph, weights);
  io::load_weights(built, model);
  CHECK(same_bits(outputs_of(net.graph, x)[0], y));
}

TEST_CASE("onnx import: one error lists every node that is not supported") {
  const std::string graph = onnx_node("Einsum", "first", {"x"}, {"a"}) + onnx_node("Relu", "between", {"a"}, {"b"}) + onnx_node("LSTM", "second", {"x"}, {"c"}) + onnx_node("Add", "sum", {"b", "c"}, {"y"});
  const std::string e = import_error(onnx_model(graph + kInput + kOutput));
  CHECK_CONTAINS(e, "2 nodes");
  CHECK_CONTAINS(e, "\"first\" (Einsum)");
  CHECK_CONTAINS(e, "\"second\" (LSTM)");
  CHECK(e.find("between") == std::string::npos);
}

TEST_CASE("onnx import: cycles, duplicate names, wrong opsets, absent values") {
  CHECK_CONTAINS(import_error(onnx_model(onnx_node("Add", "a", {"x", "q"}, {"p"}) + onnx_node("Relu", "b", {"p"}, {"q"}) + kInput + onnx_value(12, "q", {1}))), "cyclic");
  CHECK_CONTAINS(import_error(onnx_model(onnx_node("Relu", "a", {"x"}, {"y"}) + onnx_node("Tanh", "b", {"x"}, {"y"}) + kInput + kOutput)), "\"y\"");
  CHECK_CONTAINS(import_error(onnx_model(onnx_node("Relu", "a", {"x"}, {"y"}) + kInput + kInput + kOutput)), "x");
  CHECK_CONTAINS(import_error(onnx_model(onnx_node("Relu", "a", {"x"}, {"y"}) + kInput + kOutput, 9)), "opset 9");
  CHECK_CONTAINS(import_error(onnx_model(onnx_node("Relu", "a", {"none"}, {"y"}) + kInput + kOutput)), "none");
  CHECK_CONTAINS(import_error(onnx_model(onnx_node("Relu", "a", {"x"}, {"y"}) + kInput + onnx_value(12, "z", {1}))), "\"z\"");
  CHECK_CONTAINS(import_error(onnx_model(kInput + kOutput)), "no network");
  // Nodes in any order are read all the same.
  CHECK(import_error(onnx_model(onnx_node("Tanh", "b", {"t"}, {"y"}) + onnx_node("Relu", "a", {"x"}, {"t"}) + kInput + kOutput)).empty());
}

TEST_CASE("onnx import: sizes are checked before memory is taken") {
  const std::string node = onnx_node("Add", "sum", {"x", "w"}, {"y"}) + kInput + kOutput;
  CHECK_CONTAINS(import_error(onnx_model(node + onnx_tensor("w", {int64_t{1} << 40}, bytes(9, "abcd")))), "\"w\"");
  CHECK_CONTAINS(import_error(onnx_model(node + onnx_tensor("w", {int64_t{1} << 32, int64_t{1} << 32}, bytes(9, "abcd")))), "2^40");
  CHECK_CONTAINS(import_error(onnx_model(node + onnx_tensor("w", {-4}, bytes(9, "abcd")))), "-4");
  CHECK_CONTAINS(import_error(onnx_model(node + onnx_tensor("w", {1, 3, 1, 1}, bytes(9, "abcd")))), "4 bytes of data, its shape needs 12");
  const std::string huge = onnx_node("ConstantOfShape", "fill", {"shape"}, {"c"}) + onnx_node("Add", "sum", {"x", "c"}, {"y"}) + kInput + kOutput;
  std::string dims(8, '\0');
  dims[4] = 1;  // 2^32
  CHECK_CONTAINS(import_error(onnx_model(huge + bytes(5, number(1, 1) + number(2, 7) + bytes(8, "shape") + bytes(9, dims)))), "\"fill\"");
}

TEST_CASE("onnx import: external data stays in the model's folder") {
  const TempFolder folder;
  const std::string node = onnx_node("Add", "sum", {"x", "w"}, {"y"}) + kInput + kOutput;
  const auto external = [&](const std::string& location, const std::string& length = "12") {
    const auto entry = [](const std::string& k, const std::string& v) { return bytes(13, bytes(1, k) + bytes(2, v)); };
    return onnx_model(node + onnx_tensor("w", {3, 1, 1}, entry("location", location) + entry("offset", "4") + entry("length", length) + number(14, 1)));
  };
  std::string values(16, '\0');
  const float w[] = {1.0f, 2.0f, 3.0f};
  std::memcpy(values.data() + 4, w, sizeof w);
  spill(folder / "w.bin", values);
  io::OnnxNetwork net = io::parse_onnx(external("w.bin"), "test", folder.path());
  const Tensor zeros = Tensor::zeros({1, 8, 8, 3});
  CHECK(outputs_of(net.graph, zeros)[0].to_vector<float>()[5] == 3.0f);
  for (const char* bad : {"../w.bin", "a/../../w.bin", "/etc/passwd", "", "..", "a\\..\\..\\w.bin"}) {
    CAPTURE(bad);
    CHECK_CONTAINS(import_error(external(bad), folder.path()), "folder");
  }
  CHECK_CONTAINS(import_error(external("missing.bin"), folder.path()), "missing.bin");
  CHECK_CONTAINS(import_error(external("w.bin", "16"), folder.path()), "16 bytes");
  CHECK_CONTAINS(import_error(external("w.bin")), "memory");
}

TEST_CASE("onnx import: truncated and damaged files give an error or a network, never a crash") {
  for (const char* name : {"shuffle", "activations", "windows", "spread", "quantized"}) {
    CAPTURE(name);
    const std::string good = slurp(golden(std::string("onnx/") + name + ".onnx"));
    for (size_t percent = 0; percent < 100; ++percent) {
      const size_t at = good.size() * percent / 100;
      const std::string e = import_error(good.substr(0, at));
      CHECK_MESSAGE(!e.empty(), "accepted a file truncated at ", percent, " %");
      for (int bit = 0; bit < 8; ++bit) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
        const std::string message = import_error(bad);  // flipped weights give a network
        CHECK((message.empty() || message.starts_with("onnx test: ")));
      }
    }
  }
}
