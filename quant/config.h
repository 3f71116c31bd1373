// QuantConfig: where quantizers go, as AIMET's quantsim JSON says it, plus per-layer overrides. A plain struct; placement (QuantSim) reads it.
// Op names are ONNX's (Conv, Gemm, Relu, Clip ...); AIMET's TensorFlow spellings (Mean, Dropout ...) are accepted too.
// Everything that parses throws Error naming the source, the JSON path and the nearest valid name. Const use is thread-safe.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "detent/quant/scheme.h"

namespace detent::quant {

/// A parameter kind ("weight", "bias"); unset = inherit.
struct ParamRule {
  std::optional<bool> quantized;
  std::optional<bool> symmetric;
};

/// A supported_kernels entry: parsed and kept, not acted on.
struct KernelSpec {
  int activation_bits = 8, param_bits = 8;
  bool activation_float = false, param_float = false;
};

/// What a config says of one op type; unset = inherit.
struct OpRule {
  std::optional<bool> output_quantized;
  std::optional<bool> input_quantized;
  std::optional<bool> symmetric;  ///< of the op's activation quantizers
  std::optional<bool> per_channel;
  std::map<std::string, ParamRule> params;
  std::optional<double> range_min, range_max;  ///< encoding_constraints: the output's fixed bounds, each alone or both
  std::vector<KernelSpec> supported_kernels;
};

/// Per-layer settings by name pattern ('*' and '?'); applied in file order after all other rules, later wins.
struct Override {
  std::string pattern;
  std::optional<int> param_bits, output_bits;
  std::optional<NumberFormat> param_format, output_format;
  std::optional<Scheme> scheme;
  std::optional<bool> params_quantized, output_quantized, input_quantized;
  std::optional<bool> param_symmetric, output_symmetric;
  std::optional<bool> per_channel;
  std::optional<bool> frozen;  ///< ranges are calibrated, then kept
};

struct QuantConfig {
  std::string source = "built-in";
  // defaults
  bool output_quantized = false;
  bool output_symmetric = false;
  bool param_quantized = false;
  bool param_symmetric = false;
  bool strict_symmetric = false;
  bool unsigned_symmetric = false;
  bool per_channel = false;
  std::string hw_version;
  std::vector<KernelSpec> supported_kernels;
  // sections
  std::map<std::string, ParamRule> params;
  std::map<std::string, OpRule> op_types;
  std::vector<std::vector<std::string>> supergroups;
  bool model_input_quantized = false;
  bool model_output_quantized = false;
  // ours
  bool grid_preserving_rules = false;  ///< ops that only move or select values (MaxPool, Pad, Reshape ...) get no output quantizer unless the config names them
  std::vector<Override> overrides;

  // The rules of one op with inheritance resolved: defaults, then params, then op_type.
  bool quantizes_output(std::string_view op) const;
  bool quantizes_input(std::string_view op) const;
  bool symmetric_output(std::string_view op) const;
  bool per_channel_params(std::string_view op) const;
  bool quantizes_param(std::string_view op, std::string_view param) const;
  bool symmetric_param(std::string_view op, std::string_view param) const;
  /// The op's own rule, or null.
  const OpRule* rule(std::string_view op) const;
  /// True when the config itself says whether this op's output is quantized (then grid_preserving_rules does not apply).
  bool names_output_of(std::string_view op) const;
  /// All overrides whose pattern matches, merged in order. A value made by a node matches by its own name or, `layer`, by the node's: imported files have both.
  Override override_for(std::string_view name, std::string_view layer = {}) const;
};

/// '*' any run of characters, '?' one character; the whole name must match.
bool glob_match(std::string_view pattern, std::string_view name);

/// `extra_ops`: names of custom operators that the config may mention.
QuantConfig parse_config(std::string_view json, std::string_view source_name, const std::vector<std::string>& extra_ops = {});

/// A config shipped inside the library: "tensorflow_default" (the default), "per_channel_default", "integer".
QuantConfig default_config(std::string_view name = "tensorflow_default");
/// Its JSON text.
std::string_view default_config_text(std::string_view name);

}  // namespace detent::quant
