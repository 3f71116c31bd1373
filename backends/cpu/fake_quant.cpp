// Quantize-dequantize, its backward pass with range sums, and dequantize.
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {
namespace {

// Range sums: 16 float lanes within a block, doubles across blocks.
constexpr int64_t kBlock = 4096;
constexpr int64_t kLanes = 16;

struct Sums {
  double scale = 0.0, clip = 0.0;
};

void forward_row(const float* x, const Grid& g, float* y, void* codes, int64_t n) {
  if (y) {
    for (int64_t i = 0; i < n; ++i) y[i] = fake_quantize(x[i], g);
  }
  if (codes && g.qmin >= 0) {
    for (int64_t i = 0; i < n; ++i) static_cast<uint8_t*>(codes)[i] = static_cast<uint8_t>(quantize(x[i], g));
  } else if (codes) {
    for (int64_t i = 0; i < n; ++i) static_cast<int8_t*>(codes)[i] = static_cast<int8_t>(quantize(x[i], g));
  }
}

void backward_element(float x, float dy, const Grid& g, float* dx, float* scale, float* clip) {
  const float t = x / g.scale, r = rintf(t), z = static_cast<float>(g.zero_point);
  const float v = r + z;
  const float lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const float c = v < lo ? lo : (v > hi ? hi : v);
  const bool inside = v == c, clipped = v < lo || v > hi;
  *dx = inside ? dy : 0.0f;
  *scale += inside ? dy * (r - t) : (clipped ? dy * (c - z) : 0.0f);
  *clip += clipped ? dy : 0.0f;
}

Sums backward_row(const float* x, const float* dy, const Grid& g, float* dx, int64_t n) {
  Sums total;
  for (int64_t first = 0; first < n; first += kBlock) {
    float scale[kLanes] = {}, clip[kLanes] = {};
    const int64_t last = std::min(n, first + kBlock);
    for (int64_t i = first; i < last; ++i) {
      float d;
      backward_element(x[i], dy[i], g, &d, &scale[(i - first) % kLanes], &clip[(i - first) % kLanes]);
      if (dx) dx[i] = d;
    }
    double s = 0.0, c = 0.0;
    for (int64_t k = 0; k < kLanes; ++k) {
      s += static_cast<double>(scale[k]);
      c += static_cast<double>(clip[k]);
    }
    total.scale += s;
    total.clip += c;
  }
  return total;
}

// Plain straight-through: the bounds are on x, inclusive.
void straight_through_row(const float* x, const float* dy, const Grid& g, float* dx, int64_t n) {
  const float lo = detent::dequantize(g.qmin, g), hi = detent::dequantize(g.qmax, g);
  for (int64_t i = 0; i < n; ++i) dx[i] = x[i] >= lo && x[i] <= hi ? dy[i] : 0.0f;
}

// The plain straight-through estimator: dy where x itself is on the grid's range.
void mask_row(const float* x, const float* dy, const Grid& g, float* dx, int64_t n) {
  const float lo = detent::dequantize(g.qmin, g), hi = detent::dequantize(g.qmax, g);
  for (int64_t i = 0; i < n; ++i) dx[i] = x[i] >= lo && x[i] <= hi ? dy[i] : 0.0f;
}

// The rows of a view cut into pieces that threads share; row i belongs to channel i % channels.
template <class Fn>
void for_each_piece(const ChannelView& v, Fn&& fn) {
  const int64_t rows = v.outer * v.channels;
  const int64_t pieces = (v.inner + kGrain - 1) / kGrain;
  if (rows <= 0 || pieces <= 0) return;
  parallel_for(rows * pieces, std::max<int64_t>(1, kGrain / v.inner), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces, first = i % pieces * kGrain;
      fn(i, row % v.channels, row * v.inner + first, std::min(kGrain, v.inner - first));
    }
  });
}

}  // namespace

void fake_quant(const FakeQuantArgs& a) {
  for_each_piece(a.view, [&](int64_t, int64_t channel, int64_t at, int64_t n) {
    forward_row(a.x + at, a.grids[channel], a.y ? a.y + at : nullptr, a.codes ? static_cast<uint8_t*>(a.codes) + at : nullptr, n);
  });
}

void dequantize(const DequantizeArgs& a) {
  parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) a.y[i] = detent::dequantize(a.codes[i], a.grid);
  });
}

void fake_quant_backward(const FakeQuantBackwardArgs& a) {
  const ChannelView& v = a.view;
  if (a.mask_on_value) {
    for_each_piece(v, [&](int64_t, int64_t channel, int64_t at, int64_t n) { mask_row(a.x + at, a.dy + at, a.grids[channel], a.dx + at, n); });
    return;
  }
  if (a.mask_on_value) {
    for_each_piece(v, [&](int64_t, int64_t channel, int64_t at, int64_t n) { straight_through_row(a.x + at, a.dy + at, a.grids[channel], a.dx + at, n); });
    return;
  }
  const int64_t pieces = (v.inner + kGrain - 1) / kGrain;
  std::vector<Sums> part(static_cast<size_t>(v.outer * v.channels * pieces));
  for_each_piece(v, [&](int64_t i, int64_t channel, int64_t at, int64_t n) {
    part[static_cast<size_t>(i)] = backward_row(a.x + at, a.dy + at, a.grids[channel], a.dx ? a.dx + at : nullptr, n);
  });
  for (int64_t c = 0; c < v.channels; ++c) {
    Sums total;
    for (int64_t o = 0; o < v.outer; ++o) {
      for (int64_t p = 0; p < pieces; ++p) {
        const Sums& s = part[static_cast<size_t>((o * v.channels + c) * pieces + p)];
        total.scale += s.scale;
        total.clip += s.clip;
      }
    }
    if (a.scale_sum) a.scale_sum[c] = total.scale;
    if (a.clip_sum) a.clip_sum[c] = total.clip;
  }
}

}  // namespace detent::cpu
