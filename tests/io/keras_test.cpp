// Keras .h5 weights as h5py wrote them (tests/golden/make_keras.py), against NumPy's transposition; with DETENT_PY (a Python with h5py and torch) the whole network too.
#include <doctest/doctest.h>

#include <cstdlib>

#include "detent/io/keras_h5.h"
#include "detent/io/safetensors.h"
#include "detent/io/weights.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/tests/io/onnx_support.h"
#include "detent/tests/io/support.h"
#include "detent/tests/support/test_data.h"

using namespace detent;
using namespace detent::test;

TEST_CASE("keras: both families of names, and Keras 3's whole models, give the same tensors, in PyTorch's layout") {
  const io::SafeTensors expected = io::load_safetensors(golden("keras/expected.safetensors"));
  for (const char* name : {"keras/new.h5", "keras/old.h5", "keras/keras3_model.h5"}) {
    CAPTURE(name);
    const std::vector<io::NamedTensor> tensors = io::load_keras_h5(golden(name));
    CHECK(tensors.size() == expected.tensors.size());
    for (const io::NamedTensor& t : tensors) {
      CAPTURE(t.name);
      const Tensor* want = expected.find(t.name);
      REQUIRE(want);
      CHECK(same_bits(t.tensor, *want));
    }
  }
}

TEST_CASE("keras: every layer of the network has its old name") {
  int changed = 0;
  const nn::Graph g = nn::models::make("resnet50-v1", {.classes = 10, .image_size = 32});
  const auto exists = [&](const std::string& n) { return g.find(n) != nullptr; };
  for (int stage = 2; stage <= 5; ++stage) {
    for (char b = 'a'; b < 'a' + (stage == 2 || stage == 5 ? 3 : stage == 3 ? 4 : 6); ++b) {
      for (const char* branch : {"1", "2a", "2b", "2c"}) {
        if (b != 'a' && std::string(branch) == "1") continue;
        for (const char* kind : {"res", "bn"}) {
          const std::string old = std::string(kind) + static_cast<char>('0' + stage) + b + "_branch" + branch;
          CAPTURE(old);
          CHECK(exists(io::keras_layer_name(old)));
          ++changed;
        }
      }
    }
  }
  CHECK(changed == 104);
  CHECK(exists(io::keras_layer_name("conv1")));
  CHECK(exists(io::keras_layer_name("bn_conv1")));
  CHECK(exists(io::keras_layer_name("fc1000")));
  for (const char* other : {"res", "bn2", "res2a_branch3", "res9a_branch1", "residual_branch_a", "conv2_block1_1_conv"}) CHECK(io::keras_layer_name(other) == other);
}

TEST_CASE("keras: links, foreign storage and sizes that are not there are refused") {
  CHECK_CONTAINS(error_of([] { io::load_keras_h5(golden("keras/external.h5")); }), "a link to another file");
  CHECK_CONTAINS(error_of([] { io::load_keras_h5(golden("keras/virtual.h5")); }), "virtual");
  CHECK_CONTAINS(error_of([] { io::load_keras_h5(golden("keras/outside.h5")); }), "another file");
  CHECK_CONTAINS(error_of([] { io::load_keras_h5(golden("keras/huge.h5")); }), "declares");
  CHECK_CONTAINS(error_of([] { io::load_keras_h5(golden("keras/keras3.weights.h5")); }), "model.save(");
}

TEST_CASE("keras: truncated and damaged files give an error or tensors, never a crash") {
  const TempFolder folder;
  const std::string good = slurp(golden("keras/new.h5")), path = folder / "bad.h5";
  for (size_t percent = 0; percent < 100; percent += 4) {
    spill(path, good.substr(0, good.size() * percent / 100));
    CHECK_FALSE(error_of([&] { io::load_keras_h5(path); }).empty());
  }
}

TEST_CASE("keras: the whole ResNet-50, both families, as PyTorch computes it") {
  const char* python = std::getenv("DETENT_PY");
  if (!python || !*python) {
    MESSAGE("SKIPPED: DETENT_PY names no Python with h5py and torch");
    return;
  }
  const TempFolder folder;
  REQUIRE(std::system((std::string(python) + " " + golden("make_keras.py") + " " + folder.path()).c_str()) == 0);
  const io::SafeTensors forward = io::load_safetensors(folder / "forward.safetensors");
  for (const char* name : {"new.h5", "old.h5"}) {
    CAPTURE(name);
    nn::Graph g = nn::models::make("resnet50-v1", {.classes = 1000, .image_size = 64});
    io::load_weights(g, folder / name);
    const Tensor logits = g(*forward.find("x")).dense();
    double scale = 0.0;
    for (const float v : forward.find("y")->to_vector<float>()) scale = std::max(scale, static_cast<double>(std::abs(v)));
    CHECK(largest_difference(logits, *forward.find("y")) < 1e-4 * scale);
  }
}

TEST_CASE("models: MobileNetV2 has torchvision's parameters") {
  nn::Graph g = nn::models::make("mobilenet-v2", {.classes = 1000, .image_size = 32});
  CHECK(g.parameter_count() == 3504872);
  CHECK(g.state().size() == 262);
  for (const char* name : {"features.0.0", "features.1.conv.0.0", "features.1.conv.1", "features.1.conv.2", "features.2.conv.0.0", "features.2.conv.3", "features.17.conv.2", "features.18.1", "classifier.1"}) {
    CAPTURE(name);
    CHECK(g.find(name));
  }
  nn::Graph small = nn::models::make("mobilenet-v2-cifar10", nn::models::published("mobilenet-v2-cifar10"));
  CHECK(small.value(small.find("features.18.2")->output).shape == Shape{1, 4, 4, 1280});
}

TEST_CASE("weights: Hugging Face's names of ResNets are understood") {
  nn::Graph g = nn::models::make("resnet18", {.classes = 10, .image_size = 32}), h = nn::models::make("resnet18", {.classes = 10, .image_size = 32});
  nn::initialize(g, {.seed = 9});
  std::vector<io::NamedTensor> renamed;
  for (io::NamedTensor t : io::weights_of(g)) {
    // layer2.0.conv1.weight -> resnet.encoder.stages.1.layers.0.layer.0.convolution.weight
    const std::string last = t.name.substr(t.name.rfind('.'));
    const bool stem = t.name.starts_with("conv1.") || t.name.starts_with("bn1.");
    if (t.name.starts_with("fc.")) {
      t.name = "classifier.1" + last;
    } else if (stem) {
      t.name = std::string("resnet.embedder.embedder.") + (t.name[0] == 'c' ? "convolution" : "normalization") + last;
    } else {
      const std::string block = std::string("resnet.encoder.stages.") + static_cast<char>(t.name[5] - 1) + ".layers." + t.name[7];
      const std::string rest = t.name.substr(9);
      if (rest.starts_with("downsample.")) {
        t.name = block + ".shortcut." + (rest[11] == '0' ? "convolution" : "normalization") + last;
      } else {
        const bool conv = rest[0] == 'c';
        t.name = block + ".layer." + static_cast<char>(rest[conv ? 4 : 2] - 1) + (conv ? ".convolution" : ".normalization") + last;
      }
    }
    renamed.push_back(t);
  }
  io::assign_weights(h, renamed, "test");
  const Tensor x = input_for(g, 1);
  CHECK(same_bits(outputs_of(h, x)[0], outputs_of(g, x)[0]));
}
