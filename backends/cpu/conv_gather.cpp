// The core of forward, backward-data and gemm: packed weight panels times rows found through a table of pointers.
#include <algorithm>
#include <cstring>
#include <limits>

#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/moments.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

constexpr int64_t kPanelBytes = 256 << 10;   // of weights, to stay in the second-level cache while a chunk of pixels passes
constexpr int64_t kStageWhole = 2 << 20;     // floats: a staged input up to this size is staged once, not per chunk
constexpr int64_t kStreamFloats = 4 << 20;   // outputs at least this large are not expected to be read from cache
constexpr int64_t kChunkAlign = 24;          // common multiple of the tiles

// The cut of one call, by shape alone.
struct Cut {
  Panels panels;
  int64_t block, blocks;        // depth
  int64_t chunk, chunks;        // pixels
  int64_t panels_per_task, panel_tasks;
  int64_t group_floats;         // packed weights of a group

  Cut(const ConvIsa& isa, const GatherConv& c) : panels((c.channels + isa.vector - 1) / isa.vector, isa.max_nv) {
    const int64_t taps = std::max<int64_t>(1, c.gather.taps.count());
    const int64_t panel_bytes = taps * c.depth * panels.width(0) * isa.vector * 4;
    blocks = std::max<int64_t>(1, (panel_bytes + kPanelBytes - 1) / kPanelBytes);
    block = (c.depth + blocks - 1) / blocks;
    block = std::min(c.depth, (block + 3) / 4 * 4);
    blocks = block > 0 ? (c.depth + block - 1) / block : 1;
    const int64_t weights = taps * c.depth * c.channels * 4;
    const int64_t pixels = c.gather.pixels();
    const int64_t target = weights <= 2 * kPanelBytes ? 240 : 408;
    chunks = std::max<int64_t>(1, (pixels + target / 2) / target);
    chunk = ((pixels + chunks - 1) / chunks + kChunkAlign - 1) / kChunkAlign * kChunkAlign;
    chunks = (pixels + chunk - 1) / chunk;
    // Few chunks: a task for each panel keeps the threads busy. Many: all panels, so that the rows are found once.
    const int64_t all = panels.count * c.groups;
    panels_per_task = chunks >= 64 ? all : std::max<int64_t>(1, std::min(all, all * chunks / 32));
    panel_tasks = (all + panels_per_task - 1) / panels_per_task;
    group_floats = taps * c.depth * ((c.channels + isa.vector - 1) / isa.vector) * isa.vector;
  }
};

void pack_one(const ConvIsa& isa, const GatherConv& c, const Cut& cut, int64_t panel, int64_t block, int64_t tap, float* packed) {
  const int64_t group = panel / cut.panels.count, index = panel % cut.panels.count;
  const int64_t width = cut.panels.width(index) * isa.vector, k0 = cut.panels.start(index) * isa.vector;
  const int64_t taps = c.gather.taps.count(), i0 = block * cut.block, rows = std::min(cut.block, c.depth - i0), valid = std::min(width, c.channels - k0);
  const WeightView& w = c.weights;
  const float* src = w.w + group * w.group + tap / c.gather.taps.cols * w.tap_row + tap % c.gather.taps.cols * w.tap_col + i0 * w.stride_i + k0 * w.stride_j;
  float* dst = packed + group * cut.group_floats + k0 * taps * c.depth + (i0 * taps + tap * rows) * width;
  if (w.stride_i == 1) {
    isa.transpose(src, w.stride_j, valid, rows, dst, width, width);
    return;
  }
  for (int64_t i = 0; i < rows; ++i, dst += width, src += w.stride_i) {
    std::memcpy(dst, src, static_cast<size_t>(valid) * sizeof(float));
    std::fill(dst + valid, dst + width, 0.0f);
  }
}

void pack(const ConvIsa& isa, const GatherConv& c, const Cut& cut, float* packed) {
  const int64_t taps = c.gather.taps.count(), per_panel = cut.blocks * taps, pieces = cut.panels.count * c.groups * per_panel;
  if (c.depth == 0 || taps == 0) return;
  const int64_t floats = std::max<int64_t>(1, cut.block * cut.panels.width(0) * isa.vector);
  parallel_for(pieces, std::max<int64_t>(1, 16384 / floats), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_one(isa, c, cut, i / per_panel, i / taps % cut.blocks, i % taps, packed);
  });
}

// The layout of a task's scratch.
struct TaskMemory {
  int64_t rows, out, partial, stage, bytes;
  TaskMemory(const ConvIsa& isa, const GatherConv& c, const Cut& cut, int64_t stage_floats) {
    const int64_t row_stride = cut.chunk + kTilePad;
    rows = 0;
    out = rows + std::max<int64_t>(1, c.gather.taps.count()) * row_stride * 8;
    partial = (out + row_stride * 8 + 63) / 64 * 64;
    stage = partial + (cut.blocks > 1 ? row_stride * isa.max_nv * isa.vector * 4 : 0);
    bytes = stage + stage_floats * 4 + 64;
  }
};

void stage_joined(const JoinedInput& in, const Gather& g, RowRange range, const InputView& view, float* dst) {
  const int64_t floats = 2 * g.in_w * g.in_c;
  for (int64_t row = range.first; row < range.last; ++row, dst += view.pitch) {
    std::fill_n(dst, view.left * g.in_c, 0.0f);
    float* const words = dst + view.left * g.in_c;
    in.x16 ? in.isa->join_columns16(in.x16 + row * floats, in.scale, g.in_w, 2 * g.in_c, words) : in.isa->join_columns(in.x + row * floats, in.scale, g.in_w, 2 * g.in_c, words);
    std::fill_n(dst + (view.left + g.in_w) * g.in_c, view.right * g.in_c, 0.0f);
  }
}

void stage_input(const ConvIsa& isa, const GatherConv& c, RowRange range, const InputView& view, float* dst) {
  c.joined.isa ? stage_joined(c.joined, c.gather, range, view, dst) : stage_rows(isa, c.gather, c.input, range, view, dst);
}

struct Run {
  const ConvIsa& isa;
  const GatherConv& c;
  const Cut& cut;
  const float* packed;
  const float* zero;
  TileEpilogue epilogue;
  InputView view;
  bool stage;  // per task
  const TaskMemory& memory;
  float* moments;  // [chunks][2][channels of all groups], or null

  void task(int64_t id, Slots& slots) const {
    Slots::Lease lease(slots);
    const int64_t chunk = id / cut.panel_tasks, part = id % cut.panel_tasks;
    const int64_t p0 = chunk * cut.chunk, p1 = std::min(c.gather.pixels(), p0 + cut.chunk);
    InputView v = view;
    if (stage) {
      float* staged = reinterpret_cast<float*>(lease.get() + memory.stage);
      const RowRange range = rows_needed(c.gather, p0, p1);
      stage_input(isa, c, range, view, staged);
      v.base = staged;
      v.first_row = range.first;
    }
    auto** rows = reinterpret_cast<const float**>(lease.get() + memory.rows);
    auto* out = reinterpret_cast<int64_t*>(lease.get() + memory.out);
    fill_rows(c.gather, v, p0, p1, zero, rows, cut.chunk + kTilePad, out);
    TileArgs t{};
    t.rows = rows;
    t.row_stride = cut.chunk + kTilePad;
    t.taps = c.gather.taps.count();
    t.pixels = p1 - p0;
    t.partial = reinterpret_cast<float*>(lease.get() + memory.partial);
    t.out = out;
    t.epilogue = &epilogue;
    const int64_t all = cut.panels.count * c.groups, last = std::min(all, (part + 1) * cut.panels_per_task);
    for (int64_t panel = part * cut.panels_per_task; panel < last; ++panel) one_panel(t, chunk, panel);
  }

  void one_panel(TileArgs t, int64_t chunk, int64_t panel) const {
    const int64_t group = panel / cut.panels.count, index = panel % cut.panels.count;
    const int nv = cut.panels.width(index);
    const int64_t width = nv * isa.vector, k0 = cut.panels.start(index) * isa.vector;
    t.k0 = group * c.channels + k0;
    t.channels = std::min(width, c.channels - k0);
    if (moments) {
      t.mean = moments + chunk * 2 * c.channels * c.groups + t.k0;
      t.m2 = t.mean + c.channels * c.groups;
    }
    for (int64_t b = 0; b < cut.blocks; ++b) {
      const int64_t i0 = b * cut.block;
      t.depth = std::min(cut.block, c.depth - i0);
      t.x_offset = group * c.depth + i0;
      t.w = packed + group * cut.group_floats + k0 * t.taps * c.depth + i0 * t.taps * width;
      t.first = b == 0;
      t.last = b + 1 == cut.blocks;
      isa.tile[nv](t);
    }
  }
};

// The chunks' moments, in order, to the statistics of all pixels.
void join_moments(const GatherConv& c, const Cut& cut, const float* moments) {
  const int64_t channels = c.channels * c.groups, pixels = c.gather.pixels();
  ChannelMoments all(channels);
  for (int64_t i = 0; i < cut.chunks; ++i, moments += 2 * channels) all.join(std::min(cut.chunk, pixels - i * cut.chunk), moments, moments + channels);
  all.statistics(c.mean, c.var);
  if (!c.epilogue.bias) return;
  for (int64_t j = 0; j < channels; ++j) c.mean[j] += c.epilogue.bias[j];
}

}  // namespace

void GatherConv::reads(const ConvInput& in, const JoinedInput& words) {
  const bool as_they_lie = words.x16 && !words.scale;
  input = words.isa ? ConvInput{} : in;
  if (words.isa && as_they_lie) input.x = reinterpret_cast<const float*>(words.x16);
  joined = words.isa && !as_they_lie ? words : JoinedInput{};
}

TileEpilogue tile_epilogue(const Epilogue& e, int64_t channels, int64_t groups, int64_t pixels, int vector) {
  TileEpilogue t;
  t.multiply = e.scale;
  t.bias = e.bias;
  t.addend = e.addend;
  t.clamp_min = e.clamp_min;
  t.clamp_max = e.clamp_max;
  constexpr float inf = std::numeric_limits<float>::infinity();
  t.clamp = e.clamp_min > -inf || e.clamp_max < inf;
  t.quantize = e.quantize;
  t.scale = e.grid.scale;
  t.zero_point = static_cast<float>(e.grid.zero_point);
  t.lo = static_cast<float>(e.grid.qmin);
  t.hi = static_cast<float>(e.grid.qmax);
  t.y = e.y;
  t.y16 = e.y16;
  t.codes = e.quantize ? e.codes : nullptr;
  t.residual = e.quantize ? e.residual : nullptr;
  t.mask_on_value = e.mask_on_value;
  t.channels = channels;
  // Past the caches: whole lines are written around them.
  const uintptr_t at = reinterpret_cast<uintptr_t>(e.y) + reinterpret_cast<uintptr_t>(e.y16);  // one is null
  t.stream = !e.quantize && at != 0 && channels / groups % 16 == 0 && channels / groups % vector == 0 && at % 64 == 0 && pixels * channels >= (e.y16 ? 2 : 1) * kStreamFloats;
  return t;
}

void run_gather(const ConvIsa& isa, const GatherConv& c) {
  const Gather& g = c.gather;
  if (g.pixels() == 0 || c.channels == 0) return;
  const Cut cut(isa, c);
  const bool staged = (!c.input.x || c.left > 0 || c.right > 0) && g.taps.count() > 0;
  InputView view{c.input.x, 0, (c.left + g.in_w + c.right) * g.in_c, c.left, c.right};
  const int64_t all_rows = g.n * g.in_h;
  // Joined in the cache, unless each of many tasks would do it again.
  const bool whole = staged && (g.in_w > kLongRow || (c.joined.isa ? cut.panel_tasks > 1 : all_rows * view.pitch <= kStageWhole));
  int64_t task_rows = 0;
  if (staged && !whole) {
    for (int64_t i = 0; i < cut.chunks; ++i) {
      const RowRange r = rows_needed(g, i * cut.chunk, std::min(g.pixels(), (i + 1) * cut.chunk));
      task_rows = std::max(task_rows, r.last - r.first);
    }
  }
  const TaskMemory memory(isa, c, cut, task_rows * view.pitch);
  const int64_t zeros = std::max(g.in_c, c.depth) + 64;
  Scratch<float> packed(cut.group_floats * c.groups + 64), zero(zeros), copy(whole ? all_rows * view.pitch + 64 : 0), moments(c.mean ? cut.chunks * 2 * c.channels * c.groups : 0);
  std::fill_n(zero.get(), zeros, 0.0f);
  if (whole) {
    parallel_for(all_rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, view.pitch)), [&](int64_t begin, int64_t end) {
      stage_input(isa, c, {begin, end}, view, copy.get() + begin * view.pitch);
    });
    view.base = copy.get();
  }
  pack(isa, c, cut, packed.get());
  Slots slots(memory.bytes);
  const Run run{isa, c, cut, packed.get(), zero.get(), tile_epilogue(c.epilogue, c.channels * c.groups, c.groups, g.n * g.out_h * g.out_w, isa.vector), view, staged && !whole, memory, moments.get()};
  parallel_chunks(cut.chunks * cut.panel_tasks, [&](int64_t id) { run.task(id, slots); });
  if (c.mean) join_moments(c, cut, moments.get());
}

}  // namespace detent::cpu
