// Quantize-dequantize, its backward pass with range sums, and dequantize: the cut of a tensor into rows for the row kernels.
#include <vector>

#include "detent/backends/cpu/dense.h"
#include "detent/backends/cpu/kernels.h"
#include "detent/backends/cpu/loop.h"
#include "detent/backends/cpu/rows.h"

namespace detent::cpu {
namespace {

RowGrid row_grid(const Grid& g) { return {g.scale, static_cast<float>(g.zero_point), static_cast<float>(g.qmin), static_cast<float>(g.qmax)}; }

int64_t elements(const ChannelView& v) { return v.outer * v.channels * v.inner; }

// Channels last: neighbours have grids of their own, so rows of one grid do not exist.
bool channels_last(const ChannelView& v) { return v.inner == 1 && v.outer > 1 && v.channels > 1; }

int64_t piece_count(const ChannelView& v) { return (v.inner + kGrain - 1) / kGrain; }

// The rows of a view cut into pieces that threads share; row i belongs to channel i % channels.
template <class Fn>
void for_each_piece(const ChannelView& v, Fn&& fn) {
  const int64_t pieces = piece_count(v);
  parallel_for(v.outer * v.channels * pieces, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, v.inner)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces, first = i % pieces * kGrain;
      fn(i, row % v.channels, row * v.inner + first, std::min(kGrain, v.inner - first));
    }
  });
}

// Calls fn(chunk, first row, last row) for a channels-last view.
template <class Fn>
void for_each_slab(const ChannelView& v, int64_t rows, Fn&& fn) {
  parallel_for(v.outer, rows, [&](int64_t begin, int64_t end) { fn(begin / rows, begin, end); });
}

int64_t slab_rows(const ChannelView& v) { return std::max<int64_t>(1, kGrain / v.channels); }

void fake_quant_channels_last(const FakeQuantArgs& a) {
  const int64_t c = a.view.channels;
  for_each_slab(a.view, slab_rows(a.view), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < c; ++j) {
        const float x = a.x[i * c + j];
        if (a.codes) static_cast<uint8_t*>(a.codes)[i * c + j] = static_cast<uint8_t>(quantize(x, a.grids[j]));
        if (a.y) a.y[i * c + j] = fake_quantize(x, a.grids[j]);
      }
    }
  });
}

struct Sums {
  double value[2] = {0.0, 0.0};  // scale, clip
};

// Sums of chunk k for channel c are at [k * channels + c].
std::vector<Sums> backward_channels_last(const FakeQuantBackwardArgs& a) {
  const int64_t c = a.view.channels, rows = slab_rows(a.view);
  std::vector<Sums> part(static_cast<size_t>((a.view.outer + rows - 1) / rows * c));
  for_each_slab(a.view, rows, [&](int64_t chunk, int64_t begin, int64_t end) {
    Sums* sums = part.data() + chunk * c;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < c; ++j) {
        float dx;
        kRowsScalar.fake_quant_backward(a.x + i * c + j, a.dy + i * c + j, row_grid(a.grids[j]), &dx, 1, sums[j].value, false);
        if (a.dx) a.dx[i * c + j] = dx;
      }
    }
  });
  return part;
}

}  // namespace

void fake_quant(const FakeQuantArgs& a) {
  if (channels_last(a.view)) return fake_quant_channels_last(a);
  const RowKernels& k = row_kernels();
  const bool stream = a.y != a.x && streams(elements(a.view));
  for_each_piece(a.view, [&](int64_t, int64_t channel, int64_t at, int64_t n) {
    const RowGrid g = row_grid(a.grids[channel]);
    float* y = a.y ? a.y + at : nullptr;
    if (a.codes) {
      k.fake_quant_codes(a.x + at, g, y, static_cast<uint8_t*>(a.codes) + at, n);
    } else {
      k.fake_quant(a.x + at, g, y, n, stream);
    }
  });
}

void dequantize(const DequantizeArgs& a) {
  const RowKernels& k = row_kernels();
  parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) { k.dequantize(a.codes + begin, row_grid(a.grid), a.y + begin, end - begin); });
}

void fake_quant_backward(const FakeQuantBackwardArgs& a) {
  const ChannelView& v = a.view;
  if (a.mask_on_value) {
    if (!a.dx) return;
    for_each_piece(v, [&](int64_t, int64_t channel, int64_t at, int64_t n) {
      const Grid& g = a.grids[channel];
      dense_kernels().mask(a.x + at, a.dy + at, detent::dequantize(g.qmin, g), detent::dequantize(g.qmax, g), a.dx + at, n);
    });
    return;
  }
  std::vector<Sums> part;
  if (channels_last(v)) {
    part = backward_channels_last(a);
  } else {
    const RowKernels& k = row_kernels();
    const bool stream = a.dx && a.dx != a.x && a.dx != a.dy && streams(elements(v));
    part.resize(static_cast<size_t>(v.outer * v.channels * piece_count(v)));
    for_each_piece(v, [&](int64_t i, int64_t channel, int64_t at, int64_t n) {
      k.fake_quant_backward(a.x + at, a.dy + at, row_grid(a.grids[channel]), a.dx ? a.dx + at : nullptr, n, part[static_cast<size_t>(i)].value, stream);
    });
  }
  // Both layouts of the parts run through the channels in groups of the same size.
  const size_t group = static_cast<size_t>(channels_last(v) ? 1 : piece_count(v)), channels = static_cast<size_t>(v.channels);
  for (size_t c = 0; c < channels; ++c) {
    Sums total;
    for (size_t first = c * group; first < part.size(); first += channels * group) {
      for (size_t p = first; p < first + group; ++p) {
        total.value[0] += part[p].value[0];
        total.value[1] += part[p].value[1];
      }
    }
    if (a.scale_sum) a.scale_sum[c] = total.value[0];
    if (a.clip_sum) a.clip_sum[c] = total.value[1];
  }
}

}  // namespace detent::cpu
