// Which instruction set the CPU kernels use: the best the processor has, or what DETENT_ISA=scalar|avx2|avx512 asks for (never more than it has).
#pragma once

namespace detent::cpu {

enum class Isa : unsigned char { scalar, avx2, avx512 };

/// Decided once, at first use. Throws Error when DETENT_ISA names no instruction set or one that the processor lacks.
Isa isa();
const char* isa_name();

}  // namespace detent::cpu
