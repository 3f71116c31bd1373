// Tools that make a network easier to quantize without training, on a whole Graph (aimet.md section 7): equalization of neighbouring layers before a QuantSim is
// made, bias correction after calibration. Weights and biases are changed in place. One thread uses a Graph at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "detent/nn/graph.h"
#include "detent/quant/quantsim.h"

namespace detent::quant {

struct EqualizeOptions {
  int passes = 20;             ///< at most; ended when no channel moves by 0.1 % any more. AIMET makes one
  bool relu6_as_relu = false;  ///< a Clip from 0 between two layers becomes a ReLU, so that they can be equalized: this changes the network
};

/// What was equalized.
struct Equalized {
  std::vector<std::vector<std::string>> sets;  ///< names of two layers, or of three with a depthwise one between
  std::vector<std::string> relus;              ///< Clips that became ReLUs
};

/// Cross-layer equalization (Nagel et al. 2019, section 4.1): channel i of a layer is divided, and its weights in the layer behind multiplied, by s[i], so that both
/// layers' ranges of that channel are equal. Layers belong together when only the second reads the first, through nothing but functions f with f(s x) = s f(x) for
/// s > 0: ReLU, LeakyReLU, PReLU, pools, zero padding. The network's outputs stay the same but for rounding. Fold batch norms first; throws Error on a Graph with
/// quantizers, or off the cpu.
Equalized equalize_layers(nn::Graph& graph, const EqualizeOptions& options = {});

/// Empirical bias correction (Nagel et al. 2019, section 4.2): layer by layer, from the input on, the mean difference that quantization makes at the layer's output is taken
/// from its bias, per channel. `run` makes forward passes over the same batches each time it is called: once in float and once a layer. For calibrated quantizers, which
/// keep their ranges. Returns how many layers were corrected; those without a bias get one. Throws Error before calibration, and when `run` shows no data.
int64_t correct_biases(QuantSim& sim, const std::function<void()>& run);

/// Gives a bias of zeros to every layer that correct_biases would correct and that has none: a network made anew then takes the weights of a corrected one.
void ensure_biases(nn::Graph& graph);

}  // namespace detent::quant
