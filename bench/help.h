// --help of the benchmarks: each has its usage as a text, which opens its source too.
#pragma once

#include <cstdio>
#include <cstring>

namespace detent::bench {

inline bool prints_help(int argc, char** argv, const char* usage) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--help") != 0) continue;
    std::fputs(usage, stdout);
    return true;
  }
  return false;
}

}  // namespace detent::bench
