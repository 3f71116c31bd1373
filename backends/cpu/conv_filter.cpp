// Backward-filter: dw[k][tap][c] = sum over pixels of dy[p][k] * x[p at tap][c]. A task owns a slice of the pixels and a range of k, and walks its slice
// in blocks that stay in the second-level cache. Slices are cut by shape; their partial sums are added in order. With bf16 factors two neighbouring pixels make a word
// (conv_bf16.h): a block of x is joined once for all taps (conv_pairs.h), or in its copy, straight from codes where x has them; a block of dy before it is packed.
#include <algorithm>
#include <cstring>

#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/conv_pairs.h"
#include "detent/backends/cpu/dense.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

constexpr int64_t kBlock = 512;                 // pixels, at most
constexpr int64_t kCopyBlock = 128;             // the same when x is copied, to the first-level cache
constexpr int64_t kPackedFloats = 96 << 10;     // of dy in a block
constexpr int64_t kTasks = 16;                  // wanted
constexpr int64_t kSlices = 32;                 // most
constexpr int64_t kSlicePixels = 768;           // fewest
constexpr int64_t kPartialFloats = 2 << 20;     // most, over all slices
constexpr int64_t kPartWindows = 4;             // fewest (tap, panel of x) pairs of a task: each needs all of dy packed
constexpr int64_t kRangeRows = 64;              // fewest output channels of a task: each needs all of x
constexpr int64_t kCopyPitch = 1024;            // floats between pixels from which x is copied: powers of two meet in few cache sets
constexpr int64_t kStageWhole = 2 << 20;
constexpr int64_t kLeastDepth = 16;             // of pairs: channels, or output channels
constexpr int64_t kLeastRow = 8;                // ... or else values of a window row

struct Problem {
  Gather gather;
  InputView view;
  int64_t groups, depth, kg, taps;  // depth: values of x per tap
  int64_t k, outputs;
  bool staged, whole;
  bool widens_dy;        // dy is bf16, and not made pairs of
  const Bf16Isa* pairs;  // null: floats
  bool in_rows;          // pairs lie in one row: they are joined for all taps
  ConvInput input;
};

// The values of a window row as one: few channels fill no vectors.
bool merges(const ConvGeometry& g, bool pairs) { return g.groups == 1 && g.s > 1 && g.c <= 16 && g.dilation_w == 1 && !(pairs && g.c >= kLeastDepth); }

Problem make_problem(const Conv2dBackwardFilterArgs& a, const Bf16Isa* pairs) {
  const ConvGeometry& g = a.geometry;
  Problem p{};
  p.pairs = pairs;
  p.widens_dy = !pairs && a.dy16;
  p.gather = forward_gather(g, pairs || a.input.x != nullptr);
  p.groups = g.groups;
  p.depth = g.c / g.groups;
  p.kg = g.k / g.groups;
  p.k = g.k;
  int64_t left = 0, right = 0;
  const bool merged = merges(g, pairs);
  if (merged) {
    p.depth = g.s * g.c;
    p.gather.taps.cols = 1;
    left = g.pad_left;
    right = std::max<int64_t>(0, (g.ow - 1) * g.stride_w + g.s - g.pad_left - g.w);
  }
  p.taps = p.gather.taps.count();
  p.outputs = g.k * p.taps * p.depth;
  p.view = {a.input.x, 0, (left + p.gather.in_w + right) * g.c, left, right};
  p.staged = pairs ? merged : (!a.input.x || left > 0 || right > 0);
  p.whole = p.staged && (p.gather.in_w > kLongRow || p.gather.n * p.gather.in_h * p.view.pitch <= kStageWhole);
  p.in_rows = pairs && !merged && p.taps > 1 && p.gather.in_w <= kLongRow && makes_pairs(p.gather);
  p.input = a.input;
  if (pairs) p.input.grid.scale = 1.0f;  // the result is multiplied by it
  return p;
}

// Tasks are slices of the pixels x parts of the (panel of x, tap) pairs x ranges of k, by shape alone.
struct Cut {
  Panels columns;
  int64_t slices, slice, block;
  int64_t windows, parts, part;
  int64_t ranges, range;  // of k within a group
  bool copy;
  Cut(const Problem& p, const ConvIsa& isa) : columns((p.depth + isa.vector - 1) / isa.vector, isa.max_nv) {
    const int64_t pixels = p.gather.pixels(), align = isa.filter_rows[columns.width(0)];
    // Slices read everything once but need partial sums; so they come first where the sums are few.
    slices = std::clamp<int64_t>(std::min(pixels / kSlicePixels, kPartialFloats / std::max<int64_t>(1, p.outputs)), 1, kSlices);
    windows = columns.count * p.taps;
    // Then the larger operand is cut, so that it is read once; the smaller one is read by every task.
    parts = ranges = 1;
    if (p.depth * p.taps >= p.kg) cut_windows(p, slices * p.groups);
    cut_range(p, slices * p.groups * parts, align);
    if (p.depth * p.taps < p.kg) cut_windows(p, slices * p.groups * ranges);
    part = (windows + parts - 1) / parts;
    parts = (windows + part - 1) / part;
    slice = (pixels + slices - 1) / slices;
    copy = p.pairs ? !p.in_rows : (p.gather.in_c * p.gather.step_w >= kCopyPitch && range >= 2 * kRangeRows);
    if (p.pairs) slice += slice % 2;
    const int64_t most = p.pairs ? 2 * kCopyBlock : copy ? kCopyBlock : std::clamp<int64_t>(kPackedFloats / std::max<int64_t>(1, range), 128, kBlock);
    const int64_t blocks = std::max<int64_t>(1, (slice + most - 1) / most);
    block = (slice + blocks - 1) / blocks;
    if (p.pairs) block += block % 2;
    slice = std::min(slice, block * blocks);
    slices = slice > 0 ? (pixels + slice - 1) / slice : 1;
  }
  // Channels that a task reads, at most.
  int64_t task_depth(const Problem& p, const ConvIsa& isa) const { return std::min(p.depth, (part / p.taps + 2) * columns.width(0) * isa.vector); }
  // All taps of a panel of x go together: they read the same rows.
  void cut_windows(const Problem& p, int64_t others) { parts = std::clamp<int64_t>(kTasks / others, 1, std::max<int64_t>(1, windows / std::max(p.taps, kPartWindows))); }
  void cut_range(const Problem& p, int64_t others, int64_t align) {
    ranges = std::clamp<int64_t>((kTasks + others - 1) / others, 1, std::max<int64_t>(1, p.kg / kRangeRows));
    range = ((p.kg + ranges - 1) / ranges + align - 1) / align * align;
    ranges = (p.kg + range - 1) / range;
  }
  int64_t tasks(const Problem& p) const { return slices * parts * p.groups * ranges; }
};

struct TaskMemory {
  int64_t rows, copy_rows, dy, copy, stage, words, bytes;
  TaskMemory(const Problem& p, const Cut& cut, int64_t stage_floats) {
    rows = 0;
    copy_rows = p.taps * (cut.block + kTilePad) * 8;
    copy = (copy_rows + (cut.block + kTilePad) * 8 + 63) / 64 * 64;
    dy = copy + (cut.copy ? (cut.block + 1) * kMaxPanel * 16 * 4 : 0);
    stage = dy + ((cut.block + 1) * cut.range + cut.range * kPackSlack + 64) * 4;
    stage = (stage + 63) / 64 * 64;
    words = (stage + stage_floats * 4 + 127) / 64 * 64;
    bytes = words + (p.pairs ? (cut.block + 1) / 2 : p.widens_dy ? cut.block : 0) * cut.range * 4;
  }
};

// Hands out the lines of the next block of dy, so that they are in cache by the time they are packed.
class Ahead {
 public:
  Ahead(const char* next, int64_t bytes, const float* idle) : at_(next), left_(bytes), idle_(reinterpret_cast<const char*>(idle)) {}
  const char* take(int64_t lines) {
    if (left_ < lines * 64) return idle_;
    const char* p = at_;
    at_ += lines * 64;
    left_ -= lines * 64;
    return p;
  }

 private:
  const char* at_;
  int64_t left_;
  const char* idle_;
};

struct Run {
  const ConvIsa& isa;
  const Conv2dBackwardFilterArgs& a;
  const Problem& p;
  const Cut& cut;
  const TaskMemory& memory;
  InputView view;
  const float* zero;
  const uint8_t* zero_codes;  // of pairs of codes
  float* dw;     // [slices][outputs]
  float* dbias;  // [slices][k] or null

  struct Rows {
    const float* dy;
    int64_t stride;
  };

  // What a task works on.
  struct Work {
    int64_t slice, first_window, last_window, group, k0, kn;
    const float** rows;
    const float** copy_rows;
    const uint8_t** code_rows;  // instead of rows: of pairs of codes
    const uint16_t** bf16_rows;  // ... or of values in bf16
    float *copy, *words, *dy, *out;
    Rows from;                  // of dy, as they are packed
    PairRows joined;            // of pairs in rows
  };

  void task(int64_t id, Slots& slots) const {
    Slots::Lease lease(slots);
    Work t{};
    const int64_t range = id % cut.ranges, part = id / (cut.ranges * p.groups) % cut.parts;
    t.group = id / cut.ranges % p.groups;
    t.slice = id / (cut.ranges * p.groups * cut.parts);
    t.first_window = part * cut.part;
    t.last_window = std::min(cut.windows, t.first_window + cut.part);
    t.k0 = t.group * p.kg + range * cut.range;
    t.kn = std::min(cut.range, p.kg - range * cut.range);
    t.rows = reinterpret_cast<const float**>(lease.get() + memory.rows);
    t.copy_rows = reinterpret_cast<const float**>(lease.get() + memory.copy_rows);
    t.copy = reinterpret_cast<float*>(lease.get() + memory.copy);
    t.dy = reinterpret_cast<float*>(lease.get() + memory.dy);
    t.words = reinterpret_cast<float*>(lease.get() + memory.words);
    const bool lie = p.pairs && !p.staged;
    t.code_rows = lie && a.input.codes ? reinterpret_cast<const uint8_t**>(t.rows) : nullptr;
    t.bf16_rows = lie && a.input.x16 ? reinterpret_cast<const uint16_t**>(t.rows) : nullptr;
    const int64_t c0 = cut.columns.start(t.first_window / p.taps) * isa.vector;
    t.joined = {reinterpret_cast<float*>(lease.get() + memory.stage), 0, t.group * p.depth + c0, std::min(p.depth, cut.columns.start((t.last_window - 1) / p.taps + 1) * isa.vector) - c0};
    t.out = dw + t.slice * p.outputs;
    const int64_t first = t.slice * cut.slice, last = std::min(p.gather.pixels(), first + cut.slice);
    float* bias = dbias && part == 0 ? dbias + t.slice * p.k + t.k0 : nullptr;
    if (bias) std::fill_n(bias, t.kn, 0.0f);
    for (int64_t p0 = first; p0 < last; p0 += cut.block) {
      const int64_t p1 = std::min(last, p0 + cut.block);
      find_rows(t, p0, p1, lease);
      t.from = find_dy(t, p0, p1 - p0);
      if (bias) add_bias(t, p0, p1, bias);
      const int64_t next = t.kn == p.k ? std::min(cut.block, last - p1) * t.kn : 0;
      Ahead ahead(dy_at(t, p1), next * (a.dy16 ? 2 : 4), t.dy);
      block(t, p0, p1, p0 == first, ahead);
    }
  }

  const char* dy_at(const Work& t, int64_t pixel) const {
    const int64_t at = pixel * p.k + t.k0;
    return a.dy16 ? reinterpret_cast<const char*>(a.dy16 + at) : reinterpret_cast<const char*>(a.dy + at);
  }

  void add_bias(const Work& t, int64_t p0, int64_t p1, float* bias) const {
    if (!a.dy16) return isa.column_sum(a.dy + p0 * p.k + t.k0, p1 - p0, t.kn, p.k, bias);
    if (p.widens_dy) return isa.column_sum(t.from.dy, p1 - p0, t.kn, t.from.stride, bias);
    // Nothing is packed in t.dy yet.
    for (int64_t i = p0; i < p1; ++i) {
      dense_kernels().widen(a.dy16 + i * p.k + t.k0, t.dy, t.kn);
      isa.column_sum(t.dy, 1, t.kn, t.kn, bias);
    }
  }

  void find_rows(Work& t, int64_t p0, int64_t p1, const Slots::Lease& lease) const {
    InputView v = view;
    float* const staged = reinterpret_cast<float*>(lease.get() + memory.stage);
    if (p.in_rows) {
      const RowRange needed = rows_needed(p.gather, p0, p1);
      t.joined.first_row = needed.first;
      stage_pairs(*p.pairs, p.gather, a.input, needed, t.joined, zero, zero_codes);
      return fill_pair_rows(p.gather, t.joined, p0, p1, zero, t.rows, cut.block + kTilePad);
    }
    if (t.code_rows) return fill_rows(p.gather, InputViewOf<uint8_t>{a.input.codes, 0, view.pitch, 0, 0}, p0, p1, zero_codes, t.code_rows, cut.block + kTilePad, nullptr);
    if (t.bf16_rows) {
      return fill_rows(p.gather, InputViewOf<uint16_t>{a.input.x16, 0, view.pitch, 0, 0}, p0, p1, reinterpret_cast<const uint16_t*>(zero), t.bf16_rows, cut.block + kTilePad, nullptr);
    }
    if (p.staged && !p.whole) {
      const RowRange needed = rows_needed(p.gather, p0, p1);
      stage_rows(isa, p.gather, p.input, needed, view, staged);
      v.base = staged;
      v.first_row = needed.first;
    }
    fill_rows(p.gather, v, p0, p1, zero, t.rows, cut.block + kTilePad, nullptr);
  }

  // Rows of dy, where they lie or in w.words.
  Rows find_dy(const Work& w, int64_t p0, int64_t pixels) const {
    const int64_t at = p0 * p.k + w.k0;
    if (p.pairs) return {join_dy(w, at, pixels), w.kn};
    if (!p.widens_dy) return {a.dy + at, p.k};
    for (int64_t i = 0; i < pixels; ++i) dense_kernels().widen(a.dy16 + at + i * p.k, w.words + i * w.kn, w.kn);
    return {w.words, w.kn};
  }

  // The last pixel of an odd number has none beside it.
  const float* join_dy(const Work& w, int64_t at, int64_t pixels) const {
    const int64_t last = at + (pixels - 1) * p.k;
    float* const odd = pixels % 2 != 0 ? w.words + pixels / 2 * w.kn : nullptr;
    if (a.dy16) {
      p.pairs->join_pairs16(a.dy16 + at, p.k, pixels / 2, w.kn, w.words);
      if (odd) p.pairs->join_rows16(a.dy16 + last, reinterpret_cast<const uint16_t*>(zero), w.kn, odd);
    } else {
      p.pairs->join_pairs(a.dy + at, p.k, pixels / 2, w.kn, w.words);
      if (odd) p.pairs->join_rows(a.dy + last, zero, w.kn, odd);
    }
    return w.words;
  }

  // Behind the last pixel the table holds zeros.
  void join_x(const Work& w, int64_t tap, int64_t offset, int64_t steps, int64_t channels, int64_t width) const {
    const int64_t first = tap * (cut.block + kTilePad);
    for (int64_t i = 0; i < steps; ++i) {
      if (w.bf16_rows) {
        p.pairs->join_rows16(w.bf16_rows[first + 2 * i] + offset, w.bf16_rows[first + 2 * i + 1] + offset, channels, w.copy + i * width);
      } else if (w.code_rows) {
        p.pairs->join_codes(w.code_rows[first + 2 * i] + offset, w.code_rows[first + 2 * i + 1] + offset, a.input.grid.zero_point, channels, w.copy + i * width);
      } else {
        p.pairs->join_rows(w.rows[first + 2 * i] + offset, w.rows[first + 2 * i + 1] + offset, channels, w.copy + i * width);
      }
    }
  }

  void block(const Work& w, int64_t p0, int64_t p1, bool first, Ahead& ahead) const {
    int packed_for = 0;
    const int64_t steps = p.pairs ? (p1 - p0 + 1) / 2 : p1 - p0;
    for (int64_t window = w.first_window; window < w.last_window; ++window) {
      const int64_t j = window / p.taps, tap = window % p.taps;
      const int nv = cut.columns.width(j), most = isa.filter_rows[nv];
      const Panels ks(w.kn, most);
      if (packed_for != most) {
        packed_for = most;
        isa.pack_panels(w.from.dy, w.from.stride, steps, ks.extra, ks.count - ks.extra, static_cast<int>(ks.base), w.dy);
      }
      const int64_t c0 = cut.columns.start(j) * isa.vector;
      FilterTileArgs t{};
      t.rows = w.rows + tap * (cut.block + kTilePad);
      t.x_offset = w.group * p.depth + c0 - (p.in_rows ? w.joined.c0 : 0);
      t.pixels = steps;
      t.dw_stride = p.taps * p.depth;
      t.channels = std::min<int64_t>(nv * isa.vector, p.depth - c0);
      t.first = first;
      if (cut.copy) {
        const int64_t width = nv * isa.vector;
        if (p.pairs) {
          join_x(w, tap, t.x_offset, steps, t.channels, width);
        } else {
          isa.copy_rows(t.rows, t.x_offset, t.pixels, t.channels, width, w.copy);
        }
        for (int64_t i = 0; i < t.pixels; ++i) w.copy_rows[i] = w.copy + i * width;
        std::fill_n(w.copy_rows + t.pixels, kTilePad, w.copy);
        t.rows = w.copy_rows;
        t.x_offset = 0;
      }
      for (int64_t i = 0; i < ks.count; ++i) {
        t.dy = w.dy + ks.start(i) * steps + i * kPackSlack;
        t.dw = w.out + (w.k0 + ks.start(i)) * t.dw_stride + tap * p.depth + c0;
        t.ahead = ahead.take(t.pixels);
        isa.filter_tile[nv][ks.width(i)](t);
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

// The sums, of codes' integers: times their scale.
void scale_result(const Conv2dBackwardFilterArgs& a, int64_t n) {
  parallel_for(n, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) a.dw[i] *= a.input.grid.scale;
  });
}

void run_filter(const ConvIsa& isa, const Conv2dBackwardFilterArgs& a, const Bf16Isa* pairs) {
  const ConvGeometry& g = a.geometry;
  if (g.n * g.oh * g.ow == 0 || g.k * g.r * g.s * g.c == 0) {
    std::fill_n(a.dw, g.k * g.r * g.s * (g.c / g.groups), 0.0f);
    if (a.dbias) std::fill_n(a.dbias, g.k, 0.0f);
    return;
  }
  const Problem p = make_problem(a, pairs);
  const Cut cut(p, isa);
  int64_t task_rows = 0;
  if ((p.staged && !p.whole) || p.in_rows) {
    for (int64_t s = 0; s < p.gather.pixels(); s += cut.slice) {
      const int64_t end = std::min(p.gather.pixels(), s + cut.slice);
      for (int64_t p0 = s; p0 < end; p0 += cut.block) {
        const RowRange r = rows_needed(p.gather, p0, std::min(end, p0 + cut.block));
        task_rows = std::max(task_rows, r.last - r.first);
      }
    }
  }
  const TaskMemory memory(p, cut, task_rows * (p.in_rows ? pair_pitch(p.gather, cut.task_depth(p, isa)) : p.view.pitch));
  const int64_t all_rows = p.gather.n * p.gather.in_h, zeros = std::max({g.c, g.k, p.depth}) + 64;
  const bool split = cut.slices > 1;
  Scratch<float> zero(zeros), copy(p.whole ? all_rows * p.view.pitch + 64 : 0), partial(split ? cut.slices * p.outputs : 0), bias(split && a.dbias ? cut.slices * p.k : 0);
  std::fill_n(zero.get(), zeros, 0.0f);
  const bool codes = pairs && a.input.codes;
  Scratch<uint8_t> zero_codes(codes ? zeros : 0);
  if (codes) std::fill_n(zero_codes.get(), zeros, static_cast<uint8_t>(a.input.grid.zero_point));
  InputView view = p.view;
  if (p.whole) {
    parallel_for(all_rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, view.pitch)),
                 [&](int64_t begin, int64_t end) { stage_rows(isa, p.gather, p.input, {begin, end}, view, copy.get() + begin * view.pitch); });
    view.base = copy.get();
  }
  Slots slots(memory.bytes);
  const Run run{isa, a, p, cut, memory, view, zero.get(), zero_codes.get(), split ? partial.get() : a.dw, a.dbias ? (split ? bias.get() : a.dbias) : nullptr};
  parallel_chunks(cut.tasks(p), [&](int64_t id) { run.task(id, slots); });
  if (split) add_slices(partial.get(), cut.slices, p.outputs, a.dw);
  if (split && a.dbias) add_slices(bias.get(), cut.slices, p.k, a.dbias);
  if (codes) scale_result(a, p.outputs);
}

}  // namespace

void conv2d_backward_filter(const ConvIsa& isa, const Conv2dBackwardFilterArgs& a) {
  const ConvGeometry& g = a.geometry;
  const bool depthwise = g.groups > 1 && g.groups == g.c && g.groups == g.k;
  depthwise && g.n * g.oh * g.ow * g.k * g.r * g.s > 0 ? depthwise_backward_filter(isa, a) : run_filter(isa, a, nullptr);
}

bool bf16_backward_filter(const Bf16Isa& isa, const Conv2dBackwardFilterArgs& a) {
  const ConvGeometry& g = a.geometry;
  const bool deep = g.c / g.groups >= kLeastDepth || (merges(g, true) && g.s * g.c >= kLeastRow);
  if (!deep || g.k / g.groups < kLeastDepth) return false;
  run_filter(*isa.conv, a, &isa);
  return true;
}

}  // namespace detent::cpu
