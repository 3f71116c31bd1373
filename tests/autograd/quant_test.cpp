#include <functional>

// Fake quantization on the tape: values, straight-through masks, and range gradients against AIMET's numbers and its formula in double.
#include <algorithm>

#include "detent/core/math/integer_math.h"
#include "detent/io/safetensors.h"
#include "detent/tests/support/gradcheck.h"
#include "detent/tests/support/test_data.h"

using namespace detent;
using namespace detent::test;

namespace {

struct Learned {
  std::vector<float> y, dx, dmin, dmax;
};

Learned run(const Array& x, const Array& dy, const std::vector<float>& lo, const std::vector<float>& hi, const std::vector<Grid>& grids, const ChannelView& view,
            const GridSpec& spec, RangeGradient rule = RangeGradient::aimet) {
  const Shape channels{static_cast<int64_t>(lo.size())};
  Leaf min{Tensor::from<float>(channels, lo), {}}, max{Tensor::from<float>(channels, hi), {}};
  Tape tape;
  const Var v = tape.watch(to_tensor(x));
  const Var y = fake_quant_learned(v, Tape::leaf(min), Tape::leaf(max), grids, view, spec, rule);
  tape.backward(y, to_tensor(dy));
  return {y.dense().to_vector<float>(), tape.grad(v).to_vector<float>(), min.grad.to_vector<float>(), max.grad.to_vector<float>()};
}

struct Gradient {
  double min = 0.0, max = 0.0;
};

// AIMET's TensorFlow 1 formula as written there, in double, on one channel's elements: delta and offset are the grid's.
Gradient aimet_gradient(const std::vector<double>& x, const std::vector<double>& g, double min, double max, const Grid& grid, const GridSpec& spec) {
  const bool symmetric = grid.qmin < 0;
  const double n = std::pow(2.0, spec.bits) - 1, delta = static_cast<double>(grid.scale), o = grid.qmin - grid.zero_point;
  double gs = 0.0, go = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double r = std::nearbyint(x[i] / delta) - o, top = grid.qmax - grid.qmin;
    const double q = std::clamp(r, 0.0, top), k = r >= 0.0 && r <= top ? 1.0 : 0.0;
    gs += (q + o - k * x[i] / delta) * g[i];
    go += delta * (1 - k) * g[i];
  }
  if (symmetric) return {-gs / std::floor(n / 2), gs / std::floor(n / 2)};
  const double t1 = gs / n, t2 = n / ((max - min) * (max - min)) * go;
  return {-t1 + max * t2, t1 - min * t2};
}

Array golden_x() {
  Array x(Shape{8});
  x.v = {7.4581, -6.4829, 1.3125, 5.615, -6.4521, 10.7882, 2.5676, -7.7524};
  return x;
}

}  // namespace

TEST_CASE("range_gradients_match_aimet") {
  const Array ones(Shape{8}, 1.0);
  const ChannelView view = {1, 1, 8};
  // AIMET's backward pass divides in f32, where 127.5 becomes 127.49999: its zero point here is 127 (ours, from the shared grid, is 128).
  const Learned asymmetric = run(golden_x(), ones, {-5}, {5}, {Grid{10.0f / 255, 127, 0, 255}}, view, {.bits = 8});
  CHECK(asymmetric.dmin[0] == doctest::Approx(2.991931438).epsilon(1e-6));
  CHECK(asymmetric.dmax[0] == doctest::Approx(3.008068085).epsilon(1e-6));
  CHECK(asymmetric.dx == std::vector<float>{0, 0, 1, 0, 0, 0, 1, 0});
  const GridSpec signed_spec{.bits = 8, .symmetric = true};
  const Learned symmetric = run(golden_x(), ones, {-5}, {5}, {grid_from_range({-5, 5}, signed_spec)}, view, signed_spec);
  CHECK(symmetric.dmin[0] == doctest::Approx(0.027988523).epsilon(2e-5));
  CHECK(symmetric.dmax[0] == doctest::Approx(-0.027988523).epsilon(2e-5));
}

TEST_CASE("range_gradients_follow_the_formula_on_the_shared_grid") {
  struct Row {
    const char* name;
    GridSpec spec;
    Range range;
  };
  const Row rows[] = {
      {"asymmetric", {.bits = 8}, {-1.2, 1.7}},
      {"exactly opposite", {.bits = 8}, {-1.5, 1.5}},
      {"behind ReLU", {.bits = 8}, {0.0, 1.3}},
      {"negative only", {.bits = 8}, {-1.3, 0.0}},
      {"4 bits", {.bits = 4}, {-0.7, 1.1}},
      {"16 bits", {.bits = 16}, {-0.7, 1.1}},
      {"symmetric", {.bits = 8, .symmetric = true}, {-1.1, 1.1}},
      {"strict", {.bits = 8, .symmetric = true, .strict = true}, {-1.1, 1.1}},
      {"symmetric 4 bits", {.bits = 4, .symmetric = true}, {-0.9, 0.9}},
  };
  for (const Row& r : rows) {
    for (const int64_t n : {1, 7, 127, 128, 129, 5000}) {
      const Grid grid = grid_from_range(r.range, r.spec);
      // Away from ties of the rounding and from the ends, where f32 and double may decide differently.
      Array x = random_array(Shape{n}, 3, -2, 2);
      for (double& v : x.v) {
        const double t = v / static_cast<double>(grid.scale);
        if (std::abs(t - std::floor(t) - 0.5) < 0.05) v = static_cast<double>(static_cast<float>(v + 0.2 * static_cast<double>(grid.scale)));
      }
      const Array dy = random_array(Shape{n}, 4, -1, 1);
      const auto lo = static_cast<float>(r.range.min), hi = static_cast<float>(r.range.max);
      const Learned got = run(x, dy, {lo}, {hi}, {grid}, {1, 1, n}, r.spec);
      const Gradient wanted = aimet_gradient(x.v, dy.v, static_cast<double>(lo), static_cast<double>(hi), grid, r.spec);
      // Each term is dy times a number of steps up to |x|/scale, known to half an ulp of that number; f32 partial sums of up to 256 terms.
      const double steps = 2.0 / static_cast<double>(grid.scale), levels = std::pow(2.0, r.spec.bits - 1) - 1;
      const double tolerance = 1.2e-7 * (steps / levels + 1.0) * static_cast<double>(n + 4) * (n > 256 ? 8.0 : 1.0);
      CHECK_MESSAGE(std::abs(static_cast<double>(got.dmin[0]) - wanted.min) <= tolerance, r.name << " n=" << n << ": dmin " << got.dmin[0] << ", formula " << wanted.min);
      CHECK_MESSAGE(std::abs(static_cast<double>(got.dmax[0]) - wanted.max) <= tolerance, r.name << " n=" << n << ": dmax " << got.dmax[0] << ", formula " << wanted.max);
      for (int64_t i = 0; i < n; ++i) {
        const double q = std::nearbyint(x[i] / static_cast<double>(grid.scale)) + grid.zero_point;
        const bool inside = q >= grid.qmin && q <= grid.qmax;
        CHECK(got.dx[static_cast<size_t>(i)] == (inside ? static_cast<float>(dy[i]) : 0.0f));
        const double y = (std::clamp(q, static_cast<double>(grid.qmin), static_cast<double>(grid.qmax)) - grid.zero_point) * static_cast<double>(grid.scale);
        CHECK(std::abs(static_cast<double>(got.y[static_cast<size_t>(i)]) - y) <= 1.2e-7 * std::abs(y));
      }
    }
  }
}

TEST_CASE("a_clipped_element_moves_its_bound_alone") {
  // min = -50, max = 77.5, scale 1/2, zero point 100: nothing is rounded, so the gradients are exact.
  const GridSpec spec{.bits = 8};
  const Grid grid = grid_from_range({-50, 77.5}, spec);
  REQUIRE(grid == Grid{0.5f, 100, 0, 255});
  const Array above(Shape{3}, 90.0), below(Shape{3}, -60.0), within(Shape{3}, 4.5), dy(Shape{3}, 0.5);
  const Learned a = run(above, dy, {-50}, {77.5f}, {grid}, {1, 1, 3}, spec);
  CHECK(a.dmin[0] == doctest::Approx(0.0).epsilon(1e-6));
  CHECK(a.dmax[0] == doctest::Approx(1.5));
  const Learned b = run(below, dy, {-50}, {77.5f}, {grid}, {1, 1, 3}, spec);
  CHECK(b.dmin[0] == doctest::Approx(1.5));
  CHECK(b.dmax[0] == doctest::Approx(0.0).epsilon(1e-6));
  const Learned w = run(within, dy, {-50}, {77.5f}, {grid}, {1, 1, 3}, spec);
  CHECK(w.dmin[0] == 0.0f);
  CHECK(w.dmax[0] == 0.0f);
}

TEST_CASE("keep_min_leaves_the_lower_bound") {
  const GridSpec spec{.bits = 8};
  const Array x = random_array(Shape{100}, 3), dy = random_array(Shape{100}, 4);
  const std::vector<Grid> grid = {grid_from_range({0, 1.25}, spec)};
  const Learned both = run(x, dy, {0}, {1.25f}, grid, {1, 1, 100}, spec), kept = run(x, dy, {0}, {1.25f}, grid, {1, 1, 100}, spec, RangeGradient::keep_min);
  CHECK(both.dmin[0] != 0.0f);
  CHECK(kept.dmin[0] == 0.0f);
  CHECK(kept.dmax == both.dmax);
}

TEST_CASE("each_channel_has_its_own_range") {
  const GridSpec spec{.bits = 8, .symmetric = true};
  const Shape shape{5, 3, 3, 4};
  for (const int axis : {0, 3}) {
    const ChannelView view = channel_view(shape, axis);
    const Array x = random_array(shape, 3), dy = random_array(shape, 4, -1, 1);
    std::vector<float> lo, hi;
    std::vector<Grid> grids;
    for (int64_t c = 0; c < shape[axis]; ++c) {
      hi.push_back(0.5f + 0.25f * static_cast<float>(c));
      lo.push_back(-hi.back());
      grids.push_back(grid_from_range({lo.back(), hi.back()}, spec));
    }
    const Learned got = run(x, dy, lo, hi, grids, view, spec);
    for (int64_t c = 0; c < shape[axis]; ++c) {
      const auto at = static_cast<size_t>(c);
      std::vector<double> xs, gs;
      for (int64_t i = 0; i < x.size(); ++i) {
        if ((axis == 0 ? i / 36 : i % 4) != c) continue;
        xs.push_back(x[i]);
        gs.push_back(dy[i]);
      }
      const Gradient wanted = aimet_gradient(xs, gs, static_cast<double>(lo[at]), static_cast<double>(hi[at]), grids[at], spec);
      CHECK(std::abs(static_cast<double>(got.dmax[at]) - wanted.max) <= 1.2e-7 * 64 * 5);
      CHECK(got.dmin[at] == -got.dmax[at]);
    }
  }
}

TEST_CASE("straight_through_passes_between_the_bounds_inclusive") {
  const Grid grid = grid_from_range({-1.5, 2.25}, {.bits = 4});  // scale 1/4, -1.5..2.25
  REQUIRE(grid == Grid{0.25f, 6, 0, 15});
  const Tensor x = Tensor::from(Shape{8}, {-1.5f, std::nextafter(-1.5f, -2.0f), 2.25f, std::nextafter(2.25f, 3.0f), 0.1f, -1.6f, std::nanf(""), kInfinity});
  const Grid grids[] = {grid};
  Tape tape;
  const Var v = tape.watch(x);
  const Var y = fake_quant_ste(v, grids, {1, 1, 8});
  tape.backward(y, Tensor::full(Shape{8}, 2.0f));
  CHECK(y.dense().to_vector<float>() == std::vector<float>{-1.5f, -1.5f, 2.25f, 2.25f, 0.0f, -1.5f, 0.0f, 2.25f});
  CHECK(tape.grad(v).to_vector<float>() == std::vector<float>{2, 0, 2, 0, 2, 0, 0, 0});
  // Learned ranges decide on the rounded value: up to half a step outside still passes.
  Tape second;
  const Var u = second.watch(x);
  second.backward(fake_quant_learned(u, Var(Tensor::from(Shape{1}, {-1.5f})), Var(Tensor::from(Shape{1}, {2.25f})), grids, {1, 1, 8}, {.bits = 4}), Tensor::full(Shape{8}, 2.0f));
  CHECK(second.grad(u).to_vector<float>() == std::vector<float>{2, 2, 2, 2, 2, 2, 0, 0});
}

TEST_CASE("codes_are_emitted_where_they_fit_a_byte") {
  const Array x = random_array(Shape{3, 43}, 5);
  const Grid byte[] = {grid_from_range({-1.2, 1.7}, {.bits = 8})}, signed_grid[] = {grid_from_range({-1, 1}, {.bits = 8, .symmetric = true})};
  const Var v(to_tensor(x));
  const Var coded = fake_quant_ste(v, byte, {1, 1, 129}, EmitCodes::yes);
  REQUIRE(coded.coded());
  CHECK(coded.coded()->grid == byte[0]);
  CHECK(coded.dtype() == DType::f32);
  CHECK(coded.dense().to_vector<float>() == fake_quant_ste(v, byte, {1, 1, 129}).dense().to_vector<float>());
  CHECK_FALSE(fake_quant_ste(v, signed_grid, {1, 1, 129}, EmitCodes::yes).coded());
  // The gradient is the same whether the value is dense or coded.
  std::vector<float> dx[2];
  for (const EmitCodes emit : {EmitCodes::no, EmitCodes::yes}) {
    Tape tape;
    const Var w = tape.watch(to_tensor(x));
    const Var y = fake_quant_ste(w, byte, {1, 1, 129}, emit);
    tape.backward(sum(mul(y, y)));
    dx[static_cast<size_t>(emit)] = tape.grad(w).to_vector<float>();
  }
  CHECK(dx[0] == dx[1]);
}

TEST_CASE("sums_of_codes_are_onnx_runtimes") {  // tests/golden/make_integer_add.py: mostly ties, which quantize(a + b) takes the other way
  const io::SafeTensors golden = io::load_safetensors(test::golden("integer_add.safetensors"));
  const auto scales = golden.find("scales")->to_vector<float>();
  const auto zeros = golden.find("zero_points")->to_vector<int32_t>(), rows = golden.find("rows")->to_vector<int32_t>();
  const float inf = std::numeric_limits<float>::infinity();
  int64_t sums = 0, differ = 0, differ_dense = 0, by_floats = 0;
  for (size_t set = 0; 3 * set < scales.size(); ++set) {
    Grid g[3];
    for (size_t k = 0; k < 3; ++k) g[k] = {.scale = scales[3 * set + k], .zero_point = zeros[3 * set + k], .qmin = 0, .qmax = 255};
    std::vector<uint8_t> a, b, want;
    std::vector<float> dense;
    for (size_t i = 0; i < rows.size(); i += 4) {
      if (rows[i] != static_cast<int32_t>(set)) continue;
      a.push_back(static_cast<uint8_t>(rows[i + 1]));
      b.push_back(static_cast<uint8_t>(rows[i + 2]));
      want.push_back(static_cast<uint8_t>(rows[i + 3]));
      dense.push_back(dequantize(rows[i + 1], g[0]));
    }
    const Shape shape{static_cast<int64_t>(a.size())};
    const Var va(Coded{Tensor::from<uint8_t>(shape, a), g[0]}), vb(Coded{Tensor::from<uint8_t>(shape, b), g[1]});
    Var on_grid(Tensor::from<float>(shape, dense));  // the same values as floats that are known to lie on the grid
    on_grid.set_grids({g[0]});
    const auto codes = [&](const Var& x) { return add_quantized(x, vb, -inf, inf, {.grid = g[2], .spec = {}, .min = {}, .max = {}}).coded()->codes.to_vector<uint8_t>(); };
    const auto got = codes(va), got_dense = codes(on_grid);
    for (size_t i = 0; i < want.size(); ++i) {
      ++sums;
      differ += got[i] != want[i];
      differ_dense += got_dense[i] != want[i];
      by_floats += quantize(dequantize(a[i], g[0]) + dequantize(b[i], g[1]), g[2]) != want[i];
    }
  }
  CHECK(sums == 3608);
  CHECK(by_floats > 1000);
  CHECK(differ == 0);
  CHECK(differ_dense == 0);
}

TEST_CASE("fake_quant_errors_name_the_channel") {
  const Var x(Tensor::zeros(Shape{2, 3}));
  const Grid good, bad{0.0f, 0, 0, 255}, off{1.0f, 300, 0, 255};
  const Grid two[] = {good, bad}, one[] = {off};
  CHECK_THROWS_WITH_AS(fake_quant_ste(x, two, {1, 2, 3}), doctest::Contains("the grid of channel 1 has scale 0"), Error);
  CHECK_THROWS_WITH_AS(fake_quant_ste(x, one, {1, 1, 6}), doctest::Contains("zero point 300 and codes 0..255"), Error);
  CHECK_THROWS_WITH_AS(fake_quant_ste(x, two, {1, 3, 2}), doctest::Contains("2 grids for 3 channels"), Error);
  CHECK_THROWS_WITH_AS(fake_quant_ste(x, one, {1, 1, 5}), doctest::Contains("does not cover x [2,3]"), Error);
  CHECK_THROWS_WITH_AS(fake_quant_learned(x, x, x, std::span(&good, 1), {1, 1, 6}, {}), doctest::Contains("min has shape [2,3], [1] wanted"), Error);
}

TEST_CASE("operations that move elements move codes, with the same values") {
  const Shape shape{2, 5, 6, 7};
  std::vector<uint8_t> q(static_cast<size_t>(shape.elements()));
  for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<uint8_t>(i * 37 % 251);
  const Grid grid{0.03f, 77, 0, 255};
  const Var coded(Coded{Tensor::from<uint8_t>(shape, q), grid}), plain(coded.dense());
  const std::vector<int64_t> before{0, 1, 0, 2}, after{1, 0, 3, 0};
  const std::vector<int> order{0, 3, 1, 2};
  PoolSpec pool;
  pool.kernel[0] = pool.kernel[1] = 3;
  pool.stride[0] = pool.stride[1] = 2;
  pool.padding = {1, 1, 1, 1};
  const std::function<Var(const Var&)> ops[] = {
      [](const Var& x) { return slice(x, {{0, 1, 5, 0}, {2, 5, -7, 7}, {1, 2, -2, 3}}); },
      [&](const Var& x) { return pad(x, before, after); },
      [&](const Var& x) { return transpose(x, order); },
      [](const Var& x) { return concat(std::vector<Var>{x, x}, 3); },
      [&](const Var& x) { return max_pool(x, pool); },
      [](const Var& x) { return flatten(x); },
  };
  for (const auto& op : ops) {
    const Var got = op(coded), want = op(plain);
    REQUIRE(got.coded());
    CHECK(got.coded()->grid == grid);
    CHECK(got.shape() == want.shape());
    CHECK(got.dense().to_vector<float>() == want.dense().to_vector<float>());
  }
  // A padding value that has no code, and codes of different grids, are floats.
  CHECK_FALSE(pad(coded, before, after, 1.0f).coded());
  const Var other(Coded{Tensor::from<uint8_t>(shape, q), {0.04f, 77, 0, 255}});
  CHECK_FALSE(concat(std::vector<Var>{coded, other}, 3).coded());
}
