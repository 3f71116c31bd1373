// The kernels of integer execution, on every instruction set, against sums in int64 and formulas evaluated in wider types.
#include <algorithm>
#include <cmath>

#include "conv_cases.h"
#include "integer_engines.h"

using namespace detent;
using test::Engine;
using test::engines;
using test::run_guarded;

namespace {

// How codes, weights and scales of a run are chosen.
struct Variant {
  const char* name;
  int32_t x_zero, y_zero, lo, hi;
  int x, w;            // >= 0: every code is x (w is taken as a signed byte); -1: random
  double spread;       // of the outputs, in output codes
};

constexpr Variant kVariants[] = {
    {"random", 117, 96, 0, 255, -1, -1, 60.0},
    {"zero point 0, ReLU", 0, 0, 0, 255, -1, -1, 200.0},
    {"zero point 255, ReLU at 31", 255, 31, 31, 255, -1, -1, 80.0},
    {"saturation at both ends", 128, 128, 0, 255, -1, -1, 3000.0},
    {"narrow clamp", 3, 100, 90, 110, -1, -1, 40.0},
    {"largest products", 0, 0, 0, 255, 255, -128, 100.0},
    {"largest positive products", 0, 10, 0, 255, 255, 127, 100.0},
    {"zero codes against zero point 255", 255, 200, 0, 255, 0, -128, 100.0},
    {"ties", 0, 128, 0, 255, -1, -1, 0.0},
};

template <class T>
std::vector<T> random_codes(int64_t n, int lo, int hi, uint64_t seed) {
  Rng rng(seed, 5);
  std::vector<T> v(static_cast<size_t>(n));
  for (T& q : v) q = static_cast<T>(lo + static_cast<int>(rng.uniform(0.0f, static_cast<float>(hi - lo) + 0.999f)));
  return v;
}

// A requantization from its definition; the product is a float's.
uint8_t requantized(int64_t acc, float multiplier, int32_t zero, int32_t lo, int32_t hi) {
  const volatile float t = static_cast<float>(acc) * multiplier;
  const double q = std::nearbyint(static_cast<double>(t)) + zero;
  return static_cast<uint8_t>(std::clamp(q, static_cast<double>(lo), static_cast<double>(hi)));
}

struct Problem {
  ConvGeometry g;
  std::vector<uint8_t> x;
  std::vector<int8_t> w;
  std::vector<int32_t> bias, offset;
  std::vector<float> multiplier;
  std::vector<uint8_t> want;
};

Problem problem(const ConvGeometry& g, const Variant& v) {
  Problem p;
  p.g = g;
  const int64_t row = g.r * g.s * (g.c / g.groups);
  p.x = random_codes<uint8_t>(g.n * g.h * g.w * g.c, 0, 255, 1);
  p.w = random_codes<int8_t>(g.k * row, -128, 127, 2);
  if (v.x >= 0) std::fill(p.x.begin(), p.x.end(), static_cast<uint8_t>(v.x));
  if (v.x >= 0) std::fill(p.w.begin(), p.w.end(), static_cast<int8_t>(v.w));
  std::vector<int64_t> acc(static_cast<size_t>(g.n * g.oh * g.ow * g.k));
  test::for_each_product(g, [&](int64_t y, int64_t x, int64_t w) { acc[static_cast<size_t>(y)] += (static_cast<int64_t>(p.x[static_cast<size_t>(x)]) - v.x_zero) * p.w[static_cast<size_t>(w)]; });
  Rng rng(7, 7);
  for (int64_t k = 0; k < g.k; ++k) {
    int32_t sum = 0;
    for (int64_t i = k * row; i < (k + 1) * row; ++i) sum += p.w[static_cast<size_t>(i)];
    p.bias.push_back(static_cast<int32_t>(rng.uniform(-20000.0f, 20000.0f)));
    p.offset.push_back(p.bias.back() - v.x_zero * sum);
    const double typical = 128.0 * 60.0 * std::sqrt(static_cast<double>(row));
    p.multiplier.push_back(v.spread > 0.0 ? static_cast<float>(v.spread / typical) * rng.uniform(0.5f, 2.0f) : 0.5f / static_cast<float>(1 << (k % 8)));
  }
  for (size_t i = 0; i < acc.size(); ++i) {
    const size_t k = i % static_cast<size_t>(g.k);
    p.want.push_back(requantized(acc[i] + p.bias[k], p.multiplier[k], v.y_zero, v.lo, v.hi));
  }
  return p;
}

void run_problem(const Engine& e, const Problem& p, const Variant& v) {
  std::vector<uint8_t> packed(static_cast<size_t>(cpu::integer_packed_bytes(e.kernels, p.g)) + 64, 0xEE);
  auto* aligned = packed.data() + (64 - reinterpret_cast<uintptr_t>(packed.data()) % 64) % 64;
  cpu::integer_pack(e.kernels, p.g, p.w.data(), aligned);
  const std::vector<uint8_t> got = run_guarded<uint8_t>(static_cast<int64_t>(p.want.size()), [&](uint8_t* y) {
    cpu::integer_conv2d(e.kernels, {p.g, p.x.data(), v.x_zero, aligned, p.offset.data(), p.multiplier.data(), {1.0f, v.y_zero, 0, 255}, {v.lo, v.hi}, y});
  });
  const auto differ = std::mismatch(got.begin(), got.end(), p.want.begin());
  CHECK_MESSAGE(differ.first == got.end(), e.name, ": element ", differ.first - got.begin(), " of ", got.size(), " is ", int{*differ.first}, ", not ", int{*differ.second});
}

constexpr struct {
  float sa, sb, sc;
  int32_t za, zb, zc, lo, hi;
} kAdditions[] = {
    {0.017f, 0.031f, 0.042f, 128, 0, 77, 0, 255}, {0.1f, 0.003f, 0.06f, 0, 255, 0, 0, 255}, {0.02f, 0.02f, 0.02f, 100, 100, 100, 0, 255},
    {0.05f, 0.025f, 0.1f, 7, 9, 3, 3, 255},       {1e-3f, 2.0f, 0.5f, 255, 255, 255, 0, 255}, {0.3f, 0.2f, 0.001f, 128, 128, 128, 20, 220},
};

}  // namespace

TEST_CASE("integer convolutions are exact on every instruction set") {
  for (const test::ConvCase& c : test::kConvCases) {
    const ConvGeometry g = test::geometry(c);
    // The extremes matter where words and tiles end, which the small cases have; large ones run once.
    const bool large = g.n * g.oh * g.ow * g.k * g.r * g.s * (g.c / g.groups) > 4000000;
    for (const Variant& v : kVariants) {
      if (large && &v != kVariants) break;
      INFO(c.name, ", ", v.name);
      const Problem p = problem(g, v);
      for (const Engine& e : engines()) run_problem(e, p, v);
    }
  }
}

TEST_CASE("sums that pass int32 on their way come out right") {
  // q_x q_w alone leaves int32, the sum about the zero point does not: 66,000 products of 255 * 127 against zero point 254.
  const ConvGeometry g{.n = 1, .h = 1, .w = 3, .c = 66000, .k = 5, .oh = 1, .ow = 3};
  constexpr Variant v{"", 254, 0, 0, 255, 255, 127, 1.0};
  const Problem p = problem(g, v);
  CHECK(*std::max_element(p.want.begin(), p.want.end()) > 0);
  for (const Engine& e : engines()) run_problem(e, p, v);
}

TEST_CASE("integer addition of every pair of codes") {
  std::vector<uint8_t> a, b;
  for (int i = 0; i < 65536; ++i) a.push_back(static_cast<uint8_t>(i >> 8)), b.push_back(static_cast<uint8_t>(i));
  for (const auto& t : kAdditions) {
    const Grid ga{t.sa, t.za, 0, 255}, gb{t.sb, t.zb, 0, 255}, gc{t.sc, t.zc, 0, 255};
    // Products of two floats are exact in long double, and so is the rounding to float but for ties that 64 bits make again, which none of these has.
    const float ra = t.sa / t.sc, rb = t.sb / t.sc;
    const volatile float rz = rb * static_cast<float>(t.zb);
    const auto k = static_cast<float>(t.zc) - static_cast<float>(static_cast<long double>(ra) * t.za + rz);
    std::vector<uint8_t> want;
    for (size_t i = 0; i < a.size(); ++i) {
      const auto inner = static_cast<float>(static_cast<long double>(rb) * b[i] + k);
      const auto outer = static_cast<float>(static_cast<long double>(ra) * a[i] + inner);
      want.push_back(static_cast<uint8_t>(std::clamp(std::nearbyint(static_cast<double>(outer)), static_cast<double>(t.lo), static_cast<double>(t.hi))));
    }
    for (const Engine& e : engines()) {
      INFO(e.name, ", scales ", t.sa, ", ", t.sb, ", ", t.sc);
      for (const int64_t n : {int64_t{65536}, int64_t{1}, int64_t{127}, int64_t{129}}) {
        const std::vector<uint8_t> got = run_guarded<uint8_t>(n, [&](uint8_t* y) { cpu::integer_add(e.kernels, {n, a.data() + 65536 - n, b.data() + 65536 - n, integer_add(ga, gb, gc), {t.lo, t.hi}, y}); });
        CHECK(std::equal(got.begin(), got.end(), want.end() - n));
      }
    }
  }
}

TEST_CASE("integer global average pool") {
  constexpr struct {
    int64_t n, pixels, c;
    int32_t zx, zy;
    float sx, sy;
  } cases[] = {{2, 49, 2048, 0, 0, 0.03f, 0.01f}, {1, 1, 1, 255, 255, 0.1f, 0.1f}, {3, 64, 65, 128, 7, 0.02f, 0.015f}, {1, 50176, 3, 12, 99, 0.5f, 0.4f}, {2, 7, 513, 255, 0, 0.001f, 0.02f}};
  for (const auto& t : cases) {
    const std::vector<uint8_t> x = random_codes<uint8_t>(t.n * t.pixels * t.c, 0, 255, 3);
    const volatile float scaled = t.sy * static_cast<float>(t.pixels);
    const float m = t.sx / scaled;
    std::vector<uint8_t> want;
    for (int64_t i = 0; i < t.n * t.c; ++i) {
      int64_t sum = 0;
      for (int64_t p = 0; p < t.pixels; ++p) sum += static_cast<int64_t>(x[static_cast<size_t>((i / t.c * t.pixels + p) * t.c + i % t.c)]) - t.zx;
      want.push_back(requantized(sum, m, t.zy, 0, 255));
    }
    for (const Engine& e : engines()) {
      INFO(e.name, ", ", t.pixels, " pixels of ", t.c);
      const std::vector<uint8_t> got = run_guarded<uint8_t>(t.n * t.c, [&](uint8_t* y) {
        AverageCodesArgs a{.n = t.n, .pixels = t.pixels, .c = t.c, .x = x.data(), .from = {t.sx, t.zx, 0, 255}, .epilogue = {}};
        a.epilogue.quantize = true;
        a.epilogue.grid = {t.sy, t.zy, 0, 255};
        a.epilogue.codes = y;
        cpu::integer_average(e.kernels, a);
      });
      CHECK(got == want);
    }
  }
}

TEST_CASE("integer max pool") {
  constexpr struct {
    int64_t n, h, w, c, window, stride, pad, extra;
  } cases[] = {{2, 9, 9, 7, 3, 2, 1, 0}, {1, 8, 6, 64, 3, 2, 1, 0}, {2, 7, 7, 129, 7, 7, 0, 0}, {1, 5, 5, 1, 2, 1, 0, 0}, {1, 23, 19, 200, 3, 2, 1, 1}, {1, 12, 12, 5, 11, 1, 5, 0}};
  for (const auto& t : cases) {
    ConvGeometry g{.n = t.n, .h = t.h, .w = t.w, .c = t.c, .k = t.c, .r = t.window, .s = t.window, .stride_h = t.stride, .stride_w = t.stride, .pad_top = t.pad, .pad_left = t.pad};
    g.oh = conv_out_size(t.h, t.window, t.stride, t.pad, t.pad, 1) + t.extra;
    g.ow = conv_out_size(t.w, t.window, t.stride, t.pad, t.pad, 1);
    const std::vector<uint8_t> x = random_codes<uint8_t>(g.n * g.h * g.w * g.c, 0, 255, 4);
    std::vector<uint8_t> want;
    for (int64_t i = 0; i < g.n * g.oh * g.ow * g.c; ++i) {
      const int64_t c = i % g.c, ow = i / g.c % g.ow, oh = i / (g.c * g.ow) % g.oh, n = i / (g.c * g.ow * g.oh);
      uint8_t best = 0;
      for (int64_t h = oh * t.stride - t.pad; h < oh * t.stride - t.pad + t.window; ++h) {
        for (int64_t w = ow * t.stride - t.pad; w < ow * t.stride - t.pad + t.window; ++w) {
          if (h >= 0 && h < g.h && w >= 0 && w < g.w) best = std::max(best, x[static_cast<size_t>(((n * g.h + h) * g.w + w) * g.c + c)]);
        }
      }
      want.push_back(best);
    }
    for (const Engine& e : engines()) {
      INFO(e.name, ", window ", t.window, " on ", t.h, "x", t.w);
      CHECK(run_guarded<uint8_t>(static_cast<int64_t>(want.size()), [&](uint8_t* y) { cpu::integer_max_pool(e.kernels, {g, x.data(), y}); }) == want);
    }
  }
}

TEST_CASE("codes through a table") {
  uint8_t table[256];
  for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(255 - i * 7);
  for (const int64_t n : {int64_t{1}, int64_t{255}, int64_t{70001}}) {
    const std::vector<uint8_t> x = random_codes<uint8_t>(n, 0, 255, 6);
    std::vector<uint8_t> want;
    for (const uint8_t q : x) want.push_back(static_cast<uint8_t>(255 - q * 7));
    CHECK(run_guarded<uint8_t>(n, [&](uint8_t* y) { cpu::integer_regrid(x.data(), table, y, n); }) == want);
  }
}
