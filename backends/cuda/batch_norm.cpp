// Batch norm over rows of [rows, c], and the sums of columns that a bias gradient is.
#include "detent/backends/cuda/columns.h"
#include "detent/backends/cuda/conv.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

// (mean, M2) of a column, merged as Chan et al. 1983.
struct MomentsOp {
  const float* x;
  int64_t c;
  DETENT_HD ColumnPart run(int64_t column, int64_t row, int step, int n) const {
    float v[kReduceRun] = {};
    float sum = 0.0f;
    for (int i = 0; i < kReduceRun; ++i) {
      if (i < n) v[i] = x[(row + static_cast<int64_t>(i) * step) * c + column];
      // About the first value: a mean far from zero costs no digits.
      if (i < n) sum += v[i] - v[0];
    }
    const float mean = sum / static_cast<float>(n);
    float m2 = 0.0f;
    for (int i = 0; i < kReduceRun; ++i) {
      const float d = i < n ? (v[i] - v[0]) - mean : 0.0f;
      m2 += d * d;
    }
    return {static_cast<double>(v[0]) + static_cast<double>(mean), static_cast<double>(m2)};
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

struct Normalise {
  BatchNormArgs a;
  const float* factor;
  DETENT_HD float at(float x, int64_t j) const {
    const float v = (x - a.mean[j]) * factor[j] + (a.beta ? a.beta[j] : 0.0f);
    const float w = v > a.clamp_max ? a.clamp_max : v;
    return w < a.clamp_min ? a.clamp_min : w;
  }
  DETENT_HD void operator()(int64_t i) const { a.y[i] = at(a.x[i], i % a.c); }
};

// Four neighbours; c is a multiple of 4 and fits 32 bits.
struct NormaliseFour {
  Normalise one;
  FastDiv by_c4;
  int64_t quads;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t j = (quads < kTileLimit ? i - static_cast<int64_t>(by_c4.divide(static_cast<int32_t>(i))) * by_c4.divisor : i % by_c4.divisor) * 4;
    const FloatQuad x = reinterpret_cast<const FloatQuad*>(one.a.x)[i];
    FloatQuad y;
    DETENT_UNROLL
    for (int e = 0; e < 4; ++e) y.v[e] = one.at(x.v[e], j + e);
    reinterpret_cast<FloatQuad*>(one.a.y)[i] = y;
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
struct GradientOp {
  const float* x;
  const float* dy;
  const float* mean;
  int64_t c;
  float lo, hi;
  const float* factor;  // null: no mask
  const float* beta;
  DETENT_HD float gradient(float x_at, float dy_at, int64_t j) const {
    return factor ? masked_gradient(dy_at, (x_at - mean[j]) * factor[j] + (beta ? beta[j] : 0.0f), lo, hi) : dy_at;
  }
  DETENT_HD ColumnPart run(int64_t column, int64_t row, int step, int n) const {
    float sum = 0.0f, dot = 0.0f;
    const float m = mean[column];
    for (int i = 0; i < n; ++i) {
      const int64_t at = (row + static_cast<int64_t>(i) * step) * c + column;
      const float g = gradient(x[at], dy[at], column);
      sum += g;
      dot += g * (x[at] - m);
    }
    return {static_cast<double>(sum), static_cast<double>(dot)};
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

struct InputGradient {
  GradientOp op;
  const float* k1;
  const float* k2;
  const float* k3;
  float* dx;
  DETENT_HD float at(float x, float g, int64_t j) const { return k1[j] * g - k2[j] - k3[j] * (x - op.mean[j]); }
  DETENT_HD void operator()(int64_t i) const {
    const int64_t j = i % op.c;
    dx[i] = at(op.x[i], op.gradient(op.x[i], op.dy[i], j), j);
  }
};

struct InputGradientFour {
  InputGradient one;
  FastDiv by_c4;
  int64_t quads;
  DETENT_HD void operator()(int64_t i) const {
    const int64_t j = (quads < kTileLimit ? i - static_cast<int64_t>(by_c4.divide(static_cast<int32_t>(i))) * by_c4.divisor : i % by_c4.divisor) * 4;
    const FloatQuad x = reinterpret_cast<const FloatQuad*>(one.op.x)[i], dy = reinterpret_cast<const FloatQuad*>(one.op.dy)[i];
    FloatQuad dx;
    DETENT_UNROLL
    for (int e = 0; e < 4; ++e) dx.v[e] = one.at(x.v[e], one.op.gradient(x.v[e], dy.v[e], j + e), j + e);
    reinterpret_cast<FloatQuad*>(one.dx)[i] = dx;
  }
};

struct SumOp {
  const float* y;
  int64_t c;
  DETENT_HD ColumnPart run(int64_t column, int64_t row, int step, int n) const {
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) sum += y[(row + static_cast<int64_t>(i) * step) * c + column];
    return {static_cast<double>(sum), 0.0};
  }
  DETENT_HD void merge(ColumnPart& into, int64_t, const ColumnPart& other, int64_t) const { into.a += other.a; }
};
struct WriteSum {
  float* out;
  DETENT_HD void operator()(int64_t j, const ColumnPart& p) const { out[j] = static_cast<float>(p.a); }
};

bool finite(float v) { return v - v == 0.0f; }

}  // namespace

void batch_norm_stats(const BatchNormStatsArgs& a) {
  reduce_columns("batch_norm_stats", a.rows, a.c, MomentsOp{a.x, a.c}, WriteMoments{a.mean, a.var, static_cast<double>(a.rows)});
}

void batch_norm(const BatchNormArgs& a) {
  const Scratch<float> factor(a.c);
  elements("batch_norm", a.c, NormFactor{a.gamma, a.var, a.eps, factor.get()});
  const Normalise one{a, factor.get()};
  if (a.c % 4 == 0 && aligned16(a.x) && aligned16(a.y)) {
    const int64_t quads = a.rows * a.c / 4;
    elements("batch_norm", quads, NormaliseFour{one, FastDiv(a.c / 4), quads});
  } else {
    elements("batch_norm", a.rows * a.c, one);
  }
}

void batch_norm_backward(const BatchNormBackwardArgs& a) {
  const bool masked = finite(a.clamp_min) || finite(a.clamp_max);
  const Scratch<float> factor(masked ? a.c : 0);
  if (masked) elements("batch_norm_backward", a.c, NormFactor{a.gamma, a.var, a.eps, factor.get()});
  const GradientOp op{a.x, a.dy, a.mean, a.c, a.clamp_min, a.clamp_max, masked ? factor.get() : nullptr, a.beta};
  const Scratch<float> k(3 * a.c);
  float *const k1 = k.get(), *const k2 = k1 + a.c, *const k3 = k2 + a.c;
  reduce_columns("batch_norm_backward", a.rows, a.c, op,
                 WriteGradients{a.gamma, a.var, a.eps, a.training, static_cast<double>(a.rows > 0 ? a.rows : 1), a.dgamma, a.dbeta, k1, k2, k3});
  if (!a.dx) return;
  const InputGradient one{op, k1, k2, k3, a.dx};
  if (a.c % 4 == 0 && aligned16(a.x) && aligned16(a.dy) && aligned16(a.dx)) {
    const int64_t quads = a.rows * a.c / 4;
    elements("batch_norm_backward", quads, InputGradientFour{one, FastDiv(a.c / 4), quads});
  } else {
    elements("batch_norm_backward", a.rows * a.c, one);
  }
}

void column_sums(const float* y, int64_t rows, int64_t c, float* out) { reduce_columns("column_sums", rows, c, SumOp{y, c}, WriteSum{out}); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
