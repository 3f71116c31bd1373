// Matrix products: cuBLASLt where there is one, else the convolutions' tiles, of which a matrix is an image of one row.
#include "detent/backends/cuda/conv.h"
#include "detent/backends/cuda/kernels.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

// out[m][k] = a[k][m].
struct Transpose {
  const float* a;
  int64_t m, k;
  float* out;
  DETENT_HD void operator()(int64_t i) const { out[i] = a[i % k * m + i / k]; }
};

PixelGather rows_of(const float* a, int64_t rows, int64_t columns) {
  Gather g;
  g.in_w = g.grid_w = g.out_w = rows;
  g.in_c = columns;
  g.taps.dh_step = g.taps.dw_step = 1;
  PixelGather o = pixel_gather(g, columns);
  o.x = a;
  o.vector = reads_vectors(o, columns, 4);
  return o;
}

// p[k][rows], k down the rows; or p[rows][k] with k_along.
MatrixOperand matrix(const float* p, int64_t rows, int64_t sum, bool k_along) {
  MatrixOperand o;
  o.p = p;
  o.pitch = k_along ? sum : rows;
  o.rows = static_cast<int32_t>(rows);
  o.sum = o.depth = static_cast<int32_t>(sum);
  o.by_depth = FastDiv(sum);
  o.vector = o.pitch % 4 == 0 && aligned16(p);
  return o;
}

}  // namespace

void gemm(const ConvOptions& o, const GemmArgs& g) {
  if (g.m == 0 || g.n == 0) return;
  if (o.blas && g.k > 0 && blas_gemm(o.precision, g, nullptr)) return;
  if (g.transpose_a && g.transpose_b) {
    const Scratch<float> copy(g.m * g.k);
    elements("transpose", g.m * g.k, Transpose{g.a, g.m, g.k, copy.get()});
    GemmArgs plain = g;
    plain.transpose_a = false;
    plain.a = copy.get();
    return gemm(o, plain);
  }
  FloatStore store;
  store.epilogue.y = g.y;
  store.alpha.value = g.alpha;
  store.beta = g.beta;
  store.place.rows = static_cast<int32_t>(g.m), store.place.columns = static_cast<int32_t>(g.n);
  store.place.pitch = g.n;
  store.place.vector = writes_four(store.epilogue, g.n);
  TileCut cut;
  cut.rows = g.m, cut.columns = g.n, cut.sum = g.k;
  cut.shape = o.force_tile ? o.tile : select_tile(g.m, g.n, 1);
  with_policy(o.precision, false, [&]<class P>() {
    using T = FloatTiles<P>;
    if (g.transpose_a) {
      T::columns_by_pixels("gemm", cut, matrix(g.a, g.m, g.k, false), rows_of(g.b, g.k, g.n), store);
    } else if (g.transpose_b) {
      T::pixels_by_rows("gemm", cut, rows_of(g.a, g.m, g.k), matrix(g.b, g.n, g.k, true), store);
    } else {
      T::pixels_by_columns("gemm", cut, rows_of(g.a, g.m, g.k), matrix(g.b, g.n, g.k, false), store);
    }
  });
}

void gemm(const GemmArgs& g) { gemm({.precision = precision()}, g); }

}  // namespace detent::DETENT_CUDA_NAMESPACE
