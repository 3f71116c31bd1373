#include <cstddef>

#include "kernel_support.h"

using namespace detent;

TEST_CASE("no entry of the kernel table is null") {
  constexpr size_t entries = offsetof(Kernels, keeps_bf16) / sizeof(void*);
  void* pointers[entries];
  std::memcpy(pointers, &test::kernels(), sizeof pointers);
  for (size_t i = 0; i < entries; ++i) CHECK_MESSAGE(pointers[i] != nullptr, "entry ", i);
}
