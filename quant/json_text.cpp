#include "detent/quant/json_text.h"

#include <cmath>
#include <set>
#include <vector>

#include "detent/core/error.h"

namespace detent::quant {
namespace {

std::string shown(std::string_view word) { return word.size() <= 64 ? std::string(word) : std::string(word.substr(0, 64)) + "..."; }

}  // namespace

nlohmann::json parse_json(std::string_view text, std::string_view what, std::string_view source, const JsonLimits& limits) {
  DETENT_CHECK(text.size() <= limits.max_bytes, what, " ", source, " has ", text.size(), " bytes; the limit is ", limits.max_bytes);
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Event event, nlohmann::json& parsed) {
    DETENT_CHECK(depth <= limits.max_depth, what, " ", source, " is nested deeper than ", limits.max_depth, " levels");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      DETENT_CHECK(keys.back().insert(key).second, what, " ", source, " has the key \"", shown(key), "\" twice in one object; keep one");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), watch);
  } catch (const nlohmann::json::parse_error& e) {
    fail(what, " ", source, " is not JSON: error at byte ", static_cast<uint64_t>(e.byte), " of ", text.size());
  } catch (const nlohmann::json::exception& e) {
    fail(what, " ", source, " is not JSON: ", shown(e.what()));
  }
}

void JsonNode::fail_here(const std::string& message) const { fail(what_, " ", source_, ", ", path_.empty() ? "/" : path_, ": ", message); }

JsonNode JsonNode::at(const std::string& key) const {
  object();
  const auto it = value_.find(key);
  if (it == value_.end()) fail_here(text("\"", key, "\" is missing"));
  return {*it, what_, source_, text(path_, "/", shown(key))};
}

JsonNode JsonNode::at(size_t index) const { return {value_.at(index), what_, source_, text(path_, "/", index)}; }

const JsonNode& JsonNode::object() const {
  if (!value_.is_object()) fail_here(text("expected an object, found ", value_.type_name()));
  return *this;
}

const JsonNode& JsonNode::array(size_t max_size) const {
  if (!value_.is_array()) fail_here(text("expected a list, found ", value_.type_name()));
  if (value_.size() > max_size) fail_here(text(value_.size(), " elements; the limit is ", max_size));
  return *this;
}

bool JsonNode::boolean() const {
  if (value_.is_boolean()) return value_.get<bool>();
  if (value_.is_string()) {
    const auto& s = value_.get_ref<const std::string&>();
    if (s == "True") return true;
    if (s == "False") return false;
    fail_here(text("\"", shown(s), "\" is neither \"True\" nor \"False\""));
  }
  fail_here(text("expected \"True\" or \"False\", found ", value_.type_name()));
}

std::string JsonNode::string(size_t max_length) const {
  if (!value_.is_string()) fail_here(text("expected a string, found ", value_.type_name()));
  const auto& s = value_.get_ref<const std::string&>();
  if (s.size() > max_length) fail_here(text("a string of ", s.size(), " bytes; the limit is ", max_length));
  return s;
}

double JsonNode::number() const {
  if (!value_.is_number()) fail_here(text("expected a number, found ", value_.type_name()));
  return value_.get<double>();  // finite: the parser refuses what overflows
}

int64_t JsonNode::integer(int64_t min, int64_t max) const {
  const double v = number();
  if (v != std::floor(v) || v < static_cast<double>(min) || v > static_cast<double>(max)) fail_here(text(v, " is not an integer in ", min, "..", max));
  return static_cast<int64_t>(v);
}

void JsonNode::allow_keys(std::initializer_list<std::string_view> keys) const {
  object();
  for (const auto& item : value_.items()) {
    bool known = false;
    for (const std::string_view k : keys) known = known || k == item.key();
    if (!known) fail_here(text("unknown key \"", shown(item.key()), "\"", nearest_name(item.key(), keys.begin(), keys.size())));
  }
}

}  // namespace detent::quant
