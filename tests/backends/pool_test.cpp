#include <algorithm>

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

TEST_CASE("average_codes: the codes of QLinearGlobalAveragePool, and the residual of each") {
  struct Case {
    int64_t n, pixels, c;
    Grid from, to;
    bool on_value;
  };
  const Case cases[] = {{2, 49, 700, {0.03f, 0, 0, 255}, {0.013f, 0, 0, 255}, false}, {1, 1, 1, {0.1f, 255, 0, 255}, {0.1f, 255, 0, 255}, false},
                        {3, 64, 65, {0.02f, 128, 0, 255}, {0.0005f, 7, 0, 255}, true}, {2, 4, 513, {0.0421f, 9, 0, 255}, {0.0421f, 9, 0, 255}, false},
                        {2, 7, 130, {0.011f, 60, 0, 255}, {0.02f, 30, 12, 90}, false},  {1, 20000, 3, {0.5f, 12, 0, 255}, {0.4f, 99, 0, 255}, true}};
  for (const Case& t : cases) {
    CAPTURE(t.pixels);
    CAPTURE(t.c);
    std::vector<uint8_t> x;
    for (const float v : random_values(t.n * t.pixels * t.c, 0.0f, 255.99f, 5)) x.push_back(static_cast<uint8_t>(v));
    // A float product is not rounded before the division where the compiler keeps more digits.
    const volatile float whole = t.to.scale * static_cast<float>(t.pixels);
    const float m = t.from.scale / whole, s = t.from.scale / static_cast<float>(t.pixels), z = static_cast<float>(t.to.zero_point);
    const float lo = static_cast<float>(t.to.qmin), hi = static_cast<float>(t.to.qmax);
    std::vector<uint8_t> codes;
    std::vector<int8_t> residual;
    std::vector<float> means;
    for (int64_t i = 0; i < t.n * t.c; ++i) {
      int64_t sum = 0;
      for (int64_t p = 0; p < t.pixels; ++p) sum += int64_t{x[static_cast<size_t>((i / t.c * t.pixels + p) * t.c + i % t.c)]} - t.from.zero_point;
      const float place = static_cast<float>(sum) * m, v = static_cast<float>(sum) * s, q = std::nearbyint(place) + z;
      codes.push_back(static_cast<uint8_t>(std::clamp(q, lo, hi)));
      means.push_back(v);
      const bool inside = t.on_value ? v >= t.to.scale * (lo - z) && v <= t.to.scale * (hi - z) : q >= lo && q <= hi;
      residual.push_back(inside ? static_cast<int8_t>(std::nearbyint(252.0f * (std::nearbyint(place) - place))) : int8_t{-128});
    }
    AverageCodesArgs a{.n = t.n, .pixels = t.pixels, .c = t.c, .x = x.data(), .from = t.from, .epilogue = {}};
    a.epilogue.quantize = true;
    a.epilogue.grid = t.to;
    a.epilogue.mask_on_value = t.on_value;
    const auto run = [&](uint8_t* q) {
      a.epilogue.codes = q;
      kernels().average_codes(a);
    };
    CHECK(run_guarded<uint8_t>(t.n * t.c, run) == codes);
    std::vector<uint8_t> again(codes.size());
    a.epilogue.codes = again.data();
    const std::vector<int8_t> got = run_guarded<int8_t>(t.n * t.c, [&](int8_t* r) {
      a.epilogue.residual = r;
      kernels().average_codes(a);
    });
    CHECK(got == residual);
    CHECK(again == codes);
    a.epilogue = {};
    CHECK(run_guarded<float>(t.n * t.c, [&](float* y) {
            a.epilogue.y = y;
            kernels().average_codes(a);
          }) == means);
  }
}
