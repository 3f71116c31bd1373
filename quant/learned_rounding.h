// AdaRound on a whole Graph (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"; its formulas are in adaround.h). One thread uses a
// Graph at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "detent/quant/adaround.h"
#include "detent/quant/quantsim.h"

namespace detent::quant {

/// How the rounding of one layer is learned.
struct RoundingOptions {
  int64_t iterations = 1000;    ///< steps a layer. AIMET makes 10,000 at a tenth of the rate
  int64_t batch = 32;           ///< images a step
  float learning_rate = 1e-2f;  ///< Adam's
  int64_t window = 8;           ///< of each image a window of at most so many output pixels a side is looked at: time and memory do not grow with the image
  uint64_t seed = 0;            ///< of windows and batches
  AdaroundSpec formula = {};
};

/// What became of a layer. Errors are the mean over images and pixels of the squared error summed over channels, behind the layer's activation, in the windows.
struct RoundedLayer {
  std::string name;
  int64_t weights = 0, moved = 0;       ///< moved: rounded to the farther neighbour
  double nearest = 0.0, learned = 0.0;  ///< errors of rounding to nearest and of what was kept; never larger than the first
};

/// Layer by layer, from the input on, chooses for each weight the grid point below or above so that the layer, on its inputs in the network with the weights before it
/// rounded, gives what the float network gives there; the activation that alone reads a layer is part of it. Activations are in float meanwhile, as in AIMET. Weights then lie on
/// their grids, which stay as they are, and in the quantizers' states as they were; biases and activations are not touched. `batches` are images [n,h,w,c], some hundred in all.
/// on_layer is called after each layer; when it throws, the layers before are done and nothing else is changed. Layers without an integer weight quantizer that acts are left
/// alone. Throws Error before calibration, without images, and for options out of range.
std::vector<RoundedLayer> learn_rounding(QuantSim& sim, const std::vector<Tensor>& batches, const RoundingOptions& options = {},
                                         const std::function<void(const RoundedLayer&)>& on_layer = {});

}  // namespace detent::quant
