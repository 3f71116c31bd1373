// Every reason for which a quantsim config, an encodings file or a quantizer's state in a checkpoint is refused: words of the message, and what asks for them.
#include <doctest/doctest.h>

#include <limits>

#include "detent/core/bytes.h"
#include "detent/core/error.h"
#include "detent/io/encodings.h"
#include "detent/quant/config.h"
#include "detent/quant/json_text.h"
#include "detent/quant/quantizer.h"

using namespace detent;
using quant::Encoding;
using quant::EncodingMap;

namespace {

struct Row {
  std::string words, json;
};

template <class Read>
void check_refused(const std::vector<Row>& rows, Read&& read) {
  for (const Row& r : rows) {
    std::string message;
    try {
      read(r.json);
    } catch (const Error& e) {
      message = e.what();
    }
    CHECK_MESSAGE(message.find(r.words) != std::string::npos, r.json.substr(0, 200) << ": '" << message << "' does not contain '" << r.words << "'");
    CHECK_MESSAGE(message.find("my.json") != std::string::npos, message << ": names no file");
  }
}

std::string repeated(const std::string& one, int times) {
  std::string all = one;
  for (int i = 1; i < times; ++i) all += "," + one;
  return all;
}

void check_configs(const std::vector<Row>& rows) {
  check_refused(rows, [](const std::string& json) { quant::parse_config(json, "my.json"); });
}
// `with`: what stands beside empty defaults.
std::string config(const std::string& with) { return "{\"defaults\":{}," + with + "}"; }
std::string op(const std::string& rule) { return config("\"op_type\":{\"Relu\":{" + rule + "}}"); }
std::string layer(const std::string& rule) { return config("\"overrides\":[{\"name\":\"a\"," + rule + "}]"); }

void check_encodings(const std::vector<Row>& rows) {
  check_refused(rows, [](const std::string& json) { io::read_encodings(json, "my.json"); });
}
std::string v061(const std::string& entry) { return "{\"version\":\"0.6.1\",\"activation_encodings\":{\"x\":[" + entry + "]},\"param_encodings\":{}}"; }
std::string v100(const std::string& entries) { return "{\"version\":\"1.0.0\",\"activation_encodings\":[" + entries + "],\"param_encodings\":[]}"; }
std::string int100(const std::string& rest) { return v100("{\"name\":\"x\",\"dtype\":\"INT\",\"bw\":8,\"is_sym\":false," + rest + "}"); }
std::string v200(const std::string& entries) { return "{\"version\":\"2.0.0\",\"encodings\":[" + entries + "]}"; }
std::string one200(const std::string& rest) { return v200("{\"name\":\"x\",\"output_dtype\":\"uint8\"," + rest + "}"); }

}  // namespace

TEST_CASE("json: what every reader of it refuses") {
  check_configs({
      {"has 5000000 bytes; the limit is 4194304", std::string(5000000, ' ')},
      {"is not JSON: error at byte 2 of 8", "nonsense"},
      {"is not JSON: error at byte", R"({"defaults":{})"},
      {"is not JSON: [json.exception.out_of_range", R"({"defaults":1e999})"},
      {"has the key \"defaults\" twice in one object", R"({"defaults":{},"defaults":{}})"},
      {"is nested deeper than 16 levels", std::string(18, '[') + std::string(18, ']')},
      {", /: expected an object, found array", "[]"},
      {", /: \"defaults\" is missing", "{}"},
      {"unknown key \"supergroup\" (nearest: supergroups)", config(R"("supergroup":[])")},
      {"/supergroups: expected a list, found object", config(R"("supergroups":{})")},
      {"/overrides/0/name: expected a string, found number", config(R"("overrides":[{"name":1}])")},
      {"/overrides/0/name: a string of 1025 bytes; the limit is 1024", config("\"overrides\":[{\"name\":\"" + std::string(1025, 'a') + "\"}]")},
      {"/overrides/0/param_bitwidth: expected a number, found string", layer(R"("param_bitwidth":"8")")},
      {"/overrides/0/param_bitwidth: 8.5 is not an integer in 2..32", layer(R"("param_bitwidth":8.5)")},
      {"/overrides/0/param_bitwidth: 64 is not an integer in 2..32", layer(R"("param_bitwidth":64)")},
      {"/overrides/0/is_quantized: \"yes\" is neither \"True\" nor \"False\"", layer(R"("is_quantized":"yes")")},
      {"/overrides/0/is_quantized: expected \"True\" or \"False\", found number", layer(R"("is_quantized":1)")},
      {"/supergroup_pass_list: 65 elements; the limit is 64", config("\"supergroup_pass_list\":[" + repeated("\"a\"", 65) + "]")},
  });
}

TEST_CASE("quantsim config: every contradiction has its message") {
  std::string ops;
  for (int i = 0; i <= 1024; ++i) ops += text(i ? "," : "", "\"Op", i, "\":{}");
  check_configs({
      {"/defaults: strict_symmetric and unsigned_symmetric contradict each other", R"({"defaults":{"strict_symmetric":"True","unsigned_symmetric":"True"}})"},
      {"/defaults/supported_kernels/0/param/dtype: \"real\" is neither \"int\" nor \"float\"", R"({"defaults":{"supported_kernels":[{"param":{"bitwidth":8,"dtype":"real"}}]}})"},
      {"/op_type: more than 1024 ops", config("\"op_type\":{" + ops + "}")},
      {"/op_type: unknown op \"Covn\" (nearest: Conv)", config(R"("op_type":{"Covn":{}})")},
      {"/encoding_constraints/min: 0.5 leaves zero outside the range", op(R"("encoding_constraints":{"min":0.5})")},
      {"/encoding_constraints/max: -0.5 leaves zero outside the range", op(R"("encoding_constraints":{"max":-0.5})")},
      {"/op_type/Relu/encoding_constraints: min 0 is not below max 0", op(R"("encoding_constraints":{"min":0,"max":0})")},
      {"a fixed range contradicts is_output_quantized", op(R"("is_output_quantized":"False","encoding_constraints":{"min":0,"max":1})")},
      {"/supergroups/0/op_list: a supergroup has at least two ops", config(R"("supergroups":[{"op_list":["Conv"]}])")},
      {"/supergroups/0/op_list/1: unknown op \"Rleu\"", config(R"("supergroups":[{"op_list":["Conv","Rleu"]}])")},
      {"/supergroups/0/op_list/1: the group takes away the input quantizer", config(R"("op_type":{"Relu":{"is_input_quantized":"True"}},"supergroups":[{"op_list":["Conv","Relu"]}])")},
      {"/overrides/0/name: an empty pattern matches no layer", config(R"("overrides":[{"name":""}])")},
      {"/overrides/0/param_dtype: number format 'flaot16' is unknown (nearest: float16)", layer(R"("param_dtype":"flaot16")")},
      {"/overrides/0/param_dtype: bfloat16 has 16 bits, not 8", layer(R"("param_dtype":"bfloat16","param_bitwidth":8)")},
      {"/overrides/0/scheme: ", layer(R"("scheme":"tf_enhansed")")},
      {"is_symmetric and is_param_symmetric contradict each other", layer(R"("is_symmetric":"False","is_param_symmetric":"True")")},
      {"/overrides/0: param_bitwidth is given for parameters that are not quantized", layer(R"("is_param_quantized":"False","param_bitwidth":4)")},
      {"/overrides/0: output_bitwidth is given for an output that is not quantized", layer(R"("is_output_quantized":"False","output_bitwidth":4)")},
      {"/overrides/0: scheme or is_frozen is given for a layer that is not quantized", layer(R"("is_quantized":"False","is_frozen":"True")")},
  });
}

TEST_CASE("quantsim config: 16-bit floats have 16 bits, said or not") {
  for (const char* good : {R"("param_dtype":"bfloat16","param_bitwidth":16)", R"("param_dtype":"bfloat16")", R"("param_dtype":"int","param_bitwidth":4)"}) CHECK_NOTHROW(quant::parse_config(layer(good), "my.json"));
}

TEST_CASE("encodings 0.6.1: what is refused") {
  const std::string good = R"({"bitwidth":8,"dtype":"int","is_symmetric":"False","offset":0,"scale":1})";
  check_encodings({
      {"\"version\" is missing", "{}"},
      {"version \"3.0\" is unknown", R"({"version":"3.0"})"},
      {"is nested deeper than 8 levels", std::string(10, '[')},
      {"/activation_encodings/x: an empty list of encodings", v061("")},
      {"/activation_encodings/x/0/bitwidth: 1 is not an integer in 2..32", v061(R"({"bitwidth":1})")},
      {"/activation_encodings/x/0/dtype: \"real\" is neither", v061(R"({"bitwidth":8,"dtype":"real"})")},
      {"/activation_encodings/x/0: min 1 is above max 0", v061(R"({"bitwidth":8,"is_symmetric":"False","offset":0,"scale":1,"min":1,"max":0})")},
      {"/activation_encodings/x/0/offset: -300 is not an integer in -255..0", v061(R"({"bitwidth":8,"is_symmetric":"False","offset":-300,"scale":1})")},
      {"/activation_encodings/x/0/scale: scale 0 is not a positive 32-bit float", v061(R"({"bitwidth":8,"is_symmetric":"False","offset":0,"scale":0})")},
      {"/activation_encodings/x/1: channels of one tensor differ in bits or symmetry", v061(good + R"(,{"bitwidth":8,"is_symmetric":"True","offset":-128,"scale":1})")},
      {"/excluded_layers: expected a list", R"({"version":"0.6.1","activation_encodings":{},"param_encodings":{},"excluded_layers":1})"},
      {"/quantizer_args: expected an object", R"({"version":"0.6.1","activation_encodings":{},"param_encodings":{},"quantizer_args":1})"},
  });
}

TEST_CASE("encodings 1.0.0: what is refused") {
  const std::string tensor = R"("enc_type":"PER_TENSOR",)";
  check_encodings({
      {"/activation_encodings/1: \"x\" appears twice", v100(R"({"name":"x","enc_type":"PER_TENSOR","dtype":"FLOAT","bw":16},{"name":"x"})")},
      {"/activation_encodings/0/enc_type: \"PER_BLOCK\" is not supported", v100(R"({"name":"x","enc_type":"PER_BLOCK","dtype":"INT"})")},
      {"/activation_encodings/0/dtype: \"REAL\" is neither", v100(R"({"name":"x","enc_type":"PER_TENSOR","dtype":"REAL","bw":8})")},
      {"/zero_point_shift/0: half-step zero points are not supported", int100(tensor + R"("zero_point_shift":[0.5])")},
      {"0 scales and 0 offsets; they must be as many", int100(tensor + R"("scale":[],"offset":[])")},
      {"2 scales and 1 offsets; they must be as many", int100(tensor + R"("scale":[1,1],"offset":[0])")},
      {"/scale: 2 scales in a PER_TENSOR encoding", int100(tensor + R"("scale":[1,1],"offset":[0,0])")},
      {"/scale/0: scale 1e-60 is not a positive 32-bit float", int100(tensor + R"("scale":[1e-60],"offset":[0])")},
  });
}

TEST_CASE("encodings 2.0.0: what is refused") {
  check_encodings({
      {"/encodings/0/block_size: blockwise encodings are not supported", one200(R"("block_size":32)")},
      {"/encodings/0/output_dtype: \"uint9\" is not an integer type (nearest: uint", v200(R"({"name":"x","output_dtype":"uint9"})")},
      {"/encodings/0/y_scale: no scales", one200(R"("y_scale":[])")},
      {"/encodings/0/axis: 6 is not an integer in 0..5", one200(R"("y_scale":[1],"axis":6)")},
      {"/encodings/0: 2 scales and no axis", one200(R"("y_scale":[1,1])")},
      {"/encodings/0/y_zero_point: y_scale and y_zero_point differ in shape", one200(R"("y_scale":1,"y_zero_point":[0])")},
      {"/encodings/0/y_zero_point: 1 zero points for 2 scales", one200(R"("y_scale":[1,1],"axis":0,"y_zero_point":[0])")},
      {"/encodings/0/y_zero_point: 256 is not an integer in 0..255", one200(R"("y_scale":1,"y_zero_point":256)")},
      {"/encodings/1: \"x\" appears twice", v200(R"({"name":"x","output_dtype":"uint8","y_scale":1},{"name":"x","output_dtype":"uint8","y_scale":1})")},
  });
}

TEST_CASE("encodings: what no version can hold is refused when it is written") {
  const Grid g{0.5f, 0, 0, 255};
  const auto one = [](Encoding e) {
    EncodingMap m;
    m.activations.push_back(std::move(e));
    return m;
  };
  const auto entry = [&](const std::string& name, std::vector<Grid> grids, int bits = 8) {
    Encoding e;
    e.name = name, e.bits = bits, e.grids = std::move(grids);
    return e;
  };
  EncodingMap twice = one(entry("x", {g}));
  twice.activations.push_back(twice.activations[0]);
  struct Written {
    const char *words, *version;
    EncodingMap map;
  };
  const std::vector<Written> rows = {
      {"an entry has no name", "1.0.0", one(entry("", {g}))},
      {"\"x\" has no grid; calibrate it", "1.0.0", one(entry("x", {}))},
      {"\"x\" has a grid of scale 0.5, zero point 300", "1.0.0", one(entry("x", {{0.5f, 300, 0, 255}}))},
      {"\"x\" has 7 bits; the format has types of 2, 4, 8, 16 and 32 bits", "2.0.0", one(entry("x", {{0.5f, 0, 0, 127}}, 7))},
      {"\"x\" has signed and unsigned channels", "2.0.0", one(entry("x", {g, {0.5f, 0, -128, 127}}))},
      {"\"x\" appears twice", "0.6.1", twice},
      {"a name is not UTF-8 text", "1.0.0", one(entry("\xff", {g}))},
      {"encodings version \"1.0\" is unknown", "1.0", one(entry("x", {g}))},
  };
  for (const Written& r : rows) {
    std::string message;
    try {
      io::write_encodings(r.map, r.version);
    } catch (const Error& e) {
      message = e.what();
    }
    CHECK_MESSAGE(message.find(r.words) != std::string::npos, "'" << message << "' does not contain '" << r.words << "'");
  }
}

TEST_CASE("a quantizer's state in a checkpoint: every value that does not fit is refused") {
  using quant::QuantizerState;
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  struct State {
    uint8_t state = static_cast<uint8_t>(QuantizerState::frozen);
    int ranges = 1;
    Range range{-1.0, 1.0};
    Grid grid{0.1f, 0, -128, 127};
    std::string statistics = {};
    int least = 0;
    std::string behind = {};
    std::string bytes() const {
      ByteWriter out;
      out.put(state);
      out.put<uint64_t>(static_cast<uint64_t>(ranges));
      for (int i = 0; i < ranges; ++i) {
        out.put(-1.0f), out.put(1.0f);
        out.put(range), out.put(Range{-1.0, 1.0});
        out.put(grid);
      }
      out.put_string(statistics);
      out.put<uint8_t>(0);
      out.put<uint64_t>(static_cast<uint64_t>(least));
      for (int i = 0; i < least; ++i) out.put(1.0);
      return out.take() + behind;
    }
  };
  const auto observing = static_cast<uint8_t>(QuantizerState::observing);
  const std::vector<std::pair<const char*, State>> rows = {
      {"state 9 in the checkpoint is unknown", {.state = 9}},
      {"grid 0 in the checkpoint is not valid", {.grid = {0.0f, 0, -128, 127}}},
      {"range 0 in the checkpoint, [NaN, 1], is not finite", {.range = {kNaN, 1.0}}},
      {"estimator state begins with", {.statistics = "nonsense"}},
      {"2 smallest scales for 1 grids in the checkpoint", {.least = 2}},
      {"bytes are left over behind its state", {.behind = "x"}},
      {"the checkpoint holds no range", {.ranges = 0}},
      {"the checkpoint holds no calibration statistics", {.state = observing}},
      {"2 ranges in the checkpoint, this network has one", {.ranges = 2}},
  };
  quant::QuantizerSpec spec;
  spec.grid.bits = 8;
  quant::Quantizer good("v", spec);
  good.restore(State{}.bytes());  // what the rows change is read
  CHECK(good.state() == QuantizerState::frozen);
  for (const auto& row : rows) {
    const auto& words = row.first;
    const auto& state = row.second;
    quant::Quantizer q("v", spec);
    std::string message;
    try {
      q.restore(state.bytes());
    } catch (const Error& e) {
      message = e.what();
    }
    CHECK_MESSAGE(message.find(words) != std::string::npos, "'" << message << "' does not contain '" << words << "'");
    CHECK(q.state() == QuantizerState::off);
    CHECK_FALSE(q.calibrated());
  }
}
