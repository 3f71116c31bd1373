// Which quantizer costs how much: each alone in the network, against the float network. For finding the culprit when an accuracy drops. One thread uses a Graph at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "detent/quant/quantsim.h"

namespace detent::quant {

struct Sensitivity {
  std::string name;  ///< of the value or parameter; quantizers that are tied are looked at once, under the first name
  int bits = 0;
  double noise = 0.0;  ///< mean square of what quantizing it alone changes in the network's scores, over the mean square of the float network's scores
};

/// Runs these batches of images [n,h,w,c] once in float and once for each calibrated quantizer, the others being off. The noisiest comes first. All quantizers are as
/// before when it returns or throws. `on_each`, when there is one, is told how many are done. Throws Error before calibration and without images.
std::vector<Sensitivity> sensitivities(QuantSim& sim, const std::vector<Tensor>& batches, const std::function<void(int64_t)>& on_each = {});

}  // namespace detent::quant
