// Weights that Keras saved as HDF5 (`save_weights("x.h5")`, whole models too): the part of the format that h5py writes by default. The bytes may come from anywhere.
// Links, virtual and external storage, filters but deflate, shuffle and fletcher32, and the forms of libver="latest" are refused.
// Throws Error naming the file and the data set. Thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "detent/io/safetensors.h"

namespace detent::io {

/// Every array under our names and in PyTorch's layout: "conv1_conv.weight" [k,c,r,s], "conv1_bn.running_var", "predictions.weight" [out,in].
/// keras.applications' ResNet50 has two families of layer names; the old ones (res2a_branch2a, bn_conv1, fc1000) become the new ones (conv2_block1_1_conv ...).
std::vector<NamedTensor> load_keras_h5(const std::string& path);
/// The same from memory; `name` stands for the path in messages.
std::vector<NamedTensor> parse_keras_h5(std::string_view bytes, const std::string& name);
/// True when the bytes begin like an HDF5 file.
bool is_hdf5(std::string_view first_bytes);

/// "res4c_branch2b" -> "conv4_block3_2_conv"; names of other families stay as they are.
std::string keras_layer_name(const std::string& name);

}  // namespace detent::io
