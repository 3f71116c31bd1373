// The processor's fused multiply-add peak, which benchmarks measure speed against.
#pragma once

#include <cstdint>

#include "detent/backends/cpu/isa.h"

namespace detent::cpu {

/// Runs `rounds` rounds of independent multiply-adds in registers on the calling thread; returns the floating-point operations done.
/// The instruction set must be the processor's.
double fma_burst(Isa isa, int64_t rounds);

}  // namespace detent::cpu
