// What encodings files hold: written by the library, read back here as JSON.
#include "cases.h"
#include "detent/core/error.h"
#include "detent/io/encodings.h"
#include "detent/quant/config.h"

namespace detent::conformance {
namespace {

struct Entries {
  Json v061, v100;
};

Entries written(const quant::Encoding& e) {
  quant::EncodingMap map;
  map.params.push_back(e);
  const Json old = Json::parse(io::write_encodings(map, "0.6.1")), list = Json::parse(io::write_encodings(map, "1.0.0"));
  return {old.at("param_encodings").at(e.name), list.at("param_encodings").at(0)};
}

Json export_entry(const Case& c) {
  quant::Encoding e;
  e.name = "x";
  const Json& in = c.inputs();
  if (in.contains("float")) {
    e.is_float = true;
    e.bits = in.at("float");
  } else {
    const Json& given = in.at("encoding");
    e.bits = given.at("bw");
    e.symmetric = in.at("symmetric");
    GridSpec spec;
    spec.bits = e.bits, spec.symmetric = e.symmetric;
    // The range of the grid that (delta, offset) describes, and back through the one function that makes grids.
    const double delta = given.at("delta"), offset = given.at("offset");
    e.grids.push_back(grid_from_range({delta * offset + (e.symmetric ? delta : 0.0), delta * (offset + static_cast<double>((int64_t{1} << e.bits) - 1))}, spec));
  }
  const Entries w = written(e);
  return {{"0.6.1", w.v061}, {"1.0.0", w.v100}};
}

Json export_quantizer_args(const Case& c) {
  const Json& in = c.inputs();
  DETENT_CHECK(in.at("config") == "default_config.json", "config ", in.at("config").get<std::string>());
  const quant::QuantConfig config = quant::default_config("tensorflow_default");
  quant::EncodingMap map;
  map.args.activation_bitwidth = in.at("act_bw");
  map.args.param_bitwidth = in.at("param_bw");
  map.args.per_channel = config.per_channel;
  map.args.symmetric = config.param_symmetric;
  map.args.quant_scheme = std::string(quant::aimet_name(quant::parse_scheme(in.at("scheme").get<std::string>())));
  return Json::parse(io::write_encodings(map, "0.6.1")).at("quantizer_args");
}

// A learned symmetric range: min is -max, and the file gets the extra negative level.
Json symmetric_export(const Case& c) {
  GridSpec spec;
  spec.bits = c.params().at("bw"), spec.symmetric = true, spec.strict = c.params().at("strict_symmetric");
  const Range learned{c.inputs().at("learned_min"), c.inputs().at("learned_max")};
  const Grid g = grid_from_range(learned, spec);
  const Range initial = range_of(g);
  quant::Encoding e;
  e.name = "w", e.bits = spec.bits, e.symmetric = true, e.grids = {g};
  return {{"init_min_equals_minus_max", initial.min == -initial.max}, {"export", written(e).v061.at(0)}};
}

}  // namespace

void add_export_runners(Runners& r) {
  r["export_entry"] = export_entry;
  r["export_quantizer_args"] = export_quantizer_args;
  r["symmetric_export"] = symmetric_export;
}

}  // namespace detent::conformance
