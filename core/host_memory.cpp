#include "detent/core/host_memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

namespace detent {
namespace {

struct CloseFile {
  void operator()(std::FILE* f) const { std::fclose(f); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// The number behind `key` at the beginning of a line ("" : the first number of the file), or -1.
int64_t number_in(const std::string& path, const char* key) {
  const File f(std::fopen(path.c_str(), "r"));
  char line[256];
  while (f && std::fgets(line, sizeof line, f.get())) {
    long long value = 0;
    if (std::strncmp(line, key, std::strlen(key)) == 0 && std::sscanf(line + std::strlen(key), "%lld", &value) == 1) return value;
  }
  return -1;
}

int64_t left_in_machine() {
  const int64_t available = number_in("/proc/meminfo", "MemAvailable:"), swap = number_in("/proc/meminfo", "SwapFree:");
  return available < 0 ? -1 : 1024 * (available + std::max<int64_t>(0, swap));
}

// Pages of files count as used there, and those nobody uses are given up first.
int64_t left_in_group(const std::string& folder) {
  const int64_t limit = number_in(folder + "/memory.max", ""), used = number_in(folder + "/memory.current", "");
  if (limit < 0 || used < 0) return -1;
  return std::max<int64_t>(0, limit - used + std::max<int64_t>(0, number_in(folder + "/memory.stat", "inactive_file ")));
}

// Where the process's group and those around it are: "0::/a/b" gives /a/b, /a and the root.
std::string group_of_process() {
  const File f(std::fopen("/proc/self/cgroup", "r"));
  char line[1024];
  while (f && std::fgets(line, sizeof line, f.get())) {
    if (std::strncmp(line, "0::", 3) == 0) return std::string(line + 3, std::strcspn(line + 3, "\n"));
  }
  return "/";
}

}  // namespace

int64_t available_host_memory() {
  int64_t least = std::numeric_limits<int64_t>::max();
  const auto count = [&](int64_t left) {
    if (left >= 0) least = std::min(least, left);
  };
  count(left_in_machine());
  std::string group = group_of_process();
  for (;;) {
    count(left_in_group("/sys/fs/cgroup" + group));
    const size_t parent = group.find_last_of('/');
    if (parent == std::string::npos) break;
    group.resize(parent);
  }
  return least == std::numeric_limits<int64_t>::max() ? -1 : least;
}

}  // namespace detent
