// The pointwise functions of core/math/pointwise.h, forward and backward.
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {

void pointwise(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    const bool stream = a.out != a.x && streams(a.n);
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      const float pa = a.op.a, pb = a.op.b;
      write_streamed(a.out, begin, end, stream, [&](float* out, int64_t first, int64_t n) {
        const float* x = a.x + first;
        for (int64_t i = 0; i < n; ++i) out[i] = F::fwd(x[i], pa, pb);
      });
    });
  });
}

void pointwise_backward(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    const bool stream = a.out != a.x && a.out != a.y && a.out != a.dy && streams(a.n);
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      const float pa = a.op.a, pb = a.op.b;
      write_streamed(a.out, begin, end, stream, [&](float* out, int64_t first, int64_t n) {
        const float *x = a.x + first, *y = a.y + first, *dy = a.dy + first;
        for (int64_t i = 0; i < n; ++i) {
          const float xi = x[i], yi = y[i], di = dy[i];  // loaded whatever the branch, so that the loop vectorises
          out[i] = F::bwd(xi, yi, di, pa, pb);
        }
      });
    });
  });
}

}  // namespace detent::cpu
