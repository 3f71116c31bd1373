// fill, accumulate, scale, count_nonfinite.
#include <atomic>
#include <bit>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"

namespace detent::cpu {

void fill(float* y, float value, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = value;
  });
}

void accumulate(float* y, const float* x, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] += x[i];
  });
}

void scale(float* y, const float* x, float factor, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = factor * x[i];
  });
}

int64_t count_nonfinite(const float* x, int64_t n) {
  std::atomic<int64_t> count{0};  // a sum of integers: the order does not matter
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    int32_t bad = 0;
    for (int64_t i = begin; i < end; ++i) bad += (std::bit_cast<int32_t>(x[i]) & 0x7f800000) == 0x7f800000;
    count.fetch_add(bad, std::memory_order_relaxed);
  });
  return count.load();
}

}  // namespace detent::cpu
