#include "kernel_support.h"

using namespace detent;

TEST_CASE("no entry of the kernel table is null") {
  constexpr size_t entries = sizeof(Kernels) / sizeof(void*);
  static_assert(sizeof(Kernels) % sizeof(void*) == 0);
  void* pointers[entries];
  std::memcpy(pointers, &test::kernels(), sizeof(Kernels));
  for (size_t i = 0; i < entries; ++i) CHECK_MESSAGE(pointers[i] != nullptr, "entry ", i);
}
