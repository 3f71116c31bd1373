// The backward pass of quantization with sums for learned ranges, in the CPU's order and so with its bits: float lanes (lane = index % 16) within 4096 elements,
// doubles across lanes, blocks of 4096, pieces of 65536 and rows. A block of threads takes 4096 elements, or as many short rows: every thread reads all of its
// part before it writes any (dx may be x or dy, and what is in flight at once hides the memory's latency), leaves the terms in shared memory, and 32 threads
// then add them up lane by lane. Later kernels join the blocks.
#pragma once

#include "detent/backends/cuda/bf16.h"
#include "detent/backends/cuda/fast_div.h"
#include "detent/backends/cuda/launch.h"
#include "detent/core/backend.h"
#include "detent/core/epilogue.h"

namespace detent::DETENT_CUDA_NAMESPACE {

constexpr int kSumBlock = 4096, kLanes = 16, kSumThreads = 256, kQuads = kSumBlock / 4 / kSumThreads;
constexpr int kBlocksOfPiece = 16;

struct alignas(16) Sums {
  double scale, clip;
};

/// The first n values added one after the other. Reads come first: an addition must not wait for the memory as well.
template <class T>
DETENT_HD double add_in_order(double sum, const T* v, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    T held[16];
    DETENT_UNROLL
    for (int k = 0; k < 16; ++k) held[k] = v[i + k];
    DETENT_UNROLL
    for (int k = 0; k < 16; ++k) sum += static_cast<double>(held[k]);
  }
  for (; i < n; ++i) sum += static_cast<double>(v[i]);
  return sum;
}

// ---- terms in shared memory --------------------------------------------------------------------------------------------------------------------------

struct TermMemory {
  alignas(16) float scale[kSumBlock];
  float gap[kLanes];  // a warp adds the lanes of both sums: 32 banks
  alignas(16) float clip[kSumBlock];
};

/// Where element e of the quad q of thread t lies in its block: four neighbours, or one by one with neighbouring threads.
template <bool ByFour>
DETENT_HD int place_of(int t, int q, int e) {
  return ByFour ? 4 * (t + q * kSumThreads) + e : t + (4 * q + e) * kSumThreads;
}

/// fn(place, register index) for the elements of thread t among n; with ByFour one call for four of them, n being a multiple of four.
template <bool ByFour, class Fn>
DETENT_HD void for_each_place(int t, int n, Fn&& fn) {
  DETENT_UNROLL
  for (int q = 0; q < kQuads; ++q) {
    DETENT_UNROLL
    for (int e = 0; e < (ByFour ? 1 : 4); ++e) {
      if (const int at = place_of<ByFour>(t, q, e); at < n) fn(at, q, e);
    }
  }
}

/// Keeps terms_of(place of the first element read with it, q, e) of the elements of thread t among n in shared memory, and writes what passes on to dx unless that is null.
template <bool ByFour, class T, class Fn>
DETENT_HD void keep_terms(int t, int n, TermMemory& term, T* dx, Fn&& terms_of) {
  for_each_place<ByFour>(t, n, [&](int i, int q, int e) {
    if constexpr (ByFour) {
      FloatQuad scale, clip;
      Four<float> passed;
      DETENT_UNROLL
      for (int k = 0; k < 4; ++k) {
        const RangeTerms r = terms_of(i, q, k);
        scale.v[k] = r.scale, clip.v[k] = r.clip, passed.v[k] = r.dx;
      }
      *reinterpret_cast<FloatQuad*>(term.scale + i) = scale;
      *reinterpret_cast<FloatQuad*>(term.clip + i) = clip;
      if (dx) put_values(dx + i, passed);
    } else {
      const RangeTerms r = terms_of(i, q, e);
      term.scale[i] = r.scale;
      term.clip[i] = r.clip;
      if (dx) put_value(dx + i, r.dx);
    }
  });
}

/// What a lane adds up, of the `length` terms that begin at v.
DETENT_HD float lane_sum(const float* v, int lane, int length) {
  float sum = 0.0f;
  int i = lane;
  for (; i + 7 * kLanes < length; i += 8 * kLanes) {
    float held[8];
    DETENT_UNROLL
    for (int k = 0; k < 8; ++k) held[k] = v[i + k * kLanes];
    DETENT_UNROLL
    for (int k = 0; k < 8; ++k) sum += held[k];
  }
  for (; i < length; i += kLanes) sum += v[i];
  return sum;
}

// ---- learned fake-quant ------------------------------------------------------------------------------------------------------------------------------

/// How rows of one grid each are cut: blocks of 4096 elements of a row, or several whole rows.
struct SumCut {
  static constexpr int kMostRows = 256;
  int64_t inner, rows, channels;
  int32_t blocks_of_row, rows_of_block;
  FastDiv by_blocks, by_length;

  explicit SumCut(const ChannelView& v) : inner(v.inner), rows(v.outer * v.channels), channels(v.channels) {
    blocks_of_row = static_cast<int32_t>((inner + kSumBlock - 1) / kSumBlock);
    const int64_t fit = inner > 0 && inner < kSumBlock ? kSumBlock / inner : 1;
    rows_of_block = static_cast<int32_t>(fit < kMostRows ? fit : kMostRows);
    by_blocks = FastDiv(blocks_of_row);
    by_length = FastDiv(rows_of_block > 1 ? inner : kSumBlock);
  }
  int64_t blocks() const { return (rows + rows_of_block - 1) / rows_of_block * blocks_of_row; }
};

/// Block `index` of a cut: elements [first, first + n), in parts of `length` that are summed apart, the first of them part `part` of row `row`.
struct SumPlace {
  int64_t row, part, first;
  int32_t n, length, parts;
  DETENT_HD SumPlace(const SumCut& c, int64_t index) {
    const int64_t unit = c.by_blocks.divide(static_cast<int32_t>(index)), block = index - unit * c.blocks_of_row;
    row = unit * c.rows_of_block;
    part = row * c.blocks_of_row + block;
    first = row * c.inner + block * kSumBlock;
    const int64_t whole = c.rows - row < c.rows_of_block ? c.rows - row : c.rows_of_block, left = whole * c.inner - block * kSumBlock;
    n = left < kSumBlock ? static_cast<int32_t>(left) : kSumBlock;
    length = static_cast<int32_t>(c.by_length.divisor);
    parts = c.rows_of_block > 1 ? static_cast<int32_t>(whole) : 1;
  }
};

template <bool Short>  // several rows a block; otherwise there is one grid and nothing to divide
struct RangeSums {
  static constexpr int kThreads = kSumThreads, kShare = Short ? 3 : 4;
  struct alignas(16) Limits {
    float scale, zero, lo, hi;
  };
  struct Shared {
    TermMemory term;
    Limits grid[Short ? SumCut::kMostRows : 1];
  };
  struct Held {
    FloatQuad x[kQuads], dy[kQuads];
  };
  SumCut cut;
  bool quads;  // pointers and rows allow four at a time
  const float* x;
  const float* dy;
  const Grid* grids;
  float* dx;
  Sums* part;         // [rows, blocks of a row]; null: a row has one, and it goes to
  double* scale_sum;  // [rows] or null
  double* clip_sum;

  template <bool ByFour>
  DETENT_HD void fetch(const SumPlace& at, int t, Held& held) const {
    const float *const xs = x + at.first, *const dys = dy + at.first;
    for_each_place<ByFour>(t, at.n, [&](int i, int q, int e) {
      if constexpr (ByFour) {
        held.x[q] = *reinterpret_cast<const FloatQuad*>(xs + i);
        held.dy[q] = *reinterpret_cast<const FloatQuad*>(dys + i);
      } else {
        held.x[q].v[e] = xs[i];
        held.dy[q].v[e] = dys[i];
      }
    });
  }

  template <bool ByFour>
  DETENT_HD void terms(const SumPlace& at, int t, const Held& held, Shared& shared) const {
    keep_terms<ByFour>(t, at.n, shared.term, dx ? dx + at.first : nullptr, [&](int i, int q, int e) {
      const Limits g = shared.grid[Short ? cut.by_length.divide(i) : 0];
      return range_terms(held.x[q].v[e], held.dy[q].v[e], g.scale, g.zero, g.lo, g.hi);
    });
  }

  // A lane's sum takes the place of its first term: nobody else reads that.
  DETENT_HD void add_lane(const SumPlace& at, int work, TermMemory& term) const {
    const int lane = work % kLanes, first = work / (2 * kLanes) * at.length, length = at.n - first < at.length ? at.n - first : at.length;
    float* const v = (work / kLanes % 2 == 0 ? term.scale : term.clip) + first;
    if (lane < length) v[lane] = lane_sum(v, lane, length);
  }

  DETENT_HD void add_lanes(const SumPlace& at, int work, const TermMemory& term) const {
    const int p = work / 2, first = p * at.length, length = at.n - first < at.length ? at.n - first : at.length;
    const bool scale = work % 2 == 0;
    const double sum = add_in_order(0.0, (scale ? term.scale : term.clip) + first, length < kLanes ? length : kLanes);
    if (part) {
      Sums* const to = part + at.part + p;
      (scale ? to->scale : to->clip) = sum;
    } else if (double* const to = scale ? scale_sum : clip_sum) {
      to[at.row + p] = sum;
    }
  }

  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const SumPlace at(cut, block.index);
    const bool four = quads && (at.first | at.n) % 4 == 0;
    const int parts = Short ? at.parts : 1;
    PerThread<B, Held> held;
    block.threads([&](int t) {
      four ? fetch<true>(at, t, held[t]) : fetch<false>(at, t, held[t]);
      if (t >= parts) return;
      const Grid g = grids[cut.channels > 1 ? (at.row + t) % cut.channels : 0];
      shared.grid[t] = {g.scale, static_cast<float>(g.zero_point), static_cast<float>(g.qmin), static_cast<float>(g.qmax)};
    });
    block.threads([&](int t) { four ? terms<true>(at, t, held[t], shared) : terms<false>(at, t, held[t], shared); });
    block.threads([&](int t) {
      for (int work = t; work < parts * 2 * kLanes; work += kThreads) add_lane(at, work, shared.term);
    });
    block.threads([&](int t) {
      for (int work = t; work < parts * 2; work += kThreads) add_lanes(at, work, shared.term);
    });
  }
};

// Channels last: one thread for each (slab of rows, channel), in doubles from the start.
struct RangeSumsChannelsLast {
  static constexpr int kBatch = 8;
  int64_t channels, outer;
  int64_t rows;  // of a slab
  const float* x;
  const float* dy;
  const Grid* grids;
  float* dx;
  Sums* part;  // [slabs, channels]
  DETENT_HD void operator()(int64_t i) const {
    const int64_t slab = i / channels, c = i - slab * channels;
    const int64_t end = (slab + 1) * rows < outer ? (slab + 1) * rows : outer;
    const Grid g = grids[c];
    const float zero = static_cast<float>(g.zero_point), lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
    Sums s{0.0, 0.0};
    for (int64_t r = slab * rows; r < end; r += kBatch) {
      float held_x[kBatch], held_dy[kBatch];
      DETENT_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        const int64_t at = (r + k < end ? r + k : r) * channels + c;
        held_x[k] = x[at];
        held_dy[k] = dy[at];
      }
      DETENT_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        if (r + k >= end) continue;
        const RangeTerms terms = range_terms(held_x[k], held_dy[k], g.scale, zero, lo, hi);
        s.scale += static_cast<double>(terms.scale);
        s.clip += static_cast<double>(terms.clip);
        if (dx) dx[(r + k) * channels + c] = terms.dx;
      }
    }
    part[i] = s;
  }
};

// ---- fused quantization: codes and residual bytes ----------------------------------------------------------------------------------------------------

/// Four bytes, the first one lowest.
DETENT_HD uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, __builtin_assume_aligned(p, 4), 4);
  return word;
}

/// One row of n elements; the CPU folds no lanes between the blocks of a piece, so they are kept.
template <class T>
struct CodedSums {
  static constexpr int kThreads = kSumThreads, kShare = 4;
  using Shared = TermMemory;
  struct Held {
    uint32_t codes[4 * kQuads], residual[4 * kQuads];  // four bytes in each of the first kQuads, or one in each: bytes are taken apart when all have come
    Four<float> dy[kQuads];
    int32_t zero_point;
    ClampTerms clamp;
  };
  QuantizedBackwardArgs a;
  const T* all_dy;
  T* dx;
  int64_t n;
  bool quads;
  float* lanes;  // [blocks, 2, kLanes]

  template <bool ByFour>
  DETENT_HD void fetch(int64_t first, int count, int t, Held& held) const {
    const uint8_t *const codes = a.codes + first, *const residual = reinterpret_cast<const uint8_t*>(a.residual) + first;
    const T* const dy = all_dy + first;
    const Grid grid = present(a.grid, a.resident);
    held.zero_point = grid.zero_point;
    held.clamp = clamp_terms(a.clamp_min, a.clamp_max, grid);
    for_each_place<ByFour>(t, count, [&](int i, int q, int e) {
      if constexpr (ByFour) {
        held.codes[q] = word_at(codes + i);
        held.residual[q] = word_at(residual + i);
        held.dy[q] = values_at<4>(dy + i);
      } else {
        held.codes[4 * q + e] = codes[i];
        held.residual[4 * q + e] = residual[i];
        held.dy[q].v[e] = value_of(dy[i]);
      }
    });
  }

  template <bool ByFour>
  DETENT_HD void terms(int64_t first, int count, int t, const Held& held, TermMemory& term) const {
    keep_terms<ByFour>(t, count, term, dx + first, [&](int, int q, int e) {
      const int at = ByFour ? q : 4 * q + e, shift = ByFour ? 8 * e : 0;
      return coded_range_terms(static_cast<uint8_t>(held.codes[at] >> shift), static_cast<int8_t>(held.residual[at] >> shift), held.zero_point, held.clamp, held.dy[q].v[e]);
    });
  }

  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t first = block.index * kSumBlock;
    const int count = n - first < kSumBlock ? static_cast<int>(n - first) : kSumBlock;
    const bool four = quads && count % 4 == 0;
    PerThread<B, Held> held;
    block.threads([&](int t) { four ? fetch<true>(first, count, t, held[t]) : fetch<false>(first, count, t, held[t]); });
    block.threads([&](int t) { four ? terms<true>(first, count, t, held[t], shared) : terms<false>(first, count, t, held[t], shared); });
    block.threads([&](int t) {
      if (t < 2 * kLanes) lanes[block.index * 2 * kLanes + t] = lane_sum(t < kLanes ? shared.scale : shared.clip, t % kLanes, count);
    });
  }
};

/// The lanes of a piece, one after the other.
struct JoinLanes {
  static constexpr int kThreads = kBlocksOfPiece * 2 * kLanes;
  struct Shared {
    float lanes[2][kBlocksOfPiece * kLanes];
  };
  int64_t blocks;
  const float* lanes;
  Sums* part;  // [pieces]
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t first = block.index * kBlocksOfPiece, count = blocks - first < kBlocksOfPiece ? blocks - first : kBlocksOfPiece;
    block.threads([&](int t) {
      if (t < count * 2 * kLanes) shared.lanes[t / kLanes % 2][t / (2 * kLanes) * kLanes + t % kLanes] = lanes[first * 2 * kLanes + t];
    });
    block.threads([&](int t) {  // two warps, one sum each
      if (t == 0) part[block.index].scale = add_in_order(0.0, shared.lanes[0], count * kLanes);
      if (t == 32) part[block.index].clip = add_in_order(0.0, shared.lanes[1], count * kLanes);
    });
  }
};

// ---- joining -----------------------------------------------------------------------------------------------------------------------------------------

/// Joins the parts [outer, channels, parts of a row] of each channel: those of a piece, then the pieces in order. One block for a channel adds up pieces side by
/// side; two threads add these.
struct JoinSums {
  static constexpr int kThreads = 512, kAtOnce = 1024;
  struct Shared {
    alignas(16) double scale[kAtOnce];
    alignas(16) double clip[kAtOnce];
  };
  int64_t outer, channels, parts_of_row, parts_of_piece;
  const Sums* part;
  double divisor;  // of the scale sum
  double* scale_sum;
  double* clip_sum;

  DETENT_HD Sums piece(int64_t row, int64_t p) const {
    const int64_t begin = p * parts_of_piece, left = parts_of_row - begin, n = left < parts_of_piece ? left : parts_of_piece;
    const Sums* const from = part + row * parts_of_row + begin;
    Sums s{0.0, 0.0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      Sums held[8];
      DETENT_UNROLL
      for (int k = 0; k < 8; ++k) held[k] = from[i + k];
      DETENT_UNROLL
      for (int k = 0; k < 8; ++k) s.scale += held[k].scale, s.clip += held[k].clip;
    }
    for (; i < n; ++i) s.scale += from[i].scale, s.clip += from[i].clip;
    return s;
  }

  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t pieces = (parts_of_row + parts_of_piece - 1) / parts_of_piece, own = outer * pieces;
    PerThread<B, double> sum;
    block.threads([&](int t) { sum[t] = 0.0; });
    for (int64_t first = 0; first < own; first += kAtOnce) {
      const int64_t n = own - first < kAtOnce ? own - first : kAtOnce;
      block.threads([&](int t) {
        for (int64_t k = t; k < n; k += kThreads) {
          const int64_t o = (first + k) / pieces;
          const Sums s = piece(o * channels + block.index, first + k - o * pieces);
          shared.scale[k] = s.scale;
          shared.clip[k] = s.clip;
        }
      });
      block.threads([&](int t) {  // two warps, one sum each
        if (t == 0) sum[t] = add_in_order(sum[t], shared.scale, n);
        if (t == 32) sum[t] = add_in_order(sum[t], shared.clip, n);
      });
    }
    block.threads([&](int t) {
      if (t == 0 && scale_sum) scale_sum[block.index] = sum[t] / divisor;
      if (t == 32 && clip_sum) clip_sum[block.index] = sum[t];
    });
  }
};

}  // namespace detent::DETENT_CUDA_NAMESPACE
