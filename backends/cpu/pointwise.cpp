// The pointwise functions of core/math/pointwise.h, forward and backward.
#include <type_traits>

#include "detent/backends/cpu/bf16_values.h"
#include "detent/backends/cpu/kernels.h"

namespace detent::cpu {

void pointwise(const PointwiseArgs& a) {
  visit_pointwise(a.op.kind, [&]<class F>() {
    const bool stream = streams_apart(a.n, a.out, a.out16, {a.x, a.x16});
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      write_values(a.out, a.out16, begin, end, stream, [&](float* out, int64_t first, int64_t n) {
        const float pa = a.op.a, pb = a.op.b;
        float room[kBf16Block];
        const float* const x = widened(a.x, a.x16, first, n, room);
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
    const bool stream = streams_apart(a.n, a.out, a.out16, {a.x, a.x16, a.y, a.dy, a.dy16});
    parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
      write_values(a.out, a.out16, begin, end, stream, [&](float* out, int64_t first, int64_t n) {
        const float pa = a.op.a, pb = a.op.b;
        float x_room[kBf16Block], dy_room[kBf16Block];
        const float *const x = widened(a.x, a.x16, first, n, x_room), *const y = a.x16 ? x : a.y + first, *const dy = widened(a.dy, a.dy16, first, n, dy_room);
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
