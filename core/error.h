// Errors of the library: one exception type and the checks that throw it. The library never prints, aborts or exits.
// A message names the operation, layer, file or option, both values, and what to do. Thread-safe.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace detent {

class Shape;

/// Thrown for everything a caller or a file can get wrong.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {
void append(std::string& out, std::string_view v);
void append(std::string& out, char v);
void append(std::string& out, bool v);
void append(std::string& out, double v);
void append(std::string& out, int64_t v);
void append(std::string& out, uint64_t v);
void append(std::string& out, const Shape& v);
inline void append(std::string& out, const char* v) { append(out, std::string_view(v)); }
inline void append(std::string& out, const std::string& v) { append(out, std::string_view(v)); }
inline void append(std::string& out, float v) { append(out, static_cast<double>(v)); }
template <class T>
  requires(std::is_integral_v<T> && !std::is_same_v<T, bool> && !std::is_same_v<T, char>)
inline void append(std::string& out, T v) {
  if constexpr (std::is_signed_v<T>) {
    append(out, static_cast<int64_t>(v));
  } else {
    append(out, static_cast<uint64_t>(v));
  }
}
}  // namespace detail

/// Concatenates its arguments as text: numbers shortest round-trip, shapes as [2,3].
template <class... Args>
std::string text(const Args&... args) {
  std::string out;
  (detail::append(out, args), ...);
  return out;
}

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  throw Error(text(args...));
}

/// The candidate nearest to `word` by edit distance, as " (nearest: NAME)", or "" when none is near. For messages about misspelt names.
std::string nearest_name(std::string_view word, const std::string_view* names, size_t count);

}  // namespace detent

/// Throws detent::Error with the concatenated arguments when the condition does not hold.
#define DETENT_CHECK(cond, ...)         \
  do {                                  \
    if (!(cond)) [[unlikely]] {         \
      ::detent::fail(__VA_ARGS__);      \
    }                                   \
  } while (false)
