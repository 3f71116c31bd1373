// Pairs of neighbouring pixels as words of bf16 (conv_bf16.h), where a convolution steps pixel by pixel: an input row is joined twice, from its first pixel and from the
// one before, and each tap of a pair of outputs finds its word in one of the two. A border's pixel is zero.
#pragma once

#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/conv_driver.h"

namespace detent::cpu {

/// Whether every pair of outputs lies in one row.
bool makes_pairs(const Gather& g);

/// Words of input rows from `first_row` on, of channels [c0, c0 + channels).
struct PairRows {
  float* words = nullptr;
  int64_t first_row = 0, c0 = 0, channels = 0;
};
/// Words of one input row.
int64_t pair_pitch(const Gather& g, int64_t channels);
void stage_pairs(const Bf16Isa& isa, const Gather& g, const ConvInput& input, RowRange range, const PairRows& to, const float* zero, const uint8_t* zero_codes);
/// Table entries of output positions [p0, p1), both even: rows[t * row_stride + (p - p0) / 2]; kTilePad more are set to `zero`.
void fill_pair_rows(const Gather& g, const PairRows& from, int64_t p0, int64_t p1, const float* zero, const float** rows, int64_t row_stride);

}  // namespace detent::cpu
