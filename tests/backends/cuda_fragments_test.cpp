// What the tensor-core tiles are made of, on the host: fragments, banks, rounding, division, the choice of tiles and splits. cuda_tiles_test.cpp runs whole tiles.
#include <algorithm>
#include <array>
#include <set>

#include "detent/backends/cuda/conv.h"
#include "kernel_support.h"

using namespace detent;
using namespace detent::cuda_host;

namespace {

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
  CHECK(select_split(64, 64, 1, 100).splits == 1);
}

TEST_CASE("sums of ResNet-50's filter gradients are cut so that blocks come in full rounds") {
  for (const auto& row : {std::pair<int64_t, int64_t>{64, 56}, {128, 28}, {256, 14}, {512, 7}}) {
    const auto& channels = row.first;
    const auto& size = row.second;
    const SplitSum split = select_split(channels, 9 * channels, 1, 256 * size * size);
    const int64_t blocks = split.splits * tile_count(split.shape, channels, 9 * channels, 1);
    CAPTURE(channels);
    CAPTURE(blocks);
    CHECK(static_cast<double>(blocks) / static_cast<double>(ceil_div(blocks, kSlots) * kSlots) > 0.8);
    CHECK(split.per_split >= 32);  // the sums of a part are few beside its products
  }
}
