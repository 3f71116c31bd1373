#include "detent/backends/cpu/conv_pairs.h"

#include <algorithm>

#include "detent/backends/cpu/dense.h"

namespace detent::cpu {
namespace {

// Words that begin at an even pixel, and at an odd one or the border.
int64_t even_words(const Gather& g) { return (g.in_w + 1) / 2; }
int64_t odd_words(const Gather& g) { return g.in_w / 2 + 1; }

// Words of pixels (first, first + 1), (first + 2, first + 3) ... of a row; what lies outside of it is zero.
template <class One, class Many>
void join_row(int64_t first, int64_t count, int64_t pixels, One&& one, Many&& many) {
  int64_t i = 0;
  if (first < 0) one(i++);
  const int64_t whole = std::max<int64_t>(0, std::min(count - i, (pixels - (first + 2 * i)) / 2));
  many(i, whole);
  for (i += whole; i < count; ++i) one(i);
}

void fill_tap(const DenseKernels& k, const Gather& g, const PairRows& from, int64_t image, int64_t iy, int64_t dw, int64_t x0, int64_t pairs, const float* zero, const float** rows) {
  if (iy < 0 || iy >= g.in_h) {
    std::fill_n(rows, pairs, zero);
    return;
  }
  const float* const row = from.words + (image * g.in_h + iy - from.first_row) * pair_pitch(g, from.channels);
  const bool odd = (x0 + dw) % 2 != 0;
  // Index of the first pair's word among the even or odd ones, and how many there are.
  const int64_t at = odd ? (x0 + dw + 1) / 2 : (x0 + dw) / 2, count = odd ? odd_words(g) : even_words(g);
  const float* const words = row + (odd ? even_words(g) * from.channels : 0);
  const int64_t lo = std::clamp<int64_t>(-at, 0, pairs), hi = std::clamp<int64_t>(count - at, lo, pairs);
  std::fill_n(rows, lo, zero);
  k.ramp(reinterpret_cast<intptr_t>(words + (at + lo) * from.channels), from.channels * static_cast<int64_t>(sizeof(float)), hi - lo, reinterpret_cast<int64_t*>(rows + lo));
  std::fill_n(rows + hi, pairs - hi, zero);
}

}  // namespace

bool makes_pairs(const Gather& g) { return g.step_w == 1 && g.grid_w % 2 == 0; }

int64_t pair_pitch(const Gather& g, int64_t channels) { return (even_words(g) + odd_words(g)) * channels; }

void stage_pairs(const Bf16Isa& isa, const Gather& g, const ConvInput& input, RowRange range, const PairRows& to, const float* zero, const uint8_t* zero_codes) {
  const int64_t c = g.in_c, n = to.channels;
  float* words = to.words;
  for (int64_t row = range.first; row < range.last; ++row) {
    const int64_t at = row * g.in_w * c + to.c0;
    for (const int64_t first : {int64_t{0}, int64_t{-1}}) {
      const int64_t count = first == 0 ? even_words(g) : odd_words(g);
      const auto join = [&](const auto* x, const auto* outside, auto&& two, auto&& many) {
        const auto pixel = [&](int64_t i) { return i >= 0 && i < g.in_w ? x + i * c : outside; };
        join_row(
            first, count, g.in_w, [&](int64_t i) { two(pixel(first + 2 * i), pixel(first + 2 * i + 1), words + i * n); },
            [&](int64_t i, int64_t pairs) { many(x + (first + 2 * i) * c, pairs, words + i * n); });
      };
      if (input.x) {
        join(input.x + at, zero, [&](const float* a, const float* b, float* w) { isa.join_rows(a, b, n, w); },
             [&](const float* x, int64_t pairs, float* w) { isa.join_pairs(x, c, pairs, n, w); });
      } else if (input.x16) {
        join(input.x16 + at, reinterpret_cast<const uint16_t*>(zero), [&](const uint16_t* a, const uint16_t* b, float* w) { isa.join_rows16(a, b, n, w); },
             [&](const uint16_t* x, int64_t pairs, float* w) { isa.join_pairs16(x, c, pairs, n, w); });
      } else {
        const int32_t z = input.grid.zero_point;
        join(input.codes + at, zero_codes, [&](const uint8_t* a, const uint8_t* b, float* w) { isa.join_codes(a, b, z, n, w); },
             [&](const uint8_t* x, int64_t pairs, float* w) { isa.join_code_pairs(x, c, z, pairs, n, w); });
      }
      words += count * n;
    }
  }
}

void fill_pair_rows(const Gather& g, const PairRows& from, int64_t p0, int64_t p1, const float* zero, const float** rows, int64_t row_stride) {
  const DenseKernels& k = dense_kernels();
  int64_t at = 0;
  for (int64_t p = p0; p < p1;) {
    const int64_t x0 = p % g.grid_w, line = p / g.grid_w, y = line % g.grid_h, image = line / g.grid_h;
    const int64_t pairs = std::min(g.grid_w - x0, p1 - p) / 2;
    for (int64_t i = 0; i < g.taps.rows; ++i) {
      const int64_t iy = y * g.step_h + g.taps.dh0 + i * g.taps.dh_step;
      for (int64_t j = 0; j < g.taps.cols; ++j) fill_tap(k, g, from, image, iy, g.taps.dw0 + j * g.taps.dw_step, x0, pairs, zero, rows + (i * g.taps.cols + j) * row_stride + at);
    }
    at += pairs;
    p += 2 * pairs;
  }
  for (int64_t t = 0; t < g.taps.count(); ++t) std::fill_n(rows + t * row_stride + at, kTilePad, zero);
}

}  // namespace detent::cpu
