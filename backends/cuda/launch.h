// How a CUDA kernel is written here. A kernel source is C++ that nvcc compiles for the GPU and the host compiler compiles again for the tests, where the same
// bodies run as plain loops (namespace detent::cuda_host): no kernel is without a test for want of a GPU. No file but module.cpp and the tensor-core and cuBLAS
// parts of conv_* and gemm* may use CUDA syntax or headers outside `#if defined(__CUDACC__)`.
//
//   elements("fill", n, Fill{y, value});      body(i) for i in [0,n), each element by itself: struct Fill { float* y; float value; DETENT_HD void operator()(int64_t i) const; };
//   blocks<Sum>(name, count, Sum{...});       one block of Sum::kThreads threads for each index, with Sum::Shared memory; the body is a sequence of phases,
//                                             and a barrier stands behind each:
//     struct Sum { static constexpr int kThreads = 256; struct Shared { float part[256]; }; ...
//       template <class B> DETENT_HD void operator()(B& block, Shared& shared) const {
//         PerThread<B, float> mine;                                 // lives across phases
//         block.threads([&](int t) { mine[t] = ...; shared.part[t] = ...; });
//         block.threads([&](int t) { if (t == 0) ... }); } };
//
// Everything runs on one stream per device, in order. Scratch<T> is memory for the length of a call: blocks of the device's caching allocator, which are reused
// in stream order. Determinism: cut work by size alone, no float atomics. To add a kernel: a function in kernels.h, its body in a source listed in meson.build,
// its line in table.cpp; the tests of tests/backends then run it on the host, and on a GPU where there is one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "detent/core/math/hd.h"

#if defined(__CUDACC__)
#define DETENT_CUDA_NAMESPACE cuda
#else
#include <functional>
#include <memory>
#if !defined(DETENT_CUDA_NAMESPACE)  // a test that calls the module's own functions says cuda
#define DETENT_CUDA_NAMESPACE cuda_host
#endif
#endif

// Loops over registers must have no index left at run time.
#define DETENT_PRAGMA(x) _Pragma(#x)
#if defined(__CUDACC__)
#define DETENT_UNROLL DETENT_PRAGMA(unroll)
#define DETENT_UNROLL_BY(n) DETENT_PRAGMA(unroll n)
#else
#define DETENT_UNROLL
#define DETENT_UNROLL_BY(n)
#endif

namespace detent::DETENT_CUDA_NAMESPACE {

/// Memory of the current device until the end of the scope (of the host in the host build); null for nothing. Throws Error when there is none.
void* allocate_scratch(size_t bytes);
void release_scratch(void* p, size_t bytes) noexcept;

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : bytes_(static_cast<size_t>(n > 0 ? n : 0) * sizeof(T)), p_(bytes_ > 0 ? static_cast<T*>(allocate_scratch(bytes_)) : nullptr) {}
  ~Scratch() {
    if (p_) release_scratch(p_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return p_; }

 private:
  size_t bytes_;
  T* p_;
};

/// A copy of host values where kernels can read it, until the end of the scope. The host values may change as soon as the constructor returns.
void upload_bytes(void* device, const void* host, size_t bytes);
template <class T>
class Uploaded {
 public:
  Uploaded(const T* host, int64_t n) : memory_(n) { upload_bytes(memory_.get(), host, static_cast<size_t>(n) * sizeof(T)); }
  const T* get() const { return memory_.get(); }

 private:
  Scratch<T> memory_;
};

/// Waits for the stream and copies to the host. For the few kernels that return a number.
void download_bytes(void* host, const void* device, size_t bytes);

/// Plain old memory on the device: kernels write it first.
template <class T, int Count>
struct alignas(sizeof(T) * Count) Some {
  T v[Count];
};
template <class T>
using Four = Some<T, 4>;

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/// *to += v, whatever the threads do at the same time. Integers only: their sum has no order.
template <class T>
DETENT_HD void add_integer(T* to, T v) {
  static_assert(std::is_integral_v<T>);
#if defined(__CUDA_ARCH__)
  atomicAdd(to, v);
#else
  *to += v;
#endif
}

/// v, which the compiler takes for a new value: nothing made of it before is kept in registers for what comes after. For paths that are seldom taken.
DETENT_HD int32_t made_anew(int32_t v) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(v));
#endif
  return v;
}

constexpr int kElementThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

/// Blocks of a launch over n independent elements; bodies loop when there are more.
constexpr int64_t element_blocks(int64_t n) {
  const int64_t blocks = (n + kElementThreads - 1) / kElementThreads;
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

/// The current device's stream. Declared as void* so that this header needs no CUDA header.
void* current_stream();
/// Looks for an error of the launch just made; it is reported by the next synchronous call of the backend.
void check_launch(const char* name) noexcept;

#if defined(__CUDACC__)

/// Value of one thread that lives across phases.
template <class Block, class T>
struct PerThread {
  T value;
  __device__ __forceinline__ T& operator[](int) { return value; }
};

struct DeviceBlock {
  int64_t index;
  template <class Fn>
  __device__ __forceinline__ void threads(Fn&& fn) const {
    fn(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
};

/// How many blocks must share a processor, for bodies that say so (kShare): a limit to registers.
template <class Body>
constexpr int blocks_that_share() {
  if constexpr (requires { Body::kShare; }) return Body::kShare;
  return 0;
}

template <class Body>
__global__ void __launch_bounds__(kElementThreads, blocks_that_share<Body>()) element_kernel(int64_t n, Body body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kElementThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x; i < n; i += step) {
    int64_t at = i;
#if defined(__CUDA_ARCH__)
    asm("" : "+l"(at));  // a second round is rare: no pointer of the body is kept in registers for it
#endif
    body(at);
  }
}

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, blocks_that_share<Body>()) block_kernel(int64_t count, Body body) {
  __shared__ typename Body::Shared shared;
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    DeviceBlock block{i};
    body(block, shared);
  }
}

template <class Body>
void elements(const char* name, int64_t n, const Body& body) {
  if (n <= 0) return;
  element_kernel<<<static_cast<unsigned>(element_blocks(n)), kElementThreads, 0, static_cast<cudaStream_t>(current_stream())>>>(n, body);
  check_launch(name);
}

template <class Body>
void blocks(const char* name, int64_t count, const Body& body) {
  if (count <= 0) return;
  const int64_t grid = count < kMaxBlocks ? count : kMaxBlocks;
  block_kernel<<<static_cast<unsigned>(grid), Body::kThreads, 0, static_cast<cudaStream_t>(current_stream())>>>(count, body);
  check_launch(name);
}

#else

template <class Block, class T>
struct PerThread {
  T value[Block::kThreads];
  T& operator[](int t) { return value[t]; }
};

template <int Threads>
struct HostBlock {
  static constexpr int kThreads = Threads;
  int64_t index;
  template <class Fn>
  void threads(Fn&& fn) const {
    for (int t = 0; t < Threads; ++t) fn(t);
  }
};

/// A launch of the host build: at once (host_run.cpp), or when its stream gets to it (tests/device/host_module.cpp).
void launch(const char* name, std::function<void()> work);

/// Stands for a kernel where the runtime is asked about one.
template <class Body>
void element_kernel(int64_t, Body) {}

template <class Body>
void elements(const char* name, int64_t n, const Body& body) {
  if (n <= 0) return;
  static_assert(std::is_trivially_copyable_v<Body>);
  launch(name, [n, body] {
    for (int64_t i = 0; i < n; ++i) body(i);
  });
}

// Memory is filled with a pattern before each block: nothing is inherited from the one before.
template <class Body>
void blocks(const char* name, int64_t count, const Body& body) {
  using Shared = typename Body::Shared;
  static_assert(sizeof(Shared) <= 48 * 1024, "a block has 48 KB of shared memory");
  static_assert(std::is_trivially_default_constructible_v<Shared> && std::is_trivially_copyable_v<Body>);
  if (count <= 0) return;
  launch(name, [count, body] {
    const auto shared = std::make_unique<Shared>();
    for (int64_t i = 0; i < count; ++i) {
      auto* bytes = reinterpret_cast<unsigned char*>(shared.get());
      for (size_t b = 0; b < sizeof(Shared); ++b) bytes[b] = 0xA5;
      HostBlock<Body::kThreads> block{i};
      body(block, *shared);
    }
  });
}

#endif

}  // namespace detent::DETENT_CUDA_NAMESPACE
