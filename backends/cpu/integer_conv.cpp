// Convolutions of codes: packed weights times rows of codes found through a table of pointers, as conv_gather.cpp does it for floats.
#include <algorithm>
#include <cstring>

#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/integer.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

constexpr int64_t kWord = 4;                  // codes that one instruction multiplies
constexpr int64_t kStageWhole = 4 << 20;      // bytes: a staged input up to this size is staged once, not per chunk
constexpr int64_t kSmallWeights = 128 << 10;  // bytes
constexpr int64_t kChunkAlign = 24;           // common multiple of the tiles

bool is_depthwise(const ConvGeometry& g) { return g.groups == g.c && g.groups == g.k && g.groups > 1; }

// How the weights of a geometry lie and how its sums are cut; of the geometry's sizes only n, h, w, oh, ow do not matter to the weights.
struct Layout {
  bool merged;  // the s * c codes of a window row, which lie together in NHWC, are one long sum: few channels fill no words
  int64_t taps, depth, words, channels;
  Panels panels;
  int64_t group_bytes;

  Layout(const IntegerIsa& isa, const ConvGeometry& g)
      : merged(g.groups == 1 && g.s > 1 && g.c <= 16 && g.dilation_w == 1),
        taps(merged ? g.r : g.r * g.s),
        depth(merged ? g.s * g.c : g.c / g.groups),
        words((depth + kWord - 1) / kWord),
        channels(g.k / g.groups),
        panels((channels + isa.vector - 1) / isa.vector, isa.max_nv),
        group_bytes(taps * words * kWord * ((channels + isa.vector - 1) / isa.vector) * isa.vector) {}
};

void pack_panel(const IntegerIsa& isa, const Layout& l, const int8_t* q, int64_t panel, int8_t* packed) {
  const int64_t group = panel / l.panels.count, index = panel % l.panels.count;
  const int64_t width = l.panels.width(index) * isa.vector, k0 = l.panels.start(index) * isa.vector, valid = std::min(width, l.channels - k0);
  const int8_t* src = q + (group * l.channels + k0) * l.taps * l.depth;
  int8_t* dst = packed + group * l.group_bytes + k0 * l.taps * l.words * kWord;
  std::memset(dst, 0, static_cast<size_t>(width * l.taps * l.words * kWord));
  if (l.depth % kWord == 0) {
    for (int64_t i = 0; i < l.taps * l.words; ++i) {
      for (int64_t k = 0; k < valid; ++k) std::memcpy(dst + (i * width + k) * kWord, src + (k * l.taps * l.words + i) * kWord, kWord);
    }
    return;
  }
  for (int64_t k = 0; k < valid; ++k) {
    for (int64_t t = 0; t < l.taps; ++t) {
      for (int64_t i = 0; i < l.depth; ++i) dst[((t * l.words + i / kWord) * width + k) * kWord + i % kWord] = src[(k * l.taps + t) * l.depth + i];
    }
  }
}

// One call: where its rows are and how its pixels are cut, by shape alone.
struct Call {
  const IntegerConv2dArgs& a;
  Gather gather;
  int64_t left = 0, right = 0;
  int64_t chunk = 0, chunks = 0;
  InputViewOf<uint8_t> view;
  bool staged = false, whole = false;

  Call(const IntegerConv2dArgs& args, bool merged, bool whole_words, int64_t weight_bytes) : a(args), gather(forward_gather(a.geometry, false)) {
    const ConvGeometry& g = a.geometry;
    if (merged) {
      gather.taps.cols = 1;
      left = g.pad_left;
      right = std::max<int64_t>(0, (g.ow - 1) * g.stride_w + g.s - g.pad_left - g.w);
    }
    // A last word that is not whole reads past its pixel, and must not read past the tensor.
    staged = merged || !whole_words;
    if (!staged) gather = forward_gather(g, true);
    view = {a.x, 0, (left + gather.in_w + right) * gather.in_c, left, right};
    whole = staged && rows() * view.pitch <= kStageWhole;
    const int64_t target = weight_bytes <= kSmallWeights ? 240 : 408, pixels = gather.pixels();
    chunks = std::max<int64_t>(1, (pixels + target / 2) / target);
    chunk = ((pixels + chunks - 1) / chunks + kChunkAlign - 1) / kChunkAlign * kChunkAlign;
    chunks = (pixels + chunk - 1) / chunk;
  }

  int64_t rows() const { return gather.n * gather.in_h; }
  int64_t begin(int64_t i) const { return i * chunk; }
  int64_t end(int64_t i) const { return std::min(gather.pixels(), (i + 1) * chunk); }

  // Rows [range) with borders of the padding's code.
  void stage(RowRange range, uint8_t* dst) const {
    const int64_t values = gather.in_w * gather.in_c;
    const size_t before = static_cast<size_t>(left * gather.in_c), after = static_cast<size_t>(right * gather.in_c);
    for (int64_t row = range.first; row < range.last; ++row, dst += view.pitch) {
      std::memset(dst, a.x_zero, before);
      std::memcpy(dst + before, a.x + row * values, static_cast<size_t>(values));
      std::memset(dst + before + values, a.x_zero, after);
    }
  }

  int64_t staged_rows_per_chunk() const {
    int64_t most = 0;
    for (int64_t i = 0; staged && !whole && i < chunks; ++i) {
      const RowRange r = rows_needed(gather, begin(i), end(i));
      most = std::max(most, r.last - r.first);
    }
    return most;
  }
};

// Scratch of a task: the table of rows, the output's pixel numbers, staged rows.
struct TaskMemory {
  int64_t row_stride, out, stage, bytes;
  explicit TaskMemory(const Call& c) : row_stride(c.chunk + kTilePad) {
    out = std::max<int64_t>(1, c.gather.taps.count()) * row_stride * 8;
    stage = (out + row_stride * 8 + 63) / 64 * 64;
    bytes = stage + c.staged_rows_per_chunk() * c.view.pitch + 64;
  }
};

struct Rows {
  const uint8_t** rows;
  int64_t* out;
};

Rows find_rows(const Call& c, const TaskMemory& m, int64_t chunk, const uint8_t* zero, char* scratch) {
  InputViewOf<uint8_t> v = c.view;
  const int64_t p0 = c.begin(chunk), p1 = c.end(chunk);
  if (c.staged && !c.whole) {
    auto* staged = reinterpret_cast<uint8_t*>(scratch + m.stage);
    const RowRange range = rows_needed(c.gather, p0, p1);
    c.stage(range, staged);
    v.base = staged;
    v.first_row = range.first;
  }
  const Rows r{reinterpret_cast<const uint8_t**>(scratch), reinterpret_cast<int64_t*>(scratch + m.out)};
  fill_rows(c.gather, v, p0, p1, zero, r.rows, m.row_stride, r.out);
  return r;
}

// Calls fn(scratch rows, chunk, part) for every chunk and each of `parts` of it.
template <class Fn>
void for_each_task(Call& c, int64_t parts, Fn&& fn) {
  const int64_t zeros = std::max(c.gather.in_c, c.a.geometry.s * c.a.geometry.c) + 64;
  Scratch<uint8_t> zero(zeros), copy(c.whole ? c.rows() * c.view.pitch + 64 : 0);
  std::memset(zero.get(), c.a.x_zero, static_cast<size_t>(zeros));
  if (c.whole) {
    parallel_for(c.rows(), std::max<int64_t>(1, 65536 / std::max<int64_t>(1, c.view.pitch)), [&](int64_t begin, int64_t end) { c.stage({begin, end}, copy.get() + begin * c.view.pitch); });
    c.view.base = copy.get();
  }
  const TaskMemory memory(c);
  Slots slots(memory.bytes);
  parallel_chunks(c.chunks * parts, [&](int64_t id) {
    Slots::Lease lease(slots);
    const int64_t chunk = id / parts;
    fn(find_rows(c, memory, chunk, zero.get(), lease.get()), memory.row_stride, chunk, id % parts);
  });
}

IntegerTarget target_of(const IntegerConv2dArgs& a) {
  IntegerTarget t{a.offset, a.multiplier, static_cast<float>(a.grid.zero_point), static_cast<float>(a.range.lo), static_cast<float>(a.range.hi), a.y, a.geometry.k, a.grid, a.residual};
  const float lo = static_cast<float>(a.grid.qmin), hi = static_cast<float>(a.grid.qmax);
  t.inside_lo = a.residual.on_value ? a.grid.scale * (lo - t.zero_point) : lo;
  t.inside_hi = a.residual.on_value ? a.grid.scale * (hi - t.zero_point) : hi;
  return t;
}

void run_tiles(const IntegerIsa& isa, const IntegerConv2dArgs& a) {
  const Layout l(isa, a.geometry);
  const int64_t groups = a.geometry.groups, all = l.panels.count * groups;
  Call c(a, l.merged, l.depth % kWord == 0, l.group_bytes * groups);
  // Few chunks: a task for each panel keeps the threads busy. Many: all panels, so that the rows are found once.
  const int64_t per_task = c.chunks >= 64 ? all : std::max<int64_t>(1, std::min(all, all * c.chunks / 32));
  const IntegerTarget target = target_of(a);
  for_each_task(c, (all + per_task - 1) / per_task, [&](const Rows& r, int64_t row_stride, int64_t chunk, int64_t part) {
    IntegerTile t{r.rows, row_stride, l.taps, 0, l.words, nullptr, c.end(chunk) - c.begin(chunk), r.out, 0, 0, &target};
    for (int64_t panel = part * per_task; panel < std::min(all, (part + 1) * per_task); ++panel) {
      const int64_t group = panel / l.panels.count, index = panel % l.panels.count, k0 = l.panels.start(index) * isa.vector;
      const int nv = l.panels.width(index);
      t.k0 = group * l.channels + k0;
      t.channels = std::min<int64_t>(nv * isa.vector, l.channels - k0);
      t.x_offset = group * l.depth;
      t.w = static_cast<const int8_t*>(a.packed) + group * l.group_bytes + k0 * l.taps * l.words * kWord;
      isa.tile[nv](t);
    }
  });
}

void run_depthwise(const IntegerRows& rows, const IntegerConv2dArgs& a) {
  Call c(a, false, true, 0);
  const IntegerTarget target = target_of(a);
  for_each_task(c, 1, [&](const Rows& r, int64_t row_stride, int64_t chunk, int64_t) {
    IntegerDepthwise d{r.rows, row_stride, c.gather.taps.count(), static_cast<const int16_t*>(a.packed), a.geometry.c, &target, nullptr, nullptr};
    for (int64_t p = 0; p < c.end(chunk) - c.begin(chunk); ++p, ++d.rows) {
      d.y = a.y + r.out[p] * a.geometry.k;
      if (a.residual.out) d.residual = a.residual.out + r.out[p] * a.geometry.k;
      rows.depthwise(d);
    }
  });
}

int64_t weights_of(const ConvGeometry& g) { return g.k * g.r * g.s * (g.c / g.groups); }

}  // namespace

int64_t integer_packed_bytes(const IntegerEngine& e, const ConvGeometry& g) {
  if (!e.isa) return weights_of(g);
  return is_depthwise(g) ? (g.r * g.s + 1) / 2 * 4 * g.k : Layout(*e.isa, g).group_bytes * g.groups;
}

void integer_pack(const IntegerEngine& e, const ConvGeometry& g, const int8_t* q, void* packed) {
  if (!e.isa) {
    std::memcpy(packed, q, static_cast<size_t>(weights_of(g)));
    return;
  }
  if (is_depthwise(g)) {
    auto* w = static_cast<int16_t*>(packed);
    const int64_t taps = g.r * g.s;
    std::memset(packed, 0, static_cast<size_t>(integer_packed_bytes(e, g)));
    for (int64_t k = 0; k < g.k; ++k) {
      for (int64_t t = 0; t < taps; ++t) w[(t / 2 * g.k + k) * 2 + t % 2] = q[k * taps + t];
    }
    return;
  }
  const Layout l(*e.isa, g);
  parallel_for(l.panels.count * g.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) pack_panel(*e.isa, l, q, panel, static_cast<int8_t*>(packed));
  });
}

void integer_conv2d(const IntegerEngine& e, const IntegerConv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  if (g.n * g.oh * g.ow * g.k == 0) return;
  if (!e.isa) return scalar::integer_conv2d(a);
  is_depthwise(g) ? run_depthwise(*e.rows, a) : run_tiles(*e.isa, a);
}

void scalar::integer_conv2d(const IntegerConv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t cg = g.c / g.groups, kg = g.k / g.groups;
  const auto* q = static_cast<const int8_t*>(a.packed);
  const Grid clamped{a.grid.scale, a.grid.zero_point, a.range.lo, a.range.hi};
  parallel_for(g.n * g.oh * g.ow, 64, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t ow = p % g.ow, oh = p / g.ow % g.oh, n = p / (g.ow * g.oh);
      for (int64_t k = 0; k < g.k; ++k) {
        int32_t acc = a.offset[k];
        for (int64_t r = 0; r < g.r; ++r) {
          const int64_t h = oh * g.stride_h - g.pad_top + r * g.dilation_h;
          for (int64_t s = 0; s < g.s; ++s) {
            const int64_t w = ow * g.stride_w - g.pad_left + s * g.dilation_w;
            const bool inside = h >= 0 && h < g.h && w >= 0 && w < g.w;
            const int64_t x0 = ((n * g.h + h) * g.w + w) * g.c + k / kg * cg, w0 = ((k * g.r + r) * g.s + s) * cg;
            for (int64_t c = 0; c < cg; ++c) acc = wrapping_add(acc, (inside ? a.x[x0 + c] : a.x_zero) * q[w0 + c]);
          }
        }
        a.y[p * g.k + k] = static_cast<uint8_t>(requantize(acc, a.multiplier[k], clamped));
        if (a.residual.out) a.residual.out[p * g.k + k] = residual_of_sum(acc, {a.residual.scale[k], a.multiplier[k]}, a.residual.clamp, a.grid, a.residual.on_value);
      }
    }
  });
}

double integer_burst(int64_t rounds) {
  const IntegerIsa* const t = integer_engine().isa;
  if (!t) return 0.0;
  // The comparison keeps the work.
  volatile int32_t kept = t->burst(rounds);
  static_cast<void>(kept);
  return static_cast<double>(rounds) * 12 * t->vector * 8;
}

}  // namespace detent::cpu
