// Every reason for which files, records, examples and images are refused, and what readers say when they are asked for what is not there.
#include <sys/mman.h>

#include <cerrno>
#include <functional>

#include "detent/core/error.h"
#include "detent/io/data/dataset.h"
#include "detent/io/data/example.h"
#include "detent/io/data/jpeg.h"
#include "detent/io/data/loader.h"
#include "detent/io/data/preprocess.h"
#include "detent/io/data/resize.h"
#include "detent/io/data/synthetic.h"
#include "detent/io/data/tfrecord.h"
#include "detent/tests/io/support.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

struct Row {
  const char* reason;
  std::function<void()> act;
};

void check_refused(const std::vector<Row>& rows) {
  for (const Row& r : rows) CHECK_CONTAINS(error_of(r.act), std::string(r.reason));
}

// Every kind of call fails when it is asked to.
struct Failing : FileSystem {
  std::string call;
  explicit Failing(std::string which) : call(std::move(which)) {}
  int open(const std::string& p, Open m) override { return call == "open" ? -EACCES : FileSystem::open(p, m); }
  int close(int fd) override {
    const int r = FileSystem::close(fd);
    return call == "close" ? -EIO : r;
  }
  int64_t size(int fd) override { return call == "size" ? -EIO : FileSystem::size(fd); }
  int64_t read_at(int fd, void* d, size_t n, int64_t o) override { return call == "read" ? -EIO : call == "end" ? 0 : FileSystem::read_at(fd, d, n, o); }
  int64_t write(int fd, const void* s, size_t n) override { return call == "write" ? -ENOSPC : call == "write nothing" ? 0 : FileSystem::write(fd, s, n); }
  int truncate(int fd, int64_t n) override { return call == "truncate" ? -EIO : FileSystem::truncate(fd, n); }
  int sync(int fd) override { return call == "sync" ? -EIO : FileSystem::sync(fd); }
  int rename(const std::string& a, const std::string& b) override { return call == "rename" ? -EACCES : FileSystem::rename(a, b); }
  int remove(const std::string& p) override { return call == "remove" ? -EACCES : FileSystem::remove(p); }
  int make_folder(const std::string& p) override { return call == "make_folder" ? -EACCES : FileSystem::make_folder(p); }
  int list(const std::string& f, std::vector<std::string>& n) override { return call == "list" ? -EACCES : FileSystem::list(f, n); }
  int exists(const std::string& p) override { return call == "exists" ? -EACCES : FileSystem::exists(p); }
};

Row when(const char* call, const char* reason, std::function<void()> act) {
  return {reason, [call, act = std::move(act)] {
            const UseFileSystem use(std::make_unique<Failing>(call));
            act();
          }};
}

std::string tfrecord(const std::string& data) {
  std::string s;
  append_tfrecord(s, data);
  return s;
}

std::string jpeg_file(int64_t size) { return encode_jpeg(synthetic_image(1, 2, 3, size, 0.5f), 80); }

}  // namespace

TEST_CASE("files: every refused call is told with its path and the system's reason") {
  const TempFolder dir;
  const std::string f = dir / "f", log = dir / "log", lines = dir / "lines";
  spill(f, "some bytes");
  spill(lines, std::string(100, 'a') + "\n");
  const auto write = [&] { write_file_atomically(dir / "new", std::string_view("bytes")); };
  const auto append = [&](auto&& act) {
    OutputFile out(log, FileSystem::Open::append);
    out.write("x");
    act(out);
  };
  check_refused({
      when("open", "cannot open ", [&] { read_file(f); }),
      when("open", "cannot create ", write),
      when("size", "cannot read the size of ", [&] { read_file(f); }),
      when("size", "cannot read the size of ", [&] { OutputFile(f, FileSystem::Open::append); }),
      when("read", "/f at offset 0: ", [&] { read_file(f); }),
      when("end", "/f: the file ends at offset 0, 10 bytes were expected at offset 0; is it cut off?", [&] { read_file(f); }),
      when("write", "cannot write ", write),
      when("write nothing", "nothing was written", write),
      when("sync", "to the disk: ", write),
      when("rename", "cannot rename ", write),
      when("close", "cannot close ", write),
      when("truncate", "cannot cut ", [&] { append([](OutputFile& o) { o.truncate(2); }); }),
      when("remove", "cannot remove ", [&] { remove_file(f); }),
      when("list", "cannot list folder ", [&] { list_folder(dir.path()); }),
      when("exists", "cannot look up ", [&] { file_exists(f); }),
      when("make_folder", "cannot make folder ", [&] { make_folders(dir / "a/b"); }),
      {"/f: 10 bytes, at most 9 are read at once", [&] { read_file(f, 9); }},
      {"opened for reading", [&] { OutputFile(f, FileSystem::Open::read); }},
      {"the file is closed", [&] { append([](OutputFile& o) { o.close(), o.write("y"); }); }},
      {"a folder has this name", [&] { AtomicFile(dir.path()); }},
      {"committed before",
       [&] {
         AtomicFile a(dir / "twice");
         a.commit();
         a.commit();
       }},
      {"the line at offset 0 is longer than 10 bytes",
       [&] {
         std::string line;
         SequentialFile(lines).read_line(line, 10);
       }},
      {"12 bytes were expected at offset 0",
       [&] {
         char to[12];
         SequentialFile(f).read(to, 12);
       }},
  });
}

TEST_CASE("tfrecord: records that are not there, and files that change while they are read") {
  const TempFolder dir;
  const std::string path = dir / "r", one = tfrecord("hello");
  const auto length = static_cast<int64_t>(one.size());
  spill(path, one + one);
  const RandomAccessFile file(path);
  std::vector<uint8_t> bytes;
  std::span<const uint8_t> record;
  check_refused({
      {"/r: no record at offset 99, the file has 42 bytes", [&] { read_tfrecord(file, 99, bytes); }},
      {"record at offset 30 is cut off: 12 bytes are left", [&] { read_tfrecord(file, 30, bytes); }},
      {"record at offset 0 to 99: the file has changed since it was opened", [&] { read_tfrecord(file, 0, 99, bytes, record); }},
      {"its length has changed from 26 to 5", [&] { read_tfrecord(file, 0, 2 * length, bytes, record); }},
  });
  std::string flipped = one;
  flipped[13] = static_cast<char>(flipped[13] ^ 1);
  spill(path, flipped);
  CHECK_CONTAINS(error_of([&] { read_tfrecord(RandomAccessFile(path), 0, length, bytes, record); }), "the checksum of its 5 bytes is wrong");
  // Shorter than it was when it was opened.
  const UseFileSystem use(std::make_unique<Failing>("end"));
  const TfRecordIndex index = index_tfrecord(RandomAccessFile(path));
  CHECK(index.size() == 0);
  CHECK_CONTAINS(index.broken_frame.value_or(""), "the file has become shorter");
}

TEST_CASE("tf.Example: more than 2 GiB are refused before a byte is read") {
  const size_t size = size_t{1} << 31;
  void* nothing = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(nothing != MAP_FAILED);
  const std::string e = error_of([&] { parse_example({static_cast<const uint8_t*>(nothing), size}, "f: record"); });
  ::munmap(nothing, size);
  CHECK_CONTAINS(e, "f: record: 2147483648 bytes are too many for one example");
}

TEST_CASE("images: what cannot be decoded, encoded, cropped or resized") {
  Image image;
  const auto decode = [&](const std::string& s) { decode_jpeg({reinterpret_cast<const uint8_t*>(s.data()), s.size()}, "f: record", image); };
  const std::string good = jpeg_file(32);
  const Image square{2, 2, std::vector<uint8_t>(12)}, flat{0, 2, {}};
  std::vector<uint8_t> scratch, out(64);
  std::vector<float> floats(3 * 32 * 32);
  PreprocessScratch memory;
  check_refused({
      {"f: record: the image of 4 bytes is not a JPEG file", [&] { decode("nope"); }},
      {"f: record: the JPEG image cannot be read: ", [&] { decode(good.substr(0, 30)); }},
      {"f: record: the JPEG image cannot be decoded: ", [&] { decode(good.substr(0, good.size() - 20)); }},
      {"an image of 0x4 with 0 bytes cannot be encoded", [] { encode_jpeg({0, 4, {}}, 80); }},
      {"an image of 2x2 with 3 bytes cannot be encoded", [] { encode_jpeg({2, 2, std::vector<uint8_t>(3)}, 80); }},
#if DETENT_TEST_STB
      {"an image of 0x4 with 0 bytes cannot be encoded", [] { jpeg::encode_with_stb({0, 4, {}}, 80); }},
#endif
      {"preprocess: imagenet is not one of keras, torchvision, cifar", [] { parse_preprocess("imagenet"); }},
      {"image size: 9000 is not in 1..8192", [] { Preprocessor(Preprocess::keras, 9000); }},
      {"preprocess: an image of 2x2 with 3 bytes", [&] { Preprocessor(Preprocess::cifar, 32).run({2, 2, std::vector<uint8_t>(3)}, floats.data(), nullptr, memory); }},
      {"crop: 3x1 at 0,0 is not inside 2x2", [&] { static_cast<void>(ImageView(square).crop(0, 0, 3, 1)); }},
      {"the image is 0x2", [&] { resize_pil_bilinear(flat, 1, 1, {0, 0, 1, 1}, out.data(), scratch); }},
      {"a result of 0x1 was asked for", [&] { resize_pil_bilinear(square, 0, 1, {0, 0, 1, 1}, out.data(), scratch); }},
      {"the window at 0,1 of 1x1 is not inside 1x1", [&] { resize_tf1_bilinear(square, 1, 1, {0, 1, 1, 1}, floats.data()); }},
  });
}

TEST_CASE("data sets and loaders: options and places that make no sense") {
  const TempFolder dir;
  const auto synthetic = [&](SyntheticOptions o) { write_synthetic(dir / "none", o); };
  write_synthetic(dir / "data", {.train_images = 8, .valid_images = 4, .train_files = 1, .valid_files = 1, .image_size = 16, .seed = 3});
  const auto set = std::make_shared<TfRecordDataset>(dir / "data", "train");
  LoaderOptions options{.batch = 4, .preprocess = Preprocess::cifar, .image_size = 16, .classes = 10, .threads = 0}, no_prefetch = options;
  no_prefetch.prefetch = 0;
  // A data set of one's own that skips nothing.
  struct Broken : Dataset {
    int64_t size() const override { return 4; }
    void read(int64_t, Sample&) const override { throw BadRecord("strange: record 0 is broken"); }
    std::string where(int64_t) const override { return "strange"; }
  };
  Batch batch;
  Sample sample;
  check_refused({
      {"interleave -1, skip_bad_records 0 and cache_bytes 0 must not be negative", [&] { TfRecordDataset(dir / "data", "train", {.interleave = -1}); }},
      {"data set: record 8 of 8", [&] { set->read(8, sample); }},
      {"loader: prefetch 0 is not in 1..1024", [&] { Loader(set, no_prefetch); }},
      {"loader: batch 9 of epoch 0 was asked for, an epoch has 2 batches", [&] { Loader(set, options).seek(0, 9); }},
      {"loader: position 99 of", [&] { static_cast<void>(Loader(set, options).record_at(0, 99)); }},
      {"strange: record 0 is broken", [&] { io::Loader(std::make_shared<Broken>(), options).next(batch); }},
      {"synthetic image: size 4 is not in 8..4096", [] { synthetic_image(1, 0, 0, 4, 0.5f); }},
      {"synthetic image: difficulty 2 is not in 0..1", [] { synthetic_image(1, 0, 0, 32, 2.0f); }},
      {"0 training and 4 validation images", [&] { synthetic({.train_images = 0, .valid_images = 4}); }},
      {"JPEG quality 101 is not in 1..100", [&] { synthetic({.train_images = 8, .valid_images = 4, .train_files = 1, .valid_files = 1, .quality = 101}); }},
  });
}
