// Little-endian bytes of plain values, for the library's own binary formats. The reader checks every size against what is left.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "detent/core/error.h"

namespace detent {

static_assert(std::endian::native == std::endian::little, "the binary formats are written as they lie in memory");

class ByteWriter {
 public:
  template <class T>
    requires std::is_trivially_copyable_v<T>
  void put(T v) {
    bytes_.append(reinterpret_cast<const char*>(&v), sizeof v);
  }
  /// Length and bytes.
  void put_string(std::string_view s) {
    put<uint64_t>(s.size());
    bytes_.append(s);
  }
  std::string take() { return std::move(bytes_); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class ByteReader {
 public:
  /// `what` names the data in messages.
  ByteReader(std::string_view bytes, std::string what) : bytes_(bytes), what_(std::move(what)) {}

  template <class T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    need(sizeof(T));
    T v;
    std::memcpy(&v, bytes_.data() + offset_, sizeof v);
    offset_ += sizeof v;
    return v;
  }
  std::string_view get_string() {
    const auto n = get<uint64_t>();
    return get_bytes(n);
  }
  std::string_view get_bytes(uint64_t n) {
    need(n);
    const std::string_view s = bytes_.substr(offset_, n);
    offset_ += n;
    return s;
  }
  /// A count of elements of at least `element_bytes` each: bounded by what is left.
  uint64_t get_count(size_t element_bytes) {
    const auto n = get<uint64_t>();
    DETENT_CHECK(n <= (bytes_.size() - offset_) / element_bytes, what_, ": at offset ", offset_, ": ", n, " elements announced, ", bytes_.size() - offset_, " bytes left");
    return n;
  }
  uint64_t offset() const { return offset_; }
  bool done() const { return offset_ == bytes_.size(); }

 private:
  void need(uint64_t n) const { DETENT_CHECK(n <= bytes_.size() - offset_, what_, ": truncated at offset ", offset_, ": ", n, " bytes needed, ", bytes_.size() - offset_, " left"); }

  std::string_view bytes_;
  uint64_t offset_ = 0;
  std::string what_;
};

}  // namespace detent
