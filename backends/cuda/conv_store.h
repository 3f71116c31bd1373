// Where the sums of a tile go: rows m of a matrix or positions of a lattice in NHWC, columns n as channels, four neighbours at a time.
#pragma once

#include "detent/core/epilogue.h"
#include "detent/backends/cuda/fast_div.h"
#include "detent/backends/cuda/tile.h"

namespace detent::DETENT_CUDA_NAMESPACE {

/// Output element (group, split, m, n) lies at row(m) * pitch + group * group_stride + split * split_stride + n.
struct OutputPlace {
  int32_t rows = 0, columns = 0;  // of a group
  int64_t pitch = 0, group_stride = 0, split_stride = 0;
  bool lattice = false;           // rows are positions of a grid, else consecutive
  int32_t out_h = 1, out_w = 1, step_h = 1, step_w = 1, first_h = 0, first_w = 0;
  FastDiv grid_w, grid_hw;
  bool vector = false;            // write_four may be used

  DETENT_HD int64_t row(int32_t m) const {
    int64_t row = m;
    if (lattice) {
      const int32_t image = grid_hw.divide(m), rest = m - image * static_cast<int32_t>(grid_hw.divisor);
      const int32_t y = grid_w.divide(rest), x = rest - y * static_cast<int32_t>(grid_w.divisor);
      row = (static_cast<int64_t>(image) * out_h + y * step_h + first_h) * out_w + x * step_w + first_w;
    }
    return row * pitch;
  }
};

/// Four columns of a tile, of which `live` are there. What their rows have in common is read once: a thread writes the same columns of many rows.
template <class Channel>
struct Columns {
  Epilogue epilogue;
  Channel channel[4];
  int64_t first;  // element (row 0, column 0)
  int32_t live;
};
template <class Channel, class Read>
DETENT_HD Columns<Channel> read_columns(const OutputPlace& place, const Epilogue& e, const TilePosition& at, int32_t n, Read&& read) {
  Columns<Channel> c;
  c.epilogue = settled(e);
  c.first = at.group * place.group_stride + at.split * place.split_stride + n;
  c.live = place.columns - n;
  DETENT_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i < c.live) c.channel[i] = read(at.group * place.columns + n + i);
  }
  return c;
}

/// finish(i, element) gives the result of column i.
template <class Channel, class Finish>
DETENT_HD void write_row(const OutputPlace& place, const Columns<Channel>& c, int32_t m, Finish&& finish) {
  if (m >= place.rows || c.live <= 0) return;
  const int64_t at = place.row(m) + c.first;
  if (place.vector) {
    EpilogueResult r[4];
    DETENT_UNROLL
    for (int i = 0; i < 4; ++i) r[i] = finish(i, at + i);
    write_four(c.epilogue, at, r);
  } else {
    DETENT_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (i < c.live) write_one(c.epilogue, at + i, finish(i, at + i));
    }
  }
}

/// v = alpha * [channel_scale *] sum, through the epilogue; then [+ beta * y].
struct FloatStore {
  OutputPlace place;
  Epilogue epilogue;
  InputFactor alpha;
  float beta = 0.0f;
  const float* channel_scale = nullptr;  // [channels of all groups]

  struct Channel {
    ChannelEpilogue epilogue;
    float scale, factor;
  };
  DETENT_HD Columns<Channel> columns(const TilePosition& at, int32_t n) const {
    const float factor = alpha.get();
    return read_columns<Channel>(place, epilogue, at, n,
                                 [&](int32_t k) { return Channel{channel_epilogue(epilogue, k), channel_scale ? channel_scale[k] : 1.0f, factor}; });
  }

  DETENT_HD void store(const Columns<Channel>& c, int32_t m, const float* sums) const {
    write_row(place, c, m, [&](int i, int64_t at) {
      float v = c.channel[i].factor * sums[i];
      if (channel_scale) v *= c.channel[i].scale;
      EpilogueResult r = finish(c.epilogue, biased(c.epilogue, v, c.channel[i].epilogue, at));
      if (beta != 0.0f) r.y += beta * c.epilogue.y[at];
      return r;
    });
  }
};

/// int32 sums of codes as they are: acc = sum + offset[channel] (the bias, minus zero point times the weights' sum).
struct IntegerStore {
  OutputPlace place;
  Epilogue epilogue;  // bias is in offset
  const IntegerBounds* bounds = nullptr;
  const int32_t* offset = nullptr;
  const AccumulatorScale* scale = nullptr;

  struct Channel {
    int32_t offset;
    AccumulatorScale scale;
    IntegerBounds bounds;
  };
  DETENT_HD Columns<Channel> columns(const TilePosition& at, int32_t n) const {
    const IntegerBounds limits = *bounds;
    return read_columns<Channel>(place, epilogue, at, n, [&](int32_t k) { return Channel{offset[k], scale[k], limits}; });
  }

  DETENT_HD void store(const Columns<Channel>& c, int32_t m, const int32_t* sums) const {
    write_row(place, c, m, [&](int i, int64_t) { return finish_integer(c.epilogue, c.channel[i].bounds, wrapping_add(sums[i], c.channel[i].offset), c.channel[i].scale); });
  }
};

}  // namespace detent::DETENT_CUDA_NAMESPACE
