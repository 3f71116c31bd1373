// Quantize-dequantize and its backward pass, the fused add, and the backward pass of fused quantization. Range sums: range_sums.h.
#include "detent/backends/cuda/bf16.h"
#include "detent/core/epilogue.h"
#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"
#include "detent/backends/cuda/range_sums.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

int64_t elements_of(const ChannelView& v) { return v.outer * v.channels * v.inner; }
bool channels_last(const ChannelView& v) { return v.inner == 1 && v.outer > 1 && v.channels > 1; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- forward -----------------------------------------------------------------------------------------------------------------------------------------

// Which grid four neighbours have: there is one, or rows are whole quads.
struct QuadGrids {
  const Grid* grids;
  int64_t row, channels;  // row: quads of one
  bool small;             // positions have 31 bits
  FastDiv by_row, by_channels;

  QuadGrids(const ChannelView& v, const Grid* g) : grids(g), row(v.inner / 4), channels(v.channels), small(fits32(elements_of(v) / 4)), by_row(row), by_channels(channels) {}
  static bool fit(const ChannelView& v) { return v.channels == 1 || (v.inner > 0 && v.inner % 4 == 0); }
  DETENT_HD Grid of(int64_t quad) const {
    if (channels == 1) return grids[0];
    if (!small) return grids[quad / row % channels];
    const int32_t r = by_row.divide(static_cast<int32_t>(quad));
    return grids[r - by_channels.divide(r) * static_cast<int32_t>(channels)];
  }
};

// Two quads by each thread, kElementThreads apart: both are on their way before the first is divided.
constexpr int kQuads = 2;
DETENT_HD int64_t first_quad(int64_t i) { return i / kElementThreads * kElementThreads * kQuads + i % kElementThreads; }
int64_t threads_of(int64_t n) { return ceil_div(n, 4 * kQuads * kElementThreads) * kElementThreads; }

struct FakeQuantFour {
  static constexpr int kShare = 5;
  QuadGrids grids;
  const float* x;
  float* y;
  uint8_t* codes;
  int64_t n;
  DETENT_HD void quad(int64_t at, const Four<float>& v, const Grid& g) const {
    Four<float> out;
    Four<uint8_t> q;
    DETENT_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (codes) q.v[k] = static_cast<uint8_t>(quantize(v.v[k], g));
      out.v[k] = fake_quantize(v.v[k], g);
    }
    if (codes) *reinterpret_cast<Four<uint8_t>*>(codes + at) = q;
    if (y) *reinterpret_cast<Four<float>*>(y + at) = out;
  }
  DETENT_HD void operator()(int64_t i) const {
    const int64_t first = first_quad(i);
    Four<float> v[kQuads];
    DETENT_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      const int64_t at = 4 * (first + q * kElementThreads);
      if (at + 4 <= n) v[q] = *reinterpret_cast<const Four<float>*>(x + at);
    }
    DETENT_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      const int64_t at = 4 * (first + q * kElementThreads);
      if (at >= n) return;
      const Grid g = grids.of(at / 4);
      if (at + 4 <= n) {
        quad(at, v[q], g);
        continue;
      }
      for (int64_t k = at; k < n; ++k) {
        if (codes) codes[k] = static_cast<uint8_t>(quantize(x[k], g));
        if (y) y[k] = fake_quantize(x[k], g);
      }
    }
  }
};

template <class Index>
struct FakeQuant {
  ChannelView view;
  const float* x;
  const Grid* grids;
  float* y;
  uint8_t* codes;
  DETENT_HD void operator()(int64_t i) const {
    const Index row = static_cast<Index>(i) / static_cast<Index>(view.inner);
    const Grid g = grids[row % static_cast<Index>(view.channels)];
    if (codes) codes[i] = static_cast<uint8_t>(quantize(x[i], g));
    if (y) y[i] = fake_quantize(x[i], g);
  }
};

struct Dequantize {
  DequantizeArgs a;
  bool whole;  // both pointers allow four at a time
  DETENT_HD void operator()(int64_t i) const {
    const Grid grid = present(a.grid, a.resident);
    const int64_t at = 4 * i;
    if (whole && at + 4 <= a.n) {
      const Four<uint8_t> q = *reinterpret_cast<const Four<uint8_t>*>(a.codes + at);
      Four<float> out;
      for (int k = 0; k < 4; ++k) out.v[k] = dequantize(static_cast<int32_t>(q.v[k]), grid);
      *reinterpret_cast<Four<float>*>(a.y + at) = out;
      return;
    }
    for (int64_t k = at; k < a.n && k < at + 4; ++k) a.y[k] = dequantize(static_cast<int32_t>(a.codes[k]), grid);
  }
};

// ---- backward ----------------------------------------------------------------------------------------------------------------------------------------

// Plain straight-through: decided on x itself. dy is read whether it passes or not: a load behind a comparison waits for it.
struct Bounds {
  float lo, hi;
  DETENT_HD explicit Bounds(const Grid& g) : lo(dequantize(g.qmin, g)), hi(dequantize(g.qmax, g)) {}
  DETENT_HD float gradient(float x, float dy) const { return x >= lo && x <= hi ? dy : 0.0f; }
};

template <class Index>
struct Mask {
  ChannelView view;
  const float* x;
  const float* dy;
  const Grid* grids;
  float* dx;
  DETENT_HD void operator()(int64_t i) const {
    const float v = x[i], d = dy[i];
    const Index row = static_cast<Index>(i) / static_cast<Index>(view.inner);
    dx[i] = Bounds(grids[row % static_cast<Index>(view.channels)]).gradient(v, d);
  }
};

struct MaskFour {
  QuadGrids grids;
  const float* x;
  const float* dy;
  float* dx;
  int64_t n;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t at = 4 * i;
    if (at + 4 <= n) {
      const Four<float> v = *reinterpret_cast<const Four<float>*>(x + at), d = *reinterpret_cast<const Four<float>*>(dy + at);
      const Bounds bounds(grids.of(i));
      Four<float> out;
      for (int k = 0; k < 4; ++k) out.v[k] = bounds.gradient(v.v[k], d.v[k]);
      *reinterpret_cast<Four<float>*>(dx + at) = out;
      return;
    }
    const Bounds bounds(grids.of(i));
    for (int64_t k = at; k < n; ++k) dx[k] = bounds.gradient(x[k], dy[k]);
  }
};

// ---- codes -------------------------------------------------------------------------------------------------------------------------------------------

// Element i of an operand that is dense (f32 or bf16), or codes on a grid.
DETENT_HD float load(const ConvInput& in, int64_t i) {
  if (in.codes) return dequantize(static_cast<int32_t>(in.codes[i]), in.grid);
  return in.x16 ? bfloat_value(in.x16[i]) : in.x[i];
}

// Four neighbours; i is a multiple of four and the operand's pointer aligned.
DETENT_HD Four<float> load_four(const ConvInput& in, int64_t i) {
  if (!in.codes) return in.x16 ? values_at<4>(in.x16 + i) : values_at<4>(in.x + i);
  const Four<uint8_t> q = *reinterpret_cast<const Four<uint8_t>*>(in.codes + i);
  Four<float> v;
  for (int k = 0; k < 4; ++k) v.v[k] = dequantize(static_cast<int32_t>(q.v[k]), in.grid);
  return v;
}

// What the additions of a tensor share, found once: divisions take longer than the memory they would hide behind.
struct SumOfCodes {
  IntegerAdd f;
  bool absorbs;
};
struct PlanSum {
  AddArgs a;
  SumOfCodes* plan;
  DETENT_HD void operator()(int64_t) const {
    const Epilogue e = settled(a.epilogue);
    *plan = {integer_add(present(a.a.grid, a.a.resident), present(a.b.grid, a.b.resident), e.grid), absorbs_clamp(e.grid, e.clamp_min, e.clamp_max)};
  }
};

// Codes to codes, as ONNX Runtime adds them; four by each thread where the pointers allow it.
struct AddCodes {
  const AddArgs& a;
  IntegerAdd f;
  DETENT_HD EpilogueResult one(const Epilogue& e, uint8_t qa, uint8_t qb) const { return finish_sum(e, place_of_sum(static_cast<int32_t>(qa), static_cast<int32_t>(qb), f)); }
  DETENT_HD void operator()(const Epilogue& e, int64_t at, bool whole) const {
    if (whole && at + 4 <= a.n) {
      const Four<uint8_t> u = *reinterpret_cast<const Four<uint8_t>*>(a.a.codes + at), v = *reinterpret_cast<const Four<uint8_t>*>(a.b.codes + at);
      EpilogueResult r[4];
      for (int k = 0; k < 4; ++k) r[k] = one(e, u.v[k], v.v[k]);
      write_four(e, at, r);
      return;
    }
    for (int64_t k = at; k < a.n && k < at + 4; ++k) write_one(e, k, one(e, a.a.codes[k], a.b.codes[k]));
  }
};

// Four elements by each thread where the pointers allow it.
struct Add {
  static constexpr int kShare = 6;
  AddArgs a;
  bool whole;
  const SumOfCodes* plan;  // null: not both are codes on their way to a grid
  DETENT_HD void operator()(int64_t i) const {
    const int64_t at = 4 * i;
    const Epilogue e = settled(a.epilogue);
    if (plan && plan->absorbs) return AddCodes{a, plan->f}(e, at, whole);
    const ConvInput left = settled(a.a), right = settled(a.b);
    if (whole && at + 4 <= a.n) {
      const Four<float> u = load_four(left, at), v = load_four(right, at);
      EpilogueResult r[4];
      for (int k = 0; k < 4; ++k) r[k] = finish(e, u.v[k] + v.v[k]);
      write_four(e, at, r);
      return;
    }
    for (int64_t k = at; k < a.n && k < at + 4; ++k) write_one(e, k, finish(e, load(left, k) + load(right, k)));
  }
};

struct RangeGradients {
  RangeGradsArgs a;
  DETENT_HD void operator()(int64_t c) const {
    const RangeGrads g = range_grads_from_sums(a.scale_sum[c], a.clip_sum[c], Range{static_cast<double>(a.min[c]), static_cast<double>(a.max[c])}, a.spec, a.rule);
    a.dmin[c] = static_cast<float>(g.min);
    a.dmax[c] = static_cast<float>(g.max);
  }
};

struct RoundBias {
  RoundBiasArgs a;
  DETENT_HD void operator()(int64_t k) const { a.y[k] = round_to_accumulator_grid(a.b[k], present(a.input, a.resident).scale, a.grids[a.per_channel ? k : 0].scale); }
};

}  // namespace

void fake_quant(const FakeQuantArgs& a) {
  const int64_t n = elements_of(a.view);
  auto* codes = static_cast<uint8_t*>(a.codes);
  if (QuadGrids::fit(a.view) && aligned16(a.x) && aligned16(a.y) && aligned16(codes)) {
    elements("fake_quant", threads_of(n), FakeQuantFour{QuadGrids(a.view, a.grids), a.x, a.y, codes, n});
    return;
  }
  with_index(n, [&]<class Index>() { elements("fake_quant", n, FakeQuant<Index>{a.view, a.x, a.grids, a.y, codes}); });
}

void dequantize(const DequantizeArgs& a) {
  elements("dequantize", ceil_div(a.n, 4), Dequantize{a, aligned16(a.codes) && aligned16(a.y)});
}

void fake_quant_backward(const FakeQuantBackwardArgs& a) {
  const ChannelView& v = a.view;
  const int64_t n = elements_of(v);
  if (a.mask_on_value) {
    if (!a.dx) return;
    if (QuadGrids::fit(v) && aligned16(a.x) && aligned16(a.dy) && aligned16(a.dx)) {
      elements("fake_quant_backward", ceil_div(n, 4), MaskFour{QuadGrids(v, a.grids), a.x, a.dy, a.dx, n});
    } else {
      with_index(n, [&]<class Index>() { elements("fake_quant_backward", n, Mask<Index>{v, a.x, a.dy, a.grids, a.dx}); });
    }
    return;
  }
  if (channels_last(v)) {
    constexpr int64_t kPiece = kSumBlock * kBlocksOfPiece;
    const int64_t rows = kPiece / v.channels > 1 ? kPiece / v.channels : 1, slabs = ceil_div(v.outer, rows);
    const Scratch<Sums> part(slabs * v.channels);
    elements("fake_quant_backward", slabs * v.channels, RangeSumsChannelsLast{v.channels, v.outer, rows, a.x, a.dy, a.grids, a.dx, part.get()});
    if (a.scale_sum || a.clip_sum) blocks("range sums", v.channels, JoinSums{slabs, v.channels, 1, 1, part.get(), 1.0, a.scale_sum, a.clip_sum});
    return;
  }
  const SumCut cut(v);
  const bool quads = aligned16(a.x) && aligned16(a.dy) && aligned16(a.dx) && (cut.rows_of_block == 1 || v.inner % 4 == 0);
  const bool whole = v.outer == 1 && cut.blocks_of_row == 1;  // nothing to join
  const Scratch<Sums> part(whole ? 0 : cut.rows * cut.blocks_of_row);
  const auto run = [&]<bool Short>() {
    blocks("fake_quant_backward", cut.blocks(), RangeSums<Short>{cut, quads, a.x, a.dy, a.grids, a.dx, whole ? nullptr : part.get(), a.scale_sum, a.clip_sum});
  };
  cut.rows_of_block > 1 ? run.template operator()<true>() : run.template operator()<false>();
  if (whole || (!a.scale_sum && !a.clip_sum)) return;
  blocks("range sums", v.channels, JoinSums{v.outer, v.channels, cut.blocks_of_row, kBlocksOfPiece, part.get(), 1.0, a.scale_sum, a.clip_sum});
}

void add(const AddArgs& a) {
  const Epilogue& e = a.epilogue;
  const auto whole_operand = [](const ConvInput& in) { return aligned16(in.x) && whole_fours(in.x16) && aligned16(in.codes); };
  const bool whole = writes_four(e, 4) && whole_operand(a.a) && whole_operand(a.b);
  const Scratch<SumOfCodes> plan(1);
  const bool codes = e.quantize && a.a.codes && a.b.codes;
  if (codes) elements("plan of a sum", 1, PlanSum{a, plan.get()});
  elements("add", ceil_div(a.n, 4), Add{a, whole, codes ? plan.get() : nullptr});
}

template <class T>
static void quantized_backward(const QuantizedBackwardArgs& a, const T* dy, T* dx) {
  const int64_t n = a.rows * a.c, count = ceil_div(n, kSumBlock), pieces = ceil_div(count, kBlocksOfPiece);
  const Scratch<float> lanes(count * 2 * kLanes);
  const bool quads = aligned16(a.codes) && aligned16(a.residual) && whole_fours(dy) && whole_fours(dx);
  blocks("quantized_backward", count, CodedSums<T>{a, dy, dx, n, quads, lanes.get()});
  if (a.dbias) column_sums(dx, a.rows, a.c, a.dbias);
  if (!a.scale_sum && !a.clip_sum) return;
  const Scratch<Sums> part(pieces);
  blocks("range sums", pieces, JoinLanes{count, lanes.get(), part.get()});
  blocks("range sums", 1, JoinSums{1, 1, pieces, 1, part.get(), static_cast<double>(kResidualScale), a.scale_sum, a.clip_sum});
}

void quantized_backward(const QuantizedBackwardArgs& a) { a.dy16 ? quantized_backward(a, a.dy16, a.dx16) : quantized_backward(a, a.dy, a.dx); }

void range_grads(const RangeGradsArgs& a) { elements("range_grads", a.channels, RangeGradients{a}); }
void round_bias(const RoundBiasArgs& a) { elements("round_bias", a.n, RoundBias{a}); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
