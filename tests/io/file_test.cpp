#include "detent/tests/io/support.h"

#include <cerrno>

#include "detent/core/error.h"

using namespace detent;
using namespace detent::test;

namespace {

// Fails the k-th call of a kind, or makes all reads and writes short.
struct FaultyFileSystem : FileSystem {
  int writes = 0, fail_write = -1, write_error = ENOSPC;
  int syncs = 0, fail_sync = -1;
  int renames = 0, fail_rename = -1;
  int reads = 0, fail_read = -1;
  int closes = 0, fail_close = -1;
  size_t at_most = ~size_t{0};
  bool interrupt = false;

  int64_t write(int fd, const void* src, size_t bytes) override {
    if (writes++ == fail_write) return -write_error;
    if (interrupt && writes % 2) return -EINTR;
    return FileSystem::write(fd, src, std::min(bytes, at_most));
  }
  int64_t read_at(int fd, void* dst, size_t bytes, int64_t offset) override {
    if (reads++ == fail_read) return -EIO;
    if (interrupt && reads % 2) return -EINTR;
    return FileSystem::read_at(fd, dst, std::min(bytes, at_most), offset);
  }
  int sync(int fd) override { return syncs++ == fail_sync ? -EIO : FileSystem::sync(fd); }
  int rename(const std::string& a, const std::string& b) override { return renames++ == fail_rename ? -EACCES : FileSystem::rename(a, b); }
  int close(int fd) override {
    const int r = FileSystem::close(fd);
    return closes++ == fail_close ? -EIO : r;
  }
};

std::string pattern(size_t n) {
  std::string s(n, '\0');
  for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>(i * 7 + i / 251);
  return s;
}

}  // namespace

TEST_CASE("a file written atomically holds the bytes and leaves no other name") {
  const TempFolder dir;
  const std::string bytes = pattern(200001);
  write_file_atomically(dir / "a", bytes);
  CHECK(slurp(dir / "a") == bytes);
  CHECK(read_file(dir / "a") == bytes);
  write_file_atomically(dir / "a", std::string_view("second"));
  CHECK(slurp(dir / "a") == "second");
  CHECK(list_folder(dir.path()) == std::vector<std::string>{"a"});
}

TEST_CASE("an atomic file that is not committed leaves the old one") {
  const TempFolder dir;
  spill(dir / "a", "old");
  {
    AtomicFile f(dir / "a");
    f.write(pattern(100000));
    bool seen = false;
    for (const std::string& n : list_folder(dir.path())) seen |= is_temporary_name(n);
    CHECK(seen);
  }
  CHECK(slurp(dir / "a") == "old");
  CHECK(list_folder(dir.path()).size() == 1);
  CHECK_FALSE(is_temporary_name("model.step-100.ckpt"));
}

TEST_CASE("every failing call on the way leaves the old file and no temporary one") {
  const TempFolder dir;
  spill(dir / "a", "old");
  const std::string bytes = pattern(300000);
  const auto attempt = [&](auto set, std::string_view reason) {
    auto fs = std::make_unique<FaultyFileSystem>();
    set(*fs);
    const UseFileSystem use(std::move(fs));
    const std::string message = error_of([&] {
      AtomicFile f(dir / "a");
      for (size_t i = 0; i < bytes.size(); i += 1000) f.write(std::string_view(bytes).substr(i, 1000));
      f.commit();
    });
    CHECK_CONTAINS(message, reason);
    CHECK_CONTAINS(message, dir / "a");
    CHECK(slurp(dir / "a") == "old");
    CHECK(list_folder(dir.path()).size() == 1);
  };
  for (int k = 0; k < 5; ++k) attempt([&](FaultyFileSystem& f) { f.fail_write = k; }, "No space left");
  attempt([](FaultyFileSystem& f) { f.fail_write = 2, f.write_error = EIO; }, "at offset 130000: Input/output error");
  attempt([](FaultyFileSystem& f) { f.fail_sync = 0; }, "Input/output error");
  attempt([](FaultyFileSystem& f) { f.fail_rename = 0; }, "Permission denied");
  attempt([](FaultyFileSystem& f) { f.fail_close = 0; }, "Input/output error");
}

TEST_CASE("short and interrupted calls are finished") {
  const TempFolder dir;
  const std::string bytes = pattern(10000);
  auto fs = std::make_unique<FaultyFileSystem>();
  fs->at_most = 7;
  fs->interrupt = true;
  const UseFileSystem use(std::move(fs));
  write_file_atomically(dir / "a", bytes);
  CHECK(slurp(dir / "a") == bytes);
  CHECK(read_file(dir / "a") == bytes);
  SequentialFile in(dir / "a", 100);
  std::string got(9000, '\0');
  in.read(got.data(), got.size());
  CHECK(got == bytes.substr(0, 9000));
  CHECK(in.offset() == 9000);
}

TEST_CASE("reading past the end names file and offsets") {
  const TempFolder dir;
  spill(dir / "a", pattern(100));
  const RandomAccessFile f(dir / "a");
  char buffer[64];
  CHECK(f.size() == 100);
  CHECK(f.read_some(90, buffer, 64) == 10);
  const std::string message = error_of([&] { f.read(90, buffer, 64); });
  CHECK_CONTAINS(message, dir / "a");
  CHECK_CONTAINS(message, "ends at offset 100");
  CHECK_CONTAINS(message, "offset 90");
  CHECK_CONTAINS(error_of([&] { RandomAccessFile missing(dir / "b"); }), "No such file");
  CHECK_CONTAINS(error_of([&] { RandomAccessFile folder(dir.path()); }), "Is a directory");
  CHECK_CONTAINS(error_of([&] { read_file(dir / "a", 99); }), "at most 99");
}

TEST_CASE("a read error is not taken for the end of the file") {
  const TempFolder dir;
  spill(dir / "a", pattern(100));
  for (int k = 0; k < 3; ++k) {
    auto fs = std::make_unique<FaultyFileSystem>();
    fs->fail_read = k;
    fs->at_most = 40;
    const UseFileSystem use(std::move(fs));
    CHECK_CONTAINS(error_of([&] { read_file(dir / "a"); }), text("at offset ", 40 * k, ": Input/output error"));
  }
}

TEST_CASE("an appended file grows, can be cut, and keeps its offset") {
  const TempFolder dir;
  spill(dir / "log", "one\n");
  OutputFile f(dir / "log", FileSystem::Open::append);
  CHECK(f.offset() == 4);
  f.write("two\n");
  f.flush();
  CHECK(slurp(dir / "log") == "one\ntwo\n");
  f.truncate(4);
  f.write("three\n");
  f.close();
  CHECK(slurp(dir / "log") == "one\nthree\n");
  SequentialFile in(dir / "log");
  std::string line;
  CHECK(in.read_line(line));
  CHECK(line == "one");
  CHECK(in.read_line(line));
  CHECK(line == "three");
  CHECK_FALSE(in.read_line(line));
}

TEST_CASE("folders are made with those above them") {
  const TempFolder dir;
  make_folders(dir / "x/y/z");
  make_folders(dir / "x/y/z");
  CHECK(folder_exists(dir / "x/y/z"));
  spill(dir / "f", "");
  CHECK_CONTAINS(error_of([&] { make_folders(dir / "f/g"); }), dir / "f");
  CHECK_CONTAINS(error_of([&] { list_folder(dir / "none"); }), "No such file");
  CHECK(join_path("a/", "b") == "a/b");
  CHECK(join_path("a", "b") == "a/b");
}
