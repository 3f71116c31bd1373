// Dense matrix product: rows of y in blocks that threads share, each a sum of scaled rows of op(b). Results do not depend on the thread count.
#include <vector>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {

void gemm(const GemmArgs& g) {
  const int64_t m = g.m, n = g.n, k = g.k;
  std::vector<float> transposed;
  const float* b = g.b;
  if (g.transpose_b) {
    transposed.resize(static_cast<size_t>(k * n));
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) transposed[static_cast<size_t>(p * n + j)] = g.b[j * k + p];
    }
    b = transposed.data();
  }
  constexpr int64_t kRows = 4, kColumns = 256;
  const int64_t row_blocks = (m + kRows - 1) / kRows, column_blocks = (n + kColumns - 1) / kColumns;
  parallel_for(row_blocks * column_blocks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, kRows * kColumns * k)), [&](int64_t begin, int64_t end) {
    float acc[kRows][kColumns];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t i0 = t % row_blocks * kRows, j0 = t / row_blocks * kColumns;
      const int64_t rows = std::min(kRows, m - i0), columns = std::min(kColumns, n - j0);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) acc[i][j] = 0.0f;
      }
      for (int64_t p = 0; p < k; ++p) {
        const float* br = b + p * n + j0;
        for (int64_t i = 0; i < rows; ++i) {
          const float v = g.transpose_a ? g.a[p * m + i0 + i] : g.a[(i0 + i) * k + p];
          for (int64_t j = 0; j < columns; ++j) acc[i][j] += v * br[j];
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        float* y = g.y + (i0 + i) * n + j0;
        for (int64_t j = 0; j < columns; ++j) y[j] = g.alpha * acc[i][j] + (g.beta == 0.0f ? 0.0f : g.beta * y[j]);
      }
    }
  });
}

}  // namespace detent::cpu
