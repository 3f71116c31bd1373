// Marks the formulas of core/math: compiled by the host compiler and by nvcc, always inlined so that no instruction set leaks between translation units. Thread-safe: macros only.
#pragma once

#if defined(__CUDACC__)
#define DETENT_HD __host__ __device__ __forceinline__
#else
#define DETENT_HD __attribute__((always_inline)) inline
#endif
