// Which instruction set the CPU kernels use: the best the processor has, or what DETENT_ISA=scalar|avx2|avx512|avx512_vnni|avx512_bf16 asks for (never more than it has).
#pragma once

namespace detent::cpu {

enum class Isa : unsigned char { scalar, avx2, avx512 };

/// Decided once, at first use. Throws Error when DETENT_ISA names no instruction set or one that the processor lacks.
Isa isa();
/// Besides AVX-512: VNNI, which integer convolutions use. DETENT_ISA=avx512 leaves it out.
bool has_vnni();
/// ... and BF16, which convolutions can use when they are asked for that precision. DETENT_ISA=avx512 leaves it out too.
bool has_bf16();
/// Whether they gain by it: AMD's processors multiply bf16 twice as fast as floats, Intel's vector units at half their speed (Sapphire Rapids: a quarter of the
/// instructions of twice the products). Or DETENT_ISA=avx512_bf16 asks for it.
bool prefers_bf16();
const char* isa_name();

}  // namespace detent::cpu
