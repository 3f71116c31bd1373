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

  DETENT_HD int64_t element(const TilePosition& at, int32_t m, int32_t n) const {
    int64_t row = m;
    if (lattice) {
      const int32_t image = grid_hw.divide(m), rest = m - image * static_cast<int32_t>(grid_hw.divisor);
      const int32_t y = grid_w.divide(rest), x = rest - y * static_cast<int32_t>(grid_w.divisor);
      row = (static_cast<int64_t>(image) * out_h + y * step_h + first_h) * out_w + x * step_w + first_w;
    }
    return row * pitch + at.group * group_stride + at.split * split_stride + n;
  }
};

/// v = alpha * [channel_scale *] sum, through the epilogue; then [+ beta * y].
struct FloatStore {
  OutputPlace place;
  Epilogue epilogue;
  InputFactor alpha;
  float beta = 0.0f;
  const float* channel_scale = nullptr;  // [channels of all groups]

  DETENT_HD EpilogueResult result(const Epilogue& e, float factor, float sum, int32_t channel, int64_t i) const {
    float v = factor * sum;
    if (channel_scale) v *= channel_scale[channel];
    EpilogueResult r = finish(e, biased(e, v, channel, i));
    if (beta != 0.0f) r.y += beta * e.y[i];
    return r;
  }

  DETENT_HD void store(const TilePosition& at, int32_t m, int32_t n, const float* sums) const {
    if (m >= place.rows || n >= place.columns) return;
    const int64_t i = place.element(at, m, n);
    const int32_t channel = at.group * place.columns + n;
    const Epilogue now = settled(epilogue);
    const float factor = alpha.get();
    if (place.vector) {
      EpilogueResult r[4];
      DETENT_UNROLL
      for (int e = 0; e < 4; ++e) r[e] = result(now, factor, sums[e], channel + e, i + e);
      write_four(now, i, r);
    } else {
      for (int e = 0; e < 4 && n + e < place.columns; ++e) write_one(now, i + e, result(now, factor, sums[e], channel + e, i + e));
    }
  }
};

/// int32 sums of codes as they are: acc = sum + offset[channel] (the bias, minus zero point times the weights' sum).
struct IntegerStore {
  OutputPlace place;
  Epilogue epilogue;  // bias is in offset
  const IntegerBounds* bounds = nullptr;
  const int32_t* offset = nullptr;
  const AccumulatorScale* scale = nullptr;

  DETENT_HD void store(const TilePosition& at, int32_t m, int32_t n, const int32_t* sums) const {
    if (m >= place.rows || n >= place.columns) return;
    const int64_t i = place.element(at, m, n);
    const int32_t channel = at.group * place.columns + n;
    const Epilogue now = settled(epilogue);
    const IntegerBounds limits = *bounds;
    if (place.vector) {
      EpilogueResult r[4];
      DETENT_UNROLL
      for (int e = 0; e < 4; ++e) r[e] = finish_integer(now, limits, wrapping_add(sums[e], offset[channel + e]), scale[channel + e]);
      write_four(now, i, r);
    } else {
      for (int e = 0; e < 4 && n + e < place.columns; ++e) {
        write_one(now, i + e, finish_integer(now, limits, wrapping_add(sums[e], offset[channel + e]), scale[channel + e]));
      }
    }
  }
};

}  // namespace detent::DETENT_CUDA_NAMESPACE
