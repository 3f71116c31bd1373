// QuantSim: places quantizers on a Graph by a config, calibrates them, hands out encodings. Never changes weights. Used by one thread at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "detent/nn/graph.h"
#include "detent/quant/config.h"
#include "detent/quant/encoding.h"
#include "detent/quant/quantizer.h"

namespace detent::quant {

struct QuantSimOptions {
  Scheme scheme = Scheme::range_learning_tf_enhanced;
  int param_bits = 8;                                 ///< 2..16, or 32: parameters stay in float
  int output_bits = 8;                                ///< 2..16, or 32
  int first_last_bits = 0;                            ///< of the first and the last layers' weights, of the network's inputs and of its outputs; 0: as the rest
  NumberFormat param_format = NumberFormat::integer;  ///< float16 and bfloat16 need 16 bits
  NumberFormat output_format = NumberFormat::integer;
  QuantConfig config = default_config();
  RangeRule range_rule = RangeRule::gated;
  float range_learning_rate = 1.0f;  ///< learning rate of learned ranges relative to that of the weights
  EstimatorOptions estimator = {};
  bool protect_accumulators = true;  ///< weight scales are enlarged where a bias or a sum would overflow int32 (quant/accumulator.h)
};

/// One quantizer and where it sits.
struct Placement {
  enum class Kind : uint8_t { weight, bias, activation };
  Kind kind = Kind::activation;
  std::string name;      ///< of the value or the parameter
  std::string producer;  ///< node that computes it ("" for an input or a parameter's value)
  std::string op;        ///< of that node, or of the parameter's owner
  std::vector<std::string> consumers;
  nn::Parameter* parameter = nullptr;
  nn::Value value;
  std::shared_ptr<Quantizer> quantizer;
};

struct QuantizerCounts {
  int weight = 0, activation = 0, bias = 0;
};

class QuantSim {
 public:
  /// Places quantizers, all off: until compute_encodings() or load_encodings() the network computes in float. Fold batch norms first, or behind training
  /// with fold_batch_norms_to_scale. Throws Error for widths out of range, a config that does not fit, and a Graph that another sim has quantizers in.
  /// The Graph stays where it is, with the layers and values that were quantized, as long as the sim is used: when it was moved or destroyed, or one of
  /// them was taken out or replaced, what the sim is asked for is an Error.
  QuantSim(nn::Graph& graph, const QuantSimOptions& options = {});
  /// Takes its quantizers out of the Graph again, wherever it has been moved to.
  ~QuantSim();
  QuantSim(const QuantSim&) = delete;
  QuantSim& operator=(const QuantSim&) = delete;

  /// Encodes parameters, runs the callback (forward passes over calibration data; evaluation and training are refused in it) while activations are observed,
  /// then encodes those. Throws Error when nothing was observed, a value is NaN or infinite, or a quantizer is learning (its range would be lost: freeze() first).
  /// Quantizers that never saw data are left off: see unseen(). After an Error all quantizers are off, with the ranges that they had before: enable() goes back.
  void compute_encodings(const std::function<void()>& callback);
  /// Names of the activation quantizers that the last calibration never reached.
  const std::vector<std::string>& unseen() const { return unseen_; }

  const std::vector<Placement>& placements() const { return placements_; }
  QuantizerCounts counts() const;
  /// True when any quantizer that is not off has been calibrated or given a grid; otherwise the network computes in float.
  bool has_ranges() const;
  /// The quantizer of a value or parameter, or null.
  Quantizer* find(const std::string& name);
  nn::Graph& graph() {
    require_graph("graph");
    return graph_;
  }
  const QuantSimOptions& options() const { return options_; }

  /// One line per quantizer: value, producer, consumers, bits, symmetric, state, range, grid.
  std::string table();

  /// Grids of all calibrated quantizers; with int32_bias also an entry per bias, on the grid of its layer's accumulators.
  EncodingMap encodings(bool int32_bias = false);
  /// strict: every quantizer must have an entry, every entry a quantizer and every grid its quantizer's symmetry (Error listing what does not match); partial
  /// otherwise: asymmetric grids of symmetric quantizers are then used as they are, but not learned.
  enum class Load : uint8_t { strict, partial };
  /// Sets grids as given and freezes them; a weight then keeps its grid when it changes. int32 entries of biases are derived values: nothing to set.
  void load_encodings(const EncodingMap& encodings, Load mode = Load::strict);

  /// Both values get one quantizer, that of `first`, and so one grid and one learned range; before calibration. Throws Error for names without a quantizer,
  /// quantizers that differ in bits, symmetry, number format, fixed bounds, scheme or is_frozen, and parameters.
  void tie(const std::string& first, const std::string& second);

  void freeze();
  /// Every frozen quantizer learns from now on but those that a config keeps frozen. Throws Error, nothing changed, for given grids of another symmetry.
  void learn();
  /// Float evaluation through the same Graph: all quantizers off; enable() brings their state back. FloatScope does both.
  void disable();
  void enable();

  /// Writes weights, encodings and models into a folder; defined in io (io/export.cpp). Biases have entries in 2.0.0, as AIMET's. Returns the file names.
  std::vector<std::string> export_to(const std::string& folder, const std::string& prefix, const std::string& encodings_version = "1.0.0");

 private:
  void require_graph(const char* action);
  void calibrate(const std::vector<Quantizer*>& all, const std::function<void()>& callback);
  friend std::vector<std::pair<std::string, std::string>> fold_batch_norms_to_scale(QuantSim& sim);
  nn::Graph& graph_;
  nn::Graph::Watch watch_;
  QuantSimOptions options_;
  std::vector<Placement> placements_;
  std::vector<std::string> unseen_;
  std::vector<QuantizerState> saved_states_;
};

/// The network in float within a scope: disable(), and enable() at its end.
class FloatScope {
 public:
  explicit FloatScope(QuantSim& sim) : sim_(sim) { sim_.disable(); }
  ~FloatScope();
  FloatScope(const FloatScope&) = delete;
  FloatScope& operator=(const FloatScope&) = delete;

 private:
  QuantSim& sim_;
};

}  // namespace detent::quant
