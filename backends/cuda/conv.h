// What the convolution sources share: how a product is cut into tiles (pure functions of its shape), and the kernels per precision.
#pragma once

#include "detent/backends/cuda/conv_load.h"
#include "detent/backends/cuda/conv_store.h"
#include "detent/core/math/conv_gather.h"

namespace detent::DETENT_CUDA_NAMESPACE {

// ---- cutting: by shape alone, so that every device of a kind sums in the same order ----------------------------------------------------------------------

enum class TileShape : uint8_t { m128n128, m128n64, m64n64 };
constexpr int64_t tile_rows(TileShape s) { return s == TileShape::m64n64 ? 64 : 128; }
constexpr int64_t tile_columns(TileShape s) { return s == TileShape::m128n128 ? 128 : 64; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Enough blocks for the devices in view (108 and 132 processors) to be busy.
constexpr int64_t kBusyBlocks = 128;

constexpr int64_t tile_count(TileShape s, int64_t rows, int64_t columns, int64_t groups) {
  return ceil_div(rows, tile_rows(s)) * ceil_div(columns, tile_columns(s)) * groups;
}

/// The largest tile that is not mostly empty and leaves enough blocks.
constexpr TileShape select_tile(int64_t rows, int64_t columns, int64_t groups) {
  if (columns > 64 && rows > 64 && tile_count(TileShape::m128n128, rows, columns, groups) >= kBusyBlocks) return TileShape::m128n128;
  if (rows > 64 && tile_count(TileShape::m128n64, rows, columns, groups) >= kBusyBlocks) return TileShape::m128n64;
  return TileShape::m64n64;
}

/// Blocks at once on the largest device in view: two on each of 132 processors.
constexpr int64_t kSlots = 264;
/// What so many equal blocks take, in hundredths of the time of two that share a processor; one by itself takes about two thirds of it.
constexpr int64_t time_of_blocks(int64_t blocks) {
  const int64_t rest = blocks % kSlots;
  return blocks / kSlots * 100 + (rest == 0 ? 0 : rest <= kSlots / 2 ? 65 : 100);
}

/// A long sum over pixels is cut where the tiles alone would leave the device idle, into as many parts as take least time.
struct SplitSum {
  TileShape shape = TileShape::m64n64;
  int64_t splits = 1, per_split = 1;  // stages of `depth`
};
constexpr int64_t kFloatDepth = 32, kWordDepth = 64, kByteDepth = 64;
constexpr SplitSum select_split(int64_t rows, int64_t columns, int64_t groups, int64_t sum, int64_t depth = kFloatDepth) {
  SplitSum o;
  o.shape = rows > 64 && columns > 64 ? TileShape::m128n128 : (rows > 64 ? TileShape::m128n64 : TileShape::m64n64);
  const int64_t stages = ceil_div(sum, depth), tiles = tile_count(o.shape, rows, columns, groups);
  // A part costs about ten stages more: its start, and that its sums are written and read again.
  constexpr int64_t kMostSplits = 512, kLeastStages = 8, kPartStages = 10, kMostFloats = int64_t{1} << 26;
  int64_t most = stages / kLeastStages < kMostSplits ? stages / kLeastStages : kMostSplits;
  if (const int64_t room = kMostFloats / (rows * columns * groups); most > room) most = room;
  o.per_split = stages > 0 ? stages : 1;
  int64_t least = time_of_blocks(tiles) * (o.per_split + kPartStages);
  for (int64_t splits = 2; splits <= most; ++splits) {
    const int64_t per = ceil_div(stages, splits), parts = ceil_div(stages, per), time = time_of_blocks(tiles * parts) * (per + kPartStages);
    if (time < least) least = time, o.splits = parts, o.per_split = per;
  }
  return o;
}

/// Whether a product [m, n] of a long sum waits for its factors rather than for its multiplications: split tiles read them as fast as anything does.
constexpr bool waits_for_factors(int64_t m, int64_t n) { return m * n < 128 * (m + n); }

/// Where the kernels' 32-bit positions hold; beyond it the direct kernels run.
constexpr int64_t kTileLimit = int64_t{1} << 30;

// ---- the kernels -------------------------------------------------------------------------------------------------------------------------------------

/// A product to run: grid.tiles_* and stages are filled in from the shape and the sizes in the store and the operands.
struct TileCut {
  TileShape shape = TileShape::m64n64;
  int64_t rows = 0, columns = 0, groups = 1, sum = 0, splits = 1, per_split = 0;  // per_split 0: one split of everything
};

template <class Tile>
TileGrid tile_grid(const TileCut& c) {
  TileGrid g;
  g.tiles_m = static_cast<int32_t>(ceil_div(c.rows, Tile::kM));
  g.tiles_n = static_cast<int32_t>(ceil_div(c.columns, Tile::kN));
  g.groups = static_cast<int32_t>(c.groups);
  g.splits = static_cast<int32_t>(c.splits);
  g.stages = static_cast<int32_t>(ceil_div(c.sum, Tile::kDepth));
  g.per_split = c.per_split > 0 ? static_cast<int32_t>(c.per_split) : g.stages;
  return g;
}

struct StrictF32 {};

/// Policy: Tf32, Bf16, Bf16Words or StrictF32; a source file each.
template <class Policy>
struct FloatTiles {
  static void pixels_by_rows(const char* name, const TileCut&, const PixelGather& a, const MatrixOperand& b, const FloatStore&);     // forward
  static void pixels_by_columns(const char* name, const TileCut&, const PixelGather& a, const MatrixOperand& b, const FloatStore&);  // backward-data
  static void columns_by_pixels(const char* name, const TileCut&, const MatrixOperand& a, const PixelGather& b, const FloatStore&);  // backward-filter
};
void integer_tiles(const char* name, const TileCut&, const PixelGather& a, const MatrixOperand& b, const IntegerStore&);

/// Calls fn.template operator()<Policy>(). words: the operands are bf16 in memory.
template <class Fn>
void with_policy(Precision p, bool words, Fn&& fn) {
  if (words) return fn.template operator()<Bf16Words>();
  switch (p) {
    case Precision::tf32: fn.template operator()<Tf32>(); break;
    case Precision::bf16: fn.template operator()<Bf16>(); break;
    case Precision::f32: fn.template operator()<StrictF32>(); break;
  }
}

/// The gather of core/math in 32 bits; sum is taps * depth. The caller sets x or codes, and `vector`.
PixelGather pixel_gather(const Gather& g, int64_t depth);
OutputPlace output_place(const Gather& g, int64_t pitch, int64_t columns);
/// Whether 16 bytes at a time may be read.
bool reads_vectors(const PixelGather& g, int64_t depth, int64_t per);

// ---- entry points: those of kernels.h with the precision given (forced tile: tests) ------------------------------------------------------------------------

struct ConvOptions {
  Precision precision = Precision::tf32;
  bool force_tile = false;
  TileShape tile = TileShape::m64n64;
  bool blas = true;  // where there is one
};
void conv2d(const ConvOptions&, const Conv2dArgs&);
void conv2d_backward_data(const ConvOptions&, const Conv2dBackwardDataArgs&);
void conv2d_backward_filter(const ConvOptions&, const Conv2dBackwardFilterArgs&);
void gemm(const ConvOptions&, const GemmArgs&);

// ---- direct kernels: one output element a thread, for depthwise and narrow groups ------------------------------------------------------------------------

bool runs_direct(const ConvGeometry& g);
/// Weights as bytes for an integer convolution: q[k][pitch], offsets and scales per channel (conv_integer.cpp).
struct IntegerWeights {
  const int8_t* q;
  int64_t pitch;
  const int32_t* offset;
  const AccumulatorScale* scale;
  const IntegerBounds* bounds;
};
void direct_forward(const Conv2dArgs&, const IntegerWeights* integer);
void direct_backward_data(const Conv2dBackwardDataArgs&);
void direct_backward_filter(const Conv2dBackwardFilterArgs&);
/// Backward-data to few input channels (conv_narrow.cpp).
bool runs_narrow(const Conv2dBackwardDataArgs&);
void narrow_backward_data(const Conv2dBackwardDataArgs&);
/// True when a convolution can run on codes and bytes.
bool runs_integer(const Conv2dArgs&);
void integer_forward(const ConvOptions&, const Conv2dArgs&);

/// Factors in bf16 instead of the product's a and b, and the result in bf16 instead of y, or null.
struct Words {
  const uint16_t* a = nullptr;
  const uint16_t* b = nullptr;
  uint16_t* y = nullptr;
};
/// y = alpha op(a) op(b) + beta y by cuBLASLt, with bias over columns or null; false when there is no cuBLASLt or it has no algorithm for the shape.
bool blas_gemm(Precision precision, const GemmArgs&, const float* bias, const Words& words = {});

}  // namespace detent::DETENT_CUDA_NAMESPACE
