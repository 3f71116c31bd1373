#include "detent/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "detent/core/file.h"
#include "detent/io/half.h"

namespace detent::io {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor bytes are read and written as they lie in memory");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr uint64_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

enum class Stored : uint8_t { boolean, u8, s8, i16, u16, f16, bf16, i32, u32, f32, f64, i64, u64 };

struct StoredType {
  std::string_view name;
  Stored kind;
  uint64_t bytes;
  DType nearest;
};

constexpr StoredType kStoredTypes[] = {
    {"BOOL", Stored::boolean, 1, DType::u8}, {"U8", Stored::u8, 1, DType::u8},    {"I8", Stored::s8, 1, DType::s8},       {"I16", Stored::i16, 2, DType::i32},
    {"U16", Stored::u16, 2, DType::i32},     {"F16", Stored::f16, 2, DType::f32}, {"BF16", Stored::bf16, 2, DType::bf16}, {"I32", Stored::i32, 4, DType::i32},
    {"U32", Stored::u32, 4, DType::i64},     {"F32", Stored::f32, 4, DType::f32}, {"F64", Stored::f64, 8, DType::f32},    {"I64", Stored::i64, 8, DType::i64},
    {"U64", Stored::u64, 8, DType::i64},
};

std::string_view stored_name(DType t) {
  constexpr std::string_view names[] = {"F32", "BF16", "U8", "I8", "I32", "I64"};
  return names[static_cast<int>(t)];
}

// ---- header ----

struct Entry {
  std::string name;
  const StoredType* type = nullptr;
  int64_t extents[Shape::kMaxRank] = {};
  int rank = 0;
  bool has_shape = false;
  uint64_t offsets[2] = {};
  int offset_count = 0;
  bool has_offsets = false;
};

// Receives nlohmann's parse events. The header has one form, {"name": {"dtype": s, "shape": [..], "data_offsets": [a, b]}, "__metadata__": {s: s}},
// so anything deeper or other is refused as it appears, and memory stays proportional to the header.
class HeaderReader {
 public:
  HeaderReader(std::string_view file, std::vector<Entry>& entries, Metadata& metadata) : file_(file), entries_(entries), metadata_(metadata) {}

  bool null() { return wrong("null"); }
  bool boolean(bool) { return wrong("a boolean"); }
  bool number_float(double, const std::string&) { return wrong("a number that is not an integer below 2^63"); }
  bool number_integer(int64_t) { return wrong("a negative number"); }
  bool binary(std::vector<uint8_t>&) { return wrong("binary data"); }

  bool number_unsigned(uint64_t v) {
    if (place_ == Place::shape) {
      Entry& e = entries_.back();
      DETENT_CHECK(e.rank < Shape::kMaxRank, file_, ": tensor '", e.name, "' has more than ", Shape::kMaxRank, " dimensions; reshape it before saving");
      DETENT_CHECK(v <= static_cast<uint64_t>(INT64_MAX), file_, ": tensor '", e.name, "' has an extent of ", v, "; the file is damaged");
      e.extents[e.rank++] = static_cast<int64_t>(v);
      return true;
    }
    if (place_ == Place::offsets) {
      Entry& e = entries_.back();
      DETENT_CHECK(e.offset_count < 2, file_, ": tensor '", e.name, "' has more than two data_offsets; the file is damaged");
      e.offsets[e.offset_count++] = v;
      return true;
    }
    return wrong("a number");
  }

  bool string(std::string& s) {
    if (place_ == Place::metadata) {
      metadata_[key_] = s;
      return true;
    }
    if (place_ != Place::tensor || key_ != "dtype") return wrong("a string");
    Entry& e = entries_.back();
    DETENT_CHECK(!e.type, file_, ": tensor '", e.name, "' has two dtypes; the file is damaged");
    for (const StoredType& t : kStoredTypes) {
      if (t.name == s) e.type = &t;
    }
    DETENT_CHECK(e.type, file_, ": tensor '", e.name, "' has dtype ", s.substr(0, 32), ", which is not supported; convert it to F32");
    return true;
  }

  bool start_object(size_t) {
    if (place_ == Place::start) {
      place_ = Place::root;
    } else if (place_ == Place::root) {
      place_ = key_ == kMetadataKey ? Place::metadata : Place::tensor;
    } else {
      return wrong("an object");
    }
    return true;
  }

  bool key(std::string& k) {
    if (place_ == Place::root) {
      DETENT_CHECK(names_.insert(k).second, file_, ": the name '", k, "' appears twice; the file is damaged");
      if (k != kMetadataKey) entries_.emplace_back().name = k;
    } else if (place_ == Place::metadata) {
      DETENT_CHECK(!metadata_.contains(k), file_, ": the metadata key '", k, "' appears twice; the file is damaged");
    } else if (k != "dtype" && k != "shape" && k != "data_offsets") {
      fail(file_, ": tensor '", entries_.back().name, "' has an unknown field '", k.substr(0, 64), "'; expected dtype, shape, data_offsets");
    }
    key_ = k;
    return true;
  }

  bool end_object() {
    if (place_ == Place::tensor) {
      const Entry& e = entries_.back();
      DETENT_CHECK(e.type && e.has_shape && e.offset_count == 2, file_, ": tensor '", e.name, "' lacks its dtype, shape or two data_offsets; the file is damaged");
    }
    place_ = place_ == Place::root ? Place::end : Place::root;
    return true;
  }

  bool start_array(size_t) {
    if (place_ != Place::tensor || key_ == "dtype") return wrong("an array");
    Entry& e = entries_.back();
    bool& seen = key_ == "shape" ? e.has_shape : e.has_offsets;
    DETENT_CHECK(!seen, file_, ": tensor '", e.name, "' has two fields '", key_, "'; the file is damaged");
    seen = true;
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() {
    place_ = Place::tensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& ex) {
    fail(file_, ": the header is not valid JSON at byte ", kLengthBytes + position, ": ", ex.what());
  }

 private:
  enum class Place : uint8_t { start, root, metadata, tensor, shape, offsets, end };

  bool wrong(const char* what) {
    fail(file_, ": the header has ", what, " where it does not belong (after the key '", key_.substr(0, 64), "'); this is not a safetensors file, or it is damaged");
  }

  std::string_view file_;
  std::vector<Entry>& entries_;
  Metadata& metadata_;
  std::unordered_set<std::string> names_;
  std::string key_;
  Place place_ = Place::start;
};

// dtype, shape and byte count agree; the data is covered from its first byte to its last without holes or overlap.
void check_layout(std::string_view file, std::vector<Entry>& entries, uint64_t data_bytes) {
  for (const Entry& e : entries) {
    uint64_t need = e.type->bytes;
    for (int i = 0; i < e.rank; ++i) {
      // A zero extent counts as one here, so that the others cannot overflow a later product either.
      const bool overflow = __builtin_mul_overflow(need, static_cast<uint64_t>(std::max<int64_t>(e.extents[i], 1)), &need) || need > static_cast<uint64_t>(INT64_MAX);
      DETENT_CHECK(!overflow, file, ": tensor '", e.name, "' has more than 2^63 bytes; the file is damaged");
    }
    const std::span<const int64_t> extents(e.extents, static_cast<size_t>(e.rank));
    if (std::find(extents.begin(), extents.end(), 0) != extents.end()) need = 0;
    DETENT_CHECK(e.offsets[0] <= e.offsets[1] && e.offsets[1] <= data_bytes, file, ": tensor '", e.name, "' lies at bytes ", e.offsets[0], " to ", e.offsets[1],
                 " of the data, which has ", data_bytes, "; the file is cut or damaged");
    DETENT_CHECK(e.offsets[1] - e.offsets[0] == need, file, ": tensor '", e.name, "' of ", e.type->name, " ", Shape(extents), " needs ", need, " bytes, its data_offsets span ",
                 e.offsets[1] - e.offsets[0], "; the file is damaged");
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.offsets[0] != b.offsets[0] ? a.offsets[0] < b.offsets[0] : a.offsets[1] < b.offsets[1]; });
  uint64_t at = 0;
  for (const Entry& e : entries) {
    DETENT_CHECK(e.offsets[0] == at, file, ": tensor '", e.name, "' begins at byte ", e.offsets[0], " of the data, the one before ends at ", at, "; the file is damaged");
    at = e.offsets[1];
  }
  DETENT_CHECK(at == data_bytes, file, ": the tensors end at byte ", at, " of the data, which has ", data_bytes, "; the file is damaged");
}

// ---- data ----

/// Reads exactly n bytes at an absolute offset of the file, or throws.
using ReadAt = std::function<void(uint64_t offset, void* dst, size_t n)>;

template <class Src, class Dst, class Fn>
void convert_as(const uint8_t* raw, size_t n, Dst* out, Fn fn) {
  for (size_t i = 0; i < n; ++i) {
    Src v;
    std::memcpy(&v, raw + i * sizeof(Src), sizeof(Src));
    out[i] = static_cast<Dst>(fn(v));
  }
}

template <class Dst>
void convert(Stored kind, const uint8_t* raw, size_t n, Dst* out) {
  const auto same = [](auto v) { return v; };
  switch (kind) {
    case Stored::boolean:
    case Stored::u8:
      return convert_as<uint8_t>(raw, n, out, same);
    case Stored::s8:
      return convert_as<int8_t>(raw, n, out, same);
    case Stored::i16:
      return convert_as<int16_t>(raw, n, out, same);
    case Stored::u16:
      return convert_as<uint16_t>(raw, n, out, same);
    case Stored::f16:
      return convert_as<uint16_t>(raw, n, out, half_to_float);
    case Stored::bf16:
      return convert_as<uint16_t>(raw, n, out, bf16_to_float);
    case Stored::i32:
      return convert_as<int32_t>(raw, n, out, same);
    case Stored::u32:
      return convert_as<uint32_t>(raw, n, out, same);
    case Stored::f32:
      return convert_as<float>(raw, n, out, same);
    case Stored::f64:
      return convert_as<double>(raw, n, out, same);
    case Stored::i64:
      return convert_as<int64_t>(raw, n, out, same);
    case Stored::u64:
      return convert_as<uint64_t>(raw, n, out, same);
  }
}

Tensor read_tensor(const Entry& e, uint64_t data_begin, TensorTypes types, std::string_view file, const ReadAt& read) {
  const DType dtype = types == TensorTypes::f32 ? DType::f32 : e.type->nearest;
  Tensor t(Shape(std::span<const int64_t>(e.extents, static_cast<size_t>(e.rank))), dtype);
  const uint64_t begin = data_begin + e.offsets[0];
  if (dtype == e.type->nearest && size_of(dtype) == static_cast<int64_t>(e.type->bytes) && e.type->kind != Stored::u64) {
    if (t.bytes() > 0) read(begin, t.raw(), static_cast<size_t>(t.bytes()));
    return t;
  }
  constexpr size_t kChunk = 16384;  // elements converted at a time
  std::vector<uint8_t> raw(kChunk * e.type->bytes);
  const size_t n = static_cast<size_t>(t.elements());
  for (size_t i = 0; i < n; i += kChunk) {
    const size_t count = std::min(kChunk, n - i);
    read(begin + i * e.type->bytes, raw.data(), count * e.type->bytes);
    if (e.type->kind == Stored::u64 && dtype == DType::i64) {
      for (size_t j = 0; j < count; ++j) {
        DETENT_CHECK(raw[j * 8 + 7] < 0x80, file, ": tensor '", e.name, "' (U64) element ", i + j, " does not fit 63 bits; read it as f32");
      }
    }
    if (dtype == DType::f32) {
      convert(e.type->kind, raw.data(), count, t.data<float>() + i);
    } else if (dtype == DType::i32) {
      convert(e.type->kind, raw.data(), count, t.data<int32_t>() + i);
    } else {
      convert(e.type->kind, raw.data(), count, t.data<int64_t>() + i);
    }
  }
  return t;
}

SafeTensors read_all(std::string_view file, uint64_t file_bytes, TensorTypes types, const ReadAt& read) {
  DETENT_CHECK(file_bytes >= kLengthBytes + 2, file, ": ", file_bytes, " bytes are too few for a safetensors file; it is empty or cut");
  uint64_t header_bytes = 0;
  read(0, &header_bytes, kLengthBytes);
  DETENT_CHECK(header_bytes <= kMaxHeaderBytes, file, ": the header claims ", header_bytes, " bytes, the format allows ", kMaxHeaderBytes,
               "; this is not a safetensors file, or it is damaged");
  DETENT_CHECK(header_bytes <= file_bytes - kLengthBytes, file, ": the header claims ", header_bytes, " bytes, the file has ", file_bytes, "; it is cut or damaged");
  std::string header(static_cast<size_t>(header_bytes), '\0');
  if (header_bytes) read(kLengthBytes, header.data(), header.size());
  DETENT_CHECK(!header.empty() && header[0] == '{', file, ": the header does not begin with '{'; this is not a safetensors file");
  // The JSON parser takes a zero byte for the end of its input.
  const size_t zero = header.find('\0');
  DETENT_CHECK(zero == std::string::npos, file, ": the header has a zero byte at byte ", kLengthBytes + zero, "; the file is damaged");

  SafeTensors out;
  std::vector<Entry> entries;
  HeaderReader reader(file, entries, out.metadata);
  nlohmann::json::sax_parse(header, &reader);
  const uint64_t data_begin = kLengthBytes + header_bytes;
  check_layout(file, entries, file_bytes - data_begin);
  out.tensors.reserve(entries.size());
  for (Entry& e : entries) {
    Tensor t = read_tensor(e, data_begin, types, file, read);
    out.tensors.push_back({std::move(e.name), std::move(t), std::string(e.type->name)});
  }
  return out;
}

}  // namespace

const Tensor* SafeTensors::find(std::string_view name) const {
  for (const NamedTensor& t : tensors) {
    if (t.name == name) return &t.tensor;
  }
  return nullptr;
}

SafeTensors load_safetensors(const std::string& path, TensorTypes types) {
  const RandomAccessFile file(path);
  return read_all(path, static_cast<uint64_t>(file.size()), types, [&](uint64_t offset, void* dst, size_t n) { file.read(static_cast<int64_t>(offset), dst, n); });
}

SafeTensors parse_safetensors(std::span<const uint8_t> bytes, TensorTypes types, std::string_view name) {
  // Every offset was checked against bytes.size() before it comes here.
  return read_all(name, bytes.size(), types, [&](uint64_t offset, void* dst, size_t n) { std::memcpy(dst, bytes.data() + offset, n); });
}

bool is_safetensors(std::span<const uint8_t> first_bytes) {
  if (first_bytes.size() <= kLengthBytes) return false;
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, first_bytes.data(), kLengthBytes);
  return header_bytes >= 2 && header_bytes <= kMaxHeaderBytes && first_bytes[kLengthBytes] == '{';
}

std::string safetensors_bytes(std::span<const NamedTensor> tensors, const Metadata& metadata) {
  std::vector<const NamedTensor*> order;
  std::unordered_set<std::string_view> names{kMetadataKey};
  for (const NamedTensor& t : tensors) {
    DETENT_CHECK(t.tensor.defined(), "safetensors: tensor '", t.name, "' is undefined; give it a value or leave it out");
    DETENT_CHECK(names.insert(t.name).second, "safetensors: the name '", t.name, "' is ", t.name == kMetadataKey ? "reserved" : "used twice", "; rename one");
    order.push_back(&t);
  }
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) { return size_of(a->tensor.dtype()) > size_of(b->tensor.dtype()); });

  std::string out(kLengthBytes, '\0');
  uint64_t at = 0;
  try {
    out += '{';
    if (!metadata.empty()) out += text('"', kMetadataKey, "\":", nlohmann::json(metadata).dump(), order.empty() ? "" : ",");
    for (const NamedTensor* t : order) {
      const uint64_t end = at + static_cast<uint64_t>(t->tensor.bytes());
      out += text(t == order.front() ? "" : ",", nlohmann::json(t->name).dump(), ":{\"dtype\":\"", stored_name(t->tensor.dtype()), "\",\"shape\":", t->tensor.shape(),
                  ",\"data_offsets\":[", at, ",", end, "]}");
      at = end;
    }
    out += '}';
  } catch (const nlohmann::json::exception& ex) {
    fail("safetensors: a tensor's name or the metadata is not UTF-8 text: ", ex.what());
  }
  out.resize((out.size() + 7) / 8 * 8, ' ');
  const uint64_t header_bytes = out.size() - kLengthBytes;
  DETENT_CHECK(header_bytes <= kMaxHeaderBytes, "safetensors: the header would have ", header_bytes, " bytes, the format allows ", kMaxHeaderBytes, "; shorten the metadata");
  std::memcpy(out.data(), &header_bytes, kLengthBytes);
  out.reserve(out.size() + static_cast<size_t>(at));
  for (const NamedTensor* t : order) {
    const Tensor host = t->tensor.to(Device{});
    out.append(static_cast<const char*>(host.raw()), static_cast<size_t>(host.bytes()));
  }
  return out;
}

void save_safetensors(const std::string& path, std::span<const NamedTensor> tensors, const Metadata& metadata) { write_file_atomically(path, safetensors_bytes(tensors, metadata)); }

}  // namespace detent::io
