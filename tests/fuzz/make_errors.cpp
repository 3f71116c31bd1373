// Picks from a fuzzer's corpus the smallest input of every kind of error: make_errors TARGET CORPUS FOLDER. What FOLDER has already stays.
#include <cstdio>
#include <map>

#include "detent/core/error.h"
#include "detent/core/file.h"
#include "detent/tests/fuzz/errors.h"
#include "detent/tests/fuzz/targets.h"

using namespace detent;

namespace {

constexpr size_t kLargest = 8192, kMost = 80;

void pick(const fuzz::Target& target, const std::string& corpus, const std::string& folder) {
  std::map<std::string, std::string> smallest;
  for (const std::string& name : list_folder(corpus)) {
    const std::string bytes = read_file(join_path(corpus, name));
    if (bytes.size() > kLargest) continue;
    try {
      target.run({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
    } catch (const Error& e) {
      for (const std::string& kind : fuzz::error_kinds(e.what())) {
        const auto [it, inserted] = smallest.emplace(kind, bytes);
        if (!inserted && bytes.size() < it->second.size()) it->second = bytes;
      }
    }
  }
  make_folders(folder);
  size_t written = list_folder(folder).size();
  for (const auto& [kind, bytes] : smallest) {
    const std::string path = join_path(folder, kind);
    if (file_exists(path)) continue;
    if (++written > kMost) break;
    write_file_atomically(path, std::string_view(bytes));
  }
  std::printf("%s: %zu kinds\n", target.name, smallest.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: make_errors TARGET CORPUS FOLDER\n");
    return 2;
  }
  try {
    pick(fuzz::target(argv[1]), argv[2], argv[3]);
  } catch (const Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
  return 0;
}
