// Where the operands of a tile come from: a gather over NHWC pixels (with zeros, or the code of zero, for padding), or a matrix. Each thread copies 16 bytes at a
// time where the tensor's channels allow it, else element by element. 32-bit positions of pixels, 64-bit ones of elements.
#pragma once

#include "detent/core/epilogue.h"
#include "detent/backends/cuda/bf16.h"
#include "detent/backends/cuda/fast_div.h"
#include "detent/backends/cuda/tile.h"

namespace detent::DETENT_CUDA_NAMESPACE {

/// Pixels of an NHWC tensor in the order of a grid, and the taps of each: core/math/conv_gather.h in 32 bits.
struct PixelGather {
  const float* x = nullptr;
  const uint16_t* x16 = nullptr;        // instead of x, for a tile of bf16 words, which reads eight channels at a time
  const uint8_t* codes = nullptr;       // instead of x: read as q - zero_point, or as they are by an integer tile
  int32_t zero_point = 0;
  const Grid* resident = nullptr;       // of the codes: its zero point is used instead
  const float* channel_scale = nullptr;  // [in_c]: x is multiplied by it before it is rounded; null: not
  int32_t in_h = 1, in_w = 1, in_c = 1, depth = 1;  // depth: channels of a group
  int32_t step_h = 1, step_w = 1, dh0 = 0, dh_step = 0, dw0 = 0, dw_step = 0;
  int32_t pixels = 0, sum = 0;          // sum: taps * depth
  int32_t width = 1, height = 1;        // of the grid, in steps of the input: where a running position goes back to the first column, the first row
  FastDiv grid_w, grid_hw, by_depth, by_cols;
  bool vector = false;                  // 16 bytes never cross a tap nor lose alignment
};

DETENT_HD int32_t zero_of(const PixelGather& g) { return g.resident ? g.resident->zero_point : g.zero_point; }

/// Where position p of the grid starts in the input; y is far outside for p beyond the grid.
struct PixelOrigin {
  int32_t pixel, y, x;
};
DETENT_HD PixelOrigin pixel_origin(const PixelGather& g, int32_t p) {
  if (p >= g.pixels) return {0, -(1 << 30), 0};
  const int32_t image = g.grid_hw.divide(p), rest = p - image * static_cast<int32_t>(g.grid_hw.divisor);
  const int32_t gy = g.grid_w.divide(rest), gx = rest - gy * static_cast<int32_t>(g.grid_w.divisor);
  const int32_t y = gy * g.step_h + g.dh0, x = gx * g.step_w + g.dw0;
  return {(image * g.in_h + y) * g.in_w + x, y, x};
}

/// Positions of the grid one after the other, without a division: p, and its row and column in the input; `above` counts the rows of the images before.
struct RunningPixel {
  int32_t p, y, x, above;
  int32_t step_y, step_x, step_above;  // of `Count` positions
};
template <int Count>
DETENT_HD RunningPixel running_pixel(const PixelGather& g, int32_t p) {
  const auto place = [&](int32_t n) {
    const int32_t image = g.grid_hw.divide(n), rest = n - image * static_cast<int32_t>(g.grid_hw.divisor), row = g.grid_w.divide(rest);
    return RunningPixel{n, row * g.step_h, (rest - row * static_cast<int32_t>(g.grid_w.divisor)) * g.step_w, image * g.in_h, 0, 0, 0};
  };
  RunningPixel r = place(p);
  const RunningPixel step = place(Count);
  r.y += g.dh0, r.x += g.dw0;
  r.step_y = step.y, r.step_x = step.x, r.step_above = step.above;
  return r;
}
template <int Count>
DETENT_HD void go_on(const PixelGather& g, RunningPixel& r) {
  r.p += Count;
  r.x += r.step_x, r.y += r.step_y, r.above += r.step_above;
  if (r.x >= g.width + g.dw0) r.x -= g.width, r.y += g.step_h;
  if (r.y >= g.height + g.dh0) r.y -= g.height, r.above += g.in_h;
}
DETENT_HD PixelOrigin origin_of(const PixelGather& g, const RunningPixel& r) { return {(r.above + r.y) * g.in_w + r.x, r.p < g.pixels ? r.y : -(1 << 30), r.x}; }

/// Element k of the sum: an offset in rows and columns, and a channel of the group.
struct TapOffset {
  int32_t dy, dx, c;
};
DETENT_HD TapOffset tap_offset(const PixelGather& g, int32_t k) {
  const int32_t tap = g.by_depth.divide(k), i = g.by_cols.divide(tap);
  return {i * g.dh_step, (tap - i * static_cast<int32_t>(g.by_cols.divisor)) * g.dw_step, k - tap * g.depth};
}

DETENT_HD bool inside(const PixelGather& g, const PixelOrigin& o, const TapOffset& t) {
  return static_cast<uint32_t>(o.y + t.dy) < static_cast<uint32_t>(g.in_h) && static_cast<uint32_t>(o.x + t.dx) < static_cast<uint32_t>(g.in_w);
}
DETENT_HD int64_t element(const PixelGather& g, const PixelOrigin& o, const TapOffset& t, int32_t channel0) {
  return static_cast<int64_t>(o.pixel + t.dy * g.in_w + t.dx) * g.in_c + channel0 + t.c;
}

/// The value an f32 tile sees: (q - z), or x times its channel's scale. Only for what cannot be copied as it is.
DETENT_HD float gathered(const PixelGather& g, int32_t zero, int64_t i, int32_t channel) {
  if (g.codes) return static_cast<float>(static_cast<int32_t>(g.codes[i]) - zero);
  return g.channel_scale ? g.x[i] * g.channel_scale[channel] : g.x[i];
}
DETENT_HD bool as_is(const PixelGather& g) { return !g.codes && !g.channel_scale; }

/// Four neighbours, for `vector` gathers. They are on their way as they lie in the tensor, and the thread that asked for them converts them where they have arrived:
/// nothing waits for a load that a register holds. Codes take the first word of four; the second says whether there are any, as padding is 0 and not the code 0.
template <class Block>
DETENT_HD void copy_four(Block& block, const PixelGather& g, float* to, int64_t from, bool ok) {
  if (g.codes) {
    block.template copy<4>(to, g.codes + from, ok);
    to[1] = ok ? 1.0f : 0.0f;
  } else {
    block.template copy<16>(to, g.x + from, ok);
  }
}

/// Eight of bf16, likewise. Codes take the first eight bytes.
template <class Block>
DETENT_HD void copy_eight(Block& block, const PixelGather& g, uint16_t* to, int64_t from, bool ok) {
  if (g.codes) {
    block.template copy<8>(to, g.codes + from, ok);
    *reinterpret_cast<uint64_t*>(to + 4) = ok;  // all that is read again is written
  } else {
    block.template copy<16>(to, g.x16 + from, ok);
  }
}

/// What copy_eight left of codes, or of values with a scale, as bf16.
template <int Count>
DETENT_HD void convert_eights(const PixelGather& g, int32_t zero, int32_t channel, uint16_t* to, int pitch) {
  struct alignas(16) Eight {
    uint32_t word[4];
  };
  Eight held[Count];
  DETENT_UNROLL
  for (int i = 0; i < Count; ++i) held[i] = *reinterpret_cast<const Eight*>(to + i * pitch);
  DETENT_UNROLL
  for (int i = 0; i < Count; ++i) {
    Eight v;
    DETENT_UNROLL
    for (int e = 0; e < 4; ++e) {
      // No index of a register is left to run time.
      if (g.codes) {
        const auto code = [&](int h) { return static_cast<float>(static_cast<int32_t>(held[i].word[e / 2] >> (e % 2 * 2 + h) * 8 & 255) - zero); };
        v.word[e] = held[i].word[2] ? bf16_pair(code(0), code(1)) : 0;
      } else {
        const auto scaled = [&](int h) { return bfloat_value(static_cast<uint16_t>(held[i].word[e] >> 16 * h)) * g.channel_scale[channel + 2 * e + h]; };
        v.word[e] = bf16_pair(scaled(0), scaled(1));
      }
    }
    *reinterpret_cast<Eight*>(to + i * pitch) = v;
  }
}

/// Rounds `Count` fours, `pitch` apart, where they have arrived; all are read before the first is written.
template <class Tile, int Count>
DETENT_HD void round_fours(float* to, int pitch) {
  FloatQuad v[Count];
  DETENT_UNROLL
  for (int i = 0; i < Count; ++i) v[i] = *reinterpret_cast<const FloatQuad*>(to + i * pitch);
  DETENT_UNROLL
  for (int i = 0; i < Count; ++i) {
    DETENT_UNROLL
    for (int e = 0; e < 4; ++e) v[i].v[e] = Tile::rounded(v[i].v[e]);
    *reinterpret_cast<FloatQuad*>(to + i * pitch) = v[i];
  }
}

/// What copy_four left, likewise. Codes about their zero point are exact in any precision.
template <class Tile, int Count>
DETENT_HD void convert_fours(const PixelGather& g, int32_t zero, int32_t channel, float* to, int pitch) {
  if (g.codes) {
    uint32_t word[Count];
    bool ok[Count];
    DETENT_UNROLL
    for (int i = 0; i < Count; ++i) {
      __builtin_memcpy(&word[i], to + i * pitch, 4);
      ok[i] = to[i * pitch + 1] != 0.0f;
    }
    DETENT_UNROLL
    for (int i = 0; i < Count; ++i) {
      FloatQuad v;
      DETENT_UNROLL
      for (int e = 0; e < 4; ++e) v.v[e] = ok[i] ? static_cast<float>(static_cast<int32_t>(word[i] >> 8 * e & 255) - zero) : 0.0f;
      *reinterpret_cast<FloatQuad*>(to + i * pitch) = v;
    }
  } else {
    FloatQuad v[Count], scale;
    DETENT_UNROLL
    for (int e = 0; e < 4; ++e) scale.v[e] = g.channel_scale[channel + e];
    DETENT_UNROLL
    for (int i = 0; i < Count; ++i) v[i] = *reinterpret_cast<const FloatQuad*>(to + i * pitch);
    DETENT_UNROLL
    for (int i = 0; i < Count; ++i) {
      DETENT_UNROLL
      for (int e = 0; e < 4; ++e) v[i].v[e] = Tile::rounded(v[i].v[e] * scale.v[e]);
      *reinterpret_cast<FloatQuad*>(to + i * pitch) = v[i];
    }
  }
}

/// A tile whose rows are pixels and whose k runs over taps and channels: A of forward and backward-data.
template <class Stored, int Rows, int Depth>
struct PixelRows {
  static constexpr Major kMajor = Major::k_major;
  static constexpr int kPer = 16 / static_cast<int>(sizeof(Stored)), kChunks = Depth / kPer, kStep = kTileThreads / kChunks, kPasses = Rows / kStep;
  struct State {
    PixelOrigin row[kPasses];
    int32_t channel0, zero;
  };
  PixelGather g;

  DETENT_HD void start(State& s, int t, const TilePosition& at, int) const {
    s.channel0 = at.group * g.depth;
    s.zero = zero_of(g);
    DETENT_UNROLL
    for (int i = 0; i < kPasses; ++i) s.row[i] = pixel_origin(g, at.m * Rows + t / kChunks + i * kStep);
  }

  template <class T, class Block>
  DETENT_HD void load(Block& block, const State& s, int t, int stage, Stored* dst) const {
    const int k = t % kChunks * kPer, sum = stage * Depth + k;
    Stored* const to = dst + T::at(t / kChunks, k);
    if constexpr (sizeof(Stored) == 1) {
      load_codes<T>(block, s, sum, to);
    } else if (sizeof(Stored) == 2 || g.vector) {
      const bool live = sum < g.sum;
      const TapOffset tap = tap_offset(g, live ? sum : 0);
      DETENT_UNROLL
      for (int i = 0; i < kPasses; ++i) {
        const bool ok = live && inside(g, s.row[i], tap);
        const int64_t from = ok ? element(g, s.row[i], tap, s.channel0) : 0;
        if constexpr (sizeof(Stored) == 2) copy_eight(block, g, to + i * kStep * T::kPitch, from, ok);
        else copy_four(block, g, to + i * kStep * T::kPitch, from, ok);
      }
    } else if constexpr (sizeof(Stored) == 4) {
      for (int e = made_anew(0); e < kPer; ++e) {
        const bool live = sum + e < g.sum;
        const TapOffset tap = tap_offset(g, live ? sum + e : 0);
        DETENT_UNROLL
        for (int i = 0; i < kPasses; ++i) {
          const bool ok = live && inside(g, s.row[i], tap);
          const int64_t from = ok ? element(g, s.row[i], tap, s.channel0) : 0;
          Stored* const one = to + i * kStep * T::kPitch + e;
          if (as_is(g)) {
            block.template copy<4>(one, g.x + from, ok);
          } else {
            *one = ok ? gathered(g, s.zero, from, s.channel0 + tap.c) : 0.0f;
          }
        }
      }
    }
  }

  template <class T, class Tile>
  DETENT_HD void arrived(const State& s, int t, int stage, Stored* dst) const {
    if constexpr (sizeof(Stored) != 1) {
      const int k = t % kChunks * kPer, sum = stage * Depth + k;
      Stored* const to = dst + T::at(t / kChunks, k);
      const auto channel = [&] { return s.channel0 + tap_offset(g, sum < g.sum ? sum : 0).c; };
      if constexpr (sizeof(Stored) == 2) {
        if (!as_is(g)) convert_eights<kPasses>(g, s.zero, channel(), to, kStep * T::kPitch);
      } else if (g.vector && !as_is(g)) {
        convert_fours<Tile, kPasses>(g, s.zero, channel(), to, kStep * T::kPitch);
      } else if (Tile::kRounds) {
        round_fours<Tile, kPasses>(to, kStep * T::kPitch);
      }
    }
  }

  // Codes as they are; padding is the code of zero. Beyond the sum the weights are zero, so anything may stand there.
  template <class T, class Block>
  DETENT_HD void load_codes(Block& block, const State& s, int sum, Stored* to) const {
    const uint8_t zero = static_cast<uint8_t>(s.zero);
    if (g.vector) {
      const bool live = sum < g.sum;
      const TapOffset tap = tap_offset(g, live ? sum : 0);
      DETENT_UNROLL
      for (int i = 0; i < kPasses; ++i) {
        Stored* const row = to + i * kStep * T::kPitch;
        if (live && inside(g, s.row[i], tap)) {
          block.template copy<16>(row, g.codes + element(g, s.row[i], tap, s.channel0), true);
        } else {
          const uint32_t word = zero * 0x01010101u;
          DETENT_UNROLL
          for (int e = 0; e < 4; ++e) reinterpret_cast<uint32_t*>(row)[e] = word;
        }
      }
    } else {
      for (int e = 0; e < kPer; ++e) {
        const bool live = sum + e < g.sum;
        const TapOffset tap = tap_offset(g, live ? sum + e : 0);
        DETENT_UNROLL
        for (int i = 0; i < kPasses; ++i) {
          to[i * kStep * T::kPitch + e] = live && inside(g, s.row[i], tap) ? g.codes[element(g, s.row[i], tap, s.channel0)] : zero;
        }
      }
    }
  }
};

/// A tile whose k runs over pixels and whose columns are taps and channels: B of backward-filter.
template <class Stored, int Rows, int Depth>
struct PixelColumns {
  static constexpr Major kMajor = Major::k_minor;
  static constexpr int kPer = 16 / static_cast<int>(sizeof(Stored)), kChunks = Rows / kPer, kStep = kTileThreads / kChunks, kPasses = Depth / kStep;
  struct State {
    TapOffset tap;
    int32_t column, channel0, zero;
    RunningPixel pixel;  // where the next copy begins: stages come in order
  };
  PixelGather g;

  DETENT_HD void start(State& s, int t, const TilePosition& at, int stage) const {
    s.channel0 = at.group * g.depth;
    s.zero = zero_of(g);
    s.column = at.n * Rows + t % kChunks * kPer;
    s.tap = tap_offset(g, s.column < g.sum ? s.column : 0);
    s.pixel = running_pixel<kStep>(g, stage * Depth + t / kChunks);
  }

  template <class T, class Block>
  DETENT_HD void load(Block& block, State& s, int t, int, Stored* dst) const {
    DETENT_UNROLL
    for (int i = 0; i < kPasses; ++i) {
      const PixelOrigin o = origin_of(g, s.pixel);
      go_on<kStep>(g, s.pixel);
      Stored* const to = dst + T::at(t % kChunks * kPer, t / kChunks + i * kStep);
      if constexpr (sizeof(Stored) == 2) {
        const bool ok = s.column < g.sum && inside(g, o, s.tap);
        copy_eight(block, g, to, ok ? element(g, o, s.tap, s.channel0) : 0, ok);
      } else if (g.vector) {
        const bool ok = s.column < g.sum && inside(g, o, s.tap);
        copy_four(block, g, to, ok ? element(g, o, s.tap, s.channel0) : 0, ok);
      } else {
        for (int e = made_anew(0); e < 4; ++e) {
          const bool live = s.column + e < g.sum;
          const TapOffset tap = tap_offset(g, live ? s.column + e : 0);
          const bool ok = live && inside(g, o, tap);
          const int64_t from = ok ? element(g, o, tap, s.channel0) : 0;
          if (as_is(g)) {
            block.template copy<4>(to + e, g.x + from, ok);
          } else {
            to[e] = ok ? gathered(g, s.zero, from, s.channel0 + tap.c) : 0.0f;
          }
        }
      }
    }
  }

  template <class T, class Tile>
  DETENT_HD void arrived(const State& s, int t, int, Stored* dst) const {
    Stored* const to = dst + T::at(t % kChunks * kPer, t / kChunks);
    if constexpr (sizeof(Stored) == 2) {
      if (!as_is(g)) convert_eights<kPasses>(g, s.zero, s.channel0 + s.tap.c, to, kStep * T::kPitch);
    } else {
      if (g.vector && !as_is(g)) {
        convert_fours<Tile, kPasses>(g, s.zero, s.channel0 + s.tap.c, to, kStep * T::kPitch);
      } else if (Tile::kRounds) {
        round_fours<Tile, kPasses>(to, kStep * T::kPitch);
      }
    }
  }
};

/// A matrix per group: element (row, k) at p[group * group_stride + row * pitch + k] (k_major), or with taps at
/// p[group * group_stride + row + tap_row * i + tap_col * j + pitch * c], k = (i * cols + j) * depth + c (k_minor). As bytes: the weights of an integer tile.
struct MatrixOperand {
  const void* p = nullptr;
  int64_t group_stride = 0, pitch = 0, tap_row = 0, tap_col = 0;
  int32_t rows = 0, sum = 0, depth = 1;
  FastDiv by_depth, by_cols;
  bool vector = false;
  bool rounded = false;  // to what the precision holds
  /// Whether the k of a stage are of one tap; that of the first is enough then.
  template <int Depth>
  DETENT_HD bool one_tap() const {
    return depth % Depth == 0 || depth >= sum;
  }
};

template <class Stored, int Rows, int Depth, bool along_m>
struct MatrixRowsOf {
  static constexpr Major kMajor = Major::k_major;
  static constexpr int kPer = 16 / static_cast<int>(sizeof(Stored)), kChunks = Depth / kPer, kStep = kTileThreads / kChunks, kPasses = Rows / kStep;
  struct State {
    const Stored* p;
    int32_t row;
  };
  MatrixOperand m;

  DETENT_HD void start(State& s, int t, const TilePosition& at, int) const {
    s.row = (along_m ? at.m : at.n) * Rows + t / kChunks;
    s.p = static_cast<const Stored*>(m.p) + at.group * m.group_stride;
  }

  template <class T, class Block>
  DETENT_HD void load(Block& block, const State& s, int t, int stage, Stored* dst) const {
    const int k = t % kChunks * kPer, sum = stage * Depth + k;
    const Stored* from = s.p + s.row * m.pitch + sum;
    DETENT_UNROLL
    for (int i = 0; i < kPasses; ++i, from += kStep * m.pitch) {
      const int32_t row = s.row + i * kStep;
      Stored* const to = dst + T::at(t / kChunks + i * kStep, k);
      if (sizeof(Stored) != 4 || m.vector) {
        const bool ok = row < m.rows && sum < m.sum;
        block.template copy<16>(to, ok ? from : s.p, ok);
      } else {
        for (int e = 0; e < kPer; ++e) {
          const bool ok = row < m.rows && sum + e < m.sum;
          block.template copy<4>(to + e, ok ? from + e : s.p, ok);
        }
      }
    }
  }

  template <class T, class Tile>
  DETENT_HD void arrived(const State&, int t, int, Stored* dst) const {
    if constexpr (sizeof(Stored) == 4) {
      if (Tile::kRounds && !m.rounded) round_fours<Tile, kPasses>(dst + T::at(t / kChunks, t % kChunks * kPer), kStep * T::kPitch);
    }
  }
};
template <class Stored, int Rows, int Depth>
using MatrixRowsB = MatrixRowsOf<Stored, Rows, Depth, false>;

template <class Stored, int Rows, int Depth, bool along_m>
struct MatrixColumnsOf {
  static constexpr Major kMajor = Major::k_minor;
  static constexpr int kPer = 16 / static_cast<int>(sizeof(Stored)), kChunks = Rows / kPer, kStep = kTileThreads / kChunks, kPasses = Depth / kStep;
  struct State {
    const Stored* p;
    int32_t row;
  };
  MatrixOperand m;

  DETENT_HD void start(State& s, int t, const TilePosition& at, int) const {
    s.row = (along_m ? at.m : at.n) * Rows + t % kChunks * kPer;
    s.p = static_cast<const Stored*>(m.p) + at.group * m.group_stride;
  }

  template <class T, class Block>
  DETENT_HD void load(Block& block, const State& s, int t, int stage, Stored* dst) const {
    if (m.vector && m.template one_tap<Depth>()) {
      const int sum = stage * Depth + t / kChunks;
      const Stored* from = element(s, stage * Depth) + static_cast<int64_t>(t / kChunks) * m.pitch;
      DETENT_UNROLL
      for (int i = 0; i < kPasses; ++i) {
        const bool ok = sum + i * kStep < m.sum && s.row < m.rows;
        block.template copy<16>(dst + T::at(t % kChunks * kPer, t / kChunks + i * kStep), ok ? from : s.p, ok);
        from += kStep * m.pitch;
      }
      return;
    }
    DETENT_UNROLL
    for (int i = 0; i < kPasses; ++i) {
      const int k = t / kChunks + i * kStep, sum = stage * Depth + k;
      const bool live = sum < m.sum;
      const Stored* const from = element(s, live ? sum : 0);
      Stored* const to = dst + T::at(t % kChunks * kPer, k);
      if (sizeof(Stored) != 4 || m.vector) {
        const bool ok = live && s.row < m.rows;
        block.template copy<16>(to, ok ? from : s.p, ok);
      } else {
        for (int e = made_anew(0); e < 4; ++e) {
          const bool ok = live && s.row + e < m.rows;
          block.template copy<4>(to + e, ok ? from + e : s.p, ok);
        }
      }
    }
  }

  template <class T, class Tile>
  DETENT_HD void arrived(const State&, int t, int, Stored* dst) const {
    if constexpr (sizeof(Stored) == 4) {
      if (Tile::kRounds && !m.rounded) round_fours<Tile, kPasses>(dst + T::at(t % kChunks * kPer, t / kChunks), kStep * T::kPitch);
    }
  }

 private:
  DETENT_HD const Stored* element(const State& s, int32_t sum) const {
    const int32_t tap = m.by_depth.divide(sum), r = m.by_cols.divide(tap), c = tap - r * static_cast<int32_t>(m.by_cols.divisor);
    return s.p + s.row + r * m.tap_row + c * m.tap_col + static_cast<int64_t>(sum - tap * m.depth) * m.pitch;
  }
};
template <class Stored, int Rows, int Depth>
using MatrixColumnsA = MatrixColumnsOf<Stored, Rows, Depth, true>;
template <class Stored, int Rows, int Depth>
using MatrixColumnsB = MatrixColumnsOf<Stored, Rows, Depth, false>;

}  // namespace detent::DETENT_CUDA_NAMESPACE
