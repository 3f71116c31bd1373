// The pointwise functions of core/math/pointwise.h, forward and backward.
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {

void pointwise(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      const float pa = a.op.a, pb = a.op.b;
      const float* x = a.x;
      float* out = a.out;
      for (int64_t i = begin; i < end; ++i) out[i] = F::fwd(x[i], pa, pb);
    });
  });
}

void pointwise_backward(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      const float pa = a.op.a, pb = a.op.b;
      const float *x = a.x, *y = a.y, *dy = a.dy;
      float* out = a.out;
      for (int64_t i = begin; i < end; ++i) out[i] = F::bwd(x[i], y[i], dy[i], pa, pb);
    });
  });
}

}  // namespace detent::cpu
