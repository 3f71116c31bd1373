// Convolutions with one output element a thread: depthwise and narrow groups, where a tile would be mostly empty, and sizes beyond the tiles' 32 bits. f32 with
// fused multiply-adds in every precision: these kernels wait for memory, not for arithmetic.
#include "detent/backends/cuda/conv.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

DETENT_HD float input_at(const ConvInput& in, int32_t zero, int64_t i) { return in.codes ? static_cast<float>(static_cast<int32_t>(in.codes[i]) - zero) : in.x[i]; }

// Divisions of 64 bits cost more than the memory these kernels wait for; most need 32.
DETENT_HD int64_t divide(int64_t a, int64_t b) {
  return (static_cast<uint64_t>(a | b) >> 32) == 0 ? static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b)) : a / b;
}

struct Spot {
  int64_t n, h, w;
};
DETENT_HD Spot spot(int64_t p, int64_t h, int64_t w) {
  const int64_t line = divide(p, w), n = divide(line, h);
  return {n, line - n * h, p - line * w};
}

/// fn(r, s, input pixel) for the taps of an output pixel that fall inside.
template <class Fn>
DETENT_HD void for_taps(const ConvGeometry& g, const Spot& o, Fn&& fn) {
  for (int64_t r = 0; r < g.r; ++r) {
    const int64_t h = o.h * g.stride_h - g.pad_top + r * g.dilation_h;
    if (h < 0 || h >= g.h) continue;
    for (int64_t s = 0; s < g.s; ++s) {
      const int64_t w = o.w * g.stride_w - g.pad_left + s * g.dilation_w;
      if (w >= 0 && w < g.w) fn(r, s, (o.n * g.h + h) * g.w + w);
    }
  }
}

struct Forward {
  ConvGeometry g;
  ConvInput input;
  const float* w;
  Epilogue epilogue;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t p = divide(i, g.k), k = i - p * g.k, cg = divide(g.c, g.groups), c0 = divide(k, divide(g.k, g.groups)) * cg;
    const Grid from = present(input.grid, input.resident);
    float sum = 0.0f;
    for_taps(g, spot(p, g.oh, g.ow), [&](int64_t r, int64_t s, int64_t q) {
      const float* const row = w + ((k * g.r + r) * g.s + s) * cg;
      for (int64_t c = 0; c < cg; ++c) sum = fmaf(input_at(input, from.zero_point, q * g.c + c0 + c), row[c], sum);
    });
    if (input.codes) sum *= from.scale;
    const Epilogue e = settled(epilogue);
    write_one(e, i, finish(e, biased(e, sum, channel_epilogue(e, k), i)));
  }
};

// Codes as they are: a tap outside counts as zero_point, as in the sums that `offset` corrects.
struct IntegerForward {
  ConvGeometry g;
  ConvInput input;
  IntegerWeights w;
  Epilogue epilogue;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t p = divide(i, g.k), k = i - p * g.k, cg = divide(g.c, g.groups), c0 = divide(k, divide(g.k, g.groups)) * cg;
    const int32_t zero = present(input.grid, input.resident).zero_point;
    int32_t sum = 0;
    const Spot o = spot(p, g.oh, g.ow);
    for (int64_t r = 0; r < g.r; ++r) {
      for (int64_t s = 0; s < g.s; ++s) {
        const int64_t h = o.h * g.stride_h - g.pad_top + r * g.dilation_h, v = o.w * g.stride_w - g.pad_left + s * g.dilation_w;
        const bool in = h >= 0 && h < g.h && v >= 0 && v < g.w;
        const uint8_t* const x = input.codes + (in ? ((o.n * g.h + h) * g.w + v) * g.c + c0 : 0);
        const int8_t* const row = w.q + k * w.pitch + (r * g.s + s) * cg;
        for (int64_t c = 0; c < cg; ++c) sum += (in ? static_cast<int32_t>(x[c]) : zero) * static_cast<int32_t>(row[c]);
      }
    }
    const Epilogue e = settled(epilogue);
    write_one(e, i, finish_integer(e, *w.bounds, wrapping_add(sum, w.offset[k]), w.scale[k]));
  }
};

struct BackwardData {
  ConvGeometry g;
  const float* dy;
  const float* w;
  float* dx;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t p = divide(i, g.c), c = i - p * g.c, cg = divide(g.c, g.groups), kg = divide(g.k, g.groups), group = divide(c, cg), k0 = group * kg;
    const Spot in = spot(p, g.h, g.w);
    float sum = 0.0f;
    for (int64_t r = 0; r < g.r; ++r) {
      const int64_t th = in.h + g.pad_top - r * g.dilation_h, oh = th < 0 ? -1 : divide(th, g.stride_h);
      if (oh < 0 || oh * g.stride_h != th || oh >= g.oh) continue;
      for (int64_t s = 0; s < g.s; ++s) {
        const int64_t tw = in.w + g.pad_left - s * g.dilation_w, ow = tw < 0 ? -1 : divide(tw, g.stride_w);
        if (ow < 0 || ow * g.stride_w != tw || ow >= g.ow) continue;
        const float* const d = dy + ((in.n * g.oh + oh) * g.ow + ow) * g.k + k0;
        for (int64_t k = 0; k < kg; ++k) sum = fmaf(d[k], w[(((k0 + k) * g.r + r) * g.s + s) * cg + c - group * cg], sum);
      }
    }
    dx[i] = sum;
  }
};

// Partial sums over a slice of pixels; neighbouring threads have neighbouring output channels. partial[slice][(r, s, c)][k].
struct BackwardFilter {
  ConvGeometry g;
  ConvInput input;
  const float* dy;
  int64_t per_slice;
  float* partial;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t cg = g.c / g.groups, k = i % g.k, rest = i / g.k, c = rest % cg, tap = rest / cg % (g.r * g.s), slice = rest / cg / (g.r * g.s);
    const int64_t r = tap / g.s, s = tap - r * g.s, channel = k / (g.k / g.groups) * cg + c, pixels = g.n * g.oh * g.ow;
    const int64_t first = slice * per_slice, last = first + per_slice < pixels ? first + per_slice : pixels;
    const int32_t zero = present(input.grid, input.resident).zero_point;
    Spot o = spot(first, g.oh, g.ow);
    float sum = 0.0f;
    for (int64_t p = first; p < last; ++p) {
      const int64_t h = o.h * g.stride_h - g.pad_top + r * g.dilation_h, w = o.w * g.stride_w - g.pad_left + s * g.dilation_w;
      if (h >= 0 && h < g.h && w >= 0 && w < g.w) sum = fmaf(dy[p * g.k + k], input_at(input, zero, ((o.n * g.h + h) * g.w + w) * g.c + channel), sum);
      if (++o.w == g.ow) {
        o.w = 0;
        if (++o.h == g.oh) o.h = 0, ++o.n;
      }
    }
    partial[i] = sum;
  }
};

struct SumSlices {
  const float* partial;
  int64_t k, per_channel, slices;
  InputFactor alpha;
  float* dw;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t from = i % per_channel * k + i / per_channel;
    float sum = 0.0f;
    for (int64_t s = 0; s < slices; ++s) sum += partial[s * k * per_channel + from];
    dw[i] = alpha.get() * sum;
  }
};

}  // namespace

bool runs_direct(const ConvGeometry& g) { return g.groups > 1 && (g.c / g.groups < 16 || g.k / g.groups < 16); }

void direct_forward(const Conv2dArgs& a, const IntegerWeights* integer) {
  const ConvGeometry& g = a.geometry;
  const int64_t n = g.n * g.oh * g.ow * g.k;
  if (integer) {
    elements("conv2d direct, codes", n, IntegerForward{g, a.input, *integer, a.epilogue});
  } else {
    elements("conv2d direct", n, Forward{g, a.input, a.w, a.epilogue});
  }
}

void direct_backward_data(const Conv2dBackwardDataArgs& a) {
  const ConvGeometry& g = a.geometry;
  elements("conv2d_backward_data direct", g.n * g.h * g.w * g.c, BackwardData{g, a.dy, a.w, a.dx});
}

void direct_backward_filter(const Conv2dBackwardFilterArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t pixels = g.n * g.oh * g.ow, per_channel = g.r * g.s * (g.c / g.groups), n = g.k * per_channel;
  // Slices of at least 256 pixels, enough for 2^17 threads.
  const int64_t wanted = ceil_div(int64_t{1} << 17, n), most = ceil_div(pixels, 256);
  const int64_t per_slice = pixels > 0 ? ceil_div(pixels, wanted < most ? wanted : most) : 1, slices = ceil_div(pixels, per_slice);
  const Scratch<float> partial(slices * n);
  elements("conv2d_backward_filter direct", slices * n, BackwardFilter{g, a.input, a.dy, per_slice, partial.get()});
  elements("sum_slices", n, SumSlices{partial.get(), g.k, per_channel, slices, input_factor(a.input), a.dw});
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
