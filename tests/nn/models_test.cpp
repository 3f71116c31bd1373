// Built-in networks: sizes, names, and values against PyTorch (tests/golden/make_nn.py).
#include <fstream>
#include <set>

#include "detent/io/safetensors.h"
#include "detent/tests/nn/support.h"
#include "detent/tests/support/test_data.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::test;

namespace {

int64_t state_elements(Graph& g) {
  int64_t n = 0;
  for (const auto& [name, t] : g.state()) n += t->elements();
  return n;
}

std::string file_shape(const Tensor& t) {
  const Shape& s = t.shape();
  return s.rank() == 4 ? text(s[0], 'x', s[3], 'x', s[1], 'x', s[2]) : s.rank() == 2 ? text(s[0], 'x', s[1]) : text(s[0]);
}

// As make_nn.py's draw(): SplitMix64 of the FNV-1a hash of the name plus the position.
std::vector<float> formula(const std::string& name, int64_t n) {
  uint64_t h = 1469598103934665603ull;
  for (const char c : name) h = (h ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  std::vector<float> v;
  for (int64_t i = 1; i <= n; ++i) {
    uint64_t z = h + static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    v.push_back(static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24f - 0.5f);
  }
  return v;
}

void fill_by_formula(Graph& g) {
  for (const auto& [name, t] : g.state()) {
    std::vector<float> v = formula(name, t->elements());
    const bool norm = name.find("bn") != std::string::npos;
    for (float& x : v) {
      if (name.ends_with("running_var")) x += 1.0f;
      else if (norm && name.ends_with("weight")) x = x * 0.5f + 1.0f;
      else if (t->rank() == 4) x *= 0.25f;
    }
    if (t->rank() == 4) {  // the formula's position is that of OIHW
      const Shape& s = t->shape();
      std::vector<float> w(v.size());
      size_t at = 0;
      for (int64_t k = 0; k < s[0]; ++k)
        for (int64_t c = 0; c < s[3]; ++c)
          for (int64_t r = 0; r < s[1]; ++r)
            for (int64_t q = 0; q < s[2]; ++q) w[static_cast<size_t>(((k * s[1] + r) * s[2] + q) * s[3] + c)] = v[at++];
      v = w;
    }
    t->copy_from(Tensor::from<float>(t->shape(), v));
  }
}

}  // namespace

TEST_CASE("model_parameter_counts") {
  Graph v1 = models::resnet50_v1();
  CHECK(v1.parameter_count() == 25'583'592);  // Keras: trainable params
  CHECK(state_elements(v1) == 25'636'712);    // Keras: total params
  CHECK(models::resnet50().parameter_count() == 25'557'032);
  CHECK(models::resnet18().parameter_count() == 11'689'512);
  CHECK(models::resnet34().parameter_count() == 21'797'672);
  CHECK(models::resnet20_cifar10().parameter_count() == 269'722);
}

TEST_CASE("model_names_are_torchvisions") {
  std::ifstream list(golden("torchvision_names.txt"));
  std::map<std::string, std::set<std::string>> wanted;
  for (std::string arch, name, shape; list >> arch >> name >> shape;) wanted[arch].insert(name + " " + shape);
  REQUIRE(wanted.size() == 3);
  for (const auto& row : wanted) {
    const auto& arch = row.first;
    const auto& names = row.second;
    Graph g = arch == "resnet50" ? models::resnet50() : arch == "resnet34" ? models::resnet34() : models::resnet18();
    std::set<std::string> have;
    for (const auto& [name, t] : g.state()) have.insert(name + " " + file_shape(*t));
    CHECK_MESSAGE(have == names, arch);
  }
}

TEST_CASE("model_names_of_keras") {
  Graph g = models::resnet50_v1();
  for (const char* name : {"conv1_conv", "conv1_bn", "pool1_pad", "pool1_pool", "conv2_block1_0_conv", "conv2_block1_3_bn", "conv5_block3_out", "avg_pool", "predictions"}) CHECK_MESSAGE(g.find(name), name);
  CHECK(g.find("conv2_block2_0_conv") == nullptr);
  // v1: the stride is in the first 1x1.
  CHECK(static_cast<Conv2d&>(*g.find("conv3_block1_1_conv")->module).options().spec.stride[0] == 2);
  CHECK(static_cast<Conv2d&>(*g.find("conv3_block1_2_conv")->module).options().spec.stride[0] == 1);
  CHECK(static_cast<BatchNorm&>(*g.find("conv1_bn")->module).options().eps == 1.001e-5f);
  CHECK(g.value(g.outputs()[0]).name == "predictions_softmax");
}

TEST_CASE("resnet20_names_are_the_weight_files") {
  DETENT_DATA_FILE(path, "models/resnet20-cifar10.safetensors");
  std::set<std::string> wanted, have;
  for (const auto& t : io::load_safetensors(path).tensors) wanted.insert(t.name);
  Graph g = models::resnet20_cifar10();
  for (const auto& [name, t] : g.state()) have.insert(name);
  CHECK(have == wanted);
}

TEST_CASE("resnet20_logits_match_pytorch") {
  const io::SafeTensors file = io::load_safetensors(golden("nn.safetensors"));
  Graph g = models::resnet20_cifar10();
  fill_by_formula(g);
  for (const auto execution : {Graph::Execution::planned, Graph::Execution::node_by_node}) {
    g.set_execution(execution);
    const double d = relative_difference(infer(g, *file.find("images")), *file.find("logits"));
    INFO("relative difference ", d);
    CHECK(d < 2e-5);  // 20 layers of float sums of up to 576 terms
  }
}

TEST_CASE("models_by_name") {
  for (const std::string_view name : models::names()) {
    const models::ResNetOptions o = models::published(name);
    Graph g = models::make(name, {.classes = 7, .image_size = 32});
    CHECK(g.value(g.scores()).shape == Shape{1, 7});
    CHECK((o.image_size == 224 || o.image_size == 32));
  }
  const std::string m = message_of([] { models::make("resnet50-v2", {}); });
  CHECK_MENTIONS(m, "resnet50-v2");
  CHECK_MENTIONS(m, "resnet50-v1.5");
}

TEST_CASE("initialize_depends_on_names_and_seed_only") {
  Graph a = models::resnet20_cifar10(), b = models::resnet20_cifar10(), c = models::resnet20_cifar10();
  initialize(a, {.seed = 5});
  initialize(b, {.seed = 5});
  initialize(c, {.seed = 6});
  int differ = 0;
  const auto sa = a.state(), sb = b.state(), sc = c.state();
  for (size_t i = 0; i < sa.size(); ++i) {
    CHECK_MESSAGE(same_bits(*sa[i].second, *sb[i].second), sa[i].first);
    differ += !same_bits(*sa[i].second, *sc[i].second);
  }
  CHECK(differ == 20);  // 19 convolutions and the dense layer
  // The same layer in another network, at another place, starts the same.
  Graph d;
  Value x = d.input("image", {8, 8, 64});
  x = d.add<Conv2d>("before", {x}, Conv2d::Options{.in = 64, .out = 3});
  x = d.add<BatchNorm>("on_conv", {x}, BatchNorm::Options{.channels = 3});
  d.output(d.add<Conv2d>("conv1", {x}, static_cast<Conv2d&>(*a.find("conv1")->module).options()));
  initialize(d, {.seed = 5});
  CHECK(same_bits(static_cast<Conv2d&>(*d.find("conv1")->module).weight.value, static_cast<Conv2d&>(*a.find("conv1")->module).weight.value));
}

TEST_CASE("initialize_scales") {
  Graph g = models::resnet18({.classes = 1000, .image_size = 32});
  initialize(g, {.seed = 1, .zero_last_norm_scale = true});
  const Tensor& w = static_cast<Conv2d&>(*g.find("layer4.1.conv2")->module).weight.value;
  double sum = 0.0, square = 0.0;
  for (const float v : w.to_vector<float>()) sum += static_cast<double>(v), square += static_cast<double>(v) * static_cast<double>(v);
  const auto n = static_cast<double>(w.elements());
  const double sigma = std::sqrt(2.0 / (512.0 * 9.0));
  CHECK(std::abs(sum / n) < 5.0 * sigma / std::sqrt(n));
  CHECK(std::sqrt(square / n) == doctest::Approx(sigma).epsilon(5.0 / std::sqrt(2.0 * n)));
  const auto gamma = [&](const char* name) { return static_cast<BatchNorm&>(*g.find(name)->module).weight.value.data<float>()[0]; };
  CHECK(gamma("layer2.0.bn2") == 0.0f);
  CHECK(gamma("layer2.0.bn1") == 1.0f);
  CHECK(gamma("layer2.0.downsample.1") == 1.0f);
  // A batch norm on the input itself has no producer.
  Graph first;
  first.output(first.add<BatchNorm>("norm", {first.input("x", {4, 4, 3})}, BatchNorm::Options{.channels = 3}));
  initialize(first, {});
  CHECK(static_cast<BatchNorm&>(*first.nodes()[0].module).weight.value.data<float>()[2] == 1.0f);
}
