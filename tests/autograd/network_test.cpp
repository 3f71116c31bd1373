// A small network's loss and every gradient against PyTorch (tests/golden/make_small_network.py).
#include "detent/io/safetensors.h"
#include "detent/tests/support/gradcheck.h"
#include "detent/tests/support/test_data.h"

using namespace detent;
using namespace detent::test;

namespace {

Array array_of(const Tensor& t) {
  const std::vector<float> f = t.to_vector<float>();
  Array a(t.shape());
  a.v.assign(f.begin(), f.end());
  return a;
}

struct Network {
  std::map<std::string, Leaf> leaves;
  Tensor mean = Tensor::zeros(Shape{6}), var = Tensor::full(Shape{6}, 1.0f), labels;

  explicit Network(const io::SafeTensors& golden) : labels(*golden.find("labels")) {
    for (const char* name : {"x", "conv1.w", "conv1.b", "bn.gamma", "bn.beta", "conv2.w", "dense.w", "dense.b"}) leaves[name].value = *golden.find(name);
  }
  Var leaf(const char* name) { return Tape::leaf(leaves.at(name)); }
  Var logits() {
    const Var b1 = leaf("conv1.b"), b2 = leaf("dense.b");
    Var y = conv2d(leaf("x"), leaf("conv1.w"), &b1, {.stride = {2, 2}, .padding = {1, 1, 1, 1}});
    y = relu(batch_norm(y, leaf("bn.gamma"), leaf("bn.beta"), mean, var, {}, true));
    y = max_pool(y, {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1, 1, 1}});
    y = relu(add(y, conv2d(y, leaf("conv2.w"), nullptr, {.padding = {1, 1, 1, 1}, .groups = 2})));
    return dense(flatten(global_average_pool(y)), leaf("dense.w"), &b2);
  }
};

}  // namespace

TEST_CASE("network_gradients_match_pytorch") {
  const io::SafeTensors golden = io::load_safetensors(test::golden("small_network.safetensors"));
  Network net(golden);
  Tape tape;
  const Var logits = net.logits();
  const Var loss = softmax_cross_entropy(logits, net.labels, 0.1f);
  tape.backward(loss);
  // Six layers, sums of up to 90 terms, magnified by batch norm over 90 values.
  const double relative = 1.2e-7 * 90;
  const auto close = [&](const char* what, const Tensor& got, const char* name) {
    const Array wanted = array_of(*golden.find(name));
    check_close(what, got, wanted, relative * largest(wanted.v));
  };
  close("logits", logits.dense(), "logits");
  close("loss", loss.dense(), "loss");
  close("running_mean", net.mean, "running_mean");
  close("running_var", net.var, "running_var");
  for (const auto& [name, leaf] : net.leaves) {
    if (name == "conv1.b") continue;
    close(name.c_str(), leaf.grad, ("grad." + name).c_str());
  }
  // Batch norm takes the bias out again: its gradient is 0 but for rounding of sums of 90 gradients.
  for (const float g : net.leaves.at("conv1.b").grad.to_vector<float>()) CHECK(std::abs(g) <= relative);
}

TEST_CASE("training_repeats_to_the_bit") {
  const io::SafeTensors golden = io::load_safetensors(test::golden("small_network.safetensors"));
  std::vector<float> first[2];
  for (auto& bits : first) {
    Network net(golden);
    Tape tape;
    tape.backward(softmax_cross_entropy(net.logits(), net.labels));
    bits = net.leaves.at("conv1.w").grad.to_vector<float>();
  }
  CHECK(first[0] == first[1]);
}
