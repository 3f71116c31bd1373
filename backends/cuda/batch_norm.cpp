// Batch norm over rows of [rows, c], and the sums of columns that a bias gradient is.
#include "detent/backends/cuda/bf16.h"
#include "detent/backends/cuda/columns.h"
#include "detent/backends/cuda/conv.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

template <int Width, bool Whole, class T>
DETENT_HD Some<float, Width> some(const T* p) {
  if constexpr (Whole) {
    return values_at<Width>(p);
  } else {
    Some<float, Width> v;
    DETENT_UNROLL
    for (int e = 0; e < Width; ++e) v.v[e] = value_of(p[e]);
    return v;
  }
}

// Rows of a run, all loads on their way at once; those from n on stay zero.
template <int Width, bool Whole, bool Full, class T, int Rows>
DETENT_HD void read_rows(const T* from, int64_t step, int n, Some<float, Width> (&rows)[Rows]) {
  DETENT_UNROLL
  for (int i = 0; i < Rows; ++i) {
    if (Full || i < n) rows[i] = some<Width, Whole>(from + i * step);
  }
}

// (mean, M2) of a column, merged as Chan et al. 1983.
template <class T>
struct MomentsOp {
  const T* x;
  template <int Width, bool Whole, bool Full>
  DETENT_HD void run(int64_t at, int64_t, int64_t step, int n, ColumnPart* part) const {
    Some<float, Width> v[kReduceRun] = {};
    read_rows<Width, Whole, Full>(x + at, step, n, v);
    DETENT_UNROLL
    for (int e = 0; e < Width; ++e) {
      // About the first value: a mean far from zero costs no digits.
      const float first = v[0].v[e];
      float sum = 0.0f, m2 = 0.0f;
      DETENT_UNROLL
      for (int i = 0; i < kReduceRun; ++i) {
        v[i].v[e] -= first;
        if (Full || i < n) sum += v[i].v[e];
      }
      const float mean = sum / static_cast<float>(Full ? kReduceRun : n);
      DETENT_UNROLL
      for (int i = 0; i < kReduceRun; ++i) {
        const float d = Full || i < n ? v[i].v[e] - mean : 0.0f;
        m2 += d * d;
      }
      part[e] = {static_cast<double>(first) + static_cast<double>(mean), static_cast<double>(m2)};
    }
  }
  DETENT_HD void merge(ColumnPart& into, int64_t n, const ColumnPart& other, int64_t m) const {
    const double share = static_cast<double>(m) / static_cast<double>(n + m), d = other.a - into.a;
    into.a += d * share;
    into.b += other.b + d * d * (static_cast<double>(n) * share);
  }
};

struct WriteMoments {
  float* mean;
  float* var;
  double rows;
  DETENT_HD void operator()(int64_t column, const ColumnPart& p) const {
    mean[column] = rows > 0.0 ? static_cast<float>(p.a) : 0.0f;
    var[column] = rows > 0.0 ? static_cast<float>(p.b / rows) : 0.0f;
  }
};

template <class T>
struct Normalise {
  BatchNormArgs a;
  const T* x;
  T* y;
  const float* factor;
  DETENT_HD float at(float value, float mean, float scale, float beta) const {
    const float v = (value - mean) * scale + beta;
    const float w = v > a.clamp_max ? a.clamp_max : v;
    return w < a.clamp_min ? a.clamp_min : w;
  }
  DETENT_HD void operator()(int64_t i) const {
    const int64_t j = i % a.c;
    put_value(y + i, at(value_of(x[i]), a.mean[j], factor[j], a.beta ? a.beta[j] : 0.0f));
  }
};

// Four neighbours at once: c is a multiple of 4 and fits 32 bits, everything is aligned.
struct ChannelQuads {
  FastDiv by_c4;
  bool small;  // positions fit
  ChannelQuads(int64_t rows, int64_t c) : by_c4(c / 4), small(rows * c / 4 < kTileLimit) {}
  /// The quad of channels of quad i.
  DETENT_HD int64_t of(int64_t i) const { return small ? i - static_cast<int64_t>(by_c4.divide(static_cast<int32_t>(i))) * by_c4.divisor : i % by_c4.divisor; }
};
template <class T>
DETENT_HD Four<float> quad(const T* p, int64_t i) {
  return values_at<4>(p + 4 * i);
}

template <class T>
struct NormaliseFour {
  Normalise<T> one;
  ChannelQuads channels;
  DETENT_HD void operator()(int64_t i) const {
    const Four<float> x = quad(one.x, i);
    const int64_t j = channels.of(i);
    const Four<float> mean = quad(one.a.mean, j), factor = quad(one.factor, j), beta = one.a.beta ? quad(one.a.beta, j) : Four<float>{};
    Four<float> y;
    DETENT_UNROLL
    for (int e = 0; e < 4; ++e) y.v[e] = one.at(x.v[e], mean.v[e], factor.v[e], beta.v[e]);
    put_values(one.y + 4 * i, y);
  }
};

struct NormFactor {
  const float* gamma;
  const float* var;
  float eps;
  float* factor;
  DETENT_HD void operator()(int64_t j) const { factor[j] = (gamma ? gamma[j] : 1.0f) / sqrtf(var[j] + eps); }
};

DETENT_HD float masked_gradient(float dy, float y, float lo, float hi) { return y <= lo || y >= hi ? 0.0f : dy; }

// (sum of g, sum of g * (x - mean)), g being dy behind the clamp's mask, which is found by computing the result again.
template <class T>
struct GradientOp {
  const T* x;
  const T* dy;
  const float* mean;
  float lo, hi;
  const float* factor;  // null: no mask
  const float* beta;
  DETENT_HD float gradient(float x_at, float dy_at, int64_t j) const { return factor ? gradient(x_at, dy_at, mean[j], factor[j], beta ? beta[j] : 0.0f) : dy_at; }
  DETENT_HD float gradient(float x_at, float dy_at, float mean_at, float factor_at, float beta_at) const {
    return masked_gradient(dy_at, (x_at - mean_at) * factor_at + beta_at, lo, hi);
  }
  template <int Width, bool Whole, bool Full>
  DETENT_HD void run(int64_t at, int64_t column, int64_t step, int n, ColumnPart* part) const {
    const auto m = some<Width, Whole>(mean + column);
    Some<float, Width> f = {}, b = {};
    if (factor) {
      f = some<Width, Whole>(factor + column);
      if (beta) b = some<Width, Whole>(beta + column);
    }
    float sum[Width] = {}, dot[Width] = {};
    constexpr int kAtOnce = 4;  // rows whose loads are on their way
    DETENT_UNROLL_BY(1)
    for (int i0 = 0; i0 < kReduceRun; i0 += kAtOnce, at += kAtOnce * step) {
      Some<float, Width> u[kAtOnce] = {}, d[kAtOnce] = {};
      read_rows<Width, Whole, Full>(x + at, step, n - i0, u);
      read_rows<Width, Whole, Full>(dy + at, step, n - i0, d);
      DETENT_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (!Full && i0 + i >= n) break;
        DETENT_UNROLL
        for (int e = 0; e < Width; ++e) {
          const float g = factor ? gradient(u[i].v[e], d[i].v[e], m.v[e], f.v[e], b.v[e]) : d[i].v[e];
          sum[e] += g;
          dot[e] += g * (u[i].v[e] - m.v[e]);
        }
      }
    }
    DETENT_UNROLL
    for (int e = 0; e < Width; ++e) part[e] = {static_cast<double>(sum[e]), static_cast<double>(dot[e])};
  }
  DETENT_HD void merge(ColumnPart& into, int64_t, const ColumnPart& other, int64_t) const {
    into.a += other.a;
    into.b += other.b;
  }
};

// dx = k1 * g - k2 - k3 * (x - mean)
struct WriteGradients {
  const float* gamma;
  const float* var;
  float eps;
  bool training;
  double rows;
  float* dgamma;
  float* dbeta;
  float* k1;
  float* k2;
  float* k3;
  DETENT_HD void operator()(int64_t j, const ColumnPart& p) const {
    const double inverse = 1.0 / sqrt(static_cast<double>(var[j]) + static_cast<double>(eps));
    const double factor = (gamma ? static_cast<double>(gamma[j]) : 1.0) * inverse;
    if (dgamma) dgamma[j] = static_cast<float>(p.b * inverse);
    if (dbeta) dbeta[j] = static_cast<float>(p.a);
    k1[j] = static_cast<float>(factor);
    k2[j] = training ? static_cast<float>(factor * p.a / rows) : 0.0f;
    k3[j] = training ? static_cast<float>(factor * p.b * inverse * inverse / rows) : 0.0f;
  }
};

DETENT_HD float input_gradient(float x, float g, float mean, float k1, float k2, float k3) { return k1 * g - k2 - k3 * (x - mean); }

template <class T>
struct InputGradient {
  GradientOp<T> op;
  const float* k1;
  const float* k2;
  const float* k3;
  T* dx;
  int64_t c;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t j = i % c;
    const float x = value_of(op.x[i]);
    put_value(dx + i, input_gradient(x, op.gradient(x, value_of(op.dy[i]), j), op.mean[j], k1[j], k2[j], k3[j]));
  }
};

template <class T>
struct InputGradientFour {
  InputGradient<T> one;
  ChannelQuads channels;
  DETENT_HD void operator()(int64_t i) const {
    const GradientOp<T>& op = one.op;
    const Four<float> x = quad(op.x, i), dy = quad(op.dy, i);
    const int64_t j = channels.of(i);
    const Four<float> mean = quad(op.mean, j), k1 = quad(one.k1, j), k2 = quad(one.k2, j), k3 = quad(one.k3, j);
    Four<float> g = dy, dx;
    if (op.factor) {
      const Four<float> factor = quad(op.factor, j), beta = op.beta ? quad(op.beta, j) : Four<float>{};
      DETENT_UNROLL
      for (int e = 0; e < 4; ++e) g.v[e] = op.gradient(x.v[e], dy.v[e], mean.v[e], factor.v[e], beta.v[e]);
    }
    DETENT_UNROLL
    for (int e = 0; e < 4; ++e) dx.v[e] = input_gradient(x.v[e], g.v[e], mean.v[e], k1.v[e], k2.v[e], k3.v[e]);
    put_values(one.dx + 4 * i, dx);
  }
};

template <class T>
struct SumOp {
  const T* y;
  template <int Width, bool Whole, bool Full>
  DETENT_HD void run(int64_t at, int64_t, int64_t step, int n, ColumnPart* part) const {
    float sum[Width] = {};
    Some<float, Width> v[kReduceRun] = {};
    read_rows<Width, Whole, Full>(y + at, step, n, v);
    DETENT_UNROLL
    for (int i = 0; i < kReduceRun; ++i) {
      DETENT_UNROLL
      for (int e = 0; e < Width; ++e) {
        if (Full || i < n) sum[e] += v[i].v[e];
      }
    }
    DETENT_UNROLL
    for (int e = 0; e < Width; ++e) part[e] = {static_cast<double>(sum[e]), 0.0};
  }
  DETENT_HD void merge(ColumnPart& into, int64_t, const ColumnPart& other, int64_t) const { into.a += other.a; }
};
struct WriteSum {
  float* out;
  DETENT_HD void operator()(int64_t j, const ColumnPart& p) const { out[j] = static_cast<float>(p.a); }
};

bool finite(float v) { return v - v == 0.0f; }

}  // namespace

template <class T>
static void batch_norm_stats(const BatchNormStatsArgs& a, const T* x) {
  reduce_columns("batch_norm_stats", a.rows, a.c, whole_fours(x), MomentsOp<T>{x}, WriteMoments{a.mean, a.var, static_cast<double>(a.rows)});
}

void batch_norm_stats(const BatchNormStatsArgs& a) { a.x16 ? batch_norm_stats(a, a.x16) : batch_norm_stats(a, a.x); }

template <class T>
static void normalise(const BatchNormArgs& a, const T* x, T* y, const float* factor) {
  const Normalise<T> one{a, x, y, factor};
  if (a.c % 4 == 0 && whole_fours(x) && whole_fours(y) && aligned16(a.mean) && aligned16(a.beta)) {
    elements("batch_norm", a.rows * a.c / 4, NormaliseFour<T>{one, ChannelQuads(a.rows, a.c)});
  } else {
    elements("batch_norm", a.rows * a.c, one);
  }
}

void batch_norm(const BatchNormArgs& a) {
  const Scratch<float> factor(a.c);
  elements("batch_norm", a.c, NormFactor{a.gamma, a.var, a.eps, factor.get()});
  a.x16 ? normalise(a, a.x16, a.y16, factor.get()) : normalise(a, a.x, a.y, factor.get());
}

template <class T>
static void batch_norm_backward(const BatchNormBackwardArgs& a, const T* x, const T* dy, T* dx) {
  const bool masked = finite(a.clamp_min) || finite(a.clamp_max);
  const Scratch<float> factor(masked ? a.c : 0);
  if (masked) elements("batch_norm_backward", a.c, NormFactor{a.gamma, a.var, a.eps, factor.get()});
  const GradientOp<T> op{x, dy, a.mean, a.clamp_min, a.clamp_max, masked ? factor.get() : nullptr, a.beta};
  const Scratch<float> k(3 * a.c);
  float *const k1 = k.get(), *const k2 = k1 + a.c, *const k3 = k2 + a.c;
  const bool aligned = whole_fours(x) && whole_fours(dy) && aligned16(a.mean) && aligned16(a.beta);
  reduce_columns("batch_norm_backward", a.rows, a.c, aligned, op,
                 WriteGradients{a.gamma, a.var, a.eps, a.training, static_cast<double>(a.rows > 0 ? a.rows : 1), a.dgamma, a.dbeta, k1, k2, k3});
  if (!dx) return;
  const InputGradient<T> one{op, k1, k2, k3, dx, a.c};
  if (a.c % 4 == 0 && aligned && whole_fours(dx)) {
    elements("batch_norm_backward", a.rows * a.c / 4, InputGradientFour<T>{one, ChannelQuads(a.rows, a.c)});
  } else {
    elements("batch_norm_backward", a.rows * a.c, one);
  }
}

void batch_norm_backward(const BatchNormBackwardArgs& a) { a.x16 ? batch_norm_backward(a, a.x16, a.dy16, a.dx16) : batch_norm_backward(a, a.x, a.dy, a.dx); }

template <class T>
void column_sums(const T* y, int64_t rows, int64_t c, float* out) {
  reduce_columns("column_sums", rows, c, whole_fours(y), SumOp<T>{y}, WriteSum{out});
}
template void column_sums(const float*, int64_t, int64_t, float*);
template void column_sums(const uint16_t*, int64_t, int64_t, float*);

}  // namespace detent::DETENT_CUDA_NAMESPACE
