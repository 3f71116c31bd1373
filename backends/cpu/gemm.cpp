// Matrix product on the convolution core: a matrix is an image of m pixels with k channels, and b is a 1x1 filter.
// Independent of the number of threads; no BLAS is called.
#include <algorithm>

#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

// op(a) with rows in place, or copied when a is transposed.
const float* rows_of_a(const ConvIsa& isa, const GemmArgs& g, float* copy) {
  if (!g.transpose_a) return g.a;
  parallel_for(g.m, 64, [&](int64_t begin, int64_t end) {
    // 256 columns at a time: the source is read in whole lines, the destination stays in cache.
    for (int64_t i = 0; i < g.k; i += 256) {
      const int64_t n = std::min<int64_t>(256, g.k - i);
      isa.transpose(g.a + i * g.m + begin, g.m, n, end - begin, copy + begin * g.k + i, g.k, n);
    }
  });
  return copy;
}

void combine(const GemmArgs& g, const float* product) {
  parallel_for(g.m * g.n, 16384, [&](int64_t begin, int64_t end) {
    if (g.beta == 0.0f) {
      for (int64_t i = begin; i < end; ++i) g.y[i] = g.alpha * product[i];
    } else {
      for (int64_t i = begin; i < end; ++i) g.y[i] = g.alpha * product[i] + g.beta * g.y[i];
    }
  });
}

}  // namespace

void gemm(const ConvIsa& isa, const GemmArgs& g) {
  if (g.m == 0 || g.n == 0) return;
  const bool plain = g.alpha == 1.0f && g.beta == 0.0f;
  Scratch<float> a(g.transpose_a ? g.m * g.k : 0), product(plain ? 0 : g.m * g.n);
  GatherConv c;
  c.gather.in_w = c.gather.grid_w = c.gather.out_w = g.m;
  c.gather.in_c = g.k;
  c.depth = g.k;
  c.channels = g.n;
  c.weights.w = g.b;
  c.weights.stride_i = g.transpose_b ? 1 : g.n;
  c.weights.stride_j = g.transpose_b ? g.k : 1;
  c.epilogue.y = plain ? g.y : product.get();
  // A product over nothing is zero; the rows are then not read.
  const float nothing = 0.0f;
  c.input.x = g.k > 0 ? rows_of_a(isa, g, a.get()) : &nothing;
  run_gather(isa, c);
  if (!plain) combine(g, product.get());
}

namespace scalar {

void gemm(const GemmArgs& g) {
  parallel_for(g.m, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < g.n; ++j) {
        double sum = 0.0;
        for (int64_t t = 0; t < g.k; ++t) {
          sum += static_cast<double>(g.transpose_a ? g.a[t * g.m + i] : g.a[i * g.k + t]) * static_cast<double>(g.transpose_b ? g.b[j * g.k + t] : g.b[t * g.n + j]);
        }
        const float product = static_cast<float>(sum);
        g.y[i * g.n + j] = g.beta == 0.0f ? g.alpha * product : g.alpha * product + g.beta * g.y[i * g.n + j];
      }
    }
  });
}

}  // namespace scalar

void gemm(const GemmArgs& g) { conv_isa() ? gemm(*conv_isa(), g) : scalar::gemm(g); }

}  // namespace detent::cpu
