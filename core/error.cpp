#include "detent/core/error.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "detent/core/shape.h"

namespace detent {
namespace detail {

void append(std::string& out, std::string_view v) { out.append(v); }
void append(std::string& out, char v) { out.push_back(v); }
void append(std::string& out, bool v) { out.append(v ? "true" : "false"); }

void append(std::string& out, double v) {
  if (v != v) return void(out.append("NaN"));  // its sign means nothing
  char buf[40];
  // Values mostly come from float: the shortest text that reads back as the same float is the one a person wants to see.
  const auto f = static_cast<float>(v);
  const auto r = static_cast<double>(f) == v ? std::to_chars(buf, buf + sizeof buf, f) : std::to_chars(buf, buf + sizeof buf, v);
  out.append(buf, r.ptr);
}

void append(std::string& out, int64_t v) { out.append(std::to_string(v)); }
void append(std::string& out, uint64_t v) { out.append(std::to_string(v)); }

void append(std::string& out, const Shape& v) {
  out.push_back('[');
  for (int i = 0; i < v.rank(); ++i) {
    if (i) out.push_back(',');
    out.append(std::to_string(v[i]));
  }
  out.push_back(']');
}

}  // namespace detail

static size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

std::string nearest_name(std::string_view word, const std::string_view* names, size_t count) {
  if (word.size() > 256) return {};
  size_t best = word.size() / 2 + 2;
  std::string_view name;
  for (size_t i = 0; i < count; ++i) {
    if (names[i].size() > 256) continue;
    const size_t d = edit_distance(word, names[i]);
    if (d < best) {
      best = d;
      name = names[i];
    }
  }
  return name.empty() ? std::string() : text(" (nearest: ", name, ")");
}

}  // namespace detent
