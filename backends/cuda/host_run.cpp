// The host build of the kernels: what launch.h needs. For tests only.
#include <cstdlib>
#include <cstring>
#include <new>

#include "detent/backends/cuda/kernels.h"

namespace detent::cuda_host {

void* allocate_scratch(size_t bytes) {
  void* p = std::malloc(bytes);
  if (!p) throw std::bad_alloc();
  std::memset(p, 0xA5, bytes);  // nobody relies on what it held
  return p;
}
void release_scratch(void* p, size_t) noexcept { std::free(p); }
void launch(const char*, std::function<void()> work) { work(); }
void upload_bytes(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
void download_bytes(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }

}  // namespace detent::cuda_host
