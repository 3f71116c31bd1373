// fill, accumulate, conversions to and from bf16, scale, count_nonfinite, gather.
#include <algorithm>
#include <atomic>
#include <bit>

#include "detent/backends/cpu/bf16_values.h"
#include "detent/backends/cpu/kernels.h"

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
    write_values(nullptr, y, begin, end, false, [=](float* out, int64_t first, int64_t count) {
      float room[kBf16Block];
      dense_kernels().widen(y + first, out, count);
      dense_kernels().widen(x + first, room, count);
      for (int64_t i = 0; i < count; ++i) out[i] += room[i];
    });
  });
}

void narrow(uint16_t* y, const float* x, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) { dense_kernels().narrow(x + begin, y + begin, end - begin); });
}

void widen(float* y, const uint16_t* x, int64_t n) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) { dense_kernels().widen(x + begin, y + begin, end - begin); });
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
