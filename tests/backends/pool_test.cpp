#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

namespace {

struct PoolCase {
  int64_t n, h, w, c, r, s, stride, pad, dilation;
  bool include_pad;
  int64_t extra = 0;  // output rows beyond the floor rule (ceil mode)
};

const PoolCase kCases[] = {
    {2, 9, 9, 7, 3, 3, 2, 1, 1, false},  {1, 8, 6, 64, 3, 3, 2, 1, 1, true},  {2, 7, 7, 129, 7, 7, 7, 0, 1, false}, {1, 5, 5, 1, 2, 2, 1, 0, 1, false},
    {3, 6, 6, 128, 2, 2, 2, 0, 1, true}, {1, 11, 10, 17, 3, 2, 1, 1, 2, true}, {1, 7, 7, 5, 3, 3, 2, 0, 1, true, 1},  {1, 112, 112, 3, 112, 112, 1, 0, 1, false},
    {1, 4, 4, 130, 1, 1, 2, 0, 1, false}, {2, 23, 19, 16, 3, 3, 2, 1, 1, false},
};

ConvGeometry geometry(const PoolCase& p) {
  ConvGeometry g;
  g.n = p.n, g.h = p.h, g.w = p.w, g.c = g.k = p.c, g.r = p.r, g.s = p.s;
  g.stride_h = g.stride_w = p.stride;
  g.pad_top = g.pad_left = p.pad;
  g.dilation_h = g.dilation_w = p.dilation;
  g.oh = conv_out_size(p.h, p.r, p.stride, p.pad, p.pad, p.dilation) + p.extra;
  g.ow = conv_out_size(p.w, p.s, p.stride, p.pad, p.pad, p.dilation);
  g.groups = p.c;
  return g;
}

size_t at(const ConvGeometry& g, int64_t n, int64_t h, int64_t w, int64_t c) { return static_cast<size_t>(((n * g.h + h) * g.w + w) * g.c + c); }

// Calls fn(output index, window's pixels in row order as h*W+w, pixels counted with padding).
template <class Fn>
void windows(const PoolCase& p, const ConvGeometry& g, Fn&& fn) {
  for (int64_t o = 0; o < g.n * g.oh * g.ow; ++o) {
    std::vector<int64_t> pixels;
    int64_t padded = 0;
    for (int64_t f = 0; f < g.r * g.s; ++f) {
      const int64_t h = o / g.ow % g.oh * p.stride - p.pad + f / g.s * p.dilation, w = o % g.ow * p.stride - p.pad + f % g.s * p.dilation;
      if (h >= 0 && h < g.h && w >= 0 && w < g.w) pixels.push_back(h * g.w + w);
      padded += h < g.h + p.pad && w < g.w + p.pad;
    }
    fn(o, pixels, p.include_pad ? padded : static_cast<int64_t>(pixels.size()));
  }
}

}  // namespace

TEST_CASE("max_pool: first of the largest wins, NaN wins, index and gradient follow") {
  for (const PoolCase& p : kCases) {
    CAPTURE(p.h);
    CAPTURE(p.c);
    const ConvGeometry g = geometry(p);
    const int64_t nx = g.n * g.h * g.w * g.c, ny = g.n * g.oh * g.ow * g.c;
    std::vector<float> x = awkward_values(nx);
    for (size_t i = 0; i < x.size(); i += 2) x[i] = std::floor(x[i]);  // ties
    std::vector<int32_t> index(static_cast<size_t>(ny));
    const auto y = run_guarded<float>(ny, [&](float* out) { kernels().max_pool({.geometry = g, .x = x.data(), .y = out, .index = index.data()}); });
    const auto y2 = run_guarded<float>(ny, [&](float* out) { kernels().max_pool({.geometry = g, .x = x.data(), .y = out}); });
    CHECK(same_bits(y, y2));
    const std::vector<float> dy = random_values(ny, -1.0f, 1.0f, 3);
    std::vector<double> want_dx(static_cast<size_t>(nx));
    int64_t wrong = 0;
    windows(p, g, [&](int64_t o, const std::vector<int64_t>& pixels, int64_t) {
      for (int64_t c = 0; c < g.c; ++c) {
        int64_t best = -1;
        for (int64_t k : pixels) {
          const float v = x[at(g, o / (g.oh * g.ow), k / g.w, k % g.w, c)];
          const float b = best < 0 ? 0.0f : x[at(g, o / (g.oh * g.ow), best / g.w, best % g.w, c)];
          if (best < 0 || (std::isnan(v) && !std::isnan(b)) || v > b) best = k;
        }
        const size_t i = static_cast<size_t>(o * g.c + c);
        wrong += index[i] != best;
        if (best < 0) {
          wrong += y[i] != -kInf;
          continue;
        }
        const size_t from = at(g, o / (g.oh * g.ow), best / g.w, best % g.w, c);
        wrong += std::isnan(x[from]) ? !std::isnan(y[i]) : y[i] != x[from];
        want_dx[from] += static_cast<double>(dy[i]);
      }
    });
    CHECK(wrong == 0);
    const auto dx = run_guarded<float>(nx, [&](float* out) { kernels().max_pool_backward({.geometry = g, .dy = dy.data(), .dx = out, .index = index.data()}); });
    CHECK(first_far(dx, want_dx, 1e-6) == -1);
  }
}

TEST_CASE("average_pool and its gradient, padding counted or not") {
  for (const PoolCase& p : kCases) {
    CAPTURE(p.h);
    CAPTURE(p.c);
    const ConvGeometry g = geometry(p);
    const int64_t nx = g.n * g.h * g.w * g.c, ny = g.n * g.oh * g.ow * g.c;
    const std::vector<float> x = random_values(nx, -1.0f, 3.0f), dy = random_values(ny, -1.0f, 1.0f, 3);
    std::vector<double> want(static_cast<size_t>(ny)), want_dx(static_cast<size_t>(nx));
    windows(p, g, [&](int64_t o, const std::vector<int64_t>& pixels, int64_t count) {
      for (int64_t c = 0; c < g.c; ++c) {
        for (int64_t k : pixels) {
          const size_t from = at(g, o / (g.oh * g.ow), k / g.w, k % g.w, c), to = static_cast<size_t>(o * g.c + c);
          want[to] += static_cast<double>(x[from]) / static_cast<double>(count);
          want_dx[from] += static_cast<double>(dy[to]) / static_cast<double>(count);
        }
      }
    });
    const auto y = run_guarded<float>(ny, [&](float* out) {
      kernels().average_pool({.geometry = g, .x = x.data(), .y = out, .count_include_pad = p.include_pad, .pad_bottom = p.pad, .pad_right = p.pad});
    });
    const auto dx = run_guarded<float>(nx, [&](float* out) {
      kernels().average_pool_backward({.geometry = g, .dy = dy.data(), .dx = out, .count_include_pad = p.include_pad, .pad_bottom = p.pad, .pad_right = p.pad});
    });
    CHECK(first_far(y, want, 1e-6) == -1);
    CHECK(first_far(dx, want_dx, 1e-6) == -1);
  }
}
