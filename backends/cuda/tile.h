// One tile of a matrix product, D[BM, BN] = sum over k of A[m, k] * B[n, k], on tensor cores or with plain fused multiply-adds. Where the operands come from and
// where the sums go is the business of loaders and stores (conv_load.h, conv_store.h). A tile of an operand lies in shared memory with k running along rows
// (k_major) or along columns (k_minor); rows are padded so that neither copies nor fragments meet in a bank.
#pragma once

#include "detent/backends/cuda/tile_block.h"

namespace detent::DETENT_CUDA_NAMESPACE {

enum class Major { k_major, k_minor };

/// A tile [rows, depth] of an operand in shared memory.
template <class Stored, Major major, int Rows, int Depth, int Pad>
struct TileMemory {
  static constexpr int kRows = Rows, kDepth = Depth;
  static constexpr Major kMajor = major;
  static constexpr int kPitch = (major == Major::k_major ? Depth : Rows) + Pad;
  static constexpr int kElements = (major == Major::k_major ? Rows : Depth) * kPitch;
  /// Elements from one k to the next.
  static constexpr int kStride = major == Major::k_major ? 1 : kPitch;
  static_assert(kPitch * sizeof(Stored) % 16 == 0);
  static DETENT_HD int at(int row, int k) { return major == Major::k_major ? row * kPitch + k : k * kPitch + row; }
};

/// Tile on tensor cores: 8 warps, WarpsM of them along m. Per thread the sums of WM/16 x WN/8 matrix steps.
template <class Mma, int BM, int BN, int WarpsM>
struct TensorTile {
  using Stored = typename Mma::Stored;
  using Acc = typename Mma::Acc;
  static constexpr int kM = BM, kN = BN, kDepth = sizeof(Stored) == 4 ? 32 : 64;
  static constexpr int kWarpsN = kTileThreads / 32 / WarpsM, kWM = BM / WarpsM, kWN = BN / kWarpsN, kMT = kWM / 16, kNT = kWN / 8;
  static_assert(kMT * 16 * WarpsM == BM && kNT * 8 * kWarpsN == BN && kNT % 2 == 0);
  // Fragments are read at (row g, word t): a pitch of 4 words mod 32 (k_major, one element a word) or 8 (k_minor) spreads them over all banks; two elements a word
  // swap the two. Rows of 16 bytes that matrices are read by: 4 words mod 32 from one to the next.
  template <Major major>
  static constexpr int kPad = sizeof(Stored) == 1 ? 16 : sizeof(Stored) == 2 ? 8 : ((major == Major::k_major) == (Mma::kPack == 1) ? 4 : 8);
  using Registers = Fragments<Mma, kMT, kNT>;
  static constexpr bool kRounds = Mma::kRounds;
  static DETENT_HD float rounded(float x) { return Mma::rounded(x); }

  static DETENT_HD void clear(Registers& r) {
    DETENT_UNROLL
    for (int i = 0; i < kMT; ++i) {
      DETENT_UNROLL
      for (int j = 0; j < kNT; ++j) {
        DETENT_UNROLL
        for (int e = 0; e < 4; ++e) r.d[i][j][e] = 0;
      }
    }
  }

  static DETENT_HD int row0(int t) { return t / 32 % WarpsM * kWM; }
  static DETENT_HD int column0(int t) { return t / 32 / WarpsM * kWN; }

  /// registers += the product of a stage.
  template <class TA, class TB, class Block>
  static DETENT_HD void multiply(Block& block, PerThread<Block, Registers>& registers, const Stored* a, const Stored* b) {
    constexpr int kWords = 8;
    DETENT_UNROLL
    for (int k0 = 0; k0 < kDepth; k0 += kWords * Mma::kPack) {
      block.each([&](int t) {
        Registers& r = registers[t];
        const int lane = t % 32, group = lane / 4, m0 = row0(t), n0 = column0(t), k = k0 + t % 4 * Mma::kPack;
        DETENT_UNROLL
        for (int i = 0; i < kMT; ++i) {
          if constexpr (Mma::kWordsLie && TA::kMajor == Major::k_major) {
            load_matrices(r.a[i], lane, [&](int e, int row) { return a + TA::at(m0 + i * 16 + e % 2 * 8 + row, k0 + e / 2 * 4 * Mma::kPack); });
          } else if constexpr (Mma::kWordsLie && sizeof(Stored) == 2) {
            load_matrices_across(r.a[i], lane, [&](int e, int row) { return a + TA::at(m0 + i * 16 + e % 2 * 8, k0 + e / 2 * 8 + row); });
          } else {
            DETENT_UNROLL
            for (int e = 0; e < 4; ++e) r.a[i][e] = Mma::word(a + TA::at(m0 + group + i * 16 + e % 2 * 8, k + e / 2 * 4 * Mma::kPack), TA::kStride);
          }
        }
        if constexpr (Mma::kWordsLie && TB::kMajor == Major::k_major) {
          DETENT_UNROLL
          for (int j = 0; j < kNT; j += 2) {  // two strips at once
            load_matrices(r.b[j], lane, [&](int e, int row) { return b + TB::at(n0 + (j + e / 2) * 8 + row, k0 + e % 2 * 4 * Mma::kPack); });
          }
        } else if constexpr (Mma::kWordsLie && sizeof(Stored) == 2) {
          DETENT_UNROLL
          for (int j = 0; j < kNT; j += 2) {
            load_matrices_across(r.b[j], lane, [&](int e, int row) { return b + TB::at(n0 + (j + e / 2) * 8, k0 + e % 2 * 8 + row); });
          }
        } else {
          DETENT_UNROLL
          for (int j = 0; j < kNT; ++j) {
            DETENT_UNROLL
            for (int e = 0; e < 2; ++e) r.b[j][e] = Mma::word(b + TB::at(n0 + group + j * 8, k + e * 4 * Mma::kPack), TB::kStride);
          }
        }
      });
      block.template multiply<Mma, kMT, kNT>(registers);
    }
  }

  /// fn(row, column, sum) for the sums of thread t.
  template <class Fn>
  static DETENT_HD void for_each(const Registers& r, int t, Fn&& fn) {
    const int m0 = row0(t) + t % 32 / 4, n0 = column0(t) + t % 4 * 2;
    DETENT_UNROLL
    for (int i = 0; i < kMT; ++i) {
      DETENT_UNROLL
      for (int j = 0; j < kNT; ++j) {
        DETENT_UNROLL
        for (int e = 0; e < 4; ++e) fn(m0 + i * 16 + e / 2 * 8, n0 + j * 8 + e % 2, r.d[i][j][e]);
      }
    }
  }
};

/// Tile in strict f32: 16 x 16 threads, rows and columns of a thread 16 apart, one fused multiply-add per product, k in rising order.
template <int BM, int BN>
struct FmaTile {
  using Stored = float;
  using Acc = float;
  static constexpr int kM = BM, kN = BN, kDepth = 32, kMT = BM / 16, kNT = BN / 16;
  template <Major major>
  static constexpr int kPad = major == Major::k_major ? 4 : 8;
  static constexpr bool kRounds = false;
  static DETENT_HD float rounded(float x) { return x; }
  struct Registers {
    float d[kMT][kNT];
  };

  static DETENT_HD void clear(Registers& r) {
    DETENT_UNROLL
    for (int i = 0; i < kMT; ++i) {
      DETENT_UNROLL
      for (int j = 0; j < kNT; ++j) r.d[i][j] = 0.0f;
    }
  }

  template <class TA, class TB, class Block>
  static DETENT_HD void multiply(Block& block, PerThread<Block, Registers>& registers, const float* a, const float* b) {
    block.each([&](int t) {
      Registers& r = registers[t];
      const int m0 = t / 16, n0 = t % 16;
      DETENT_UNROLL_BY(2)
      for (int k = 0; k < kDepth; k += 4) {
        // Four k at a time: with k_major these are reads of 16 bytes.
        float av[kMT][4];
        DETENT_UNROLL
        for (int i = 0; i < kMT; ++i) {
          DETENT_UNROLL
          for (int e = 0; e < 4; ++e) av[i][e] = a[TA::at(m0 + i * 16, k + e)];
        }
        DETENT_UNROLL
        for (int j = 0; j < kNT; ++j) {
          float bv[4];
          DETENT_UNROLL
          for (int e = 0; e < 4; ++e) bv[e] = b[TB::at(n0 + j * 16, k + e)];
          DETENT_UNROLL
          for (int i = 0; i < kMT; ++i) {
            DETENT_UNROLL
            for (int e = 0; e < 4; ++e) r.d[i][j] = fmaf(av[i][e], bv[e], r.d[i][j]);
          }
        }
      }
    });
  }

  template <class Fn>
  static DETENT_HD void for_each(const Registers& r, int t, Fn&& fn) {
    DETENT_UNROLL
    for (int i = 0; i < kMT; ++i) {
      DETENT_UNROLL
      for (int j = 0; j < kNT; ++j) fn(t / 16 + i * 16, t % 16 + j * 16, r.d[i][j]);
    }
  }
};

/// How a product is cut: tiles over m and n, `groups` independent products, and each sum in `splits` parts of per_split stages that the store keeps apart.
struct TileGrid {
  int32_t tiles_m = 1, tiles_n = 1, groups = 1, splits = 1;
  int32_t stages = 0;     // along k, of the tile's depth
  int32_t per_split = 0;
  DETENT_HD int64_t count() const { return static_cast<int64_t>(tiles_m) * tiles_n * groups * splits; }
};

/// Which tile a block works on. Neighbouring blocks share rows of A: n runs fastest.
struct TilePosition {
  int32_t m, n, group, split;
};
DETENT_HD TilePosition tile_position(const TileGrid& g, int32_t index) {
  TilePosition p;
  p.n = index % g.tiles_n;
  index /= g.tiles_n;
  p.m = index % g.tiles_m;
  index /= g.tiles_m;
  p.group = index % g.groups;
  p.split = index / g.groups;
  return p;
}

/// The kernel: `Stages` copies are on their way while the tile multiplies what has arrived.
template <class Tile, template <class, int, int> class LoadA, template <class, int, int> class LoadB, class Store, int Stages>
struct TileBody {
  using Stored = typename Tile::Stored;
  using A = LoadA<Stored, Tile::kM, Tile::kDepth>;
  using B = LoadB<Stored, Tile::kN, Tile::kDepth>;
  using TA = TileMemory<Stored, A::kMajor, Tile::kM, Tile::kDepth, Tile::template kPad<A::kMajor>>;
  using TB = TileMemory<Stored, B::kMajor, Tile::kN, Tile::kDepth, Tile::template kPad<B::kMajor>>;
  static constexpr int kOutPitch = Tile::kN + 4;
  union Shared {
    struct {
      alignas(16) Stored a[Stages][TA::kElements];
      alignas(16) Stored b[Stages][TB::kElements];
    } in;
    alignas(16) typename Tile::Acc out[Tile::kM * kOutPitch];
  };

  TileGrid grid;
  A a;
  B b;
  Store store;

  template <class Block>
  DETENT_HD void operator()(Block& block, Shared& shared) const {
    const TilePosition at = tile_position(grid, block.index);
    const int first = at.split * grid.per_split, last = first + grid.per_split < grid.stages ? first + grid.per_split : grid.stages;
    PerThread<Block, typename Tile::Registers> sums;
    PerThread<Block, typename A::State> sa;
    PerThread<Block, typename B::State> sb;
    block.each([&](int t) {
      Tile::clear(sums[t]);
      a.start(sa[t], t, at, first);
      b.start(sb[t], t, at, first);
    });
    const auto load = [&](int stage, int slot) {
      block.each([&](int t) {
        a.template load<TA>(block, sa[t], t, stage, shared.in.a[slot]);
        b.template load<TB>(block, sb[t], t, stage, shared.in.b[slot]);
      });
    };
    DETENT_UNROLL
    for (int s = 0; s < Stages - 1; ++s) {
      if (first + s < last) load(first + s, s);
      block.commit();
    }
    for (int stage = first; stage < last; ++stage) {
      const int slot = static_cast<int>(static_cast<uint32_t>(stage - first) % Stages);
      block.template wait<Stages - 2>();
      block.each([&](int t) {
        a.template arrived<TA, Tile>(sa[t], t, stage, shared.in.a[slot]);
        b.template arrived<TB, Tile>(sb[t], t, stage, shared.in.b[slot]);
      });
      block.sync();  // everybody's part of this stage is there, and nobody reads the one to be overwritten
      if (stage + Stages - 1 < last) load(stage + Stages - 1, slot == 0 ? Stages - 1 : slot - 1);
      block.commit();
      Tile::template multiply<TA, TB>(block, sums, shared.in.a[slot], shared.in.b[slot]);
    }
    block.template wait<0>();
    block.sync();
    // Through shared memory, so that rows are written whole.
    block.each([&](int t) { Tile::for_each(sums[t], t, [&](int row, int column, typename Tile::Acc v) { shared.out[row * kOutPitch + column] = v; }); });
    block.sync();
    const TilePosition to = tile_position(grid, made_anew(block.index));
    block.each([&](int t) {
      constexpr int kChunks = Tile::kN / 4;
      const int column = t % kChunks * 4;
      const auto columns = store.columns(to, to.n * Tile::kN + column);
      DETENT_UNROLL_BY(1)
      for (int row = t / kChunks; row < Tile::kM; row += kTileThreads / kChunks) {
        store.store(columns, to.m * Tile::kM + row, shared.out + row * kOutPitch + column);
      }
    });
  }
};

}  // namespace detent::DETENT_CUDA_NAMESPACE
