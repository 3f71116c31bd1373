// Every tile of every precision over awkward geometries, and convolutions of integers to the bit: of the kernels' bodies on the host, and (DETENT_CUDA_NAMESPACE is cuda)
// of the module's own kernels, on a GPU or on the machine that runs their PTX. conv_test.cpp runs the common cases.
#include <algorithm>

#include "detent/backends/cuda/conv.h"
#include "detent/core/error.h"
#include "integer_cases.h"
#include "kernel_support.h"

using namespace detent;
using namespace detent::DETENT_CUDA_NAMESPACE;
using namespace detent::test;

namespace {

// ---- convolutions ---------------------------------------------------------------------------------------------------------------------------------------

ConvGeometry geometry(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t window, int64_t stride, int64_t pad, int64_t dilation = 1, int64_t groups = 1) {
  ConvGeometry g{.n = n,
                 .h = h,
                 .w = w,
                 .c = c,
                 .k = k,
                 .r = window,
                 .s = window,
                 .stride_h = stride,
                 .stride_w = stride,
                 .pad_top = pad,
                 .pad_left = pad,
                 .dilation_h = dilation,
                 .dilation_w = dilation,
                 .groups = groups};
  g.oh = conv_out_size(h, window, stride, pad, pad, dilation);
  g.ow = conv_out_size(w, window, stride, pad, pad, dilation);
  return g;
}

const ConvGeometry kGeometries[] = {
    geometry(1, 1, 1, 1, 1, 1, 1, 0),         geometry(2, 9, 7, 16, 24, 3, 1, 1),     geometry(1, 13, 11, 70, 130, 1, 1, 0),    geometry(2, 8, 9, 64, 72, 3, 2, 1),
    geometry(1, 17, 16, 3, 20, 7, 2, 3),      geometry(1, 10, 9, 36, 40, 3, 1, 2, 2), geometry(1, 7, 8, 64, 96, 3, 1, 1, 1, 2), geometry(2, 12, 12, 8, 8, 3, 1, 1, 1, 8),
    geometry(1, 6, 6, 12, 18, 3, 1, 1, 1, 3), geometry(1, 5, 5, 33, 65, 5, 3, 2),
};

template <class Fn>
void products(const ConvGeometry& g, Fn&& fn) {
  const int64_t cg = g.c / g.groups, kg = g.k / g.groups;
  for (int64_t o = 0; o < outputs(g); ++o) {
    const int64_t k = o % g.k, ow = o / g.k % g.ow, oh = o / g.k / g.ow % g.oh, n = o / g.k / g.ow / g.oh;
    for (int64_t f = 0; f < g.r * g.s * cg; ++f) {
      const int64_t h = oh * g.stride_h - g.pad_top + f / cg / g.s * g.dilation_h, w = ow * g.stride_w - g.pad_left + f / cg % g.s * g.dilation_w;
      if (h >= 0 && h < g.h && w >= 0 && w < g.w) fn(o, ((n * g.h + h) * g.w + w) * g.c + k / kg * cg + f % cg, k * g.r * g.s * cg + f);
    }
  }
}

struct Want {
  std::vector<double> sum, size;
  std::vector<int> terms;
  explicit Want(int64_t n) : sum(static_cast<size_t>(n)), size(sum.size()), terms(sum.size()) {}
  void add(int64_t i, double product) {
    sum[static_cast<size_t>(i)] += product;
    size[static_cast<size_t>(i)] += std::abs(product);
    ++terms[static_cast<size_t>(i)];
  }
  // rounding: relative error of a product before it is added.
  int64_t first_far(const std::vector<float>& got, double rounding) const {
    for (size_t i = 0; i < sum.size(); ++i) {
      if (!(std::abs(static_cast<double>(got[i]) - sum[i]) <= (rounding + static_cast<double>(terms[i] + 3) * 0x1p-24) * size[i])) return static_cast<int64_t>(i);
    }
    return -1;
  }
};

ConvInput dense(const std::vector<float>& x) {
  ConvInput in;
  in.x = x.data();
  return in;
}

constexpr TileShape kShapes[] = {TileShape::m128n128, TileShape::m128n64, TileShape::m64n64};
constexpr std::pair<Precision, double> kPrecisions[] = {{Precision::f32, 0.0}, {Precision::tf32, 0x1p-11}, {Precision::bf16, 0x1p-8}};

}  // namespace

TEST_CASE("every tile in every precision, three directions") {
  for (const ConvGeometry& g : kGeometries) {
    const std::vector<float> x = test::random_values(inputs(g), -1, 1, 1), w = test::random_values(weights(g), -1, 1, 2), dy = test::random_values(outputs(g), -1, 1, 3);
    Want y(outputs(g)), dx(inputs(g)), dw(weights(g));
    products(g, [&](int64_t o, int64_t i, int64_t f) {
      const auto at = [](const std::vector<float>& v, int64_t j) { return static_cast<double>(v[static_cast<size_t>(j)]); };
      y.add(o, at(x, i) * at(w, f));
      dx.add(i, at(dy, o) * at(w, f));
      dw.add(f, at(dy, o) * at(x, i));
    });
    for (const auto& row : kPrecisions) {
      const auto& precision = row.first;
      const auto& rounding = row.second;
      const double r = rounding * (2.0 + rounding);
      for (TileShape shape : kShapes) {
        CAPTURE(text(g.n, "x", g.h, "x", g.w, "x", g.c, " to ", g.k, ", ", g.r, "x", g.s, " stride ", g.stride_h, " groups ", g.groups, ", precision ", static_cast<int>(precision),
                     ", tile ", static_cast<int>(shape)));
        const ConvOptions o{.precision = precision, .force_tile = true, .tile = shape, .blas = false};
        const auto forward = [&] {
          return filled<float>(outputs(g), [&](float* out) {
            Conv2dArgs a{g, dense(x), w.data(), {}};
            a.epilogue.y = out;
            DETENT_CUDA_NAMESPACE::conv2d(o, a);
          });
        };
        const std::vector<float> first = forward();
        CHECK(y.first_far(first, r) == -1);
        CHECK(test::same_bits(first, forward()));
        CHECK(dx.first_far(
                  filled<float>(inputs(g), [&](float* out) { DETENT_CUDA_NAMESPACE::conv2d_backward_data(o, {.geometry = g, .dy = dy.data(), .w = w.data(), .dx = out}); }), r) ==
              -1);
        CHECK(dw.first_far(filled<float>(weights(g), [&](float* out) { DETENT_CUDA_NAMESPACE::conv2d_backward_filter(o, {g, dense(x), dy.data(), out}); }), r) == -1);
      }
    }
  }
}

TEST_CASE("every tile of bf16 words, three directions: sums of small integers are exact") {
  const ConvGeometry eights[] = {
      geometry(2, 9, 7, 16, 24, 3, 1, 1),   geometry(1, 13, 11, 72, 136, 1, 1, 0), geometry(2, 8, 9, 64, 72, 3, 2, 1),      geometry(1, 10, 9, 136, 40, 3, 1, 2, 2),
      geometry(1, 7, 8, 64, 96, 3, 1, 1, 1, 2), geometry(1, 6, 6, 200, 8, 3, 1, 1), geometry(3, 20, 19, 24, 16, 5, 1, 2), geometry(2, 6, 5, 8, 8, 7, 3, 3),
  };
  for (const ConvGeometry& g : eights) {
    const std::vector<float> x = small_integers(inputs(g), 1), w = small_integers(weights(g), 2), dy = small_integers(outputs(g), 3);
    std::vector<uint16_t> x16, dy16;
    for (const float v : x) x16.push_back(bfloat_bits(v));
    for (const float v : dy) dy16.push_back(bfloat_bits(v));
    const ExactSums want(g, x, w, dy);
    for (const TileShape shape : kShapes) {
      CAPTURE(text(g.n, "x", g.h, "x", g.w, "x", g.c, " to ", g.k, ", ", g.r, "x", g.s, " stride ", g.stride_h, " groups ", g.groups, ", tile ", static_cast<int>(shape)));
      const ConvOptions o{.precision = Precision::bf16, .force_tile = true, .tile = shape, .blas = false};
      Conv2dArgs forward{g, {}, w.data(), {}};
      forward.input.x16 = x16.data();
      CHECK(filled<float>(outputs(g), [&](float* out) { forward.epilogue.y = out, DETENT_CUDA_NAMESPACE::conv2d(o, forward); }) == want.y);
      CHECK(filled<float>(inputs(g), [&](float* out) { DETENT_CUDA_NAMESPACE::conv2d_backward_data(o, {.geometry = g, .w = w.data(), .dx = out, .dy16 = dy16.data()}); }) == want.dx);
      CHECK(filled<float>(weights(g), [&](float* out) { DETENT_CUDA_NAMESPACE::conv2d_backward_filter(o, {.geometry = g, .input = forward.input, .dw = out, .dy16 = dy16.data()}); }) == want.dw);
    }
  }
}

TEST_CASE("backward-data to few input channels, in any precision, is a sum in f32") {
  const ConvGeometry few[] = {
      geometry(2, 17, 16, 3, 20, 7, 2, 3), geometry(1, 20, 37, 3, 64, 7, 2, 3),   geometry(2, 9, 11, 1, 36, 3, 1, 1), geometry(1, 11, 19, 4, 68, 3, 3, 2),
      geometry(1, 10, 9, 2, 4, 3, 2, 2, 2), geometry(2, 6, 18, 8, 40, 2, 1, 0), geometry(1, 5, 4, 5, 12, 1, 3, 0),  geometry(1, 3, 3, 3, 8, 5, 1, 4),
  };
  for (const ConvGeometry& g : few) {
    const std::vector<float> w = test::random_values(weights(g), -1, 1, 2), dy = test::random_values(outputs(g), -1, 1, 3);
    Want dx(inputs(g));
    products(g, [&](int64_t o, int64_t i, int64_t f) { dx.add(i, static_cast<double>(dy[static_cast<size_t>(o)]) * static_cast<double>(w[static_cast<size_t>(f)])); });
    std::vector<float> first;
    for (const auto& row : kPrecisions) {
      const Precision precision = row.first;
      CAPTURE(text(g.n, "x", g.h, "x", g.w, "x", g.c, " to ", g.k, ", ", g.r, "x", g.s, " stride ", g.stride_h, ", precision ", static_cast<int>(precision)));
      const Conv2dBackwardDataArgs a{.geometry = g, .dy = dy.data(), .w = w.data()};
      REQUIRE(runs_narrow(a));
      const std::vector<float> got = filled<float>(inputs(g), [&, p = precision](float* out) {
        Conv2dBackwardDataArgs to = a;
        to.dx = out;
        DETENT_CUDA_NAMESPACE::conv2d_backward_data({.precision = p, .blas = false}, to);
      });
      CHECK(dx.first_far(got, 0.0) == -1);
      if (first.empty()) first = got;
      CHECK(test::same_bits(got, first));
    }
  }
}

TEST_CASE("a sum over pixels in splits is the sum of its parts, in order") {
  // Integers: every order gives the same bits, so a stage lost or counted twice shows.
  const ConvGeometry g = geometry(3, 33, 35, 20, 24, 3, 1, 1);
  REQUIRE(select_split(g.k, g.r * g.s * g.c, 1, g.n * g.oh * g.ow).splits > 4);
  std::vector<float> x, dy;
  Rng rng(4, 0);
  for (int64_t i = 0; i < inputs(g); ++i) x.push_back(std::floor(rng.uniform(-8.0f, 8.0f)));
  for (int64_t i = 0; i < outputs(g); ++i) dy.push_back(std::floor(rng.uniform(-8.0f, 8.0f)));
  std::vector<double> want(static_cast<size_t>(weights(g)));
  products(g, [&](int64_t o, int64_t i, int64_t f) {
    want[static_cast<size_t>(f)] += static_cast<double>(dy[static_cast<size_t>(o)]) * static_cast<double>(x[static_cast<size_t>(i)]);
  });
  for (const auto& [precision, rounding] : kPrecisions) {
    const std::vector<float> got = filled<float>(weights(g), [&, p = precision](float* out) {
      DETENT_CUDA_NAMESPACE::conv2d_backward_filter({.precision = p, .blas = false}, {g, dense(x), dy.data(), out});
    });
    CHECK(std::equal(got.begin(), got.end(), want.begin(), [](float a, double b) { return static_cast<double>(a) == b; }));
  }
}

TEST_CASE("codes times integer weights: ONNX Runtime's QLinearConv to the bit") {
  for (const ConvGeometry& g : kGeometries) {
    for (bool per_channel : {false, true}) {
      const IntegerCase t(g, per_channel);
      const std::vector<int64_t> acc = t.sums(g);
      Conv2dArgs a{g, t.coded(), t.w.data(), {}, t.weight_grid()};
      a.epilogue.bias = t.bias.data();
      for (TileShape shape : kShapes) {
        CAPTURE(text(g.h, "x", g.w, "x", g.c, " to ", g.k, ", ", g.r, "x", g.s, " groups ", g.groups, ", tile ", static_cast<int>(shape)));
        const ConvOptions o{.force_tile = true, .tile = shape};
        a.epilogue = {};
        a.epilogue.bias = t.bias.data();
        const std::vector<float> y = filled<float>(outputs(g), [&](float* out) {
          a.epilogue.y = out;
          DETENT_CUDA_NAMESPACE::conv2d(o, a);
        });
        int64_t wrong = 0;
        for (size_t i = 0; i < acc.size(); ++i) wrong += y[i] != static_cast<float>(acc[i]) * t.scale(static_cast<int64_t>(i) % g.k);
        CHECK(wrong == 0);
        for (const QuantizeSetting& set : kQuantizeSettings) {
          set.put(a.epilogue);
          test::Guarded<uint8_t> codes(outputs(g));
          test::Guarded<int8_t> residual(outputs(g));
          a.epilogue.codes = codes.data();
          a.epilogue.residual = residual.data();
          const std::vector<float> dense = filled<float>(outputs(g), [&](float* out) {
            a.epilogue.y = out;
            DETENT_CUDA_NAMESPACE::conv2d(o, a);
          });
          CHECK(codes.intact());
          CHECK(residual.intact());
          int64_t other = 0;
          for (size_t i = 0; i < acc.size(); ++i) {
            const QuantizedSum want = quantized_sum(acc[i], t.scale(static_cast<int64_t>(i) % g.k), set);
            other += codes.data()[i] != want.code || residual.data()[i] != want.residual || dense[i] != want.y;
          }
          CHECK(other == 0);
        }
      }
    }
  }
}

TEST_CASE("weights on grids are multiplied as integers: only the other factor is rounded, or none") {
  for (size_t which = 0; which < 2 * std::size(kGeometries); ++which) {
    const ConvGeometry& g = kGeometries[which / 2];
    if (runs_direct(g)) continue;
    IntegerCase t(g, which % 2 == 0);
    const std::vector<float> x = test::random_values(inputs(g), -1, 1, 1), dy = test::random_values(outputs(g), -1, 1, 3);
    std::vector<float> coded;
    for (uint8_t c : t.x) coded.push_back(dequantize(c, t.input));
    Want y(outputs(g)), yc(outputs(g)), dx(inputs(g));
    products(g, [&](int64_t o, int64_t i, int64_t f) {
      const double w = static_cast<double>(t.w[static_cast<size_t>(f)]);
      y.add(o, static_cast<double>(x[static_cast<size_t>(i)]) * w);
      yc.add(o, static_cast<double>(coded[static_cast<size_t>(i)]) * w);
      dx.add(i, static_cast<double>(dy[static_cast<size_t>(o)]) * w);
    });
    for (const auto& row : kPrecisions) {
      const auto& precision = row.first;
      const auto& rounding = row.second;
      CAPTURE(text(g.h, "x", g.w, "x", g.c, " to ", g.k, ", precision ", static_cast<int>(precision)));
      const ConvOptions o{.precision = precision, .blas = false};
      // Scales are multiplied in float: a few roundings more.
      const double r = rounding + 8 * 0x1p-24;
      const auto forward = [&](bool codes, int32_t magnitude) {
        return filled<float>(outputs(g), [&](float* out) {
          Conv2dArgs a{g, codes ? t.coded() : dense(x), t.w.data(), {}, t.weight_grid(magnitude)};
          a.epilogue.y = out;
          DETENT_CUDA_NAMESPACE::conv2d(o, a);
        });
      };
      CHECK(y.first_far(forward(false, 128), r) == -1);
      // 129 and above: too wide for bytes, exact in bf16 (to 256), TF32 (to 2048), f32.
      for (int32_t magnitude : {129, 257, 2049}) CHECK(yc.first_far(forward(true, magnitude), 8 * 0x1p-24) == -1);
      CHECK(dx.first_far(filled<float>(inputs(g),
                                       [&](float* out) {
                                         DETENT_CUDA_NAMESPACE::conv2d_backward_data(o, {.geometry = g, .dy = dy.data(), .w = t.w.data(), .dx = out, .w_grid = t.weight_grid()});
                                       }),
                         r) == -1);
    }
  }
}
