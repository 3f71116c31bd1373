// Backward-data of a convolution with few input channels, such as a network's first layer, whose image gradient a learned input range needs: a tile would be mostly
// empty. Eight threads share a run of neighbouring pixels, four output channels each, so that every load is 16 bytes and dy is read in whole lines. Sums in f32 with
// fused multiply-adds in every precision.
#include "detent/backends/cuda/bf16.h"
#include "detent/backends/cuda/conv.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

constexpr int kLanes = 8, kAtOnce = 4 * kLanes;  // threads of a run of pixels, and the output channels they take at a time

// packed[tap][k / kAtOnce][C][kAtOnce] = w[k][r][s][c] for the taps of a phase, in the gather's order; zeros beyond k and c.
struct PackTaps {
  const float* w;
  int64_t k, c, cols, row, tap_row, tap_col;  // row: weights of an output channel; from one tap to the next, down and across
  int64_t chunks, width;
  float* packed;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t channel = i / kAtOnce % width, chunk = i / kAtOnce / width % chunks, tap = i / kAtOnce / width / chunks, out = chunk * kAtOnce + i % kAtOnce;
    packed[i] = out < k && channel < c ? w[out * row + tap / cols * tap_row + tap % cols * tap_col + channel] : 0.0f;
  }
};

/// A block takes kDown x kAcross positions of the phase's grid, kRun of a row to eight threads; their sums are joined in order.
template <int C, class T>
struct NarrowBackwardData {
  static constexpr int kThreads = 256, kShare = 2, kRun = 4, kDown = 8, kAcross = kThreads / kLanes / kDown * kRun;
  static constexpr int kPart = kRun * C, kPitch = kThreads / kLanes * kPart + 3;
  struct Shared {
    float part[kLanes * kPitch];
  };
  PixelGather dy;
  const T* all_dy;
  const float* w;  // packed
  int32_t columns, chunks, grid_h, grid_w, tiles_across, tiles_down, rows, cols;  // rows, cols: of taps
  OutputPlace place;
  float* dx;

  struct Spot {
    int32_t image, y, x;  // x: of the first of kRun
  };
  DETENT_HD Spot spot(int64_t index, int group) const {
    const int32_t tile = static_cast<int32_t>(index), line = tile / tiles_across, image = line / tiles_down;
    return {image, (line - image * tiles_down) * kDown + group / (kAcross / kRun), (tile - line * tiles_across) * kAcross + group % (kAcross / kRun) * kRun};
  }

  // Inside: all pixels of the run are in the image.
  template <bool Inside>
  DETENT_HD void add_tap(const T* from, const float* weights, int32_t x, int lane, float (&acc)[kRun][C]) const {
    const int32_t k = dy.depth;
    for (int32_t c0 = lane * 4; c0 < k; c0 += kAtOnce, from += kAtOnce, weights += C * kAtOnce) {
      Four<float> v[kRun], u[C];
      DETENT_UNROLL
      for (int p = 0; p < kRun; ++p) {
        if (!Inside) v[p] = Four<float>{};
        if (Inside || static_cast<uint32_t>(x + p) < static_cast<uint32_t>(dy.in_w)) v[p] = values_at<4>(from + static_cast<int64_t>(p) * k);
      }
      DETENT_UNROLL
      for (int c = 0; c < C; ++c) u[c] = values_at<4>(weights + c * kAtOnce);
      DETENT_UNROLL
      for (int e = 0; e < 4; ++e) {
        DETENT_UNROLL
        for (int p = 0; p < kRun; ++p) {
          DETENT_UNROLL
          for (int c = 0; c < C; ++c) acc[p][c] = fmaf(v[p].v[e], u[c].v[e], acc[p][c]);
        }
      }
    }
  }

  DETENT_HD void sum(const Spot& at, int lane, float (&acc)[kRun][C]) const {
    const int32_t first_x = at.x + dy.dw0, per_tap = chunks * C * kAtOnce;
    for (int32_t i = 0; i < rows; ++i) {
      const int32_t y = at.y + dy.dh0 + i * dy.dh_step;
      if (static_cast<uint32_t>(y) >= static_cast<uint32_t>(dy.in_h)) continue;
      const T* const line = all_dy + static_cast<int64_t>(at.image * dy.in_h + y) * dy.in_w * dy.depth + lane * 4;
      const float* weights = w + static_cast<int64_t>(i) * cols * per_tap + lane * 4;
      for (int32_t j = 0, x = first_x; j < cols; ++j, x += dy.dw_step, weights += per_tap) {
        const T* const from = line + static_cast<int64_t>(x) * dy.depth;
        if (x >= 0 && x + kRun <= dy.in_w) add_tap<true>(from, weights, x, lane, acc);
        else if (x + kRun > 0 && x < dy.in_w) add_tap<false>(from, weights, x, lane, acc);
      }
    }
  }

  template <class Block>
  DETENT_HD void operator()(Block& block, Shared& shared) const {
    block.threads([&](int t) {
      const Spot at = spot(block.index, t / kLanes);
      float acc[kRun][C];
      DETENT_UNROLL
      for (int i = 0; i < kPart; ++i) acc[i / C][i % C] = 0.0f;
      if (at.y < grid_h && at.x < grid_w) sum(at, t % kLanes, acc);
      DETENT_UNROLL
      for (int i = 0; i < kPart; ++i) shared.part[t % kLanes * kPitch + t / kLanes * kPart + i] = acc[i / C][i % C];
    });
    block.threads([&](int t) {
      for (int i = t; i < kThreads / kLanes * kPart; i += kThreads) {
        const int group = i / kPart, p = i % kPart / C, c = i % C;
        const Spot at = spot(block.index, group);
        if (at.y >= grid_h || at.x + p >= grid_w || c >= columns) continue;
        float total = shared.part[i];
        DETENT_UNROLL
        for (int lane = 1; lane < kLanes; ++lane) total += shared.part[lane * kPitch + i];
        dx[place.row((at.image * grid_h + at.y) * grid_w + at.x + p) + c] = total;
      }
    });
  }
};

template <int C, class T>
void run_phase(const Conv2dBackwardDataArgs& a, const T* dy, const Phase& phase) {
  using Body = NarrowBackwardData<C, T>;
  const ConvGeometry& g = a.geometry;
  const Gather& gather = phase.gather;
  const int64_t chunks = ceil_div(g.k, kAtOnce), row = g.r * g.s * g.c, n = gather.taps.count() * chunks * C * kAtOnce;
  const Scratch<float> packed(n);
  elements("pack_taps", n,
           PackTaps{a.w + (phase.r0 * g.s + phase.s0) * g.c, g.k, g.c, gather.taps.cols, row, phase.r_step * g.s * g.c, phase.s_step * g.c, chunks, C, packed.get()});
  Body body;
  body.dy = pixel_gather(gather, g.k);
  body.all_dy = dy;
  body.w = packed.get();
  body.chunks = static_cast<int32_t>(chunks);
  body.columns = static_cast<int32_t>(g.c);
  body.grid_h = static_cast<int32_t>(gather.grid_h), body.grid_w = static_cast<int32_t>(gather.grid_w);
  body.tiles_across = static_cast<int32_t>(ceil_div(gather.grid_w, Body::kAcross)), body.tiles_down = static_cast<int32_t>(ceil_div(gather.grid_h, Body::kDown));
  body.rows = static_cast<int32_t>(n > 0 ? gather.taps.rows : 0), body.cols = static_cast<int32_t>(gather.taps.cols);  // without taps there are no weights
  body.place = output_place(gather, g.c, g.c);
  body.dx = a.dx;
  blocks("conv2d_backward_data narrow", gather.n * body.tiles_across * body.tiles_down, body);
}

}  // namespace

bool runs_narrow(const Conv2dBackwardDataArgs& a) {
  const ConvGeometry& g = a.geometry;
  return g.groups == 1 && g.c <= 8 && g.k % 4 == 0 && aligned16(a.dy) && aligned16(a.dy16) && !is_pointwise(g);
}

template <class T>
static void narrow_backward_data(const Conv2dBackwardDataArgs& a, const T* dy) {
  const ConvGeometry& g = a.geometry;
  for (int64_t ph = 0; ph < (g.stride_h < g.h ? g.stride_h : g.h); ++ph) {
    for (int64_t pw = 0; pw < (g.stride_w < g.w ? g.stride_w : g.w); ++pw) {
      const Phase phase = backward_phase(g, ph, pw);
      if (g.c == 1) run_phase<1>(a, dy, phase);
      else if (g.c <= 3) run_phase<3>(a, dy, phase);
      else if (g.c == 4) run_phase<4>(a, dy, phase);
      else run_phase<8>(a, dy, phase);
    }
  }
}

void narrow_backward_data(const Conv2dBackwardDataArgs& a) { a.dy16 ? narrow_backward_data(a, a.dy16) : narrow_backward_data(a, a.dy); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
