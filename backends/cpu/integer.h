// Integer kernels of one instruction set: what the drivers of integer_conv.cpp and integer_elementwise.cpp call. PODs and tables of functions, nothing inline.
// Convolution weights are packed in panels of nv vectors of output channels: [panel][tap][word][nv * vector][4], a word being four input channels' codes.
#pragma once

#include <cstdint>

#include "detent/backends/cpu/conv_isa.h"
#include "detent/core/backend.h"
#include "detent/core/integer_kernels.h"

namespace detent::cpu {

/// The epilogue of a tile: q = clamp(rint(float(acc + offset[k]) * multiplier[k]) + zero_point, lo, hi), and where it is wanted residual_of_sum on the grid.
struct IntegerTarget {
  const int32_t* offset = nullptr;
  const float* multiplier = nullptr;
  float zero_point = 0.0f, lo = 0.0f, hi = 255.0f;
  uint8_t* y = nullptr;
  int64_t channels = 0;  // of the whole output: distance between pixels
  Grid grid = {};
  IntegerResidual residual = {};
  // The residual's bounds: of the code, or of the value with on_value.
  float inside_lo = 0.0f, inside_hi = 0.0f;
};

/// One panel times a run of pixels: sum over taps t and words i of rows[t][p][x_offset + 4i .. 4i+3] * w[t][i].
struct IntegerTile {
  const uint8_t* const* rows;  // [taps][row_stride]; the last tile may read (not use) up to kTilePad entries past `pixels`
  int64_t row_stride, taps, x_offset, words;
  const int8_t* w;
  int64_t pixels;
  const int64_t* out;          // [pixels]: output pixel numbers
  int64_t k0, channels;        // first output channel, and how many of the panel are real
  const IntegerTarget* target;
};

struct IntegerIsa {
  int vector;  // int32 lanes
  int max_nv;
  void (*tile[kMaxPanel + 1])(const IntegerTile&);
  /// `rounds` rounds of 12 independent multiply-add steps of `vector` lanes and 4 products each; returns a value that depends on them.
  int32_t (*burst)(int64_t rounds);
};

/// Null when not built for this architecture. Calling needs the processor's support.
const IntegerIsa* integer_isa_avx2();
const IntegerIsa* integer_isa_avx512();       // 16-bit products
const IntegerIsa* integer_isa_avx512_vnni();

/// One pixel of a depthwise convolution: taps rows of x, `channels` long.
struct IntegerDepthwise {
  const uint8_t* const* rows;  // [taps], row_stride apart
  int64_t row_stride, taps;
  const int16_t* w;            // [pairs of taps][channels][2], 0 for a tap that is missing
  int64_t channels;
  const IntegerTarget* target;
  uint8_t* y;
  int8_t* residual;            // or null
};

/// Rows of codes: integer_rows.cpp, built for each instruction set as dense.cpp is.
struct IntegerRows {
  void (*add)(const uint8_t* a, const uint8_t* b, const IntegerAdd& f, const CodeRange& range, uint8_t* y, int64_t n);
  /// sum[j] += x[i * stride + j] over rows.
  void (*add_rows)(const uint8_t* x, int64_t stride, int64_t rows, int64_t c, int32_t* sum);
  void (*requantize)(const int32_t* sum, int32_t minus, float multiplier, const Grid& g, uint8_t* y, int64_t n);
  /// y[j] = max over taps of tap[t][offset + j].
  void (*max_taps)(const uint8_t* const* tap, int64_t taps, int64_t offset, int64_t c, uint8_t* y);
  void (*depthwise)(const IntegerDepthwise&);
  /// q[i] = weight_code(w[i], scale); the sum of q, and of |q|.
  void (*weight_codes)(const float* w, float scale, int64_t n, int8_t* q, int64_t* sum, int64_t* magnitude);
};
extern const IntegerRows kIntegerScalar;
extern const IntegerRows kIntegerAvx2;
extern const IntegerRows kIntegerAvx512;

/// What a processor runs; isa null: the scalar convolution.
struct IntegerEngine {
  const IntegerIsa* isa = nullptr;
  const IntegerRows* rows = nullptr;
};
IntegerEngine integer_engine();

int64_t integer_packed_bytes(const IntegerEngine& e, const ConvGeometry& g);
void integer_pack(const IntegerEngine& e, const ConvGeometry& g, const int8_t* q, void* packed);
void integer_conv2d(const IntegerEngine& e, const IntegerConv2dArgs& a);
void integer_add(const IntegerEngine& e, const IntegerAddArgs& a);
void integer_average(const IntegerEngine& e, const AverageCodesArgs& a);
void integer_max_pool(const IntegerEngine& e, const IntegerMaxPoolArgs& a);
void integer_regrid(const uint8_t* x, const uint8_t* table, uint8_t* y, int64_t n);

/// A quantizing convolution of codes by weights on byte grids, through integer_conv2d: same codes as ONNX Runtime's QLinearConv. False when it is not one, or when a
/// sum might leave int32: then nothing was written.
bool integer_forward(const IntegerEngine& e, const Conv2dArgs& a);

/// The table of the engine in use.
const IntegerKernels& integer_kernels();

/// Plain loops over q [k,r,s,c/groups]: the reference, and what runs without vectors.
namespace scalar {
void integer_conv2d(const IntegerConv2dArgs& a);
}

/// Runs `rounds` rounds of integer multiply-adds in registers on the calling thread; returns the operations done (a multiply-add is two), 0 without vectors.
double integer_burst(int64_t rounds);

}  // namespace detent::cpu
