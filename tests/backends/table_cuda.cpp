// The case tables on a GPU. The cases hold their data in std::vector, so the program's heap is page-locked memory, which a GPU reaches at the same address; each
// kernel is waited for. Without a GPU the program says so and exits with 77.
#define DOCTEST_CONFIG_IMPLEMENT
#include "conv_engines.h"
#include "kernel_support.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <type_traits>

using namespace detent;

namespace {

constexpr Device kGpu{DeviceType::cuda, 0};
constexpr size_t kHeap = size_t{3} << 30, kAlign = 256;

// Blocks by size; nothing is merged: cases allocate the same sizes over and over.
struct Heap {
  std::mutex mutex;
  char* base = nullptr;
  size_t used = 0;
  void* free_lists[64] = {};

  bool owns(const void* p) const { return base && p >= base && p < base + kHeap; }

  // The size is kept in front of the block; sizes are powers of two.
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex);
    int level = 8;
    while ((size_t{1} << level) < bytes + kAlign) ++level;
    if (void* p = free_lists[level]) {
      std::memcpy(&free_lists[level], p, sizeof(void*));
      return p;
    }
    const size_t size = size_t{1} << level;
    if (used + size > kHeap) return nullptr;
    char* block = base + used;
    used += size;
    std::memcpy(block, &level, sizeof level);
    return block + kAlign;
  }

  void give(void* p) {
    const std::lock_guard lock(mutex);
    int level;
    std::memcpy(&level, static_cast<char*>(p) - kAlign, sizeof level);
    std::memcpy(p, &free_lists[level], sizeof(void*));
    free_lists[level] = p;
  }
};
Heap g_heap;

void* take(size_t bytes) {
  void* p = g_heap.base ? g_heap.take(bytes) : std::malloc(bytes ? bytes : 1);
  if (!p) throw std::bad_alloc();
  return p;
}

void give(void* p) noexcept { g_heap.owns(p) ? g_heap.give(p) : std::free(p); }

template <auto Member>
struct Waited;
template <class... A, void (*Kernels::*Member)(A...)>
struct Waited<Member> {
  static void call(A... args) {
    Backend& b = backend(kGpu);
    (b.kernels().*Member)(args...);
    b.synchronize();
  }
};

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void operator delete(void* p) noexcept { give(p); }
void operator delete[](void* p) noexcept { give(p); }
void operator delete(void* p, size_t) noexcept { give(p); }
void operator delete[](void* p, size_t) noexcept { give(p); }

void test::finish_kernels() { backend(kGpu).synchronize(); }

const Kernels& test::kernels() {
  static const Kernels table = [] {
    Kernels t = backend(kGpu).kernels();
#define DETENT_WAIT(name) \
  if (t.name) t.name = Waited<&Kernels::name>::call;
    DETENT_WAIT(fill) DETENT_WAIT(accumulate) DETENT_WAIT(accumulate16) DETENT_WAIT(narrow) DETENT_WAIT(widen) DETENT_WAIT(scale) DETENT_WAIT(count_nonfinite) DETENT_WAIT(gather) DETENT_WAIT(conv2d) DETENT_WAIT(conv2d_backward_data)
    DETENT_WAIT(conv2d_backward_filter) DETENT_WAIT(gemm) DETENT_WAIT(pointwise) DETENT_WAIT(pointwise_backward) DETENT_WAIT(binary) DETENT_WAIT(strided_copy)
    DETENT_WAIT(reduce_sum) DETENT_WAIT(max_pool) DETENT_WAIT(max_pool_backward) DETENT_WAIT(average_pool) DETENT_WAIT(average_pool_backward) DETENT_WAIT(average_codes)
    DETENT_WAIT(batch_norm_stats) DETENT_WAIT(batch_norm) DETENT_WAIT(batch_norm_backward) DETENT_WAIT(fake_quant) DETENT_WAIT(dequantize)
    DETENT_WAIT(fake_quant_backward) DETENT_WAIT(add) DETENT_WAIT(quantized_backward) DETENT_WAIT(range_grads) DETENT_WAIT(round_bias) DETENT_WAIT(min_max) DETENT_WAIT(histogram_acc)
    DETENT_WAIT(resize) DETENT_WAIT(resize_backward) DETENT_WAIT(softmax) DETENT_WAIT(softmax_backward) DETENT_WAIT(cross_entropy) DETENT_WAIT(sgd_step)
    DETENT_WAIT(adam_step)
#undef DETENT_WAIT
    return t;
  }();
  return table;
}

const std::vector<test::ConvEngine>& test::conv_engines() {
  // Tensor cores may cut a factor's last bits off instead of rounding.
  static const std::vector<ConvEngine> engines = table_engines([](Precision p) { backend(kGpu).set_precision(p); }, true);
  return engines;
}

int main(int argc, char** argv) {
  std::string why;
  if (!device_available(kGpu, &why)) {
    std::printf("SKIPPED: no GPU: %s\n", why.c_str());
    return 77;
  }
  std::printf("on %s\n", backend(kGpu).description());
  backend(kGpu).set_precision(Precision::f32);
  g_heap.base = static_cast<char*>(backend(kGpu).allocate_pinned(kHeap));
  return doctest::Context(argc, argv).run();
}
