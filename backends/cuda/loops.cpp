// binary, strided_copy, reduce_sum over loop nests.
#include "detent/backends/cuda/index.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

template <class Index>
struct Binary {
  LoopNest loop;
  BinaryOp op;
  const float* a;
  const float* b;
  float* y;
  DETENT_HD void operator()(int64_t i) const {
    const Offsets o = offsets_at<Index>(loop, i);
    const float u = a[o.a], v = b[o.b];
    float r;
    switch (op) {
      case BinaryOp::add: r = u + v; break;
      case BinaryOp::sub: r = u - v; break;
      case BinaryOp::mul: r = u * v; break;
      default: r = u / v; break;
    }
    y[o.y] = r;
  }
};

template <class T, class Index>
struct Copy {
  LoopNest loop;
  const T* a;
  T* y;
  DETENT_HD void operator()(int64_t i) const {
    const Offsets o = offsets_at<Index>(loop, i);
    y[o.y] = a[o.a];
  }
};

template <class T>
void copy_loop(const StridedCopyArgs& a) {
  const int64_t n = loop_elements(a.loop);
  with_index(n, [&]<class Index>() { elements("strided_copy", n, Copy<T, Index>{a.loop, static_cast<const T*>(a.a), static_cast<T*>(a.y)}); });
}

// ---- sums: in stages that cut the summed elements into pieces of a fixed size; doubles between the stages -----------------------------------------

constexpr int64_t kFan = 256;

// One thread for each (piece, result): neighbouring threads have neighbouring results.
template <class Index>
struct SumPiece {
  LoopNest kept, summed;
  const float* a;
  int64_t results, count;
  double* part;  // [pieces, results]
  DETENT_HD void operator()(int64_t i) const {
    const Index piece = static_cast<Index>(i) / static_cast<Index>(results);
    const int64_t result = i - static_cast<int64_t>(piece) * results;
    const int64_t first = static_cast<int64_t>(piece) * kFan, last = first + kFan < count ? first + kFan : count;
    const float* x = first < last ? a + offsets_at<Index>(kept, result).a : a;  // of nothing there may be no array
    double sum = 0.0;
    if (summed.rank == 1) {
      for (int64_t k = first; k < last; ++k) sum += static_cast<double>(x[k * summed.a_stride[0]]);
    } else {
      for (int64_t k = first; k < last; ++k) sum += static_cast<double>(x[offsets_at<Index>(summed, k).a]);
    }
    part[i] = sum;
  }
};

// One block for each (piece, result) of a sum over neighbours.
struct SumRun {
  static constexpr int kThreads = 256;
  static constexpr int64_t kPer = 16384;
  struct Shared {
    double part[kThreads];
  };
  LoopNest kept;
  const float* a;
  int64_t results, count;
  double* part;  // [pieces, results]
  template <class B>
  DETENT_HD void operator()(B& block, Shared& shared) const {
    const int64_t piece = block.index / results, result = block.index - piece * results;
    block.threads([&](int t) {
      const float* x = a + offsets_at<int64_t>(kept, result).a;
      const int64_t first = piece * kPer, last = first + kPer < count ? first + kPer : count;
      double sum = 0.0;
      for (int64_t k = first + t; k < last; k += kThreads) sum += static_cast<double>(x[k]);
      shared.part[t] = sum;
    });
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.threads([&](int t) {
        if (t < half) shared.part[t] += shared.part[t + half];
      });
    }
    block.threads([&](int t) {
      if (t == 0) part[block.index] = shared.part[0];
    });
  }
};

struct SumParts {
  const double* from;
  int64_t pieces, results;
  double* to;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t group = i / results, result = i - group * results;
    const int64_t first = group * kFan, last = first + kFan < pieces ? first + kFan : pieces;
    double sum = 0.0;
    for (int64_t k = first; k < last; ++k) sum += from[k * results + result];
    to[i] = sum;
  }
};

struct StoreSums {
  LoopNest kept;
  const double* sum;
  float* y;
  DETENT_HD void operator()(int64_t i) const { y[offsets_at<int64_t>(kept, i).y] = static_cast<float>(sum[i]); }
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void binary(const BinaryArgs& a) {
  const int64_t n = loop_elements(a.loop);
  with_index(n, [&]<class Index>() { elements("binary", n, Binary<Index>{a.loop, a.op, a.a, a.b, a.y}); });
}

void strided_copy(const StridedCopyArgs& a) {
  switch (a.element_bytes) {
    case 1: copy_loop<uint8_t>(a); break;
    case 2: copy_loop<uint16_t>(a); break;
    case 4: copy_loop<uint32_t>(a); break;
    default: copy_loop<uint64_t>(a); break;
  }
}

void reduce_sum(const ReduceSumArgs& args) {
  LoopNest kept, summed;
  for (int i = 0; i < args.loop.rank; ++i) {
    LoopNest& l = args.loop.y_stride[i] == 0 ? summed : kept;
    l.extent[l.rank] = args.loop.extent[i];
    l.a_stride[l.rank] = args.loop.a_stride[i];
    l.y_stride[l.rank] = args.loop.y_stride[i];
    ++l.rank;
  }
  const int64_t results = loop_elements(kept), count = loop_elements(summed);
  if (results == 0) return;
  const bool runs = summed.rank == 1 && summed.a_stride[0] == 1 && count >= 1024;
  int64_t pieces = ceil_div(count, runs ? SumRun::kPer : kFan);
  if (pieces == 0) pieces = 1;  // a sum over nothing is 0
  const Scratch<double> part(pieces * results), other(ceil_div(pieces, kFan) * results);
  if (runs) {
    blocks("reduce_sum", pieces * results, SumRun{kept, args.a, results, count, part.get()});
  } else {
    with_index(pieces * results + kFan * pieces, [&]<class Index>() {
      elements("reduce_sum", pieces * results, SumPiece<Index>{kept, summed, args.a, results, count, part.get()});
    });
  }
  double *from = part.get(), *to = other.get();
  for (; pieces > 1; pieces = ceil_div(pieces, kFan)) {
    elements("reduce_sum", ceil_div(pieces, kFan) * results, SumParts{from, pieces, results, to});
    double* swap = from;
    from = to;
    to = swap;
  }
  elements("reduce_sum", results, StoreSums{kept, from, args.y});
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
