// Batch norm over rows of [rows,c]. Rows are cut into blocks that stay in the cache; float sums within a block, double across blocks.
// Narrow rows are joined into wide ones (a row of 16 channels x 4 pixels), so that vectors are full and loops long. Rows in bf16 are widened a few at a time.
#include <cmath>
#include <vector>

#include "detent/backends/cpu/bf16_values.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/moments.h"

namespace detent::cpu {
namespace {

constexpr int64_t kBlocksPerTask = 32;
constexpr int64_t kWide = 128;

struct Layout {
  int64_t rows, c;
  int64_t join;        // rows in a wide row
  int64_t width;       // c * join
  int64_t block_rows;  // a multiple of join
  int64_t task_rows;
  int64_t tasks;

  Layout(int64_t rows_, int64_t c_) : rows(rows_), c(c_) {
    join = c > 0 && c < kWide ? kWide / c : 1;
    width = c * join;
    block_rows = std::clamp<int64_t>(8192 / std::max<int64_t>(c, 1), 32, 1024) / join * join;
    if (block_rows == 0) block_rows = join;
    task_rows = block_rows * kBlocksPerTask;
    tasks = (rows + task_rows - 1) / task_rows;
  }
};

using Floats = std::vector<float>;

// One copy of c values for each joined row.
template <class T>
Floats widen(const T* v, const Layout& l) {
  Floats w(static_cast<size_t>(l.width));
  for (int64_t k = 0; k < l.width; k += l.c) {
    for (int64_t j = 0; j < l.c; ++j) w[static_cast<size_t>(k + j)] = static_cast<float>(v[j]);
  }
  return w;
}

// Folds the sums of a wide row into those of c channels.
void fold(const Floats& wide, const Layout& l, double* out) {
  for (int64_t j = 0; j < l.c; ++j) out[j] = 0.0;
  for (int64_t k = 0; k < l.width; k += l.c) {
    for (int64_t j = 0; j < l.c; ++j) out[j] += static_cast<double>(wide[static_cast<size_t>(k + j)]);
  }
}

// Calls fn(first row, number of wide rows, width) and, for rows left over, fn(first row, number, c).
template <class Fn>
void wide_rows(const Layout& l, int64_t begin, int64_t end, Fn&& fn) {
  const int64_t wide = (end - begin) / l.join, rest = (end - begin) % l.join;
  if (wide > 0) fn(begin, wide, l.width);
  if (rest > 0) fn(end - rest, rest, l.c);
}

// Calls fn(first, number) for pieces of n rows that are read as bf16: as many as kBf16Block holds, but a multiple of four, by which the kernels add rows up.
// All rows at once where they are f32.
constexpr int64_t kRowsAtOnce = 4;
int64_t rows_of_piece(int64_t width) { return std::max<int64_t>(kRowsAtOnce, kBf16Block / std::max<int64_t>(width, 1) / kRowsAtOnce * kRowsAtOnce); }
size_t piece_room(const Layout& l, bool bf16) { return bf16 ? static_cast<size_t>(rows_of_piece(l.width) * l.width) : 0; }
template <class Fn>
void for_pieces(int64_t n, int64_t width, bool bf16, Fn&& fn) {
  const int64_t piece = bf16 ? rows_of_piece(width) : std::max<int64_t>(n, 1);
  for (int64_t i = 0; i < n; i += piece) fn(i, std::min(piece, n - i));
}

struct Moments {
  std::vector<double> mean, m2;
  explicit Moments(int64_t n) : mean(static_cast<size_t>(n)), m2(static_cast<size_t>(n)) {}
};

// Mean and M2 of a block: two passes, the second over what the first has brought into the cache.
void block_moments(const Layout& l, const BatchNormStatsArgs& a, int64_t begin, int64_t end, float* room, Floats* sum, Floats* centre, Moments* out) {
  const DenseKernels& k = dense_kernels();
  const auto over_rows = [&](auto&& add) {
    wide_rows(l, begin, end, [&](int64_t row, int64_t n, int64_t width) {
      for_pieces(n, width, a.x16, [&](int64_t first, int64_t m) { add(widened(a.x, a.x16, row * l.c + first * width, m * width, room), m, width); });
    });
  };
  sum->assign(sum->size(), 0.0f);
  over_rows([&](const float* x, int64_t n, int64_t width) { k.add_rows(x, width, n, width, sum->data()); });
  fold(*sum, l, out->mean.data());
  const double scale = 1.0 / static_cast<double>(end - begin);
  for (int64_t j = 0; j < l.c; ++j) {
    out->mean[static_cast<size_t>(j)] *= scale;
    (*centre)[static_cast<size_t>(j)] = static_cast<float>(out->mean[static_cast<size_t>(j)]);
  }
  for (int64_t j = l.c; j < l.width; j += l.c) std::copy_n(centre->data(), l.c, centre->data() + j);
  sum->assign(sum->size(), 0.0f);
  over_rows([&](const float* x, int64_t n, int64_t width) { k.add_squares(x, n, width, centre->data(), sum->data()); });
  fold(*sum, l, out->m2.data());
}

// Where rows are written.
struct RowsOut {
  float* y;
  uint16_t* y16;
  bool stream;
};

// n rows of this width through a small buffer, `step` at a time: past the cache, or rounded to bf16.
template <class Fn>
void write_buffered(const Layout& l, const RowsOut& out, int64_t row, int64_t n, int64_t width, float* buffer, int64_t step, Fn&& fn) {
  const int64_t joined = width / l.c;
  for (int64_t i = 0; i < n; i += step) {
    const int64_t m = std::min(step, n - i), first = row + i * joined;
    fn(first, m, width, buffer);
    if (!out.y16) {
      stream_copy(out.y + first * l.c, buffer, m * width);
      continue;
    }
    narrow_values(buffer, out.y16 + first * l.c, m * width, out.stream);
  }
  if (out.stream) stream_fence();
}

// fn(first row, number, width, destination, room): the destination may be a buffer, whose rows are then few; in bf16 there is room to widen two operands of as many.
template <class Fn>
void write_rows(const Layout& l, const RowsOut& out, Fn&& fn) {
  constexpr int64_t kBuffer = 512;
  parallel_for(l.rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(l.width, 1)) * l.join, [&](int64_t begin, int64_t end) {
    Floats buffer(piece_room(l, out.y16)), room(2 * buffer.size());
    const auto compute = [&](int64_t row, int64_t n, int64_t width, float* y) { fn(row, n, width, y, room.data()); };
    wide_rows(l, begin, end, [&](int64_t row, int64_t n, int64_t width) {
      if (out.y16) return write_buffered(l, out, row, n, width, buffer.data(), rows_of_piece(width), compute);
      const int64_t step = width > 0 ? kBuffer / width : 0;
      if (!out.stream || step == 0) return compute(row, n, width, out.y + row * l.c);
      alignas(64) float few[kBuffer];
      write_buffered(l, out, row, n, width, few, step, compute);
    });
  });
}

// y = (x - mean) * factor + shift, widened. Args is the forward's or the backward's.
struct Terms {
  Floats mean, factor, shift;

  template <class Args>
  Terms(const Args& a, const Layout& l) : mean(widen(a.mean, l)) {
    Floats f(static_cast<size_t>(a.c)), b(f);
    for (int64_t j = 0; j < a.c; ++j) {
      f[static_cast<size_t>(j)] = (a.gamma ? a.gamma[j] : 1.0f) / std::sqrt(a.var[j] + a.eps);
      b[static_cast<size_t>(j)] = a.beta ? a.beta[j] : 0.0f;
    }
    factor = widen(f.data(), l);
    shift = widen(b.data(), l);
  }
};

}  // namespace

void batch_norm_stats(const BatchNormStatsArgs& a) {
  const Layout l(a.rows, a.c);
  const int64_t c = a.c;
  std::vector<ChannelMoments> tasks(static_cast<size_t>(l.tasks), ChannelMoments(c));
  parallel_chunks(l.tasks, [&](int64_t t) {
    Floats sum(static_cast<size_t>(l.width)), centre(sum), room(piece_room(l, a.x16));
    Moments block(c);
    const int64_t first = t * l.task_rows, last = std::min(a.rows, first + l.task_rows);
    for (int64_t begin = first; begin < last; begin += l.block_rows) {
      const int64_t end = std::min(last, begin + l.block_rows);
      block_moments(l, a, begin, end, room.data(), &sum, &centre, &block);
      tasks[static_cast<size_t>(t)].join(end - begin, block.mean.data(), block.m2.data());
    }
  });
  ChannelMoments all(c);
  for (const ChannelMoments& t : tasks) all.join(t);
  all.statistics(a.mean, a.var);
}

void batch_norm(const BatchNormArgs& a) {
  const Layout l(a.rows, a.c);
  const Terms w(a, l);
  const DenseKernels& k = dense_kernels();
  const RowsOut out{a.y, a.y16, streams_apart(a.rows * a.c, a.y, a.y16, {a.x, a.x16})};
  write_rows(l, out, [&](int64_t row, int64_t n, int64_t width, float* y, float* room) {
    k.normalise(widened(a.x, a.x16, row * l.c, n * width, room), n, width, w.mean.data(), w.factor.data(), w.shift.data(), a.clamp_min, a.clamp_max, y);
  });
}

void batch_norm_backward(const BatchNormBackwardArgs& a) {
  const Layout l(a.rows, a.c);
  const int64_t c = a.c;
  const DenseKernels& k = dense_kernels();
  const bool masked = std::isfinite(a.clamp_min) || std::isfinite(a.clamp_max);
  const Terms w(a, l);
  // Of n values from a row on; `room` for twice as many.
  const auto gradient = [&](int64_t row, int64_t n, float* room) {
    return NormGradient{widened(a.x, a.x16, row * c, n, room), widened(a.dy, a.dy16, row * c, n, room ? room + n : nullptr), w.mean.data(), w.factor.data(), w.shift.data(), masked, a.clamp_min, a.clamp_max};
  };
  // Per task and channel: sum dy and sum dy * (x - mean).
  std::vector<double> sum(static_cast<size_t>(l.tasks * c)), dot(sum);
  parallel_chunks(l.tasks, [&](int64_t t) {
    Floats s(static_cast<size_t>(l.width)), d(s), room(2 * piece_room(l, a.x16));
    std::vector<double> fs(static_cast<size_t>(c)), fd(fs);
    const int64_t first = t * l.task_rows, last = std::min(a.rows, first + l.task_rows);
    for (int64_t begin = first; begin < last; begin += l.block_rows) {
      s.assign(s.size(), 0.0f);
      d.assign(d.size(), 0.0f);
      wide_rows(l, begin, std::min(last, begin + l.block_rows), [&](int64_t row, int64_t n, int64_t width) {
        for_pieces(n, width, a.x16, [&](int64_t i, int64_t m) { k.norm_sums(gradient(row + i * (width / c), m * width, room.data()), m, width, s.data(), d.data()); });
      });
      fold(s, l, fs.data());
      fold(d, l, fd.data());
      for (int64_t j = 0; j < c; ++j) {
        sum[static_cast<size_t>(t * c + j)] += fs[static_cast<size_t>(j)];
        dot[static_cast<size_t>(t * c + j)] += fd[static_cast<size_t>(j)];
      }
    }
  });
  // dx = k1 * dy - k2 - k3 * (x - mean)
  std::vector<double> k1(static_cast<size_t>(c)), k2(k1), k3(k1);
  const double rows = static_cast<double>(std::max<int64_t>(a.rows, 1));
  for (int64_t j = 0; j < c; ++j) {
    double s = 0.0, d = 0.0;
    for (int64_t t = 0; t < l.tasks; ++t) {
      s += sum[static_cast<size_t>(t * c + j)];
      d += dot[static_cast<size_t>(t * c + j)];
    }
    const double inverse = 1.0 / std::sqrt(static_cast<double>(a.var[j]) + static_cast<double>(a.eps));
    const double factor = (a.gamma ? static_cast<double>(a.gamma[j]) : 1.0) * inverse;
    if (a.dgamma) a.dgamma[j] = static_cast<float>(d * inverse);
    if (a.dbeta) a.dbeta[j] = static_cast<float>(s);
    k1[static_cast<size_t>(j)] = factor;
    k2[static_cast<size_t>(j)] = a.training ? factor * s / rows : 0.0;
    k3[static_cast<size_t>(j)] = a.training ? factor * d * inverse * inverse / rows : 0.0;
  }
  if (!a.dx && !a.dx16) return;
  const Floats f1 = widen(k1.data(), l), f2 = widen(k2.data(), l), f3 = widen(k3.data(), l);
  const RowsOut out{a.dx, a.dx16, streams_apart(a.rows * c, a.dx, a.dx16, {a.x, a.x16, a.dy, a.dy16})};
  write_rows(l, out, [&](int64_t row, int64_t n, int64_t width, float* dx, float* room) {
    k.norm_backward(gradient(row, n * width, room), n, width, f1.data(), f2.data(), f3.data(), dx);
  });
}

}  // namespace detent::cpu
