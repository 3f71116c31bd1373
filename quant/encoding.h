// EncodingMap: what a quantized network's ranges look like outside: per value and parameter the grids, as exported and loaded. Plain data.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "detent/core/math/quant_math.h"

namespace detent::quant {

struct Encoding {
  std::string name;
  bool is_float = false;    ///< kept in float of `bits` bits: no grids
  int bits = 8;
  bool symmetric = false;
  std::vector<Grid> grids;    ///< one, or one per channel
  std::vector<Range> ranges;  ///< the learned min and max behind each grid, when known; else empty
  int channel_axis = -1;      ///< of the exported tensor (OIHW, [out,in]); -1: per tensor or unknown
};

struct QuantizerArgs {
  int activation_bitwidth = 8, param_bitwidth = 8;
  bool symmetric = true;  ///< of parameters
  bool per_channel = false;
  std::string dtype = "int";
  std::string quant_scheme = "post_training_tf";
};

struct EncodingMap {
  std::vector<Encoding> activations, params;
  std::vector<std::string> excluded_layers;
  QuantizerArgs args;

  /// The entry of a name, or null. Linear.
  const Encoding* find(std::string_view name) const {
    for (const auto* list : {&params, &activations}) {
      for (const Encoding& e : *list) {
        if (e.name == name) return &e;
      }
    }
    return nullptr;
  }
};

}  // namespace detent::quant
