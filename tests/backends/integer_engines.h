// The integer kernels of each instruction set that this processor has.
#pragma once

#include "detent/backends/cpu/integer.h"
#include "kernel_support.h"

namespace detent::test {

struct Engine {
  const char* name;
  cpu::IntegerEngine kernels;
};

inline const std::vector<Engine>& engines() {
  static const std::vector<Engine> all = [] {
    std::vector<Engine> v{{"scalar", {nullptr, &cpu::kIntegerScalar}}};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) v.push_back({"avx2", {cpu::integer_isa_avx2(), &cpu::kIntegerAvx2}});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      v.push_back({"avx512", {cpu::integer_isa_avx512(), &cpu::kIntegerAvx512}});
      if (__builtin_cpu_supports("avx512vnni")) v.push_back({"avx512_vnni", {cpu::integer_isa_avx512_vnni(), &cpu::kIntegerAvx512}});
    }
#endif
    return v;
  }();
  return all;
}

}  // namespace detent::test
