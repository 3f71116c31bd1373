// Convolutions whose factors are bf16: two neighbours of a sum share a word of 32 bits, which the float drivers move about as if it were a float, and one instruction
// multiplies both. Sums are f32. Integers of values on byte grids are exact in bf16: of dy * w and dy * x only dy is rounded then, scales are applied beside it.
#pragma once

#include <cstdint>

#include "detent/backends/cpu/conv_isa.h"
#include "detent/core/backend.h"

namespace detent::cpu {

struct Bf16Isa {
  const ConvIsa* conv;  ///< over words
  /// words[row][i] = (x[row][2i], x[row][2i + 1]), each times the scale of its column (or null); c is even.
  void (*join_columns)(const float* x, const float* scale, int64_t rows, int64_t c, float* words);
  /// The same of x in bf16.
  void (*join_columns16)(const uint16_t* x, const float* scale, int64_t rows, int64_t c, float* words);
  /// words[i] = (a[i], b[i]).
  void (*join_rows)(const float* a, const float* b, int64_t n, float* words);
  /// words[j][i] = (x[2j][i], x[2j + 1][i]), i < n, rows of x `stride` apart.
  void (*join_pairs)(const float* x, int64_t stride, int64_t pairs, int64_t n, float* words);
  /// Both of values in bf16.
  void (*join_rows16)(const uint16_t* a, const uint16_t* b, int64_t n, float* words);
  void (*join_pairs16)(const uint16_t* x, int64_t stride, int64_t pairs, int64_t n, float* words);
  /// join_rows of the integers rint(a[i] / scale_a), rint(b[i] / scale_b).
  void (*join_weights)(const float* a, const float* b, float scale_a, float scale_b, int64_t n, float* words);
  /// The same of codes, less the zero point.
  void (*join_codes)(const uint8_t* a, const uint8_t* b, int32_t zero_point, int64_t n, float* words);
  void (*join_code_pairs)(const uint8_t* x, int64_t stride, int32_t zero_point, int64_t pairs, int64_t n, float* words);
};

/// Null when not built for this architecture.
const Bf16Isa* bf16_isa_avx512();
/// The processor's, or null.
const Bf16Isa* bf16_isa();

/// False when the convolution cannot be cut into pairs, or has few products in a row: then nothing was written. Of floats, or values in bf16, by floats.
bool bf16_forward(const Bf16Isa& isa, const Conv2dArgs& a);
bool bf16_backward_data(const Bf16Isa& isa, const Conv2dBackwardDataArgs& a);
bool bf16_backward_filter(const Bf16Isa& isa, const Conv2dBackwardFilterArgs& a);

/// As fma_burst of fma_peak.h, of bf16 products; 0 without them.
double bf16_burst(int64_t rounds);

/// f32 or bf16; tf32 is f32. In bf16 convolutions multiply floats rounded to bf16 where prefers_bf16() (isa.h), elsewhere as they are.
void set_precision(Precision p);
Precision precision();
/// That of bf16_isa() when convolutions are to use it now, else null.
const Bf16Isa* bf16_products();

}  // namespace detent::cpu
