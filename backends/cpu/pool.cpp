// Max and average pooling, NHWC. A window that lies wholly in the padding gives -inf (max, index -1) or 0 (average).
#include <limits>

#include "detent/backends/cpu/dense.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/core/math/pool_math.h"

namespace detent::cpu {
namespace {

constexpr int64_t kChannelBlock = 128;

int64_t channel_blocks(const ConvGeometry& g) { return (g.c + kChannelBlock - 1) / kChannelBlock; }

}  // namespace

void max_pool(const PoolArgs& a) {
  const ConvGeometry& g = a.geometry;
  const DenseKernels& k = dense_kernels();
  const int64_t grain = std::max<int64_t>(1, kGrain / 4 / std::max<int64_t>(1, g.c * g.r * g.s));
  parallel_for(g.n * g.oh * g.ow, grain, [&](int64_t begin, int64_t end) {
    constexpr int64_t kTaps = 64;
    const float* tap[kTaps];
    int32_t where[kTaps], unused[kChannelBlock];
    for (int64_t p = begin; p < end; ++p) {
      const int64_t n = p / (g.oh * g.ow);
      const PoolWindow v = pool_window(g, p / g.ow % g.oh, p % g.ow);
      const int64_t columns = v.s1 - v.s0, taps = (v.r1 - v.r0) * columns;
      const auto fill_taps = [&](int64_t first, int64_t count) {
        int64_t r = v.r0 + first / columns, s = v.s0 + first % columns;
        for (int64_t t = 0; t < count; ++t) {
          const int64_t at = (v.h0 + r * g.dilation_h) * g.w + v.w0 + s * g.dilation_w;
          tap[t] = a.x + (n * g.h * g.w + at) * g.c;
          where[t] = static_cast<int32_t>(at);
          if (++s < v.s1) continue;
          s = v.s0;
          ++r;
        }
      };
      if (taps > 0 && taps <= kTaps) fill_taps(0, taps);
      for (int64_t c0 = 0; c0 < g.c; c0 += kChannelBlock) {
        const int64_t cn = std::min(kChannelBlock, g.c - c0), at = p * g.c + c0;
        int32_t* index = a.index ? a.index + at : unused;
        std::fill_n(a.y + at, cn, -std::numeric_limits<float>::infinity());
        std::fill_n(index, cn, -1);
        for (int64_t first = 0; first < taps; first += kTaps) {
          const int64_t count = std::min(kTaps, taps - first);
          if (taps > kTaps) fill_taps(first, count);
          k.max_taps(tap, where, count, c0, cn, a.y + at, index);
        }
      }
    }
  });
}

// Each input pixel gathers from the windows that cover it, in row order.
void max_pool_backward(const PoolBackwardArgs& a) {
  const ConvGeometry& g = a.geometry;
  const DenseKernels& k = dense_kernels();
  parallel_for(g.n * g.h * g.w, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, g.c)), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t n = p / (g.h * g.w), h = p / g.w % g.h, w = p % g.w;
      const int64_t oh1 = std::min(g.oh - 1, (h + g.pad_top) / g.stride_h), ow1 = std::min(g.ow - 1, (w + g.pad_left) / g.stride_w);
      const int64_t oh0 = first_covering_window(h + g.pad_top, (g.r - 1) * g.dilation_h, g.stride_h), ow0 = first_covering_window(w + g.pad_left, (g.s - 1) * g.dilation_w, g.stride_w);
      float* dx = a.dx + p * g.c;
      std::fill_n(dx, g.c, 0.0f);
      for (int64_t oh = oh0; oh <= oh1; ++oh) {
        for (int64_t ow = ow0; ow <= ow1; ++ow) {
          const int64_t y = ((n * g.oh + oh) * g.ow + ow) * g.c;
          k.pick(a.dy + y, a.index + y, static_cast<int32_t>(h * g.w + w), g.c, dx);
        }
      }
    }
  });
}

void average_pool(const PoolArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t grain = std::max<int64_t>(1, kGrain / 4 / std::max<int64_t>(1, g.c * g.r * g.s));
  parallel_for(g.n * g.oh * g.ow, grain, [&](int64_t begin, int64_t end) {
    float row[kChannelBlock];
    for (int64_t p = begin; p < end; ++p) {
      const int64_t n = p / (g.oh * g.ow);
      const PoolWindow v = pool_window(g, p / g.ow % g.oh, p % g.ow);
      const float weight = average_weight(a, v);
      for (int64_t c0 = 0; c0 < g.c; c0 += kChannelBlock) {
        const int64_t cn = std::min(kChannelBlock, g.c - c0);
        float* y = a.y + p * g.c + c0;
        for (int64_t c = 0; c < cn; ++c) y[c] = 0.0f;
        // A sum of row sums loses less than one long sum over a whole feature map.
        for (int64_t r = v.r0; r < v.r1; ++r) {
          for (int64_t c = 0; c < cn; ++c) row[c] = 0.0f;
          const float* x = a.x + ((n * g.h + v.h0 + r * g.dilation_h) * g.w + v.w0) * g.c + c0;
          for (int64_t s = v.s0; s < v.s1; ++s) {
            const float* xs = x + s * g.dilation_w * g.c;
            for (int64_t c = 0; c < cn; ++c) row[c] += xs[c];
          }
          for (int64_t c = 0; c < cn; ++c) y[c] += row[c];
        }
        for (int64_t c = 0; c < cn; ++c) y[c] /= weight;
      }
    }
  });
}

void average_pool_backward(const PoolBackwardArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t blocks = channel_blocks(g);
  parallel_chunks(g.n * blocks, [&](int64_t i) {
    const int64_t n = i / blocks, c0 = i % blocks * kChannelBlock, cn = std::min(kChannelBlock, g.c - c0);
    float* dx = a.dx + n * g.h * g.w * g.c + c0;
    for (int64_t p = 0; p < g.h * g.w; ++p) {
      for (int64_t c = 0; c < cn; ++c) dx[p * g.c + c] = 0.0f;
    }
    for (int64_t p = 0; p < g.oh * g.ow; ++p) {
      const PoolWindow v = pool_window(g, p / g.ow, p % g.ow);
      const float weight = average_weight(a, v);
      const float* dy = a.dy + (n * g.oh * g.ow + p) * g.c + c0;
      for (int64_t r = v.r0; r < v.r1; ++r) {
        for (int64_t s = v.s0; s < v.s1; ++s) {
          float* d = dx + ((v.h0 + r * g.dilation_h) * g.w + v.w0 + s * g.dilation_w) * g.c;
          for (int64_t c = 0; c < cn; ++c) d[c] += dy[c] / weight;
        }
      }
    }
  });
}

}  // namespace detent::cpu
