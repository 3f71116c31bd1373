// Encodings files: every version round-trips to the bit, holds what AIMET's hold, and refuses what is wrong.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "detent/core/error.h"
#include "detent/io/encodings.h"

using namespace detent;
using quant::Encoding;
using quant::EncodingMap;

namespace {

Encoding entry(const std::string& name, const Range& r, int bits, bool symmetric, bool strict = false) {
  GridSpec spec;
  spec.bits = bits, spec.symmetric = symmetric, spec.strict = strict;
  Encoding e;
  e.name = name, e.bits = bits, e.symmetric = symmetric, e.grids = {grid_from_range(r, spec)};
  return e;
}

EncodingMap random_map(uint32_t seed) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<double> d(-3.0, 3.0);
  EncodingMap m;
  for (int i = 0; i < 20; ++i) m.activations.push_back(entry("act" + std::to_string(i), {-std::fabs(d(rng)), std::fabs(d(rng)) * std::pow(10.0, d(rng))}, i % 2 ? 8 : 16, false));
  for (int i = 0; i < 20; ++i) {
    Encoding e = entry("w" + std::to_string(i), {-1.0, 1.0}, i % 3 ? 8 : 4, true);
    GridSpec spec;
    spec.bits = e.bits, spec.symmetric = true;
    e.grids.clear();
    for (int c = 0; c < 5; ++c) e.grids.push_back(grid_from_range({0.0, std::pow(10.0, d(rng))}, spec));
    e.channel_axis = 0;
    m.params.push_back(e);
  }
  Encoding bias;
  bias.name = "conv.bias", bias.bits = 32, bias.symmetric = true, bias.channel_axis = 0;
  bias.grids = {{1.2345e-5f, 0, INT32_MIN, INT32_MAX}, {7e-9f, 0, INT32_MIN, INT32_MAX}};
  m.params.push_back(bias);
  m.excluded_layers = {"a", "b"};
  m.args.quant_scheme = "post_training_tf_enhanced";
  m.args.per_channel = true;
  return m;
}

std::string message(const std::string& json) {
  try {
    io::read_encodings(json, "my.encodings");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool mentions(const std::string& text, const char* word) { return text.find(word) != std::string::npos; }

}  // namespace

TEST_CASE("every version reads back to the same grids, bit for bit") {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const EncodingMap m = random_map(seed);
    for (const std::string& version : io::encodings_versions()) {
      CAPTURE(version);
      const EncodingMap back = io::read_encodings(io::write_encodings(m, version), "memory");
      REQUIRE(back.activations.size() + back.params.size() == m.activations.size() + m.params.size());
      for (const auto* list : {&m.activations, &m.params}) {
        for (const Encoding& e : *list) {
          const Encoding* got = back.find(e.name);
          REQUIRE(got != nullptr);
          REQUIRE(got->bits == e.bits);
          REQUIRE(got->grids == e.grids);
          REQUIRE(got->symmetric == e.symmetric);
        }
      }
      if (version != "2.0.0") {
        CHECK(back.excluded_layers == m.excluded_layers);
        CHECK(back.args.quant_scheme == m.args.quant_scheme);
        CHECK(back.args.per_channel);
        CHECK(back.params.size() == m.params.size());
      }
    }
  }
}

TEST_CASE("what the files hold") {
  EncodingMap m;
  m.activations.push_back(entry("relu", {0.0, 5.98}, 8, false));
  m.activations.push_back(entry("x", {-1.0, 3.0}, 8, false));
  m.params.push_back(entry("conv1.weight", {-0.635, 0.6}, 8, true));
  m.params.push_back(entry("strict.weight", {-1.27, 0.6}, 8, true, true));
  Encoding half;
  half.name = "kept", half.is_float = true, half.bits = 16;
  m.activations.push_back(half);
  const auto maps = nlohmann::json::parse(io::write_encodings(m, "0.6.1"));
  const auto& w = maps.at("param_encodings").at("conv1.weight").at(0);
  CHECK(w.at("scale") == 0.005);
  CHECK(w.at("offset") == -128);
  CHECK(w.at("is_symmetric") == "True");
  CHECK(w.at("min") == -0.64);
  CHECK(w.at("max") == 0.635);
  CHECK(maps.at("param_encodings").at("strict.weight").at(0).at("offset") == -127);
  CHECK(maps.at("activation_encodings").at("x").at(0).at("offset") == -64);
  CHECK(maps.at("activation_encodings").at("kept").at(0) == nlohmann::json({{"bitwidth", 16}, {"dtype", "float"}}));
  const auto flat = nlohmann::json::parse(io::write_encodings(m, "2.0.0")).at("encodings");
  CHECK(flat.size() == 4);  // float tensors have no entry
  CHECK(flat.at(0).at("output_dtype") == "uint8");
  CHECK_FALSE(flat.at(0).contains("y_zero_point"));
  CHECK(flat.at(1).at("y_zero_point") == 64);
  CHECK(flat.at(2).at("output_dtype") == "int8");
  CHECK_FALSE(flat.at(2).contains("y_zero_point"));
  const EncodingMap strict = io::read_encodings(io::write_encodings(m, "1.0.0"), "memory");
  CHECK(strict.find("strict.weight")->grids.at(0).qmin == -127);
  CHECK_THROWS_AS(io::write_encodings(m, "1.0"), Error);
  m.params[0].grids[0].scale = 0.0f;
  CHECK_THROWS_AS(io::write_encodings(m, "1.0.0"), Error);
}

TEST_CASE("AIMET's own shapes are read") {
  const EncodingMap a = io::read_encodings(R"({"version":"1.0.0","producer":{"package":"aimet-torch"},"activation_encodings":[{"name":"x","dtype":"INT","bw":8,"is_sym":false,"scale":[0.0187],"offset":[-114],"enc_type":"PER_TENSOR"}],
    "param_encodings":[{"name":"w","dtype":"INT","bw":8,"is_sym":true,"scale":[0.01,0.02],"offset":[-128,-128],"enc_type":"PER_CHANNEL"}],"excluded_layers":[],"quantizer_args":{"is_symmetric":"True"}})",
                                           "memory");
  CHECK(a.find("x")->grids.at(0) == Grid{0.0187f, 114, 0, 255});
  CHECK(a.find("w")->grids.at(1) == Grid{0.02f, 0, -128, 127});
  const EncodingMap b = io::read_encodings(R"({"version":"2.0.0","encodings":[{"name":"relu","y_scale":0.0234,"y_zero_point":0,"output_dtype":"uint8"},
    {"name":"b","y_scale":[0.0002,0.0004],"axis":0,"output_dtype":"int32"},{"name":"s","y_scale":0.5,"y_zero_point":128,"output_dtype":"uint8"}]})",
                                           "memory");
  CHECK(b.find("relu")->grids.at(0) == Grid{0.0234f, 0, 0, 255});
  CHECK(b.find("b")->bits == 32);
  CHECK(b.find("s")->symmetric);
}

TEST_CASE("malformed files are refused with their place") {
  CHECK(mentions(message("{}"), "\"version\" is missing"));
  CHECK(mentions(message(R"({"version":"3.0"})"), "3.0"));
  CHECK(mentions(message(R"({"version":"2.0.0","encodings":[{"name":"a","y_scale":0.5,"output_dtype":"uint9"}]})"), "nearest: uint"));
  CHECK(mentions(message(R"({"version":"2.0.0","encodings":[{"name":"a","y_scale":0,"output_dtype":"uint8"}]})"), "/encodings/0/y_scale"));
  CHECK(mentions(message(R"({"version":"2.0.0","encodings":[{"name":"a","y_scale":1e-60,"output_dtype":"uint8"}]})"), "scale"));
  CHECK(mentions(message(R"({"version":"2.0.0","encodings":[{"name":"a","y_scale":1,"y_zero_point":256,"output_dtype":"uint8"}]})"), "0..255"));
  CHECK(mentions(message(R"({"version":"2.0.0","encodings":[{"name":"a","y_scale":[1,1],"y_zero_point":[0],"axis":0,"output_dtype":"uint8"}]})"), "zero points"));
  CHECK(mentions(message(R"({"version":"2.0.0","encodings":[{"name":"a","y_scale":1,"output_dtype":"uint8"},{"name":"a","y_scale":1,"output_dtype":"uint8"}]})"), "twice"));
  CHECK(mentions(message(R"({"version":"2.0.0","encodings":[{"name":"a","per_block_int_scale":[[3]],"output_dtype":"int4"}]})"), "blockwise"));
  CHECK(mentions(message(R"({"version":"1.0.0","activation_encodings":[],"param_encodings":[{"name":"w","dtype":"INT","bw":8,"is_sym":true,"scale":[1,1],"offset":[-128],"enc_type":"PER_CHANNEL"}]})"), "as many"));
  CHECK(mentions(message(R"({"version":"0.6.1","activation_encodings":{"x":[{"bitwidth":8,"dtype":"int","is_symmetric":"False","offset":-300,"scale":1}]},"param_encodings":{}})"), "-255..0"));
  CHECK(mentions(message(R"({"version":"0.6.1","activation_encodings":{"x":[{"bitwidth":8,"dtype":"int","is_symmetric":"False","offset":-1.5,"scale":1}]},"param_encodings":{}})"), "integer"));
  CHECK(mentions(message(std::string(1000, '[')), "nested deeper"));
  const std::string good = io::write_encodings(random_map(1), "1.0.0");
  std::mt19937 rng(3);
  for (int i = 0; i < 200; ++i) {
    std::string bad = good;
    bad[rng() % bad.size()] = static_cast<char>(rng() % 256);
    try {  // either still valid, or an Error; nothing else
      for (const Encoding& e : io::read_encodings(bad, "fuzz").params) {
        for (const Grid& g : e.grids) REQUIRE(is_valid(g));
      }
    } catch (const Error&) {
    }
  }
}
