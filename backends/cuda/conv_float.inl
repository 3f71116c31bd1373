// The three directions of one float policy, DETENT_POLICY.
#include "detent/backends/cuda/conv_tiles.inl"

namespace detent::DETENT_CUDA_NAMESPACE {

template <class Policy>
void FloatTiles<Policy>::pixels_by_rows(const char* name, const TileCut& cut, const PixelGather& a, const MatrixOperand& b, const FloatStore& store) {
  run_shape<Policy, PixelRows, MatrixRowsB>(name, cut, a, b, store);
}

template <class Policy>
void FloatTiles<Policy>::pixels_by_columns(const char* name, const TileCut& cut, const PixelGather& a, const MatrixOperand& b, const FloatStore& store) {
  run_shape<Policy, PixelRows, MatrixColumnsB>(name, cut, a, b, store);
}

template <class Policy>
void FloatTiles<Policy>::columns_by_pixels(const char* name, const TileCut& cut, const MatrixOperand& a, const PixelGather& b, const FloatStore& store) {
  run_shape<Policy, MatrixColumnsA, PixelColumns>(name, cut, a, b, store);
}

template struct FloatTiles<DETENT_POLICY>;

}  // namespace detent::DETENT_CUDA_NAMESPACE
