#include "detent/backends/cpu/isa.h"

#include <cstdlib>
#include <string_view>

#include "detent/core/error.h"

namespace detent::cpu {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* asked = std::getenv("DETENT_ISA");
  if (!asked || !*asked) return best;
  constexpr std::string_view names[] = {"scalar", "avx2", "avx512"};
  for (int i = 0; i < 3; ++i) {
    if (asked != names[i]) continue;
    DETENT_CHECK(i <= static_cast<int>(best), "DETENT_ISA=", asked, ": this processor has only ", names[static_cast<int>(best)], "; unset it");
    return static_cast<Isa>(i);
  }
  fail("DETENT_ISA=", asked, ": not one of scalar, avx2, avx512");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

const char* isa_name() {
  constexpr const char* names[] = {"cpu, scalar", "cpu, AVX2+FMA", "cpu, AVX-512"};
  return names[static_cast<int>(isa())];
}

}  // namespace detent::cpu
