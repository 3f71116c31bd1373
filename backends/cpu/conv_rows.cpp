#include <algorithm>
#include <bit>
#include <cstring>

#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/dense.h"
#include "detent/core/parallel.h"

namespace detent::cpu {

Slots::Slots(int64_t bytes_each) : each_((static_cast<size_t>(bytes_each) + 4095) / 4096 * 4096 + 64), count_(std::min(num_threads(), 64)) {
  block_ = static_cast<char*>(host_allocator().allocate(each_ * static_cast<size_t>(count_)));
  free_.store(count_ == 64 ? ~uint64_t{0} : (uint64_t{1} << count_) - 1);
}

Slots::~Slots() { host_allocator().release(block_, each_ * static_cast<size_t>(count_)); }

Slots::Lease::Lease(Slots& slots) : slots_(slots), slot_(-1) {
  uint64_t free = slots.free_.load(std::memory_order_relaxed);
  while (free != 0) {
    const int slot = std::countr_zero(free);
    if (slots.free_.compare_exchange_weak(free, free & ~(uint64_t{1} << slot), std::memory_order_acquire)) {
      slot_ = slot;
      p_ = slots.block_ + slots.each_ * static_cast<size_t>(slot);
      return;
    }
  }
  p_ = static_cast<char*>(host_allocator().allocate(slots.each_));
}

Slots::Lease::~Lease() {
  if (slot_ < 0) {
    host_allocator().release(p_, slots_.each_);
  } else {
    slots_.free_.fetch_or(uint64_t{1} << slot_, std::memory_order_release);
  }
}

namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Entries of one tap for grid columns [x0, x1) of one grid row.
template <class T>
void fill_run(const DenseKernels& k, const Gather& g, const InputViewOf<T>& v, int64_t image, int64_t iy, int64_t dw, int64_t x0, int64_t x1, const T* zero, const T** rows) {
  if (iy < 0 || iy >= g.in_h) {
    for (int64_t x = x0; x < x1; ++x) *rows++ = zero;
    return;
  }
  // Columns lo..hi fall inside the (bordered) row.
  const int64_t lo = std::clamp(-floor_div(v.left + dw, g.step_w), x0, x1);
  const int64_t hi = std::clamp(floor_div(g.in_w + v.right - 1 - dw, g.step_w) + 1, lo, x1);
  for (int64_t x = x0; x < lo; ++x) *rows++ = zero;
  const int64_t step = g.step_w * g.in_c;
  const T* p = v.base + (image * g.in_h + iy - v.first_row) * v.pitch + (lo * g.step_w + dw + v.left) * g.in_c;
  k.ramp(reinterpret_cast<intptr_t>(p), step * static_cast<int64_t>(sizeof(T)), hi - lo, reinterpret_cast<int64_t*>(rows));
  rows += hi - lo;
  for (int64_t x = hi; x < x1; ++x) *rows++ = zero;
}

}  // namespace

template <class T>
void fill_rows(const Gather& g, const InputViewOf<T>& v, int64_t p0, int64_t p1, const T* zero, const T** rows, int64_t row_stride, int64_t* out) {
  const DenseKernels& k = dense_kernels();
  int64_t at = 0;
  for (int64_t p = p0; p < p1;) {
    const int64_t x0 = p % g.grid_w, line = p / g.grid_w, y = line % g.grid_h, image = line / g.grid_h;
    const int64_t x1 = std::min(g.grid_w, x0 + p1 - p);
    for (int64_t i = 0; i < g.taps.rows; ++i) {
      const int64_t iy = y * g.step_h + g.taps.dh0 + i * g.taps.dh_step;
      for (int64_t j = 0; j < g.taps.cols; ++j) fill_run(k, g, v, image, iy, g.taps.dw0 + j * g.taps.dw_step, x0, x1, zero, rows + (i * g.taps.cols + j) * row_stride + at);
    }
    if (out) {
      const int64_t first = (image * g.out_h + y * g.out_step_h + g.out_first_h) * g.out_w + g.out_first_w;
      k.ramp(first + x0 * g.out_step_w, g.out_step_w, x1 - x0, out + at);
    }
    at += x1 - x0;
    p += x1 - x0;
  }
  for (int64_t t = 0; t < g.taps.count(); ++t) std::fill_n(rows + t * row_stride + at, kTilePad, zero);
}

template void fill_rows(const Gather&, const InputViewOf<float>&, int64_t, int64_t, const float*, const float**, int64_t, int64_t*);
template void fill_rows(const Gather&, const InputViewOf<uint8_t>&, int64_t, int64_t, const uint8_t*, const uint8_t**, int64_t, int64_t*);
template void fill_rows(const Gather&, const InputViewOf<uint16_t>&, int64_t, int64_t, const uint16_t*, const uint16_t**, int64_t, int64_t*);

RowRange rows_needed(const Gather& g, int64_t p0, int64_t p1) {
  const int64_t line0 = p0 / g.grid_w, line1 = (p1 - 1) / g.grid_w;
  const int64_t d0 = g.taps.dh0, d1 = g.taps.dh0 + (g.taps.rows - 1) * g.taps.dh_step;
  const int64_t lo = line0 % g.grid_h * g.step_h + std::min(d0, d1), hi = line1 % g.grid_h * g.step_h + std::max(d0, d1) + 1;
  // Images between the first and the last are needed whole; the ends only as far as their taps reach.
  RowRange r;
  r.first = line0 / g.grid_h * g.in_h + std::clamp<int64_t>(lo, 0, g.in_h);
  r.last = line1 / g.grid_h * g.in_h + std::clamp<int64_t>(hi, 0, g.in_h);
  r.last = std::max(r.first, r.last);
  return r;
}

void stage_rows(const ConvIsa& isa, const Gather& g, const ConvInput& input, RowRange range, const InputView& view, float* dst) {
  const int64_t values = g.in_w * g.in_c;
  for (int64_t row = range.first; row < range.last; ++row, dst += view.pitch) {
    std::fill_n(dst, view.left * g.in_c, 0.0f);
    if (input.x) {
      std::memcpy(dst + view.left * g.in_c, input.x + row * values, static_cast<size_t>(values) * sizeof(float));
    } else if (input.x16) {
      dense_kernels().widen(input.x16 + row * values, dst + view.left * g.in_c, values);
    } else {
      isa.dequantize(input.codes + row * values, values, input.grid.scale, input.grid.zero_point, dst + view.left * g.in_c);
    }
    std::fill_n(dst + view.left * g.in_c + values, view.right * g.in_c, 0.0f);
  }
}

}  // namespace detent::cpu
