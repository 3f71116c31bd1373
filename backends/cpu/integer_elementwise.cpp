// Additions, pools and tables on codes, over the pool; and which engine the processor runs.
#include <algorithm>

#include "detent/backends/cpu/integer.h"
#include "detent/backends/cpu/isa.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/core/epilogue.h"
#include "detent/core/math/pool_math.h"
#include "detent/core/parallel.h"

namespace detent::cpu {

#if !defined(__x86_64__)
const IntegerIsa* integer_isa_avx2() { return nullptr; }
const IntegerIsa* integer_isa_avx512() { return nullptr; }
const IntegerIsa* integer_isa_avx512_vnni() { return nullptr; }
#endif

IntegerEngine integer_engine() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return {has_vnni() ? integer_isa_avx512_vnni() : integer_isa_avx512(), &kIntegerAvx512};
  if (isa() == Isa::avx2) return {integer_isa_avx2(), &kIntegerAvx2};
#endif
  return {nullptr, &kIntegerScalar};
}

void integer_add(const IntegerEngine& e, const IntegerAddArgs& a) {
  parallel_for(a.n, kGrain, [&](int64_t at, int64_t end) { e.rows->add(a.a + at, a.b + at, a.formula, a.range, a.y + at, end - at); });
}

void integer_average(const IntegerEngine& e, const AverageCodesArgs& a) {
  constexpr int64_t kChannels = 512;
  const Epilogue& to = a.epilogue;
  const AccumulatorScale scale = average_scale(a.from.scale, to.grid.scale, a.pixels);
  const IntegerClamp clamp = integer_bounds(to).clamp;
  const auto zeros = static_cast<int32_t>(a.pixels) * a.from.zero_point;
  const int64_t blocks = (a.c + kChannels - 1) / kChannels;
  parallel_for(a.n * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks, c0 = i % blocks * kChannels, n = std::min(kChannels, a.c - c0);
      int32_t sum[kChannels] = {};
      e.rows->add_rows(a.x + image * a.pixels * a.c + c0, a.c, a.pixels, n, sum);
      if (!to.quantize) {
        for (int64_t j = 0; j < n; ++j) to.y[image * a.c + c0 + j] = static_cast<float>(sum[j] - zeros) * scale.value;
        continue;
      }
      e.rows->requantize(sum, zeros, scale.multiplier, to.grid, to.codes + image * a.c + c0, n);
      if (!to.residual) continue;
      for (int64_t j = 0; j < n; ++j) to.residual[image * a.c + c0 + j] = residual_of_sum(sum[j] - zeros, scale, clamp, to.grid, to.mask_on_value);
    }
  });
}

void average_codes(const AverageCodesArgs& a) { integer_average(integer_engine(), a); }

void integer_max_pool(const IntegerEngine& e, const IntegerMaxPoolArgs& a) {
  const ConvGeometry& g = a.geometry;
  constexpr int64_t kTaps = 64;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, g.c * g.r * g.s));
  parallel_for(g.n * g.oh * g.ow, grain, [&](int64_t begin, int64_t end) {
    const uint8_t* tap[kTaps];
    for (int64_t p = begin; p < end; ++p) {
      const int64_t n = p / (g.oh * g.ow);
      const PoolWindow v = pool_window(g, p / g.ow % g.oh, p % g.ow);
      uint8_t* const y = a.y + p * g.c;
      int64_t taps = 0;
      bool started = false;
      const auto flush = [&] {
        e.rows->max_taps(tap, taps, 0, g.c, y);
        started = true;
      };
      for (int64_t r = v.r0; r < v.r1; ++r) {
        for (int64_t s = v.s0; s < v.s1; ++s) {
          if (taps == kTaps) {
            flush();
            tap[0] = y;  // what was found so far is one more tap
            taps = 1;
          }
          tap[taps++] = a.x + ((n * g.h + v.h0 + r * g.dilation_h) * g.w + v.w0 + s * g.dilation_w) * g.c;
        }
      }
      if (taps > 0) flush();
      if (!started) std::fill_n(y, g.c, uint8_t{0});
    }
  });
}

void integer_regrid(const uint8_t* x, const uint8_t* table, uint8_t* y, int64_t n) {
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = table[x[i]];
  });
}

const IntegerKernels& integer_kernels() {
  static constexpr IntegerKernels kTable = {
      .packed_bytes = [](const ConvGeometry& g) { return integer_packed_bytes(integer_engine(), g); },
      .pack = [](const ConvGeometry& g, const int8_t* q, void* packed) { integer_pack(integer_engine(), g, q, packed); },
      .conv2d = [](const IntegerConv2dArgs& a) { integer_conv2d(integer_engine(), a); },
      .add = [](const IntegerAddArgs& a) { integer_add(integer_engine(), a); },
      .max_pool = [](const IntegerMaxPoolArgs& a) { integer_max_pool(integer_engine(), a); },
      .regrid = integer_regrid,
  };
  return kTable;
}

}  // namespace detent::cpu
