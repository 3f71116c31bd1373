// The convolution micro-kernels, written once over a vector type. Included by one translation unit per instruction set, inside that unit's own
// namespace and after its Vec; everything is static, so no code leaks between units.

#if defined(__clang__)
#define DETENT_UNROLL _Pragma("unroll")
#else
#define DETENT_UNROLL _Pragma("GCC unroll 32")
#endif
#define DETENT_INLINE static __attribute__((always_inline)) inline

using F = Vec::F;
constexpr int kV = Vec::n;

// Scale, bias, addend, clamp, quantize and store of one vector of `n` valid channels; `at` is its place in the output.
DETENT_INLINE void finish(F v, const TileEpilogue& e, int64_t k, int64_t at, int n) {
  const F bias = e.bias ? Vec::load(e.bias + k, n) : Vec::zero();
  if (e.multiply) {
    v = Vec::fma(v, Vec::load(e.multiply + k, n), bias);
  } else if (e.bias) {
    v = Vec::add(v, bias);
  }
  if (e.addend) v = Vec::add(v, Vec::load(e.addend + at, n));
  if (!e.quantize) {
    if (e.clamp) v = Vec::min(Vec::set(e.clamp_max), Vec::max(Vec::set(e.clamp_min), v));
    if (e.y16) {
      Vec::store_bfloat(e.y16 + at, v, n, e.stream);
    } else if (e.stream) {
      Vec::stream(e.y + at, v);
    } else {
      Vec::store(e.y + at, v, n);
    }
    return;
  }
  const F lo = Vec::set(e.lo), hi = Vec::set(e.hi), z = Vec::set(e.zero_point), s = Vec::set(e.scale);
  const Vec::M masked = Vec::either(Vec::le(v, Vec::set(e.clamp_min)), Vec::le(Vec::set(e.clamp_max), v));
  v = Vec::min(Vec::set(e.clamp_max), Vec::max(Vec::set(e.clamp_min), v));
  const F t = Vec::div(v, s);
  const F rounded = Vec::rint(t);
  const F raw = Vec::add(rounded, z);
  // max and min give their second operand when one is NaN.
  const F clamped = Vec::min(hi, Vec::max(lo, raw));
  const F q = Vec::select(Vec::is_nan(clamped), z, clamped);
  if (e.y) Vec::store(e.y + at, Vec::mul(s, Vec::sub(q, z)), n);
  if (e.codes) Vec::store_bytes(e.codes + at, q, n);
  if (e.residual) {
    const Vec::M inside = e.mask_on_value ? Vec::both(Vec::le(Vec::mul(s, Vec::sub(lo, z)), v), Vec::le(v, Vec::mul(s, Vec::sub(hi, z))))
                                          : Vec::both(Vec::le(lo, raw), Vec::le(raw, hi));
    const F grad = Vec::rint(Vec::mul(Vec::set(kResidualScale), Vec::sub(rounded, t)));
    const F kept = Vec::select(masked, Vec::set(kMasked), grad);
    Vec::store_bytes(reinterpret_cast<uint8_t*>(e.residual) + at, Vec::select(inside, kept, Vec::set(kOutside)), n);
  }
}

// Adds a[0] times each vector of b to the sums of one pixel.
template <int NV, typename V = Vec>
DETENT_INLINE void accumulate_row(F (&sums)[NV], const float* a, const F (&b)[NV]) {
  if constexpr (NV == 2 && requires { V::accumulate_pair(sums[0], sums[1], a, b[0], b[1]); }) {
    V::accumulate_pair(sums[0], sums[1], a, b[0], b[1]);
  } else {
    const F factor = Vec::set(*a);
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) sums[j] = Vec::accumulate(factor, b[j], sums[j]);
  }
}

template <int NV, int P>
DETENT_INLINE void step(F (&acc)[P][NV], const float* const (&x)[P], int64_t i, const float* w) {
  F b[NV];
  DETENT_UNROLL
  for (int j = 0; j < NV; ++j) b[j] = Vec::load(w + j * kV);
  DETENT_UNROLL
  for (int p = 0; p < P; ++p) accumulate_row<NV>(acc[p], x[p] + i, b);
}

// Joins the moments of `np` pixels' sums into those of the `before` pixels that came first (Chan et al. 1983).
template <int NV, int P>
DETENT_INLINE void gather_moments(const F (&acc)[P][NV], int64_t np, const TileArgs& a, int64_t before) {
  const float n = static_cast<float>(np), all = static_cast<float>(before + np);
  const F share = Vec::set(n / all), weight = Vec::set(static_cast<float>(before) * (n / all)), inverse = Vec::set(1.0f / n);
  DETENT_UNROLL
  for (int j = 0; j < NV; ++j) {
    F sum = Vec::zero(), squares = Vec::zero();
    DETENT_UNROLL
    for (int p = 0; p < P; ++p) {
      if (p < np) sum = Vec::add(sum, acc[p][j]);
    }
    const F mean = Vec::mul(sum, inverse);
    DETENT_UNROLL
    for (int p = 0; p < P; ++p) {
      const F d = Vec::sub(acc[p][j], mean);
      if (p < np) squares = Vec::fma(d, d, squares);
    }
    const int64_t left = a.channels - j * kV;
    const int valid = left < kV ? static_cast<int>(left) : kV;
    float* const to_mean = a.mean + j * kV;
    float* const to_m2 = a.m2 + j * kV;
    const F old_mean = before > 0 ? Vec::load(to_mean, valid) : Vec::zero(), old_m2 = before > 0 ? Vec::load(to_m2, valid) : Vec::zero();
    const F d = Vec::sub(mean, old_mean);
    Vec::store(to_mean, Vec::fma(d, share, old_mean), valid);
    Vec::store(to_m2, Vec::add(old_m2, Vec::fma(Vec::mul(d, d), weight, squares)), valid);
  }
}

template <int NV, int P>
static void tile(const TileArgs& a) {
  constexpr int kWidth = NV * kV;
  const TileEpilogue& e = *a.epilogue;
  for (int64_t p0 = 0; p0 < a.pixels; p0 += P) {
    const int64_t np = a.pixels - p0 < P ? a.pixels - p0 : P;
    F acc[P][NV];
    float* partial = a.partial + p0 * kWidth;
    if (a.first) {
      DETENT_UNROLL
      for (int p = 0; p < P; ++p) {
        DETENT_UNROLL
        for (int j = 0; j < NV; ++j) acc[p][j] = Vec::zero();
      }
    } else {
      DETENT_UNROLL
      for (int p = 0; p < P; ++p) {
        DETENT_UNROLL
        for (int j = 0; j < NV; ++j) acc[p][j] = Vec::load(partial + p * kWidth + j * kV);
      }
    }
    if (a.last && e.addend) {
      // On its way while the sums are computed: the rows of a tile are no stream that the processor would foresee.
      for (int64_t p = 0; p < np; ++p) {
        const auto* ahead = reinterpret_cast<const char*>(e.addend + a.out[p0 + p] * e.channels + a.k0);
        DETENT_UNROLL
        for (int j = 0; j < NV; ++j) Vec::prefetch(ahead + j * kV * 4);
      }
    }
    const float* w = a.w;
    for (int64_t t = 0; t < a.taps; ++t) {
      const float* x[P];
      DETENT_UNROLL
      for (int p = 0; p < P; ++p) x[p] = a.rows[t * a.row_stride + p0 + p] + a.x_offset;
      int64_t i = 0;
      for (; i + 4 <= a.depth; i += 4, w += 4 * kWidth) {
        step<NV, P>(acc, x, i, w);
        step<NV, P>(acc, x, i + 1, w + kWidth);
        step<NV, P>(acc, x, i + 2, w + 2 * kWidth);
        step<NV, P>(acc, x, i + 3, w + 3 * kWidth);
      }
      for (; i < a.depth; ++i, w += kWidth) step<NV, P>(acc, x, i, w);
    }
    if (!a.last) {
      DETENT_UNROLL
      for (int p = 0; p < P; ++p) {
        DETENT_UNROLL
        for (int j = 0; j < NV; ++j) Vec::store(partial + p * kWidth + j * kV, acc[p][j]);
      }
      continue;
    }
    if (a.mean) {
      if (e.y16) {
        // Of what is stored.
        DETENT_UNROLL
        for (int p = 0; p < P; ++p) {
          DETENT_UNROLL
          for (int j = 0; j < NV; ++j) acc[p][j] = Vec::round_bfloat(acc[p][j]);
        }
      }
      if (np == P) {
        gather_moments<NV, P>(acc, P, a, p0);
      } else {
        gather_moments<NV, P>(acc, np, a, p0);
      }
    }
    DETENT_UNROLL
    for (int p = 0; p < P; ++p) {
      if (p >= np) break;
      const int64_t at = a.out[p0 + p] * e.channels + a.k0;
      DETENT_UNROLL
      for (int j = 0; j < NV; ++j) {
        const int64_t left = a.channels - j * kV;
        finish(acc[p][j], e, a.k0 + j * kV, at + j * kV, left < kV ? static_cast<int>(left) : kV);
      }
    }
  }
}

#ifndef DETENT_FILTER_AHEAD
#define DETENT_FILTER_AHEAD 8
#endif
constexpr int kAhead = DETENT_FILTER_AHEAD;

template <int NV, int M, bool kWhole>
DETENT_INLINE void filter_body(const FilterTileArgs& a) {
  const int tail = static_cast<int>(a.channels - (NV - 1) * kV);
  F acc[M][NV];
  DETENT_UNROLL
  for (int m = 0; m < M; ++m) {
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) acc[m][j] = Vec::zero();
  }
  const float* dy = a.dy;
  for (int64_t p = 0; p < a.pixels; ++p, dy += M) {
    const float* x = a.rows[p] + a.x_offset;
    if (kAhead > 0) {
      // Rows are scattered; the table runs kTilePad past the end.
      const char* ahead = reinterpret_cast<const char*>(a.rows[p + kAhead] + a.x_offset);
      DETENT_UNROLL
      for (int j = 0; j < NV; ++j) Vec::prefetch(ahead + j * kV * 4);
    }
    Vec::prefetch_far(a.ahead + p * 64);
    F b[NV];
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) b[j] = kWhole || j + 1 < NV ? Vec::load(x + j * kV) : Vec::load(x + j * kV, tail);
    DETENT_UNROLL
    for (int m = 0; m < M; ++m) {
      const F d = Vec::set(dy[m]);
      DETENT_UNROLL
      for (int j = 0; j < NV; ++j) acc[m][j] = Vec::accumulate(d, b[j], acc[m][j]);
    }
  }
  DETENT_UNROLL
  for (int m = 0; m < M; ++m) {
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) {
      float* out = a.dw + m * a.dw_stride + j * kV;
      const int n = kWhole || j + 1 < NV ? kV : tail;
      Vec::store(out, a.first ? acc[m][j] : Vec::add(acc[m][j], Vec::load(out, n)), n);
    }
  }
}

template <int NV, int M>
static void filter_tile(const FilterTileArgs& a) {
  if (a.channels == NV * kV) {
    filter_body<NV, M, true>(a);
  } else {
    filter_body<NV, M, false>(a);
  }
}

template <int NV, int P>
DETENT_INLINE void depthwise_block(const DepthwiseArgs& a, int64_t p0, int64_t np, int64_t c, int tail) {
  F acc[P][NV];
  DETENT_UNROLL
  for (int p = 0; p < P; ++p) {
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) acc[p][j] = Vec::zero();
  }
  for (int64_t t = 0; t < a.taps; ++t) {
    F w[NV];
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) w[j] = Vec::load(a.w + t * a.channels + c + j * kV, j + 1 < NV ? kV : tail);
    DETENT_UNROLL
    for (int p = 0; p < P; ++p) {
      const float* x = a.rows[t * a.row_stride + p0 + p] + c;
      DETENT_UNROLL
      for (int j = 0; j < NV; ++j) acc[p][j] = Vec::fma(Vec::load(x + j * kV, j + 1 < NV ? kV : tail), w[j], acc[p][j]);
    }
  }
  DETENT_UNROLL
  for (int p = 0; p < P; ++p) {
    if (p >= np) break;
    const int64_t at = a.out[p0 + p] * a.epilogue->channels + c;
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) finish(acc[p][j], *a.epilogue, c + j * kV, at + j * kV, j + 1 < NV ? kV : tail);
  }
}

static void depthwise(const DepthwiseArgs& a) {
  constexpr int kP = 4;
  for (int64_t p = 0; p < a.pixels; p += kP) {
    const int64_t np = a.pixels - p < kP ? a.pixels - p : kP;
    int64_t c = 0;
    for (; c + 2 * kV <= a.channels; c += 2 * kV) depthwise_block<2, kP>(a, p, np, c, kV);
    for (; c < a.channels; c += kV) depthwise_block<1, kP>(a, p, np, c, a.channels - c < kV ? static_cast<int>(a.channels - c) : kV);
  }
}

template <int T, int NV>
DETENT_INLINE void depthwise_filter_taps(const DepthwiseFilterArgs& a, int64_t t0, int64_t c, int tail) {
  F acc[T][NV];
  DETENT_UNROLL
  for (int t = 0; t < T; ++t) {
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) acc[t][j] = Vec::zero();
  }
  for (int64_t p = 0; p < a.pixels; ++p) {
    F d[NV];
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) d[j] = Vec::load(a.dy + p * a.channels + c + j * kV, j + 1 < NV ? kV : tail);
    DETENT_UNROLL
    for (int t = 0; t < T; ++t) {
      const float* x = a.rows[(t0 + t) * a.row_stride + p] + c;
      DETENT_UNROLL
      for (int j = 0; j < NV; ++j) acc[t][j] = Vec::fma(d[j], Vec::load(x + j * kV, j + 1 < NV ? kV : tail), acc[t][j]);
    }
  }
  DETENT_UNROLL
  for (int t = 0; t < T; ++t) {
    DETENT_UNROLL
    for (int j = 0; j < NV; ++j) {
      float* out = a.dw + (t0 + t) * a.channels + c + j * kV;
      const int n = j + 1 < NV ? kV : tail;
      Vec::store(out, a.first ? acc[t][j] : Vec::add(acc[t][j], Vec::load(out, n)), n);
    }
  }
}

template <int NV>
static void depthwise_filter_columns(const DepthwiseFilterArgs& a, int64_t c, int tail) {
  int64_t t = 0;
  for (; t + kDepthwiseTaps <= a.taps; t += kDepthwiseTaps) depthwise_filter_taps<kDepthwiseTaps, NV>(a, t, c, tail);
  for (; t + 3 <= a.taps; t += 3) depthwise_filter_taps<3, NV>(a, t, c, tail);
  for (; t < a.taps; ++t) depthwise_filter_taps<1, NV>(a, t, c, tail);
}

static void depthwise_filter(const DepthwiseFilterArgs& a) {
  int64_t c = 0;
  for (; c + kDepthwiseVectors * kV <= a.channels; c += kDepthwiseVectors * kV) depthwise_filter_columns<kDepthwiseVectors>(a, c, kV);
  for (; c < a.channels; c += kV) depthwise_filter_columns<1>(a, c, a.channels - c < kV ? static_cast<int>(a.channels - c) : kV);
}

static void transpose(const float* src, int64_t src_stride, int64_t rows, int64_t cols, float* dst, int64_t dst_stride, int64_t dst_rows) {
  for (int64_t i = 0; i < dst_rows; i += kV) {
    const int nr = rows - i >= kV ? kV : (rows > i ? static_cast<int>(rows - i) : 0);
    const int nd = dst_rows - i >= kV ? kV : static_cast<int>(dst_rows - i);
    for (int64_t j = 0; j < cols; j += kV) {
      const int nc = cols - j >= kV ? kV : static_cast<int>(cols - j);
      F block[kV];
      DETENT_UNROLL
      for (int v = 0; v < kV; ++v) block[v] = v < nr ? Vec::load(src + (i + v) * src_stride + j, nc) : Vec::zero();
      Vec::transpose(block);
      DETENT_UNROLL
      for (int v = 0; v < kV; ++v) {
        if (v < nc) Vec::store(dst + (j + v) * dst_stride + i, block[v], nd);
      }
    }
  }
}

// Pixel by pixel, so that the source is read in one stream.
template <int M>
static void pack_panels_of(const float* src, int64_t stride, int64_t pixels, int64_t wide, int64_t narrow, float* dst) {
  const int64_t wide_step = (M + 1) * pixels + kPackSlack, narrow_step = M * pixels + kPackSlack;
  for (int64_t p = 0; p < pixels; ++p, src += stride) {
    const float* from = src;
    float* to = dst + p * (M + 1);
    for (int64_t i = 0; i < wide; ++i, from += M + 1, to += wide_step) Vec::copy_some<M + 1>(to, from);
    to -= p;
    for (int64_t i = 0; i < narrow; ++i, from += M, to += narrow_step) Vec::copy_some<M>(to, from);
  }
}

static void pack_panels(const float* src, int64_t stride, int64_t pixels, int64_t wide, int64_t narrow, int m, float* dst) {
  switch (m) {
    case 1: return pack_panels_of<1>(src, stride, pixels, wide, narrow, dst);
    case 2: return pack_panels_of<2>(src, stride, pixels, wide, narrow, dst);
    case 3: return pack_panels_of<3>(src, stride, pixels, wide, narrow, dst);
    case 4: return pack_panels_of<4>(src, stride, pixels, wide, narrow, dst);
    case 5: return pack_panels_of<5>(src, stride, pixels, wide, narrow, dst);
    case 6: return pack_panels_of<6>(src, stride, pixels, wide, narrow, dst);
    case 7: return pack_panels_of<7>(src, stride, pixels, wide, narrow, dst);
    case 8: return pack_panels_of<8>(src, stride, pixels, wide, narrow, dst);
    case 9: return pack_panels_of<9>(src, stride, pixels, wide, narrow, dst);
    case 10: return pack_panels_of<10>(src, stride, pixels, wide, narrow, dst);
    case 11: return pack_panels_of<11>(src, stride, pixels, wide, narrow, dst);
    case 12: return pack_panels_of<12>(src, stride, pixels, wide, narrow, dst);
  }
}

static void copy_rows(const float* const* rows, int64_t x_offset, int64_t pixels, int64_t n, int64_t dst_stride, float* dst) {
  constexpr int kFar = 16;
  for (int64_t p = 0; p < pixels; ++p, dst += dst_stride) {
    const float* x = rows[p] + x_offset;
    const float* far = rows[p + kFar] + x_offset;
    for (int64_t i = 0; i < n; i += kV) {
      const int left = n - i < kV ? static_cast<int>(n - i) : kV;
      Vec::prefetch(reinterpret_cast<const char*>(far + i));
      Vec::store(dst + i, Vec::load(x + i, left), left);
    }
  }
}

static void dequantize_codes(const uint8_t* codes, int64_t n, float scale, int32_t zero_point, float* y) {
  const F s = Vec::set(scale);
  int64_t i = 0;
  for (; i + 4 * kV <= n; i += 4 * kV) {
    DETENT_UNROLL
    for (int j = 0; j < 4; ++j) Vec::store(y + i + j * kV, Vec::mul(s, Vec::load_bytes(codes + i + j * kV, zero_point, kV)));
  }
  for (; i < n; i += kV) {
    const int left = n - i < kV ? static_cast<int>(n - i) : kV;
    Vec::store(y + i, Vec::mul(s, Vec::load_bytes(codes + i, zero_point, left)), left);
  }
}

static float fma_burst(int64_t rounds) {
  constexpr int kChains = 12;
  F acc[kChains];
  DETENT_UNROLL
  for (int i = 0; i < kChains; ++i) acc[i] = Vec::set(static_cast<float>(i));
  const F a = Vec::set(0.999f), b = Vec::set(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
    DETENT_UNROLL
    for (int i = 0; i < kChains; ++i) acc[i] = Vec::accumulate(a, b, acc[i]);
  }
  DETENT_UNROLL
  for (int i = 1; i < kChains; ++i) acc[0] = Vec::add(acc[0], acc[i]);
  float out[kV];
  Vec::store(out, acc[0]);
  return out[0];
}

static void column_sum(const float* x, int64_t rows, int64_t cols, int64_t stride, float* y) {
  for (int64_t j = 0; j < cols; j += kV) {
    const int n = cols - j < kV ? static_cast<int>(cols - j) : kV;
    F acc = Vec::load(y + j, n);
    for (int64_t i = 0; i < rows; ++i) acc = Vec::add(acc, Vec::load(x + i * stride + j, n));
    Vec::store(y + j, acc, n);
  }
}
