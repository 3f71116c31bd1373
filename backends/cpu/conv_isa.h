// What the convolution kernels of one instruction set offer to the drivers: PODs and a table of function pointers, nothing inline.
// A panel is `nv` vectors of output channels; a tile is pixels(nv) pixels by one panel, kept in registers over the whole reduction.
#pragma once

#include <cstdint>

#include "detent/core/math/quant_math.h"

namespace detent::cpu {

/// Epilogue of core/backend.h, prepared: grid bounds as floats. Pointers are to channel 0 of pixel 0.
struct TileEpilogue {
  const float* multiply = nullptr;  // per channel
  const float* bias = nullptr;
  const float* addend = nullptr;
  float clamp_min = 0.0f, clamp_max = 0.0f;
  bool clamp = false;
  bool quantize = false;
  float scale = 1.0f, zero_point = 0.0f, lo = 0.0f, hi = 0.0f;
  float* y = nullptr;
  uint16_t* y16 = nullptr;  // instead of y, without quantization
  uint8_t* codes = nullptr;
  int8_t* residual = nullptr;
  bool mask_on_value = false;
  int64_t channels = 0;  // of the whole output: distance between pixels
  bool stream = false;   // y or y16 is 64-byte aligned, whole vectors, and too large to stay in cache
};

/// One panel times a run of pixels: sum over taps t and i < depth of rows[t][p][x_offset + i] * w[t][i][nv * vector].
struct TileArgs {
  const float* const* rows;  // [taps][row_stride]; the last tile may read (not use) up to kTilePad entries past `pixels`
  int64_t row_stride, taps, x_offset, depth;
  const float* w;
  int64_t pixels;
  float* partial;            // [pixels][nv * vector]: sums of earlier and for later calls
  bool first, last;
  const int64_t* out;        // [pixels]: output pixel numbers
  int64_t k0, channels;      // first output channel, and how many of the panel are real
  const TileEpilogue* epilogue;
  float* mean;               // mean and sum of squared deviations of each channel over the pixels of this run, or null: with an epilogue of no more than a bias,
  float* m2;                 // which they leave out (y16: of none); pointers are to the panel's first channel
};

/// dw[m][0..channels) (+)= sum over p of dy[p][m] * rows[p][x_offset..]; m is the tile's number of rows.
struct FilterTileArgs {
  const float* const* rows;
  int64_t x_offset, pixels;
  const float* dy;           // [pixels][m]
  float* dw;
  int64_t dw_stride, channels;
  bool first;
  const char* ahead;         // `pixels` cache lines of the next block to fetch meanwhile
};

/// Depthwise: y[p][c] = sum over t of rows[t][p][c] * w[t][c].
struct DepthwiseArgs {
  const float* const* rows;
  int64_t row_stride, taps, pixels;
  const float* w;            // [taps][channels]
  const int64_t* out;
  int64_t channels;
  const TileEpilogue* epilogue;
};

/// dw[t][c] (+)= sum over p of dy[p][c] * rows[t][p][c].
struct DepthwiseFilterArgs {
  const float* const* rows;
  int64_t row_stride, taps, pixels;
  const float* dy;           // [pixels][channels]
  int64_t channels;
  float* dw;
  bool first;
};

constexpr int kTilePad = 24;
constexpr int kMaxPanel = 4;       // vectors
constexpr int kMaxFilterRows = 12;
constexpr int kPackSlack = 16;  // floats after each packed panel, which packing may overwrite

struct ConvIsa {
  int vector;                      // floats
  int max_nv;                      // widest panel, vectors
  int filter_rows[kMaxPanel + 1];  // most rows of a filter tile, by nv
  void (*tile[kMaxPanel + 1])(const TileArgs&);
  void (*filter_tile[kMaxPanel + 1][kMaxFilterRows + 1])(const FilterTileArgs&);
  void (*depthwise)(const DepthwiseArgs&);
  void (*depthwise_filter)(const DepthwiseFilterArgs&);
  /// dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < cols; entries i in [rows, dst_rows) are 0.
  void (*transpose)(const float* src, int64_t src_stride, int64_t rows, int64_t cols, float* dst, int64_t dst_stride, int64_t dst_rows);
  /// Columns in panels, first `wide` of m + 1 and then `narrow` of m (at most 12): panel i, from column b_i on, at dst + b_i * pixels + i * kPackSlack
  /// holds [pixels][its width].
  void (*pack_panels)(const float* src, int64_t stride, int64_t pixels, int64_t wide, int64_t narrow, int m, float* dst);
  /// dst[p * dst_stride + i] = rows[p][x_offset + i], i < n; reads (not uses) the table up to kTilePad past the end.
  void (*copy_rows)(const float* const* rows, int64_t x_offset, int64_t pixels, int64_t n, int64_t dst_stride, float* dst);
  /// y[i] = scale * (codes[i] - zero_point).
  void (*dequantize)(const uint8_t* codes, int64_t n, float scale, int32_t zero_point, float* y);
  /// `rounds` rounds of 12 independent vector multiply-adds; returns a value that depends on them.
  float (*fma_burst)(int64_t rounds);
  /// y[j] += sum over i < rows of x[i * stride + j], j < cols, in order of i.
  void (*column_sum)(const float* x, int64_t rows, int64_t cols, int64_t stride, float* y);
};

/// Null when not built for this architecture. Calling needs the processor's support.
const ConvIsa* conv_isa_avx2();
const ConvIsa* conv_isa_avx512();

}  // namespace detent::cpu
