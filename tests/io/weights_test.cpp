// Weights into a Graph: names, prefixes, and every mismatch at once.
#include "detent/io/weights.h"

#include <limits>

#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "detent/tests/io/support.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::io;
using detent::test::message_of;
using detent::test::randomize;
using detent::test::same_bits;
using detent::test::small_network;
using detent::test::TempFolder;

TEST_CASE("weights_round_trip") {
  const TempFolder folder;
  nn::Graph a = small_network(), b = small_network();
  randomize(a, 1);
  randomize(b, 2);
  save_weights(a, folder / "w.safetensors");
  load_weights(b, folder / "w.safetensors");
  const auto sa = a.state(), sb = b.state();
  for (size_t i = 0; i < sa.size(); ++i) CHECK_MESSAGE(same_bits(*sa[i].second, *sb[i].second), sa[i].first);
  // In the file a convolution's weight is OIHW.
  const SafeTensors file = load_safetensors(folder / "w.safetensors");
  const Tensor* w = file.find("conv1.weight");
  REQUIRE(w);
  CHECK(w->shape() == Shape{8, 3, 3, 3});
  const Tensor& here = static_cast<nn::Conv2d&>(*a.find("conv1")->module).weight.value;
  CHECK(w->data<float>()[((5 * 3 + 2) * 3 + 1) * 3 + 0] == here.data<float>()[((5 * 3 + 1) * 3 + 0) * 3 + 2]);
}

TEST_CASE("weights_that_were_taken_stay_when_the_network_moves_on") {
  nn::Graph g = small_network();
  randomize(g, 1);
  const std::vector<NamedTensor> best = weights_of(g);
  std::map<std::string, Tensor> before;
  for (const auto& [name, t] : g.state()) {
    before[name] = t->clone();
    t->zero();
  }
  assign_weights(g, best, "best");
  for (const auto& entry : g.state()) CHECK_MESSAGE(same_bits(*entry.second, before.at(entry.first)), entry.first);
}

TEST_CASE("weights_with_a_prefix_and_counters") {
  nn::Graph a = small_network(), b = small_network();
  randomize(a, 1);
  for (const std::string prefix : {"", "module.", "model."}) {
    randomize(b, 2);
    std::vector<NamedTensor> tensors = weights_of(a);
    for (NamedTensor& t : tensors) t.name = prefix + t.name;
    tensors.push_back({prefix + "bn1.num_batches_tracked", Tensor::from<int64_t>(Shape{1}, std::vector<int64_t>{7})});
    assign_weights(b, tensors, "file");
    CHECK(same_bits(*a.state()[0].second, *b.state()[0].second));
  }
}

TEST_CASE("weights_errors_name_everything_and_change_nothing") {
  nn::Graph g = small_network();
  randomize(g, 1);
  std::vector<NamedTensor> tensors = weights_of(g);
  std::vector<Tensor> before;
  for (const auto& [name, t] : g.state()) before.push_back(t->clone());
  for (NamedTensor& t : tensors) {
    t.tensor = Tensor::zeros(t.tensor.shape());
    if (t.name == "bn1.bias") t.name = "bn1.shift";
    if (t.name == "fc.weight") t.tensor = Tensor::zeros(Shape{5, 8});
    if (t.name == "conv2.bias") t.tensor = Tensor::zeros(t.tensor.shape(), DType::i32);
  }
  const std::string m = message_of([&] { assign_weights(g, tensors, "some.safetensors"); });
  for (const char* part : {"some.safetensors", "bn1.bias: missing", "bn1.shift", "fc.weight: shape [5,8], expected [4,8]", "conv2.bias: type", "4 tensors"}) CHECK_MENTIONS(m, part);
  size_t i = 0;
  for (const auto& entry : g.state()) CHECK_MESSAGE(same_bits(*entry.second, before[i++]), entry.first);
}

TEST_CASE("weights written after folding fit the folded network, and the error says so") {
  nn::Graph trained = small_network(), plain = small_network(), folded = small_network();
  randomize(trained, 1);
  randomize(plain, 2);
  randomize(folded, 2);
  nn::fold_batch_norms(trained);
  const std::vector<NamedTensor> tensors = weights_of(trained);
  CHECK_MENTIONS(message_of([&] { assign_weights(plain, tensors, "net.safetensors"); }), "fold the network before it is loaded");
  nn::fold_batch_norms(folded);
  assign_weights(folded, tensors, "net.safetensors");
  const Tensor x = detent::test::random_tensor({2, 8, 8, 3}, 3);
  CHECK(same_bits(nn::infer(folded, x), nn::infer(trained, x)));
}

TEST_CASE("weights_files_that_are_none") {
  const TempFolder folder;
  nn::Graph g = small_network();
  test::spill(folder / "w.pth", std::string("PK\x03\x04", 4) + std::string(100, 'x'));
  const std::string pth = message_of([&] { load_weights(g, folder / "w.pth"); });
  CHECK_MENTIONS(pth, "w.pth");
  CHECK_MENTIONS(pth, "save_file");
  test::spill(folder / "old.pth", std::string("\x80\x02", 2) + std::string(100, 'x'));
  CHECK_MENTIONS(message_of([&] { load_weights(g, folder / "old.pth"); }), "never unpickled");
  test::spill(folder / "empty", "");
  CHECK_MENTIONS(message_of([&] { load_weights(g, folder / "empty"); }), "empty");
  test::spill(folder / "text", "hello, this is no weight file");
  CHECK_MENTIONS(message_of([&] { load_weights(g, folder / "text"); }), "text");
  CHECK_MENTIONS(message_of([&] { load_weights(g, folder / "absent"); }), "absent");
}

TEST_CASE("weights_that_are_not_finite_are_refused_by_name_and_change_nothing") {
  nn::Graph g = small_network();
  randomize(g, 1);
  std::vector<NamedTensor> tensors = weights_of(g);
  for (NamedTensor& t : tensors) {
    t.tensor = t.tensor.clone();
    t.tensor.fill(1.0f);
    if (t.name == "conv2.weight") t.tensor.data<float>()[3] = std::numeric_limits<float>::infinity();
  }
  const std::vector<float> before = g.parameters()[0]->value.to_vector<float>();
  const std::string m = message_of([&] { assign_weights(g, tensors, "some.safetensors"); });
  for (const char* part : {"some.safetensors: 1 of ", "values of \"conv2.weight\" are not finite"}) CHECK_MENTIONS(m, part);
  CHECK(g.parameters()[0]->value.to_vector<float>() == before);
}

TEST_CASE("only_weights_of_convolutions_change_their_layout") {
  CHECK_MENTIONS(message_of([] { oihw_to_ohwi(Tensor::zeros({2, 3})); }), "[2,3] is not a convolution's weight");
  CHECK_MENTIONS(message_of([] { ohwi_to_oihw(Tensor::zeros({2, 3})); }), "[2,3] is not a convolution's weight");
}
