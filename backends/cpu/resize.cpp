// Nearest and bilinear resize of [n,h,w,c].
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {
namespace {

std::vector<ResizeTap> taps(const ResizeArgs& a, int64_t in, int64_t out) {
  std::vector<ResizeTap> t(static_cast<size_t>(out));
  for (int64_t i = 0; i < out; ++i) t[static_cast<size_t>(i)] = resize_tap(a.mode, a.coordinates, a.nearest_floor, i, in, out);
  return t;
}

}  // namespace

void resize(const ResizeArgs& a) {
  const std::vector<ResizeTap> th = taps(a, a.h, a.oh), tw = taps(a, a.w, a.ow);
  parallel_for(a.n * a.oh, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, a.ow * a.c)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ResizeTap& v = th[static_cast<size_t>(i % a.oh)];
      const float* row0 = a.x + (i / a.oh * a.h + v.i0) * a.w * a.c;
      const float* row1 = a.x + (i / a.oh * a.h + v.i1) * a.w * a.c;
      for (int64_t j = 0; j < a.ow; ++j) {
        const ResizeTap& u = tw[static_cast<size_t>(j)];
        float* y = a.y + (i * a.ow + j) * a.c;
        const float *p00 = row0 + u.i0 * a.c, *p01 = row0 + u.i1 * a.c, *p10 = row1 + u.i0 * a.c, *p11 = row1 + u.i1 * a.c;
        if (a.mode == ResizeMode::nearest) {
          for (int64_t c = 0; c < a.c; ++c) y[c] = p00[c];
          continue;
        }
        for (int64_t c = 0; c < a.c; ++c) {
          const float top = p00[c] * (1.0f - u.w1) + p01[c] * u.w1;
          const float bottom = p10[c] * (1.0f - u.w1) + p11[c] * u.w1;
          y[c] = top * (1.0f - v.w1) + bottom * v.w1;
        }
      }
    }
  });
}

void resize_backward(const ResizeArgs& a) {
  const std::vector<ResizeTap> th = taps(a, a.h, a.oh), tw = taps(a, a.w, a.ow);
  // One task per image and block of channels: output pixels add in row order whatever the thread count.
  constexpr int64_t kBlock = 64;
  const int64_t blocks = (a.c + kBlock - 1) / kBlock;
  parallel_chunks(a.n * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, c0 = task % blocks * kBlock, cn = std::min(kBlock, a.c - c0);
    float* dx = a.y + n * a.h * a.w * a.c + c0;
    const float* dy = a.x + n * a.oh * a.ow * a.c + c0;
    for (int64_t p = 0; p < a.h * a.w; ++p) {
      for (int64_t c = 0; c < cn; ++c) dx[p * a.c + c] = 0.0f;
    }
    for (int64_t i = 0; i < a.oh; ++i) {
      for (int64_t j = 0; j < a.ow; ++j) {
        const ResizeTap &v = th[static_cast<size_t>(i)], &u = tw[static_cast<size_t>(j)];
        const float* g = dy + (i * a.ow + j) * a.c;
        const auto add = [&](int64_t h, int64_t w, float weight) {
          float* d = dx + (h * a.w + w) * a.c;
          for (int64_t c = 0; c < cn; ++c) d[c] += weight * g[c];
        };
        add(v.i0, u.i0, (1.0f - v.w1) * (1.0f - u.w1));
        if (a.mode == ResizeMode::nearest) continue;
        add(v.i0, u.i1, (1.0f - v.w1) * u.w1);
        add(v.i1, u.i0, v.w1 * (1.0f - u.w1));
        add(v.i1, u.i1, v.w1 * u.w1);
      }
    }
  });
}

}  // namespace detent::cpu
