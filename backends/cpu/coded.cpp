// Built once per instruction set; DETENT_CODED names the table. The formulas are quant_math.h's, in a form that vectorises.
#include "detent/backends/cpu/coded.h"

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

void encode(const AddRow r, int64_t at, int64_t n, const float* v) {
  const Grid g = r.grid;
  int32_t q[kBlock];
  for (int64_t i = 0; i < n; ++i) q[i] = static_cast<int32_t>(quantize_to_float(v[i], g));
  if (r.codes) {
    for (int64_t i = 0; i < n; ++i) r.codes[at + i] = static_cast<uint8_t>(q[i]);
  }
  if (r.y) {
    for (int64_t i = 0; i < n; ++i) r.y[at + i] = g.scale * static_cast<float>(q[i] - g.zero_point);
  }
}

void keep(const AddRow r, int64_t at, int64_t n, const float* v) {
  const Grid g = r.grid;
  const float z = static_cast<float>(g.zero_point), lo = static_cast<float>(g.qmin), hi = static_cast<float>(g.qmax);
  const float first = r.mask_on_value ? g.scale * (lo - z) : lo, last = r.mask_on_value ? g.scale * (hi - z) : hi;
  const bool on_value = r.mask_on_value;
  const float clamp_lo = r.lo, clamp_hi = r.hi;
  int8_t* const out = r.residual + at;
  for (int64_t i = 0; i < n; ++i) {
    const float x = v[i], t = x / g.scale, rounded = rintf(t);
    const float judged = on_value ? x : rounded + z;
    const float kept = (x <= clamp_lo) | (x >= clamp_hi) ? static_cast<float>(kMasked) : rintf(kResidualScale * (rounded - t));
    const float byte = (judged >= first) & (judged <= last) ? kept : static_cast<float>(kOutside);
    out[i] = static_cast<int8_t>(static_cast<int32_t>(byte));
  }
}

void add(const AddRow& r, int64_t n) {
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
      encode(r, at, m, a);
      if (r.residual) keep(r, at, m, a);
    } else {
      for (int64_t i = 0; i < m; ++i) r.y[at + i] = a[i];
    }
  }
}

void backward(const uint8_t* codes, const int8_t* residual, int32_t zero_point, const float* dy, float* dx, int64_t n, float* scale_lanes, float* clip_lanes) {
  float term[kBlock], clipped[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    const uint8_t* q = codes + at;
    const int8_t* kept = residual + at;
    const float* g = dy + at;
    float* out = dx + at;
    for (int64_t i = 0; i < m; ++i) {
      const int32_t r = kept[i];
      // Everything in steps of 1/252, exact in float: one division at the end serves all.
      const int32_t code = (static_cast<int32_t>(q[i]) - zero_point) * static_cast<int32_t>(kResidualScale);
      const int32_t inner = r == kMasked ? 0 : r;
      const float d = g[i];
      term[i] = d * static_cast<float>(r == kOutside ? code : inner);
      clipped[i] = r == kOutside ? d : 0.0f;
      out[i] = r <= kMasked ? 0.0f : d;
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

}  // namespace

const CodedKernels DETENT_CODED = {add, backward};

}  // namespace detent::cpu
