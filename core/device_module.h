// What a shared module with another device's kernels hands to the library: one table of C functions, found by dlopen. No exception but that of
// ModuleHost::allocate crosses it, and no symbol of the library is needed by the module: one module serves static and shared builds. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "detent/core/backend.h"

namespace detent {

constexpr uint32_t kDeviceModuleVersion = 5;

/// What the module asks of the library: memory for the length of a kernel, from the device's caching allocator.
struct ModuleHost {
  void* context;
  void* (*allocate)(void* context, size_t bytes);  // throws Error
  void (*release)(void* context, void* p, size_t bytes);
};

/// Functions returning const char* give null, or what went wrong; the text lives until the calling thread's next call. A kernel that failed is reported by
/// the next copy, zero or synchronize.
struct DeviceModule {
  uint32_t version;        // kDeviceModuleVersion
  uint32_t kernels_bytes;  // sizeof(Kernels)
  /// The number of devices, when there is a driver and it is new enough.
  const char* (*count)(int* devices);
  /// Makes a device ready; once before anything else is done with it.
  const char* (*open)(int device, const ModuleHost& host);
  const char* (*describe)(int device);
  /// Kernels that the calling thread launches from now on run on this device.
  void (*make_current)(int device);
  void* (*acquire)(int device, size_t bytes);  // null: no memory
  void (*release)(int device, void* p);
  void (*memory)(int device, size_t* free, size_t* total);
  /// Page-locked memory of the host, from which copies need not wait; null: none.
  void* (*acquire_pinned)(size_t bytes);
  void (*release_pinned)(void* p);
  /// In the order of the device's stream. To the host: returns when the bytes are there. From the host: returns when the source may change.
  const char* (*to_device)(int device, void* dst, const void* src, size_t bytes);
  const char* (*to_host)(int device, void* dst, const void* src, size_t bytes);
  const char* (*within)(int device, void* dst, const void* src, size_t bytes);
  const char* (*zero)(int device, void* dst, size_t bytes);
  const char* (*synchronize)(int device);
  /// A copy from page-locked memory beside the stream's work: it starts after what the stream has now, and what the stream gets after finish waits for it.
  const char* (*start_upload)(int device, void* dst, const void* pinned, size_t bytes);
  const char* (*finish_upload)(int device);
  /// Returns when every started upload has left its source.
  void (*wait_for_upload)(int device);
  /// What the calling thread launches between the two is recorded, not run.
  const char* (*begin_capture)(int device);
  const char* (*end_capture)(int device, void** graph);  // *graph is null after an error
  const char* (*launch_graph)(int device, void* graph);
  void (*destroy_graph)(void* graph);
  const Kernels* kernels;
  /// Of all devices of the module; null: it computes in f32.
  void (*set_precision)(Precision);
  Precision (*precision)();
};

using DeviceModuleEntry = const DeviceModule* (*)();
constexpr const char* kCudaModuleEntry = "detent_cuda_module";

}  // namespace detent
