// The row kernels as plain loops in the order of the formulas: the reference of the others.
#include <cmath>

#include "detent/backends/cpu/rows.h"
#include "detent/core/math/observe_math.h"
#include "detent/core/math/quant_math.h"

namespace detent::cpu {
namespace {

float code(float x, const RowGrid& g) {
  const float v = rintf(x / g.scale) + g.zero;
  const float c = v < g.lo ? g.lo : (v > g.hi ? g.hi : v);
  return c == c ? c : g.zero;
}

void fake_quant(const float* x, const RowGrid& g, float* y, int64_t n, bool) {
  for (int64_t i = 0; i < n; ++i) y[i] = g.scale * (code(x[i], g) - g.zero);
}

void fake_quant_codes(const float* x, const RowGrid& g, float* y, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float q = code(x[i], g);
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(q));
    if (y) y[i] = g.scale * (q - g.zero);
  }
}

void fake_quant_backward(const float* x, const float* dy, const RowGrid& g, float* dx, int64_t n, double* sums, bool) {
  for (int64_t first = 0; first < n; first += kSumBlock) {
    float scale[kSumLanes] = {}, clip[kSumLanes] = {};
    const int64_t last = first + kSumBlock < n ? first + kSumBlock : n;
    for (int64_t i = first; i < last; ++i) {
      const RangeTerms terms = range_terms(x[i], dy[i], g.scale, g.zero, g.lo, g.hi);
      const int64_t lane = (i - first) % kSumLanes;
      scale[lane] += terms.scale;
      clip[lane] += terms.clip;
      if (dx) dx[i] = terms.dx;
    }
    sums[0] += fold_lanes(scale);
    sums[1] += fold_lanes(clip);
  }
}

void dequantize(const uint8_t* codes, const RowGrid& g, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = g.scale * (static_cast<float>(codes[i]) - g.zero);
}

// Comparisons are false for NaN, so NaNs never become a minimum or a maximum.
void extent(const float* x, int64_t n, RowExtent* e) {
  for (int64_t i = 0; i < n; ++i) {
    e->min = x[i] < e->min ? x[i] : e->min;
    e->max = x[i] > e->max ? x[i] : e->max;
    e->nan += x[i] != x[i];
  }
}

int64_t bins(const float* x, int64_t n, const RowBins& b, int32_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bin_of(x[i], b);
  return n;
}

}  // namespace

int32_t bin_of(float x, const RowBins& b) { return histogram_bin(x, b.lo, b.width, b.lo / b.width, b.bins, b.centred, b.clamp_ends); }

const RowKernels kRowsScalar = {fake_quant, fake_quant_codes, fake_quant_backward, dequantize, extent, bins};

}  // namespace detent::cpu
