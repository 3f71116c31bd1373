// Pooling and resizing, NHWC; one thread for each element of the result, gathered in the CPU's order. A window that lies wholly in the padding gives -inf
// (max, index -1) or 0 (average).
#include <algorithm>
#include <limits>
#include <vector>

#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"
#include "detent/core/epilogue.h"
#include "detent/core/math/pool_math.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

template <class Index>
struct MaxPool {
  PoolArgs a;
  DETENT_HD void operator()(int64_t i) const {
    const ConvGeometry& g = a.geometry;
    const Pixel p = pixel_at<Index>(i, g.oh, g.ow, g.c);
    const PoolWindow v = pool_window(g, p.h, p.w);
    float best = -std::numeric_limits<float>::infinity();
    int32_t index = -1;
    for (int64_t r = v.r0; r < v.r1; ++r) {
      for (int64_t s = v.s0; s < v.s1; ++s) {
        const int64_t at = (v.h0 + r * g.dilation_h) * g.w + v.w0 + s * g.dilation_w;
        const float x = a.x[(p.n * g.h * g.w + at) * g.c + p.c];
        if (beats_maximum(x, best, index)) {
          best = x;
          index = static_cast<int32_t>(at);
        }
      }
    }
    a.y[i] = best;
    if (a.index) a.index[i] = index;
  }
};

// The windows that may cover a pixel.
struct Cover {
  int64_t oh0, oh1, ow0, ow1;
};

DETENT_HD Cover cover_of(const ConvGeometry& g, int64_t h, int64_t w) {
  const int64_t oh1 = (h + g.pad_top) / g.stride_h, ow1 = (w + g.pad_left) / g.stride_w;
  return {first_covering_window(h + g.pad_top, (g.r - 1) * g.dilation_h, g.stride_h), oh1 < g.oh ? oh1 : g.oh - 1,
          first_covering_window(w + g.pad_left, (g.s - 1) * g.dilation_w, g.stride_w), ow1 < g.ow ? ow1 : g.ow - 1};
}

template <class Index>
struct MaxPoolBackward {
  PoolBackwardArgs a;
  DETENT_HD void operator()(int64_t i) const {
    const ConvGeometry& g = a.geometry;
    const Pixel p = pixel_at<Index>(i, g.h, g.w, g.c);
    const Cover v = cover_of(g, p.h, p.w);
    const int32_t here = static_cast<int32_t>(p.h * g.w + p.w);
    float sum = 0.0f;
    for (int64_t oh = v.oh0; oh <= v.oh1; ++oh) {
      for (int64_t ow = v.ow0; ow <= v.ow1; ++ow) {
        const int64_t y = ((p.n * g.oh + oh) * g.ow + ow) * g.c + p.c;
        sum += a.index[y] == here ? a.dy[y] : 0.0f;
      }
    }
    a.dx[i] = sum;
  }
};

template <class Index>
struct AveragePool {
  PoolArgs a;
  DETENT_HD void operator()(int64_t i) const {
    const ConvGeometry& g = a.geometry;
    const Pixel p = pixel_at<Index>(i, g.oh, g.ow, g.c);
    const PoolWindow v = pool_window(g, p.h, p.w);
    float sum = 0.0f;
    // A sum of row sums loses less than one long sum over a whole feature map.
    for (int64_t r = v.r0; r < v.r1; ++r) {
      const float* x = a.x + ((p.n * g.h + v.h0 + r * g.dilation_h) * g.w + v.w0) * g.c + p.c;
      float row = 0.0f;
      for (int64_t s = v.s0; s < v.s1; ++s) row += x[s * g.dilation_w * g.c];
      sum += row;
    }
    a.y[i] = sum / average_weight(a, v);
  }
};

template <class Index>
struct AverageCodes {
  AverageCodesArgs a;
  DETENT_HD void operator()(int64_t i) const {
    const Index image = static_cast<Index>(i) / static_cast<Index>(a.c), channel = static_cast<Index>(i) % static_cast<Index>(a.c);
    const uint8_t* const x = a.x + static_cast<int64_t>(image) * a.pixels * a.c + static_cast<int64_t>(channel);
    const Grid from = present(a.from, a.resident);
    const Epilogue e = settled(a.epilogue);
    int32_t sum = 0;
    for (int64_t p = 0; p < a.pixels; ++p) sum += x[p * a.c] - from.zero_point;
    write_one(e, i, finish_integer(e, integer_bounds(e), sum, average_scale(from.scale, e.grid.scale, a.pixels)));
  }
};

// True when the window that starts at `start` has a filter position at `at`.
DETENT_HD bool covers(int64_t at, int64_t start, int64_t window, int64_t dilation) {
  const int64_t d = at - start;
  return d >= 0 && d % dilation == 0 && d / dilation < window;
}

template <class Index>
struct AveragePoolBackward {
  PoolBackwardArgs a;
  DETENT_HD void operator()(int64_t i) const {
    const ConvGeometry& g = a.geometry;
    const Pixel p = pixel_at<Index>(i, g.h, g.w, g.c);
    const Cover v = cover_of(g, p.h, p.w);
    float sum = 0.0f;
    for (int64_t oh = v.oh0; oh <= v.oh1; ++oh) {
      if (!covers(p.h + g.pad_top, oh * g.stride_h, g.r, g.dilation_h)) continue;
      for (int64_t ow = v.ow0; ow <= v.ow1; ++ow) {
        if (!covers(p.w + g.pad_left, ow * g.stride_w, g.s, g.dilation_w)) continue;
        sum += a.dy[((p.n * g.oh + oh) * g.ow + ow) * g.c + p.c] / average_weight(a, pool_window(g, oh, ow));
      }
    }
    a.dx[i] = sum;
  }
};

std::vector<ResizeTap> taps(const ResizeArgs& a, int64_t in, int64_t out) {
  std::vector<ResizeTap> t(static_cast<size_t>(out));
  for (int64_t i = 0; i < out; ++i) t[static_cast<size_t>(i)] = resize_tap(a.mode, a.coordinates, a.nearest_floor, i, in, out);
  return t;
}

template <class Index>
struct Resize {
  ResizeArgs a;
  const ResizeTap* th;
  const ResizeTap* tw;
  DETENT_HD void operator()(int64_t i) const {
    const Pixel p = pixel_at<Index>(i, a.oh, a.ow, a.c);
    const ResizeTap v = th[p.h], u = tw[p.w];
    const float* row0 = a.x + (p.n * a.h + v.i0) * a.w * a.c + p.c;
    const float* row1 = a.x + (p.n * a.h + v.i1) * a.w * a.c + p.c;
    if (a.mode == ResizeMode::nearest) {
      a.y[i] = row0[u.i0 * a.c];
      return;
    }
    const float top = row0[u.i0 * a.c] * (1.0f - u.w1) + row0[u.i1 * a.c] * u.w1;
    const float bottom = row1[u.i0 * a.c] * (1.0f - u.w1) + row1[u.i1 * a.c] * u.w1;
    a.y[i] = top * (1.0f - v.w1) + bottom * v.w1;
  }
};

// The results [first, last] that read an input position.
struct Readers {
  int32_t first, last;
};

std::vector<Readers> readers(const std::vector<ResizeTap>& taps, int64_t in) {
  std::vector<Readers> r(static_cast<size_t>(in), Readers{static_cast<int32_t>(taps.size()), -1});
  for (size_t i = 0; i < taps.size(); ++i) {
    for (const int64_t at : {taps[i].i0, taps[i].i1}) {
      Readers& v = r[static_cast<size_t>(at)];
      v.first = std::min(v.first, static_cast<int32_t>(i));
      v.last = std::max(v.last, static_cast<int32_t>(i));
    }
  }
  return r;
}

template <class Index>
struct ResizeBackward {
  ResizeArgs a;
  const ResizeTap* th;
  const ResizeTap* tw;
  const Readers* rh;
  const Readers* rw;
  DETENT_HD void operator()(int64_t i) const {
    const Pixel p = pixel_at<Index>(i, a.h, a.w, a.c);
    float sum = 0.0f;
    for (int64_t oh = rh[p.h].first; oh <= rh[p.h].last; ++oh) {
      const ResizeTap v = th[oh];
      for (int64_t ow = rw[p.w].first; ow <= rw[p.w].last; ++ow) {
        const ResizeTap u = tw[ow];
        const float g = a.x[((p.n * a.oh + oh) * a.ow + ow) * a.c + p.c];
        if (v.i0 == p.h && u.i0 == p.w) sum += (1.0f - v.w1) * (1.0f - u.w1) * g;
        if (a.mode == ResizeMode::nearest) continue;
        if (v.i0 == p.h && u.i1 == p.w) sum += (1.0f - v.w1) * u.w1 * g;
        if (v.i1 == p.h && u.i0 == p.w) sum += v.w1 * (1.0f - u.w1) * g;
        if (v.i1 == p.h && u.i1 == p.w) sum += v.w1 * u.w1 * g;
      }
    }
    a.y[i] = sum;
  }
};

}  // namespace

void max_pool(const PoolArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t n = g.n * g.oh * g.ow * g.c;
  with_index(n, [&]<class Index>() { elements("max_pool", n, MaxPool<Index>{a}); });
}

void max_pool_backward(const PoolBackwardArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t n = g.n * g.h * g.w * g.c;
  with_index(n, [&]<class Index>() { elements("max_pool_backward", n, MaxPoolBackward<Index>{a}); });
}

void average_pool(const PoolArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t n = g.n * g.oh * g.ow * g.c;
  with_index(n, [&]<class Index>() { elements("average_pool", n, AveragePool<Index>{a}); });
}

void average_pool_backward(const PoolBackwardArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t n = g.n * g.h * g.w * g.c;
  with_index(n, [&]<class Index>() { elements("average_pool_backward", n, AveragePoolBackward<Index>{a}); });
}

void average_codes(const AverageCodesArgs& a) {
  with_index(a.n * a.pixels * a.c, [&]<class Index>() { elements("average_codes", a.n * a.c, AverageCodes<Index>{a}); });
}

void resize(const ResizeArgs& a) {
  const std::vector<ResizeTap> th = taps(a, a.h, a.oh), tw = taps(a, a.w, a.ow);
  const Uploaded<ResizeTap> uh(th.data(), a.oh), uw(tw.data(), a.ow);
  const int64_t n = a.n * a.oh * a.ow * a.c;
  with_index(n, [&]<class Index>() { elements("resize", n, Resize<Index>{a, uh.get(), uw.get()}); });
}

void resize_backward(const ResizeArgs& a) {
  const std::vector<ResizeTap> th = taps(a, a.h, a.oh), tw = taps(a, a.w, a.ow);
  const std::vector<Readers> rh = readers(th, a.h), rw = readers(tw, a.w);
  const Uploaded<ResizeTap> uh(th.data(), a.oh), uw(tw.data(), a.ow);
  const Uploaded<Readers> vh(rh.data(), a.h), vw(rw.data(), a.w);
  const int64_t n = a.n * a.h * a.w * a.c;
  with_index(n, [&]<class Index>() { elements("resize_backward", n, ResizeBackward<Index>{a, uh.get(), uw.get(), vh.get(), vw.get()}); });
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
