// Keras' layer names and array layouts in the data sets of an HDF5 file.
#include "detent/io/keras_h5.h"

#include <algorithm>
#include <utility>

#include "detent/core/file.h"
#include "detent/io/hdf5.h"

namespace detent::io {
namespace {

template <size_t R>
Tensor permuted(const std::vector<int64_t>& dims, const std::vector<float>& v, const int (&perm)[R]) {
  std::vector<int64_t> stride(R, 1), to, step;
  for (size_t i = R; i-- > 1;) stride[i - 1] = stride[i] * dims[i];
  for (const int p : perm) {
    to.push_back(dims[static_cast<size_t>(p)]);
    step.push_back(stride[static_cast<size_t>(p)]);
  }
  std::vector<float> out(v.size());
  std::vector<int64_t> at(R, 0);
  for (float& o : out) {
    int64_t from = 0;
    for (size_t i = 0; i < R; ++i) from += at[i] * step[i];
    o = v[static_cast<size_t>(from)];
    for (size_t i = R; i-- > 0;) {
      if (++at[i] < to[i]) break;
      at[i] = 0;
    }
  }
  return Tensor::from<float>(Shape(std::span<const int64_t>(to)), out);
}

void keep(const Hdf5Array& a, const std::string& file, std::vector<NamedTensor>& tensors) {
  static constexpr std::pair<std::string_view, std::string_view> kKinds[] = {{"kernel", "weight"}, {"bias", "bias"}, {"gamma", "weight"}, {"beta", "bias"}, {"moving_mean", "running_mean"}, {"moving_variance", "running_var"}};
  // "/conv1/conv1/kernel:0": the group above names the layer.
  const size_t last = a.path.rfind('/'), above = last == 0 ? 0 : a.path.rfind('/', last - 1) + 1;
  const std::string layer = a.path.substr(above, last - above), kind = a.path.substr(last + 1, a.path.find(':', last) - last - 1);
  const auto found = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const auto& k) { return k.first == kind; });
  if (found == std::end(kKinds)) return;  // an optimizer's slot
  const std::string name = keras_layer_name(layer) + "." + std::string(found->second);
  DETENT_CHECK(std::none_of(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return t.name == name; }), "weights ", file, ": ", a.path, ": a second array for ", name);
  constexpr int kToOihw[] = {3, 2, 0, 1}, kToOutIn[] = {1, 0};
  if (kind == "kernel" && a.dims.size() == 4) {
    tensors.push_back({name, permuted(a.dims, a.values, kToOihw)});
  } else if (kind == "kernel" && a.dims.size() == 2) {
    tensors.push_back({name, permuted(a.dims, a.values, kToOutIn)});
  } else {
    tensors.push_back({name, Tensor::from<float>(Shape(std::span<const int64_t>(a.dims)), a.values)});
  }
}

}  // namespace

bool is_hdf5(std::string_view b) { return b.starts_with("\x89HDF\r\n\x1a\n"); }

std::vector<NamedTensor> parse_keras_h5(std::string_view bytes, const std::string& name) {
  DETENT_CHECK(is_hdf5(bytes), "weights ", name, ": not an HDF5 file");
  std::vector<NamedTensor> tensors;
  read_hdf5(bytes, name, [&](const Hdf5Array& a) {
    DETENT_CHECK(a.path.find("/vars/") == std::string::npos, "weights ", name, ": Keras 3's .weights.h5 (", a.path.substr(0, 512),
                 ") names layers by class and number; load it in Keras and save the whole model: model.save(\"model.h5\")");
    keep(a, name, tensors);
  });
  DETENT_CHECK(!tensors.empty(), "weights ", name, ": an HDF5 file without Keras layers (kernel:0, bias:0, gamma:0 ...)");
  return tensors;
}

std::vector<NamedTensor> load_keras_h5(const std::string& path) { return parse_keras_h5(read_file(path), path); }

// The two families of layer names in keras.applications' ResNet50.
std::string keras_layer_name(const std::string& name) {
  if (name == "conv1") return "conv1_conv";
  if (name == "bn_conv1") return "conv1_bn";
  if (name == "fc1000" || name == "probs") return "predictions";
  // res4c_branch2b, bn4c_branch1
  const bool conv = name.starts_with("res"), norm = name.starts_with("bn");
  if (!conv && !norm) return name;
  const std::string rest = name.substr(conv ? 3 : 2);
  if (rest.size() < 10 || rest[0] < '2' || rest[0] > '5' || rest[1] < 'a' || rest[1] > 'f' || rest.substr(2, 7) != "_branch") return name;
  const std::string branch = rest.substr(9);
  const char part = branch == "1" ? '0' : branch == "2a" ? '1' : branch == "2b" ? '2' : branch == "2c" ? '3' : '\0';
  if (!part) return name;
  return std::string("conv") + rest[0] + "_block" + static_cast<char>('1' + rest[1] - 'a') + "_" + part + (conv ? "_conv" : "_bn");
}

}  // namespace detent::io
