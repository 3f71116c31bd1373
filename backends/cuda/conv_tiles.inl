// The tiles of one policy; included by conv_tf32.cpp, conv_bf16.cpp, conv_bf16_words.cpp and conv_f32.cpp, which compile at the same time.
#include "detent/backends/cuda/conv.h"

namespace detent::DETENT_CUDA_NAMESPACE {
namespace {

// The tiles of a policy, and how many copies are on their way: as many as leave two blocks on a processor with 228 KB.
template <class Policy>
struct Tiles {
  using Large = TensorTile<Policy, 128, 128, 2>;
  using Tall = TensorTile<Policy, 128, 64, 4>;
  using Small = TensorTile<Policy, 64, 64, 2>;
  static constexpr int kLargeStages = sizeof(typename Policy::Stored) == 4 && Policy::kPack == 2 ? 2 : 3, kStages = 3;
};
template <>
struct Tiles<StrictF32> {
  using Large = FmaTile<128, 128>;
  using Tall = FmaTile<128, 64>;
  using Small = FmaTile<64, 64>;
  static constexpr int kLargeStages = 2, kStages = 2;
};

template <class Tile, int Stages, template <class, int, int> class LoadA, template <class, int, int> class LoadB, class A, class B, class Store>
void run_tile(const char* name, const TileCut& cut, const A& a, const B& b, const Store& store) {
  const TileGrid grid = tile_grid<Tile>(cut);
  tile_blocks(name, grid.count(), TileBody<Tile, LoadA, LoadB, Store, Stages>{grid, {a}, {b}, store});
}

template <class Policy, template <class, int, int> class LoadA, template <class, int, int> class LoadB, class A, class B, class Store>
void run_shape(const char* name, const TileCut& cut, const A& a, const B& b, const Store& store) {
  using T = Tiles<Policy>;
  switch (cut.shape) {
    case TileShape::m128n128: return run_tile<typename T::Large, T::kLargeStages, LoadA, LoadB>(name, cut, a, b, store);
    case TileShape::m128n64: return run_tile<typename T::Tall, T::kStages, LoadA, LoadB>(name, cut, a, b, store);
    case TileShape::m64n64: return run_tile<typename T::Small, T::kStages, LoadA, LoadB>(name, cut, a, b, store);
  }
}

}  // namespace
}  // namespace detent::DETENT_CUDA_NAMESPACE
