// Backward-data of a strided convolution with few input channels (a network's first): phase by phase most lanes of a vector would be idle.
// All phases are computed at once, as stride_h * stride_w * c channels of one gather with step 1, and then shuffled into the image.
#include <algorithm>
#include <cstring>
#include <vector>

#include "detent/backends/cpu/conv_bf16.h"
#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/dense.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

// The dy positions, relative to a block of `stride` pixels, that any of its pixels takes part in: [first, first + count).
struct Reach {
  int64_t first = 0, count = 0;
  Reach(int64_t window, int64_t stride, int64_t pad) {
    const int64_t last = (stride - 1 + pad) / stride;
    first = window - 1 >= pad ? -((window - 1 - pad) / stride) : (pad - window + stride) / stride;
    count = last - first + 1;
  }
};

// The window position of pixel `phase` of the block for the dy position `d` away, or -1.
int64_t window_position(int64_t phase, int64_t d, int64_t stride, int64_t pad, int64_t window) {
  const int64_t r = phase + pad - d * stride;
  return r >= 0 && r < window ? r : -1;
}

// [tap row][tap col][k][lane]: the weight of each lane (phase row, phase column, c), 0 where its phase has no such tap.
void join_weights(const ConvGeometry& g, const Reach& rows, const Reach& cols, const float* w, float* joined) {
  const int64_t lanes = g.stride_h * g.stride_w * g.c;
  std::fill_n(joined, rows.count * cols.count * g.k * lanes, 0.0f);
  for (int64_t i = 0; i < rows.count * cols.count; ++i) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t c = lane % g.c, pw = lane / g.c % g.stride_w, ph = lane / g.c / g.stride_w;
      const int64_t r = window_position(ph, rows.first + i / cols.count, g.stride_h, g.pad_top, g.r);
      const int64_t s = window_position(pw, cols.first + i % cols.count, g.stride_w, g.pad_left, g.s);
      if (r < 0 || s < 0) continue;
      for (int64_t k = 0; k < g.k; ++k) joined[(i * g.k + k) * lanes + lane] = w[((k * g.r + r) * g.s + s) * g.c + c];
    }
  }
}

}  // namespace

bool joins_phases(const ConvGeometry& g) {
  return g.groups == 1 && g.dilation_h == 1 && g.dilation_w == 1 && g.stride_h * g.stride_w > 1 && g.stride_h * g.stride_w * g.c <= 16 && g.r >= g.stride_h && g.s >= g.stride_w;
}

void backward_data_joined(const ConvIsa& isa, const Conv2dBackwardDataArgs& a, const JoinedInput& joined) {
  const ConvGeometry& g = a.geometry;
  const Reach rows(g.r, g.stride_h, g.pad_top), cols(g.s, g.stride_w, g.pad_left);
  const int64_t lanes = g.stride_h * g.stride_w * g.c, taps = rows.count * cols.count;
  GatherConv c;
  const int64_t depth = joined.isa ? g.k / 2 : g.k;
  c.gather.n = g.n, c.gather.in_h = g.oh, c.gather.in_w = g.ow, c.gather.in_c = depth;
  c.gather.grid_h = c.gather.out_h = (g.h + g.stride_h - 1) / g.stride_h;
  c.gather.grid_w = c.gather.out_w = (g.w + g.stride_w - 1) / g.stride_w;
  c.gather.taps = {rows.count, cols.count, rows.first, 1, cols.first, 1};
  Scratch<float> weights(taps * g.k * lanes), words(joined.isa ? taps * depth * lanes : 0), blocks(c.gather.pixels() * lanes);
  join_weights(g, rows, cols, a.w, weights.get());
  if (joined.isa) joined.isa->join_pairs(weights.get(), lanes, taps * depth, lanes, words.get());
  c.reads(values_input(a.dy, a.dy16), joined);
  c.epilogue.y = blocks.get();
  c.depth = depth;
  c.channels = lanes;
  c.weights = {joined.isa ? words.get() : weights.get(), 0, cols.count * depth * lanes, depth * lanes, lanes, 1};
  run_gather(isa, c);
  const int64_t run = g.stride_w * g.c, grid_w = c.gather.grid_w;
  parallel_for(g.n * g.h, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, g.w * g.c)), [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(a.dx16 ? g.w * g.c : 0));
    for (int64_t line = begin; line < end; ++line) {
      const int64_t h = line % g.h, ph = h % g.stride_h;
      const float* from = blocks.get() + ((line / g.h * c.gather.grid_h + h / g.stride_h) * grid_w) * lanes + ph * run;
      float* to = a.dx16 ? values.data() : a.dx + line * g.w * g.c;
      for (int64_t x = 0; x < grid_w; ++x, from += lanes, to += run) {
        std::memcpy(to, from, static_cast<size_t>(std::min(run, (g.w - x * g.stride_w) * g.c)) * sizeof(float));
      }
      if (a.dx16) dense_kernels().narrow(values.data(), a.dx16 + line * g.w * g.c, g.w * g.c);
    }
  });
}

}  // namespace detent::cpu
