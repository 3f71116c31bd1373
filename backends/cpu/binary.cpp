// binary, strided_copy, reduce_sum over loop nests.
#include <cstring>
#include <vector>

#include "detent/backends/cpu/dense.h"
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
  const bool stream = sy == 1 && args.y != args.a && args.y != args.b && l.extent[inner] >= kGrain && streams(loop_elements(l));
  for_each_run(l, [&](int64_t a, int64_t b, int64_t y, int64_t n) {
    write_streamed(args.y + y, 0, n, stream, [&](float* out, int64_t first, int64_t count) {
      binary_run<Op>(args.a + a + first * sa, sa, args.b + b + first * sb, sb, out, sy, count);
    });
  });
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

// Calls fn(a offset, y offset) for every element that is kept; each sums `count` numbers.
template <class Fn>
void for_each_kept(const LoopNest& kept, int64_t count, Fn&& fn) {
  parallel_for(loop_elements(kept), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, count)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t a = 0, y = 0, rest = i;
      for (int d = kept.rank - 1; d >= 0; --d) {
        const int64_t k = rest % kept.extent[d];
        rest /= kept.extent[d];
        a += k * kept.a_stride[d];
        y += k * kept.y_stride[d];
      }
      fn(a, y);
    }
  });
}

// Sum of contiguous numbers: 64 float lanes within a block, doubles across lanes and blocks.
double run_sum(const float* x, int64_t n) {
  constexpr int64_t kLanes = 64, kBlock = 256 * kLanes;
  const DenseKernels& k = dense_kernels();
  std::vector<double> part(static_cast<size_t>((n + kBlock - 1) / kBlock));
  parallel_for(n, kBlock, [&](int64_t begin, int64_t end) {
    float lanes[kLanes] = {};
    const int64_t rows = (end - begin) / kLanes;
    k.add_rows(x + begin, kLanes, rows, kLanes, lanes);
    double sum = 0.0;
    for (float v : lanes) sum += static_cast<double>(v);
    for (int64_t i = begin + rows * kLanes; i < end; ++i) sum += static_cast<double>(x[i]);
    part[static_cast<size_t>(begin / kBlock)] = sum;
  });
  double sum = 0.0;
  for (double v : part) sum += v;
  return sum;
}

// y[c] = sum over rows: floats within a block of rows, doubles across blocks.
void column_sums(const float* x, int64_t stride, int64_t rows, int64_t c, float* y) {
  const int64_t block = std::clamp<int64_t>(16384 / c, 32, 1024), blocks = (rows + block - 1) / block, task = std::max<int64_t>(1, 4 * kGrain / (block * c));
  const int64_t tasks = (blocks + task - 1) / task;
  const DenseKernels& k = dense_kernels();
  std::vector<double> part(static_cast<size_t>(tasks * c));
  parallel_chunks(tasks, [&](int64_t t) {
    std::vector<float> sum(static_cast<size_t>(c));
    for (int64_t b = t * task; b < std::min(blocks, (t + 1) * task); ++b) {
      sum.assign(sum.size(), 0.0f);
      k.add_rows(x + b * block * stride, stride, std::min(block, rows - b * block), c, sum.data());
      for (int64_t j = 0; j < c; ++j) part[static_cast<size_t>(t * c + j)] += static_cast<double>(sum[static_cast<size_t>(j)]);
    }
  });
  for (int64_t j = 0; j < c; ++j) {
    double sum = 0.0;
    for (int64_t t = 0; t < tasks; ++t) sum += part[static_cast<size_t>(t * c + j)];
    y[j] = static_cast<float>(sum);
  }
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
  if (reduced.rank == 1 && kept.rank == 1 && kept.a_stride[0] == 1 && kept.y_stride[0] == 1 && kept.extent[0] > 1) {
    return column_sums(args.a, reduced.a_stride[0], reduced.extent[0], kept.extent[0], args.y);
  }
  if (reduced.rank == 1 && reduced.a_stride[0] == 1) {
    return for_each_kept(kept, reduced.extent[0], [&](int64_t a, int64_t y) { args.y[y] = static_cast<float>(run_sum(args.a + a, reduced.extent[0])); });
  }
  const int inner = reduced.rank - 1;
  const int64_t count = loop_elements(reduced);
  for_each_kept(kept, count, [&](int64_t a0, int64_t y0) {
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
  });
}

}  // namespace detent::cpu
