// After the HDF Group's "HDF5 File Format Specification": superblock 0 and 1, object headers 1, B-trees 1, local heaps, data layouts 3 and 4.
#include "detent/io/hdf5.h"

#include <algorithm>
#include <cstring>

#include "detent/core/error.h"
#include "detent/io/half.h"
#include "detent/io/inflate.h"

namespace detent::io {
namespace {

constexpr int kMaxDepth = 12, kMaxLevel = 16;
constexpr int64_t kMaxParts = 1 << 20;  // entries and messages read: a file of a hundred layers has some thousands
constexpr int64_t kMaxElements = int64_t{1} << 29;
constexpr double kBestCompression = 1100.0;  // deflate's limit
constexpr uint64_t kUndefined = ~uint64_t{0};

enum Message : uint16_t { kDataspace = 1, kLinkInfo = 2, kDatatype = 3, kLink = 6, kExternal = 7, kLayout = 8, kFilters = 11, kContinuation = 16, kSymbolTable = 17 };
enum Filter : uint16_t { kDeflate = 1, kShuffle = 2, kFletcher32 = 3 };

// A stretch of the file: every access is checked against its end.
struct Span {
  std::string_view bytes;
  const std::string* where;

  uint64_t get(uint64_t at, int size) const {
    need(at, static_cast<uint64_t>(size));
    uint64_t v = 0;
    std::memcpy(&v, bytes.data() + at, static_cast<size_t>(size));
    return v;
  }
  Span part(uint64_t at, uint64_t size) const {
    need(at, size);
    return {bytes.substr(at, size), where};
  }
  bool begins_with(std::string_view mark) const { return bytes.starts_with(mark); }
  void need(uint64_t at, uint64_t size) const {
    DETENT_CHECK(at <= bytes.size() && size <= bytes.size() - at, *where, ": ", size, " bytes at offset ", at, " lie behind the end (", static_cast<uint64_t>(bytes.size()), " bytes); the file is damaged");
  }
};

struct Object {
  std::vector<std::pair<uint16_t, Span>> messages;
  const Span* find(uint16_t type) const {
    const auto it = std::find_if(messages.begin(), messages.end(), [&](const auto& m) { return m.first == type; });
    return it == messages.end() ? nullptr : &it->second;
  }
};

struct Chunk {
  Span stored;
  uint32_t mask = 0;
  std::vector<int64_t> at;
};

class Reader {
 public:
  Reader(std::string_view bytes, const std::string& name, const std::function<void(Hdf5Array)>& found) : file_{bytes, &where_}, name_(name), found_(found) { at(""); }

  void run() {
    const auto version = file_.get(8, 1);
    if (version > 1) refuse("HDF5's newer form (superblock ", version, ") is not read; save it with h5py's default, libver=\"earliest\"");
    if (file_.get(13, 1) != 8 || file_.get(14, 1) != 8) refuse("offsets of ", file_.get(13, 1), " bytes; 8 are expected");
    const uint64_t addresses = version == 0 ? 24 : 28;
    if (file_.get(addresses, 8) != 0) refuse("it does not begin at its own beginning; the file is damaged");
    const uint64_t root = file_.get(addresses + 40, 8);
    uint64_t model = kUndefined;
    entries(object(root), [&](const std::string& entry, uint64_t address) {
      if (entry == "model_weights") model = address;
    });
    group(model == kUndefined ? root : model, model == kUndefined ? "" : "/model_weights", 0);
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(const Args&... args) const {
    fail(where_, ": ", args...);
  }
  void at(const std::string& path) { where_ = text("weights ", name_, path.empty() ? "" : ": ", path.substr(0, 512)); }
  void count_part() {
    if (++parts_ > kMaxParts) refuse("more than ", kMaxParts, " parts; the file is damaged");
  }

  Object object(uint64_t address);
  void messages(const Span& block, Object& o);
  template <class Fn>
  void entries(const Object& group, Fn&& fn);
  template <class Fn>
  void links(const Object& group, Fn&& fn) const;
  template <class Fn>
  void nodes(uint64_t tree, int kind, int level, uint64_t key_bytes, Fn&& fn);
  void group(uint64_t address, const std::string& path, int depth);
  void dataset(const Object& o, const std::string& path);
  int element_bytes(const Span& type) const;
  std::vector<int64_t> dims(const Span& space) const;
  std::string data(const Object& o, const std::vector<int64_t>& dims, int element);
  std::string chunked(const Object& o, const Span& layout, const std::vector<int64_t>& dims, int element);
  std::vector<Chunk> chunks(uint64_t tree, const std::vector<int64_t>& dims, const std::vector<int64_t>& extent);
  std::vector<uint16_t> filters(const Object& o) const;
  std::string unfiltered(const Chunk& c, const std::vector<uint16_t>& filters, size_t bytes, int element) const;
  void claim(uint64_t bytes) {
    // Data sets do not share their bytes: what they hold together is no more than the file.
    claimed_ += bytes;
    if (claimed_ > file_.bytes.size()) refuse("it declares more bytes than the file's ", static_cast<uint64_t>(file_.bytes.size()), " that are stored; the file is damaged");
  }

  std::string where_;
  Span file_;
  const std::string& name_;
  const std::function<void(Hdf5Array)>& found_;
  int64_t parts_ = 0;
  uint64_t claimed_ = 0;
};

Object Reader::object(uint64_t address) {
  const Span head = file_.part(address, 16);
  if (head.begins_with("OHDR")) refuse("an object in HDF5's newer form is not read; save it with h5py's default, libver=\"earliest\", without track_order");
  if (head.get(0, 1) != 1) refuse("no object at offset ", address, "; the file is damaged");
  Object o;
  std::vector<Span> blocks = {file_.part(address + 16, head.get(8, 4))};
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t before = o.messages.size();
    messages(blocks[i], o);
    for (size_t k = before; k < o.messages.size(); ++k) {
      if (o.messages[k].first == kContinuation) blocks.push_back(file_.part(o.messages[k].second.get(0, 8), o.messages[k].second.get(8, 8)));
    }
  }
  return o;
}

void Reader::messages(const Span& block, Object& o) {
  for (uint64_t i = 0; i + 8 <= block.bytes.size();) {
    count_part();
    const auto type = static_cast<uint16_t>(block.get(i, 2));
    const uint64_t size = block.get(i + 2, 2);
    constexpr uint64_t kShared = 2;
    const bool known = type == kDataspace || type == kDatatype || type == kLayout || type == kFilters;
    if (known && block.get(i + 4, 1) & kShared) refuse("a property shared with another object is not read");
    o.messages.emplace_back(type, block.part(i + 8, size));
    i += 8 + size;
  }
}

// The leaves of a B-tree in order: fn(key, address).
template <class Fn>
void Reader::nodes(uint64_t tree, int kind, int level, uint64_t key_bytes, Fn&& fn) {
  const Span head = file_.part(tree, 24);
  if (!head.begins_with("TREE") || static_cast<int>(head.get(4, 1)) != kind) refuse("no index at offset ", tree, "; the file is damaged");
  const auto own = static_cast<int>(head.get(5, 1));
  if (own > kMaxLevel || (level >= 0 && own != level)) refuse("an index of level ", own, "; the file is damaged");
  const uint64_t n = head.get(6, 2);
  const Span body = file_.part(tree + 24, n * (key_bytes + 8));
  for (uint64_t i = 0; i < n; ++i) {
    count_part();
    const uint64_t key = i * (key_bytes + 8), child = body.get(key + key_bytes, 8);
    if (own > 0) nodes(child, kind, own - 1, key_bytes, fn);
    else fn(body.part(key, key_bytes), child);
  }
}

// A group that holds other links than plain ones keeps each in a message of its own.
template <class Fn>
void Reader::links(const Object& g, Fn&& fn) const {
  for (const auto& [type, m] : g.messages) {
    if (type == kLinkInfo && m.get(m.get(1, 1) & 1 ? 10 : 2, 8) != kUndefined) refuse("a group in HDF5's newer form is not read; save it with h5py's default, libver=\"earliest\"");
    if (type != kLink) continue;
    const uint64_t flags = m.get(1, 1), length_bytes = uint64_t{1} << (flags & 3);
    uint64_t i = 2;
    const uint64_t form = flags & 8 ? m.get(i++, 1) : 0;
    i += (flags & 4 ? 8 : 0) + (flags & 16 ? 1 : 0);
    const uint64_t length = m.get(i, static_cast<int>(length_bytes));
    const std::string entry(m.part(i + length_bytes, length).bytes);
    constexpr uint64_t kHard = 0, kElsewhere = 64;
    if (form == kElsewhere) refuse(entry.substr(0, 512), ": a link to another file; such links are not followed");
    if (form != kHard) refuse(entry.substr(0, 512), ": a symbolic link; such links are not followed");
    fn(entry, m.get(i + length_bytes + length, 8));
  }
}

template <class Fn>
void Reader::entries(const Object& g, Fn&& fn) {
  const Span* table = g.find(kSymbolTable);
  if (!table) return links(g, fn);
  const Span heap = file_.part(table->get(8, 8), 32);
  if (!heap.begins_with("HEAP")) refuse("no heap at offset ", table->get(8, 8), "; the file is damaged");
  const Span names = file_.part(heap.get(24, 8), heap.get(8, 8));
  nodes(table->get(0, 8), 0, -1, 8, [&](const Span&, uint64_t address) {
    const Span head = file_.part(address, 8);
    if (!head.begins_with("SNOD")) refuse("no entries at offset ", address, "; the file is damaged");
    const uint64_t n = head.get(6, 2);
    const Span list = file_.part(address + 8, n * 40);
    for (uint64_t i = 0; i < n; ++i) {
      count_part();
      const uint64_t at_name = list.get(i * 40, 8);
      names.need(at_name, 1);
      constexpr uint64_t kLongest = 4096, kSoftLink = 2;
      const std::string_view rest = names.bytes.substr(at_name, kLongest);
      const size_t end = rest.find('\0');
      if (end == std::string_view::npos || end == 0) refuse("entry ", i, " has no readable name");
      const std::string entry(rest.substr(0, end));
      const uint64_t target = list.get(i * 40 + 8, 8);
      if (list.get(i * 40 + 16, 4) == kSoftLink || target == kUndefined) refuse(entry, ": a symbolic link; such links are not followed");
      fn(entry, target);
    }
  });
}

void Reader::group(uint64_t address, const std::string& path, int depth) {
  at(path);
  if (depth > kMaxDepth) refuse("groups nested deeper than ", kMaxDepth);
  std::vector<std::pair<std::string, uint64_t>> children;
  entries(object(address), [&](const std::string& entry, uint64_t child) { children.emplace_back(entry, child); });
  for (const auto& [entry, child] : children) {
    const std::string below = path + "/" + entry;
    at(below);
    const Object o = object(child);
    if (o.find(kLayout)) dataset(o, below);
    else if (o.find(kSymbolTable) || o.find(kLinkInfo) || o.find(kLink)) group(child, below, depth + 1);
  }
}

// 0: no floats.
int Reader::element_bytes(const Span& type) const {
  constexpr uint64_t kFloatClass = 1;
  if ((type.get(0, 1) & 15) != kFloatClass) return 0;
  struct Form {
    uint64_t bytes, sign, exponent_at, exponent, mantissa, bias;
  };
  static constexpr Form kForms[] = {{2, 15, 10, 5, 10, 15}, {4, 31, 23, 8, 23, 127}, {8, 63, 52, 11, 52, 1023}};
  const uint64_t bytes = type.get(4, 4);
  for (const Form& f : kForms) {
    const bool little = (type.get(1, 1) & 0x41) == 0, normalized = (type.get(1, 1) >> 4 & 3) == 2;
    if (bytes == f.bytes && little && normalized && type.get(2, 1) == f.sign && type.get(8, 2) == 0 && type.get(10, 2) == 8 * bytes && type.get(12, 1) == f.exponent_at &&
        type.get(13, 1) == f.exponent && type.get(14, 1) == 0 && type.get(15, 1) == f.mantissa && type.get(16, 4) == f.bias) {
      return static_cast<int>(bytes);
    }
  }
  refuse("its numbers are no little-endian IEEE floats of 16, 32 or 64 bits");
}

// Of rank 1 to 4, or empty.
std::vector<int64_t> Reader::dims(const Span& space) const {
  const uint64_t version = space.get(0, 1), rank = space.get(1, 1);
  if (version != 1 && version != 2) refuse("a dataspace of version ", version);
  if (rank < 1 || rank > 4) return {};
  std::vector<int64_t> d;
  int64_t elements = 1;
  for (uint64_t i = 0; i < rank; ++i) {
    const uint64_t extent = space.get((version == 1 ? 8 : 4) + 8 * i, 8);
    if (extent < 1 || extent > static_cast<uint64_t>(kMaxElements / elements)) refuse("extent ", extent, " of dimension ", i);
    d.push_back(static_cast<int64_t>(extent));
    elements *= d.back();
  }
  return d;
}

int64_t product(const std::vector<int64_t>& d) {
  int64_t n = 1;
  for (const int64_t e : d) n *= e;
  return n;
}

std::vector<uint16_t> Reader::filters(const Object& o) const {
  const Span* m = o.find(kFilters);
  if (!m) return {};
  const uint64_t version = m->get(0, 1), n = m->get(1, 1);
  if (version != 1 && version != 2) refuse("a filter pipeline of version ", version);
  std::vector<uint16_t> all;
  uint64_t i = version == 1 ? 8 : 2;
  for (uint64_t k = 0; k < n; ++k) {
    const auto id = static_cast<uint16_t>(m->get(i, 2));
    if (id != kDeflate && id != kShuffle && id != kFletcher32) refuse("filter ", id, "; only deflate, shuffle and fletcher32 are supported");
    all.push_back(id);
    const uint64_t name = version == 1 ? (m->get(i + 2, 2) + 7) / 8 * 8 : 0, head = version == 1 ? 8 : 6, values = m->get(i + head - 2, 2);
    i += head + name + 4 * (values + (version == 1 ? values % 2 : 0));
  }
  return all;
}

uint32_t fletcher32(std::string_view bytes) {
  uint32_t a = 0, b = 0;
  const auto fold = [](uint32_t v) { return (v & 0xffff) + (v >> 16); };
  for (size_t i = 0; i < bytes.size(); i += 2) {
    a += static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])) << 8 | (i + 1 < bytes.size() ? static_cast<uint8_t>(bytes[i + 1]) : 0u);
    b += a;
    a = fold(a);
    b = fold(b);
  }
  return fold(b) << 16 | fold(a);
}

std::string unshuffled(const std::string& in, size_t element) {
  std::string out = in;
  const size_t n = in.size() / element;
  for (size_t i = 0; i < n; ++i) {
    for (size_t b = 0; b < element; ++b) out[i * element + b] = in[b * n + i];
  }
  return out;
}

std::string Reader::unfiltered(const Chunk& c, const std::vector<uint16_t>& filters, size_t bytes, int element) const {
  std::string data(c.stored.bytes);
  for (size_t k = filters.size(); k-- > 0;) {
    if (c.mask >> k & 1) continue;
    if (filters[k] == kFletcher32) {
      uint32_t sum;
      if (data.size() < 4) refuse("a chunk of ", static_cast<uint64_t>(data.size()), " bytes has no checksum");
      std::memcpy(&sum, data.data() + data.size() - 4, 4);
      data.resize(data.size() - 4);
      if (sum != fletcher32(data)) refuse("a checksum differs; the file is damaged");
    } else if (filters[k] == kDeflate) {
      // A checksum of what was compressed lies in front of it.
      const auto inner = static_cast<size_t>(std::count(filters.begin(), filters.begin() + static_cast<std::ptrdiff_t>(k), kFletcher32));
      data = inflate_zlib(data, bytes + 4 * inner, where_);
    } else {
      data = unshuffled(data, static_cast<size_t>(element));
    }
  }
  if (data.size() != bytes) refuse("a chunk holds ", static_cast<uint64_t>(data.size()), " bytes, ", static_cast<uint64_t>(bytes), " expected");
  return data;
}

std::vector<Chunk> Reader::chunks(uint64_t tree, const std::vector<int64_t>& d, const std::vector<int64_t>& extent) {
  std::vector<Chunk> all;
  if (tree == kUndefined) return all;
  nodes(tree, 1, -1, 8 + 8 * (d.size() + 1), [&](const Span& key, uint64_t address) {
    Chunk c{file_.part(address, key.get(0, 4)), static_cast<uint32_t>(key.get(4, 4)), {}};
    for (size_t i = 0; i < d.size(); ++i) {
      const uint64_t first = key.get(8 + 8 * i, 8);
      if (first >= static_cast<uint64_t>(d[i]) || first % static_cast<uint64_t>(extent[i]) != 0) refuse("a chunk begins at ", first, " in dimension ", static_cast<uint64_t>(i), "; the file is damaged");
      c.at.push_back(static_cast<int64_t>(first));
    }
    claim(c.stored.bytes.size());
    all.push_back(std::move(c));
  });
  return all;
}

std::string Reader::chunked(const Object& o, const Span& layout, const std::vector<int64_t>& d, int element) {
  if (layout.get(0, 1) != 3) refuse("chunks in HDF5's newer form are not read; save it with h5py's default, libver=\"earliest\"");
  if (layout.get(2, 1) != d.size() + 1 || layout.get(11 + 4 * d.size(), 4) != static_cast<uint64_t>(element)) refuse("its chunks have another form than its data; the file is damaged");
  std::vector<int64_t> extent, count;
  for (size_t i = 0; i < d.size(); ++i) {
    extent.push_back(static_cast<int64_t>(layout.get(11 + 4 * i, 4)));
    if (extent[i] < 1 || extent[i] > kMaxElements) refuse("chunks of extent ", extent[i], " in dimension ", static_cast<uint64_t>(i));
    count.push_back((d[i] + extent[i] - 1) / extent[i]);
  }
  const std::vector<uint16_t> used = filters(o);
  const uint64_t before = claimed_;
  const std::vector<Chunk> all = chunks(layout.get(3, 8), d, extent);
  const auto stored = static_cast<int64_t>(claimed_ - before);
  double chunk_bytes = element;
  for (const int64_t e : extent) chunk_bytes *= static_cast<double>(e);
  const double declared = chunk_bytes * static_cast<double>(product(count)), best = std::count(used.begin(), used.end(), kDeflate) ? kBestCompression : 1.0;
  if (declared / best > static_cast<double>(stored)) refuse("it declares ", declared, " bytes, and ", stored, " are stored");
  if (static_cast<int64_t>(all.size()) != product(count)) refuse(static_cast<uint64_t>(all.size()), " of ", product(count), " chunks are stored");
  std::string out(static_cast<size_t>(product(d) * element), '\0');
  std::vector<bool> seen(all.size(), false);
  for (const Chunk& c : all) {
    int64_t index = 0;
    for (size_t i = 0; i < d.size(); ++i) index = index * count[i] + c.at[i] / extent[i];
    if (seen[static_cast<size_t>(index)]) refuse("a chunk is stored twice; the file is damaged");
    seen[static_cast<size_t>(index)] = true;
    const std::string data = unfiltered(c, used, static_cast<size_t>(chunk_bytes), element);
    // Row by row of the last dimension; what lies outside of the data set is padding.
    const size_t last = d.size() - 1;
    const int64_t row = std::min(extent[last], d[last] - c.at[last]), rows = product(extent) / extent[last];
    for (int64_t r = 0; r < rows; ++r) {
      int64_t rest = r, to = 0, stride = d[last];
      bool inside = true;
      for (size_t i = last; i-- > 0;) {
        const int64_t k = c.at[i] + rest % extent[i];
        rest /= extent[i];
        inside = inside && k < d[i];
        to += k * stride;
        stride *= d[i];
      }
      if (inside && row > 0) std::memcpy(out.data() + (to + c.at[last]) * element, data.data() + r * extent[last] * element, static_cast<size_t>(row * element));
    }
  }
  return out;
}

std::string Reader::data(const Object& o, const std::vector<int64_t>& d, int element) {
  const Span& layout = *o.find(kLayout);
  const auto bytes = static_cast<uint64_t>(product(d) * element), version = layout.get(0, 1);
  if (version != 3 && version != 4) refuse("a data layout of version ", version, " is not read");
  if (o.find(kExternal)) refuse("its data lie in another file; such files are not read");
  enum { kCompact, kContiguous, kChunked, kVirtual };
  const uint64_t form = layout.get(1, 1);
  if (form == kVirtual) refuse("a virtual data set; such data sets are not read");
  if (form == kChunked) return chunked(o, layout, d, element);
  if (form != kCompact && form != kContiguous) refuse("a data layout of class ", form);
  const uint64_t stored = form == kCompact ? layout.get(2, 2) : layout.get(10, 8);
  if (stored != bytes || (form == kContiguous && layout.get(2, 8) == kUndefined)) refuse("it declares ", bytes, " bytes, and ", stored, " are stored");
  claim(bytes);
  return std::string((form == kCompact ? layout.part(4, bytes) : file_.part(layout.get(2, 8), bytes)).bytes);
}

template <class T, class Fn>
void convert(const std::string& raw, std::vector<float>& out, Fn&& as_float) {
  for (size_t i = 0; i < out.size(); ++i) {
    T v;
    std::memcpy(&v, raw.data() + i * sizeof v, sizeof v);
    out[i] = as_float(v);
  }
}

void Reader::dataset(const Object& o, const std::string& path) {
  const Span *type = o.find(kDatatype), *space = o.find(kDataspace);
  if (!type || !space) refuse("a data set without a type or a shape; the file is damaged");
  const int element = element_bytes(*type);
  if (element == 0) return;  // counters and the like
  Hdf5Array array{path, dims(*space), {}};
  if (array.dims.empty()) return;
  const std::string raw = data(o, array.dims, element);
  array.values.resize(static_cast<size_t>(product(array.dims)));
  if (element == 2) convert<uint16_t>(raw, array.values, half_to_float);
  if (element == 4 && !raw.empty()) std::memcpy(array.values.data(), raw.data(), raw.size());
  if (element == 8) convert<double>(raw, array.values, [](double v) { return static_cast<float>(v); });
  found_(std::move(array));
}

}  // namespace

void read_hdf5(std::string_view bytes, const std::string& name, const std::function<void(Hdf5Array)>& found) { Reader(bytes, name, found).run(); }

}  // namespace detent::io
