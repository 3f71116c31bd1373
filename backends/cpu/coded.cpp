// Built once per instruction set; DETENT_CODED names the table. The formulas are quant_math.h's and integer_math.h's, in a form that vectorises.
#include "detent/backends/cpu/coded.h"

#include "detent/core/math/integer_math.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace detent::cpu {
namespace {

// Blocks on the stack keep every loop simple enough for the compiler: decode, add, encode.
constexpr int64_t kBlock = 512;

void decode(const CodedRow r, int64_t at, int64_t n, float* out) {
  if (r.x) {
    for (int64_t i = 0; i < n; ++i) out[i] = r.x[at + i];
  } else {
    const uint8_t* q = r.codes + at;
    for (int64_t i = 0; i < n; ++i) out[i] = r.scale * static_cast<float>(static_cast<int32_t>(q[i]) - r.zero_point);
  }
}

void store(const AddRow r, int64_t at, int64_t n, const int32_t* q) {
  const Grid g = r.grid;
  if (r.codes) {
    for (int64_t i = 0; i < n; ++i) r.codes[at + i] = static_cast<uint8_t>(q[i]);
  }
  if (r.y) {
    for (int64_t i = 0; i < n; ++i) r.y[at + i] = g.scale * static_cast<float>(q[i] - g.zero_point);
  }
}

// How a value lies on the grid: itself, the way to the code nearest to it, and that code before the clamp.
struct Placed {
  float value, error, code;
};

// place(i): of element i of the block.
template <class Place>
void keep(const AddRow r, int64_t at, int64_t n, Place place) {
  const Grid g = r.grid;
  const float z = static_cast<float>(g.zero_point), lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const float first = r.mask_on_value ? g.scale * (lo - z) : lo, last = r.mask_on_value ? g.scale * (hi - z) : hi;
  const bool on_value = r.mask_on_value;
  const float clamp_lo = r.lo, clamp_hi = r.hi;
  int8_t* const out = r.residual + at;
  for (int64_t i = 0; i < n; ++i) {
    const Placed p = place(i);
    const float judged = on_value ? p.value : p.code;
    const float kept = (p.value <= clamp_lo) | (p.value >= clamp_hi) ? static_cast<float>(kMasked) : rintf(kResidualScale * p.error);
    const float byte = (judged >= first) & (judged <= last) ? kept : static_cast<float>(kOutside);
    out[i] = static_cast<int8_t>(static_cast<int32_t>(byte));
  }
}

void quantize_block(const AddRow& r, int64_t at, int64_t n, const float* v) {
  const Grid g = r.grid;
  int32_t q[kBlock];
  for (int64_t i = 0; i < n; ++i) q[i] = static_cast<int32_t>(quantize_to_float(v[i], g));
  store(r, at, n, q);
  if (!r.residual) return;
  const float z = static_cast<float>(g.zero_point);
  keep(r, at, n, [=](int64_t i) {
    const float t = v[i] / g.scale, rounded = rintf(t);
    return Placed{v[i], rounded - t, rounded + z};
  });
}

void add_codes(const AddRow& r, int64_t n) {
  const Grid g = r.grid;
  const IntegerAdd f = integer_add({.scale = r.a.scale, .zero_point = r.a.zero_point}, {.scale = r.b.scale, .zero_point = r.b.zero_point}, g);
  const float z = static_cast<float>(g.zero_point), lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  float u[kBlock];
  int32_t q[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    const uint8_t *a = r.a.codes + at, *b = r.b.codes + at;
    for (int64_t i = 0; i < m; ++i) u[i] = place_of_sum(a[i], b[i], f);
    for (int64_t i = 0; i < m; ++i) {
      const float v = rintf(u[i]);
      q[i] = static_cast<int32_t>(v < lo ? lo : (v > hi ? hi : v));
    }
    store(r, at, m, q);
    if (!r.residual) continue;
    keep(r, at, m, [=, &u](int64_t i) {
      const float rounded = rintf(u[i]);
      return Placed{g.scale * (u[i] - z), rounded - u[i], rounded};
    });
  }
}

void add(const AddRow& r, int64_t n) {
  if (r.quantize && !r.a.x && !r.b.x && absorbs_clamp(r.grid, r.lo, r.hi)) return add_codes(r, n);
  float a[kBlock], b[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    decode(r.a, at, m, a);
    decode(r.b, at, m, b);
    const float lo = r.lo, hi = r.hi;
    for (int64_t i = 0; i < m; ++i) {
      const float v = a[i] + b[i];
      const float w = v > hi ? hi : v;
      a[i] = w < lo ? lo : w;
    }
    if (r.quantize) {
      quantize_block(r, at, m, a);
    } else {
      for (int64_t i = 0; i < m; ++i) r.y[at + i] = a[i];
    }
  }
}

#if defined(__AVX512F__)

// The same sums in the same order, without the blocks: one vector is one turn of the lanes.
void backward(const BackwardRow& row, int64_t n, bool stream, float* scale_lanes, float* clip_lanes) {
  static_assert(kCodedLanes == 16);
  const auto [codes, residual, zero_point, clamp, dy, dx] = row;
  stream = stream && reinterpret_cast<uintptr_t>(dx) % 64 == 0;
  const __m512i first_high = _mm512_set1_epi32(clamp.first_high);
  const __m512 low = _mm512_set1_ps(clamp.low), high = _mm512_set1_ps(clamp.high);
  const __m512i z = _mm512_set1_epi32(zero_point), outside_mark = _mm512_set1_epi32(kOutside), masked_mark = _mm512_set1_epi32(kMasked);
  const __m512 steps = _mm512_set1_ps(static_cast<float>(kResidualScale));
  __m512 scale = _mm512_loadu_ps(scale_lanes), clip = _mm512_loadu_ps(clip_lanes);
  for (int64_t i = 0; i < n; i += kCodedLanes) {
    const __mmask16 valid = n - i >= kCodedLanes ? __mmask16(0xffff) : static_cast<__mmask16>((1u << (n - i)) - 1u);
    const __m512i q = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(valid, codes + i)), r = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, residual + i));
    const __m512 d = _mm512_maskz_loadu_ps(valid, dy + i);
    const __mmask16 outside = _mm512_cmpeq_epi32_mask(r, outside_mark), masked = _mm512_cmpeq_epi32_mask(r, masked_mark);
    const __m512 code = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(q, z)), steps);  // exact
    const __m512 held = _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(q, first_high), high, low);
    const __m512 inner = _mm512_mask_mov_ps(_mm512_cvtepi32_ps(r), masked, held);
    scale = _mm512_add_ps(scale, _mm512_mul_ps(d, _mm512_mask_mov_ps(inner, outside, code)));
    clip = _mm512_add_ps(clip, _mm512_maskz_mov_ps(outside, d));
    const __m512 passed = _mm512_maskz_mov_ps(static_cast<__mmask16>(~(outside | masked)), d);
    if (stream && valid == 0xffff) {
      _mm512_stream_ps(dx + i, passed);
    } else {
      _mm512_mask_storeu_ps(dx + i, valid, passed);
    }
  }
  _mm512_storeu_ps(scale_lanes, scale);
  _mm512_storeu_ps(clip_lanes, clip);
}

#else

void backward(const BackwardRow& row, int64_t n, [[maybe_unused]] bool stream, float* scale_lanes, float* clip_lanes) {
  float term[kBlock], clipped[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    const uint8_t* q = row.codes + at;
    const int8_t* kept = row.residual + at;
    const float* g = row.dy + at;
    float* out = row.dx + at;
    const int32_t zero_point = row.zero_point;
    const ClampTerms clamp = row.clamp;
    for (int64_t i = 0; i < m; ++i) {
      const RangeTerms terms = coded_range_terms(q[i], kept[i], zero_point, clamp, g[i]);
      term[i] = terms.scale;
      clipped[i] = terms.clip;
      out[i] = terms.dx;
    }
    const int64_t padded = (m + kCodedLanes - 1) / kCodedLanes * kCodedLanes;
    for (int64_t i = m; i < padded; ++i) term[i] = clipped[i] = 0.0f;
    for (int64_t i = 0; i < padded; i += kCodedLanes) {
      for (int64_t l = 0; l < kCodedLanes; ++l) {
        scale_lanes[l] += term[i + l];
        clip_lanes[l] += clipped[i + l];
      }
    }
  }
}

#endif

}  // namespace

const CodedKernels DETENT_CODED = {add, backward};

}  // namespace detent::cpu
