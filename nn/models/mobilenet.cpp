// MobileNetV2 (Sandler et al. 2018), with torchvision's names: "features.0.0.weight", "features.3.conv.1.0.weight", "classifier.1.weight".
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"

namespace detent::nn::models {
namespace {

struct MobileNet {
  Graph g;

  Value conv_bn(const std::string& conv, const std::string& bn, Value x, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t groups) {
    const int64_t p = kernel / 2;
    x = g.add<Conv2d>(conv, {x}, Conv2d::Options{.in = in, .out = out, .kernel_h = kernel, .kernel_w = kernel, .spec = {.stride = {stride, stride}, .padding = {p, p, p, p}, .groups = groups}});
    return g.add<BatchNorm>(bn, {x}, BatchNorm::Options{.channels = out});
  }
  Value conv_bn_relu6(const std::string& p, Value x, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t groups) {
    return g.add<Activation>(p + ".2", {conv_bn(p + ".0", p + ".1", x, in, out, kernel, stride, groups)}, clip_op(0.0f, 6.0f));
  }
  Value inverted_residual(const std::string& p, Value x, int64_t in, int64_t out, int64_t expand, int64_t stride) {
    const int64_t mid = in * expand;
    Value y = x;
    int at = 0;
    if (expand != 1) y = conv_bn_relu6(text(p, ".conv.", at++), y, in, mid, 1, 1, 1);
    y = conv_bn_relu6(text(p, ".conv.", at++), y, mid, mid, 3, stride, mid);
    y = conv_bn(text(p, ".conv.", at), text(p, ".conv.", at + 1), y, mid, out, 1, 1, 1);
    return stride == 1 && in == out ? g.add<Binary>(p + ".add", {x, y}, BinaryOp::add) : y;
  }
};

Graph mobilenet(const ResNetOptions& o, int64_t stem_stride, int64_t second_stride) {
  struct Stage {
    int64_t expand, channels, blocks, stride;
  };
  const Stage stages[] = {{1, 16, 1, 1}, {6, 24, 2, second_stride}, {6, 32, 3, 2}, {6, 64, 4, 2}, {6, 96, 3, 1}, {6, 160, 3, 2}, {6, 320, 1, 1}};
  MobileNet net;
  Value x = net.conv_bn_relu6("features.0", net.g.input("input", {o.image_size, o.image_size, 3}), 3, 32, 3, stem_stride, 1);
  int64_t in = 32;
  int index = 1;
  for (const Stage& s : stages) {
    for (int64_t b = 0; b < s.blocks; ++b) {
      x = net.inverted_residual(text("features.", index++), x, in, s.channels, s.expand, b == 0 ? s.stride : 1);
      in = s.channels;
    }
  }
  constexpr int64_t kLast = 1280;
  x = net.conv_bn_relu6(text("features.", index), x, in, kLast, 1, 1, 1);
  x = net.g.add<Flatten>("flatten", {net.g.add<GlobalAveragePool>("avgpool", {x})});
  net.g.output(net.g.add<Dense>("classifier.1", {x}, Dense::Options{.in = kLast, .out = o.classes}));
  return std::move(net.g);
}

}  // namespace

Graph mobilenet_v2(const ResNetOptions& o) { return mobilenet(o, 2, 2); }
Graph mobilenet_v2_cifar10(const ResNetOptions& o) { return mobilenet(o, 1, 1); }

}  // namespace detent::nn::models
