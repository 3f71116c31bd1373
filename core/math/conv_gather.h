// A convolution as a gather: positions of a grid, each a sum over taps of rows of an NHWC input, written to a lattice of the output. Forward, each stride
// phase of backward-data, and a matrix product have this form. PODs, host and device. Pure functions: thread-safe.
#pragma once

#include <cstdint>

#include "detent/core/math/conv_geometry.h"

namespace detent {

/// A regular set of taps: tap (i, j) of rows x cols reads input position (grid * step + d0 + i * d_step).
struct Taps {
  int64_t rows = 1, cols = 1;
  int64_t dh0 = 0, dh_step = 0, dw0 = 0, dw_step = 0;
  DETENT_HD int64_t count() const { return rows * cols; }
};

/// Positions of a grid [n, grid_h, grid_w], each a sum over taps of rows of the input [n, in_h, in_w, in_c]; written to a lattice of the output.
struct Gather {
  int64_t n = 1, in_h = 1, in_w = 1, in_c = 1;
  int64_t grid_h = 1, grid_w = 1, step_h = 1, step_w = 1;
  Taps taps;
  int64_t out_h = 1, out_w = 1, out_step_h = 1, out_step_w = 1, out_first_h = 0, out_first_w = 0;
  DETENT_HD int64_t pixels() const { return n * grid_h * grid_w; }
};

/// One stride phase of backward-data: the gather over dy, and which rows and columns of the weight window its taps are.
struct Phase {
  Gather gather;
  int64_t r0 = 0, r_step = 1, s0 = 0, s_step = 1;
};

/// True when every output pixel reads exactly the input pixel of the same number.
constexpr bool is_pointwise(const ConvGeometry& g) {
  return g.r == 1 && g.s == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_top == 0 && g.pad_left == 0 && g.oh == g.h && g.ow == g.w;
}

/// Makes a gather over all pixels one long row.
constexpr void flatten(Gather& o) {
  o.in_w = o.grid_w = o.out_w = o.n * o.in_h * o.in_w;
  o.n = o.in_h = o.grid_h = o.out_h = 1;
}

/// Forward geometry as a gather; with `flat` a pointwise convolution is one long row.
constexpr Gather forward_gather(const ConvGeometry& g, bool flat) {
  Gather o;
  o.n = g.n, o.in_h = g.h, o.in_w = g.w, o.in_c = g.c;
  o.grid_h = o.out_h = g.oh, o.grid_w = o.out_w = g.ow;
  o.step_h = g.stride_h, o.step_w = g.stride_w;
  o.taps = {g.r, g.s, -g.pad_top, g.dilation_h, -g.pad_left, g.dilation_w};
  if (flat && is_pointwise(g)) flatten(o);
  return o;
}

namespace detail {

struct PhaseAxis {
  int64_t grid, count, first, step, d0, d_step;
};

// Input positions phase + i * stride; those taps t with (phase + pad - t * dilation) divisible by the stride: t = first + i * step.
constexpr PhaseAxis phase_axis(int64_t size, int64_t window, int64_t stride, int64_t pad, int64_t dilation, int64_t phase) {
  PhaseAxis a{(size - phase + stride - 1) / stride, 0, 0, 1, 0, 0};
  int64_t second = -1;
  // From the last tap to the first, so that memory is read upwards.
  for (int64_t t = window - 1; t >= 0; --t) {
    if ((phase + pad - t * dilation) % stride != 0) continue;
    if (a.count == 0) a.first = t;
    if (a.count == 1) second = t;
    ++a.count;
  }
  if (a.count > 1) a.step = second - a.first;
  a.d0 = (phase + pad - a.first * dilation) / stride;
  a.d_step = -(a.step * dilation) / stride;
  return a;
}

}  // namespace detail

/// Phase (ph, pw) of the strides of backward-data, ph < min(stride_h, h), pw < min(stride_w, w). taps.count() is 0 where no output reads these inputs. `flat` as above.
constexpr Phase backward_phase(const ConvGeometry& g, int64_t ph, int64_t pw, bool flat = true) {
  const detail::PhaseAxis h = detail::phase_axis(g.h, g.r, g.stride_h, g.pad_top, g.dilation_h, ph);
  const detail::PhaseAxis w = detail::phase_axis(g.w, g.s, g.stride_w, g.pad_left, g.dilation_w, pw);
  Phase o;
  Gather& a = o.gather;
  a.n = g.n, a.in_h = g.oh, a.in_w = g.ow, a.in_c = g.k;
  a.grid_h = h.grid, a.grid_w = w.grid;
  a.taps = {h.count, w.count, h.d0, h.d_step, w.d0, w.d_step};
  a.out_h = g.h, a.out_w = g.w, a.out_step_h = g.stride_h, a.out_step_w = g.stride_w, a.out_first_h = ph, a.out_first_w = pw;
  o.r0 = h.first, o.r_step = h.step, o.s0 = w.first, o.s_step = w.step;
  if (flat && is_pointwise(g)) flatten(a);
  return o;
}

}  // namespace detent
