#include "detent/io/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "detent/core/file.h"
#include "detent/io/keras_h5.h"
#include "detent/io/onnx/import.h"

namespace detent::io {
namespace {

Tensor permuted(const Tensor& w, int64_t outer, int64_t a, int64_t b, const Shape& shape) {
  const std::vector<float> in = w.to_vector<float>();
  std::vector<float> out(in.size());
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < a; ++i) {
      for (int64_t j = 0; j < b; ++j) out[static_cast<size_t>((o * b + j) * a + i)] = in[static_cast<size_t>((o * a + i) * b + j)];
    }
  }
  return Tensor::from<float>(shape, out).to(w.device());
}

// "module.conv1.weight" and "conv1.weight" name the same tensor when every name in the file carries the prefix.
std::string common_prefix(std::span<const NamedTensor> tensors) {
  for (const std::string_view prefix : {"module.", "model.", "backbone."}) {
    if (!tensors.empty() && std::all_of(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return t.name.starts_with(prefix); })) return std::string(prefix);
  }
  return {};
}

// Hugging Face's ResNets ("resnet.encoder.stages.0.layers.1.layer.2.convolution.weight") under torchvision's names ("layer1.1.conv3.weight").
std::string torchvision_name(const std::string& name) {
  const auto replaced = [](std::string s, std::string_view from, std::string_view to) {
    const size_t at = s.find(from);
    return at == std::string::npos ? s : s.replace(at, from.size(), to);
  };
  if (name.starts_with("resnet.embedder.embedder.")) return replaced(replaced(name.substr(25), "convolution.", "conv1."), "normalization.", "bn1.");
  if (name.starts_with("classifier.1.")) return "fc." + name.substr(13);
  constexpr std::string_view kStages = "resnet.encoder.stages.";
  if (!name.starts_with(kStages) || name[kStages.size()] < '0' || name[kStages.size()] > '8') return name;
  std::string n = text("layer", name[kStages.size()] - '0' + 1, name.substr(kStages.size() + 1));
  n = replaced(replaced(replaced(n, ".layers.", "."), ".shortcut.convolution.", ".downsample.0."), ".shortcut.normalization.", ".downsample.1.");
  const size_t at = n.find(".layer.");
  if (at == std::string::npos || at + 8 >= n.size() || n[at + 7] < '0' || n[at + 7] > '8') return n;
  const std::string index(1, static_cast<char>(n[at + 7] + 1));
  n.erase(at, 8);
  return replaced(replaced(n, ".convolution.", ".conv" + index + "."), ".normalization.", ".bn" + index + ".");
}

Shape file_shape(const Shape& s) { return s.rank() == 4 ? Shape{s[0], s[3], s[1], s[2]} : s; }

void append_some(std::string& list, int& count, const std::string& line) {
  constexpr int kShown = 40;
  if (++count <= kShown) list += "\n  " + line;
}

}  // namespace

Tensor ohwi_to_oihw(const Tensor& w) {
  DETENT_CHECK(w.rank() == 4, "weights: ", w.shape(), " is not a convolution's weight");
  return permuted(w, w.dim(0), w.dim(1) * w.dim(2), w.dim(3), {w.dim(0), w.dim(3), w.dim(1), w.dim(2)});
}

Tensor oihw_to_ohwi(const Tensor& w) {
  DETENT_CHECK(w.rank() == 4, "weights: ", w.shape(), " is not a convolution's weight");
  return permuted(w, w.dim(0), w.dim(1), w.dim(2) * w.dim(3), {w.dim(0), w.dim(2), w.dim(3), w.dim(1)});
}

void assign_weights(nn::Graph& graph, std::span<const NamedTensor> tensors, const std::string& source) {
  const std::string prefix = common_prefix(tensors);
  const bool hugging_face = std::any_of(tensors.begin(), tensors.end(), [](const NamedTensor& t) { return t.name.starts_with("resnet.embedder.embedder."); });
  std::map<std::string, const Tensor*> given;
  for (const NamedTensor& t : tensors) {
    if (!t.name.ends_with("num_batches_tracked")) given[hugging_face ? torchvision_name(t.name) : t.name.substr(prefix.size())] = &t.tensor;
  }
  std::string wrong;
  int count = 0;
  std::vector<std::tuple<std::string, Tensor*, const Tensor*>> fitting;
  const auto state = graph.state();
  for (const auto& [name, target] : state) {
    const auto it = given.find(name);
    if (it == given.end()) {
      append_some(wrong, count, text(name, ": missing, expected ", file_shape(target->shape())));
      continue;
    }
    if (!(it->second->shape() == file_shape(target->shape()))) {
      append_some(wrong, count, text(name, ": shape ", it->second->shape(), ", expected ", file_shape(target->shape())));
    } else if (it->second->dtype() != DType::f32) {
      append_some(wrong, count, text(name, ": type ", to_string(it->second->dtype()), ", expected f32"));
    }
    fitting.emplace_back(name, target, it->second);
    given.erase(it);
  }
  for (const auto& [name, tensor] : given) append_some(wrong, count, text(name, ": ", tensor->shape(), " is not in this network"));
  const auto is_statistic = [](std::string_view name) { return name.ends_with(".running_var"); };
  const bool folded = !fitting.empty() && std::any_of(state.begin(), state.end(), [&](const auto& s) { return is_statistic(s.first); }) &&
                      std::none_of(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return is_statistic(t.name); });
  DETENT_CHECK(wrong.empty(), "weights ", source, ": ", count, " tensors do not fit; ",
               folded ? "the file has no batch norms, as one that was written after folding: fold the network before it is loaded, or take the .onnx file written beside it (--arch)"
                      : "is it the same architecture (--arch)?", wrong, count > 40 ? "\n  ..." : "");
  for (const auto& [name, target, value] : fitting) {
    const Tensor& t = *value;
    const auto bad = static_cast<int64_t>(std::count_if(t.data<float>(), t.data<float>() + t.elements(), [](float v) { return !std::isfinite(v); }));
    DETENT_CHECK(bad == 0, "weights ", source, ": ", bad, " of ", t.elements(), " values of \"", name, "\" are not finite; the training that wrote them diverged, use an earlier file");
  }
  // All or none: what may lack memory comes before the first change.
  std::vector<Tensor> ready;
  for (const auto& [name, target, value] : fitting) ready.push_back((value->rank() == 4 ? oihw_to_ohwi(*value) : *value).to(target->device()));
  for (size_t i = 0; i < fitting.size(); ++i) std::get<1>(fitting[i])->copy_from(ready[i]);
}

// Initializers by name; those that are no weights (bounds of slices and clips) are left out.
static void load_onnx_weights(nn::Graph& graph, const std::string& path) {
  std::set<std::string> wanted;
  for (const auto& [name, tensor] : graph.state()) wanted.insert(name);
  std::vector<NamedTensor> weights;
  for (NamedTensor& t : onnx_initializers(path)) {
    if (wanted.count(t.name)) weights.push_back(std::move(t));
  }
  assign_weights(graph, weights, path);
}

void load_weights(nn::Graph& graph, const std::string& path) {
  uint8_t head[9] = {};
  {
    const RandomAccessFile file(path);
    file.read_some(0, head, sizeof head);
  }
  const bool zip = std::memcmp(head, "PK\x03\x04", 4) == 0, pickle = head[0] == 0x80 && head[1] <= 5;
  DETENT_CHECK(!zip && !pickle, "weights ", path, ": a pickled PyTorch file, which is never unpickled; convert it: python -c \"import torch,safetensors.torch as s; s.save_file(torch.load('",
               path, "', weights_only=True), 'weights.safetensors')\"");
  if (is_onnx({reinterpret_cast<const char*>(head), sizeof head})) return load_onnx_weights(graph, path);
  if (is_hdf5({reinterpret_cast<const char*>(head), sizeof head})) return assign_weights(graph, load_keras_h5(path), path);
  DETENT_CHECK(is_safetensors(head), "weights ", path, ": none of the known files: safetensors, ONNX, Keras .h5");
  const SafeTensors file = load_safetensors(path, TensorTypes::f32);
  assign_weights(graph, file.tensors, path);
}

std::vector<NamedTensor> weights_of(nn::Graph& graph) {
  std::vector<NamedTensor> all;
  for (const auto& [name, tensor] : graph.state()) all.push_back({name, tensor->rank() == 4 ? ohwi_to_oihw(*tensor) : tensor->clone()});
  return all;
}

std::string weights_bytes(nn::Graph& graph) { return safetensors_bytes(weights_of(graph), {{"format", "pt"}}); }

void save_weights(nn::Graph& graph, const std::string& path) { write_file_atomically(path, std::string_view(weights_bytes(graph))); }

}  // namespace detent::io
