// Max and average pooling, NHWC. A window that lies wholly in the padding gives -inf (max, index -1) or 0 (average).
#include <limits>
#include <vector>

#include "detent/backends/cpu/dense.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/core/math/pool_math.h"

namespace detent::cpu {
namespace {

constexpr int64_t kChannelBlock = 128;

constexpr int64_t kTaps = 64;

int64_t channel_blocks(const ConvGeometry& g) { return (g.c + kChannelBlock - 1) / kChannelBlock; }

// Rows of one image, from `first` on.
struct ImageRows {
  const float* x;
  int64_t first;
};

// Rows of images of `row` values each: those of a tensor in f32 where they lie, those of one in bf16 widened into memory of the object's own.
class RowReader {
 public:
  RowReader(const float* x, const uint16_t* x16, int64_t rows_of_image, int64_t row) : x_(x), x16_(x16), rows_(rows_of_image), row_(row) {}
  // At least rows [first, last) of image n.
  ImageRows read(int64_t n, int64_t first, int64_t last) {
    if (!x16_) return {x_ + n * rows_ * row_, 0};
    if (last <= first) return {nullptr, first};
    room_.resize(static_cast<size_t>((last - first) * row_));
    dense_kernels().widen(x16_ + (n * rows_ + first) * row_, room_.data(), (last - first) * row_);
    return {room_.data(), first};
  }

 private:
  const float* x_;
  const uint16_t* x16_;
  int64_t rows_, row_;
  std::vector<float> room_;
};

// Lines of a pool's result, [first, last) of all: fn(line, where the line goes) computes one in f32.
template <class Fn>
void write_lines(float* y, uint16_t* y16, int64_t first, int64_t last, int64_t line_values, Fn&& fn) {
  std::vector<float> line(static_cast<size_t>(y16 ? line_values : 0));
  for (int64_t i = first; i < last; ++i) {
    if (!y16) {
      fn(i, y + i * line_values);
      continue;
    }
    fn(i, line.data());
    dense_kernels().narrow(line.data(), y16 + i * line_values, line_values);
  }
}

// One output pixel of max_pool.
void max_window(const PoolArgs& a, const ImageRows& x, const PoolWindow& v, float* y, int32_t* to_index) {
  const ConvGeometry& g = a.geometry;
  const DenseKernels& k = dense_kernels();
  const float* tap[kTaps];
  int32_t where[kTaps], unused[kChannelBlock];
  const int64_t columns = v.s1 - v.s0, taps = (v.r1 - v.r0) * columns;
  const auto fill_taps = [&](int64_t first, int64_t count) {
    int64_t r = v.r0 + first / columns, s = v.s0 + first % columns;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = (v.h0 + r * g.dilation_h) * g.w + v.w0 + s * g.dilation_w;
      tap[t] = x.x + (at - x.first * g.w) * g.c;
      where[t] = static_cast<int32_t>(at);
      if (++s < v.s1) continue;
      s = v.s0;
      ++r;
    }
  };
  if (taps > 0 && taps <= kTaps) fill_taps(0, taps);
  for (int64_t c0 = 0; c0 < g.c; c0 += kChannelBlock) {
    const int64_t cn = std::min(kChannelBlock, g.c - c0);
    int32_t* index = to_index ? to_index + c0 : unused;
    std::fill_n(y + c0, cn, -std::numeric_limits<float>::infinity());
    std::fill_n(index, cn, -1);
    for (int64_t first = 0; first < taps; first += kTaps) {
      const int64_t count = std::min(kTaps, taps - first);
      if (taps > kTaps) fill_taps(first, count);
      k.max_taps(tap, where, count, c0, cn, y + c0, index);
    }
  }
}

// One line of max_pool_backward: each input pixel gathers from the windows that cover it, in row order. index: of the image.
void gather_windows(const PoolBackwardArgs& a, RowReader& reader, int64_t n, int64_t h, float* dx) {
  const ConvGeometry& g = a.geometry;
  const DenseKernels& k = dense_kernels();
  const int64_t oh0 = first_covering_window(h + g.pad_top, (g.r - 1) * g.dilation_h, g.stride_h), oh1 = std::min(g.oh - 1, (h + g.pad_top) / g.stride_h);
  const ImageRows dy = reader.read(n, oh0, oh1 + 1);
  const int32_t* const index = a.index + n * g.oh * g.ow * g.c;
  for (int64_t w = 0; w < g.w; ++w, dx += g.c) {
    const int64_t ow0 = first_covering_window(w + g.pad_left, (g.s - 1) * g.dilation_w, g.stride_w), ow1 = std::min(g.ow - 1, (w + g.pad_left) / g.stride_w);
    std::fill_n(dx, g.c, 0.0f);
    for (int64_t oh = oh0; oh <= oh1; ++oh) {
      for (int64_t ow = ow0; ow <= ow1; ++ow) k.pick(dy.x + ((oh - dy.first) * g.ow + ow) * g.c, index + (oh * g.ow + ow) * g.c, static_cast<int32_t>(h * g.w + w), g.c, dx);
    }
  }
}

}  // namespace

void max_pool(const PoolArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t line = g.ow * g.c, grain = std::max<int64_t>(1, kGrain / 4 / std::max<int64_t>(1, line * g.r * g.s));
  parallel_for(g.n * g.oh, grain, [&](int64_t begin, int64_t end) {
    RowReader reader(a.x, a.x16, g.h, g.w * g.c);
    write_lines(a.y, a.y16, begin, end, line, [&](int64_t i, float* y) {
      const PoolWindow v = pool_window(g, i % g.oh, 0);
      const ImageRows rows = reader.read(i / g.oh, v.h0 + v.r0 * g.dilation_h, v.h0 + (v.r1 - 1) * g.dilation_h + 1);
      for (int64_t ow = 0; ow < g.ow; ++ow) max_window(a, rows, pool_window(g, i % g.oh, ow), y + ow * g.c, a.index ? a.index + (i * g.ow + ow) * g.c : nullptr);
    });
  });
}

void max_pool_backward(const PoolBackwardArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t line = g.w * g.c;
  parallel_for(g.n * g.h, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, line)), [&](int64_t begin, int64_t end) {
    RowReader reader(a.dy, a.dy16, g.oh, g.ow * g.c);
    write_lines(a.dx, a.dx16, begin, end, line, [&](int64_t i, float* dx) { gather_windows(a, reader, i / g.h, i % g.h, dx); });
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
