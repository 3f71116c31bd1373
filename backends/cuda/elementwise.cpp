// fill, accumulate, conversions to and from bf16, scale, count_nonfinite, gather, pointwise and its backward.
#include "detent/backends/cuda/bf16.h"
#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

// y[i] = f(in[0][i], ...): four neighbours a thread where the pointers allow it, all of them read before the first is written.
template <class F, class In, class Out, int Inputs>
struct Map {
  const In* in[Inputs > 0 ? Inputs : 1];
  Out* y;
  int64_t n;
  bool whole;
  F f;
  DETENT_HD float one(const float* v) const {
    if constexpr (Inputs == 0) return f();
    if constexpr (Inputs == 1) return f(v[0]);
    if constexpr (Inputs == 2) return f(v[0], v[1]);
    if constexpr (Inputs == 3) return f(v[0], v[1], v[2]);
  }
  DETENT_HD void operator()(int64_t i) const {
    const int64_t at = 4 * i;
    float v[4][Inputs > 0 ? Inputs : 1];
    if (whole && at + 4 <= n) {
      DETENT_UNROLL
      for (int p = 0; p < Inputs; ++p) {
        const auto q = values_at<4>(in[p] + at);
        DETENT_UNROLL
        for (int k = 0; k < 4; ++k) v[k][p] = q.v[k];
      }
      Four<float> out;
      DETENT_UNROLL
      for (int k = 0; k < 4; ++k) out.v[k] = one(v[k]);
      put_values(y + at, out);
      return;
    }
    for (int64_t k = at; k < n && k < at + 4; ++k) {
      DETENT_UNROLL
      for (int p = 0; p < Inputs; ++p) v[0][p] = value_of(in[p][k]);
      put_value(y + k, one(v[0]));
    }
  }
};

template <class F, class Out, class In, class... More>
void map(const char* name, int64_t n, Out* y, const F& f, const In* in, const More*... more) {
  const bool whole = whole_fours(y) && whole_fours(in) && (whole_fours(more) && ...);
  elements(name, (n + 3) / 4, Map<F, In, Out, 1 + sizeof...(More)>{{in, more...}, y, n, whole, f});
}

struct Constant {
  float value;
  DETENT_HD float operator()() const { return value; }
};

struct Sum {
  DETENT_HD float operator()(float a, float b) const { return a + b; }
};

struct Same {
  DETENT_HD float operator()(float x) const { return x; }
};

struct Times {
  float factor;
  DETENT_HD float operator()(float x) const { return factor * x; }
};

// One count per block of kPer elements.
struct CountNonfinite {
  static constexpr int kThreads = 256;
  static constexpr int64_t kPer = 16384;
  struct Shared {
    int32_t part[kThreads];
  };
  const FloatSpan* spans;
  ChunkList chunks;
  int64_t* counts;  // [blocks]
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    block.threads([&](int t) {
      const int64_t at = chunks.tensor_of(block.index);
      const FloatSpan s = spans[at];
      const int64_t begin = (block.index - chunks.first[at]) * kPer, end = begin + kPer < s.n ? begin + kPer : s.n;
      int32_t bad = 0;
      for (int64_t i = begin + t; i < end; i += kThreads) bad += !(s.x[i] - s.x[i] == 0.0f);
      shared.part[t] = bad;
    });
    block.threads([&](int t) {
      if (t != 0) return;
      int64_t sum = 0;
      for (int k = 0; k < kThreads; ++k) sum += shared.part[k];
      counts[block.index] = sum;
    });
  }
};

struct JoinCounts {
  ChunkList chunks;
  const int64_t* counts;
  int64_t* total;
  DETENT_HD void operator()(int64_t i) const {
    int64_t sum = 0;
    for (int64_t b = chunks.first[i]; b < chunks.first[i + 1]; ++b) sum += counts[b];
    total[i] = sum;
  }
};

struct Gather {
  const FloatSpan* spans;
  ChunkList chunks;  // of one element each
  float* y;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t at = chunks.tensor_of(i);
    y[i] = spans[at].x[i - chunks.first[at]];
  }
};

template <class F>
struct Forward {
  float a, b;
  DETENT_HD float operator()(float x) const { return F::fwd(x, a, b); }
};

template <class F>
struct Backward {
  float a, b;
  DETENT_HD float operator()(float x, float y, float dy) const { return F::bwd(x, y, dy, a, b); }
};

}  // namespace

void fill(float* y, float value, int64_t n) { elements("fill", (n + 3) / 4, Map<Constant, float, float, 0>{{}, y, n, whole_fours(y), {value}}); }
void accumulate(float* y, const float* x, int64_t n) { map("accumulate", n, y, Sum{}, y, x); }
void accumulate16(uint16_t* y, const uint16_t* x, int64_t n) { map("accumulate", n, y, Sum{}, y, x); }
void narrow(uint16_t* y, const float* x, int64_t n) { map("narrow", n, y, Same{}, x); }
void widen(float* y, const uint16_t* x, int64_t n) { map("widen", n, y, Same{}, x); }
void scale(float* y, const float* x, float factor, int64_t n) { map("scale", n, y, Times{factor}, x); }

void count_nonfinite(const FloatSpan* spans, int64_t count, int64_t* nonfinite) {
  if (count == 0) return;
  const std::vector<int64_t> first = first_blocks(spans, count, CountNonfinite::kPer);
  const Uploaded<FloatSpan> placed(spans, count);
  const Uploaded<int64_t> first_placed(first.data(), count + 1);
  const Scratch<int64_t> parts(first.back()), totals(count);
  const ChunkList chunks{first_placed.get(), count};
  blocks("count_nonfinite", first.back(), CountNonfinite{placed.get(), chunks, parts.get()});
  elements("count_nonfinite", count, JoinCounts{chunks, parts.get(), totals.get()});
  download_bytes(nonfinite, totals.get(), static_cast<size_t>(count) * sizeof(int64_t));
}

void gather(const FloatSpan* spans, int64_t count, float* y) {
  if (count == 0) return;
  const std::vector<int64_t> first = first_blocks(spans, count, 1);
  const Uploaded<FloatSpan> placed(spans, count);
  const Uploaded<int64_t> first_placed(first.data(), count + 1);
  elements("gather", first.back(), Gather{placed.get(), {first_placed.get(), count}, y});
}

void pointwise(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    const Forward<F> f{a.op.a, a.op.b};
    a.x16 ? map(name_of(a.op.kind), a.n, a.out16, f, a.x16) : map(name_of(a.op.kind), a.n, a.out, f, a.x);
  });
}

void pointwise_backward(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    const Backward<F> f{a.op.a, a.op.b};
    a.x16 ? map(name_of(a.op.kind), a.n, a.out16, f, a.x16, a.x16, a.dy16) : map(name_of(a.op.kind), a.n, a.out, f, a.x, a.y, a.dy);
  });
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
