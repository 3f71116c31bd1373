// Convolutions and gemm of every engine against sums in double over an explicit list of products (output, input, weight): all three
// directions read the same list, so none repeats the loops of a kernel.
#include <algorithm>
#include <string>

#include "conv_cases.h"
#include "conv_engines.h"
#include "detent/core/error.h"
#include "kernel_support.h"

using namespace detent;
using test::ConvEngine;
using test::for_each_product;
using test::geometry;
using test::kConvCases;

namespace {

struct Sums {
  std::vector<double> value, magnitude;
  std::vector<int64_t> terms;
  explicit Sums(int64_t n) : value(static_cast<size_t>(n)), magnitude(static_cast<size_t>(n)), terms(static_cast<size_t>(n)) {}
  void add(int64_t i, double a, double b) {
    value[static_cast<size_t>(i)] += a * b;
    magnitude[static_cast<size_t>(i)] += std::abs(a * b);
    ++terms[static_cast<size_t>(i)];
  }
  // First element further from the exact sum than rounding both factors (relatively, by `rounding`) and n terms in any order allows, or -1.
  int64_t first_far(const std::vector<float>& got, double rounding = 0.0) const {
    if (got.size() != value.size()) return 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double allowed = static_cast<double>(terms[i] + 2) * 6e-8 + rounding * (2.0 + rounding);
      if (!(std::abs(static_cast<double>(got[i]) - value[i]) <= allowed * magnitude[i])) return static_cast<int64_t>(i);
    }
    return -1;
  }
};

// Runs fill at several thread counts where that matters.
template <class T, class Fn>
std::vector<T> run(const ConvEngine& e, int64_t n, Fn&& fill) {
  if (e.threads) return test::run_guarded<T>(n, fill);
  test::Guarded<T> out(n);
  fill(out.data());
  CHECK(out.intact());
  return out.values();
}

// Values at an address that is aligned to a float and to nothing more.
class Misaligned {
 public:
  explicit Misaligned(const std::vector<float>& v) : all_(v.size() + 17) {
    while (reinterpret_cast<uintptr_t>(all_.data() + shift_) % 64 != 4) ++shift_;
    std::copy(v.begin(), v.end(), all_.begin() + static_cast<std::ptrdiff_t>(shift_));
  }
  const float* data() const { return all_.data() + shift_; }
  float operator[](int64_t i) const { return data()[i]; }

 private:
  std::vector<float> all_;
  size_t shift_ = 0;
};

}  // namespace

TEST_CASE("convolutions agree with the list of products") {
  for (const test::ConvCase& t : kConvCases) {
    const ConvGeometry g = geometry(t);
    const int64_t nx = g.n * g.h * g.w * g.c, ny = g.n * g.oh * g.ow * g.k, nw = g.k * g.r * g.s * (g.c / g.groups);
    const Misaligned x(test::random_values(nx, -1, 1, 1)), w(test::random_values(nw, -1, 1, 2)), dy(test::random_values(ny, -1, 1, 3)), bias(test::random_values(g.k, -1, 1, 4));
    Sums y(ny), dx(nx), dw(nw), db(g.k);
    for_each_product(g, [&](int64_t o, int64_t i, int64_t f) {
      y.add(o, x[i], w[f]);
      dx.add(i, dy[o], w[f]);
      dw.add(f, dy[o], x[i]);
    });
    for (int64_t i = 0; i < ny; ++i) {
      y.add(i, bias[i % g.k], 1.0);
      db.add(i % g.k, dy[i], 1.0);
    }
    for (const ConvEngine& e : test::conv_engines()) {
      CAPTURE(t.name);
      CAPTURE(e.name);
      Conv2dArgs f{g, {}, w.data(), {}};
      f.input.x = x.data();
      f.epilogue.bias = bias.data();
      CHECK(y.first_far(run<float>(e, ny, [&](float* out) {
              f.epilogue.y = out;
              e.conv2d(f);
            }),
                        e.rounding) == -1);
      CHECK(dx.first_far(run<float>(e, nx, [&](float* out) { e.backward_data({g, dy.data(), w.data(), out}); }), e.rounding) == -1);
      Conv2dBackwardFilterArgs b{g, f.input, dy.data(), nullptr, nullptr};
      test::Guarded<float> dbias(g.k);
      b.dbias = dbias.data();
      CHECK(dw.first_far(run<float>(e, nw, [&](float* out) {
              b.dw = out;
              e.backward_filter(b);
            }),
                         e.rounding) == -1);
      CHECK(dbias.intact());
      CHECK(db.first_far(dbias.values()) == -1);
    }
  }
}

TEST_CASE("an input of codes is the same values") {
  const Grid grid{0.037f, 117, 0, 255};
  for (const test::ConvCase& t : kConvCases) {
    const ConvGeometry g = geometry(t);
    const int64_t nx = g.n * g.h * g.w * g.c, ny = g.n * g.oh * g.ow * g.k, nw = g.k * g.r * g.s * (g.c / g.groups);
    std::vector<uint8_t> codes(static_cast<size_t>(nx));
    std::vector<float> x(codes.size());
    Rng rng(5, 0);
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<uint8_t>(rng.uniform(0.0f, 255.99f));
      x[i] = grid.scale * (static_cast<float>(codes[i]) - 117.0f);
    }
    const std::vector<float> w = test::random_values(nw, -1, 1, 2), dy = test::random_values(ny, -1, 1, 3);
    for (const ConvEngine& e : test::conv_engines()) {
      CAPTURE(t.name);
      CAPTURE(e.name);
      ConvInput dense, coded;
      dense.x = x.data();
      coded.codes = codes.data();
      coded.grid = grid;
      const auto forward = [&](const ConvInput& in) {
        return run<float>(e, ny, [&](float* out) {
          Conv2dArgs a{g, in, w.data(), {}};
          a.epilogue.y = out;
          e.conv2d(a);
        });
      };
      const auto filter = [&](const ConvInput& in) {
        return run<float>(e, nw, [&](float* out) { e.backward_filter({g, in, dy.data(), out, nullptr}); });
      };
      if (e.coded_bits) {
        CHECK(test::same_bits(forward(dense), forward(coded)));
        CHECK(test::same_bits(filter(dense), filter(coded)));
      } else {
        Sums y(ny), dw(nw);
        for_each_product(g, [&](int64_t o, int64_t i, int64_t f) {
          y.add(o, x[static_cast<size_t>(i)], w[static_cast<size_t>(f)]);
          dw.add(f, dy[static_cast<size_t>(o)], x[static_cast<size_t>(i)]);
        });
        CHECK(y.first_far(forward(coded), e.rounding) == -1);
        CHECK(dw.first_far(filter(coded), e.rounding) == -1);
      }
    }
  }
}

TEST_CASE("the epilogue is scale, bias, addend, clamp, quantize as quant_math.h has them") {
  struct Setting {
    float lo, hi;
    Grid grid;
  };
  const Setting settings[] = {
      {-test::kInf, test::kInf, {0.05f, 128, 0, 255}}, {0.0f, test::kInf, {0.031f, 0, 0, 255}}, {0.0f, 6.0f, {6.0f / 255.0f, 0, 0, 255}}, {-1.0f, 1.0f, {0.3f, 7, 0, 15}}, {0.0f, test::kInf, {0.5f, 3, 1, 9}}};
  const test::ConvCase cases[] = {{"pointwise", 1, 6, 7, 20, 83, 1, 1}, {"3x3", 1, 6, 5, 130, 40, 3, 3, 1, 1, 1, 1, 1, 1}, {"depthwise", 1, 6, 7, 21, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 21}};
  for (const test::ConvCase& t : cases) {
    const ConvGeometry g = geometry(t);
    const int64_t nx = g.n * g.h * g.w * g.c, ny = g.n * g.oh * g.ow * g.k;
    std::vector<float> x = test::random_values(nx, -1, 1, 1);
    x[5] = test::kNan;
    x[static_cast<size_t>(nx) - 1] = 3e38f;
    const std::vector<float> w = test::random_values(g.k * g.r * g.s * (g.c / g.groups), -1, 1, 2), bias = test::random_values(g.k, -2, 2, 3),
                             scale = test::random_values(g.k, -1.5, 1.5, 4), addend = test::random_values(ny, -2, 2, 5);
    for (const ConvEngine& e : test::conv_engines()) {
      CAPTURE(t.name);
      CAPTURE(e.name);
      Conv2dArgs a{g, {}, w.data(), {}};
      a.input.x = x.data();
      a.epilogue.clamp_max = std::numeric_limits<float>::max();  // changes nothing, but keeps the product from a library
      const std::vector<float> plain = run<float>(e, ny, [&](float* out) {
        a.epilogue.y = out;
        e.conv2d(a);
      });
      a.epilogue.bias = bias.data();
      for (const Setting& set : settings) {
        const bool scaled = &set - settings != 0;
        const bool joined = (&set - settings) % 2 != 0;
        a.epilogue.scale = scaled ? scale.data() : nullptr;
        a.epilogue.addend = joined ? addend.data() : nullptr;
        a.epilogue.clamp_min = set.lo;
        a.epilogue.clamp_max = set.hi;
        std::vector<float> clamped, quantized;
        std::vector<uint8_t> codes;
        std::vector<int8_t> residual;
        for (size_t i = 0; i < plain.size(); ++i) {
          const size_t k = i % static_cast<size_t>(g.k);
          const float biased = scaled ? std::fma(plain[i], scale[k], bias[k]) : plain[i] + bias[k];
          const float v = joined ? biased + addend[i] : biased;
          const float u = std::isnan(v) ? v : std::clamp(v, set.lo, set.hi);
          clamped.push_back(u);
          const int32_t q = quantize(u, set.grid);
          quantized.push_back(dequantize(q, set.grid));
          codes.push_back(static_cast<uint8_t>(q));
          residual.push_back(residual_byte(u, set.grid, v <= set.lo || v >= set.hi));
        }
        a.epilogue.quantize = false;
        a.epilogue.codes = nullptr;
        a.epilogue.residual = nullptr;
        const std::vector<float> got = run<float>(e, ny, [&](float* out) {
          a.epilogue.y = out;
          e.conv2d(a);
        });
        const bool elsewhere = e.plain_elsewhere && !scaled && !joined && std::isinf(set.lo) && std::isinf(set.hi);
        for (size_t i = 0; i < got.size() && !elsewhere; ++i) {
          if (!(got[i] == clamped[i] || (std::isnan(got[i]) && std::isnan(clamped[i])))) FAIL_CHECK("clamp at ", i, ": ", got[i], " not ", clamped[i]);
        }
        a.epilogue.quantize = true;
        a.epilogue.grid = set.grid;
        test::Guarded<uint8_t> c(ny);
        test::Guarded<int8_t> r(ny);
        a.epilogue.codes = c.data();
        a.epilogue.residual = r.data();
        CHECK(test::same_bits(quantized, run<float>(e, ny, [&](float* out) {
                                a.epilogue.y = out;
                                e.conv2d(a);
                              })));
        CHECK(test::same_bits(codes, c.values()));
        CHECK(test::same_bits(residual, r.values()));
        a.epilogue.y = nullptr;
        a.epilogue.residual = nullptr;
        CHECK(test::same_bits(codes, run<uint8_t>(e, ny, [&](uint8_t* out) {
                                a.epilogue.codes = out;
                                e.conv2d(a);
                              })));
        CHECK(c.intact());
        CHECK(r.intact());
      }
    }
  }
}

TEST_CASE("the statistics of a convolution are those of its result") {
  for (const test::ConvCase& t : kConvCases) {
    const ConvGeometry g = geometry(t);
    const int64_t nx = g.n * g.h * g.w * g.c, pixels = g.n * g.oh * g.ow, ny = pixels * g.k;
    // Means far from zero: a difference of sums of squares would lose the variance.
    const std::vector<float> x = test::random_values(nx, 0.9f, 1.1f, 1), w = test::random_values(g.k * g.r * g.s * (g.c / g.groups), 0.8f, 1.2f, 2),
                             bias = test::random_values(g.k, -1, 1, 4);
    for (const ConvEngine& e : test::conv_engines()) {
      CAPTURE(t.name);
      CAPTURE(e.name);
      std::vector<float> y(static_cast<size_t>(ny));
      Conv2dArgs a{g, {}, w.data(), {}};
      a.input.x = x.data();
      a.epilogue.bias = bias.data();
      a.epilogue.y = y.data();
      test::Guarded<float> var(g.k);
      a.var = var.data();
      const std::vector<float> mean = run<float>(e, g.k, [&](float* out) {
        a.mean = out;
        e.conv2d(a);
      });
      CHECK(var.intact());
      test::check_statistics(y, mean.data(), var.values().data(), g.k);
    }
  }
}

TEST_CASE("gemm, all transpositions, scaled and accumulated") {
  struct Shape {
    int64_t m, n, k;
  };
  const Shape shapes[] = {{1, 1, 1}, {1, 1000, 64}, {7, 5, 3}, {64, 64, 64}, {65, 127, 129}, {130, 33, 17}, {3, 16, 2100}, {500, 10, 15}, {4, 6, 0}};
  const std::pair<float, float> factors[] = {{1.0f, 0.0f}, {0.5f, 0.0f}, {1.0f, 1.0f}, {-2.0f, 0.25f}};
  for (const Shape& s : shapes) {
    const Misaligned a(test::random_values(s.m * s.k, -1, 1, 1)), b(test::random_values(s.k * s.n, -1, 1, 2));
    const std::vector<float> y0 = test::random_values(s.m * s.n, -1, 1, 3);
    for (int form = 0; form < 4; ++form) {
      for (const auto& row : factors) {
        const auto& alpha = row.first;
        const auto& beta = row.second;
        const bool ta = form & 1, tb = form & 2;
        Sums want(s.m * s.n);
        for (int64_t i = 0; i < s.m; ++i) {
          for (int64_t j = 0; j < s.n; ++j) {
            for (int64_t t = 0; t < s.k; ++t) want.add(i * s.n + j, static_cast<double>(alpha) * a[ta ? t * s.m + i : i * s.k + t], b[tb ? j * s.k + t : t * s.n + j]);
            want.add(i * s.n + j, beta, y0[static_cast<size_t>(i * s.n + j)]);
          }
        }
        for (const ConvEngine& e : test::conv_engines()) {
          CAPTURE(e.name);
          CAPTURE(text(s.m, "x", s.n, "x", s.k, " form ", form, " alpha ", alpha));
          CHECK(want.first_far(run<float>(e, s.m * s.n, [&, alpha = alpha, beta = beta](float* y) {
                  std::copy(y0.begin(), y0.end(), y);
                  e.gemm({s.m, s.n, s.k, ta, tb, alpha, beta, a.data(), b.data(), y});
                }),
                               e.rounding) == -1);
        }
      }
    }
  }
}

TEST_CASE("gemm with beta 0 does not read y") {
  const std::vector<float> a(12, 1.0f), b(20, 2.0f);
  for (const ConvEngine& e : test::conv_engines()) {
    for (float alpha : {1.0f, 0.5f}) {
      std::vector<float> y(15, test::kNan);
      e.gemm({3, 5, 4, false, false, alpha, 0.0f, a.data(), b.data(), y.data()});
      CHECK(y == std::vector<float>(15, 8.0f * alpha));
    }
  }
}
