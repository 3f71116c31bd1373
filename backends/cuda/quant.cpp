// Quantize-dequantize and its backward pass with range sums, the fused add, and the backward pass of fused quantization. Sums run in the CPU's order, so that
// range gradients have the CPU's bits: float lanes (lane = index % 16) within 4096 elements, doubles across.
#include "detent/core/epilogue.h"
#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

constexpr int64_t kSumBlock = 4096;
constexpr int kLanes = 16;

int64_t elements_of(const ChannelView& v) { return v.outer * v.channels * v.inner; }
bool channels_last(const ChannelView& v) { return v.inner == 1 && v.outer > 1 && v.channels > 1; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- forward -----------------------------------------------------------------------------------------------------------------------------------------

// Four elements of one grid by each thread.
struct FakeQuantFour {
  const float* x;
  const Grid* grid;
  float* y;
  uint8_t* codes;
  int64_t n;
  DETENT_HD void operator()(int64_t i) const {
    const Grid g = *grid;
    const int64_t at = 4 * i;
    if (at + 4 <= n) {
      const Four<float> v = *reinterpret_cast<const Four<float>*>(x + at);
      Four<float> out;
      Four<uint8_t> q;
      for (int k = 0; k < 4; ++k) {
        if (codes) q.v[k] = static_cast<uint8_t>(quantize(v.v[k], g));
        out.v[k] = fake_quantize(v.v[k], g);
      }
      if (codes) *reinterpret_cast<Four<uint8_t>*>(codes + at) = q;
      if (y) *reinterpret_cast<Four<float>*>(y + at) = out;
      return;
    }
    for (int64_t k = at; k < n; ++k) {
      if (codes) codes[k] = static_cast<uint8_t>(quantize(x[k], g));
      if (y) y[k] = fake_quantize(x[k], g);
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

// Plain straight-through: decided on x itself.
template <class Index>
struct Mask {
  ChannelView view;
  const float* x;
  const float* dy;
  const Grid* grids;
  float* dx;
  DETENT_HD void operator()(int64_t i) const {
    const Index row = static_cast<Index>(i) / static_cast<Index>(view.inner);
    const Grid g = grids[row % static_cast<Index>(view.channels)];
    const float v = x[i];
    dx[i] = v >= dequantize(g.qmin, g) && v <= dequantize(g.qmax, g) ? dy[i] : 0.0f;
  }
};

struct Sums {
  double scale, clip;
};

// A row of one grid cut into pieces of 65536 elements, one block each: 16 lanes for each of its 16 sum blocks.
struct RangeSums {
  static constexpr int64_t kPiece = 65536;
  static constexpr int kThreads = 256;
  struct Shared {
    float scale[kThreads], clip[kThreads];
    Sums fold[kThreads / kLanes];
  };
  ChannelView view;
  int64_t pieces;  // of a row
  const float* x;
  const float* dy;
  const Grid* grids;
  float* dx;
  Sums* part;  // [rows * pieces]
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t row = block.index / pieces, begin = block.index % pieces * kPiece;
    const int64_t end = begin + kPiece < view.inner ? begin + kPiece : view.inner;
    block.threads([&](int t) {
      const Grid g = grids[row % view.channels];
      const float zero = static_cast<float>(g.zero_point), lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
      const int64_t first = begin + t / kLanes * kSumBlock, last = first + kSumBlock < end ? first + kSumBlock : end;
      const float *xr = x + row * view.inner, *dyr = dy + row * view.inner;
      float* dxr = dx ? dx + row * view.inner : nullptr;
      float scale = 0.0f, clip = 0.0f;
#if defined(__CUDACC__)
#pragma unroll 8
#endif
      for (int64_t i = first + t % kLanes; i < last; i += kLanes) {
        const RangeTerms terms = range_terms(xr[i], dyr[i], g.scale, zero, lo, hi);
        scale += terms.scale;
        clip += terms.clip;
        if (dxr) dxr[i] = terms.dx;
      }
      shared.scale[t] = scale;
      shared.clip[t] = clip;
    });
    block.threads([&](int t) {
      if (t >= kThreads / kLanes) return;
      Sums s{0.0, 0.0};
      for (int l = 0; l < kLanes; ++l) {
        s.scale += static_cast<double>(shared.scale[t * kLanes + l]);
        s.clip += static_cast<double>(shared.clip[t * kLanes + l]);
      }
      shared.fold[t] = s;
    });
    block.threads([&](int t) {
      if (t != 0) return;
      Sums s{0.0, 0.0};
      for (int64_t b = 0; begin + b * kSumBlock < end; ++b) {
        s.scale += shared.fold[b].scale;
        s.clip += shared.fold[b].clip;
      }
      part[block.index] = s;
    });
  }
};

// Channels last: one thread for each (slab of rows, channel).
struct RangeSumsChannelsLast {
  ChannelView view;
  int64_t rows;  // of a slab
  const float* x;
  const float* dy;
  const Grid* grids;
  float* dx;
  Sums* part;  // [slabs, channels]
  DETENT_HD void operator()(int64_t i) const {
    const int64_t slab = i / view.channels, c = i - slab * view.channels;
    const int64_t end = (slab + 1) * rows < view.outer ? (slab + 1) * rows : view.outer;
    const Grid g = grids[c];
    Sums s{0.0, 0.0};
    for (int64_t r = slab * rows; r < end; ++r) {
      const int64_t at = r * view.channels + c;
      const RangeTerms terms = range_terms(x[at], dy[at], g.scale, static_cast<float>(g.zero_point), static_cast<float>(g.qmin), static_cast<float>(g.qmax));
      s.scale += static_cast<double>(terms.scale);
      s.clip += static_cast<double>(terms.clip);
      if (dx) dx[at] = terms.dx;
    }
    part[i] = s;
  }
};

// Joins the parts of each channel in order: the parts run through the channels in groups. One block for a channel loads them side by side; one thread adds.
struct JoinSums {
  static constexpr int kThreads = 256;
  struct Shared {
    Sums part[4 * kThreads];
  };
  int64_t channels, group, parts;  // parts of all channels
  const Sums* part;
  double divisor;  // of the scale sum
  double* scale_sum;
  double* clip_sum;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t own = parts / channels;  // parts of this channel
    PerThread<B, Sums> sum;
    block.threads([&](int t) { sum[t] = {0.0, 0.0}; });
    for (int64_t first = 0; first < own; first += 4 * kThreads) {
      const int64_t n = own - first < 4 * kThreads ? own - first : 4 * kThreads;
      block.threads([&](int t) {
        for (int64_t k = t; k < n; k += kThreads) {
          const int64_t p = first + k;
          shared.part[k] = part[(p / group * channels + block.index) * group + p % group];
        }
      });
      block.threads([&](int t) {  // two warps, one sum each
        if (t == 0) {
          for (int64_t k = 0; k < n; ++k) sum[t].scale += shared.part[k].scale;
        } else if (t == 32) {
          for (int64_t k = 0; k < n; ++k) sum[t].clip += shared.part[k].clip;
        }
      });
    }
    block.threads([&](int t) {
      if (t == 0 && scale_sum) scale_sum[block.index] = sum[t].scale / divisor;
      if (t == 32 && clip_sum) clip_sum[block.index] = sum[t].clip;
    });
  }
};

// ---- codes -------------------------------------------------------------------------------------------------------------------------------------------

// Element i of an operand that is dense, or codes on a grid.
DETENT_HD float load(const ConvInput& in, int64_t i) { return in.x ? in.x[i] : dequantize(static_cast<int32_t>(in.codes[i]), in.grid); }

// Four neighbours; i is a multiple of four and the operand's pointer aligned.
DETENT_HD Four<float> load_four(const ConvInput& in, int64_t i) {
  if (in.x) return *reinterpret_cast<const Four<float>*>(in.x + i);
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

// Pieces of 32768 elements: 16 lanes for each of 8 sum blocks, and the lanes of a piece are added one after the other.
struct CodedSums {
  static constexpr int64_t kPiece = 32768;
  static constexpr int kThreads = 128;
  struct Shared {
    float scale[kThreads], clip[kThreads];
  };
  QuantizedBackwardArgs a;
  int64_t n;
  Sums* part;
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t begin = block.index * kPiece, end = begin + kPiece < n ? begin + kPiece : n;
    block.threads([&](int t) {
      const int64_t first = begin + t / kLanes * kSumBlock, last = first + kSumBlock < end ? first + kSumBlock : end;
      const int32_t zero_point = present(a.grid, a.resident).zero_point;
      float scale = 0.0f, clip = 0.0f;
#if defined(__CUDACC__)
#pragma unroll 8
#endif
      for (int64_t i = first + t % kLanes; i < last; i += kLanes) {
        const RangeTerms terms = coded_range_terms(a.codes[i], a.residual[i], zero_point, a.dy[i]);
        scale += terms.scale;
        clip += terms.clip;
        a.dx[i] = terms.dx;
      }
      shared.scale[t] = scale;
      shared.clip[t] = clip;
    });
    block.threads([&](int t) {
      if (t != 0 && t != 32) return;
      const float* lanes = t == 0 ? shared.scale : shared.clip;
      double sum = 0.0;
      for (int l = 0; l < kThreads; ++l) sum += static_cast<double>(lanes[l]);
      (t == 0 ? part[block.index].scale : part[block.index].clip) = sum;
    });
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
  if (a.view.channels == 1 && aligned16(a.x) && aligned16(a.y) && aligned16(codes)) {
    elements("fake_quant", ceil_div(n, 4), FakeQuantFour{a.x, a.grids, a.y, codes, n});
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
    if (a.dx) with_index(n, [&]<class Index>() { elements("fake_quant_backward", n, Mask<Index>{v, a.x, a.dy, a.grids, a.dx}); });
    return;
  }
  const bool last = channels_last(v);
  const int64_t rows = RangeSums::kPiece / v.channels > 1 ? RangeSums::kPiece / v.channels : 1;
  const int64_t pieces = ceil_div(v.inner, RangeSums::kPiece);
  const int64_t parts = last ? ceil_div(v.outer, rows) * v.channels : v.outer * v.channels * pieces;
  const Scratch<Sums> part(parts);
  if (last) {
    elements("fake_quant_backward", parts, RangeSumsChannelsLast{v, rows, a.x, a.dy, a.grids, a.dx, part.get()});
  } else {
    blocks("fake_quant_backward", parts, RangeSums{v, pieces, a.x, a.dy, a.grids, a.dx, part.get()});
  }
  if (a.scale_sum || a.clip_sum) blocks("range sums", v.channels, JoinSums{v.channels, last ? 1 : pieces, parts, part.get(), 1.0, a.scale_sum, a.clip_sum});
}

void add(const AddArgs& a) {
  const Epilogue& e = a.epilogue;
  const bool whole = writes_four(e, 4) && aligned16(a.a.x) && aligned16(a.b.x) && aligned16(a.a.codes) && aligned16(a.b.codes);
  const Scratch<SumOfCodes> plan(1);
  const bool codes = e.quantize && !a.a.x && !a.b.x;
  if (codes) elements("plan of a sum", 1, PlanSum{a, plan.get()});
  elements("add", ceil_div(a.n, 4), Add{a, whole, codes ? plan.get() : nullptr});
}

void quantized_backward(const QuantizedBackwardArgs& a) {
  const int64_t n = a.rows * a.c, pieces = ceil_div(n, CodedSums::kPiece);
  const Scratch<Sums> part(pieces);
  blocks("quantized_backward", pieces, CodedSums{a, n, part.get()});
  if (a.dbias) column_sums(a.dx, a.rows, a.c, a.dbias);
  if (a.scale_sum || a.clip_sum) blocks("range sums", 1, JoinSums{1, 1, pieces, part.get(), static_cast<double>(kResidualScale), a.scale_sum, a.clip_sum});
}

void range_grads(const RangeGradsArgs& a) { elements("range_grads", a.channels, RangeGradients{a}); }
void round_bias(const RoundBiasArgs& a) { elements("round_bias", a.n, RoundBias{a}); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
