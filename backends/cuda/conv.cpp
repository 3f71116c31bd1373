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
  bool exact, rounded, words;
  Scratch<float> copy, scale;
  Scratch<uint16_t> narrowed;
  TileWeights(const WeightPlan& plan, const float* w, const WeightGrid& grid, int64_t k, int64_t per_channel, bool in_words)
      : exact(plan.exact),
        rounded(plan.exact || plan.precision == Precision::tf32),
        words(in_words),
        copy(rounded ? k * per_channel : 0),
        scale(exact ? k : 0),
        narrowed(words ? k * per_channel : 0),
        given_(w) {
    if (exact) {
      elements("weight_codes", k * per_channel, WeightCodes{w, grid, per_channel, copy.get()});
      elements("weight_scales", k, ChannelScales{grid, scale.get()});
    } else if (rounded) {
      elements("round_weights", ceil_div(k * per_channel, 4), RoundWeights{w, copy.get(), k * per_channel});
    }
    if (words) narrow(narrowed.get(), exact ? copy.get() : w, k * per_channel);
  }
  /// Weight `first` and those behind it, for a MatrixOperand.
  void place(MatrixOperand& to, int64_t first, bool vector) const {
    const float* const p = (rounded ? copy.get() : given_) + first;
    to.p = words ? static_cast<const void*>(narrowed.get() + first) : p;
    to.rounded = rounded;
    to.vector = words || (vector && aligned16(p));
  }

 private:
  const float* given_;
};

// Values in f32 for kernels that read no others.
struct Widened {
  Scratch<float> copy;
  const float* p;
  Widened(const float* x, const uint16_t* x16, int64_t n) : copy(x16 ? n : 0), p(x16 ? copy.get() : x) {
    if (x16) widen(copy.get(), x16, n);
  }
};

// The same for the result.
struct Narrowed {
  Scratch<float> copy;
  uint16_t* y16;
  int64_t n;
  Narrowed(float*& y, uint16_t*& to, int64_t count) : copy(to ? count : 0), y16(to), n(count) {
    if (to) y = copy.get(), to = nullptr;
  }
  ~Narrowed() {
    if (y16) narrow(y16, copy.get(), n);
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

// Whether bf16 operands are multiplied as they lie: eight channels at a time, and weights that bf16 holds or may round.
bool takes_words(const ConvOptions& o, const ConvGeometry& g, const WeightGrid& grid, const void* x, const void* y) {
  constexpr int64_t kPer = 8;
  return o.precision == Precision::bf16 && exact_for(Precision::bf16, grid.magnitude) == Precision::bf16 && fits_tiles(g) && !runs_direct(g) && g.c / g.groups % kPer == 0 &&
         g.k / g.groups % kPer == 0 && aligned16(x) && aligned16(y);
}

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
  return depth % per == 0 && g.in_c % per == 0 && aligned(g.x, 16) && aligned(g.x16, 16) && aligned(g.codes, per);
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

static void place_input(PixelGather& x, const ConvInput& in, int64_t depth) {
  x.x = in.x;
  x.x16 = in.x16;
  x.codes = in.codes;
  x.zero_point = in.grid.zero_point;
  x.resident = in.codes ? in.resident : nullptr;
  x.vector = reads_vectors(x, depth, in.x16 ? 8 : 4);  // words of codes are read so in any case
}

static void forward(const ConvOptions& o, const Conv2dArgs& given) {
  const ConvGeometry& g = given.geometry;
  if (g.n * g.oh * g.ow * g.k == 0) return;
  const bool words = given.input.x16 && takes_words(o, g, given.w_grid, given.input.x16, given.epilogue.y16);
  const Widened dense(given.input.x, words ? nullptr : given.input.x16, g.n * g.h * g.w * g.c);
  Conv2dArgs a = given;
  a.input.x = dense.p;
  if (!words) a.input.x16 = nullptr;
  const bool tiles = fits_tiles(g);
  if (tiles && runs_integer(a)) return integer_forward(o, a);
  if (!tiles || runs_direct(g)) return direct_forward(a, nullptr);
  const int64_t depth = g.c / g.groups, columns = g.k / g.groups, sum = g.r * g.s * depth;
  const Gather gather = forward_gather(g, true);
  const WeightPlan plan(o.precision, a.w_grid);
  const TileWeights weights(plan, a.w, a.w_grid, g.k, sum, words);
  // It adds a bias of the result's type.
  const bool of_its_types = words ? !a.epilogue.bias : a.input.x && !a.epilogue.y16;
  if (o.blas && !plan.exact && of_its_types && g.groups == 1 && is_pointwise(g) && plain(a.epilogue)) {
    GemmArgs m{.m = gather.pixels(), .n = g.k, .k = g.c, .transpose_b = true, .a = a.input.x, .b = a.w, .y = a.epilogue.y};
    if (blas_gemm(plan.precision, m, a.epilogue.bias, words ? Words{a.input.x16, weights.narrowed.get(), a.epilogue.y16} : Words{})) return;
  }
  PixelGather x = pixel_gather(gather, depth);
  place_input(x, a.input, depth);
  MatrixOperand w;
  weights.place(w, 0, sum % 4 == 0);
  w.pitch = sum;
  w.group_stride = columns * sum;
  w.rows = static_cast<int32_t>(columns);
  w.sum = static_cast<int32_t>(sum);
  FloatStore store;
  store.place = output_place(gather, g.k, columns);
  store.place.vector = writes_four(a.epilogue, g.k) && columns % 4 == 0;
  store.epilogue = a.epilogue;
  store.alpha = input_factor(a.input);
  store.channel_scale = weights.exact ? weights.scale.get() : nullptr;
  TileCut cut;
  cut.rows = gather.pixels(), cut.columns = columns, cut.groups = g.groups, cut.sum = sum;
  cut.shape = o.force_tile ? o.tile : select_tile(cut.rows, cut.columns, cut.groups);
  with_policy(plan.precision, words, [&]<class P>() { FloatTiles<P>::pixels_by_rows("conv2d", cut, x, w, store); });
}

void conv2d(const ConvOptions& o, const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  forward(o, a);
  if (a.mean) batch_norm_stats({g.n * g.oh * g.ow, g.k, a.epilogue.y, a.mean, a.var, a.epilogue.y16});
}

void conv2d_backward_data(const ConvOptions& o, const Conv2dBackwardDataArgs& given) {
  const ConvGeometry& g = given.geometry;
  if (g.n * g.h * g.w * g.c == 0) return;
  const bool words = given.dy16 && takes_words(o, g, given.w_grid, given.dy16, given.dx16);
  const bool direct = !fits_tiles(g) || runs_direct(g), few = !direct && !words && !o.force_tile && runs_narrow(given);
  const bool as_given = words || few;
  const Widened dense(given.dy, as_given ? nullptr : given.dy16, g.n * g.oh * g.ow * g.k);
  Conv2dBackwardDataArgs a = given;
  a.dy = dense.p;
  if (!as_given) a.dy16 = nullptr;
  if (direct || few) {
    const Narrowed dx(a.dx, a.dx16, g.n * g.h * g.w * g.c);
    return direct ? direct_backward_data(a) : narrow_backward_data(a);
  }
  const int64_t columns = g.c / g.groups, depth = g.k / g.groups, row = g.s * columns;
  const WeightPlan plan(o.precision, a.w_grid);
  const TileWeights weights(plan, a.w, a.w_grid, g.k, g.r * row, words);
  if (o.blas && !plan.exact && (words || !a.dx16) && g.groups == 1 && is_pointwise(g)) {
    const Words in_words = words ? Words{a.dy16, weights.narrowed.get(), a.dx16} : Words{};
    if (blas_gemm(plan.precision, {.m = g.n * g.h * g.w, .n = g.c, .k = g.k, .a = a.dy, .b = a.w, .y = a.dx}, nullptr, in_words)) return;
  }
  const bool one_scale = weights.exact && !a.w_grid.per_channel;  // it multiplies the sums, and dy is read as it is
  for (int64_t ph = 0; ph < (g.stride_h < g.h ? g.stride_h : g.h); ++ph) {
    for (int64_t pw = 0; pw < (g.stride_w < g.w ? g.stride_w : g.w); ++pw) {
      const Phase phase = backward_phase(g, ph, pw);
      PixelGather dy = pixel_gather(phase.gather, depth);
      dy.x = a.dy;
      dy.x16 = a.dy16;
      dy.channel_scale = weights.exact && !one_scale ? weights.scale.get() : nullptr;
      dy.vector = reads_vectors(dy, depth, words ? 8 : 4);
      MatrixOperand w;
      weights.place(w, phase.r0 * row + phase.s0 * columns, columns % 4 == 0);
      w.group_stride = depth * g.r * row;
      w.pitch = g.r * row;
      w.tap_row = phase.r_step * row, w.tap_col = phase.s_step * columns;
      w.rows = static_cast<int32_t>(columns);
      w.sum = dy.sum;
      w.depth = static_cast<int32_t>(depth);
      w.by_depth = dy.by_depth, w.by_cols = dy.by_cols;
      FloatStore store;
      store.epilogue.y = a.dx;
      store.epilogue.y16 = a.dx16;
      if (one_scale) store.alpha.resident = a.w_grid.grids;
      store.place = output_place(phase.gather, g.c, columns);
      store.place.vector = writes_four(store.epilogue, g.c) && columns % 4 == 0;
      TileCut cut;
      cut.rows = phase.gather.pixels(), cut.columns = columns, cut.groups = g.groups, cut.sum = dy.sum;
      cut.shape = o.force_tile ? o.tile : select_tile(cut.rows, cut.columns, cut.groups);
      with_policy(plan.precision, words, [&]<class P>() { FloatTiles<P>::pixels_by_columns("conv2d_backward_data", cut, dy, w, store); });
    }
  }
}

void conv2d_backward_filter(const ConvOptions& o, const Conv2dBackwardFilterArgs& given) {
  const ConvGeometry& g = given.geometry;
  const int64_t pixels = g.n * g.oh * g.ow, depth = g.c / g.groups, rows = g.k / g.groups, columns = g.r * g.s * depth;
  if (g.k * columns == 0) return;
  const bool words = (given.input.x16 || given.input.codes) && given.dy16 && takes_words(o, g, {}, given.input.codes ? static_cast<const void*>(given.input.codes) : given.input.x16, given.dy16);
  const Widened dense_x(given.input.x, words ? nullptr : given.input.x16, g.n * g.h * g.w * g.c), dense_dy(given.dy, words ? nullptr : given.dy16, pixels * g.k);
  Conv2dBackwardFilterArgs a = given;
  a.input.x = dense_x.p, a.dy = dense_dy.p;
  if (!words) a.input.x16 = a.dy16 = nullptr;
  if (a.dbias) given.dy16 ? column_sums(given.dy16, pixels, g.k, a.dbias) : column_sums(a.dy, pixels, g.k, a.dbias);
  if (!fits_tiles(g) || runs_direct(g)) return direct_backward_filter(a);
  if (o.blas && !a.input.codes && g.groups == 1 && is_pointwise(g) && !waits_for_factors(g.k, g.c)) {
    if (blas_gemm(o.precision, {.m = g.k, .n = g.c, .k = pixels, .transpose_a = true, .a = a.dy, .b = a.input.x, .y = a.dw}, nullptr, {a.dy16, a.input.x16})) return;
  }
  MatrixOperand dy;
  dy.p = words ? static_cast<const void*>(a.dy16) : a.dy;
  dy.group_stride = rows;
  dy.pitch = g.k;
  dy.rows = static_cast<int32_t>(rows);
  dy.sum = dy.depth = static_cast<int32_t>(pixels);
  dy.by_depth = FastDiv(pixels);
  dy.vector = words || (rows % 4 == 0 && g.k % 4 == 0 && aligned16(a.dy));
  PixelGather x = pixel_gather(forward_gather(g, true), depth);
  place_input(x, a.input, depth);
  const SplitSum split = select_split(rows, columns, g.groups, pixels, words ? kWordDepth : kFloatDepth);
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
  with_policy(o.precision, words, [&]<class P>() { FloatTiles<P>::columns_by_pixels("conv2d_backward_filter", cut, dy, x, store); });
  if (split.splits > 1) elements("sum_splits", n, SumSplits{partial.get(), n, split.splits, alpha, a.dw});
}

void conv2d(const Conv2dArgs& a) { conv2d({.precision = precision()}, a); }
void conv2d_backward_data(const Conv2dBackwardDataArgs& a) { conv2d_backward_data({.precision = precision()}, a); }
void conv2d_backward_filter(const Conv2dBackwardFilterArgs& a) { conv2d_backward_filter({.precision = precision()}, a); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
