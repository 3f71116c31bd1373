// Helpers of the io tests: a folder that goes away, the test data folder, file systems that fail on purpose.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include <doctest/doctest.h>

#include "detent/core/file.h"

namespace detent::test {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "detent-test-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Not through the library: the reference of what is on disk.
inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void spill(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size())); }

inline std::string data_folder() {
  const char* given = std::getenv("DETENT_TEST_DATA");
  return given && *given ? given : "../shared";
}

template <class Fn>
std::string error_of(Fn&& fn) {
  try {
    fn();
  } catch (const std::exception& e) {
    return e.what();
  }
  return {};
}

// Puts a file system in place for a scope.
class UseFileSystem {
 public:
  explicit UseFileSystem(std::unique_ptr<FileSystem> fs) : previous_(exchange_file_system(std::move(fs))) {}
  ~UseFileSystem() { exchange_file_system(std::move(previous_)); }

 private:
  std::unique_ptr<FileSystem> previous_;
};

}  // namespace detent::test

#define CHECK_CONTAINS(text, part) CHECK_MESSAGE((text).find(part) != std::string::npos, "'", (text), "' does not contain '", (part), "'")
