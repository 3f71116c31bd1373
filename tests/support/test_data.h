// Where tests find files: goldens in the source tree, and larger data (real weights, real images) in the folder DETENT_TEST_DATA,
// by default "shared" beside the source root. Tests whose data is absent say "SKIPPED: ..."; scripts/test counts those lines.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace detent::test {

inline std::string golden(const std::string& name) { return std::string(DETENT_SOURCE_ROOT "/tests/golden/") + name; }

/// The path of a data file, or "" when there is none.
inline std::string data_file(const std::string& name) {
  const char* folder = std::getenv("DETENT_TEST_DATA");
  const std::filesystem::path path = std::filesystem::path(folder && *folder ? folder : DETENT_SOURCE_ROOT "/../shared") / name;
  std::error_code ignored;
  return std::filesystem::exists(path, ignored) ? path.string() : std::string();
}

/// A folder that vanishes with its scope.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "detent-test-XXXXXX").string();
    if (::mkdtemp(pattern.data())) path_ = pattern;
    REQUIRE_FALSE(path_.empty());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace detent::test

/// Declares `var` as the path of a data file, or leaves the test case as skipped.
#define DETENT_DATA_FILE(var, name)                                                               \
  const std::string var = ::detent::test::data_file(name);                                        \
  if (var.empty()) {                                                                              \
    MESSAGE("SKIPPED: no " name " in DETENT_TEST_DATA (default: shared beside the source root)"); \
    return;                                                                                       \
  }                                                                                               \
  static_cast<void>(0)
