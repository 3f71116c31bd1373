// fill, accumulate, scale, count_nonfinite, pointwise and its backward.
#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

struct Fill {
  float* y;
  float value;
  DETENT_HD void operator()(int64_t i) const { y[i] = value; }
};

struct Accumulate {
  float* y;
  const float* x;
  DETENT_HD void operator()(int64_t i) const { y[i] += x[i]; }
};

struct Scale {
  float* y;
  const float* x;
  float factor;
  DETENT_HD void operator()(int64_t i) const { y[i] = factor * x[i]; }
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
  const float* x;
  float* y;
  float a, b;
  DETENT_HD void operator()(int64_t i) const { y[i] = F::fwd(x[i], a, b); }
};

template <class F>
struct Backward {
  const float* x;
  const float* y;
  const float* dy;
  float* dx;
  float a, b;
  DETENT_HD void operator()(int64_t i) const { dx[i] = F::bwd(x[i], y[i], dy[i], a, b); }
};

}  // namespace

void fill(float* y, float value, int64_t n) { elements("fill", n, Fill{y, value}); }
void accumulate(float* y, const float* x, int64_t n) { elements("accumulate", n, Accumulate{y, x}); }
void scale(float* y, const float* x, float factor, int64_t n) { elements("scale", n, Scale{y, x, factor}); }

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
  visit_pointwise(a.op.kind, [&]<class F>() { elements(name_of(a.op.kind), a.n, Forward<F>{a.x, a.out, a.op.a, a.op.b}); });
}

void pointwise_backward(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() { elements(name_of(a.op.kind), a.n, Backward<F>{a.x, a.y, a.dy, a.out, a.op.a, a.op.b}); });
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
