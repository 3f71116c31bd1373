// TensorProto to numbers: sizes checked before allocation, external data kept inside the model's folder.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "detent/core/file.h"
#include "detent/io/half.h"
#include "detent/io/onnx/builder.h"
#include "detent/io/onnx/importer.h"

namespace detent::io::onnx {
namespace {

constexpr int kMaxDims = 8;

int64_t bits_of(int32_t type, const std::string& name) {
  switch (type) {
    case kFloat:
    case kInt32: return 32;
    case kDouble:
    case kInt64: return 64;
    case kUint8:
    case kInt8:
    case kBool: return 8;
    case kUint16:
    case kInt16:
    case kFloat16:
    case kBfloat16: return 16;
    case kUint4:
    case kInt4: return 4;
    default: fail("tensor \"", name, "\" has element type ", type, ", which is not supported");
  }
}

int64_t elements_of(const TensorProto& t) {
  DETENT_CHECK(t.dims_size() <= kMaxDims, "tensor \"", t.name(), "\" has ", t.dims_size(), " dimensions; at most ", kMaxDims, " are supported");
  int64_t n = 1;
  for (const int64_t d : t.dims()) {
    DETENT_CHECK(d >= 0, "tensor \"", t.name(), "\" has the extent ", d);
    DETENT_CHECK(d == 0 || n <= (int64_t{1} << 40) / d, "tensor \"", t.name(), "\" declares more than 2^40 elements");
    n *= d;
  }
  return n;
}

int64_t number(const Entry& e, const std::string& tensor) {
  DETENT_CHECK(!e.value().empty() && e.value().size() <= 18 && std::all_of(e.value().begin(), e.value().end(), [](char c) { return c >= '0' && c <= '9'; }), "tensor \"", tensor,
               "\": external data ", e.key(), " \"", e.value().substr(0, 32), "\" is not a number");
  return std::stoll(e.value());
}

void check_inside(const std::string& location, const std::string& tensor) {
  DETENT_CHECK(!location.empty() && location[0] != '/' && location[0] != '\\' && location.find('\0') == std::string::npos && location.find(':') == std::string::npos, "tensor \"", tensor,
               "\": external data path \"", location.substr(0, 64), "\" is absolute or empty; only paths inside the model's folder are read");
  size_t begin = 0;
  while (begin <= location.size()) {
    const size_t end = std::min(location.find_first_of("/\\", begin), location.size());
    DETENT_CHECK(location.compare(begin, end - begin, "..") != 0, "tensor \"", tensor, "\": external data path \"", location.substr(0, 64), "\" leaves the model's folder");
    begin = end + 1;
  }
}

std::string external_bytes(const TensorProto& t, const Source& source, int64_t bytes) {
  std::string location;
  int64_t offset = 0, length = bytes;
  for (const Entry& e : t.external_data()) {
    if (e.key() == "location") location = e.value();
    if (e.key() == "offset") offset = number(e, t.name());
    if (e.key() == "length") length = number(e, t.name());
  }
  check_inside(location, t.name());
  DETENT_CHECK(!source.folder.empty(), "tensor \"", t.name(), "\" is stored outside (", location, "), but the model was read from memory");
  DETENT_CHECK(length == bytes, "tensor \"", t.name(), "\": external data has ", length, " bytes, its shape needs ", bytes);
  const RandomAccessFile file(join_path(source.folder, location));
  DETENT_CHECK(offset <= file.size() && bytes <= file.size() - offset, "tensor \"", t.name(), "\": bytes ", offset, "..", offset + bytes, " lie behind the end of ", file.path(), " (", file.size(), " bytes)");
  std::string raw(static_cast<size_t>(bytes), '\0');
  file.read(offset, raw.data(), raw.size());
  return raw;
}

template <class T, class Out>
void widen(const std::string& raw, std::vector<Out>& out) {
  const size_t n = out.size();
  for (size_t i = 0; i < n; ++i) {
    T v;
    std::memcpy(&v, raw.data() + i * sizeof(T), sizeof(T));
    out[i] = static_cast<Out>(v);
  }
}

void from_raw(const std::string& raw, Constant& c) {
  switch (c.type) {
    case kFloat: return widen<float>(raw, c.floats);
    case kDouble: return widen<double>(raw, c.floats);
    case kInt32: return widen<int32_t>(raw, c.ints);
    case kInt64: return widen<int64_t>(raw, c.ints);
    case kUint8:
    case kBool: return widen<uint8_t>(raw, c.ints);
    case kInt8: return widen<int8_t>(raw, c.ints);
    case kUint16: return widen<uint16_t>(raw, c.ints);
    case kInt16: return widen<int16_t>(raw, c.ints);
    case kFloat16:
    case kBfloat16:
      for (size_t i = 0; i < c.floats.size(); ++i) {
        uint16_t h;
        std::memcpy(&h, raw.data() + 2 * i, 2);
        c.floats[i] = c.type == kFloat16 ? half_to_float(h) : bf16_to_float(h);
      }
      return;
    default:  // 4 bits: two to a byte, the low half first
      for (size_t i = 0; i < c.ints.size(); ++i) {
        const int v = (static_cast<uint8_t>(raw[i / 2]) >> (i % 2 ? 4 : 0)) & 15;
        c.ints[i] = c.type == kInt4 && v > 7 ? v - 16 : v;
      }
  }
}

template <class From>
void from_fields(const From& from, Constant& c) {
  if (c.type == kUint4 || c.type == kInt4) {
    for (size_t i = 0; i < c.ints.size(); ++i) {
      const int v = (static_cast<int>(from.Get(static_cast<int>(i / 2))) >> (i % 2 ? 4 : 0)) & 15;
      c.ints[i] = c.type == kInt4 && v > 7 ? v - 16 : v;
    }
    return;
  }
  for (int i = 0; i < from.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    if (c.type == kFloat16) {
      c.floats[at] = half_to_float(static_cast<uint16_t>(from.Get(i)));
    } else if (c.type == kBfloat16) {
      c.floats[at] = bf16_to_float(static_cast<uint16_t>(from.Get(i)));
    } else if (c.is_float) {
      c.floats[at] = static_cast<float>(from.Get(i));
    } else {
      c.ints[at] = static_cast<int64_t>(from.Get(i));
    }
  }
}

}  // namespace

Constant decode(const TensorProto& t, const Source& source) {
  const int64_t n = elements_of(t), bits = bits_of(t.data_type(), t.name()), bytes = (n * bits + 7) / 8;
  Constant c;
  c.name = t.name();
  c.type = t.data_type();
  c.dims.assign(t.dims().begin(), t.dims().end());
  c.is_float = c.type == kFloat || c.type == kDouble || c.type == kFloat16 || c.type == kBfloat16;
  const auto allocate = [&] { c.is_float ? c.floats.resize(static_cast<size_t>(n)) : c.ints.resize(static_cast<size_t>(n)); };
  if (t.data_location() == 1) {
    const std::string raw = external_bytes(t, source, bytes);
    allocate();
    from_raw(raw, c);
    return c;
  }
  if (!t.raw_data().empty() || n == 0) {
    DETENT_CHECK(static_cast<int64_t>(t.raw_data().size()) == bytes, "tensor \"", t.name(), "\": ", t.raw_data().size(), " bytes of data, its shape needs ", bytes);
    allocate();
    from_raw(t.raw_data(), c);
    return c;
  }
  const int have = c.type == kFloat ? t.float_data_size() : c.type == kDouble ? t.double_data_size() : c.type == kInt64 ? t.int64_data_size() : t.int32_data_size();
  const int64_t want = bits == 4 ? (n + 1) / 2 : n;
  DETENT_CHECK(have == want, "tensor \"", t.name(), "\": ", have, " values, its shape needs ", want);
  allocate();
  switch (c.type) {
    case kFloat: from_fields(t.float_data(), c); break;
    case kDouble: from_fields(t.double_data(), c); break;
    case kInt64: from_fields(t.int64_data(), c); break;
    default: from_fields(t.int32_data(), c);
  }
  return c;
}

}  // namespace detent::io::onnx
