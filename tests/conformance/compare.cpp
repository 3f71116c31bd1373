#include <cmath>

#include "cases.h"

namespace detent::conformance {
namespace {

class Comparison {
 public:
  explicit Comparison(const Json& tolerance) : abs_(tolerance.value("abs", 0.0)), rel_(tolerance.value("rel", 0.0)) {}

  void value(const std::string& path, const Json& want, const Json& got) {
    if (want.is_null()) return;  // "not given"
    if (want.is_object()) return object(path, want, got);
    if (want.is_array()) return array(path, want, got);
    if (want.is_number()) {
      if (!got.is_number()) return report(path, want, got);
      const double w = want.get<double>(), g = got.get<double>();
      if (!(std::fabs(g - w) <= abs_ + rel_ * std::fabs(w))) report(path, want, got);
      return;
    }
    if (want != got) report(path, want, got);
  }

  std::vector<std::string> failures;

 private:
  void object(const std::string& path, const Json& want, const Json& got) {
    if (!got.is_object()) return report(path, want, got);
    for (const auto& item : want.items()) {
      const std::string& key = item.key();
      const std::string at = path.empty() ? key : path + "." + key;
      if (key.size() > 3 && key.ends_with("_lt")) {  // an upper bound of another value
        const Json bounded = got.value(key.substr(0, key.size() - 3), Json());
        if (!bounded.is_number() || !(bounded.get<double>() < item.value().get<double>())) report(at, item.value(), bounded);
      } else if (key.ends_with("s_contain")) {
        contains(at, item.value(), got.value(key.substr(0, key.size() - 8), Json::array()));
      } else if (!got.contains(key)) {
        failures.push_back(at + ": not computed");
      } else {
        value(at, item.value(), got.at(key));
      }
    }
  }

  void array(const std::string& path, const Json& want, const Json& got) {
    if (!got.is_array()) return report(path, want, got);
    if (want.size() != got.size()) {
      failures.push_back(path + ": expected " + std::to_string(want.size()) + " elements, got " + std::to_string(got.size()));
      return;
    }
    for (size_t i = 0; i < want.size(); ++i) value(path + "[" + std::to_string(i) + "]", want[i], got[i]);
  }

  void contains(const std::string& path, const Json& want, const Json& got) {
    for (const Json& w : want) {
      bool found = false;
      for (const Json& g : got) found = found || std::fabs(g.get<double>() - w.get<double>()) <= abs_ + rel_ * std::fabs(w.get<double>());
      if (!found) report(path, w, got);
    }
  }

  void report(const std::string& path, const Json& want, const Json& got) {
    const auto shown = [](const Json& j) {
      const std::string s = j.dump();
      return s.size() <= 80 ? s : s.substr(0, 80) + "...";
    };
    failures.push_back(path + ": expected " + shown(want) + ", got " + shown(got));
  }

  double abs_, rel_;
};

}  // namespace

std::vector<std::string> compare(const Case& c, const Json& got) {
  Comparison comparison(c.json.contains("tol") ? c.json.at("tol") : Json::object());
  if (c.expected().empty()) return {"the case expects nothing"};
  comparison.value("", c.expected(), got);
  return comparison.failures;
}

}  // namespace detent::conformance
