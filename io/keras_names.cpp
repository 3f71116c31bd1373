// The two families of layer names in keras.applications' ResNet50.
#include "detent/io/keras_h5.h"

namespace detent::io {

bool is_hdf5(std::string_view b) { return b.starts_with("\x89HDF\r\n\x1a\n"); }

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
