// The pointwise functions of core/math/pointwise.h, forward and backward.
#include <type_traits>

#include "detent/backends/cpu/dense.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {

void pointwise(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    const bool stream = a.out != a.x && streams(a.n);
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      write_streamed(a.out, begin, end, stream, [&](float* out, int64_t first, int64_t n) {
        const float pa = a.op.a, pb = a.op.b;
        const float* x = a.x + first;
        if constexpr (std::is_same_v<F, Clip>) {
          if (pa <= pb) return dense_kernels().clip(x, pa, pb, out, n);
        }
        for (int64_t i = 0; i < n; ++i) out[i] = F::fwd(x[i], pa, pb);
      });
    });
  });
}

void pointwise_backward(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    const bool stream = a.out != a.x && a.out != a.y && a.out != a.dy && streams(a.n);
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      write_streamed(a.out, begin, end, stream, [&](float* out, int64_t first, int64_t n) {
        const float pa = a.op.a, pb = a.op.b;
        const float *x = a.x + first, *y = a.y + first, *dy = a.dy + first;
        if constexpr (std::is_same_v<F, Clip>) return dense_kernels().clip_backward(x, dy, pa, pb, out, n);
        for (int64_t i = 0; i < n; ++i) {
          const float xi = x[i], yi = y[i], di = dy[i];  // loaded whatever the branch, so that the loop vectorises
          out[i] = F::bwd(xi, yi, di, pa, pb);
        }
      });
    });
  });
}

}  // namespace detent::cpu
