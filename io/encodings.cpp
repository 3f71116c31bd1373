#include "detent/io/encodings.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "detent/core/error.h"
#include "detent/quant/json_text.h"

namespace detent::io {
namespace {

using quant::Encoding;
using quant::EncodingMap;
using quant::JsonNode;
using Json = nlohmann::ordered_json;

constexpr std::string_view kWhat = "encodings";
constexpr size_t kMaxEntries = size_t{1} << 20;
constexpr size_t kMaxChannels = size_t{1} << 22;

int64_t offset_of(const Grid& g) { return static_cast<int64_t>(g.qmin) - g.zero_point; }

// A grid as the files describe it: `offset` is minus the zero point on the unsigned grid. Symmetric grids whose offset is the middle become signed.
Grid make_grid(double scale, int64_t offset, int bits, bool symmetric) {
  const int64_t half = int64_t{1} << (bits - 1);
  Grid g;
  g.scale = static_cast<float>(scale);
  if ((symmetric && (offset == -half || offset == 1 - half)) || bits == 32) {
    // A strict grid (offset -127) has no code -128. With 32 bits even an asymmetric grid is held shifted by 2^31.
    const bool strict = symmetric && offset == 1 - half;
    g.qmin = strict ? static_cast<int32_t>(1 - half) : static_cast<int32_t>(-half);
    g.qmax = static_cast<int32_t>(half - 1);
    g.zero_point = static_cast<int32_t>(static_cast<int64_t>(g.qmin) - offset);
  } else {
    g.qmin = 0;
    g.qmax = static_cast<int32_t>(2 * half - 1);
    g.zero_point = static_cast<int32_t>(-offset);
  }
  return g;
}

void check_entry(const Encoding& e) {
  DETENT_CHECK(!e.name.empty(), "encodings: an entry has no name");
  DETENT_CHECK(e.is_float || !e.grids.empty(), "encodings: \"", e.name, "\" has no grid; calibrate it or mark it as float");
  for (const Grid& g : e.grids) {
    DETENT_CHECK(is_valid(g), "encodings: \"", e.name, "\" has a grid of scale ", g.scale, ", zero point ", g.zero_point, ", codes ", g.qmin, "..", g.qmax, "; zero must lie on it");
  }
}

// The shortest decimal that reads back as this float: 0.1, not 0.10000000149011612.
double decimal(float f) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, f).ptr;
  double d = 0.0;
  std::from_chars(buffer, end, d);
  return static_cast<float>(d) == f ? d : static_cast<double>(f);
}

Json producer() { return {{"package", "detent"}, {"version", "1"}}; }

Json quantizer_args(const quant::QuantizerArgs& a) {
  return {{"activation_bitwidth", a.activation_bitwidth},
          {"dtype", a.dtype},
          {"is_symmetric", a.symmetric},
          {"param_bitwidth", a.param_bitwidth},
          {"per_channel_quantization", a.per_channel},
          {"quant_scheme", a.quant_scheme}};
}

Json entry_061(const Encoding& e) {
  Json list = Json::array();
  if (e.is_float) {
    list.push_back({{"bitwidth", e.bits}, {"dtype", "float"}});
    return list;
  }
  for (const Grid& g : e.grids) {
    const double scale = decimal(g.scale);
    list.push_back({{"bitwidth", e.bits},
                    {"dtype", "int"},
                    {"is_symmetric", e.symmetric ? "True" : "False"},
                    {"max", scale * static_cast<double>(static_cast<int64_t>(g.qmax) - g.zero_point)},
                    {"min", scale * static_cast<double>(offset_of(g))},
                    {"offset", offset_of(g)},
                    {"scale", scale}});
  }
  return list;
}

Json entry_100(const Encoding& e) {
  Json j = {{"name", e.name}, {"enc_type", e.grids.size() > 1 ? "PER_CHANNEL" : "PER_TENSOR"}, {"dtype", e.is_float ? "FLOAT" : "INT"}, {"bw", e.bits}};
  if (e.is_float) return j;
  j["is_sym"] = e.symmetric;
  j["scale"] = Json::array();
  j["offset"] = Json::array();
  for (const Grid& g : e.grids) {
    j["scale"].push_back(decimal(g.scale));
    j["offset"].push_back(offset_of(g));
  }
  return j;
}

Json entry_200(const Encoding& e) {
  static constexpr int kBits[] = {2, 4, 8, 16, 32};
  DETENT_CHECK(std::find(std::begin(kBits), std::end(kBits), e.bits) != std::end(kBits), "encodings 2.0.0: \"", e.name, "\" has ", e.bits,
               " bits; the format has types of 2, 4, 8, 16 and 32 bits; write 1.0.0");
  const bool is_signed = e.grids[0].qmin < 0;
  Json scales = Json::array(), zeros = Json::array();
  bool any = false;
  for (const Grid& g : e.grids) {
    DETENT_CHECK((g.qmin < 0) == is_signed, "encodings 2.0.0: \"", e.name, "\" has signed and unsigned channels; the format holds one type");
    scales.push_back(decimal(g.scale));
    zeros.push_back(g.zero_point);
    any = any || g.zero_point != 0;
  }
  Json j = {{"name", e.name}, {"output_dtype", text(is_signed ? "int" : "uint", e.bits)}};
  const bool per_channel = e.grids.size() > 1 || e.channel_axis >= 0;
  j["y_scale"] = per_channel ? scales : scales[0];
  if (any) j["y_zero_point"] = per_channel ? zeros : zeros[0];
  if (per_channel) j["axis"] = std::max(0, e.channel_axis);
  return j;
}

// What 0.6.1 and 1.0.0 share around their sections.
template <class Section>
std::string document(const EncodingMap& map, const char* version, const Section& section) {
  Json j;
  j["activation_encodings"] = section(map.activations);
  j["excluded_layers"] = map.excluded_layers;
  j["param_encodings"] = section(map.params);
  j["producer"] = producer();
  j["quantizer_args"] = quantizer_args(map.args);
  j["version"] = version;
  return j.dump(4) + "\n";
}

std::string write_maps(const EncodingMap& map) {
  const auto section = [](const std::vector<Encoding>& list) {
    Json s = Json::object();
    for (const Encoding& e : list) {
      DETENT_CHECK(!s.contains(e.name), "encodings: \"", e.name, "\" appears twice");
      s[e.name] = entry_061(e);
    }
    return s;
  };
  return document(map, "0.6.1", section);
}

std::string write_lists(const EncodingMap& map) {
  const auto section = [](const std::vector<Encoding>& list) {
    Json s = Json::array();
    for (const Encoding& e : list) s.push_back(entry_100(e));
    return s;
  };
  return document(map, "1.0.0", section);
}

std::string write_flat(const EncodingMap& map) {
  Json j;
  j["version"] = "2.0.0";
  j["producer"] = producer();
  j["encodings"] = Json::array();
  for (const auto* list : {&map.activations, &map.params}) {
    for (const Encoding& e : *list) {
      if (!e.is_float) j["encodings"].push_back(entry_200(e));  // the format leaves float tensors out
    }
  }
  return j.dump(2) + "\n";
}

// ---- reading ---------------------------------------------------------------------------------------------------------------------------------------

double scale_at(const JsonNode& n) {
  const double s = n.number();
  if (!(s > 0.0) || !(static_cast<float>(s) > 0.0f) || !std::isfinite(static_cast<float>(s))) n.fail_here(text("scale ", s, " is not a positive 32-bit float"));
  return s;
}

Grid grid_at(const JsonNode& scale, const JsonNode& offset, int bits, bool symmetric) {
  const double s = scale_at(scale);
  const int64_t o = offset.integer(-((int64_t{1} << bits) - 1), 0);
  return make_grid(s, o, bits, symmetric);  // these offsets are those that put zero on the grid
}

// One element of a 0.6.1 list.
void read_061_element(const JsonNode& n, Encoding& e) {
  n.object();
  const std::string dtype = n.has("dtype") ? n.at("dtype").string() : "int";
  e.bits = static_cast<int>(n.at("bitwidth").integer(2, 32));
  if (dtype == "float") {
    e.is_float = true;
    return;
  }
  if (dtype != "int") n.at("dtype").fail_here(text("\"", dtype.substr(0, 32), "\" is neither \"int\" nor \"float\""));
  e.symmetric = n.at("is_symmetric").boolean();
  const Grid g = grid_at(n.at("scale"), n.at("offset"), e.bits, e.symmetric);
  if (n.has("min") && n.has("max") && n.at("min").number() > n.at("max").number()) n.fail_here(text("min ", n.at("min").number(), " is above max ", n.at("max").number()));
  e.grids.push_back(g);
}

std::vector<Encoding> read_061_section(const JsonNode& section, bool params) {
  std::vector<Encoding> out;
  for (const auto& item : section.object().value().items()) {
    const JsonNode list = section.at(item.key());
    Encoding e;
    e.name = item.key();
    if (list.array(kMaxChannels).size() == 0) list.fail_here("an empty list of encodings");
    for (size_t i = 0; i < list.size(); ++i) {
      const int bits = e.bits;
      const bool symmetric = e.symmetric;
      read_061_element(list.at(i), e);
      if (i > 0 && (e.is_float || e.bits != bits || e.symmetric != symmetric)) list.at(i).fail_here("channels of one tensor differ in bits or symmetry");
    }
    if (params && e.grids.size() > 1) e.channel_axis = 0;
    out.push_back(std::move(e));
  }
  return out;
}

std::vector<Encoding> read_100_section(const JsonNode& section, bool params) {
  std::vector<Encoding> out;
  std::set<std::string> names;
  for (size_t i = 0; i < section.array(kMaxEntries).size(); ++i) {
    const JsonNode n = section.at(i);
    Encoding e;
    e.name = n.at("name").string(4096);
    if (!names.insert(e.name).second) n.fail_here(text("\"", e.name.substr(0, 64), "\" appears twice"));
    const std::string type = n.at("enc_type").string(), dtype = n.at("dtype").string();
    if (type != "PER_TENSOR" && type != "PER_CHANNEL") n.at("enc_type").fail_here(text("\"", type.substr(0, 32), "\" is not supported; only PER_TENSOR and PER_CHANNEL are"));
    e.bits = static_cast<int>(n.at("bw").integer(2, 32));
    if (dtype == "FLOAT") {
      e.is_float = true;
      out.push_back(std::move(e));
      continue;
    }
    if (dtype != "INT") n.at("dtype").fail_here(text("\"", dtype.substr(0, 32), "\" is neither \"INT\" nor \"FLOAT\""));
    if (n.has("zero_point_shift")) {
      const JsonNode shifts = n.at("zero_point_shift");
      for (size_t k = 0; k < shifts.array(kMaxChannels).size(); ++k) {
        if (shifts.at(k).number() != 0.0) shifts.at(k).fail_here("half-step zero points are not supported");
      }
    }
    e.symmetric = n.at("is_sym").boolean();
    const JsonNode scales = n.at("scale"), offsets = n.at("offset");
    if (scales.array(kMaxChannels).size() == 0 || offsets.array(kMaxChannels).size() != scales.size()) n.fail_here(text(scales.size(), " scales and ", offsets.size(), " offsets; they must be as many"));
    if (type == "PER_TENSOR" && scales.size() != 1) scales.fail_here(text(scales.size(), " scales in a PER_TENSOR encoding"));
    for (size_t k = 0; k < scales.size(); ++k) e.grids.push_back(grid_at(scales.at(k), offsets.at(k), e.bits, e.symmetric));
    if (params && type == "PER_CHANNEL") e.channel_axis = 0;
    out.push_back(std::move(e));
  }
  return out;
}

Encoding read_200_entry(const JsonNode& n) {
  Encoding e;
  e.name = n.at("name").string(4096);
  for (const char* key : {"block_size", "per_block_int_scale", "per_channel_float_scale"}) {
    if (n.has(key)) n.at(key).fail_here("blockwise encodings are not supported; only per tensor and per channel are");
  }
  const std::string type = n.at("output_dtype").string();
  static constexpr std::string_view kTypes[] = {"int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32"};
  if (std::find(std::begin(kTypes), std::end(kTypes), type) == std::end(kTypes)) {
    n.at("output_dtype").fail_here(text("\"", type.substr(0, 32), "\" is not an integer type", nearest_name(type, kTypes, std::size(kTypes))));
  }
  const bool is_unsigned = type[0] == 'u';
  e.bits = std::stoi(type.substr(is_unsigned ? 4 : 3));
  const JsonNode scale = n.at("y_scale");
  const bool per_channel = scale.value().is_array();
  const size_t count = per_channel ? scale.array(kMaxChannels).size() : 1;
  if (count == 0) scale.fail_here("no scales");
  if (n.has("axis")) e.channel_axis = static_cast<int>(n.at("axis").integer(0, 5));
  if (per_channel && e.channel_axis < 0 && count > 1) n.fail_here(text(count, " scales and no axis"));
  if (n.has("y_zero_point") && n.at("y_zero_point").value().is_array() != per_channel) n.at("y_zero_point").fail_here("y_scale and y_zero_point differ in shape");
  if (n.has("y_zero_point") && per_channel && n.at("y_zero_point").size() != count) n.at("y_zero_point").fail_here(text(n.at("y_zero_point").size(), " zero points for ", count, " scales"));
  const int64_t half = int64_t{1} << (e.bits - 1), lo = is_unsigned ? 0 : -half, hi = is_unsigned ? 2 * half - 1 : half - 1;
  bool all_zero = true, all_middle = true;
  for (size_t i = 0; i < count; ++i) {
    int64_t z = 0;
    if (n.has("y_zero_point")) {
      const JsonNode zero = n.at("y_zero_point");
      z = (per_channel ? zero.at(i) : zero).integer(lo, hi);
    }
    all_zero = all_zero && z == 0;
    all_middle = all_middle && z == half;
    const int64_t shift = is_unsigned && e.bits == 32 ? half : 0;
    Grid g{static_cast<float>(scale_at(per_channel ? scale.at(i) : scale)), static_cast<int32_t>(z - shift), static_cast<int32_t>(lo - shift), static_cast<int32_t>(hi - shift)};
    e.grids.push_back(g);
  }
  e.symmetric = is_unsigned ? all_middle : all_zero;
  return e;
}

quant::QuantizerArgs read_args(const JsonNode& n) {
  quant::QuantizerArgs a;
  n.object();
  if (n.has("activation_bitwidth")) a.activation_bitwidth = static_cast<int>(n.at("activation_bitwidth").integer(2, 32));
  if (n.has("param_bitwidth")) a.param_bitwidth = static_cast<int>(n.at("param_bitwidth").integer(2, 32));
  if (n.has("is_symmetric")) a.symmetric = n.at("is_symmetric").boolean();
  if (n.has("per_channel_quantization")) a.per_channel = n.at("per_channel_quantization").boolean();
  if (n.has("dtype")) a.dtype = n.at("dtype").string(64);
  if (n.has("quant_scheme")) a.quant_scheme = n.at("quant_scheme").string(256);
  return a;
}

void read_common(const JsonNode& root, EncodingMap& map) {
  if (root.has("excluded_layers")) {
    const JsonNode list = root.at("excluded_layers");
    for (size_t i = 0; i < list.array(kMaxEntries).size(); ++i) map.excluded_layers.push_back(list.at(i).string(4096));
  }
  if (root.has("quantizer_args")) map.args = read_args(root.at("quantizer_args"));
}

}  // namespace

const std::vector<std::string>& encodings_versions() {
  static const std::vector<std::string> versions{"0.6.1", "1.0.0", "2.0.0"};
  return versions;
}

std::string write_encodings(const EncodingMap& map, std::string_view version) {
  for (const auto* list : {&map.activations, &map.params}) {
    for (const Encoding& e : *list) check_entry(e);
  }
  try {
    if (version == "0.6.1") return write_maps(map);
    if (version == "1.0.0") return write_lists(map);
    if (version == "2.0.0") return write_flat(map);
  } catch (const nlohmann::json::exception& e) {
    fail("encodings: a name is not UTF-8 text (", e.what(), ")");
  }
  std::vector<std::string_view> names(encodings_versions().begin(), encodings_versions().end());
  fail("encodings version \"", version.substr(0, 32), "\" is unknown", nearest_name(version, names.data(), names.size()), "; choose 0.6.1, 1.0.0 or 2.0.0");
}

EncodingMap read_encodings(std::string_view text, std::string_view source_name) {
  const nlohmann::json document = quant::parse_json(text, kWhat, source_name, {size_t{256} << 20, 8});
  const JsonNode root(document, kWhat, source_name);
  const std::string version = root.at("version").string();
  EncodingMap map;
  if (version == "0.6.1" || version == "0.6.2" || version == "0.5.0" || version == "0.4.0") {
    map.activations = read_061_section(root.at("activation_encodings"), false);
    map.params = read_061_section(root.at("param_encodings"), true);
    read_common(root, map);
    return map;
  }
  if (version == "1.0.0") {
    map.activations = read_100_section(root.at("activation_encodings"), false);
    map.params = read_100_section(root.at("param_encodings"), true);
    read_common(root, map);
    return map;
  }
  if (version == "2.0.0" || version == "2.1.0") {
    const JsonNode list = root.at("encodings");
    std::set<std::string> names;
    for (size_t i = 0; i < list.array(kMaxEntries).size(); ++i) {
      Encoding e = read_200_entry(list.at(i));
      if (!names.insert(e.name).second) list.at(i).fail_here(detent::text("\"", e.name.substr(0, 64), "\" appears twice"));
      const bool param = e.channel_axis >= 0 || e.grids[0].qmin < 0;
      (param ? map.params : map.activations).push_back(std::move(e));
    }
    return map;
  }
  root.at("version").fail_here(detent::text("version \"", version.substr(0, 32), "\" is unknown; 0.4.0 to 0.6.2, 1.0.0, 2.0.0 and 2.1.0 can be read"));
}

}  // namespace detent::io
