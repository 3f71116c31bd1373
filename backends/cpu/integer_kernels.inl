// The integer convolution's micro-kernel, written once over a vector type. Included by one translation unit per instruction set, inside that unit's own
// namespace and after its Vec; everything is static, so no code leaks between units.

#if defined(__clang__)
#define DETENT_UNROLL _Pragma("unroll")
#else
#define DETENT_UNROLL _Pragma("GCC unroll 32")
#endif
#define DETENT_INLINE static __attribute__((always_inline)) inline

using I = Vec::I;
constexpr int kV = Vec::n;

DETENT_INLINE int32_t word_at(const uint8_t* p) {
  int32_t w;
  __builtin_memcpy(&w, p, 4);
  return w;
}

// residual_of_sum of one vector of `n` valid channels.
DETENT_INLINE void store_residual(I acc, const IntegerTarget& e, int64_t k, int8_t* to, int64_t n) {
  const Vec::F sum = Vec::to_float(acc), t = Vec::mul(sum, Vec::load(e.multiplier + k, n)), v = Vec::mul(sum, Vec::load(e.residual.scale + k, n));
  const Vec::F rounded = Vec::rint(t);
  const Vec::F judged = e.residual.on_value ? v : Vec::add(rounded, Vec::set(e.zero_point));
  const Vec::M inside = Vec::both(Vec::le(Vec::set(e.inside_lo), judged), Vec::le(judged, Vec::set(e.inside_hi)));
  const Vec::F kept = Vec::rint(Vec::mul(Vec::set(kResidualScale), Vec::sub(rounded, t)));
  const Vec::F unclamped = Vec::select(inside, kept, Vec::set(kOutside));
  const Vec::F above = Vec::select(Vec::le(Vec::set(e.residual.clamp.max), v), Vec::set(e.residual.clamp.high), unclamped);
  Vec::store_bytes(to, Vec::select(Vec::le(v, Vec::set(e.residual.clamp.min)), Vec::set(e.residual.clamp.low), above), n);
}

template <int NV, int P>
DETENT_INLINE void step(I (&acc)[P][NV], const uint8_t* const (&x)[P], int64_t i, const int8_t* w) {
  Vec::Weights b[NV];
  DETENT_UNROLL
  for (int j = 0; j < NV; ++j) b[j] = Vec::weights(w + 4 * j * kV);
  DETENT_UNROLL
  for (int p = 0; p < P; ++p) {
    const Vec::Codes a = Vec::codes(word_at(x[p] + 4 * i));
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) acc[p][j] = Vec::dot(acc[p][j], a, b[j]);
  }
}

template <int NV, int P>
static void tile(const IntegerTile& arguments) {
  constexpr int64_t kBytes = NV * kV * 4;
  // Copies: bytes that are stored might be anything's, for all the compiler knows.
  const IntegerTile a = arguments;
  const IntegerTarget e = *a.target;
  for (int64_t p0 = 0; p0 < a.pixels; p0 += P) {
    const int64_t np = a.pixels - p0 < P ? a.pixels - p0 : P;
    I acc[P][NV];
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) {
      const I offset = Vec::load(e.offset + a.k0 + j * kV, a.channels - j * kV);
      DETENT_UNROLL
      for (int p = 0; p < P; ++p) acc[p][j] = offset;
    }
    const int8_t* w = a.w;
    for (int64_t t = 0; t < a.taps; ++t) {
      const uint8_t* x[P];
      DETENT_UNROLL
      for (int p = 0; p < P; ++p) x[p] = a.rows[t * a.row_stride + p0 + p] + a.x_offset;
      int64_t i = 0;
      for (; i + 2 <= a.words; i += 2, w += 2 * kBytes) {
        step<NV, P>(acc, x, i, w);
        step<NV, P>(acc, x, i + 1, w + kBytes);
      }
      for (; i < a.words; ++i, w += kBytes) step<NV, P>(acc, x, i, w);
    }
    DETENT_UNROLL
    for (int p = 0; p < P; ++p) {
      if (p >= np) break;
      const int64_t at = a.out[p0 + p] * e.channels + a.k0;
      Vec::store<NV>(acc[p], e, a.k0, e.y + at, a.channels);
      if (!e.residual.out) continue;
      DETENT_UNROLL
      for (int j = 0; j < NV; ++j) store_residual(acc[p][j], e, a.k0 + j * kV, e.residual.out + at + j * kV, a.channels - j * kV);
    }
  }
}

static int32_t burst(int64_t rounds) {
  constexpr int kChains = 12;
  I acc[kChains];
  DETENT_UNROLL
  for (int i = 0; i < kChains; ++i) acc[i] = Vec::zero();
  alignas(64) int8_t w[4 * kV];
  for (int i = 0; i < 4 * kV; ++i) w[i] = static_cast<int8_t>(i);
  const Vec::Weights b = Vec::weights(w);
  Vec::Codes a = Vec::codes(static_cast<int32_t>(rounds));
  for (int64_t r = 0; r < rounds; ++r) {
    DETENT_UNROLL
    for (int i = 0; i < kChains; ++i) {
      // Or the compiler would see that all products are one.
      Vec::hide(a);
      acc[i] = Vec::dot(acc[i], a, b);
    }
  }
  DETENT_UNROLL
  for (int i = 1; i < kChains; ++i) acc[0] = Vec::add(acc[0], acc[i]);
  return Vec::first(acc[0]);
}
