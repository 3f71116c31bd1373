// Entry of libFuzzer; the target is named by DETENT_FUZZ_TARGET. See scripts/fuzz.
#include <cstdio>
#include <cstdlib>

#include "detent/core/error.h"
#include "detent/tests/fuzz/targets.h"

namespace {
const detent::fuzz::Target* chosen = nullptr;
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* name = std::getenv("DETENT_FUZZ_TARGET");
  try {
    chosen = &detent::fuzz::target(name ? name : "");
  } catch (const detent::Error& e) {
    std::fprintf(stderr, "error: DETENT_FUZZ_TARGET: %s\n", e.what());
    std::exit(2);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    chosen->run({data, size});
  } catch (const detent::Error&) {
  }
  return 0;
}
