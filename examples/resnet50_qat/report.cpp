#include "report.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "detent/core/error.h"

namespace qat {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kStages[] = {"float", "folded", "ptq", "qat", "int8"};

Json json_of(const std::vector<detent::quant::RoundedLayer>& layers) {
  Json j = Json::array();
  for (const detent::quant::RoundedLayer& l : layers)
    j.push_back({{"layer", l.name}, {"weights", l.weights}, {"moved", l.moved}, {"error_nearest", l.nearest}, {"error_learned", l.learned}});
  return j;
}

}  // namespace

std::string Report::to_json() const {
  Json j;
  for (const auto& [stage, a] : accuracy) j["accuracy"][stage] = {a.images, a.correct1, a.correct5};
  j["seconds"] = seconds;
  j["images_per_second"] = images_per_second;
  j["images"] = images;
  j["train_files"] = train_files;
  j["waiting_share"] = waiting_share;
  for (const detent::io::RecordPlace& bad : bad_records) j["bad_records"].push_back({bad.file, bad.offset});
  j["unseen"] = unseen;
  if (!rounded.empty()) j["adaround"] = json_of(rounded);
  return j.dump();
}

Report Report::from_json(const std::string& text) {
  try {
    const Json j = Json::parse(text);
    Report r;
    const Json accuracy = j.value("accuracy", Json::object());
    for (const auto& [stage, a] : accuracy.items()) r.accuracy[stage] = {a.at(0).get<int64_t>(), a.at(1).get<int64_t>(), a.at(2).get<int64_t>()};
    r.seconds = j.at("seconds").get<std::map<std::string, double>>();
    r.images_per_second = j.at("images_per_second").get<std::map<std::string, double>>();
    r.images = j.at("images").get<std::map<std::string, int64_t>>();
    r.train_files = j.value("train_files", int64_t{0});
    r.waiting_share = j.value("waiting_share", 0.0);
    for (const Json& bad : j.value("bad_records", Json::array())) r.bad_records.push_back({bad.at(0), bad.at(1)});
    r.unseen = j.at("unseen").get<std::vector<std::string>>();
    for (const Json& l : j.value("adaround", Json::array())) r.rounded.push_back({l.at("layer"), l.at("weights"), l.at("moved"), l.at("error_nearest"), l.at("error_learned")});
    return r;
  } catch (const nlohmann::json::exception& e) {
    detent::fail("the results of earlier stages cannot be read: ", e.what());
  }
}

std::string table(const Report& r, const Options& o) {
  const auto width = [](const char* letter, int bits, detent::quant::NumberFormat format) {
    return format == detent::quant::NumberFormat::integer ? detent::text(letter, bits) : letter + std::string(detent::quant::to_string(format));
  };
  const std::string bits = width("W", o.param_bits, o.param_format) + width("A", o.output_bits, o.output_format);
  const std::map<std::string, std::string> labels = {{"float", "float"},
                                                     {"folded", "batch norms folded"},
                                                     {"ptq", "quantized " + bits + ", calibrated"},
                                                     {"qat", "quantized " + bits + ", trained"},
                                                     {"int8", "in integers " + bits}};
  std::string out = "network                        top-1      top-5     images\n";
  for (const char* stage : kStages) {
    const auto it = r.accuracy.find(stage);
    if (it == r.accuracy.end()) continue;
    char line[128];
    std::snprintf(line, sizeof line, "%-28s %6.2f %%   %6.2f %%   %8lld\n", labels.at(stage).c_str(), 100.0 * it->second.top1(), 100.0 * it->second.top5(),
                  static_cast<long long>(it->second.images));
    out += line;
  }
  return out;
}

double rate(int64_t images, double seconds) { return seconds > 0 ? static_cast<double>(images) / seconds : 0.0; }

std::string sensitivity_table(const Report& r) {
  constexpr size_t kLines = 15;
  if (r.sensitivities.empty()) return {};
  std::string out = "\nquantized alone                               bits   noise of the scores\n";
  for (size_t i = 0; i < std::min(kLines, r.sensitivities.size()); ++i) {
    const detent::quant::Sensitivity& s = r.sensitivities[i];
    char line[160];
    std::snprintf(line, sizeof line, "%-44s  %4d   %11.5f %%\n", s.name.c_str(), s.bits, 100.0 * s.noise);
    out += line;
  }
  if (r.sensitivities.size() > kLines) out += detent::text("(", r.sensitivities.size() - kLines, " more, all in the summary)\n");
  return out;
}

std::string summary_json(const Report& r, const Options& o, const std::string& device, detent::quant::QuantizerCounts counts, const std::vector<std::string>& files) {
  Json j;
  j["format"] = 1;
  j["arch"] = o.arch;
  j["device"] = device;
  j["threads"] = o.threads;
  j["seed"] = o.seed;
  j["quant_scheme"] = detent::quant::to_string(o.scheme);
  j["param_bw"] = o.param_bits;
  j["output_bw"] = o.output_bits;
  j["param_type"] = detent::quant::to_string(o.param_format);
  j["output_type"] = detent::quant::to_string(o.output_format);
  j["options"] = Json::parse(resume_key(o));
  for (const auto& [name, value] :
       {std::pair{"epochs", o.epochs}, {"max-steps", o.max_steps}, {"eval-samples", o.eval_samples}, {"eval-batch", o.eval_batch}, {"skip-bad-records", o.skip_bad_records}})
    j["options"][name] = value;
  j["options"]["weights"] = o.weights;
  j["images"] = r.images;
  j["accuracy"] = Json::object();
  for (const char* stage : kStages) {
    const auto it = r.accuracy.find(stage);
    if (it != r.accuracy.end()) j["accuracy"][stage] = {{"top1", it->second.top1()}, {"top5", it->second.top5()}, {"images", it->second.images}};
  }
  j["quantizers"] = {{"weight", counts.weight}, {"activation", counts.activation}, {"bias", counts.bias}};
  j["quantizers_without_data"] = r.unseen;
  for (const detent::quant::Sensitivity& s : r.sensitivities) j["sensitivity"].push_back({{"name", s.name}, {"bits", s.bits}, {"noise", s.noise}});
  if (!r.rounded.empty()) j["adaround"] = json_of(r.rounded);
  j["resumed_from_step"] = r.resumed_from_step;
  j["seconds"] = r.seconds;
  j["images_per_second"] = r.images_per_second;
  j["share_of_training_waiting_for_data"] = r.waiting_share;
  j["bad_records_skipped"] = r.bad_records.size();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  j["peak_rss_bytes"] = static_cast<int64_t>(usage.ru_maxrss) * 1024;
  j["files"] = files;
  return j.dump(1) + "\n";
}

}  // namespace qat
