// Pooling and resizing against their definitions in double.
#include <algorithm>
#include <tuple>

#include "detent/tests/support/gradcheck.h"

using namespace detent;
using namespace detent::test;

namespace {

struct Row {
  const char* name;
  Shape x;
  PoolSpec spec;
  int64_t oh, ow;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> table = {
      {"2x2", {2, 4, 6, 3}, {.kernel = {2, 2}, .stride = {2, 2}}, 2, 3},
      {"3x3 stride 2 padding 1", {1, 7, 8, 5}, {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1, 1, 1}}, 4, 4},
      {"overlapping", {1, 5, 5, 17}, {.kernel = {3, 3}, .stride = {1, 1}, .padding = {1, 1, 1, 1}}, 5, 5},
      {"uneven", {2, 6, 5, 2}, {.kernel = {3, 2}, .stride = {2, 1}, .padding = {2, 0, 1, 1}}, 4, 5},
      {"ceil", {1, 6, 7, 3}, {.kernel = {3, 2}, .stride = {2, 2}, .padding = {}, .ceil_mode = true}, 3, 4},
      {"ceil, last window dropped", {1, 5, 5, 2}, {.kernel = {2, 2}, .stride = {3, 3}, .padding = {1, 1, 1, 1}, .ceil_mode = true}, 2, 2},
      {"ceil with padding", {1, 6, 6, 2}, {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1, 1, 1}, .ceil_mode = true}, 4, 4},
      {"include pad", {1, 5, 6, 2}, {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1, 1, 1}, .count_include_pad = true}, 3, 3},
      {"include pad, ceil", {1, 6, 6, 2}, {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1, 1, 1}, .ceil_mode = true, .count_include_pad = true}, 4, 4},
      {"whole image", {3, 4, 5, 7}, {.kernel = {4, 5}, .stride = {1, 1}}, 1, 1},
  };
  return table;
}

// Calls fn(y index, channel, values of x in the window, cells of the window within x and its explicit padding).
template <class Fn>
void each_window(const Array& x, const Row& r, Fn&& fn) {
  const PoolSpec& s = r.spec;
  int64_t out = 0;
  for (int64_t n = 0; n < x.shape[0]; ++n)
    for (int64_t i = 0; i < r.oh; ++i)
      for (int64_t j = 0; j < r.ow; ++j)
        for (int64_t c = 0; c < x.shape[3]; ++c, ++out) {
          std::vector<double> values;
          int64_t cells = 0;
          for (int64_t a = 0; a < s.kernel[0]; ++a)
            for (int64_t b = 0; b < s.kernel[1]; ++b) {
              const int64_t h = i * s.stride[0] - s.padding.top + a * s.dilation[0], w = j * s.stride[1] - s.padding.left + b * s.dilation[1];
              if (h < x.shape[1] + s.padding.bottom && w < x.shape[2] + s.padding.right) ++cells;
              if (h >= 0 && w >= 0 && h < x.shape[1] && w < x.shape[2]) values.push_back(x.at({n, h, w, c}));
            }
          fn(out, values, cells);
        }
}

}  // namespace

TEST_CASE("max_pool_matches_its_definition") {
  std::vector<Row> all = rows();
  all.push_back({"dilated", {1, 7, 7, 3}, {.kernel = {2, 2}, .stride = {1, 2}, .padding = {1, 1, 1, 1}, .dilation = {2, 3}}, 7, 3});
  for (const Row& r : all) {
    CHECK_MESSAGE(pool_shape("max_pool", r.x, r.spec) == Shape({r.x[0], r.oh, r.ow, r.x[3]}), r.name);
    gradcheck({.name = text("max_pool ", r.name),
               .inputs = {distinct_array(r.x, 3)},
               .op = [&r](std::span<const Var> v) { return max_pool(v[0], r.spec); },
               .reference =
                   [&r](const std::vector<Array>& v) {
                     Array y(Shape{r.x[0], r.oh, r.ow, r.x[3]});
                     each_window(v[0], r, [&](int64_t at, const std::vector<double>& values, int64_t) { y[at] = *std::max_element(values.begin(), values.end()); });
                     return y;
                   },
               .terms = 9});
  }
}

TEST_CASE("max_pool_gives_a_tie_to_the_first") {
  Tape tape;
  const Var x = tape.watch(Tensor::full(Shape{1, 2, 2, 1}, 3.0f));
  const Var y = max_pool(x, {.kernel = {2, 2}});
  tape.backward(y, Tensor::full(y.shape(), 1.0f));
  CHECK(tape.grad(x).to_vector<float>() == std::vector<float>{1, 0, 0, 0});
}

TEST_CASE("average_pool_matches_its_definition") {
  for (const Row& r : rows()) {
    gradcheck({.name = text("average_pool ", r.name),
               .inputs = {random_array(r.x, 3)},
               .op = [&r](std::span<const Var> v) { return average_pool(v[0], r.spec); },
               .reference =
                   [&r](const std::vector<Array>& v) {
                     Array y(Shape{r.x[0], r.oh, r.ow, r.x[3]});
                     each_window(v[0], r, [&](int64_t at, const std::vector<double>& values, int64_t cells) {
                       for (const double x : values) y[at] += x / static_cast<double>(r.spec.count_include_pad ? cells : static_cast<int64_t>(values.size()));
                     });
                     return y;
                   },
               .terms = 20});
  }
}

TEST_CASE("averages_of_codes_round_ties_to_the_even_code") {
  // On its input's grid the average of 4 codes is a tie once in four; what an average of floats makes of it depends on the scale's digits.
  constexpr int64_t kChannels = 1021;
  const Grid grid{0.042097352f, 3, 0, 255};
  std::vector<uint8_t> codes;
  for (int64_t p = 0; p < 4; ++p) {
    for (int64_t c = 0; c < kChannels; ++c) codes.push_back(static_cast<uint8_t>((c + p) / 4));  // their sum is c
  }
  const Var x(Coded{Tensor::from<uint8_t>({1, 2, 2, kChannels}, codes), grid});
  const auto got = global_average_pool_quantized(x, {.grid = grid, .spec = {}, .min = {}, .max = {}}).coded()->codes.to_vector<uint8_t>();
  const std::vector<float> means = global_average_pool(x).dense().to_vector<float>();
  int64_t by_floats = 0;
  for (int64_t c = 0; c < kChannels; ++c) {
    const int64_t above = c - 4 * 3, down = (above + 400) / 4 - 100, rest = above - 4 * down;  // the average above the zero point: down + rest / 4
    const int64_t want = 3 + down + (rest == 3 || (rest == 2 && down % 2 != 0));
    CHECK(int64_t{got[static_cast<size_t>(c)]} == want);
    by_floats += quantize(means[static_cast<size_t>(c)], grid) != want;
  }
  CHECK(by_floats > 0);
}

TEST_CASE("averages_of_codes_have_the_gradients_of_their_parts") {
  const Shape shape{6, 3, 5, 40};
  const Tensor values = to_tensor(random_array(shape, 5, -1.0, 3.0)), dy = to_tensor(random_array(Shape{6, 1, 1, 40}, 6, -1.0, 1.0));
  const GridSpec spec{.bits = 8};
  const Grid from = grid_from_range({-1.0, 3.0}, spec), to = grid_from_range({-0.2, 1.2}, spec);  // some averages are outside
  const auto run = [&](bool on_codes) {
    Leaf min{Tensor::from<float>({1}, std::vector<float>{-0.2f}), {}}, max{Tensor::from<float>({1}, std::vector<float>{1.2f}), {}};
    Tape tape;
    const Var v = tape.watch(values), x = fake_quant_ste(v, {&from, 1}, {1, 1, shape.elements()}, EmitCodes::yes), lo = Tape::leaf(min), hi = Tape::leaf(max);
    const Var y = on_codes ? global_average_pool_quantized(x, {.grid = to, .spec = spec, .min = lo, .max = hi})
                           : fake_quant_learned(global_average_pool(x), lo, hi, {&to, 1}, {1, 1, dy.elements()}, spec);
    tape.backward(y, dy);
    return std::tuple(y.dense().to_vector<float>(), tape.grad(v).to_vector<float>(), static_cast<double>(min.grad.item()), static_cast<double>(max.grad.item()));
  };
  const auto [y, dx, dmin, dmax] = run(true);
  const auto [want_y, want_dx, want_dmin, want_dmax] = run(false);
  CHECK(y == want_y);
  CHECK(dx == want_dx);
  CHECK(std::count(dx.begin(), dx.end(), 0.0f) > 0);
  // A byte holds the residual in steps of 1/252: off by at most 1/504 of each gradient, times what a step of the scale is of a step of the bound.
  double size = 0.0;
  for (const float d : dy.to_vector<float>()) size += std::abs(static_cast<double>(d));
  CHECK(std::abs(dmin - want_dmin) <= size / 504.0 / 255.0);
  CHECK(std::abs(dmax - want_dmax) <= size / 504.0 / 255.0);
}

TEST_CASE("averages_of_codes_in_float_are_exact_sums_times_one_factor") {
  const Shape shape{3, 4, 7, 33};
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < shape.elements(); ++i) codes.push_back(static_cast<uint8_t>(i * 37 % 251));
  const Grid grid{0.0173f, 41, 0, 255};
  const auto mean_of = [&](int64_t n, int64_t c) {
    int64_t sum = 0;
    for (int64_t p = 0; p < 28; ++p) sum += int64_t{codes[static_cast<size_t>((n * 28 + p) * 33 + c)]} - 41;
    return static_cast<float>(sum) * (0.0173f / 28.0f);
  };
  std::vector<float> want;
  for (int64_t i = 0; i < 3 * 33; ++i) want.push_back(mean_of(i / 33, i % 33));
  const Var coded(Coded{Tensor::from<uint8_t>(shape, codes), grid});
  CHECK(global_average_pool_of_codes(coded).dense().to_vector<float>() == want);
  // The same value in float, and the gradient: a 28th to each pixel.
  Tape tape;
  const Var v = tape.watch(coded.dense()), x = fake_quant_ste(v, {&grid, 1}, {1, 1, shape.elements()});
  Var on_grid = x;
  on_grid.set_grids({grid});
  const Var y = global_average_pool_of_codes(on_grid);
  CHECK(y.dense().to_vector<float>() == want);
  tape.backward(y, Tensor::full({3, 1, 1, 33}, 7.0f));
  for (const float d : tape.grad(v).to_vector<float>()) CHECK(d == doctest::Approx(0.25));
  CHECK_THROWS_WITH_AS(global_average_pool_of_codes(Var(coded.dense())), doctest::Contains("does not lie on one grid of bytes"), Error);
}

TEST_CASE("global_average_pool_keeps_its_axes") {
  gradcheck({.name = "global_average_pool",
             .inputs = {random_array(Shape{2, 7, 7, 19}, 3)},
             .op = [](std::span<const Var> v) { return global_average_pool(v[0]); },
             .reference =
                 [](const std::vector<Array>& v) {
                   Array y(Shape{2, 1, 1, 19});
                   for (int64_t i = 0; i < v[0].size(); ++i) y[i / (49 * 19) * 19 + i % 19] += v[0][i] / 49.0;
                   return y;
                 },
             .terms = 49});
}

TEST_CASE("pool_shapes_that_make_no_sense_are_errors") {
  CHECK_THROWS_WITH_AS(pool_shape("max_pool", Shape{1, 2, 2, 1}, {.kernel = {3, 3}}), doctest::Contains("max_pool: the window of 3 does not fit into x [1,2,2,1]"), Error);
  CHECK_THROWS_WITH_AS(pool_shape("max_pool", Shape{1, 2, 2, 1}, {.kernel = {1, 1}, .padding = {1, 0, 0, 0}}), doctest::Contains("smaller than the window of 1"), Error);
  CHECK_THROWS_WITH_AS(pool_shape("average_pool", Shape{1, 2, 2, 1}, {.kernel = {1, 1}, .stride = {0, 1}}), doctest::Contains("stride 0"), Error);
}

namespace {

double source(double out, double in_size, double out_size, ResizeCoordinates c) {
  const double scale = out_size / in_size;
  switch (c) {
    case ResizeCoordinates::half_pixel:
      return (out + 0.5) / scale - 0.5;
    case ResizeCoordinates::pytorch_half_pixel:
      return out_size > 1 ? (out + 0.5) / scale - 0.5 : 0.0;
    case ResizeCoordinates::asymmetric:
      return out / scale;
    case ResizeCoordinates::align_corners:
      return out_size > 1 ? out * (in_size - 1) / (out_size - 1) : 0.0;
  }
  return 0.0;
}

double clamped(const Array& x, int64_t n, int64_t h, int64_t w, int64_t c) {
  return x.at({n, std::clamp<int64_t>(h, 0, x.shape[1] - 1), std::clamp<int64_t>(w, 0, x.shape[2] - 1), c});
}

Array resize_reference(const Array& x, const ResizeSpec& s) {
  Array y(Shape{x.shape[0], s.height, s.width, x.shape[3]});
  int64_t out = 0;
  for (int64_t n = 0; n < x.shape[0]; ++n)
    for (int64_t i = 0; i < s.height; ++i)
      for (int64_t j = 0; j < s.width; ++j)
        for (int64_t c = 0; c < x.shape[3]; ++c) {
          double h = source(static_cast<double>(i), static_cast<double>(x.shape[1]), static_cast<double>(s.height), s.coordinates);
          double w = source(static_cast<double>(j), static_cast<double>(x.shape[2]), static_cast<double>(s.width), s.coordinates);
          if (s.mode == ResizeMode::nearest) {
            const auto round = [&](double v) { return static_cast<int64_t>(s.nearest_floor ? std::floor(v) : std::ceil(v - 0.5)); };
            y[out++] = clamped(x, n, round(h), round(w), c);
          } else {
            const double fh = h - std::floor(h), fw = w - std::floor(w);
            const auto h0 = static_cast<int64_t>(std::floor(h)), w0 = static_cast<int64_t>(std::floor(w));
            y[out++] = (1 - fh) * ((1 - fw) * clamped(x, n, h0, w0, c) + fw * clamped(x, n, h0, w0 + 1, c)) +
                       fh * ((1 - fw) * clamped(x, n, h0 + 1, w0, c) + fw * clamped(x, n, h0 + 1, w0 + 1, c));
          }
        }
  return y;
}

}  // namespace

TEST_CASE("resize_matches_onnx_resize") {
  const int64_t sizes[][4] = {{4, 6, 8, 12}, {5, 3, 7, 8}, {8, 8, 4, 4}, {3, 5, 1, 1}, {4, 4, 3, 9}, {1, 2, 5, 5}};
  for (const auto& [h, w, oh, ow] : sizes) {
    for (const ResizeMode mode : {ResizeMode::nearest, ResizeMode::bilinear}) {
      for (const ResizeCoordinates c : {ResizeCoordinates::half_pixel, ResizeCoordinates::asymmetric, ResizeCoordinates::align_corners, ResizeCoordinates::pytorch_half_pixel}) {
        for (const bool floors : {true, false}) {
          if (mode == ResizeMode::bilinear && !floors) continue;
          const ResizeSpec spec{oh, ow, mode, c, floors};
          gradcheck({.name = text("resize ", h, "x", w, " to ", oh, "x", ow, mode == ResizeMode::nearest ? " nearest" : " bilinear", " coordinates ", static_cast<int>(c),
                                  " floor ", floors),
                     .inputs = {random_array(Shape{2, h, w, 3}, 3)},
                     .op = [&spec](std::span<const Var> v) { return resize(v[0], spec); },
                     .reference = [&spec](const std::vector<Array>& v) { return resize_reference(v[0], spec); },
                     .terms = 16});
        }
      }
    }
  }
}
