// JSON from files nobody vouches for: bounded size and depth, no duplicate keys, errors with source, path and byte. For .cpp files only; not installed.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace detent::quant {

struct JsonLimits {
  size_t max_bytes = size_t{4} << 20;
  int max_depth = 16;
};

/// `what` names the kind of file ("quantsim config") in messages. Throws Error.
nlohmann::json parse_json(std::string_view text, std::string_view what, std::string_view source, const JsonLimits& limits);

/// A value and where it stands; every accessor throws Error naming source and path when the value is of another kind.
class JsonNode {
 public:
  JsonNode(const nlohmann::json& value, std::string_view what, std::string_view source, std::string path = "") : value_(value), what_(what), source_(source), path_(std::move(path)) {}

  const nlohmann::json& value() const { return value_; }
  const std::string& path() const { return path_; }
  bool has(const char* key) const { return value_.is_object() && value_.contains(key); }
  JsonNode at(const std::string& key) const;
  JsonNode at(size_t index) const;
  size_t size() const { return value_.size(); }
  const JsonNode& object() const;
  const JsonNode& array(size_t max_size) const;
  /// true, false, or the strings "True", "False".
  bool boolean() const;
  std::string string(size_t max_length = 1024) const;
  double number() const;
  int64_t integer(int64_t min, int64_t max) const;
  /// Every key must be one of these.
  void allow_keys(std::initializer_list<std::string_view> keys) const;
  [[noreturn]] void fail_here(const std::string& message) const;

 private:
  const nlohmann::json& value_;
  std::string_view what_, source_;
  std::string path_;
};

}  // namespace detent::quant
