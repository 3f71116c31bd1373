// Reductions over the rows of [rows, c], two numbers per column: in blocks of columns by a slice of rows, then over the slices, all in a fixed order that the shape
// alone decides. Float sums of kReduceRun rows, doubles beyond.
#pragma once

#include "detent/backends/cuda/launch.h"

namespace detent::DETENT_CUDA_NAMESPACE {

constexpr int kReduceThreads = 256, kReduceRun = 16;

/// How [rows, c] is cut: `lanes` threads side by side take `width` columns each, kReduceThreads / lanes rows at a time.
struct ColumnCut {
  int64_t rows = 0, c = 0, slice_rows = 1, slices = 0, column_blocks = 0;
  int lanes = 32;

  ColumnCut(int64_t rows_, int64_t c_, int64_t width) : rows(rows_), c(c_) {
    while (lanes > 1 && lanes / 2 * width >= c) lanes /= 2;
    column_blocks = (c + lanes * width - 1) / (lanes * width);
    // At least kReduceRun rows a thread; about a thousand blocks.
    const int64_t least = kReduceRun * (kReduceThreads / lanes), wanted = column_blocks > 0 ? (1024 + column_blocks - 1) / column_blocks : 1;
    slice_rows = (rows + wanted - 1) / wanted;
    slice_rows = (slice_rows + least - 1) / least * least;
    if (slice_rows < least) slice_rows = least;
    slices = (rows + slice_rows - 1) / slice_rows;
  }
  DETENT_HD int64_t rows_of(int64_t slice) const { return slice + 1 < slices ? slice_rows : rows - slice * slice_rows; }
};

/// A count of rows with two numbers; merged in order.
struct ColumnPart {
  double a, b;
};

/// Op: `run<Width, Whole, Full>(element, column, step, n, parts)` gives the numbers of n rows of Width columns from an element on, `step` elements from row to row
/// (Whole: the columns may be read at once; Full: n is kReduceRun), and `merge(part, n, other, m)` joins those of m rows to those of n. partial[slice][c].
template <class Op, int Width, bool Whole>
struct ReduceSlices {
  static constexpr int kThreads = kReduceThreads, kShare = 2;
  struct Shared {
    ColumnPart part[kThreads * Width];
    int32_t count[kThreads];
  };
  ColumnCut cut;
  Op op;
  ColumnPart* partial;

  template <class Block>
  DETENT_HD void operator()(Block& block, Shared& shared) const {
    const int64_t column_block = block.index % cut.column_blocks, slice = block.index / cut.column_blocks;
    const int rows_at_once = kThreads / cut.lanes;
    block.threads([&](int t) {
      const int64_t column = (column_block * cut.lanes + t % cut.lanes) * Width, row = t / cut.lanes, rows = cut.rows_of(slice);
      ColumnPart sum[Width] = {}, part[Width];
      int32_t n = 0;
      int64_t left = column < cut.c && row < rows ? (rows - row + rows_at_once - 1) / rows_at_once : 0;
      const int64_t step = rows_at_once * cut.c;
      for (int64_t at = (slice * cut.slice_rows + row) * cut.c + column; left > 0; at += step * kReduceRun, left -= kReduceRun) {
        const int m = static_cast<int>(left < kReduceRun ? left : kReduceRun);
        if (m == kReduceRun) op.template run<Width, Whole, true>(at, column, step, kReduceRun, part);
        else op.template run<Width, Whole, false>(at, column, step, m, part);
        DETENT_UNROLL
        for (int e = 0; e < Width; ++e) op.merge(sum[e], n, part[e], m);
        n += m;
      }
      DETENT_UNROLL
      for (int e = 0; e < Width; ++e) shared.part[t * Width + e] = sum[e];
      shared.count[t] = n;
    });
    block.threads([&](int t) {
      const int64_t column = column_block * cut.lanes * Width + t;
      if (t >= cut.lanes * Width || column >= cut.c) return;
      ColumnPart sum = shared.part[t];
      int32_t n = shared.count[t / Width];
      for (int i = t / Width + cut.lanes; i < kThreads; i += cut.lanes) {
        if (shared.count[i] == 0) continue;
        op.merge(sum, n, shared.part[i * Width + t % Width], shared.count[i]);
        n += shared.count[i];
      }
      partial[slice * cut.c + column] = sum;
    });
  }
};

/// Joins the slices: finish(column, Part). A block takes 8 columns with 32 threads each, a stretch of neighbouring slices a thread.
template <class Op, class Finish>
struct JoinSlices {
  static constexpr int kThreads = kReduceThreads, kColumns = 8, kParts = kThreads / kColumns;
  struct Shared {
    ColumnPart part[kThreads];
    int64_t count[kThreads];
  };
  ColumnCut cut;
  Op op;
  Finish finish;
  const ColumnPart* partial;

  template <class Block>
  DETENT_HD void operator()(Block& block, Shared& shared) const {
    const int64_t stretch = (cut.slices + kParts - 1) / kParts;
    block.threads([&](int t) {
      const int64_t column = block.index * kColumns + t % kColumns;
      ColumnPart sum{0.0, 0.0};
      int64_t n = 0;
      const int64_t first = t / kColumns * stretch, last = first + stretch < cut.slices ? first + stretch : cut.slices;
      for (int64_t s = first; column < cut.c && s < last; ++s) {
        op.merge(sum, n, partial[s * cut.c + column], cut.rows_of(s));
        n += cut.rows_of(s);
      }
      shared.part[t] = sum;
      shared.count[t] = n;
    });
    block.threads([&](int t) {
      const int64_t column = block.index * kColumns + t;
      if (t >= kColumns || column >= cut.c) return;
      ColumnPart sum = shared.part[t];
      int64_t n = shared.count[t];
      for (int i = t + kColumns; i < kThreads; i += kColumns) {
        if (shared.count[i] == 0) continue;
        op.merge(sum, n, shared.part[i], shared.count[i]);
        n += shared.count[i];
      }
      finish(column, sum);
    });
  }
};

/// aligned: what the op reads.
template <class Op, class Finish>
void reduce_columns(const char* name, int64_t rows, int64_t c, bool aligned, const Op& op, const Finish& finish) {
  if (c <= 0) return;
  const ColumnCut cut(rows, c, c % 4 == 0 ? 4 : 1);
  const Scratch<ColumnPart> partial(cut.slices * c);
  const auto reduce = [&]<int Width, bool Whole>() { blocks(name, cut.slices * cut.column_blocks, ReduceSlices<Op, Width, Whole>{cut, op, partial.get()}); };
  if (c % 4 != 0) reduce.template operator()<1, true>();
  else if (aligned) reduce.template operator()<4, true>();
  else reduce.template operator()<4, false>();
  using Join = JoinSlices<Op, Finish>;
  blocks(name, (c + Join::kColumns - 1) / Join::kColumns, Join{cut, op, finish, partial.get()});
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
