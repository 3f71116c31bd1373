// The smallest program that trains with Detent: two classes of 8x8 images told apart by which half is bright.
#include <detent/detent.h>

#include <cstdio>

using namespace detent;

int main() try {
  nn::Graph net;
  nn::Value v = net.input("image", {8, 8, 1});
  v = net.add<nn::Conv2d>("conv", {v}, nn::Conv2d::Options{.in = 1, .out = 8, .kernel_h = 3, .kernel_w = 3, .spec = {.padding = {1, 1, 1, 1}}});
  v = net.add<nn::BatchNorm>("bn", {v}, nn::BatchNorm::Options{.channels = 8});
  v = net.add<nn::Activation>("relu", {v}, nn::relu_op());
  v = net.add<nn::Flatten>("flatten", {v});
  net.output(net.add<nn::Dense>("classes", {v}, nn::Dense::Options{.in = 8 * 8 * 8, .out = 2}));
  nn::initialize(net, {.seed = 1});

  Rng rng(2);
  nn::Sgd sgd({.learning_rate = 0.05f, .momentum = 0.9f});
  float first = 0, loss = 0;
  for (int step = 0; step < 40; ++step) {
    Tensor images(Shape{16, 8, 8, 1});
    std::vector<int64_t> labels(16);
    for (int64_t i = 0; i < images.elements(); ++i) {
      labels[i / 64] = i / 64 % 2;
      images.data<float>()[i] = rng.normal() + ((i % 64 < 32) == (labels[i / 64] == 0) ? 1.0f : 0.0f);
    }
    Tape tape;
    Var y = softmax_cross_entropy(net(images), Tensor::from<int64_t>(Shape{16}, labels));
    tape.backward(y);
    sgd.step(net.parameters());
    loss = y.value().item();
    if (step == 0) first = loss;
  }
  std::printf("loss %.3f -> %.3f\n", first, loss);
  return loss < 0.5f * first ? 0 : 1;
} catch (const Error& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return 2;
}
