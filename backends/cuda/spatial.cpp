// Pooling and resizing, NHWC; one thread for each element of the result (pools: for four channels), gathered in the CPU's order. A window that lies wholly in the padding gives -inf
// (max, index -1) or 0 (average).
#include <algorithm>
#include <limits>
#include <vector>

#include "detent/backends/cuda/bf16.h"
#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"
#include "detent/core/epilogue.h"
#include "detent/core/math/pool_math.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

// A pool's geometry in 32 bits. Each thread has `Width` neighbouring channels of a pixel.
struct PoolShape {
  int32_t h, w, c, r, s, oh, ow, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  FastDiv by_stride_h, by_stride_w;
  explicit PoolShape(const ConvGeometry& g) : by_stride_h(g.stride_h), by_stride_w(g.stride_w) {
    const auto narrow = [](int64_t v) { return static_cast<int32_t>(v); };
    h = narrow(g.h), w = narrow(g.w), c = narrow(g.c), r = narrow(g.r), s = narrow(g.s), oh = narrow(g.oh), ow = narrow(g.ow);
    stride_h = narrow(g.stride_h), stride_w = narrow(g.stride_w), pad_top = narrow(g.pad_top), pad_left = narrow(g.pad_left);
    dilation_h = narrow(g.dilation_h), dilation_w = narrow(g.dilation_w);
  }
  /// Where a channel of an image begins, and the distance of pixels from there.
  DETENT_HD int64_t image(const Pixel& p, int width) const { return p.n * h * w * c + p.c * width; }
  DETENT_HD int64_t result(const Pixel& p, int width) const { return p.n * oh * ow * c + p.c * width; }
  DETENT_HD int64_t from(int32_t pixel) const { return static_cast<int64_t>(pixel) * c; }
};

template <class T, int Width>
struct MaxPool {
  PoolShape g;
  PixelIndex results;
  const T* x;
  T* y;
  int32_t* index;
  DETENT_HD void operator()(int64_t i) const {
    const Pixel p = results.at(i);
    const auto v = pool_window(g, p.h, p.w);
    const T* const image = x + g.image(p, Width);
    Some<float, Width> best;
    Some<int32_t, Width> winner;
    DETENT_UNROLL
    for (int k = 0; k < Width; ++k) best.v[k] = -std::numeric_limits<float>::infinity(), winner.v[k] = -1;
    for (int32_t r = v.r0; r < v.r1; ++r) {
      for (int32_t s = v.s0; s < v.s1; ++s) {
        const int32_t at = (v.h0 + r * g.dilation_h) * g.w + v.w0 + s * g.dilation_w;
        const auto here = values_at<Width>(image + g.from(at));
        DETENT_UNROLL
        for (int k = 0; k < Width; ++k) {
          if (beats_maximum(here.v[k], best.v[k], winner.v[k])) best.v[k] = here.v[k], winner.v[k] = at;
        }
      }
    }
    put_values(y + i * Width, best);
    if (index) *reinterpret_cast<Some<int32_t, Width>*>(index + i * Width) = winner;
  }
};

// The windows that may cover a pixel.
struct Cover {
  int32_t oh0, oh1, ow0, ow1;
};

DETENT_HD Cover cover_of(const PoolShape& g, int32_t h, int32_t w) {
  const auto by_h = [&](int32_t n) { return g.by_stride_h.divide(n); };
  const auto by_w = [&](int32_t n) { return g.by_stride_w.divide(n); };
  const int32_t oh1 = by_h(h + g.pad_top), ow1 = by_w(w + g.pad_left);
  return {first_covering_window(h + g.pad_top, (g.r - 1) * g.dilation_h, g.stride_h, by_h), oh1 < g.oh ? oh1 : g.oh - 1,
          first_covering_window(w + g.pad_left, (g.s - 1) * g.dilation_w, g.stride_w, by_w), ow1 < g.ow ? ow1 : g.ow - 1};
}

template <class T, int Width>
struct MaxPoolBackward {
  PoolShape g;
  PixelIndex pixels;
  const T* dy;
  const int32_t* index;
  T* dx;
  DETENT_HD void operator()(int64_t i) const {
    const Pixel p = pixels.at(i);
    const Cover v = cover_of(g, p.h, p.w);
    const int32_t here = p.h * g.w + p.w;
    const int64_t first = g.result(p, Width);
    Some<float, Width> sum = {};
    for (int32_t oh = v.oh0; oh <= v.oh1; ++oh) {
      for (int32_t ow = v.ow0; ow <= v.ow1; ++ow) {
        const int64_t at = first + g.from(oh * g.ow + ow);
        const auto winner = *reinterpret_cast<const Some<int32_t, Width>*>(index + at);
        const auto d = values_at<Width>(dy + at);
        DETENT_UNROLL
        for (int k = 0; k < Width; ++k) sum.v[k] += winner.v[k] == here ? d.v[k] : 0.0f;
      }
    }
    put_values(dx + i * Width, sum);
  }
};

// What average_weight wants to know.
struct AverageShape {
  PoolShape geometry;
  bool count_include_pad;
  int32_t pad_bottom, pad_right;
  template <class Args>
  explicit AverageShape(const Args& a)
      : geometry(a.geometry), count_include_pad(a.count_include_pad), pad_bottom(static_cast<int32_t>(a.pad_bottom)), pad_right(static_cast<int32_t>(a.pad_right)) {}
};

template <int Width>
struct AveragePool {
  AverageShape shape;
  PixelIndex results;
  const float* x;
  float* y;
  DETENT_HD void operator()(int64_t i) const {
    const PoolShape& g = shape.geometry;
    const Pixel p = results.at(i);
    const auto v = pool_window(g, p.h, p.w);
    const float* const image = x + g.image(p, Width);
    Some<float, Width> sum = {};
    // A sum of row sums loses less than one long sum over a whole feature map.
    for (int32_t r = v.r0; r < v.r1; ++r) {
      float row[Width] = {};
      for (int32_t s = v.s0; s < v.s1; ++s) {
        const auto here = values_at<Width>(image + g.from((v.h0 + r * g.dilation_h) * g.w + v.w0 + s * g.dilation_w));
        DETENT_UNROLL
        for (int k = 0; k < Width; ++k) row[k] += here.v[k];
      }
      DETENT_UNROLL
      for (int k = 0; k < Width; ++k) sum.v[k] += row[k];
    }
    const float weight = average_weight(shape, v);
    DETENT_UNROLL
    for (int k = 0; k < Width; ++k) sum.v[k] /= weight;
    put_values(y + i * Width, sum);
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
DETENT_HD bool covers(int32_t at, int32_t start, int32_t window, int32_t dilation) {
  const int32_t d = at - start, position = divided_by_dilation(d, dilation);
  return d >= 0 && position * dilation == d && position < window;
}

template <int Width>
struct AveragePoolBackward {
  AverageShape shape;
  PixelIndex pixels;
  const float* dy;
  float* dx;
  DETENT_HD void operator()(int64_t i) const {
    const PoolShape& g = shape.geometry;
    const Pixel p = pixels.at(i);
    const Cover v = cover_of(g, p.h, p.w);
    const int64_t first = g.result(p, Width);
    Some<float, Width> sum = {};
    for (int32_t oh = v.oh0; oh <= v.oh1; ++oh) {
      if (!covers(p.h + g.pad_top, oh * g.stride_h, g.r, g.dilation_h)) continue;
      for (int32_t ow = v.ow0; ow <= v.ow1; ++ow) {
        if (!covers(p.w + g.pad_left, ow * g.stride_w, g.s, g.dilation_w)) continue;
        const auto d = values_at<Width>(dy + first + g.from(oh * g.ow + ow));
        const float weight = average_weight(shape, pool_window(g, oh, ow));
        DETENT_UNROLL
        for (int k = 0; k < Width; ++k) sum.v[k] += d.v[k] / weight;
      }
    }
    put_values(dx + i * Width, sum);
  }
};

std::vector<ResizeTap> taps(const ResizeArgs& a, int64_t in, int64_t out) {
  std::vector<ResizeTap> t(static_cast<size_t>(out));
  for (int64_t i = 0; i < out; ++i) t[static_cast<size_t>(i)] = resize_tap(a.mode, a.coordinates, a.nearest_floor, i, in, out);
  return t;
}

struct Resize {
  ResizeArgs a;
  PixelIndex results;
  const ResizeTap* th;
  const ResizeTap* tw;
  DETENT_HD void operator()(int64_t i) const {
    const Pixel p = results.at(i);
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

struct ResizeBackward {
  ResizeArgs a;
  PixelIndex pixels;
  const ResizeTap* th;
  const ResizeTap* tw;
  const Readers* rh;
  const Readers* rw;
  DETENT_HD void operator()(int64_t i) const {
    const Pixel p = pixels.at(i);
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

// Calls fn.template operator()<4 or 1>(geometry).
template <class Fn>
void with_width(const ConvGeometry& g, bool aligned, Fn&& fn) {
  g.c % 4 == 0 && aligned ? fn.template operator()<4>(g) : fn.template operator()<1>(g);
}

}  // namespace

template <class T>
static void max_pool(const PoolArgs& a, const T* x, T* y) {
  with_width(a.geometry, whole_fours(x) && whole_fours(y) && aligned16(a.index), [&]<int Width>(const ConvGeometry& g) {
    elements("max_pool", g.n * g.oh * g.ow * g.c / Width, MaxPool<T, Width>{PoolShape(g), {g.n, g.oh, g.ow, g.c / Width}, x, y, a.index});
  });
}

template <class T>
static void max_pool_backward(const PoolBackwardArgs& a, const T* dy, T* dx) {
  with_width(a.geometry, whole_fours(dy) && aligned16(a.index) && whole_fours(dx), [&]<int Width>(const ConvGeometry& g) {
    elements("max_pool_backward", g.n * g.h * g.w * g.c / Width, MaxPoolBackward<T, Width>{PoolShape(g), {g.n, g.h, g.w, g.c / Width}, dy, a.index, dx});
  });
}

void max_pool(const PoolArgs& a) { a.x16 ? max_pool(a, a.x16, a.y16) : max_pool(a, a.x, a.y); }
void max_pool_backward(const PoolBackwardArgs& a) { a.dy16 ? max_pool_backward(a, a.dy16, a.dx16) : max_pool_backward(a, a.dy, a.dx); }

void average_pool(const PoolArgs& a) {
  with_width(a.geometry, aligned16(a.x) && aligned16(a.y), [&]<int Width>(const ConvGeometry& g) {
    elements("average_pool", g.n * g.oh * g.ow * g.c / Width, AveragePool<Width>{AverageShape(a), {g.n, g.oh, g.ow, g.c / Width}, a.x, a.y});
  });
}

void average_pool_backward(const PoolBackwardArgs& a) {
  with_width(a.geometry, aligned16(a.dy) && aligned16(a.dx), [&]<int Width>(const ConvGeometry& g) {
    elements("average_pool_backward", g.n * g.h * g.w * g.c / Width, AveragePoolBackward<Width>{AverageShape(a), {g.n, g.h, g.w, g.c / Width}, a.dy, a.dx});
  });
}

void average_codes(const AverageCodesArgs& a) {
  with_index(a.n * a.pixels * a.c, [&]<class Index>() { elements("average_codes", a.n * a.c, AverageCodes<Index>{a}); });
}

void resize(const ResizeArgs& a) {
  const std::vector<ResizeTap> th = taps(a, a.h, a.oh), tw = taps(a, a.w, a.ow);
  const Uploaded<ResizeTap> uh(th.data(), a.oh), uw(tw.data(), a.ow);
  const int64_t n = a.n * a.oh * a.ow * a.c;
  elements("resize", n, Resize{a, {a.n, a.oh, a.ow, a.c}, uh.get(), uw.get()});
}

void resize_backward(const ResizeArgs& a) {
  const std::vector<ResizeTap> th = taps(a, a.h, a.oh), tw = taps(a, a.w, a.ow);
  const std::vector<Readers> rh = readers(th, a.h), rw = readers(tw, a.w);
  const Uploaded<ResizeTap> uh(th.data(), a.oh), uw(tw.data(), a.ow);
  const Uploaded<Readers> vh(rh.data(), a.h), vw(rw.data(), a.w);
  const int64_t n = a.n * a.h * a.w * a.c;
  elements("resize_backward", n, ResizeBackward{a, {a.n, a.h, a.w, a.c}, uh.get(), uw.get(), vh.get(), vw.get()});
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
