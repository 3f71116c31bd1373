// Kernels over one contiguous row that pay for an instruction set of their own: quantization and observation. PODs only, no library templates:
// rows_avx2.cpp and rows_avx512.cpp are built with their own flags. All sets give the same bits as rows_scalar.cpp; a test holds them to it.
#pragma once

#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent::cpu {

/// A Grid in floats.
struct RowGrid {
  float scale, zero, lo, hi;
};

struct RowExtent {
  float min, max;
  int64_t nan;
};

struct RowBins {
  float lo, width;
  int bins;
  bool centred, clamp_ends;
};

/// Range sums: kSumLanes float lanes within a block of kSumBlock elements, lane = index % kSumLanes; doubles across lanes and blocks.
constexpr int64_t kSumBlock = 4096;
constexpr int64_t kSumLanes = 16;

struct RowKernels {
  /// stream: stores past the cache where y allows it; the values are the same.
  void (*fake_quant)(const float* x, const RowGrid& g, float* y, int64_t n, bool stream);
  /// codes: the low byte of each code, u8 or s8; y may be null.
  void (*fake_quant_codes)(const float* x, const RowGrid& g, float* y, uint8_t* codes, int64_t n);
  /// dx may be null. Adds to sums[0] (scale) and sums[1] (clip).
  void (*fake_quant_backward)(const float* x, const float* dy, const RowGrid& g, float* dx, int64_t n, double* sums, bool stream);
  void (*dequantize)(const uint8_t* codes, const RowGrid& g, float* y, int64_t n);
  /// Joins the row into *e.
  void (*extent)(const float* x, int64_t n, RowExtent* e);
  /// Bins of the elements in order, `bins` for one that is dropped; returns how many it wrote. Zeros may be left out (activations are half zeros, and the
  /// counter of one bin is slow to count in a row): n less what is returned. `out` has room for n + kSumLanes.
  int64_t (*bins)(const float* x, int64_t n, const RowBins& b, int32_t* out);
};

/// The bin of one element, as RowKernels::bins has it.
int32_t bin_of(float x, const RowBins& b);

extern const RowKernels kRowsScalar;
extern const RowKernels kRowsAvx2;
extern const RowKernels kRowsAvx512;

/// Those of the instruction set in use.
const RowKernels& row_kernels();

DETENT_HD double fold_lanes(const float* lanes) {
  double sum = 0.0;
  for (int64_t i = 0; i < kSumLanes; ++i) sum += static_cast<double>(lanes[i]);
  return sum;
}

}  // namespace detent::cpu
