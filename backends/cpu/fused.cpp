// The fused add and the backward pass of fused quantization: rows of coded.cpp over the pool; and what is small beside them.
#include <algorithm>
#include <vector>

#include "detent/backends/cpu/bf16_values.h"
#include "detent/backends/cpu/coded.h"
#include "detent/backends/cpu/isa.h"
#include "detent/backends/cpu/kernels.h"
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

// sum[j] += elements [at, at + n), which are x, of [rows,c] in column j. They may begin and end within a row.
void add_columns(const float* x, int64_t at, int64_t n, int64_t c, float* sum) {
  const DenseKernels& k = dense_kernels();
  const int64_t lead = std::min(n, (c - at % c) % c);
  if (lead > 0) k.add_rows(x, c, 1, lead, sum + at % c);
  const int64_t rows = (n - lead) / c, rest = (n - lead) % c;
  if (rows > 0) k.add_rows(x + lead, c, rows, c, sum);
  if (rest > 0) k.add_rows(x + lead + rows * c, c, 1, rest, sum);
}

void add16(const AddArgs& a, const CodedKernels& k) {
  const Epilogue& e = a.epilogue;
  const bool stream = streams_apart(a.n, nullptr, e.y16, {a.a.x16, a.b.x16});
  parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
    write_values(nullptr, e.y16, begin, end, stream, [&](float* out, int64_t first, int64_t n) {
      float x[kBf16Block], y[kBf16Block];
      const CodedRow rows[] = {{widened(nullptr, a.a.x16, first, n, x), nullptr, 1.0f, 0}, {widened(nullptr, a.b.x16, first, n, y), nullptr, 1.0f, 0}};
      k.add({rows[0], rows[1], e.clamp_min, e.clamp_max, false, false, {}, out, nullptr, nullptr}, n);
    });
  });
}

}  // namespace

void add(const AddArgs& a) {
  const Epilogue& e = a.epilogue;
  const CodedKernels& k = coded_kernels();
  if (e.y16) return add16(a, k);
  parallel_for(a.n, kGrain, [&](int64_t at, int64_t end) {
    k.add({row(a.a, at), row(a.b, at), e.clamp_min, e.clamp_max, e.quantize, e.mask_on_value, e.grid, e.y ? e.y + at : nullptr, e.quantize && e.codes ? e.codes + at : nullptr,
           e.quantize && e.residual ? e.residual + at : nullptr},
          end - at);
  });
}

void quantized_backward(const QuantizedBackwardArgs& a) {
  const CodedKernels& k = coded_kernels();
  const int64_t n = a.rows * a.c;
  const ClampTerms clamp = clamp_terms(a.clamp_min, a.clamp_max, a.grid);
  // What is summed by column is read again at once and had better stay in the cache.
  const bool bf16 = a.dy16, stream = (bf16 || !a.dbias) && streams_apart(n, a.dx, a.dx16, {a.dy, a.dy16});
  struct Part {
    double scale = 0.0, clip = 0.0;
    std::vector<float> columns;
  };
  std::vector<Part> parts(static_cast<size_t>((n + kGrain - 1) / kGrain));
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    Part& part = parts[static_cast<size_t>(begin / kGrain)];
    part.columns.assign(static_cast<size_t>(a.dbias ? a.c : 0), 0.0f);
    alignas(64) float dy_room[kSumBlock], dx_room[kSumBlock];
    for (int64_t at = begin; at < end; at += kSumBlock) {
      const int64_t m = std::min(kSumBlock, end - at);
      float scale[kCodedLanes] = {}, clip[kCodedLanes] = {};
      float* const dx = bf16 ? dx_room : a.dx + at;
      k.backward({a.codes + at, a.residual + at, a.grid.zero_point, clamp, widened(a.dy, a.dy16, at, m, dy_room), dx}, m, stream && !bf16, scale, clip);
      if (bf16) narrow_values(dx, a.dx16 + at, m, stream);
      for (int64_t l = 0; l < kCodedLanes; ++l) {
        part.scale += static_cast<double>(scale[l]);
        part.clip += static_cast<double>(clip[l]);
      }
      if (a.dbias) add_columns(dx, at, m, a.c, part.columns.data());
    }
    if (stream) stream_fence();
  });
  double scale = 0.0, clip = 0.0;
  std::vector<double> columns(static_cast<size_t>(a.dbias ? a.c : 0));
  for (const Part& p : parts) {
    scale += p.scale;
    clip += p.clip;
    for (size_t j = 0; j < columns.size(); ++j) columns[j] += static_cast<double>(p.columns[j]);
  }
  for (size_t j = 0; j < columns.size(); ++j) a.dbias[j] = static_cast<float>(columns[j]);
  if (a.scale_sum) *a.scale_sum = scale / static_cast<double>(kResidualScale);
  if (a.clip_sum) *a.clip_sum = clip;
}

void range_grads(const RangeGradsArgs& a) {
  for (int64_t c = 0; c < a.channels; ++c) {
    const RangeGrads g = range_grads_from_sums(a.scale_sum[c], a.clip_sum[c], {static_cast<double>(a.min[c]), static_cast<double>(a.max[c])}, a.spec, a.rule);
    a.dmin[c] = static_cast<float>(g.min);
    a.dmax[c] = static_cast<float>(g.max);
  }
}

void round_bias(const RoundBiasArgs& a) {
  for (int64_t k = 0; k < a.n; ++k) a.y[k] = round_to_accumulator_grid(a.b[k], a.input.scale, a.grids[a.per_channel ? k : 0].scale);
}

}  // namespace detent::cpu
