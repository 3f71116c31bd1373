// Convolutions of codes by bytes: the weights' integers are recovered once per call, and int32 sums go through QLinearConv's epilogue.
#include "detent/backends/cuda/conv_tiles.inl"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

// q[k][pitch] = the integers of w[k][sum], zeros behind; offset = bias on the accumulator's grid - zero point * sum of q. A block per channel; the first one also
// leaves the bounds of the epilogue.
struct PackIntegers {
  static constexpr int kThreads = 128;
  struct Shared {
    int32_t part[kThreads];
  };
  const float* w;
  WeightGrid grid;
  ConvInput input;
  Epilogue epilogue;
  int64_t sum, pitch;
  int8_t* q;
  int32_t* offset;
  AccumulatorScale* scale;
  IntegerBounds* bounds;

  template <class Block>
  DETENT_HD void operator()(Block& block, Shared& shared) const {
    const int64_t k = block.index;
    const float s = grid.grids[grid.per_channel ? k : 0].scale;
    block.threads([&](int t) {
      int32_t total = 0;
      for (int64_t i = t; i < pitch; i += kThreads) {
        const int32_t v = i < sum ? static_cast<int32_t>(weight_code(w[k * sum + i], s)) : 0;
        q[k * pitch + i] = static_cast<int8_t>(v);
        total += v;
      }
      shared.part[t] = total;
    });
    block.threads([&](int t) {
      if (t != 0) return;
      int32_t total = 0;
      for (int i = 0; i < kThreads; ++i) total += shared.part[i];
      const Grid from = present(input.grid, input.resident);
      const Epilogue e = settled(epilogue);
      const int32_t b = e.bias ? accumulator_bias(e.bias[k], from.scale, s) : 0;
      offset[k] = wrapping_add(b, wrapping_multiply(-from.zero_point, total));
      scale[k] = accumulator_scale(from.scale, s, e.quantize ? e.grid.scale : 1.0f);
      if (k == 0) *bounds = integer_bounds(e);
    });
  }
};

}  // namespace

void integer_tiles(const char* name, const TileCut& cut, const PixelGather& a, const MatrixOperand& b, const IntegerStore& store) {
  run_shape<U8S8, PixelRows, MatrixRowsB>(name, cut, a, b, store);
}

bool runs_integer(const Conv2dArgs& a) {
  const Grid& g = a.input.grid;
  return a.input.codes && !a.epilogue.scale && !a.epilogue.addend && a.w_grid.magnitude > 0 && a.w_grid.magnitude <= 128 && g.zero_point >= 0 && g.zero_point <= 255;
}

void integer_forward(const ConvOptions& o, const Conv2dArgs& a) {
  const ConvGeometry& g = a.geometry;
  const int64_t depth = g.c / g.groups, sum = g.r * g.s * depth, pitch = ceil_div(sum, 16) * 16;
  const Scratch<int8_t> q(g.k * pitch);
  const Scratch<int32_t> offset(g.k);
  const Scratch<AccumulatorScale> scale(g.k);
  const Scratch<IntegerBounds> bounds(1);
  blocks("pack_weights", g.k, PackIntegers{a.w, a.w_grid, a.input, a.epilogue, sum, pitch, q.get(), offset.get(), scale.get(), bounds.get()});
  if (runs_direct(g)) {
    const IntegerWeights weights{q.get(), pitch, offset.get(), scale.get(), bounds.get()};
    return direct_forward(a, &weights);
  }
  const Gather gather = forward_gather(g, true);
  PixelGather x = pixel_gather(gather, depth);
  x.codes = a.input.codes;
  x.zero_point = a.input.grid.zero_point;
  x.resident = a.input.resident;
  x.vector = reads_vectors(x, depth, 16);
  MatrixOperand w;
  w.p = q.get();
  w.pitch = pitch;
  w.group_stride = g.k / g.groups * pitch;
  w.rows = static_cast<int32_t>(g.k / g.groups);
  w.sum = static_cast<int32_t>(pitch);
  IntegerStore store;
  store.place = output_place(gather, g.k, g.k / g.groups);
  store.epilogue = a.epilogue;
  store.bounds = bounds.get();
  store.offset = offset.get();
  store.scale = scale.get();
  store.place.vector = writes_four(a.epilogue, g.k) && store.place.columns % 4 == 0;
  TileCut cut;
  cut.rows = gather.pixels();
  cut.columns = g.k / g.groups;
  cut.groups = g.groups;
  cut.sum = sum;
  cut.shape = o.force_tile ? o.tile : select_tile(cut.rows, cut.columns, cut.groups);
  integer_tiles("conv2d on codes", cut, x, w, store);
}

}  // namespace detent::DETENT_CUDA_NAMESPACE
