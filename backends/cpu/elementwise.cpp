// fill, accumulate, conversions to and from bf16, scale, count_nonfinite, gather.
#include <algorithm>
#include <atomic>
#include <bit>

#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/core/math/half.h"

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

void accumulate16(uint16_t* y, const uint16_t* x, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = bfloat_bits(bfloat_value(y[i]) + bfloat_value(x[i]));
  });
}

void narrow(uint16_t* y, const float* x, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = bfloat_bits(x[i]);
  });
}

void widen(float* y, const uint16_t* x, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = bfloat_value(x[i]);
  });
}

void scale(float* y, const float* x, float factor, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = factor * x[i];
  });
}

void count_nonfinite(const FloatSpan* spans, int64_t count, int64_t* nonfinite) {
  for (int64_t s = 0; s < count; ++s) {
    const float* x = spans[s].x;
    std::atomic<int64_t> total{0};  // a sum of integers: the order does not matter
    parallel_for(spans[s].n, kGrain, [&](int64_t begin, int64_t end) {
      int32_t bad = 0;
      for (int64_t i = begin; i < end; ++i) bad += (std::bit_cast<int32_t>(x[i]) & 0x7f800000) == 0x7f800000;
      total.fetch_add(bad, std::memory_order_relaxed);
    });
    nonfinite[s] = total.load();
  }
}

void gather(const FloatSpan* spans, int64_t count, float* y) {
  for (int64_t s = 0; s < count; ++s) y = std::copy_n(spans[s].x, spans[s].n, y);
}

}  // namespace detent::cpu
