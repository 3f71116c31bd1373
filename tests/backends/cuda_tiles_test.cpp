// The tensor-core tiles on the host: fragments, banks, division, the choice of tiles and splits, every tile over awkward geometries, and convolutions of integers
// to the bit. conv_test.cpp runs the common cases.
#include <algorithm>
#include <array>
#include <set>

#include "detent/backends/cuda/conv.h"
#include "detent/core/error.h"
#include "integer_cases.h"
#include "kernel_support.h"

using namespace detent;
using namespace detent::cuda_host;
using namespace detent::test;

namespace {

// ---- fragments ----------------------------------------------------------------------------------------------------------------------------------------

// A tile of one warp's step: fragments loaded by TensorTile from shared memory must multiply to A * B^T.
template <class Mma, Major major>
void check_fragments() {
  using Tile = TensorTile<Mma, 64, 64, 2>;
  using Stored = typename Mma::Stored;
  using Memory = TileMemory<Stored, major, 64, Tile::kDepth, Tile::template kPad<major>>;
  std::vector<Stored> a(Memory::kElements), b(Memory::kElements);
  std::vector<int> av(64 * Tile::kDepth), bv(av.size());
  Rng rng(3, 0);
  for (int row = 0; row < 64; ++row) {
    for (int k = 0; k < Tile::kDepth; ++k) {
      // Integers that every policy holds exactly; no two rows or columns alike.
      const int x = static_cast<int>(rng.uniform(0.0f, 100.0f)), y = static_cast<int>(rng.uniform(-100.0f, 100.0f));
      av[static_cast<size_t>(row * Tile::kDepth + k)] = x;
      bv[static_cast<size_t>(row * Tile::kDepth + k)] = y;
      a[static_cast<size_t>(Memory::at(row, k))] = static_cast<Stored>(x);
      b[static_cast<size_t>(Memory::at(row, k))] = static_cast<Stored>(static_cast<int8_t>(y));
      if constexpr (sizeof(Stored) == 4) b[static_cast<size_t>(Memory::at(row, k))] = static_cast<Stored>(y);
    }
  }
  HostTileBlock block(0);
  auto registers = std::make_unique<PerThread<HostTileBlock, typename Tile::Registers>>();
  block.each([&](int t) { Tile::clear((*registers)[t]); });
  Tile::template multiply<Memory, Memory>(block, *registers, a.data(), b.data());
  int seen = 0, wrong = 0;
  block.each([&](int t) {
    Tile::for_each((*registers)[t], t, [&](int row, int column, typename Mma::Acc v) {
      int64_t want = 0;
      for (int k = 0; k < Tile::kDepth; ++k) want += av[static_cast<size_t>(row * Tile::kDepth + k)] * bv[static_cast<size_t>(column * Tile::kDepth + k)];
      wrong += static_cast<double>(v) != static_cast<double>(want);
      ++seen;
    });
  });
  CHECK(seen == 64 * 64);
  CHECK(wrong == 0);
}

// Banks met by the 32 lanes of one fragment read, a word each: the fullest bank's number of different words.
template <class Mma, Major major>
int fullest_bank() {
  using Tile = TensorTile<Mma, 64, 64, 2>;
  using Memory = TileMemory<typename Mma::Stored, major, 64, Tile::kDepth, Tile::template kPad<major>>;
  int worst = 0;
  for (int part = 0; part < (major == Major::k_minor ? Mma::kPack : 1); ++part) {
    // Two elements of a word that lie side by side are one read of 64 bits, done for half a warp at a time.
    const int lanes = sizeof(typename Mma::Stored) == 4 && Mma::kPack == 2 && major == Major::k_major ? 16 : 32;
    std::array<std::set<int>, 32> banks;
    for (int lane = 0; lane < lanes; ++lane) {
      const int element = Memory::at(lane / 4, lane % 4 * Mma::kPack) + part * Memory::kStride;
      const int words = lanes == 16 ? 2 : 1, word = element * static_cast<int>(sizeof(typename Mma::Stored)) / 4;
      for (int i = 0; i < words; ++i) banks[static_cast<size_t>((word + i) % 32)].insert(word + i);
    }
    for (const auto& b : banks) worst = std::max(worst, static_cast<int>(b.size()));
  }
  return worst;
}

// ---- convolutions ---------------------------------------------------------------------------------------------------------------------------------------

ConvGeometry geometry(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t window, int64_t stride, int64_t pad, int64_t dilation = 1, int64_t groups = 1) {
  ConvGeometry g{.n = n, .h = h, .w = w, .c = c, .k = k, .r = window, .s = window, .stride_h = stride, .stride_w = stride, .pad_top = pad, .pad_left = pad,
                 .dilation_h = dilation, .dilation_w = dilation, .groups = groups};
  g.oh = conv_out_size(h, window, stride, pad, pad, dilation);
  g.ow = conv_out_size(w, window, stride, pad, pad, dilation);
  return g;
}

const ConvGeometry kGeometries[] = {
    geometry(1, 1, 1, 1, 1, 1, 1, 0),        geometry(2, 9, 7, 16, 24, 3, 1, 1),        geometry(1, 13, 11, 70, 130, 1, 1, 0),    geometry(2, 8, 9, 64, 72, 3, 2, 1),
    geometry(1, 17, 16, 3, 20, 7, 2, 3),     geometry(1, 10, 9, 36, 40, 3, 1, 2, 2),    geometry(1, 7, 8, 64, 96, 3, 1, 1, 1, 2), geometry(2, 12, 12, 8, 8, 3, 1, 1, 1, 8),
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

template <class T, class Fn>
std::vector<T> filled(int64_t n, Fn&& fill) {
  test::Guarded<T> out(n);
  fill(out.data());
  CHECK(out.intact());
  return out.values();
}

ConvInput dense(const std::vector<float>& x) {
  ConvInput in;
  in.x = x.data();
  return in;
}

constexpr TileShape kShapes[] = {TileShape::m128n128, TileShape::m128n64, TileShape::m64n64};
constexpr std::pair<Precision, double> kPrecisions[] = {{Precision::f32, 0.0}, {Precision::tf32, 0x1p-11}, {Precision::bf16, 0x1p-8}};

}  // namespace

TEST_CASE("fragments: a tile read as the instruction wants it multiplies to A * B^T") {
  check_fragments<Tf32, Major::k_major>();
  check_fragments<Tf32, Major::k_minor>();
  check_fragments<Bf16, Major::k_major>();
  check_fragments<Bf16, Major::k_minor>();
  check_fragments<U8S8, Major::k_major>();
}

TEST_CASE("fragments: no two lanes of a read meet in a bank") {
  CHECK(fullest_bank<Tf32, Major::k_major>() == 1);
  CHECK(fullest_bank<Tf32, Major::k_minor>() == 1);
  CHECK(fullest_bank<Bf16, Major::k_major>() == 1);
  CHECK(fullest_bank<Bf16, Major::k_minor>() == 1);
  CHECK(fullest_bank<U8S8, Major::k_major>() == 1);
}

TEST_CASE("fragments: the elements of the ISA's tables cover each matrix once") {
  const auto cover = [](auto isa, int pack) {
    using I = decltype(isa);
    std::set<std::pair<int, int>> a, b;
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4 * pack; ++i) a.insert({I::a_row(lane, i), I::a_column(lane, i)});
      for (int i = 0; i < 2 * pack; ++i) b.insert({I::b_row(lane, i), lane >> 2});
    }
    CHECK(a.size() == static_cast<size_t>(16 * I::kDepth));
    CHECK(b.size() == static_cast<size_t>(8 * I::kDepth));
  };
  cover(Isa<Tf32>{}, 1);
  cover(Isa<Bf16>{}, 2);
  cover(Isa<U8S8>{}, 4);
}

TEST_CASE("rounding to TF32 and bf16") {
  const auto tf32 = [](float x) {
    const uint32_t bits = tf32_bits(x);
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
  };
  CHECK(tf32(1.0f + 0x1p-11f) == 1.0f + 0x1p-10f);  // ties away
  CHECK(tf32(-1.0f - 0x1p-11f) == -1.0f - 0x1p-10f);
  CHECK(tf32(1.0f + 0x1p-12f) == 1.0f);
  CHECK(tf32(255.0f * 7.0f) == 1785.0f);
  CHECK(std::isnan(tf32(test::kNan)));
  CHECK(tf32(-test::kInf) == -test::kInf);
  CHECK(tf32(0x1.fffffep127f) == test::kInf);
  for (float x : test::random_values(1000)) CHECK(std::abs(tf32(x) - x) <= 0x1p-11f * std::abs(x));
  CHECK(bf16_pair(1.0f + 0x1p-8f, -1.0f - 3 * 0x1p-8f) == 0xBF823F80u);  // ties to even: 1 and -(1 + 2^-6)
}

TEST_CASE("FastDiv divides as / does") {
  for (int64_t d : {1, 2, 3, 5, 7, 9, 49, 56, 64, 112, 147, 1000, 12544, 65535, 65536, 65537, 1 << 30, 2147483647}) {
    const FastDiv f(d);
    for (int64_t n : {int64_t{0}, int64_t{1}, d - 1, d, d + 1, 2 * d - 1, 2 * d, 100 * d - 1, 100 * d, int64_t{2147483646}, int64_t{2147483647}}) {
      if (n < (int64_t{1} << 31)) CHECK(f.divide(static_cast<int32_t>(n)) == n / d);
    }
    Rng rng(1, static_cast<uint64_t>(d));
    for (int i = 0; i < 1000; ++i) {
      const int64_t n = static_cast<int64_t>(rng.next() >> 33);
      CHECK(f.divide(static_cast<int32_t>(n)) == n / d);
    }
  }
}

TEST_CASE("tiles are chosen by shape") {
  // ResNet-50 at batch 256: the large tile wherever there are channels for it.
  CHECK(select_tile(256 * 56 * 56, 64, 1) == TileShape::m128n64);
  CHECK(select_tile(256 * 56 * 56, 256, 1) == TileShape::m128n128);
  CHECK(select_tile(256 * 7 * 7, 512, 1) == TileShape::m128n128);
  CHECK(select_tile(256 * 7 * 7, 2048, 1) == TileShape::m128n128);
  // Little work: small tiles, more blocks.
  CHECK(select_tile(7 * 7, 512, 1) == TileShape::m64n64);
  CHECK(select_tile(28 * 28, 128, 1) == TileShape::m64n64);
  CHECK(select_tile(1, 1, 1) == TileShape::m64n64);
  constexpr int64_t sizes[] = {1, 64, 65, 127, 128, 1000, 12544, 802816};
  for (int64_t rows : sizes) {
    for (int64_t columns : sizes) {
      const TileShape s = select_tile(rows, columns, 1);
      if (s != TileShape::m64n64) CHECK(tile_count(s, rows, columns, 1) >= kBusyBlocks);
      for (int64_t sum : {int64_t{1}, int64_t{31}, int64_t{33}, int64_t{50176}, int64_t{3211264}}) {
        const SplitSum split = select_split(std::min<int64_t>(rows, 2048), std::min<int64_t>(columns, 4608), 1, sum);
        const int64_t stages = ceil_div(sum, kFloatDepth);
        // Every stage in exactly one split, none empty.
        CHECK(split.splits * split.per_split >= stages);
        CHECK((split.splits - 1) * split.per_split < stages);
        if (split.splits > 1) CHECK(split.splits * std::min<int64_t>(rows, 2048) * std::min<int64_t>(columns, 4608) <= int64_t{1} << 26);
      }
    }
  }
  CHECK(select_split(64, 576, 1, 256 * 56 * 56).splits > 32);
  CHECK(select_split(64, 64, 1, 100).splits == 1);
}

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
    for (const auto& [precision, rounding] : kPrecisions) {
      const double r = rounding * (2.0 + rounding);
      for (TileShape shape : kShapes) {
        CAPTURE(text(g.n, "x", g.h, "x", g.w, "x", g.c, " to ", g.k, ", ", g.r, "x", g.s, " stride ", g.stride_h, " groups ", g.groups, ", precision ", static_cast<int>(precision), ", tile ",
                     static_cast<int>(shape)));
        const ConvOptions o{.precision = precision, .force_tile = true, .tile = shape};
        const auto forward = [&] {
          return filled<float>(outputs(g), [&](float* out) {
            Conv2dArgs a{g, dense(x), w.data(), {}};
            a.epilogue.y = out;
            cuda_host::conv2d(o, a);
          });
        };
        const std::vector<float> first = forward();
        CHECK(y.first_far(first, r) == -1);
        CHECK(test::same_bits(first, forward()));
        CHECK(dx.first_far(filled<float>(inputs(g), [&](float* out) { cuda_host::conv2d_backward_data(o, {.geometry = g, .dy = dy.data(), .w = w.data(), .dx = out}); }), r) == -1);
        CHECK(dw.first_far(filled<float>(weights(g), [&](float* out) {
                cuda_host::conv2d_backward_filter(o, {g, dense(x), dy.data(), out});
              }),
                           r) == -1);
      }
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
  products(g, [&](int64_t o, int64_t i, int64_t f) { want[static_cast<size_t>(f)] += static_cast<double>(dy[static_cast<size_t>(o)]) * static_cast<double>(x[static_cast<size_t>(i)]); });
  for (const auto& [precision, rounding] : kPrecisions) {
    const std::vector<float> got = filled<float>(weights(g), [&, p = precision](float* out) {
      cuda_host::conv2d_backward_filter({.precision = p}, {g, dense(x), dy.data(), out});
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
          cuda_host::conv2d(o, a);
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
            cuda_host::conv2d(o, a);
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
  for (const ConvGeometry& g : kGeometries) {
    if (runs_direct(g)) continue;
    IntegerCase t(g, true);
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
    for (const auto& [precision, rounding] : kPrecisions) {
      CAPTURE(text(g.h, "x", g.w, "x", g.c, " to ", g.k, ", precision ", static_cast<int>(precision)));
      const ConvOptions o{.precision = precision};
      // Scales are multiplied in float: a few roundings more.
      const double r = rounding + 8 * 0x1p-24;
      const auto forward = [&](bool codes, int32_t magnitude) {
        return filled<float>(outputs(g), [&](float* out) {
          Conv2dArgs a{g, codes ? t.coded() : dense(x), t.w.data(), {}, t.weight_grid(magnitude)};
          a.epilogue.y = out;
          cuda_host::conv2d(o, a);
        });
      };
      CHECK(y.first_far(forward(false, 128), r) == -1);
      // 129 and above: too wide for bytes, exact in bf16 (to 256), TF32 (to 2048), f32.
      for (int32_t magnitude : {129, 257, 2049}) CHECK(yc.first_far(forward(true, magnitude), 8 * 0x1p-24) == -1);
      CHECK(dx.first_far(filled<float>(inputs(g), [&](float* out) {
              cuda_host::conv2d_backward_data(o, {.geometry = g, .dy = dy.data(), .w = t.w.data(), .dx = out, .w_grid = t.weight_grid()});
            }),
                         r) == -1);
    }
  }
}
