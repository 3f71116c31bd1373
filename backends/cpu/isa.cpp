#include "detent/backends/cpu/isa.h"

#include <algorithm>
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

bool vnni_beside_avx512() {
#if defined(__x86_64__)
  return best_isa() == Isa::avx512 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool bf16_beside_vnni() {
#if defined(__x86_64__)
  return vnni_beside_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool multiplies_bf16_fast() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// VNNI only multiplies integers: the other kernels are AVX-512's with or without it.
struct Choice {
  Isa isa;
  bool vnni, bf16;
};

Choice choose_isa() {
  const Isa best = best_isa();
  const bool vnni = vnni_beside_avx512(), bf16 = bf16_beside_vnni(), gains = bf16 && multiplies_bf16_fast();
  const char* asked = std::getenv("DETENT_ISA");
  if (!asked || !*asked) return {best, vnni, gains};
  constexpr std::string_view names[] = {"scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};
  const int most = static_cast<int>(best) + (vnni ? 1 : 0) + (bf16 ? 1 : 0);
  for (int i = 0; i < 5; ++i) {
    if (asked != names[i]) continue;
    DETENT_CHECK(i <= most, "DETENT_ISA=", asked, ": this processor has only ", names[most], "; unset it");
    return {static_cast<Isa>(std::min(i, static_cast<int>(Isa::avx512))), i >= 3, i == 4 || (i == 3 && gains)};
  }
  fail("DETENT_ISA=", asked, ": not one of scalar, avx2, avx512, avx512_vnni, avx512_bf16");
}

const Choice& choice() {
  static const Choice chosen = choose_isa();
  return chosen;
}

}  // namespace

Isa isa() { return choice().isa; }
bool has_vnni() { return choice().vnni; }

bool has_bf16() { return has_vnni() && bf16_beside_vnni(); }
bool prefers_bf16() { return choice().bf16; }

const char* isa_name() {
  constexpr const char* names[] = {"cpu, scalar", "cpu, AVX2+FMA", "cpu, AVX-512", "cpu, AVX-512 VNNI"};
  return names[static_cast<int>(isa()) + (has_vnni() ? 1 : 0)];
}

}  // namespace detent::cpu
