// Depthwise convolutions: one filter per channel, vectors over channels, rows found through the same table of pointers as the dense ones.
#include <algorithm>
#include <cstring>
#include <vector>

#include "detent/backends/cpu/conv_driver.h"
#include "detent/backends/cpu/dense.h"
#include "detent/core/parallel.h"

namespace detent::cpu {
namespace {

// Pixels of a chunk: what its rows hold stays in the second-level cache.
int64_t chunk_pixels(int64_t channels) { return std::clamp<int64_t>(32768 / std::max<int64_t>(1, channels) / 4 * 4, 16, 512); }

// Input of the staged kind (codes, bf16) for positions [p0, p1), else the dense rows.
struct Stager {
  const ConvIsa& isa;
  const Gather& g;
  const ConvInput& input;
  int64_t chunk;

  int64_t pitch() const { return g.in_w * g.in_c; }
  int64_t floats() const {
    if (input.x) return 0;
    int64_t rows = 0;
    for (int64_t p = 0; p < g.pixels(); p += chunk) {
      const RowRange r = rows_needed(g, p, std::min(g.pixels(), p + chunk));
      rows = std::max(rows, r.last - r.first);
    }
    return rows * pitch();
  }
  InputView view(int64_t p0, int64_t p1, float* stage) const {
    InputView v{input.x, 0, pitch(), 0, 0};
    if (!input.x) {
      const RowRange r = rows_needed(g, p0, p1);
      stage_rows(isa, g, input, r, v, stage);
      v.base = stage;
      v.first_row = r.first;
    }
    return v;
  }
};

// w[channel][taps of the window] -> packed[tap of the gather][channel].
void pack(const float* w, int64_t window_rows, int64_t window_cols, const Phase& phase, int64_t channels, float* packed) {
  const Taps& t = phase.gather.taps;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < t.rows; ++i) {
      for (int64_t j = 0; j < t.cols; ++j) {
        packed[(i * t.cols + j) * channels + c] = w[(c * window_rows + phase.r0 + i * phase.r_step) * window_cols + phase.s0 + j * phase.s_step];
      }
    }
  }
}

void run(const ConvIsa& isa, const Phase& phase, const ConvInput& input, const float* w, const ConvGeometry& geometry, const Epilogue& epilogue) {
  const Gather& g = phase.gather;
  if (g.pixels() == 0) return;
  const int64_t channels = g.in_c, taps = g.taps.count(), chunk = chunk_pixels(channels), row_stride = chunk + kTilePad;
  Scratch<float> packed(taps * channels + 64), zero(channels + 64);
  std::fill_n(zero.get(), channels + 64, 0.0f);
  pack(w, geometry.r, geometry.s, phase, channels, packed.get());
  const Stager stager{isa, g, input, chunk};
  const int64_t stage_at = (std::max<int64_t>(1, taps) + 1) * row_stride * 8;
  Slots slots(stage_at + stager.floats() * 4 + 64);
  const TileEpilogue e = tile_epilogue(epilogue, channels, 1, g.n * g.out_h * g.out_w, isa.vector);
  parallel_for(g.pixels(), chunk, [&](int64_t p0, int64_t p1) {
    Slots::Lease lease(slots);
    auto** rows = reinterpret_cast<const float**>(lease.get());
    auto* out = reinterpret_cast<int64_t*>(lease.get() + std::max<int64_t>(1, taps) * row_stride * 8);
    fill_rows(g, stager.view(p0, p1, reinterpret_cast<float*>(lease.get() + stage_at)), p0, p1, zero.get(), rows, row_stride, out);
    isa.depthwise({rows, row_stride, taps, p1 - p0, packed.get(), out, channels, &e});
  });
}

}  // namespace

void depthwise_forward(const ConvIsa& isa, const Conv2dArgs& a) {
  Phase phase;
  phase.gather = forward_gather(a.geometry, a.input.x != nullptr);
  run(isa, phase, a.input, a.w, a.geometry, a.epilogue);
}

void depthwise_backward_data(const ConvIsa& isa, const Conv2dBackwardDataArgs& a) {
  const ConvGeometry& g = a.geometry;
  Epilogue epilogue;
  epilogue.y = a.dx;
  epilogue.y16 = a.dx16;
  const ConvInput input = values_input(a.dy, a.dy16);
  for (int64_t ph = 0; ph < std::min(g.stride_h, g.h); ++ph) {
    for (int64_t pw = 0; pw < std::min(g.stride_w, g.w); ++pw) run(isa, backward_phase(g, ph, pw, a.dy != nullptr), input, a.w, g, epilogue);
  }
}

void depthwise_backward_filter(const ConvIsa& isa, const Conv2dBackwardFilterArgs& a) {
  const Gather g = forward_gather(a.geometry, a.input.x != nullptr);
  const int64_t channels = g.in_c, taps = g.taps.count(), chunk = chunk_pixels(channels), row_stride = chunk + kTilePad, pixels = g.pixels();
  // Slices of whole chunks, at most 32, by shape alone.
  const int64_t chunks = (pixels + chunk - 1) / chunk, per_slice = (chunks + 31) / 32, slices = (chunks + per_slice - 1) / per_slice;
  const Stager stager{isa, g, a.input, chunk};
  const int64_t stage_at = taps * row_stride * 8;
  Slots slots(stage_at + stager.floats() * 4 + 64);
  Scratch<float> zero(channels + 64), partial(slices * (taps + 1) * channels);
  std::fill_n(zero.get(), channels + 64, 0.0f);
  parallel_chunks(slices, [&](int64_t slice) {
    Slots::Lease lease(slots);
    auto** rows = reinterpret_cast<const float**>(lease.get());
    float* dw = partial.get() + slice * (taps + 1) * channels;
    float* bias = dw + taps * channels;
    std::fill_n(bias, channels, 0.0f);
    std::vector<float> room(static_cast<size_t>(a.dy16 ? chunk * channels : 0));
    for (int64_t i = slice * per_slice; i < std::min(chunks, (slice + 1) * per_slice); ++i) {
      const int64_t p0 = i * chunk, p1 = std::min(pixels, p0 + chunk);
      fill_rows(g, stager.view(p0, p1, reinterpret_cast<float*>(lease.get() + stage_at)), p0, p1, zero.get(), rows, row_stride, nullptr);
      if (a.dy16) dense_kernels().widen(a.dy16 + p0 * channels, room.data(), (p1 - p0) * channels);
      const float* const dy = a.dy16 ? room.data() : a.dy + p0 * channels;
      isa.depthwise_filter({rows, row_stride, taps, p1 - p0, dy, channels, dw, i == slice * per_slice});
      if (a.dbias) isa.column_sum(dy, p1 - p0, channels, channels, bias);
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t <= taps; ++t) {
      float sum = 0.0f;
      for (int64_t s = 0; s < slices; ++s) sum += partial.get()[(s * (taps + 1) + t) * channels + c];
      if (t < taps) a.dw[c * taps + t] = sum;
      else if (a.dbias) a.dbias[c] = sum;
    }
  }
}

}  // namespace detent::cpu
