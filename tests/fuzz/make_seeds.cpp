// Writes the seed corpora: make_seeds FOLDER, normally tests/fuzz/corpus. They are kept in the repository so that a format's change shows in a test.
#include <cstdio>

#include "detent/core/error.h"
#include "detent/core/file.h"
#include "detent/tests/fuzz/targets.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_seeds FOLDER\n");
    return 2;
  }
  try {
    for (const detent::fuzz::Target& t : detent::fuzz::targets()) {
      const std::string folder = detent::join_path(argv[1], t.name);
      const auto seeds = detent::fuzz::seeds(t.name);
      detent::make_folders(folder);
      for (const auto& [name, bytes] : seeds) detent::write_file_atomically(detent::join_path(folder, name), std::string_view(bytes));
    }
  } catch (const detent::Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
  return 0;
}
