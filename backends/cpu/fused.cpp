// The fused add and the backward pass of fused quantization: rows of coded.cpp over the pool.
#include <algorithm>
#include <vector>

#include "detent/backends/cpu/coded.h"
#include "detent/backends/cpu/isa.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

const CodedKernels& coded_kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return kCodedAvx512;
  if (isa() == Isa::avx2) return kCodedAvx2;
#endif
  return kCodedScalar;
}

constexpr int64_t kSumBlock = 4096;  // float lanes within, doubles across: fixed by size, never by threads

CodedRow row(const ConvInput& in, int64_t at) {
  return {in.x ? in.x + at : nullptr, in.x ? nullptr : in.codes + at, in.grid.scale, in.grid.zero_point};
}

}  // namespace

void add(const AddArgs& a) {
  const Epilogue& e = a.epilogue;
  const CodedKernels& k = coded_kernels();
  parallel_for(a.n, kGrain, [&](int64_t at, int64_t end) {
    k.add({row(a.a, at), row(a.b, at), e.clamp_min, e.clamp_max, e.quantize, e.mask_on_value, e.grid, e.y ? e.y + at : nullptr, e.quantize && e.codes ? e.codes + at : nullptr,
           e.quantize && e.residual ? e.residual + at : nullptr},
          end - at);
  });
}

void quantized_backward(const QuantizedBackwardArgs& a) {
  const CodedKernels& k = coded_kernels();
  const bool stream = a.dx != a.dy && streams(a.n);
  struct Sums {
    double scale = 0.0, clip = 0.0;
  };
  std::vector<Sums> parts(static_cast<size_t>((a.n + kGrain - 1) / kGrain));
  parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
    Sums& part = parts[static_cast<size_t>(begin / kGrain)];
    for (int64_t at = begin; at < end; at += kSumBlock) {
      float scale[kCodedLanes] = {}, clip[kCodedLanes] = {};
      k.backward(a.codes + at, a.residual + at, a.grid.zero_point, a.dy + at, a.dx + at, std::min(kSumBlock, end - at), stream, scale, clip);
      for (int64_t l = 0; l < kCodedLanes; ++l) {
        part.scale += static_cast<double>(scale[l]);
        part.clip += static_cast<double>(clip[l]);
      }
    }
    if (stream) stream_fence();
  });
  Sums all;
  for (const Sums& p : parts) {
    all.scale += p.scale;
    all.clip += p.clip;
  }
  if (a.scale_sum) *a.scale_sum = all.scale / static_cast<double>(kResidualScale);
  if (a.clip_sum) *a.clip_sum = all.clip;
}

void range_grads(const RangeGradsArgs& a) {
  for (int64_t c = 0; c < a.channels; ++c) {
    const RangeGrads g = range_grads_from_sums(a.scale_sum[c], a.clip_sum[c], {static_cast<double>(a.min[c]), static_cast<double>(a.max[c])}, a.spec, a.rule);
    a.dmin[c] = static_cast<float>(g.min);
    a.dmax[c] = static_cast<float>(g.max);
  }
}

}  // namespace detent::cpu
