#include "detent/quant/config.h"

#include <algorithm>

#include "detent/core/error.h"
#include "detent/quant/json_text.h"

namespace detent::quant {
namespace {

constexpr std::string_view kWhat = "quantsim config";

// ONNX operators, and AIMET's spellings that are none. What a config may mention; a name outside is most often a typing error.
constexpr std::string_view kOps[] = {
    "Abs",
    "Acos",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Atan",
    "AveragePool",
    "BatchNormalization",
    "BatchPermutation",
    "BatchToSpace",
    "Bernoulli",
    "Branch",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "ChannelShuffle",
    "Clip",
    "Col2Im",
    "CollectRpnProposals",
    "Compress",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "Conv1d",
    "Conv3d",
    "ConvInteger",
    "ConvTranspose",
    "ConvTranspose1d",
    "ConvTranspose3d",
    "Cos",
    "Cosh",
    "Crop",
    "CumSum",
    "CustomModule",
    "DepthToSpace",
    "DequantizeLinear",
    "DistributeFpnProposals",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Embedding",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Eye",
    "EyeLike",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "If",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "Loop",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "MaxPool3d",
    "MaxRoiPool",
    "MaxUnpool",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mish",
    "Mod",
    "Moments",
    "Mul",
    "Multinomial",
    "Neg",
    "NonMaxSuppression",
    "NonZero",
    "Normalize",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pad",
    "Permute",
    "Pow",
    "QuantizeLinear",
    "RMSNormalization",
    "RNN",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "ResourceGather",
    "ReverseSequence",
    "RoiAlign",
    "Round",
    "ScaledDotProductAttention",
    "Scan",
    "Scatter",
    "ScatterDense",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Silu",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToBatch",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "StridedSlice",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Upsample",
    "Where",
    "Xor",
};

class Parser {
 public:
  Parser(std::string_view source, const std::vector<std::string>& extra_ops) : source_(source), names_(std::begin(kOps), std::end(kOps)) {
    names_.insert(names_.end(), extra_ops.begin(), extra_ops.end());
  }

  QuantConfig parse(std::string_view json) {
    const nlohmann::json document = parse_json(json, kWhat, source_, {});
    const JsonNode root(document, kWhat, source_);
    root.allow_keys({"defaults", "params", "op_type", "supergroups", "model_input", "model_output", "supergroup_pass_list", "grid_preserving_rules", "overrides"});
    config_.source = std::string(source_);
    defaults(root.at("defaults"));
    if (root.has("params")) config_.params = params(root.at("params"));
    if (root.has("op_type")) op_types(root.at("op_type"));
    if (root.has("supergroups")) supergroups(root.at("supergroups"));
    if (root.has("supergroup_pass_list")) {
      const JsonNode list = root.at("supergroup_pass_list");
      for (size_t i = 0; i < list.array(64).size(); ++i) list.at(i).string();
    }
    if (root.has("model_input")) config_.model_input_quantized = flag(root.at("model_input"), "is_input_quantized");
    if (root.has("model_output")) config_.model_output_quantized = flag(root.at("model_output"), "is_output_quantized");
    if (root.has("grid_preserving_rules")) config_.grid_preserving_rules = root.at("grid_preserving_rules").boolean();
    if (root.has("overrides")) overrides(root.at("overrides"));
    return std::move(config_);
  }

 private:
  static bool flag(const JsonNode& node, const char* key) {
    node.allow_keys({key});
    return node.has(key) && node.at(key).boolean();
  }

  static std::optional<bool> optional_flag(const JsonNode& node, const char* key) {
    if (!node.has(key)) return {};
    return node.at(key).boolean();
  }

  void check_op(const JsonNode& at, std::string_view op) const {
    if (std::find(names_.begin(), names_.end(), op) != names_.end()) return;
    at.fail_here(text("unknown op \"", op.substr(0, 64), "\"", nearest_name(op, names_.data(), names_.size()), "; ops have their ONNX names"));
  }

  static std::vector<KernelSpec> kernels(const JsonNode& node) {
    std::vector<KernelSpec> out;
    for (size_t i = 0; i < node.array(256).size(); ++i) {
      const JsonNode one = node.at(i);
      one.allow_keys({"activation", "param"});
      KernelSpec k;
      for (const char* side : {"activation", "param"}) {
        if (!one.has(side)) continue;
        const JsonNode n = one.at(side);
        n.allow_keys({"bitwidth", "dtype"});
        const auto bits = static_cast<int>(n.at("bitwidth").integer(2, 32));
        const std::string dtype = n.at("dtype").string();
        if (dtype != "int" && dtype != "float") n.at("dtype").fail_here(text("\"", dtype.substr(0, 64), "\" is neither \"int\" nor \"float\""));
        const bool is_param = std::string_view(side) == "param";
        (is_param ? k.param_bits : k.activation_bits) = bits;
        (is_param ? k.param_float : k.activation_float) = dtype == "float";
      }
      out.push_back(k);
    }
    return out;
  }

  void defaults(const JsonNode& node) {
    node.allow_keys({"ops", "params", "strict_symmetric", "unsigned_symmetric", "per_channel_quantization", "supported_kernels", "hw_version"});
    if (node.has("ops")) {
      const JsonNode ops = node.at("ops");
      ops.allow_keys({"is_output_quantized", "is_symmetric"});
      config_.output_quantized = optional_flag(ops, "is_output_quantized").value_or(false);
      config_.output_symmetric = optional_flag(ops, "is_symmetric").value_or(false);
    }
    if (node.has("params")) {
      const JsonNode p = node.at("params");
      p.allow_keys({"is_quantized", "is_symmetric"});
      config_.param_quantized = optional_flag(p, "is_quantized").value_or(false);
      config_.param_symmetric = optional_flag(p, "is_symmetric").value_or(false);
    }
    config_.strict_symmetric = optional_flag(node, "strict_symmetric").value_or(false);
    config_.unsigned_symmetric = optional_flag(node, "unsigned_symmetric").value_or(false);
    config_.per_channel = optional_flag(node, "per_channel_quantization").value_or(false);
    if (config_.strict_symmetric && config_.unsigned_symmetric) node.fail_here("strict_symmetric and unsigned_symmetric contradict each other; set one to \"False\"");
    if (node.has("supported_kernels")) config_.supported_kernels = kernels(node.at("supported_kernels"));
    if (node.has("hw_version")) config_.hw_version = node.at("hw_version").string(64);
  }

  static std::map<std::string, ParamRule> params(const JsonNode& node) {
    node.allow_keys({"weight", "bias"});
    std::map<std::string, ParamRule> out;
    for (const auto& item : node.value().items()) {
      const JsonNode p = node.at(item.key());
      p.allow_keys({"is_quantized", "is_symmetric"});
      out[item.key()] = {optional_flag(p, "is_quantized"), optional_flag(p, "is_symmetric")};
    }
    return out;
  }

  void op_types(const JsonNode& node) {
    node.object();
    if (node.size() > 1024) node.fail_here("more than 1024 ops");
    for (const auto& item : node.value().items()) {
      check_op(node, item.key());
      const JsonNode op = node.at(item.key());
      op.allow_keys({"is_input_quantized", "is_output_quantized", "is_symmetric", "params", "supported_kernels", "per_channel_quantization", "encoding_constraints"});
      OpRule rule;
      rule.input_quantized = optional_flag(op, "is_input_quantized");
      rule.output_quantized = optional_flag(op, "is_output_quantized");
      rule.symmetric = optional_flag(op, "is_symmetric");
      rule.per_channel = optional_flag(op, "per_channel_quantization");
      if (op.has("params")) rule.params = params(op.at("params"));
      if (op.has("supported_kernels")) rule.supported_kernels = kernels(op.at("supported_kernels"));
      if (op.has("encoding_constraints")) constraints(op.at("encoding_constraints"), rule);
      config_.op_types[item.key()] = std::move(rule);
    }
  }

  static void constraints(const JsonNode& node, OpRule& rule) {
    node.allow_keys({"min", "max"});
    if (node.has("min")) rule.range_min = node.at("min").number();
    if (node.has("max")) rule.range_max = node.at("max").number();
    if (rule.range_min && *rule.range_min > 0.0) node.at("min").fail_here(text(*rule.range_min, " leaves zero outside the range; min is at most 0"));
    if (rule.range_max && *rule.range_max < 0.0) node.at("max").fail_here(text(*rule.range_max, " leaves zero outside the range; max is at least 0"));
    if (rule.range_min && rule.range_max && *rule.range_min >= *rule.range_max) node.fail_here(text("min ", *rule.range_min, " is not below max ", *rule.range_max));
    if (rule.output_quantized && !*rule.output_quantized) node.fail_here("a fixed range contradicts is_output_quantized \"False\"");
  }

  void supergroups(const JsonNode& node) {
    for (size_t i = 0; i < node.array(4096).size(); ++i) {
      node.at(i).allow_keys({"op_list"});
      const JsonNode list = node.at(i).at("op_list");
      if (list.array(16).size() < 2) list.fail_here("a supergroup has at least two ops");
      std::vector<std::string> ops;
      for (size_t k = 0; k < list.size(); ++k) {
        ops.push_back(list.at(k).string());
        check_op(list.at(k), ops.back());
        const auto rule = config_.op_types.find(ops.back());
        if (k > 0 && rule != config_.op_types.end() && rule->second.input_quantized.value_or(false)) {
          list.at(k).fail_here(text("the group takes away the input quantizer that /op_type/", ops.back(), "/is_input_quantized asks for; remove one of them"));
        }
      }
      config_.supergroups.push_back(std::move(ops));
    }
  }

  void overrides(const JsonNode& node) {
    for (size_t i = 0; i < node.array(65536).size(); ++i) config_.overrides.push_back(one_override(node.at(i)));
  }

  static Override one_override(const JsonNode& n) {
    n.allow_keys({"name", "param_bitwidth", "output_bitwidth", "param_dtype", "output_dtype", "scheme", "is_quantized", "is_output_quantized", "is_input_quantized",
                  "is_param_quantized", "is_symmetric", "is_output_symmetric", "is_param_symmetric", "per_channel_quantization", "is_frozen"});
    Override o;
    o.pattern = n.at("name").string();
    if (o.pattern.empty()) n.at("name").fail_here("an empty pattern matches no layer");
    const auto bits = [&](const char* key) { return n.has(key) ? std::optional<int>(static_cast<int>(n.at(key).integer(2, 32))) : std::nullopt; };
    o.param_bits = bits("param_bitwidth");
    o.output_bits = bits("output_bitwidth");
    const auto format = [&](const char* key, const std::optional<int>& width) -> std::optional<NumberFormat> {
      if (!n.has(key)) return {};
      try {
        const NumberFormat f = parse_number_format(n.at(key).string());
        DETENT_CHECK(f == NumberFormat::integer || !width || *width == 16, to_string(f), " has 16 bits, not ", *width);
        return f;
      } catch (const Error& e) {
        n.at(key).fail_here(e.what());
      }
    };
    o.param_format = format("param_dtype", o.param_bits);
    o.output_format = format("output_dtype", o.output_bits);
    if (n.has("scheme")) {
      try {
        o.scheme = parse_scheme(n.at("scheme").string());
      } catch (const Error& e) {
        n.at("scheme").fail_here(e.what());
      }
    }
    const auto all = optional_flag(n, "is_quantized"), symmetric = optional_flag(n, "is_symmetric");
    const auto either = [&](const char* key, std::optional<bool> general, const char* general_key) {
      const auto own = optional_flag(n, key);
      if (own && general && *own != *general) n.fail_here(text(general_key, " and ", key, " contradict each other; keep one"));
      return own ? own : general;
    };
    o.params_quantized = either("is_param_quantized", all, "is_quantized");
    o.output_quantized = either("is_output_quantized", all, "is_quantized");
    o.input_quantized = optional_flag(n, "is_input_quantized");
    if (all && !*all) o.input_quantized = either("is_input_quantized", all, "is_quantized");
    o.param_symmetric = either("is_param_symmetric", symmetric, "is_symmetric");
    o.output_symmetric = either("is_output_symmetric", symmetric, "is_symmetric");
    o.per_channel = optional_flag(n, "per_channel_quantization");
    o.frozen = optional_flag(n, "is_frozen");
    const auto off = [](const std::optional<bool>& b) { return b && !*b; };
    if (off(o.params_quantized) && o.param_bits) n.fail_here("param_bitwidth is given for parameters that are not quantized; remove one");
    if (off(o.output_quantized) && o.output_bits) n.fail_here("output_bitwidth is given for an output that is not quantized; remove one");
    if (off(o.params_quantized) && off(o.output_quantized) && (o.scheme || o.frozen)) n.fail_here("scheme or is_frozen is given for a layer that is not quantized; remove one");
    return o;
  }

  std::string_view source_;
  std::vector<std::string_view> names_;
  QuantConfig config_;
};

}  // namespace

const OpRule* QuantConfig::rule(std::string_view op) const {
  const auto it = op_types.find(std::string(op));
  return it == op_types.end() ? nullptr : &it->second;
}

bool QuantConfig::quantizes_output(std::string_view op) const {
  const OpRule* r = rule(op);
  return r && r->output_quantized ? *r->output_quantized : output_quantized;
}

bool QuantConfig::quantizes_input(std::string_view op) const {
  const OpRule* r = rule(op);
  return r && r->input_quantized.value_or(false);
}

bool QuantConfig::symmetric_output(std::string_view op) const {
  const OpRule* r = rule(op);
  return r && r->symmetric ? *r->symmetric : output_symmetric;
}

bool QuantConfig::per_channel_params(std::string_view op) const {
  const OpRule* r = rule(op);
  return r && r->per_channel ? *r->per_channel : per_channel;
}

namespace {

// Later sections win: defaults, then params, then op_type.
bool resolve(bool general, const QuantConfig& config, std::string_view op, std::string_view param, std::optional<bool> ParamRule::*field) {
  const std::string key(param);
  if (const OpRule* r = config.rule(op)) {
    const auto it = r->params.find(key);
    if (it != r->params.end() && it->second.*field) return *(it->second.*field);
  }
  const auto it = config.params.find(key);
  if (it != config.params.end() && it->second.*field) return *(it->second.*field);
  return general;
}

}  // namespace

bool QuantConfig::quantizes_param(std::string_view op, std::string_view param) const { return resolve(param_quantized, *this, op, param, &ParamRule::quantized); }

bool QuantConfig::symmetric_param(std::string_view op, std::string_view param) const { return resolve(param_symmetric, *this, op, param, &ParamRule::symmetric); }

bool QuantConfig::names_output_of(std::string_view op) const {
  const OpRule* r = rule(op);
  return r && r->output_quantized.has_value();
}

Override QuantConfig::override_for(std::string_view name, std::string_view layer) const {
  Override out;
  const auto take = [](auto& to, const auto& from) {
    if (from) to = from;
  };
  for (const Override& o : overrides) {
    if (!glob_match(o.pattern, name) && (layer.empty() || !glob_match(o.pattern, layer))) continue;
    out.pattern = o.pattern;
    take(out.param_bits, o.param_bits);
    take(out.output_bits, o.output_bits);
    take(out.param_format, o.param_format);
    take(out.output_format, o.output_format);
    take(out.scheme, o.scheme);
    take(out.params_quantized, o.params_quantized);
    take(out.output_quantized, o.output_quantized);
    take(out.input_quantized, o.input_quantized);
    take(out.param_symmetric, o.param_symmetric);
    take(out.output_symmetric, o.output_symmetric);
    take(out.per_channel, o.per_channel);
    take(out.frozen, o.frozen);
  }
  return out;
}

bool glob_match(std::string_view pattern, std::string_view name) {
  // Linear backtracking: only the last star is ever retried.
  size_t p = 0, n = 0, star = std::string_view::npos, mark = 0;
  while (n < name.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n]) && pattern[p] != '*') {
      ++p, ++n;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

QuantConfig parse_config(std::string_view json, std::string_view source_name, const std::vector<std::string>& extra_ops) { return Parser(source_name, extra_ops).parse(json); }

QuantConfig default_config(std::string_view name) { return parse_config(default_config_text(name), name); }

}  // namespace detent::quant
