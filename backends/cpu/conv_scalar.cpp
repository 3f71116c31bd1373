// The scalar convolutions: the reference of every fast one. Plain loops; sums in double.
#include <cmath>
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/core/epilogue.h"
#include "detent/core/parallel.h"

namespace detent::cpu::scalar {
namespace {

constexpr int64_t kPixels = 4;  // of a chunk: each is k*r*s*c products, and deep layers have few pixels

float load(const float* x, const uint16_t* x16, int64_t i) { return x16 ? bfloat_value(x16[i]) : x[i]; }
float load(const ConvInput& in, int64_t i) { return in.codes ? dequantize(in.codes[i], in.grid) : load(in.x, in.x16, i); }

void store(const Epilogue& e, int64_t i, int64_t k, double acc) { write_one(e, i, finish(e, biased(e, static_cast<float>(acc), channel_epilogue(e, k), i))); }

// Two passes over the stored values.
void statistics(const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t pixels = g.n * g.oh * g.ow;
  for (int64_t k = 0; k < g.k; ++k) {
    double sum = 0.0, squares = 0.0;
    for (int64_t p = 0; p < pixels; ++p) sum += static_cast<double>(load(a.epilogue.y, a.epilogue.y16, p * g.k + k));
    const double mean = sum / static_cast<double>(pixels);
    for (int64_t p = 0; p < pixels; ++p) {
      const double d = static_cast<double>(load(a.epilogue.y, a.epilogue.y16, p * g.k + k)) - mean;
      squares += d * d;
    }
    a.mean[k] = static_cast<float>(mean);
    a.var[k] = static_cast<float>(squares / static_cast<double>(pixels));
  }
}

}  // namespace

void conv2d(const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t cg = g.c / g.groups, kg = g.k / g.groups;
  parallel_for(g.n * g.oh * g.ow, kPixels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t ow = p % g.ow, oh = p / g.ow % g.oh, n = p / (g.ow * g.oh);
      for (int64_t k = 0; k < g.k; ++k) {
        double acc = 0.0;
        for (int64_t r = 0; r < g.r; ++r) {
          const int64_t h = oh * g.stride_h - g.pad_top + r * g.dilation_h;
          if (h < 0 || h >= g.h) continue;
          for (int64_t s = 0; s < g.s; ++s) {
            const int64_t w = ow * g.stride_w - g.pad_left + s * g.dilation_w;
            if (w < 0 || w >= g.w) continue;
            const int64_t x0 = ((n * g.h + h) * g.w + w) * g.c + k / kg * cg;
            const int64_t w0 = ((k * g.r + r) * g.s + s) * cg;
            for (int64_t c = 0; c < cg; ++c) acc += static_cast<double>(load(a.input, x0 + c)) * static_cast<double>(a.w[w0 + c]);
          }
        }
        store(a.epilogue, p * g.k + k, k, acc);
      }
    }
  });
  if (a.mean) statistics(a);
}

void conv2d_backward_data(const Conv2dBackwardDataArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t cg = g.c / g.groups, kg = g.k / g.groups;
  parallel_for(g.n * g.h * g.w, kPixels, [&](int64_t begin, int64_t end) {
    std::vector<double> acc(static_cast<size_t>(g.c));
    for (int64_t p = begin; p < end; ++p) {
      const int64_t w = p % g.w, h = p / g.w % g.h, n = p / (g.w * g.h);
      acc.assign(acc.size(), 0.0);
      for (int64_t r = 0; r < g.r; ++r) {
        const int64_t th = h + g.pad_top - r * g.dilation_h;
        if (th < 0 || th % g.stride_h || th / g.stride_h >= g.oh) continue;
        for (int64_t s = 0; s < g.s; ++s) {
          const int64_t tw = w + g.pad_left - s * g.dilation_w;
          if (tw < 0 || tw % g.stride_w || tw / g.stride_w >= g.ow) continue;
          const int64_t y0 = ((n * g.oh + th / g.stride_h) * g.ow + tw / g.stride_w) * g.k;
          for (int64_t k = 0; k < g.k; ++k) {
            const double dy = static_cast<double>(load(a.dy, a.dy16, y0 + k));
            const float* wk = a.w + ((k * g.r + r) * g.s + s) * cg;
            double* out = acc.data() + k / kg * cg;
            for (int64_t c = 0; c < cg; ++c) out[c] += dy * static_cast<double>(wk[c]);
          }
        }
      }
      for (int64_t c = 0; c < g.c; ++c) {
        const auto v = static_cast<float>(acc[static_cast<size_t>(c)]);
        if (a.dx16) {
          a.dx16[p * g.c + c] = bfloat_bits(v);
        } else {
          a.dx[p * g.c + c] = v;
        }
      }
    }
  });
}

void conv2d_backward_filter(const Conv2dBackwardFilterArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t cg = g.c / g.groups, kg = g.k / g.groups;
  parallel_for(g.k, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> acc(static_cast<size_t>(g.r * g.s * cg));
    for (int64_t k = begin; k < end; ++k) {
      acc.assign(acc.size(), 0.0);
      double bias = 0.0;
      for (int64_t p = 0; p < g.n * g.oh * g.ow; ++p) {
        const int64_t ow = p % g.ow, oh = p / g.ow % g.oh, n = p / (g.ow * g.oh);
        const double dy = static_cast<double>(load(a.dy, a.dy16, p * g.k + k));
        bias += dy;
        for (int64_t r = 0; r < g.r; ++r) {
          const int64_t h = oh * g.stride_h - g.pad_top + r * g.dilation_h;
          if (h < 0 || h >= g.h) continue;
          for (int64_t s = 0; s < g.s; ++s) {
            const int64_t w = ow * g.stride_w - g.pad_left + s * g.dilation_w;
            if (w < 0 || w >= g.w) continue;
            const int64_t x0 = ((n * g.h + h) * g.w + w) * g.c + k / kg * cg;
            double* out = acc.data() + (r * g.s + s) * cg;
            for (int64_t c = 0; c < cg; ++c) out[c] += dy * static_cast<double>(load(a.input, x0 + c));
          }
        }
      }
      for (size_t i = 0; i < acc.size(); ++i) a.dw[static_cast<size_t>(k) * acc.size() + i] = static_cast<float>(acc[i]);
      if (a.dbias) a.dbias[k] = static_cast<float>(bias);
    }
  });
}

}  // namespace detent::cpu::scalar
