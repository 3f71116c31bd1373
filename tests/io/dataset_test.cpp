#include "detent/tests/io/support.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "detent/io/data/dataset.h"
#include "detent/io/data/example.h"
#include "detent/io/data/loader.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

std::string jpeg_of(int value) {
  Image image{8, 8, std::vector<uint8_t>(8 * 8 * 3, static_cast<uint8_t>(value))};
  return encode_jpeg(image, 95);
}

std::string record(int64_t label) { return serialize_example(jpeg_of(static_cast<int>(label * 5 % 256)), label, 8, 8); }

void write_shard(const std::string& path, std::vector<int64_t> labels) {
  TfRecordWriter w(path);
  for (const int64_t l : labels) w.write(record(l));
  w.finish();
}

std::vector<int64_t> labels_of(const Dataset& d) {
  std::vector<int64_t> v;
  Sample s;
  for (int64_t i = 0; i < d.size(); ++i) {
    d.read(i, s);
    v.push_back(s.label);
  }
  return v;
}

Example parse(const std::string& bytes) { return parse_example({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "f: record at offset 9"); }

// Protocol Buffers wire format by hand.
std::string field(int number, const std::string& bytes) {
  std::string s(1, static_cast<char>(number << 3 | 2));
  for (size_t n = bytes.size();; n >>= 7) {
    s += static_cast<char>((n & 0x7f) | (n >= 0x80 ? 0x80 : 0));
    if (n < 0x80) break;
  }
  return s + bytes;
}
std::string entry(const std::string& key, const std::string& feature) { return field(1, field(1, key) + field(2, feature)); }
std::string bytes_feature(const std::string& v) { return field(1, field(1, v)); }
std::string int_feature(const std::string& packed) { return field(3, field(1, packed)); }

}  // namespace

TEST_CASE("an example written by hand is read, in any order and with other features") {
  const std::string bytes = field(
      1, entry("image/class/label", int_feature("\x07")) + entry("other", field(2, field(1, std::string(8, '\0')))) + entry("image/encoded", bytes_feature(std::string(300, 'j'))));
  const Example e = parse(bytes);
  CHECK(e.label == 7);
  CHECK(e.encoded == std::string(300, 'j'));
  // Not packed, as older writers do.
  const std::string unpacked = field(1, entry("image/class/label", field(3, std::string("\x08\x07", 2))) + entry("image/encoded", bytes_feature("j")));
  CHECK(parse(unpacked).label == 7);
  const Example back = parse(serialize_example("jpeg", -3, 1, 2));
  CHECK(back.label == -3);
  CHECK(back.encoded == "jpeg");
  CHECK(serialize_example("jpeg", 3, 1, 2) == serialize_example("jpeg", 3, 1, 2));
}

TEST_CASE("missing, doubled and foreign features are errors that name their place") {
  const std::string label = entry("image/class/label", int_feature("\x07")), image = entry("image/encoded", bytes_feature("j"));
  const auto message = [](const std::string& features) { return error_of([&] { parse(field(1, features)); }); };
  CHECK_CONTAINS(message(label), "f: record at offset 9: the record has no feature image/encoded");
  CHECK_CONTAINS(message(image), "no feature image/class/label");
  CHECK_CONTAINS(message(image + entry("image/class/label", bytes_feature("7"))), "image/class/label is bytes, int64 is needed");
  CHECK_CONTAINS(message(label + entry("image/encoded", int_feature("\x07"))), "image/encoded is int64, bytes");
  CHECK_CONTAINS(message(label + entry("image/encoded", "")), "no kind at all");
  CHECK_CONTAINS(message(image + entry("image/class/label", int_feature("\x07\x08"))), "2 values");
  CHECK_CONTAINS(message(image + entry("image/class/label", int_feature(""))), "0 values");
  CHECK_CONTAINS(error_of([] { parse(""); }), "no feature image/encoded");
}

TEST_CASE("hostile bytes in an example are errors: cut anywhere, nested deep, noise") {
  const std::string good = record(5);
  for (size_t n = 0; n < good.size(); n += 3) CHECK_THROWS_AS(parse(good.substr(0, n)), BadRecord);
  std::string deep(100000, '\x7b');  // unknown groups in each other
  CHECK_CONTAINS(error_of([&] { parse(deep); }), "not a tf.Example");
  CHECK_THROWS_AS(parse(good + deep), BadRecord);
  CHECK_THROWS_AS(parse(std::string(1000, '\xff')), BadRecord);
  CHECK_THROWS_AS(parse(field(1, std::string("\x0a\xff\xff\xff\xff\x0f", 6))), BadRecord);
  uint64_t r = 1;
  for (int i = 0; i < 2000; ++i) {
    std::string noisy = good;
    for (int k = 0; k < 3; ++k) {
      r = r * 6364136223846793005u + 1442695040888963407u;
      noisy[(r >> 33) % noisy.size()] = static_cast<char>(r >> 25);
    }
    const std::string message = error_of([&] { parse(noisy); });
    CHECK((message.empty() || message.starts_with("f: record at offset 9")));
  }
}

TEST_CASE("a folder of files is read in turns or file after file, links too") {
  const TempFolder dir, elsewhere;
  write_shard(dir / "train-0", {1, 2, 3, 4});
  write_shard(elsewhere / "x", {11});
  std::filesystem::create_symlink(elsewhere / "x", dir / "train-1");
  write_shard(dir / "train-2", {21, 22});
  write_shard(dir / "train-3", {});
  write_shard(dir / "train-4", {41, 42, 43});
  write_shard(dir / "valid-0", {7});
  spill(dir / "labels.txt", "x");
  spill(dir / "train-5.tmp-1-2", "half written");
  std::filesystem::create_directory(dir / "train-folder");
  CHECK(labels_of(TfRecordDataset(dir.path(), "train", {.interleave = 1})) == std::vector<int64_t>{1, 2, 3, 4, 11, 21, 22, 41, 42, 43});
  CHECK(labels_of(TfRecordDataset(dir.path(), "train", {.interleave = 2})) == std::vector<int64_t>{1, 11, 2, 3, 4, 21, 22, 41, 42, 43});
  const TfRecordDataset all(dir.path(), "train");
  CHECK(labels_of(all) == std::vector<int64_t>{1, 11, 21, 41, 2, 22, 42, 3, 43, 4});
  CHECK(all.files() == 5);
  CHECK_CONTAINS(all.where(1), "train-1: record at offset 0");
  CHECK(labels_of(TfRecordDataset(dir.path(), "valid")) == std::vector<int64_t>{7});
}

TEST_CASE("more files than are kept open") {
  const TempFolder dir;
  std::vector<int64_t> expected;
  for (int i = 0; i < 300; ++i) {
    write_shard(dir / text("train-", 1000 + i), {i, i + 1});
    expected.push_back(i);
    expected.push_back(i + 1);
  }
  struct Counting : FileSystem {
    std::atomic<int>*now, *most;  // files are indexed by several threads
    int open(const std::string& path, Open mode) override {
      const int fd = FileSystem::open(path, mode);
      if (fd < 0) return fd;
      const int open_now = ++*now;
      for (int seen = *most; open_now > seen && !most->compare_exchange_weak(seen, open_now);) {
      }
      return fd;
    }
    int close(int fd) override { return --*now, FileSystem::close(fd); }
  };
  std::atomic<int> now{0}, most{0};
  auto fs = std::make_unique<Counting>();
  fs->now = &now;
  fs->most = &most;
  const UseFileSystem use(std::move(fs));
  const TfRecordDataset d(dir.path(), "train", {.interleave = 1});
  CHECK(labels_of(d) == expected);
  CHECK(labels_of(d) == expected);
  CHECK(most <= 130);
}

TEST_CASE("a folder that is missing, empty or holds no such file") {
  const TempFolder dir;
  CHECK_CONTAINS(error_of([&] { TfRecordDataset(dir / "none", "train"); }), "no such folder");
  CHECK_CONTAINS(error_of([&] { TfRecordDataset(dir.path(), "train"); }), "none of its 0 files");
  write_shard(dir / "train-0", {});
  CHECK_CONTAINS(error_of([&] { TfRecordDataset(dir.path(), "valid"); }), "begins with valid");
  CHECK_CONTAINS(error_of([&] { TfRecordDataset(dir.path(), "train"); }), "hold no records");
}

TEST_CASE("broken records are errors, or counted, reported once and skipped up to the number allowed") {
  const TempFolder dir;
  write_shard(dir / "train-0", {1, 2, 3, 4, 5, 6});
  write_shard(dir / "train-1", {11, 12, 13});
  std::string bytes = slurp(dir / "train-0");
  const size_t size = bytes.size() / 6;                    // equal records up to the label, which is one byte
  bytes[2 * size + 100] ^= 1;                              // data of record 3
  spill(dir / "train-0", bytes.substr(0, 5 * size + 20));  // and the last one is cut
  std::vector<std::string> log;
  const auto options = [&](int64_t skip) { return TfRecordOptions{.interleave = 1, .skip_bad_records = skip, .log = [&](const std::string& s) { log.push_back(s); }}; };
  const std::string cut = error_of([&] { TfRecordDataset(dir.path(), "train", options(0)); });
  CHECK_CONTAINS(cut, text(dir / "train-0", ": record at offset ", 5 * size, " is cut off"));

  LoaderOptions lo{.batch = 4, .preprocess = Preprocess::cifar, .image_size = 8, .classes = 100, .threads = 2};
  const auto labels = [](Loader& loader, int64_t e) {
    std::vector<int64_t> v;
    loader.begin(e);
    for (Batch b; loader.next(b);) {
      for (const int64_t l : b.labels.to_vector<int64_t>()) v.push_back(l + 1);
    }
    return v;
  };
  auto one = std::make_shared<TfRecordDataset>(dir.path(), "train", options(1));
  CHECK(log.size() == 1);
  Loader strict(one, lo);
  const std::string flipped = error_of([&] { labels(strict, 0); });
  CHECK_CONTAINS(flipped, text(dir / "train-0", ": record at offset ", 2 * size, ": the checksum of its"));
  CHECK_CONTAINS(flipped, "1 bad record was to be skipped");
  log.clear();
  auto two = std::make_shared<TfRecordDataset>(dir.path(), "train", options(2));
  Loader loader(two, lo);
  for (int64_t e = 0; e < 3; ++e) CHECK(labels(loader, e) == std::vector<int64_t>{1, 2, 4, 5, 11, 12, 13});
  CHECK(two->bad_records() == 2);
  REQUIRE(log.size() == 2);
  CHECK_CONTAINS(log[0], "skipped: ");
  CHECK_CONTAINS(log[1], text("offset ", 2 * size));
  // A later run knows them.
  log.clear();
  auto later = std::make_shared<TfRecordDataset>(dir.path(), "train", options(2));
  later->leave_out(two->bad_places());
  later->leave_out({{"train-9", 0}});
  CHECK(later->bad_records() == 2);
  Loader knowing(later, lo);
  CHECK(labels(knowing, 0).size() == 7);
  CHECK(later->bad_records() == 2);
  CHECK(log.size() == 1);  // the cut one, when the file was opened
}

TEST_CASE("a failing disk is an error with file and offset, even where records may be skipped") {
  const TempFolder dir;
  write_shard(dir / "train-0", {1, 2, 3});
  struct Failing : FileSystem {
    int64_t calls = 0, first = 0;
    int64_t read_at(int fd, void* dst, size_t n, int64_t offset) override { return calls++ >= first ? -EIO : FileSystem::read_at(fd, dst, n, offset); }
  };
  for (int64_t k = 0; k < 3; ++k) {
    auto fs = std::make_unique<Failing>();
    fs->first = k;
    const UseFileSystem use(std::move(fs));
    const std::string message = error_of([&] {
      auto d = std::make_shared<TfRecordDataset>(dir.path(), "train", TfRecordOptions{.skip_bad_records = 10});
      Loader loader(d, {.batch = 4, .preprocess = Preprocess::cifar, .image_size = 8, .classes = 100});
      for (Batch b; loader.next(b);) {
      }
    });
    CHECK_CONTAINS(message, text("cannot read ", dir / "train-0", " at offset "));
    CHECK_CONTAINS(message, "Input/output error");
  }
}

TEST_CASE("the cache changes nothing but the reads") {
  const TempFolder dir;
  write_shard(dir / "train-0", {1, 2, 3, 4, 5});
  struct Counting : FileSystem {
    int64_t* reads;
    int64_t read_at(int fd, void* dst, size_t n, int64_t offset) override { return ++*reads, FileSystem::read_at(fd, dst, n, offset); }
  };
  int64_t reads = 0;
  auto fs = std::make_unique<Counting>();
  fs->reads = &reads;
  const UseFileSystem use(std::move(fs));
  const auto epochs = [&](int64_t cache_bytes) {
    reads = 0;
    auto d = std::make_shared<TfRecordDataset>(dir.path(), "train", TfRecordOptions{.cache_bytes = cache_bytes});
    Loader loader(d, {.batch = 2, .shuffle = true, .augment = true, .preprocess = Preprocess::cifar, .image_size = 8, .classes = 100});
    std::vector<float> v;
    for (int64_t e = 0; e < 4; ++e) {
      loader.begin(e);
      for (Batch b; loader.next(b);) {
        for (const float x : b.images.to_vector<float>()) v.push_back(x);
      }
    }
    return v;
  };
  const std::vector<float> plain = epochs(0);
  const int64_t plain_reads = reads;
  CHECK(epochs(1 << 20) == plain);
  CHECK(plain_reads - reads == 15);
  CHECK(epochs(600) == plain);  // room for two
  CHECK(plain_reads - reads == 6);
}

TEST_CASE("CIFAR-10 from the test data: counts, labels, rate") {
  const std::string folder = data_folder() + "/data/cifar10";
  if (!folder_exists(folder)) {
    MESSAGE("skipped: no CIFAR-10 in ", folder, "; set DETENT_TEST_DATA");
    return;
  }
  auto valid = std::make_shared<TfRecordDataset>(folder, "valid");
  CHECK(valid->size() == 5000);
  CHECK(TfRecordDataset(folder, "train").size() == 50000);
  Loader loader(valid, {.batch = 64, .preprocess = Preprocess::cifar, .classes = 10});
  std::vector<int64_t> count(10);
  double sum = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const Batch& b : loader) {
    for (const int64_t l : b.labels.to_vector<int64_t>()) ++count[static_cast<size_t>(l)];
    sum += static_cast<double>(b.images.data<float>()[0]);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  CHECK(count == std::vector<int64_t>(10, 500));
  CHECK(std::isfinite(sum));
  MESSAGE("decoded ", 5000 / seconds, " images/s");
}
