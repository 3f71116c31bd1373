#include "detent/tests/io/support.h"

#include <cstring>
#include <random>
#include <vector>

#include "detent/io/data/crc32c.h"
#include "detent/io/data/tfrecord.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

// Bit by bit, from the definition.
uint32_t slow_crc(const std::string& s) {
  uint32_t c = 0xffffffffu;
  for (const unsigned char byte : s) {
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t feedback = (c ^ (byte >> bit)) & 1u;
      c = (c >> 1) ^ (feedback ? 0x82f63b78u : 0u);
    }
  }
  return c ^ 0xffffffffu;
}

std::string le(uint64_t v, int bytes) {
  std::string s;
  for (int i = 0; i < bytes; ++i) s += static_cast<char>(v >> (8 * i));
  return s;
}

std::string frame(const std::string& data, uint64_t length) {
  const auto mask = [](uint32_t c) { return ((c >> 15) | (c << 17)) + 0xa282ead8u; };
  return le(length, 8) + le(mask(slow_crc(le(length, 8))), 4) + data + le(mask(slow_crc(data)), 4);
}

std::vector<std::string> read_all(const std::string& path) {
  const RandomAccessFile f(path);
  const TfRecordIndex index = index_tfrecord(f);
  std::vector<std::string> out;
  std::vector<uint8_t> scratch, other;
  std::span<const uint8_t> data;
  for (size_t i = 0; i + 1 < index.offsets.size(); ++i) {
    const auto begin = static_cast<int64_t>(index.offsets[i]), end = static_cast<int64_t>(index.offsets[i + 1]);
    read_tfrecord(f, begin, end, scratch, data);
    out.emplace_back(data.begin(), data.end());
    CHECK(read_tfrecord(f, begin, other) == end);
    CHECK(std::string(other.begin(), other.end()) == out.back());
  }
  if (index.broken_frame) throw BadRecord(*index.broken_frame);
  return out;
}

}  // namespace

TEST_CASE("crc32c of known vectors") {
  // RFC 3720, B.4.
  CHECK(crc32c("123456789", 9) == 0xe3069283u);
  const std::string zeros(32, '\0'), ones(32, '\xff');
  std::string up(32, '\0');
  for (int i = 0; i < 32; ++i) up[static_cast<size_t>(i)] = static_cast<char>(i);
  CHECK(crc32c(zeros.data(), 32) == 0x8a9136aau);
  CHECK(crc32c(ones.data(), 32) == 0x62a8ab43u);
  CHECK(crc32c(up.data(), 32) == 0x46dd794eu);
  CHECK(crc32c("", 0) == 0u);
}

TEST_CASE("crc32c: instruction, table and definition agree at every length and alignment, and in parts") {
  std::mt19937 random(1);
  std::string s(300, '\0');
  for (char& c : s) c = static_cast<char>(random());
  for (size_t begin = 0; begin < 9; ++begin) {
    for (size_t n = 0; n + begin <= s.size(); n += 1 + n / 16) {
      const uint32_t expected = slow_crc(s.substr(begin, n));
      CHECK(crc32c(s.data() + begin, n) == expected);
      CHECK(crc32c_table(s.data() + begin, n) == expected);
      CHECK(crc32c(s.data() + begin + n / 3, n - n / 3, crc32c(s.data() + begin, n / 3)) == expected);
    }
  }
}

TEST_CASE("records come back as written, empty and large ones too") {
  const TempFolder dir;
  const std::vector<std::string> records = {"", "a", std::string(5000, 'x'), "", std::string(100000, '\0'), "end"};
  std::string expected;
  {
    TfRecordWriter w(dir / "r");
    for (const std::string& r : records) {
      w.write(r);
      expected += frame(r, r.size());
    }
    CHECK_FALSE(file_exists(dir / "r"));
    w.finish();
  }
  CHECK(slurp(dir / "r") == expected);
  CHECK(read_all(dir / "r") == records);
}

TEST_CASE("an empty file holds no records") {
  const TempFolder dir;
  spill(dir / "r", "");
  CHECK(read_all(dir / "r").empty());
}

TEST_CASE("every flipped bit is found, with file and offset") {
  const TempFolder dir;
  const std::string good = frame("hello", 5) + frame("world!", 6);
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    spill(dir / "r", bad);
    const std::string message = error_of([&] { read_all(dir / "r"); });
    CHECK_CONTAINS(message, dir / "r");
    CHECK_CONTAINS(message, bit / 8 < 21 ? "offset 0" : "offset 21");
  }
}

TEST_CASE("a file cut at any byte gives the whole records, then an error") {
  const TempFolder dir;
  const std::string good = frame("hello", 5) + frame("", 0) + frame("world!", 6);
  const size_t ends[] = {0, 21, 37, 59};
  for (size_t n = 0; n < good.size(); ++n) {
    spill(dir / "r", good.substr(0, n));
    const RandomAccessFile f(dir / "r");
    const TfRecordIndex index = index_tfrecord(f);
    size_t whole = 0;
    while (ends[whole + 1] <= n) ++whole;
    CHECK(index.size() == static_cast<int64_t>(whole));
    CHECK(index.broken_frame.has_value() == (n != ends[whole]));
    if (index.broken_frame) {
      CHECK_CONTAINS(*index.broken_frame, text("offset ", ends[whole], " is cut off"));
      std::vector<uint8_t> record;
      CHECK_THROWS_AS(read_tfrecord(f, static_cast<int64_t>(ends[whole]), record), BadRecord);
      CHECK(record.capacity() < 100);
    }
  }
}

TEST_CASE("a length with a good checksum is still checked against the file") {
  const TempFolder dir;
  for (const uint64_t length : {uint64_t{6}, uint64_t{1} << 31, uint64_t{1} << 62, ~uint64_t{0}, ~uint64_t{0} - 11, ~uint64_t{0} - 15}) {
    spill(dir / "r", frame("hello", length));
    std::vector<uint8_t> record;
    const RandomAccessFile f(dir / "r");
    const std::string message = error_of([&] { read_tfrecord(f, 0, record); });
    CHECK_CONTAINS(message, text("said to hold ", length));
    CHECK(record.capacity() == 0);
    CHECK(index_tfrecord(f).size() == 0);
    CHECK(index_tfrecord(f).broken_frame.has_value());
  }
}

TEST_CASE("the index of many small and large records reads around the lengths only") {
  const TempFolder dir;
  std::mt19937 random(2);
  std::string bytes;
  std::vector<uint64_t> offsets = {0};
  for (int i = 0; i < 500; ++i) {
    const std::string data(random() % (i % 10 ? 300 : 20000), 'd');
    bytes += frame(data, data.size());
    offsets.push_back(bytes.size());
  }
  spill(dir / "r", bytes);
  struct Counting : FileSystem {
    int64_t* total;
    int64_t read_at(int fd, void* dst, size_t n, int64_t offset) override {
      const int64_t r = FileSystem::read_at(fd, dst, n, offset);
      *total += r;
      return r;
    }
  };
  int64_t total = 0;
  auto fs = std::make_unique<Counting>();
  fs->total = &total;
  const UseFileSystem use(std::move(fs));
  CHECK(index_tfrecord(RandomAccessFile(dir / "r")).offsets == offsets);
  CHECK(total < static_cast<int64_t>(bytes.size()));
}
