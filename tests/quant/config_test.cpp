// Quantsim configs: the shipped ones, inheritance, and what is refused.
#include <doctest/doctest.h>

#include <string>

#include "detent/core/error.h"
#include "detent/quant/config.h"

using namespace detent;
using namespace detent::quant;

namespace {

std::string message(const std::string& json) {
  try {
    parse_config(json, "my.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool mentions(const std::string& text, const char* word) { return text.find(word) != std::string::npos; }

}  // namespace

TEST_CASE("the shipped configs") {
  const QuantConfig tf = default_config();
  CHECK(tf.quantizes_output("Conv"));
  CHECK(tf.quantizes_output("MaxPool"));
  CHECK(tf.quantizes_output("Softmax"));
  for (const char* op : {"Pad", "GlobalAveragePool", "Flatten", "Reshape", "Slice", "Transpose", "Cast"}) CHECK_FALSE(tf.quantizes_output(op));
  CHECK(tf.quantizes_param("Conv", "weight"));
  CHECK(tf.symmetric_param("Conv", "weight"));
  CHECK_FALSE(tf.quantizes_param("Conv", "bias"));
  CHECK_FALSE(tf.per_channel_params("Conv"));
  CHECK(tf.supergroups.size() == 5);
  CHECK(tf.model_input_quantized);
  CHECK_FALSE(tf.model_output_quantized);
  CHECK_FALSE(tf.symmetric_output("Conv"));
  const QuantConfig pc = default_config("per_channel_default");
  CHECK(pc.per_channel_params("Conv"));
  CHECK(pc.per_channel_params("Gemm"));
  CHECK(pc.grid_preserving_rules);
  CHECK_FALSE(pc.names_output_of("MaxPool"));
  CHECK(pc.names_output_of("Cast"));
  const QuantConfig integer = default_config("integer");
  CHECK(integer.quantizes_output("GlobalAveragePool"));
  CHECK(integer.per_channel_params("Conv"));
  CHECK(integer.model_output_quantized);
  CHECK_THROWS_AS(default_config("tensorflow"), Error);
}

TEST_CASE("later sections win, overrides merge") {
  const QuantConfig c = parse_config(R"({"defaults":{"ops":{"is_output_quantized":"True"},"params":{"is_quantized":"False","is_symmetric":"True"},"per_channel_quantization":true,"hw_version":"V73",
      "supported_kernels":[{"activation":{"bitwidth":16,"dtype":"int"},"param":{"bitwidth":8,"dtype":"int"}}]},
    "params":{"weight":{"is_quantized":"True"}},
    "op_type":{"Gemm":{"params":{"weight":{"is_quantized":"False"},"bias":{"is_quantized":"True","is_symmetric":"False"}},"per_channel_quantization":"False","is_input_quantized":"True"},
      "Sigmoid":{"encoding_constraints":{"min":0.0,"max":1.0}},"Relu":{"encoding_constraints":{"min":0}},"MyOp":{"is_output_quantized":"False"}},
    "supergroups":[{"op_list":["Conv","BatchNormalization","Relu"]}],"model_input":{"is_input_quantized":"True"},"model_output":{"is_output_quantized":"True"},
    "overrides":[{"name":"layer?.*","param_bitwidth":4,"scheme":"tf_enhanced","is_frozen":"True"},{"name":"layer1.*","param_bitwidth":2,"is_output_quantized":"False"},{"name":"fc","is_quantized":false}]})",
                                      "test", {"MyOp"});
  CHECK(c.quantizes_param("Conv", "weight"));
  CHECK_FALSE(c.quantizes_param("Conv", "bias"));
  CHECK_FALSE(c.quantizes_param("Gemm", "weight"));
  CHECK(c.quantizes_param("Gemm", "bias"));
  CHECK_FALSE(c.symmetric_param("Gemm", "bias"));
  CHECK(c.symmetric_param("Conv", "bias"));
  CHECK(c.per_channel_params("Conv"));
  CHECK_FALSE(c.per_channel_params("Gemm"));
  CHECK(c.quantizes_input("Gemm"));
  CHECK(*c.rule("Sigmoid")->range_max == 1.0);
  CHECK_FALSE(c.rule("Relu")->range_max.has_value());
  CHECK(c.supported_kernels.at(0).activation_bits == 16);
  CHECK(c.model_output_quantized);
  const Override o = c.override_for("layer1.conv");
  CHECK(*o.param_bits == 2);
  CHECK(*o.scheme == Scheme::tf_enhanced);
  CHECK(*o.frozen);
  CHECK_FALSE(*o.output_quantized);
  CHECK(*c.override_for("layer2.conv").param_bits == 4);
  CHECK_FALSE(c.override_for("stem").param_bits.has_value());
  CHECK_FALSE(*c.override_for("fc").params_quantized);
}

TEST_CASE("globs") {
  CHECK(glob_match("*", ""));
  CHECK(glob_match("layer*.conv?", "layer3.0.conv2"));
  CHECK_FALSE(glob_match("layer*.conv?", "layer3.0.conv"));
  CHECK(glob_match("a*b*c", "aXbYbZc"));
  CHECK_FALSE(glob_match("", "a"));
  CHECK_FALSE(glob_match(std::string(2000, '*') + "b", std::string(2000, 'a')));  // not exponential
}

TEST_CASE("what is wrong is named with its place") {
  CHECK(mentions(message("{}"), "\"defaults\" is missing"));
  CHECK(mentions(message("nonsense"), "byte"));
  CHECK(mentions(message("[]"), "expected an object"));
  CHECK(mentions(message(R"({"defaults":{"ops":{"is_output_quantized":"true"}}})"), "/defaults/ops/is_output_quantized"));
  CHECK(mentions(message(R"({"defaults":{},"op_type":{"Covn":{}}})"), "nearest: Conv"));
  CHECK(mentions(message(R"({"defaults":{},"supergroup":[]})"), "nearest: supergroups"));
  CHECK(mentions(message(R"({"defaults":{},"defaults":{}})"), "twice"));
  CHECK(mentions(message(R"({"defaults":{"strict_symmetric":"True","unsigned_symmetric":"True"}})"), "contradict"));
  CHECK(mentions(message(R"({"defaults":{},"op_type":{"Relu":{"encoding_constraints":{"min":1,"max":0}}}})"), "/op_type/Relu/encoding_constraints"));
  CHECK(mentions(message(R"({"defaults":{},"op_type":{"Relu":{"encoding_constraints":{"min":0.5}}}})"), "zero"));
  CHECK(mentions(message(R"({"defaults":{},"op_type":{"Relu":{"is_input_quantized":"True"}},"supergroups":[{"op_list":["Conv","Relu"]}]})"), "/supergroups/0/op_list/1"));
  CHECK(mentions(message(R"({"defaults":{},"supergroups":[{"op_list":["Conv"]}]})"), "at least two"));
  CHECK(mentions(message(R"({"defaults":{},"params":{"wieght":{}}})"), "nearest: weight"));
  CHECK(mentions(message(R"({"defaults":{},"overrides":[{"name":"a","is_quantized":"False","param_bitwidth":4}]})"), "/overrides/0"));
  CHECK(mentions(message(R"({"defaults":{},"overrides":[{"name":"a","is_symmetric":"False","is_param_symmetric":"True"}]})"), "contradict"));
  CHECK(mentions(message(R"({"defaults":{},"overrides":[{"name":"a","param_bitwidth":64}]})"), "2..32"));
  CHECK(mentions(message(R"({"defaults":{},"overrides":[{"name":"a","scheme":"tf_enhansed"}]})"), "nearest: tf-enhanced"));
}

TEST_CASE("hostile JSON is refused, not recursed into") {
  CHECK(mentions(message(std::string(1000000, '[')), "nested deeper"));
  CHECK(mentions(message(R"({"defaults":)" + std::string(100, '{')), "not JSON"));
  CHECK(mentions(message(std::string(size_t{5} << 20, ' ')), "limit"));
  CHECK_FALSE(message(std::string("{\"defaults\":\"\xff\xfe\"}")).empty());
  const std::string good(default_config_text("integer"));
  for (size_t cut = 0; cut + 3 < good.size(); cut += 7) CHECK_FALSE(message(good.substr(0, cut)).empty());
}

TEST_CASE("schemes by every spelling") {
  CHECK(parse_scheme("range-learning-tf-enhanced") == Scheme::range_learning_tf_enhanced);
  CHECK(parse_scheme("training_range_learning_with_tf_init") == Scheme::range_learning_tf);
  CHECK(parse_scheme("post_training_percentile") == Scheme::percentile);
  CHECK_THROWS_AS(parse_scheme("range-lerning-tf"), Error);
  for (const Scheme s : {Scheme::range_learning_tf, Scheme::range_learning_tf_enhanced, Scheme::range_learning_percentile, Scheme::range_learning_mse, Scheme::range_learning_moving_average, Scheme::range_learning_entropy, Scheme::tf, Scheme::tf_enhanced, Scheme::percentile, Scheme::mse,
                         Scheme::moving_average}) {
    CHECK(parse_scheme(to_string(s)) == s);
    CHECK(parse_scheme(aimet_name(s)) == s);
  }
}
