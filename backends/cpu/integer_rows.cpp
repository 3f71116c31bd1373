// Built once per instruction set; DETENT_INTEGER names the table. The formulas are integer_math.h's, in loops that vectorise.
#include "detent/backends/cpu/integer.h"

namespace detent::cpu {
namespace {

constexpr int64_t kBlock = 128;

void add(const uint8_t* a, const uint8_t* b, const IntegerAdd& formula, const CodeRange& codes, uint8_t* y, int64_t n) {
  const IntegerAdd f = formula;
  const CodeRange range = codes;
  int32_t q[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    for (int64_t i = 0; i < m; ++i) q[i] = add_codes(a[at + i], b[at + i], f, range);
    for (int64_t i = 0; i < m; ++i) y[at + i] = static_cast<uint8_t>(q[i]);
  }
}

void add_rows(const uint8_t* x, int64_t stride, int64_t rows, int64_t c, int32_t* sum) {
  for (int64_t i = 0; i < rows; ++i, x += stride) {
    for (int64_t j = 0; j < c; ++j) sum[j] += x[j];
  }
}

void requantize_sums(const int32_t* sum, int32_t minus, float multiplier, const Grid& grid, uint8_t* y, int64_t n) {
  const Grid g = grid;
  for (int64_t j = 0; j < n; ++j) y[j] = static_cast<uint8_t>(requantize(sum[j] - minus, multiplier, g));
}

void max_taps(const uint8_t* const* tap, int64_t taps, int64_t offset, int64_t c, uint8_t* y) {
  const uint8_t* x = tap[0] + offset;
  for (int64_t j = 0; j < c; ++j) y[j] = x[j];
  for (int64_t t = 1; t < taps; ++t) {
    x = tap[t] + offset;
    for (int64_t j = 0; j < c; ++j) y[j] = x[j] > y[j] ? x[j] : y[j];
  }
}

void depthwise(const IntegerDepthwise& a) {
  const IntegerTarget e = *a.target;
  const Grid g{1.0f, static_cast<int32_t>(e.zero_point), static_cast<int32_t>(e.lo), static_cast<int32_t>(e.hi)};
  int32_t acc[kBlock];
  for (int64_t c = 0; c < a.channels; c += kBlock) {
    const int64_t n = a.channels - c < kBlock ? a.channels - c : kBlock;
    for (int64_t j = 0; j < n; ++j) acc[j] = e.offset[c + j];
    for (int64_t t = 0; t < a.taps; ++t) {
      const uint8_t* x = a.rows[t * a.row_stride] + c;
      const int16_t* w = a.w + t * a.channels + c;
      for (int64_t j = 0; j < n; ++j) acc[j] = wrapping_add(acc[j], static_cast<int16_t>(x[j]) * w[j]);
    }
    for (int64_t j = 0; j < n; ++j) acc[j] = requantize(acc[j], e.multiplier[c + j], g);
    for (int64_t j = 0; j < n; ++j) a.y[c + j] = static_cast<uint8_t>(acc[j]);
  }
}

}  // namespace

const IntegerRows DETENT_INTEGER = {add, add_rows, requantize_sums, max_taps, depthwise};

}  // namespace detent::cpu
