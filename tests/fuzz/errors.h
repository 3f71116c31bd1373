// The kind of an error: its message without names, numbers and paths, as a file name. tests/fuzz/errors/TARGET/KIND is an input that a reader refuses so.
#pragma once

#include <algorithm>
#include <cctype>
#include <set>
#include <sstream>
#include <string>

namespace detent::fuzz {

/// One line: "tensor \"a\" has 3 dimensions" -> "tensor-has-dimensions".
inline std::string error_kind_of_line(const std::string& line) {
  std::string kind;
  char quote = 0;
  bool path = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quote) {
      if (c == quote) quote = 0;
    } else if (c == '"' || (c == '\'' && i > 0 && line[i - 1] == ' ')) {
      quote = c;
    } else if (c == '/') {
      path = true;
    } else if (path) {
      path = c != ' ' && c != ':' && c != ',';
    } else if (std::isalpha(static_cast<unsigned char>(c))) {
      kind += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!kind.empty() && kind.back() != '-') {
      kind += '-';
    }
  }
  // What is left of numbers.
  for (const char* word : {"-e-", "-nan-", "-inf-"}) {
    for (size_t at = kind.find(word); at != std::string::npos; at = kind.find(word)) kind.erase(at, std::string(word).size() - 1);
  }
  kind = kind.substr(0, 90);
  while (!kind.empty() && kind.back() == '-') kind.pop_back();
  return kind;
}

/// Of a message: one for each line, since some readers list what is wrong. `  "conv1" (Conv): its bias ...` and `  conv1.bias: missing ...` are told without the name.
inline std::set<std::string> error_kinds(const std::string& message) {
  std::set<std::string> kinds;
  std::istringstream in(message);
  for (std::string line; std::getline(in, line);) {
    const size_t name = line.find(line.starts_with("  \"") ? "): " : ": ");
    if (line.starts_with("  ") && name != std::string::npos) line = line.substr(line.find(": ", name) + 2);
    const std::string kind = error_kind_of_line(line);
    if (kind.size() >= 10) kinds.insert(kind);
  }
  return kinds;
}

}  // namespace detent::fuzz
