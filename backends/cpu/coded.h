// Rows of codes: the fused add and the backward pass of fused quantization. One source, coded.cpp, built for each instruction set as dense.cpp is.
#pragma once

#include <cstdint>

#include "detent/core/math/quant_math.h"

namespace detent::cpu {

/// A row of floats, or of codes on a grid.
struct CodedRow {
  const float* x;
  const uint8_t* codes;
  float scale;
  int32_t zero_point;
};

struct AddRow {
  CodedRow a, b;
  float lo, hi;  // clamp
  bool quantize, mask_on_value;
  Grid grid;
  float* y;
  uint8_t* codes;
  int8_t* residual;
};

/// What quantized_backward reads and writes.
struct BackwardRow {
  const uint8_t* codes;
  const int8_t* residual;
  int32_t zero_point;
  ClampTerms clamp;
  const float* dy;
  float* dx;
};

constexpr int64_t kCodedLanes = 16;

struct CodedKernels {
  void (*add)(const AddRow& r, int64_t n);
  /// stream: dx is not dy and is written past the cache where its address allows it (the caller fences). Adds to scale_lanes (times kResidualScale) and clip_lanes [kCodedLanes], lane = index % kCodedLanes.
  void (*backward)(const BackwardRow& r, int64_t n, bool stream, float* scale_lanes, float* clip_lanes);
};

extern const CodedKernels kCodedScalar;
extern const CodedKernels kCodedAvx2;
extern const CodedKernels kCodedAvx512;

}  // namespace detent::cpu
