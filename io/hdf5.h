// The part of the HDF5 format that h5py writes by default and Keras saves its weights in: groups (symbol tables) of float data sets, contiguous, compact or in chunks,
// with deflate, shuffle and fletcher32. Everything else (links, other files, virtual data sets, the newer forms of libver="latest", other filters) is refused by name.
// The bytes may come from anywhere: offsets and sizes are checked before use, depth, counts and memory are bounded by the file's size. Internal. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace detent::io {

struct Hdf5Array {
  std::string path;  ///< "/conv1/conv1/kernel:0"
  std::vector<int64_t> dims;
  std::vector<float> values;
};

/// Calls `found` with every data set of floats (16, 32 or 64 bits) and rank 1 to 4 under a group, in the order of names. Throws Error with `name` and the path.
/// The group is "/model_weights" when the file has one (a whole Keras model, beside the optimizer's), else the root.
void read_hdf5(std::string_view bytes, const std::string& name, const std::function<void(Hdf5Array)>& found);

}  // namespace detent::io
