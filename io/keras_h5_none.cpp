// Built without HDF5.
#include "detent/io/keras_h5.h"

namespace detent::io {

bool has_hdf5() { return false; }

std::vector<NamedTensor> load_keras_h5(const std::string& path) {
  fail("weights ", path, ": an HDF5 file, and this build has no HDF5; install libhdf5-dev and build with -Dhdf5=enabled, or save the weights as safetensors");
}

}  // namespace detent::io
