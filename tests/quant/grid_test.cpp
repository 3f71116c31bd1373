// Range -> grid, against the definition written out in another style, AIMET's numbers, and properties over random ranges.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>

#include "detent/core/math/half.h"
#include "detent/core/math/quant_math.h"

using namespace detent;

namespace {

// The definition once more: integer ends first, then scale, then what zero becomes.
struct Reference {
  double scale;
  long zero_point, lowest, highest;
};

Reference reference(double lo, double hi, int bits, bool symmetric, bool strict, bool unsigned_symmetric) {
  lo = std::fmin(lo, 0.0);
  hi = std::fmax(hi, 0.0);
  if (hi - lo < 1e-5) hi = lo + 1e-5;
  const long levels = 1L << bits;
  if (symmetric && !(unsigned_symmetric && lo == 0.0)) {
    const double reach = std::fmax(std::fabs(lo), std::fabs(hi));
    return {reach / static_cast<double>(levels / 2 - 1), 0, strict ? -(levels / 2 - 1) : -levels / 2, levels / 2 - 1};
  }
  const double step = (hi - lo) / static_cast<double>(levels - 1);
  return {step, std::lround(std::fabs(lo) / step), 0, levels - 1};
}

GridSpec make_spec(int bits, bool symmetric, bool strict = false, bool unsigned_symmetric = false) {
  GridSpec s;
  s.bits = bits, s.symmetric = symmetric, s.strict = strict, s.unsigned_symmetric = unsigned_symmetric;
  return s;
}

}  // namespace

TEST_CASE("range to grid follows its definition on random ranges") {
  std::mt19937 rng(7);
  std::uniform_real_distribution<double> magnitude(-6.0, 6.0), where(-1.5, 1.5);
  for (int trial = 0; trial < 20000; ++trial) {
    const double width = std::pow(10.0, magnitude(rng)), a = where(rng) * width, b = where(rng) * width;
    const int bits = 2 + trial % 15;
    const bool symmetric = trial % 3 == 1, strict = symmetric && trial % 2 == 0, uns = symmetric && !strict && trial % 5 == 0;
    const Range r{std::fmin(a, b), std::fmax(a, b)};
    const GridSpec spec = make_spec(bits, symmetric, strict, uns);
    const Grid g = grid_from_range(r, spec);
    const Reference want = reference(r.min, r.max, bits, symmetric, strict, uns);
    CAPTURE(r.min);
    CAPTURE(r.max);
    CAPTURE(bits);
    REQUIRE(g.scale == doctest::Approx(want.scale).epsilon(1e-6));
    REQUIRE(g.zero_point == want.zero_point);
    REQUIRE(g.qmin == want.lowest);
    REQUIRE(g.qmax == want.highest);
    REQUIRE(is_valid(g));
    REQUIRE(fake_quantize(0.0f, g) == 0.0f);
    // Learned and stored ranges come back to the same grid, bit for bit.
    if (range_of(g).max - range_of(g).min > 2e-5) REQUIRE(grid_from_range(range_of(g), spec) == g);
  }
}

TEST_CASE("range to grid: AIMET's numbers") {
  const GridSolution a = solve_grid({-40.0, 80.0}, make_spec(8, false));
  CHECK(a.offset() == -85);
  CHECK(a.scale == doctest::Approx(0.470588235).epsilon(1e-8));
  const GridSolution three = solve_grid({-5.0, 10.0}, make_spec(3, false));
  CHECK(three.min == doctest::Approx(-4.2857142857).epsilon(1e-9));
  CHECK(three.max == doctest::Approx(10.7142857143).epsilon(1e-9));
  CHECK(three.offset() == -2);
  const GridSolution s = solve_grid({-0.7, 0.69}, make_spec(4, true));
  CHECK(s.min == doctest::Approx(-0.8));
  CHECK(s.max == doctest::Approx(0.7));
  CHECK(s.offset() == -8);
  const GridSolution strict = solve_grid({-15.0, 14.5}, make_spec(8, true, true));
  CHECK(strict.offset() == -127);
  CHECK(strict.scale == doctest::Approx(0.118110236).epsilon(1e-8));
  const GridSolution u = solve_grid({0.0, 5.19}, make_spec(8, true, false, true));
  CHECK(u.qmin == 0);
  CHECK(u.scale == doctest::Approx(5.19 / 255.0));
}

TEST_CASE("range to grid: whatever a range holds, the grid is valid") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const double values[] = {-inf, -1e308, -3.5e38, -1.0, -1e-300, -0.0, 0.0, 5e-324, 1e-12, 1.0, 3.5e38, 1e308, inf, nan};
  for (const double lo : values) {
    for (const double hi : values) {
      for (const int bits : {2, 4, 8, 16, 32}) {
        for (int kind = 0; kind < 4; ++kind) {
          const GridSpec spec = make_spec(bits, kind > 0, kind == 2, kind == 3);
          const Grid g = grid_from_range({lo, hi}, spec);
          CAPTURE(lo);
          CAPTURE(hi);
          CAPTURE(bits);
          CAPTURE(kind);
          REQUIRE(is_valid(g));
          REQUIRE(fake_quantize(0.0f, g) == 0.0f);
        }
      }
    }
  }
}

TEST_CASE("gates: zero inside and a minimum width") {
  CHECK(gate_range({0.5, 1.0}, kMinWidth).min == 0.0);
  CHECK(gate_range({-0.5, -0.1}, kMinWidth).max == 0.0);
  CHECK(gate_range({0.0, 0.0}, kMinCalibrationWidth).max == 0.01);
  CHECK(gate_range({-1e-9, 0.0}, kMinWidth).max == doctest::Approx(1e-5).epsilon(1e-3));
}

TEST_CASE("a learned symmetric pair is its max") {
  const Range r = learned_range({-10.0, 3.0}, make_spec(3, true));
  CHECK(r.min == -3.0);
  CHECK(fake_quantize(-5.0f, grid_from_range(r, make_spec(3, true))) == -4.0f);
  CHECK(fake_quantize(-5.0f, grid_from_range(r, make_spec(3, true, true))) == -3.0f);
  CHECK(learned_range({-10.0, 3.0}, make_spec(3, false)).min == -10.0);
}

TEST_CASE("regrid is quantize of dequantize") {
  const Grid from = grid_from_range({-1.0, 3.0}, make_spec(8, false)), to = grid_from_range({0.0, 2.0}, make_spec(8, false));
  for (int q = 0; q <= 255; ++q) {
    const double value = static_cast<double>(from.scale) * (q - from.zero_point);
    const double want = std::fmin(255.0, std::fmax(0.0, std::nearbyint(value / static_cast<double>(to.scale))));
    CHECK(std::fabs(regrid(q, from, to) - want) <= 0.0);
  }
}

TEST_CASE("32-bit grids saturate instead of overflowing") {
  const Grid g = grid_from_range({-1.0, 1.0}, make_spec(32, false));
  CHECK(quantize(-1.0f, g) == std::numeric_limits<int32_t>::min());
  CHECK(quantize(3.0f, g) == std::numeric_limits<int32_t>::max());
  const Grid s = grid_from_range({-1.0, 1.0}, make_spec(32, true));
  CHECK(quantize(5.0f, s) == std::numeric_limits<int32_t>::max());
}

TEST_CASE("half precision: every half survives, neighbours round to even") {
  for (int h = 0; h < 0x7c00; ++h) {  // finite non-negative halves by their definition
    const int e = h >> 10, m = h & 1023;
    const double exact = e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25);
    const auto v = static_cast<float>(exact);
    REQUIRE(round_to_half(v) == v);
    REQUIRE(round_to_half(-v) == -v);
    if (h + 1 == 0x7c00) break;
    const int e1 = (h + 1) >> 10, m1 = (h + 1) & 1023;
    const double next = e1 == 0 ? std::ldexp(m1, -24) : std::ldexp(1024 + m1, e1 - 25);
    const auto middle = static_cast<float>(0.5 * (exact + next));
    REQUIRE(round_to_half(middle) == static_cast<float>(h % 2 == 0 ? exact : next));
    REQUIRE(round_to_half(std::nextafterf(middle, 0.0f)) == v);
  }
  CHECK(round_to_half(65519.0f) == 65504.0f);
  CHECK(std::isinf(round_to_half(65520.0f)));
  CHECK(std::isnan(round_to_half(std::nanf(""))));
}
