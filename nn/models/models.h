// Built-in networks. Value and parameter names are those of the weight files people have (torchvision, Keras, akamaster's CIFAR ResNets). Thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "detent/nn/graph.h"

namespace detent::nn::models {

struct ResNetOptions {
  int64_t classes = 1000;
  int64_t image_size = 224;
};

/// He et al. 2015 as Keras builds it: stride in the first 1x1, conv biases, BN eps 1.001e-5, ends in Softmax. 25,636,712 parameters with 1000 classes, statistics included.
Graph resnet50_v1(const ResNetOptions& options = {});
/// As torchvision builds it ("v1.5"): stride on the 3x3, no conv bias, logits. 25,557,032 parameters with 1000 classes (without statistics).
Graph resnet50(const ResNetOptions& options = {});
Graph resnet18(const ResNetOptions& options = {});
Graph resnet34(const ResNetOptions& options = {});
/// The CIFAR ResNet-20 with option-A shortcuts (subsampling, zero-padded channels): 269,722 parameters.
Graph resnet20_cifar10(const ResNetOptions& options = {.classes = 10, .image_size = 32});

/// Sandler et al. 2018 as torchvision builds it: 3,504,872 parameters with 1000 classes.
Graph mobilenet_v2(const ResNetOptions& options = {});
/// The same for images of 32: the stem and the second stage keep the size.
Graph mobilenet_v2_cifar10(const ResNetOptions& options = {.classes = 10, .image_size = 32});

/// "resnet50-v1", "resnet50-v1.5", "resnet20-cifar10", "mobilenet-v2"...; throws Error listing the known names.
Graph make(std::string_view arch, const ResNetOptions& options);
std::vector<std::string_view> names();
/// The input size and number of classes an architecture is published with.
ResNetOptions published(std::string_view arch);

}  // namespace detent::nn::models
