// Every reason for which the reader of Keras' HDF5 files refuses one. The files are put together here by hand, field by field, each with one thing wrong.
#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "detent/io/inflate.h"
#include "detent/io/keras_h5.h"
#include "detent/tests/io/support.h"

using namespace detent;
using namespace detent::test;

namespace {

std::string little(uint64_t v, int bytes) {
  std::string s;
  for (int i = 0; i < bytes; ++i, v >>= 8) s += static_cast<char>(v & 255);
  return s;
}

constexpr uint64_t kNowhere = ~uint64_t{0};
constexpr int kDataspace = 1, kLinkInfo = 2, kDatatype = 3, kLink = 6, kExternal = 7, kLayout = 8, kFilters = 11, kContinuation = 16, kSymbolTable = 17;

std::string message(int type, const std::string& body, int flags = 0) { return little(static_cast<uint64_t>(type), 2) + little(body.size(), 2) + little(static_cast<uint64_t>(flags), 4) + body; }
std::string link(const std::string& name, uint64_t address, int form = 0) {
  const std::string size_and_name = little(name.size(), 1) + name + little(address, 8);
  return message(kLink, form ? std::string("\1\x08", 2) + static_cast<char>(form) + size_and_name : std::string("\1\0", 2) + size_and_name);
}
// 32-bit floats; `order` 1: big-endian.
std::string datatype(char order = 0) {
  return message(kDatatype, std::string("\x11") + static_cast<char>(0x20 | order) + std::string("\x1f\0", 2) + little(4, 4) + little(0, 2) + little(32, 2) + std::string("\x17\x08\0\x17", 4) + little(127, 4));
}
std::string dataspace(const std::vector<uint64_t>& dims, int version = 1) {
  std::string s = little(static_cast<uint64_t>(version), 1) + little(dims.size(), 1) + little(0, 6);
  for (const uint64_t d : dims) s += little(d, 8);
  return message(kDataspace, s);
}
std::string compact(const std::string& data, int version = 3, int form = 0) { return message(kLayout, little(static_cast<uint64_t>(version), 1) + little(static_cast<uint64_t>(form), 1) + little(data.size(), 2) + data); }
std::string contiguous(uint64_t address, uint64_t size) { return message(kLayout, std::string("\3\1") + little(address, 8) + little(size, 8)); }
std::string chunked(uint64_t index, const std::vector<uint64_t>& extents, int version = 3) {
  std::string s = little(static_cast<uint64_t>(version), 1) + "\2" + little(extents.size(), 1) + little(index, 8);
  for (const uint64_t e : extents) s += little(e, 4);
  return message(kLayout, s);
}
std::string filter(int id, int version = 1) { return message(kFilters, little(static_cast<uint64_t>(version), 1) + little(1, 1) + little(0, 6) + little(static_cast<uint64_t>(id), 2) + little(0, 6)); }

struct File {
  std::string bytes = std::string(80, '\0');

  uint64_t put(const std::string& s) {
    bytes += s;
    return bytes.size() - s.size();
  }
  uint64_t object(const std::string& messages) { return put(little(1, 1) + little(0, 7) + little(messages.size(), 4) + little(0, 4) + messages); }
  uint64_t index(int kind, int level, const std::vector<std::pair<std::string, uint64_t>>& entries) {
    std::string s = "TREE" + little(static_cast<uint64_t>(kind), 1) + little(static_cast<uint64_t>(level), 1) + little(entries.size(), 2) + little(kNowhere, 8) + little(kNowhere, 8);
    for (const auto& [key, address] : entries) s += key + little(address, 8);
    return put(s);
  }
  struct ChunkAt {
    std::string data;
    uint64_t at;
  };
  // Of a data set of rank 1.
  uint64_t chunk_index(const std::vector<ChunkAt>& chunks) {
    std::vector<std::pair<std::string, uint64_t>> entries;
    for (const ChunkAt& c : chunks) entries.emplace_back(little(c.data.size(), 4) + little(0, 4) + little(c.at, 8) + little(0, 8), put(c.data));
    return index(1, 0, entries);
  }
  std::string with_root(uint64_t root) {
    bytes.replace(0, 8, "\x89HDF\r\n\x1a\n");
    bytes.replace(13, 2, "\x08\x08");
    bytes.replace(64, 8, little(root, 8));
    return bytes;
  }
  // The data set "/conv/bias:0".
  std::string with_dataset(const std::string& messages) { return with_root(object(link("conv", object(link("bias:0", object(messages)))))); }
};

std::string dataset(const std::string& messages) { return File().with_dataset(messages); }
std::string group(const std::string& messages) {
  File f;
  return f.with_root(f.object(messages));
}

// A group in the older form: an index, a heap of names, a list of entries.
struct Table {
  std::string index_mark = "TREE", heap_mark = "HEAP", list_mark = "SNOD", names = std::string("conv\0", 5);
  int level = 0, form = 0;
  uint64_t name_at = 0;
  bool target = true;
  std::string file() const {
    File f;
    const uint64_t object = f.object("");
    const uint64_t list = f.put(list_mark + little(1, 2) + little(1, 2) + little(name_at, 8) + little(target ? object : kNowhere, 8) + little(static_cast<uint64_t>(form), 4) + little(0, 20));
    const uint64_t own_names = f.put(names), heap = f.put(heap_mark + little(0, 4) + little(names.size(), 8) + little(0, 8) + little(own_names, 8));
    const uint64_t tree = f.index(0, level, {{little(0, 8), list}});
    f.bytes.replace(tree, 4, index_mark);
    return f.with_root(f.object(message(kSymbolTable, little(tree, 8) + little(heap, 8))));
  }
};

std::string with_chunks(const std::vector<File::ChunkAt>& chunks, const std::string& filters = {}) {
  File f;
  const uint64_t index = f.chunk_index(chunks);
  return f.with_dataset(datatype() + dataspace({4}) + chunked(index, {2, 4}) + filters);
}

struct Row {
  const char* reason;
  std::string file;
};

void check_refused(const std::vector<Row>& rows) {
  for (const Row& r : rows) {
    const std::string e = error_of([&] { io::parse_keras_h5(r.file, "my.h5"); });
    CHECK_CONTAINS(e, std::string(r.reason));
    CHECK_CONTAINS(e, "weights my.h5");
  }
}

const std::string kTwo(8, '\0');  // two floats

}  // namespace

TEST_CASE("keras: the files put together here are read when nothing is wrong with them") {
  File f;
  const uint64_t index = f.chunk_index({{kTwo, 0}, {kTwo, 2}});
  for (const std::string& good : {dataset(datatype() + dataspace({2}) + compact(kTwo)), f.with_dataset(datatype() + dataspace({4}) + chunked(index, {2, 4}))}) {
    const auto tensors = io::parse_keras_h5(good, "my.h5");
    REQUIRE(tensors.size() == 1);
    CHECK(tensors[0].name == "conv.bias");
  }
  // The older form of a group gets as far as the empty object behind its entry.
  CHECK_CONTAINS(error_of([] { io::parse_keras_h5(Table{}.file(), "my.h5"); }), "without Keras layers");
}

TEST_CASE("keras: files whose frame is wrong") {
  const std::string good = dataset(datatype() + dataspace({2}) + compact(kTwo));
  const auto changed = [&](size_t at, char c) {
    std::string s = good;
    s[at] = c;
    return s;
  };
  check_refused({
      {"not an HDF5 file", "nonsense"},
      {"lie behind the end", good.substr(0, 60)},
      {"HDF5's newer form (superblock 2) is not read", changed(8, 2)},
      {"offsets of 4 bytes; 8 are expected", changed(13, 4)},
      {"it does not begin at its own beginning", changed(24, 1)},
      {"an HDF5 file without Keras layers", group("")},
  });
}

TEST_CASE("keras: groups and links that are not followed") {
  File old, same, loop, twice;
  const uint64_t newer = old.put("OHDR" + std::string(20, '\0')), nothing = same.put(std::string(24, '\0'));
  // A header that goes on in a block that goes on in itself.
  const uint64_t block = loop.bytes.size();
  loop.put(message(kContinuation, little(block, 8) + little(24, 8)));
  const uint64_t endless = loop.object(message(kContinuation, little(block, 8) + little(24, 8)));
  File deep;
  uint64_t below = deep.object(link("end", deep.object("")));
  for (int i = 0; i < 14; ++i) below = deep.object(link("g", below));
  const std::string bias = datatype() + dataspace({2}) + compact(kTwo);
  const uint64_t a = twice.object(link("conv", twice.object(link("bias:0", twice.object(bias))))), b = twice.object(link("conv", twice.object(link("bias:0", twice.object(bias)))));
  Table tree, level, heap, list, unnamed, endless_name, soft, nowhere;
  File uneven;
  const uint64_t low = uneven.index(0, 5, {}), high = uneven.index(0, 1, {{little(0, 8), low}});
  const uint64_t names = uneven.put(std::string(8, '\0')), name_heap = uneven.put("HEAP" + little(0, 4) + little(8, 8) + little(0, 8) + little(names, 8));
  tree.index_mark = "NONE", level.level = 17, heap.heap_mark = "NONE", list.list_mark = "NONE", unnamed.names = std::string(5, '\0'), endless_name.names = "conv!", soft.form = 2, nowhere.target = false;
  check_refused({
      {"an object in HDF5's newer form is not read", old.with_root(newer)},
      {"no object at offset 80", same.with_root(nothing)},
      {"more than 1048576 parts", loop.with_root(endless)},
      {"a group in HDF5's newer form is not read", group(message(kLinkInfo, std::string(2, '\0') + little(96, 8) + little(kNowhere, 8)))},
      {"conv: a link to another file", group(link("conv", 0, 64))},
      {"conv: a symbolic link", group(link("conv", 0, 1))},
      {"groups nested deeper than 12", deep.with_root(below)},
      {"/b/conv/bias:0: a second array for conv.bias", twice.with_root(twice.object(link("a", a) + link("b", b)))},
      {"no index at offset", tree.file()},
      {"an index of level 17", level.file()},
      {"an index of level 5", uneven.with_root(uneven.object(message(kSymbolTable, little(high, 8) + little(name_heap, 8))))},
      {"no heap at offset", heap.file()},
      {"no entries at offset", list.file()},
      {"entry 0 has no readable name", unnamed.file()},
      {"entry 0 has no readable name", endless_name.file()},
      {"conv: a symbolic link", soft.file()},
      {"conv: a symbolic link", nowhere.file()},
  });
}

TEST_CASE("keras: data sets that are not what they declare") {
  const std::string two = dataspace({2}), floats = datatype();
  File shared;
  const uint64_t data = shared.put(std::string(512, '\0'));
  const std::string all = floats + dataspace({128}) + contiguous(data, 512);
  const uint64_t conv = shared.object(link("bias:0", shared.object(all)) + link("gamma:0", shared.object(all)));
  check_refused({
      {"conv/bias:0: a property shared with another object", dataset(message(kDatatype, "shared", 2) + two + compact(kTwo))},
      {"conv/bias:0: a data set without a type or a shape", dataset(floats + compact(kTwo))},
      {"no little-endian IEEE floats", dataset(datatype(1) + two + compact(kTwo))},
      {"a dataspace of version 3", dataset(floats + dataspace({2}, 3) + compact(kTwo))},
      {"extent 0 of dimension 0", dataset(floats + dataspace({0}) + compact(""))},
      {"extent 4294967296 of dimension 1", dataset(floats + dataspace({2, uint64_t{1} << 32}) + compact(kTwo))},
      {"a data layout of version 2 is not read", dataset(floats + two + compact(kTwo, 2))},
      {"its data lie in another file", dataset(floats + two + compact(kTwo) + message(kExternal, ""))},
      {"a virtual data set", dataset(floats + two + compact("", 4, 3))},
      {"a data layout of class 9", dataset(floats + two + compact(kTwo, 3, 9))},
      {"it declares 8 bytes, and 4 are stored", dataset(floats + two + compact("four"))},
      {"it declares 8 bytes, and 8 are stored", dataset(floats + two + contiguous(kNowhere, 8))},
      {"it declares more bytes than the file's", shared.with_root(shared.object(link("conv", conv)))},
  });
}

TEST_CASE("keras: chunks that do not make up their data set") {
  const std::string floats = datatype(), four = dataspace({4});
  const auto layout = [&](const std::vector<uint64_t>& extents, int version = 3, const std::string& more = {}) { return dataset(floats + four + chunked(kNowhere, extents, version) + more); };
  constexpr int kDeflate = 1, kFletcher32 = 3;
  check_refused({
      {"chunks in HDF5's newer form are not read", layout({2, 4}, 4)},
      {"its chunks have another form than its data", layout({2, 2, 4})},
      {"its chunks have another form than its data", layout({2, 8})},
      {"chunks of extent 0 in dimension 0", layout({0, 4})},
      {"a filter pipeline of version 3", layout({2, 4}, 3, filter(kDeflate, 3))},
      {"filter 9; only deflate, shuffle and fletcher32 are supported", layout({2, 4}, 3, filter(9))},
      {"it declares 16 bytes, and 0 are stored", layout({2, 4})},
      {"1 of 2 chunks are stored", with_chunks({{std::string(16, '\0'), 0}})},
      {"a chunk begins at 1 in dimension 0", with_chunks({{kTwo, 1}})},
      {"a chunk is stored twice", with_chunks({{kTwo, 0}, {kTwo, 0}})},
      {"a chunk holds 12 bytes, 8 expected", with_chunks({{std::string(12, '\0'), 0}, {kTwo, 2}})},
      {"a chunk of 3 bytes has no checksum", with_chunks({{"abc", 0}, {std::string(13, '\0'), 2}}, filter(kFletcher32))},
      {"a checksum differs", with_chunks({{kTwo + "abcd", 0}, {kTwo + "abcd", 2}}, filter(kFletcher32))},
      {"its compressed data is damaged at byte", with_chunks({{"nonsense", 0}, {"nonsense", 2}}, filter(kDeflate))},
  });
}

namespace {

// A deflate stream, bit by bit.
struct Deflate {
  std::string out = "\x78\x9c";
  int used = 0;
  Deflate& put(uint32_t v, int n) {
    for (int i = 0; i < n; ++i, ++used) {
      if (used % 8 == 0) out += '\0';
      out.back() = static_cast<char>(out.back() | (v >> i & 1) << (used % 8));
    }
    return *this;
  }
  // Huffman codes have their first bit first.
  Deflate& code(uint32_t v, int n) {
    for (int i = n; i-- > 0;) put(v >> i & 1, 1);
    return *this;
  }
  Deflate& last_block(uint32_t kind) { return put(1, 1).put(kind, 2); }
  // A block with codes of its own: 257 literals, 1 distance and so many more, and lengths told by `lengths[symbol]` bits for each of the symbols 16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1.
  Deflate& own_codes(const std::vector<uint32_t>& lengths, uint32_t literals = 0, uint32_t distances = 0) {
    last_block(2).put(literals, 5).put(distances, 5).put(14, 4);
    for (const uint32_t n : lengths) put(n, 3);
    for (size_t i = lengths.size(); i < 18; ++i) put(0, 3);
    return *this;
  }
  // The same with lengths of 0 (in runs) and 1 alone: 257 zeros to begin with.
  Deflate& ones_and_zeros(uint32_t literals, uint32_t distances) {
    own_codes({0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, literals, distances);
    return zeros(138).zeros(119);
  }
  Deflate& zeros(uint32_t n) { return code(1, 1).put(n - 11, 7); }
  Deflate& one() { return code(0, 1); }
};

std::string stored_block(const std::string& data, const std::string& sum) {
  return std::string("\x78\x9c\x01", 3) + little(data.size(), 2) + little(~data.size() & 0xffff, 2) + data + sum;
}

}  // namespace

TEST_CASE("inflate: everything that makes a stream no stream") {
  CHECK_CONTAINS(error_of([] { io::inflate_zlib("", size_t{1} << 32, "my.h5: conv"); }), "4 GB are the limit");
  const std::string sum("\x02\x4d\x01\x27", 4);  // Adler-32 of "abc"
  CHECK(io::inflate_zlib(stored_block("abc", sum), 3, "x") == "abc");
  std::string complement = stored_block("abc", sum);
  complement[5] = 0;
  Deflate twice18;
  twice18.own_codes({0, 0, 1}).code(0, 1).put(127, 7).code(0, 1).put(127, 7);
  Deflate crowded;  // 258 codes of one bit
  crowded.own_codes({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});
  for (int i = 0; i < 258; ++i) crowded.code(0, 1);
  const std::vector<std::pair<const char*, std::string>> rows = {
      {"no header", ""},
      {"a header whose check fails", "\x78\x9d" + stored_block("abc", sum).substr(2)},
      {"another method", std::string("\x79\x14", 2)},
      {"a dictionary", std::string("\x78\x20", 2)},
      {"a block of kind 3", Deflate().last_block(3).out},
      {"less than is expected", stored_block("ab", sum)},
      {"more than is expected", stored_block("abcd", sum)},
      {"another sum", stored_block("abc", "nope")},
      {"no sum", stored_block("abc", "")},
      {"a length and its complement that differ", complement},
      {"a literal too many", Deflate().last_block(1).code(0x91, 8).code(0x91, 8).code(0x91, 8).code(0x91, 8).out},
      {"length code 286", Deflate().last_block(1).code(0xc6, 8).out},
      {"distance code 30", Deflate().last_block(1).code(1, 7).code(30, 5).out},
      {"a distance before the beginning", Deflate().last_block(1).code(1, 7).code(0, 5).out},
      {"a copy that is too long", Deflate().last_block(1).code(0x91, 8).code(1, 7).code(0, 5).out},
      {"287 literals", Deflate().own_codes({1, 1}, 30).out},
      {"lengths of codes that exceed their room", Deflate().own_codes({1, 1, 1}).out},
      {"a repetition of nothing", Deflate().own_codes({1, 1}).code(0, 1).put(0, 2).out},
      {"a repetition beyond the end", twice18.out},
      {"codes that exceed their room", crowded.out},
      {"distances that exceed their room", Deflate().ones_and_zeros(0, 3).one().one().one().one().out},
      {"distance code 30 of its own", Deflate().ones_and_zeros(1, 30).one().zeros(30).one().code(0, 1).code(0, 1).out},
      {"a code that no symbol has", Deflate().own_codes({1}).code(0x7fff, 15).code(1, 1).out},
  };
  for (const auto& row : rows) {
    const auto& what = row.first;
    const auto& stream = row.second;
    CAPTURE(what);
    CHECK_CONTAINS(error_of([&] { io::inflate_zlib(stream, 3, "my.h5: conv"); }), "my.h5: conv: its compressed data is damaged at byte ");
  }
}
