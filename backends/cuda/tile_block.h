// Blocks of the matrix tiles: as launch.h's, with shared memory beyond 48 KB, barriers where the body asks for them, copies that arrive later (cp.async), and the
// matrix step of a warp. On the host the threads of a phase run one after the other, in an order that alternates, copies land when they are waited for (until
// then their destination holds NaNs), and a matrix step is emulated: indexing, layouts and waiting are exercised as they are on the device.
#pragma once

#include "detent/backends/cuda/mma.h"

#if !defined(__CUDACC__)
#include <vector>
#endif

namespace detent::DETENT_CUDA_NAMESPACE {

constexpr int kTileThreads = 256;

/// Fragments of a thread: A for MT strips of 16 rows, B for NT strips of 8 columns, and the sums.
template <class Mma, int MT, int NT>
struct Fragments {
  typename Mma::Acc d[MT][NT][4];
  uint32_t a[MT][4];
  uint32_t b[NT][2];
};

#if defined(__CUDACC__)

struct DeviceTileBlock {
  int32_t index;

  template <class Fn>
  __device__ __forceinline__ void each(Fn&& fn) const {
    fn(static_cast<int>(threadIdx.x));
  }
  __device__ __forceinline__ void sync() const { __syncthreads(); }

  /// 16 or 4 bytes from global to shared memory, zeros unless ok; src must be an address of the tensor in any case.
  template <int Bytes>
  __device__ __forceinline__ void copy(void* dst, const void* src, bool ok) const {
#if defined(__CUDA_ARCH__)
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(dst));
    const int bytes = ok ? Bytes : 0;
    if constexpr (Bytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(src), "r"(bytes) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(src), "n"(Bytes), "r"(bytes) : "memory");
    }
#endif
  }
  __device__ __forceinline__ void commit() const {
#if defined(__CUDA_ARCH__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  /// Waits until at most `Left` of the committed groups are on their way.
  template <int Left>
  __device__ __forceinline__ void wait() const {
#if defined(__CUDA_ARCH__)
    asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
  }

  template <class Mma, int MT, int NT>
  __device__ __forceinline__ void multiply(PerThread<DeviceTileBlock, Fragments<Mma, MT, NT>>& f) const {
    auto& v = f[0];
    DETENT_UNROLL
    for (int i = 0; i < MT; ++i) {
      DETENT_UNROLL
      for (int j = 0; j < NT; ++j) Mma::mma(v.d[i][j], v.a[i], v.b[j]);
    }
  }
};

template <class Body>
__global__ void __launch_bounds__(kTileThreads, 2) tile_kernel(Body body) {
  extern __shared__ __align__(16) unsigned char tile_memory[];
  DeviceTileBlock block{static_cast<int32_t>(blockIdx.x)};
  body(block, *reinterpret_cast<typename Body::Shared*>(tile_memory));
}

template <class Body>
void tile_blocks(const char* name, int64_t count, const Body& body) {
  if (count <= 0) return;
  constexpr int bytes = static_cast<int>(sizeof(typename Body::Shared));
  cudaFuncSetAttribute(tile_kernel<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  tile_kernel<Body><<<static_cast<unsigned>(count), kTileThreads, bytes, static_cast<cudaStream_t>(current_stream())>>>(body);
  check_launch(name);
}

#else

class HostTileBlock {
 public:
  static constexpr int kThreads = kTileThreads;
  int32_t index;

  explicit HostTileBlock(int32_t i) : index(i) {}

  template <class Fn>
  void each(Fn&& fn) {
    backwards_ = !backwards_;
    for (int t = 0; t < kThreads; ++t) fn(backwards_ ? kThreads - 1 - t : t);
  }
  void sync() const {}

  template <int Bytes>
  void copy(void* dst, const void* src, bool ok) {
    std::memset(dst, 0xFF, Bytes);
    pending_.push_back({dst, ok ? src : nullptr, Bytes});
  }
  void commit() { groups_.push_back(pending_.size()); }
  template <int Left>
  void wait() {
    if (groups_.size() <= Left) return;
    const size_t last = groups_.size() - Left, count = groups_[last - 1];
    for (size_t i = 0; i < count; ++i) {
      const Copy& c = pending_[i];
      c.src ? std::memcpy(c.dst, c.src, c.bytes) : std::memset(c.dst, 0, c.bytes);
    }
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
    groups_.erase(groups_.begin(), groups_.begin() + static_cast<std::ptrdiff_t>(last));
    for (size_t& g : groups_) g -= count;
  }

  template <class Mma, int MT, int NT>
  void multiply(PerThread<HostTileBlock, Fragments<Mma, MT, NT>>& f) const {
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      for (int i = 0; i < MT; ++i) {
        for (int j = 0; j < NT; ++j) {
          typename Mma::Acc* d[32];
          const uint32_t *a[32], *b[32];
          for (int lane = 0; lane < 32; ++lane) {
            Fragments<Mma, MT, NT>& v = f[warp * 32 + lane];
            d[lane] = v.d[i][j];
            a[lane] = v.a[i];
            b[lane] = v.b[j];
          }
          emulate_mma<Mma>(d, a, b);
        }
      }
    }
  }

 private:
  struct Copy {
    void* dst;
    const void* src;
    size_t bytes;
  };
  std::vector<Copy> pending_;
  std::vector<size_t> groups_;  // how many of pending_ each committed group ends at
  bool backwards_ = true;
};

template <class Body>
void tile_blocks(const char* name, int64_t count, const Body& body) {
  using Shared = typename Body::Shared;
  static_assert(sizeof(Shared) <= 163 * 1024, "the smallest limit of the devices there is code for (sm_80)");
  static_assert(std::is_trivially_default_constructible_v<Shared> && std::is_trivially_copyable_v<Body>);
  if (count <= 0) return;
  launch(name, [count, body] {
    const auto shared = std::make_unique<Shared>();
    for (int64_t i = 0; i < count; ++i) {
      std::memset(static_cast<void*>(shared.get()), 0xFF, sizeof(Shared));
      HostTileBlock block(static_cast<int32_t>(i));
      body(block, *shared);
    }
  });
}

#endif

}  // namespace detent::DETENT_CUDA_NAMESPACE
