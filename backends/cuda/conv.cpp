// Convolutions: which kernel runs what, and in which precision.
#include <atomic>

#include "detent/backends/cuda/conv.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

std::atomic<Precision> g_precision{Precision::tf32};

// Integers of that size are exact in the precision's factors.
Precision exact_for(Precision p, int32_t magnitude) {
  if (p == Precision::bf16 && magnitude > 256) p = Precision::tf32;
  if (p == Precision::tf32 && magnitude > 2048) p = Precision::f32;
  return p;
}

// The integers of weights on grids, as floats, and the scales of their channels.
struct WeightCodes {
  const float* w;
  WeightGrid grid;
  int64_t per_channel;  // weights of a channel
  float* q;
  DETENT_HD void operator()(int64_t i) const { q[i] = weight_code(w[i], grid.grids[grid.per_channel ? i / per_channel : 0].scale); }
};
struct ChannelScales {
  WeightGrid grid;
  float* scale;
  DETENT_HD void operator()(int64_t k) const { scale[k] = grid.grids[grid.per_channel ? k : 0].scale; }
};

// y = x rounded to TF32.
struct RoundWeights {
  const float* x;
  float* y;
  int64_t n;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t at = 4 * i;
    for (int64_t k = at; k < n && k < at + 4; ++k) y[k] = Tf32::rounded(x[k]);
  }
};

// What weights become in tiles. Exact: their integers, where the precision would round the dequantized ones.
struct WeightPlan {
  bool exact;
  Precision precision;
  WeightPlan(Precision p, const WeightGrid& grid)
      : exact(p != Precision::f32 && grid.magnitude > 0 && exact_for(p, grid.magnitude) != Precision::f32), precision(grid.magnitude > 0 ? exact_for(p, grid.magnitude) : p) {}
};

// Made once per call: every tile would do it again.
struct TileWeights {
  bool exact, rounded;
  Scratch<float> copy, scale;
  const float* p;
  TileWeights(const WeightPlan& plan, const float* w, const WeightGrid& grid, int64_t k, int64_t per_channel)
      : exact(plan.exact),
        rounded(plan.exact || plan.precision == Precision::tf32),
        copy(rounded ? k * per_channel : 0),
        scale(exact ? k : 0),
        p(rounded ? copy.get() : w) {
    if (exact) {
      elements("weight_codes", k * per_channel, WeightCodes{w, grid, per_channel, copy.get()});
      elements("weight_scales", k, ChannelScales{grid, scale.get()});
    } else if (rounded) {
      elements("round_weights", ceil_div(k * per_channel, 4), RoundWeights{w, copy.get(), k * per_channel});
    }
  }
};

struct SumSplits {
  const float* partial;
  int64_t n, splits;
  InputFactor alpha;
  float* out;
  DETENT_HD void operator()(int64_t i) const {
    float sum = partial[i];
    for (int64_t s = 1; s < splits; ++s) sum += partial[s * n + i];
    out[i] = alpha.get() * sum;
  }
};

bool fits_tiles(const ConvGeometry& g) { return g.n * g.h * g.w < kTileLimit && g.n * g.oh * g.ow < kTileLimit && g.r * g.s * (g.c > g.k ? g.c : g.k) < kTileLimit; }

bool plain(const Epilogue& e) {
  return !e.quantize && !e.scale && !e.addend && e.clamp_min == -std::numeric_limits<float>::infinity() && e.clamp_max == std::numeric_limits<float>::infinity();
}

}  // namespace

void set_precision(Precision p) { g_precision = p; }
Precision precision() { return g_precision; }

PixelGather pixel_gather(const Gather& g, int64_t depth) {
  PixelGather o;
  o.in_h = static_cast<int32_t>(g.in_h), o.in_w = static_cast<int32_t>(g.in_w), o.in_c = static_cast<int32_t>(g.in_c), o.depth = static_cast<int32_t>(depth);
  o.step_h = static_cast<int32_t>(g.step_h), o.step_w = static_cast<int32_t>(g.step_w);
  o.dh0 = static_cast<int32_t>(g.taps.dh0), o.dh_step = static_cast<int32_t>(g.taps.dh_step);
  o.dw0 = static_cast<int32_t>(g.taps.dw0), o.dw_step = static_cast<int32_t>(g.taps.dw_step);
  o.pixels = static_cast<int32_t>(g.pixels());
  o.sum = static_cast<int32_t>(g.taps.count() * depth);
  o.width = static_cast<int32_t>(g.grid_w * g.step_w), o.height = static_cast<int32_t>(g.grid_h * g.step_h);
  o.grid_w = FastDiv(g.grid_w), o.grid_hw = FastDiv(g.grid_h * g.grid_w);
  o.by_depth = FastDiv(depth), o.by_cols = FastDiv(g.taps.cols);
  return o;
}

bool reads_vectors(const PixelGather& g, int64_t depth, int64_t per) {
  const auto aligned = [](const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0; };
  return depth % per == 0 && g.in_c % per == 0 && aligned(g.x, 16) && aligned(g.codes, per);
}

OutputPlace output_place(const Gather& g, int64_t pitch, int64_t columns) {
  OutputPlace o;
  o.rows = static_cast<int32_t>(g.pixels());
  o.columns = static_cast<int32_t>(columns);
  o.pitch = pitch;
  o.group_stride = columns;
  o.lattice = g.out_step_h != 1 || g.out_step_w != 1 || g.out_first_h != 0 || g.out_first_w != 0 || g.out_h != g.grid_h || g.out_w != g.grid_w;
  o.out_h = static_cast<int32_t>(g.out_h), o.out_w = static_cast<int32_t>(g.out_w);
  o.step_h = static_cast<int32_t>(g.out_step_h), o.step_w = static_cast<int32_t>(g.out_step_w);
  o.first_h = static_cast<int32_t>(g.out_first_h), o.first_w = static_cast<int32_t>(g.out_first_w);
  o.grid_w = FastDiv(g.grid_w), o.grid_hw = FastDiv(g.grid_h * g.grid_w);
  return o;
}

static void forward(const ConvOptions& o, const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  if (g.n * g.oh * g.ow * g.k == 0) return;
  const bool tiles = fits_tiles(g);
  if (tiles && runs_integer(a)) return integer_forward(o, a);
  if (!tiles || runs_direct(g)) return direct_forward(a, nullptr);
  const int64_t depth = g.c / g.groups, columns = g.k / g.groups, sum = g.r * g.s * depth;
  const Gather gather = forward_gather(g, true);
  const WeightPlan plan(o.precision, a.w_grid);
  if (o.blas && !plan.exact && a.input.x && g.groups == 1 && is_pointwise(g) && plain(a.epilogue)) {
    GemmArgs m{.m = gather.pixels(), .n = g.k, .k = g.c, .transpose_b = true, .a = a.input.x, .b = a.w, .y = a.epilogue.y};
    if (blas_gemm(plan.precision, m, a.epilogue.bias)) return;
  }
  const TileWeights weights(plan, a.w, a.w_grid, g.k, sum);
  PixelGather x = pixel_gather(gather, depth);
  x.x = a.input.x;
  x.codes = a.input.x ? nullptr : a.input.codes;
  x.zero_point = a.input.grid.zero_point;
  x.resident = a.input.x ? nullptr : a.input.resident;
  x.vector = reads_vectors(x, depth, 4);
  MatrixOperand w;
  w.p = weights.p;
  w.rounded = weights.rounded;
  w.pitch = sum;
  w.group_stride = columns * sum;
  w.rows = static_cast<int32_t>(columns);
  w.sum = static_cast<int32_t>(sum);
  w.vector = sum % 4 == 0 && aligned16(w.p);
  FloatStore store;
  store.place = output_place(gather, g.k, columns);
  store.place.vector = writes_four(a.epilogue, g.k) && columns % 4 == 0;
  store.epilogue = a.epilogue;
  store.alpha = input_factor(a.input);
  store.channel_scale = weights.exact ? weights.scale.get() : nullptr;
  TileCut cut;
  cut.rows = gather.pixels(), cut.columns = columns, cut.groups = g.groups, cut.sum = sum;
  cut.shape = o.force_tile ? o.tile : select_tile(cut.rows, cut.columns, cut.groups);
  with_policy(plan.precision, [&]<class P>() { FloatTiles<P>::pixels_by_rows("conv2d", cut, x, w, store); });
}

void conv2d(const ConvOptions& o, const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  forward(o, a);
  if (a.mean) batch_norm_stats({g.n * g.oh * g.ow, g.k, a.epilogue.y, a.mean, a.var});
}

void conv2d_backward_data(const ConvOptions& o, const Conv2dBackwardDataArgs& a) {
  const ConvGeometry& g = a.geometry;
  if (g.n * g.h * g.w * g.c == 0) return;
  if (!fits_tiles(g) || runs_direct(g)) return direct_backward_data(a);
  if (!o.force_tile && runs_narrow(a)) return narrow_backward_data(a);
  const int64_t columns = g.c / g.groups, depth = g.k / g.groups, row = g.s * columns;
  const WeightPlan plan(o.precision, a.w_grid);
  if (o.blas && !plan.exact && g.groups == 1 && is_pointwise(g)) {
    if (blas_gemm(plan.precision, {.m = g.n * g.h * g.w, .n = g.c, .k = g.k, .a = a.dy, .b = a.w, .y = a.dx}, nullptr)) return;
  }
  const TileWeights weights(plan, a.w, a.w_grid, g.k, g.r * row);
  const bool one_scale = weights.exact && !a.w_grid.per_channel;  // it multiplies the sums, and dy is read as it is
  for (int64_t ph = 0; ph < (g.stride_h < g.h ? g.stride_h : g.h); ++ph) {
    for (int64_t pw = 0; pw < (g.stride_w < g.w ? g.stride_w : g.w); ++pw) {
      const Phase phase = backward_phase(g, ph, pw);
      PixelGather dy = pixel_gather(phase.gather, depth);
      dy.x = a.dy;
      dy.channel_scale = weights.exact && !one_scale ? weights.scale.get() : nullptr;
      dy.vector = reads_vectors(dy, depth, 4);
      const float* const first = weights.p + phase.r0 * row + phase.s0 * columns;
      MatrixOperand w;
      w.p = first;
      w.rounded = weights.rounded;
      w.group_stride = depth * g.r * row;
      w.pitch = g.r * row;
      w.tap_row = phase.r_step * row, w.tap_col = phase.s_step * columns;
      w.rows = static_cast<int32_t>(columns);
      w.sum = dy.sum;
      w.depth = static_cast<int32_t>(depth);
      w.by_depth = dy.by_depth, w.by_cols = dy.by_cols;
      w.vector = columns % 4 == 0 && aligned16(first);
      FloatStore store;
      store.epilogue.y = a.dx;
      if (one_scale) store.alpha.resident = a.w_grid.grids;
      store.place = output_place(phase.gather, g.c, columns);
      store.place.vector = writes_four(store.epilogue, g.c) && columns % 4 == 0;
      TileCut cut;
      cut.rows = phase.gather.pixels(), cut.columns = columns, cut.groups = g.groups, cut.sum = dy.sum;
      cut.shape = o.force_tile ? o.tile : select_tile(cut.rows, cut.columns, cut.groups);
      with_policy(plan.precision, [&]<class P>() { FloatTiles<P>::pixels_by_columns("conv2d_backward_data", cut, dy, w, store); });
    }
  }
}

void conv2d_backward_filter(const ConvOptions& o, const Conv2dBackwardFilterArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t pixels = g.n * g.oh * g.ow, depth = g.c / g.groups, rows = g.k / g.groups, columns = g.r * g.s * depth;
  if (g.k * columns == 0) return;
  if (a.dbias) column_sums(a.dy, pixels, g.k, a.dbias);
  if (!fits_tiles(g) || runs_direct(g)) return direct_backward_filter(a);
  if (o.blas && a.input.x && g.groups == 1 && is_pointwise(g) && !waits_for_factors(g.k, g.c)) {
    if (blas_gemm(o.precision, {.m = g.k, .n = g.c, .k = pixels, .transpose_a = true, .a = a.dy, .b = a.input.x, .y = a.dw}, nullptr)) return;
  }
  MatrixOperand dy;
  dy.p = a.dy;
  dy.group_stride = rows;
  dy.pitch = g.k;
  dy.rows = static_cast<int32_t>(rows);
  dy.sum = dy.depth = static_cast<int32_t>(pixels);
  dy.by_depth = FastDiv(pixels);
  dy.vector = rows % 4 == 0 && g.k % 4 == 0 && aligned16(a.dy);
  PixelGather x = pixel_gather(forward_gather(g, true), depth);
  x.x = a.input.x;
  x.codes = a.input.x ? nullptr : a.input.codes;
  x.zero_point = a.input.grid.zero_point;
  x.resident = a.input.x ? nullptr : a.input.resident;
  x.vector = reads_vectors(x, depth, 4);
  const SplitSum split = select_split(rows, columns, g.groups, pixels);
  const int64_t n = g.k * columns;
  const Scratch<float> partial(split.splits > 1 ? split.splits * n : 0);
  const InputFactor alpha = input_factor(a.input);
  FloatStore store;
  store.epilogue.y = split.splits > 1 ? partial.get() : a.dw;
  store.alpha = split.splits > 1 ? InputFactor{} : alpha;
  store.place.rows = static_cast<int32_t>(rows), store.place.columns = static_cast<int32_t>(columns);
  store.place.pitch = columns, store.place.group_stride = rows * columns, store.place.split_stride = n;
  store.place.vector = writes_four(store.epilogue, columns);
  TileCut cut;
  cut.rows = rows, cut.columns = columns, cut.groups = g.groups, cut.sum = pixels;
  cut.splits = split.splits, cut.per_split = split.per_split;
  cut.shape = o.force_tile ? o.tile : split.shape;
  with_policy(o.precision, [&]<class P>() { FloatTiles<P>::columns_by_pixels("conv2d_backward_filter", cut, dy, x, store); });
  if (split.splits > 1) elements("sum_splits", n, SumSplits{partial.get(), n, split.splits, alpha, a.dw});
}

void conv2d(const Conv2dArgs& a) { conv2d({.precision = precision()}, a); }
void conv2d_backward_data(const Conv2dBackwardDataArgs& a) { conv2d_backward_data({.precision = precision()}, a); }
void conv2d_backward_filter(const Conv2dBackwardFilterArgs& a) { conv2d_backward_filter({.precision = precision()}, a); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
