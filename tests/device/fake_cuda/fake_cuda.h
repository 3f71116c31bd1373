// What tests, the host build of the kernels and the machine for PTX ask of the CUDA runtime on the host (fake_cuda.cpp).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>

namespace fake_cuda {

/// A kernel: its work runs when the stream gets to it. An error is the thread's last error.
cudaError_t launch(cudaStream_t stream, std::function<void()> work);
cudaError_t set_error(cudaError_t e);
bool capturing();
/// Whether p lies in the device's memory, which the host cannot reach: touching it outside of a kernel or copy faults.
bool on_device(const void* p);
/// As an illegal access in a kernel: from now on whatever waits for the device fails.
void break_device();
/// Where the block of memory that holds an address begins and ends, of those that a kernel can reach; zeros when there is none.
struct Extent {
  uint64_t begin, end;
};
Extent block_of(uint64_t address);

}  // namespace fake_cuda
