// Pools, resizes and grids behind operators that move elements: what their exports say, what comes back from them, and with DETENT_PY (a Python with numpy, onnxruntime and
// safetensors) what ONNX Runtime computes with them at each of its optimization levels (onnx_runtime.py).
#include <doctest/doctest.h>

#include "detent/io/onnx/export.h"
#include "detent/io/onnx/import.h"
#include "detent/io/safetensors.h"
#include "detent/nn/layers.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/io/onnx_support.h"
#include "detent/tests/io/support.h"

using namespace detent;
using namespace detent::test;

namespace {

using io::OnnxQuantization;

template <class M, class Spec>
nn::Graph one_layer(int64_t height, int64_t width, const Spec& spec) {
  nn::Graph g;
  g.output(g.add<M>("layer", {g.input("x", {height, width, 2})}, spec));
  return g;
}

quant::QuantSimOptions integers(int bits, const char* config = "integer") { return {.param_bits = bits, .output_bits = bits, .config = quant::default_config(config)}; }

void calibrate(quant::QuantSim& sim, const Tensor& x) {
  sim.compute_encodings([&] { sim.graph()(x); });
}

nn::Graph parsed(nn::Graph& g, OnnxQuantization quantization = OnnxQuantization::none) { return std::move(io::parse_onnx(io::onnx_bytes(g, quantization), "exported").graph); }

std::vector<PoolSpec> pools() {
  std::vector<PoolSpec> all;
  for (const int64_t kernel : {2, 3}) {
    for (const int64_t stride : {1, 2}) {
      for (const Padding2d padding : {Padding2d{}, Padding2d{1, 1, 1, 1}, Padding2d{0, 0, 1, 1}, Padding2d{1, 0, 0, 1}}) {
        for (const bool ceil_mode : {false, true}) {
          for (const bool count : {false, true})
            all.push_back({.kernel = {kernel, kernel}, .stride = {stride, stride}, .padding = padding, .ceil_mode = ceil_mode, .count_include_pad = count});
        }
      }
    }
  }
  return all;
}

std::vector<ResizeSpec> resizes(int64_t height, int64_t width) {
  std::vector<ResizeSpec> all;
  for (const auto coordinates : {ResizeCoordinates::half_pixel, ResizeCoordinates::asymmetric, ResizeCoordinates::align_corners, ResizeCoordinates::pytorch_half_pixel}) {
    all.push_back({.height = height, .width = width, .mode = ResizeMode::bilinear, .coordinates = coordinates});
    for (const bool floor : {false, true}) all.push_back({.height = height, .width = width, .coordinates = coordinates, .nearest_floor = floor});
  }
  return all;
}

const PoolSpec& spec_of(const nn::Module& m) {
  const auto* most = dynamic_cast<const nn::MaxPool*>(&m);
  return most ? most->spec() : dynamic_cast<const nn::AveragePool&>(m).spec();
}

// ONNX's definition for ceil_mode = 0, the only one that all readers share.
Shape windows_of(const PoolSpec& s, const Shape& x) {
  const auto count = [&](int i, int64_t pads) { return (x[1 + i] + pads - s.kernel[i]) / s.stride[i] + 1; };
  return {1, count(0, s.padding.top + s.padding.bottom), count(1, s.padding.left + s.padding.right), x[3]};
}

void check_pool(nn::Graph g) {
  nn::Graph back = parsed(g);
  const PoolSpec& s = spec_of(*back.find("layer")->module);
  const Shape& x = back.value(back.find("layer")->inputs[0]).shape;
  CHECK_FALSE(s.ceil_mode);
  CHECK(windows_of(s, x) == g.value(g.outputs()[0]).shape);
  // What a window counts beyond its input is never a padding that only makes it fit.
  CHECK((!s.count_include_pad || s.padding == spec_of(*g.find("layer")->module).padding));
  const Tensor images = input_for(g, 2);
  CHECK(same_bits(outputs_of(back, images)[0], outputs_of(g, images)[0]));
}

// A network around a layer that keeps the channels, so that ONNX Runtime has integers and layouts to change.
template <class M, class Spec>
nn::Graph between_layers(int64_t height, int64_t width, const Spec& spec) {
  nn::Graph g;
  nn::Value v = g.input("x", {height, width, 3});
  v = g.add<nn::Conv2d>("stem", {v}, nn::Conv2d::Options{.in = 3, .out = 4, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}}, .bias = true});
  v = g.add<nn::Activation>("relu", {v}, nn::relu_op());
  v = g.add<M>("layer", {v}, spec);
  g.output(g.add<nn::Conv2d>("head", {v}, nn::Conv2d::Options{.in = 4, .out = 2, .bias = true}));
  nn::initialize(g, {.seed = 2});
  return g;
}

// Values behind everything that keeps a grid, up to an output.
nn::Graph moving_network() {
  nn::Graph g;
  nn::Value v = g.input("x", {8, 8, 3});
  v = g.add<nn::Conv2d>("conv", {v}, nn::Conv2d::Options{.in = 3, .out = 4, .kernel_h = 3, .kernel_w = 3, .bias = true});
  v = g.add<nn::Activation>("relu", {v}, nn::relu_op());
  v = g.add<nn::MaxPool>("pool", {v}, PoolSpec{.kernel = {2, 2}, .stride = {2, 2}});
  v = g.add<nn::Pad>("pad", {v}, std::vector<int64_t>{0, 1, 0, 0}, std::vector<int64_t>{0, 0, 1, 0});
  v = g.add<nn::Slice>("slice", {v}, std::vector<nn::Slice::Range>{{.axis = 1, .start = 1}});
  v = g.add<nn::Transpose>("turn", {v}, std::vector<int>{0, 2, 1, 3});
  v = g.add<nn::Conv2d>("head", {v}, nn::Conv2d::Options{.in = 4, .out = 3, .bias = true});
  v = g.add<nn::GlobalAveragePool>("mean", {v});
  g.output(g.add<nn::Flatten>("flat", {v}));
  nn::initialize(g, {.seed = 4});
  return g;
}

// NAME.onnx, NAME.qdq.onnx, and the file that says what they give: x and both outputs with channels first, and how far apart quantized outputs may be.
class Cases {
 public:
  void add(nn::Graph g, int bits = 8) {
    const std::string name = text("case", count_++);
    const Tensor x = input_for(g, 2);
    const Tensor y = outputs_of(g, x)[0];
    io::save_onnx(g, folder_ / (name + ".onnx"));
    quant::QuantSim sim(g, integers(bits));
    calibrate(sim, x);
    io::save_onnx(g, folder_ / (name + ".qdq.onnx"), OnnxQuantization::qdq);
    const Tensor q = outputs_of(g, x)[0];
    const float step = sim.find(g.value(g.outputs()[0]).name)->grids()[0].scale;
    io::save_safetensors(folder_ / (name + ".safetensors"),
                         std::vector<io::NamedTensor>{{"x", channels_first(x)}, {"y", channels_first(y)}, {"q", channels_first(q)}, {"step", Tensor::from({1}, {step})}});
  }
  bool run(const char* python) const { return std::system(text(python, " ", DETENT_SOURCE_ROOT, "/tests/io/onnx_runtime.py ", folder_.path()).c_str()) == 0; }

 private:
  static Tensor channels_first(const Tensor& t) {
    constexpr int kPermutation[] = {0, 3, 1, 2};
    return t.rank() == 4 ? transpose(Var(t), kPermutation).dense() : t;
  }
  TempFolder folder_;
  int count_ = 0;
};

}  // namespace

TEST_CASE("onnx export: pools need no ceil_mode, and come back to the same bits") {
  for (int64_t extent = 5; extent <= 8; ++extent) {
    for (const PoolSpec& s : pools()) {
      CAPTURE(extent);
      CAPTURE(s.kernel[0]);
      CAPTURE(s.stride[0]);
      CAPTURE(s.padding.top);
      CAPTURE(s.padding.right);
      CAPTURE(s.ceil_mode);
      CAPTURE(s.count_include_pad);
      check_pool(one_layer<nn::AveragePool>(extent, extent + 1, s));
      if (!s.count_include_pad) check_pool(one_layer<nn::MaxPool>(extent, extent + 1, s));
    }
  }
}

TEST_CASE("onnx export: an average pool without padding does not count it") {
  nn::Graph g = one_layer<nn::AveragePool>(5, 5, PoolSpec{.kernel = {2, 2}, .stride = {2, 2}, .ceil_mode = true, .count_include_pad = true});
  CHECK_FALSE(spec_of(*parsed(g).find("layer")->module).count_include_pad);
}

TEST_CASE("onnx export: a dilated pool keeps its ceil_mode where padding would be as large as the kernel") {
  for (const int64_t extent : {7, 8, 9}) {
    nn::Graph g = one_layer<nn::MaxPool>(extent, 12, PoolSpec{.kernel = {2, 2}, .stride = {3, 3}, .dilation = {3, 3}, .ceil_mode = true}), back = parsed(g);
    CHECK(spec_of(*back.find("layer")->module).ceil_mode == (extent == 8));
    const Tensor x = input_for(g, 2);
    CHECK(same_bits(outputs_of(back, x)[0], outputs_of(g, x)[0]));
  }
}

TEST_CASE("onnx export: a Resize comes back with its size and modes, whatever the ratio, and without axes") {
  for (const auto& row : {std::pair{4, 8}, {8, 2}, {3, 5}, {3, 10}, {7, 31}, {10, 7}, {6, 10}, {49, 50}, {1, 9}, {9, 1}}) {
    const auto& from = row.first;
    const auto& to = row.second;
    for (const ResizeSpec& s : resizes(to, 6)) {
      CAPTURE(from);
      CAPTURE(to);
      nn::Graph g = one_layer<nn::Resize>(from, 3, s);
      CHECK(io::onnx_bytes(g).find("axes") == std::string::npos);
      nn::Graph back = parsed(g);
      const ResizeSpec& again = dynamic_cast<const nn::Resize&>(*back.find("layer")->module).options();
      CHECK(again.height == s.height);
      CHECK(again.width == s.width);
      CHECK(again.mode == s.mode);
      CHECK(again.coordinates == s.coordinates);
      CHECK(again.nearest_floor == s.nearest_floor);
    }
  }
}

TEST_CASE("onnx export: narrow grids come back behind operators that keep them, outputs included") {
  for (const int bits : {4, 8, 12}) {
    for (const char* config : {"integer", "tensorflow_default", "per_channel_default"}) {
      CAPTURE(bits);
      CAPTURE(config);
      nn::Graph g = moving_network();
      const Tensor x = input_for(g, 4);
      quant::QuantSim sim(g, integers(bits, config));
      calibrate(sim, x);
      io::OnnxNetwork back = io::parse_onnx(io::onnx_bytes(g, OnnxQuantization::qdq), "exported");
      quant::QuantSim sim_back(back.graph, integers(bits, config));
      sim_back.load_encodings(back.encodings, quant::QuantSim::Load::partial);
      CHECK(sim_back.unseen().empty());
      for (const char* name : {"relu", "pool", "pad", "slice", "head", "flat"}) {
        const quant::Encoding* e = back.encodings.find(name);
        CHECK((!e || e->bits == bits));
      }
      CHECK(same_bits(outputs_of(back.graph, x)[0], outputs_of(g, x)[0]));
    }
  }
}

TEST_CASE("onnx export: ONNX Runtime loads and computes the same at every optimization level") {
  const char* python = std::getenv("DETENT_PY");
  if (!python || !*python) {
    MESSAGE("SKIPPED: DETENT_PY names no Python with numpy, onnxruntime and safetensors");
    return;
  }
  Cases cases;
  for (const auto& row : {std::pair{4, 8}, {8, 4}, {3, 5}, {7, 31}, {11, 7}}) {
    const auto& from = row.first;
    const auto& to = row.second;
    for (const ResizeSpec& s : resizes(to, 9)) cases.add(between_layers<nn::Resize>(from, 6, s));
  }
  for (const int64_t extent : {5, 6}) {
    for (const PoolSpec& s : pools()) {
      cases.add(between_layers<nn::AveragePool>(extent, extent + 1, s));
      if (!s.count_include_pad) cases.add(between_layers<nn::MaxPool>(extent, extent + 1, s));
    }
  }
  for (const int64_t extent : {7, 8, 9}) cases.add(between_layers<nn::MaxPool>(extent, 12, PoolSpec{.kernel = {2, 2}, .stride = {3, 3}, .dilation = {3, 3}, .ceil_mode = true}));
  for (const int bits : {4, 8}) cases.add(moving_network(), bits);
  CHECK(cases.run(python));
}
