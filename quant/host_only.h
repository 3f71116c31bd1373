// For the tools that rewrite weights on the host: the floats of a tensor that is there, or an Error that says how to get it there. Internal to quant/. Thread-safe.
#pragma once

#include "detent/core/error.h"
#include "detent/core/tensor.h"

namespace detent::quant {

template <class T>
auto* host_floats(const char* tool, T& tensor) {
  DETENT_CHECK(tensor.device() == Device{}, tool, " works on the host, but a tensor ", tensor.shape(), " is on ", to_string(tensor.device()), "; move the graph there with to(Device{}) first");
  return tensor.template data<float>();
}

}  // namespace detent::quant
