// binary, strided_copy, reduce_sum over loop nests.
#include <cstring>
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {
namespace {

struct Add {
  static float of(float a, float b) { return a + b; }
};
struct Sub {
  static float of(float a, float b) { return a - b; }
};
struct Mul {
  static float of(float a, float b) { return a * b; }
};
struct Div {
  static float of(float a, float b) { return a / b; }
};

// The strides that occur in practice get loops that the compiler vectorises.
template <class Op>
void binary_run(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t sy, int64_t n) {
  if (sy == 1 && sa == 1 && sb == 1) {
    for (int64_t i = 0; i < n; ++i) y[i] = Op::of(a[i], b[i]);
  } else if (sy == 1 && sa == 1 && sb == 0) {
    const float v = *b;
    for (int64_t i = 0; i < n; ++i) y[i] = Op::of(a[i], v);
  } else if (sy == 1 && sa == 0 && sb == 1) {
    const float v = *a;
    for (int64_t i = 0; i < n; ++i) y[i] = Op::of(v, b[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * sy] = Op::of(a[i * sa], b[i * sb]);
  }
}

template <class Op>
void binary_loop(const BinaryArgs& args) {
  const LoopNest l = collapse(args.loop);
  const int inner = l.rank - 1;
  const int64_t sa = l.a_stride[inner], sb = l.b_stride[inner], sy = l.y_stride[inner];
  for_each_run(l, [&](int64_t a, int64_t b, int64_t y, int64_t n) { binary_run<Op>(args.a + a, sa, args.b + b, sb, args.y + y, sy, n); });
}

template <class T>
void copy_loop(const StridedCopyArgs& args, const LoopNest& l) {
  const int inner = l.rank - 1;
  const int64_t sa = l.a_stride[inner], sy = l.y_stride[inner];
  for_each_run(l, [&](int64_t a, int64_t, int64_t y, int64_t n) {
    const T* src = static_cast<const T*>(args.a) + a;
    T* dst = static_cast<T*>(args.y) + y;
    if (sa == 1 && sy == 1) {
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(T));
    } else {
      for (int64_t i = 0; i < n; ++i) dst[i * sy] = src[i * sa];
    }
  });
}

}  // namespace

void binary(const BinaryArgs& a) {
  switch (a.op) {
    case BinaryOp::add: binary_loop<Add>(a); break;
    case BinaryOp::sub: binary_loop<Sub>(a); break;
    case BinaryOp::mul: binary_loop<Mul>(a); break;
    case BinaryOp::div: binary_loop<Div>(a); break;
  }
}

void strided_copy(const StridedCopyArgs& a) {
  LoopNest l = a.loop;
  for (int i = 0; i < l.rank; ++i) l.b_stride[i] = 0;
  l = collapse(l);
  switch (a.element_bytes) {
    case 1: copy_loop<uint8_t>(a, l); break;
    case 2: copy_loop<uint16_t>(a, l); break;
    case 4: copy_loop<uint32_t>(a, l); break;
    default: copy_loop<uint64_t>(a, l); break;
  }
}

void reduce_sum(const ReduceSumArgs& args) {
  LoopNest kept, reduced;
  for (int i = 0; i < args.loop.rank; ++i) {
    LoopNest& l = args.loop.y_stride[i] == 0 ? reduced : kept;
    l.extent[l.rank] = args.loop.extent[i];
    l.a_stride[l.rank] = args.loop.a_stride[i];
    l.y_stride[l.rank] = args.loop.y_stride[i];
    ++l.rank;
  }
  kept = collapse(kept);
  reduced = collapse(reduced);
  const int inner = reduced.rank - 1;
  const int64_t count = loop_elements(reduced);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, count));
  parallel_for(loop_elements(kept), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t a0 = 0, y0 = 0, rest = i;
      for (int d = kept.rank - 1; d >= 0; --d) {
        const int64_t k = rest % kept.extent[d];
        rest /= kept.extent[d];
        a0 += k * kept.a_stride[d];
        y0 += k * kept.y_stride[d];
      }
      double sum = 0.0;
      for (int64_t j = 0; j < count; j += reduced.extent[inner]) {
        int64_t a1 = a0, r = j / reduced.extent[inner];
        for (int d = inner - 1; d >= 0; --d) {
          a1 += r % reduced.extent[d] * reduced.a_stride[d];
          r /= reduced.extent[d];
        }
        for (int64_t k = 0; k < reduced.extent[inner]; ++k) sum += static_cast<double>(args.a[a1 + k * reduced.a_stride[inner]]);
      }
      args.y[y0] = static_cast<float>(sum);
    }
  });
}

}  // namespace detent::cpu
