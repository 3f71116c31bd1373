// Backward-filter: dw[k][tap][c] = sum over pixels of dy[p][k] * x[p at tap][c]. A task owns a slice of the pixels and a range of k, and walks its slice
// in blocks that stay in the second-level cache. Slices are cut by shape; their partial sums are added in order.
#include <algorithm>
#include <cstring>

#include "detent/backends/cpu/conv_driver.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

constexpr int64_t kBlock = 512;                 // pixels
constexpr int64_t kTasks = 32;                  // wanted
constexpr int64_t kSlicePixels = 1024;          // fewest
constexpr int64_t kPartialFloats = 1 << 20;     // most, over all slices
constexpr int64_t kRangeRows = 32;              // fewest output channels of a task: each needs all of x
constexpr int64_t kStageWhole = 2 << 20;

struct Problem {
  Gather gather;
  InputView view;
  int64_t groups, depth, kg, taps;  // depth: values of x per tap
  int64_t k, outputs;
  bool staged, whole;
};

Problem make_problem(const Conv2dBackwardFilterArgs& a) {
  const ConvGeometry& g = a.geometry;
  Problem p{};
  p.gather = forward_gather(g);
  p.groups = g.groups;
  p.depth = g.c / g.groups;
  p.kg = g.k / g.groups;
  p.k = g.k;
  int64_t left = 0, right = 0;
  if (g.groups == 1 && g.s > 1 && g.c < 16 && g.dilation_w == 1) {
    p.depth = g.s * g.c;
    p.gather.taps.cols = 1;
    left = g.pad_left;
    right = std::max<int64_t>(0, (g.ow - 1) * g.stride_w + g.s - g.pad_left - g.w);
  }
  p.taps = p.gather.taps.count();
  p.outputs = g.k * p.taps * p.depth;
  p.view = {a.input.x, 0, (left + p.gather.in_w + right) * g.c, left, right};
  p.staged = !a.input.x || left > 0 || right > 0;
  p.whole = p.staged && p.gather.n * p.gather.in_h * p.view.pitch <= kStageWhole;
  return p;
}

struct Cut {
  int64_t ranges, range;                 // of k within a group
  int64_t slices, slice, block;
  Cut(const Problem& p, int64_t align) {
    const int64_t pixels = p.gather.pixels();
    ranges = std::clamp<int64_t>(p.kg / kRangeRows, 1, std::max<int64_t>(1, kTasks / p.groups));
    range = ((p.kg + ranges - 1) / ranges + align - 1) / align * align;
    ranges = (p.kg + range - 1) / range;
    slices = std::min({(kTasks + ranges * p.groups - 1) / (ranges * p.groups), pixels / kSlicePixels, kPartialFloats / std::max<int64_t>(1, p.outputs)});
    slices = std::max<int64_t>(1, slices);
    slice = (pixels + slices - 1) / slices;
    const int64_t blocks = std::max<int64_t>(1, (slice + kBlock - 1) / kBlock);
    block = (slice + blocks - 1) / blocks;
    slice = std::min(slice, block * blocks);
    slices = slice > 0 ? (pixels + slice - 1) / slice : 1;
  }
};

struct TaskMemory {
  int64_t rows, dy, stage, bytes;
  TaskMemory(const Problem& p, const Cut& cut, int64_t stage_floats) {
    rows = 0;
    dy = (p.taps * (cut.block + kTilePad) * 8 + 63) / 64 * 64;
    stage = dy + (cut.block * cut.range + 64) * 4;
    stage = (stage + 63) / 64 * 64;
    bytes = stage + stage_floats * 4 + 64;
  }
};

struct Run {
  const ConvIsa& isa;
  const Conv2dBackwardFilterArgs& a;
  const Problem& p;
  const Cut& cut;
  const TaskMemory& memory;
  InputView view;
  const float* zero;
  float* dw;     // [slices][outputs]
  float* dbias;  // [slices][k] or null

  void task(int64_t id, Slots& slots) const {
    Slots::Lease lease(slots);
    const int64_t per_slice = cut.ranges * p.groups, slice = id / per_slice, group = id % per_slice / cut.ranges, range = id % cut.ranges;
    const int64_t k0 = group * p.kg + range * cut.range, kn = std::min(cut.range, p.kg - range * cut.range);
    const int64_t first = slice * cut.slice, last = std::min(p.gather.pixels(), first + cut.slice);
    auto** rows = reinterpret_cast<const float**>(lease.get() + memory.rows);
    auto* dy = reinterpret_cast<float*>(lease.get() + memory.dy);
    if (dbias) std::fill_n(dbias + slice * p.k + k0, kn, 0.0f);
    for (int64_t p0 = first; p0 < last; p0 += cut.block) {
      const int64_t p1 = std::min(last, p0 + cut.block);
      InputView v = view;
      if (p.staged && !p.whole) {
        float* staged = reinterpret_cast<float*>(lease.get() + memory.stage);
        const RowRange needed = rows_needed(p.gather, p0, p1);
        stage_rows(isa, p.gather, a.input, needed, view, staged);
        v.base = staged;
        v.first_row = needed.first;
      }
      fill_rows(p.gather, v, p0, p1, zero, rows, cut.block + kTilePad, nullptr);
      if (dbias) isa.column_sum(a.dy + p0 * p.k + k0, p1 - p0, kn, p.k, dbias + slice * p.k + k0);
      block(rows, dy, p0, p1, group, k0, kn, dw + slice * p.outputs, p0 == first);
    }
  }

  void block(const float* const* rows, float* dy, int64_t p0, int64_t p1, int64_t group, int64_t k0, int64_t kn, float* out, bool first) const {
    const Panels columns((p.depth + isa.vector - 1) / isa.vector, isa.max_nv);
    int packed_for = 0;
    for (int64_t j = 0; j < columns.count; ++j) {
      const int nv = columns.width(j), most = isa.filter_rows[nv];
      const Panels ks(kn, most);
      if (packed_for != most) {
        packed_for = most;
        for (int64_t i = 0; i < ks.count; ++i) isa.pack_rows(a.dy + p0 * p.k + k0 + ks.start(i), p.k, p1 - p0, ks.width(i), dy + ks.start(i) * (p1 - p0));
      }
      const int64_t c0 = columns.start(j) * isa.vector;
      FilterTileArgs t{};
      t.x_offset = group * p.depth + c0;
      t.pixels = p1 - p0;
      t.dw_stride = p.taps * p.depth;
      t.channels = std::min<int64_t>(nv * isa.vector, p.depth - c0);
      t.first = first;
      for (int64_t tap = 0; tap < p.taps; ++tap) {
        t.rows = rows + tap * (cut.block + kTilePad);
        for (int64_t i = 0; i < ks.count; ++i) {
          t.dy = dy + ks.start(i) * (p1 - p0);
          t.dw = out + (k0 + ks.start(i)) * t.dw_stride + tap * p.depth + c0;
          isa.filter_tile[nv][ks.width(i)](t);
        }
      }
    }
  }
};

// y[i] = sum over s of x[s * n + i], in order.
void add_slices(const float* x, int64_t slices, int64_t n, float* y) {
  parallel_for(n, 16384, [&](int64_t begin, int64_t end) {
    std::memcpy(y + begin, x + begin, static_cast<size_t>(end - begin) * sizeof(float));
    for (int64_t s = 1; s < slices; ++s) {
      const float* row = x + s * n;
      for (int64_t i = begin; i < end; ++i) y[i] += row[i];
    }
  });
}

}  // namespace

void conv2d_backward_filter(const ConvIsa& isa, const Conv2dBackwardFilterArgs& a) {
  const ConvGeometry& g = a.geometry;
  if (g.n * g.oh * g.ow == 0 || g.k * g.r * g.s * g.c == 0) {
    std::fill_n(a.dw, g.k * g.r * g.s * (g.c / g.groups), 0.0f);
    if (a.dbias) std::fill_n(a.dbias, g.k, 0.0f);
    return;
  }
  if (g.groups > 1 && g.groups == g.c && g.groups == g.k) return depthwise_backward_filter(isa, a);
  const Problem p = make_problem(a);
  const Cut cut(p, isa.filter_rows[std::min<int64_t>(isa.max_nv, (p.depth + isa.vector - 1) / isa.vector)]);
  int64_t task_rows = 0;
  if (p.staged && !p.whole) {
    for (int64_t s = 0; s < p.gather.pixels(); s += cut.slice) {
      const int64_t end = std::min(p.gather.pixels(), s + cut.slice);
      for (int64_t p0 = s; p0 < end; p0 += cut.block) {
        const RowRange r = rows_needed(p.gather, p0, std::min(end, p0 + cut.block));
        task_rows = std::max(task_rows, r.last - r.first);
      }
    }
  }
  const TaskMemory memory(p, cut, task_rows * p.view.pitch);
  const int64_t all_rows = p.gather.n * p.gather.in_h, zeros = std::max(g.c, p.depth) + 64;
  const bool split = cut.slices > 1;
  Scratch<float> zero(zeros), copy(p.whole ? all_rows * p.view.pitch + 64 : 0), partial(split ? cut.slices * p.outputs : 0), bias(split && a.dbias ? cut.slices * p.k : 0);
  std::fill_n(zero.get(), zeros, 0.0f);
  InputView view = p.view;
  if (p.whole) {
    parallel_for(all_rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, view.pitch)),
                 [&](int64_t begin, int64_t end) { stage_rows(isa, p.gather, a.input, {begin, end}, view, copy.get() + begin * view.pitch); });
    view.base = copy.get();
  }
  Slots slots(memory.bytes);
  const Run run{isa, a, p, cut, memory, view, zero.get(), split ? partial.get() : a.dw, a.dbias ? (split ? bias.get() : a.dbias) : nullptr};
  parallel_chunks(cut.slices * cut.ranges * p.groups, [&](int64_t id) { run.task(id, slots); });
  if (!split) return;
  add_slices(partial.get(), cut.slices, p.outputs, a.dw);
  if (a.dbias) add_slices(bias.get(), cut.slices, p.k, a.dbias);
}

}  // namespace detent::cpu
