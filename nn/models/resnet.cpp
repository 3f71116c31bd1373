#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"

namespace detent::nn::models {
namespace {

struct ConvShape {
  int64_t in, out, kernel, stride;
};

Conv2d::Options conv_options(const ConvShape& c, bool bias) {
  const int64_t p = (c.kernel - 1) / 2;
  return {.in = c.in, .out = c.out, .kernel_h = c.kernel, .kernel_w = c.kernel, .spec = {.stride = {c.stride, c.stride}, .padding = {p, p, p, p}}, .bias = bias};
}

PoolSpec max_pool_3x3_s2(int64_t pad) {
  PoolSpec spec;
  spec.kernel[0] = spec.kernel[1] = 3;
  spec.stride[0] = spec.stride[1] = 2;
  spec.padding = {pad, pad, pad, pad};
  return spec;
}

// torchvision's blocks: names "layer1.0.conv1", "layer1.0.downsample.0"...
struct TorchResNet {
  Graph g;

  Value conv_bn(const std::string& conv, const std::string& bn, Value x, const ConvShape& c) {
    x = g.add<Conv2d>(conv, {x}, conv_options(c, false));
    return g.add<BatchNorm>(bn, {x}, BatchNorm::Options{.channels = c.out});
  }
  Value relu(const std::string& name, Value x) { return g.add<Activation>(name, {x}, relu_op()); }

  Value bottleneck(const std::string& p, Value x, int64_t in, int64_t mid, int64_t stride) {
    const int64_t out = 4 * mid;
    Value y = relu(p + ".relu1", conv_bn(p + ".conv1", p + ".bn1", x, {in, mid, 1, 1}));
    y = relu(p + ".relu2", conv_bn(p + ".conv2", p + ".bn2", y, {mid, mid, 3, stride}));
    y = conv_bn(p + ".conv3", p + ".bn3", y, {mid, out, 1, 1});
    return finish(p, x, y, in, out, stride);
  }
  Value basic(const std::string& p, Value x, int64_t in, int64_t mid, int64_t stride) {
    Value y = relu(p + ".relu1", conv_bn(p + ".conv1", p + ".bn1", x, {in, mid, 3, stride}));
    y = conv_bn(p + ".conv2", p + ".bn2", y, {mid, mid, 3, 1});
    return finish(p, x, y, in, mid, stride);
  }
  Value finish(const std::string& p, Value x, Value y, int64_t in, int64_t out, int64_t stride) {
    if (stride != 1 || in != out) x = conv_bn(p + ".downsample.0", p + ".downsample.1", x, {in, out, 1, stride});
    return relu(p + ".relu", g.add<Binary>(p + ".add", {y, x}, BinaryOp::add));
  }
};

Graph torch_resnet(const ResNetOptions& o, const int (&blocks)[4], bool bottleneck) {
  TorchResNet net;
  Value x = net.g.input("input", {o.image_size, o.image_size, 3});
  x = net.relu("relu", net.conv_bn("conv1", "bn1", x, {3, 64, 7, 2}));
  x = net.g.add<MaxPool>("maxpool", {x}, max_pool_3x3_s2(1));
  int64_t in = 64;
  for (int stage = 0; stage < 4; ++stage) {
    const int64_t mid = int64_t{64} << stage;
    for (int b = 0; b < blocks[stage]; ++b) {
      const std::string p = text("layer", stage + 1, ".", b);
      const int64_t stride = stage > 0 && b == 0 ? 2 : 1;
      x = bottleneck ? net.bottleneck(p, x, in, mid, stride) : net.basic(p, x, in, mid, stride);
      in = bottleneck ? 4 * mid : mid;
    }
  }
  x = net.g.add<GlobalAveragePool>("avgpool", {x});
  x = net.g.add<Flatten>("flatten", {x});
  net.g.output(net.g.add<Dense>("fc", {x}, Dense::Options{.in = in, .out = o.classes}));
  return std::move(net.g);
}

}  // namespace

Graph resnet50(const ResNetOptions& o) { return torch_resnet(o, {3, 4, 6, 3}, true); }
Graph resnet34(const ResNetOptions& o) { return torch_resnet(o, {3, 4, 6, 3}, false); }
Graph resnet18(const ResNetOptions& o) { return torch_resnet(o, {2, 2, 2, 2}, false); }

Graph resnet50_v1(const ResNetOptions& o) {
  Graph g;
  const auto conv_bn = [&](const std::string& p, Value x, const ConvShape& c) {
    x = g.add<Conv2d>(p + "_conv", {x}, conv_options(c, true));
    return g.add<BatchNorm>(p + "_bn", {x}, BatchNorm::Options{.channels = c.out, .eps = 1.001e-5f, .momentum = 0.01f});
  };
  const auto relu = [&](const std::string& name, Value x) { return g.add<Activation>(name, {x}, relu_op()); };
  const auto pad = [&](const std::string& name, Value x, int64_t p) { return g.add<Pad>(name, {x}, std::vector<int64_t>{0, p, p, 0}, std::vector<int64_t>{0, p, p, 0}); };

  // The stem pads explicitly, as Keras does: the padding is a node of its own.
  Value x = pad("conv1_pad", g.input("input_1", {o.image_size, o.image_size, 3}), 3);
  Conv2d::Options stem = conv_options({3, 64, 7, 2}, true);
  stem.spec.padding = {};
  x = g.add<Conv2d>("conv1_conv", {x}, stem);
  x = g.add<BatchNorm>("conv1_bn", {x}, BatchNorm::Options{.channels = 64, .eps = 1.001e-5f, .momentum = 0.01f});
  x = relu("conv1_relu", x);
  x = g.add<MaxPool>("pool1_pool", {pad("pool1_pad", x, 1)}, max_pool_3x3_s2(0));
  int64_t in = 64;
  constexpr int kBlocks[4] = {3, 4, 6, 3};
  for (int stage = 0; stage < 4; ++stage) {
    const int64_t mid = int64_t{64} << stage, out = 4 * mid;
    for (int b = 1; b <= kBlocks[stage]; ++b) {
      const std::string p = text("conv", stage + 2, "_block", b);
      const int64_t stride = stage > 0 && b == 1 ? 2 : 1;
      const Value shortcut = b == 1 ? conv_bn(p + "_0", x, {in, out, 1, stride}) : x;
      Value y = relu(p + "_1_relu", conv_bn(p + "_1", x, {in, mid, 1, stride}));
      y = relu(p + "_2_relu", conv_bn(p + "_2", y, {mid, mid, 3, 1}));
      y = conv_bn(p + "_3", y, {mid, out, 1, 1});
      x = relu(p + "_out", g.add<Binary>(p + "_add", {shortcut, y}, BinaryOp::add));
      in = out;
    }
  }
  x = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("avg_pool", {x})});
  x = g.add<Dense>("predictions", {x}, Dense::Options{.in = in, .out = o.classes});
  g.output(g.add<Softmax>("predictions_softmax", {x}));
  return g;
}

Graph resnet20_cifar10(const ResNetOptions& o) {
  TorchResNet net;
  Graph& g = net.g;
  Value x = g.input("input", {o.image_size, o.image_size, 3});
  x = net.relu("relu", net.conv_bn("conv1", "bn1", x, {3, 16, 3, 1}));
  int64_t in = 16;
  for (int stage = 0; stage < 3; ++stage) {
    const int64_t width = int64_t{16} << stage;
    for (int b = 0; b < 3; ++b) {
      const std::string p = text("layer", stage + 1, ".", b);
      const int64_t stride = stage > 0 && b == 0 ? 2 : 1;
      Value y = net.relu(p + ".relu1", net.conv_bn(p + ".conv1", p + ".bn1", x, {in, width, 3, stride}));
      y = net.conv_bn(p + ".conv2", p + ".bn2", y, {width, width, 3, 1});
      if (stride != 1) {
        const int64_t side = (width - in) / 2;
        x = g.add<Slice>(p + ".shortcut.slice", {x}, std::vector<Slice::Range>{{.axis = 1, .step = 2}, {.axis = 2, .step = 2}});
        x = g.add<Pad>(p + ".shortcut.pad", {x}, std::vector<int64_t>{0, 0, 0, side}, std::vector<int64_t>{0, 0, 0, side});
      }
      x = net.relu(p + ".relu", g.add<Binary>(p + ".add", {y, x}, BinaryOp::add));
      in = width;
    }
  }
  x = g.add<Flatten>("flatten", {g.add<GlobalAveragePool>("avgpool", {x})});
  g.output(g.add<Dense>("linear", {x}, Dense::Options{.in = in, .out = o.classes}));
  return std::move(net.g);
}

namespace {
struct Entry {
  std::string_view name;
  Graph (*build)(const ResNetOptions&);
  ResNetOptions published;
};
constexpr ResNetOptions kImageNet{1000, 224};
constexpr ResNetOptions kCifar{10, 32};
constexpr Entry kModels[] = {
    {"resnet50-v1", resnet50_v1, kImageNet},
    {"resnet50-v1.5", resnet50, kImageNet},
    {"resnet34", resnet34, kImageNet},
    {"resnet18", resnet18, kImageNet},
    {"resnet20-cifar10", resnet20_cifar10, kCifar},
    {"mobilenet-v2", mobilenet_v2, kImageNet},
    {"mobilenet-v2-cifar10", mobilenet_v2_cifar10, kCifar},
};

const Entry& entry(std::string_view arch) {
  std::string known;
  for (const Entry& e : kModels) {
    if (e.name == arch) return e;
    known += (known.empty() ? "" : ", ") + std::string(e.name);
  }
  const std::vector<std::string_view> all = names();
  fail("architecture \"", arch, "\" is unknown", nearest_name(arch, all.data(), all.size()), "; known: ", known);
}
}  // namespace

std::vector<std::string_view> names() {
  std::vector<std::string_view> all;
  for (const Entry& e : kModels) all.push_back(e.name);
  return all;
}

Graph make(std::string_view arch, const ResNetOptions& options) { return entry(arch).build(options); }
ResNetOptions published(std::string_view arch) { return entry(arch).published; }

}  // namespace detent::nn::models
