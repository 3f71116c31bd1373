// Deflate streams (RFC 1951) in their zlib frame (RFC 1950). Internal. Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace detent::io {

/// Exactly `size` bytes; throws Error, with `what` in front, when the stream is damaged, ends early or holds more. Checks the Adler-32 sum.
std::string inflate_zlib(std::string_view stream, size_t size, const std::string& what);

}  // namespace detent::io
