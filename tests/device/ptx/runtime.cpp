// What nvcc's host code calls to launch kernels, for a module whose kernels run from their PTX on the machine of machine.h: libdetent_cuda.so's own objects, linked to the
// CUDA runtime of ../fake_cuda instead of NVIDIA's. The PTX is the same compiler's for the same sources and options. A Fault is printed and breaks the device.
// DETENT_PTX_PROFILE names a file that gets tables of what the kernels did, and of the source lines that their instructions come from.
#include "../fake_cuda/fake_cuda.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>

#include "machine.h"

namespace {

using namespace ptx;

constexpr size_t kSharedByDefault = 48 << 10, kSharedAtMost = 227 << 10, kParametersAtMost = 4096;

// The kernels of unnamed namespaces carry a number made of the file's name and the compiler's options: not part of who they are.
std::string plain_name(std::string name) {
  for (size_t at = 0; (at = name.find("_GLOBAL__N__", at)) != std::string::npos;) {
    at += 12;
    for (size_t i = 0; i < 8 && at + i < name.size(); ++i) name[at + i] = 'x';
  }
  return name;
}

struct HostKernel {
  const Kernel* kernel = nullptr;
  size_t dynamic_shared_at_most = kSharedByDefault;
};

std::map<const void*, std::string>& names() {
  static auto& m = *new std::map<const void*, std::string>;
  return m;
}

const std::map<std::string, Kernel>& kernels() {
  static const auto& all = *[] {
    auto* const m = new std::map<std::string, Kernel>;
    std::istringstream files(DETENT_PTX_FILES);
    for (std::string file; std::getline(files, file, ':');) {
      std::ifstream in(file);
      const std::string text(std::istreambuf_iterator<char>(in), {});
      if (text.empty()) {
        std::fprintf(stderr, "%s: no PTX\n", file.c_str());
        std::exit(1);
      }
      try {
        for (auto& [name, kernel] : read_program(text)) {
          const std::string plain = plain_name(name);
          kernel.name = plain;
          m->emplace(plain, std::move(kernel));
        }
      } catch (const Fault& f) {
        std::fprintf(stderr, "%s: %s\n", file.c_str(), f.what());
        std::exit(1);
      }
    }
    return m;
  }();
  return all;
}

HostKernel* find_kernel(const void* host) {
  static auto& found = *new std::map<const void*, HostKernel>;
  HostKernel& k = found[host];
  if (!k.kernel) {
    const auto name = names().find(host);
    const auto kernel = name == names().end() ? kernels().end() : kernels().find(plain_name(name->second));
    if (kernel == kernels().end()) return nullptr;
    k.kernel = &kernel->second;
  }
  return &k;
}

void write_profile();

Machine& machine() {
  static auto& m = *[] {
    auto* const made = new Machine([](uint64_t address) {
      const fake_cuda::Extent e = fake_cuda::block_of(address);
      return Range{e.begin, e.end};
    });
    if (std::getenv("DETENT_PTX_PROFILE")) {
      made->profile = true;
      std::atexit(write_profile);
    }
    return made;
  }();
  return m;
}

void write_profile() {
  std::ofstream out(std::getenv("DETENT_PTX_PROFILE"));
  out << "kernel\tlaunches\tblocks\tinteger\tfloat\twide\tmatrix\tshared\tglobal\tother\tshared_passes\tleast\tsectors\tbytes\n";
  for (const auto& [name, c] : machine().all_counts()) {
    out << name << '\t' << c.launches << '\t' << c.blocks;
    for (const int64_t n : c.instructions) out << '\t' << n;
    out << '\t' << c.shared_passes << '\t' << c.shared_least << '\t' << c.sectors << '\t' << c.sector_bytes << '\n';
  }
  out << "\nkernel\tline\tinstructions\n";
  for (const auto& [name, c] : machine().all_counts()) {
    const Kernel& k = kernels().at(name);
    std::map<std::string, int64_t> lines;
    for (size_t n = 0; n < c.times.size(); ++n) lines[k.code[n].source < 0 ? "?" : k.sources[static_cast<size_t>(k.code[n].source)]] += c.times[n];
    for (const auto& [line, times] : lines) out << name << '\t' << line << '\t' << times << '\n';
  }
}

cudaError_t launch(const void* host, dim3 grid, dim3 threads, void** arguments, size_t shared, cudaStream_t stream) {
  const HostKernel* const k = find_kernel(host);
  if (!k) return fake_cuda::set_error(cudaErrorInvalidDeviceFunction);
  const bool flat = grid.y == 1 && grid.z == 1 && threads.y == 1 && threads.z == 1;
  if (!flat || grid.x == 0 || grid.x > 0x7FFFFFFFu || threads.x == 0 || threads.x > k->kernel->threads_at_most) return fake_cuda::set_error(cudaErrorInvalidConfiguration);
  if (shared > k->dynamic_shared_at_most || shared + k->kernel->shared_bytes > kSharedAtMost || k->kernel->parameter_bytes > kParametersAtMost) {
    return fake_cuda::set_error(cudaErrorInvalidValue);
  }
  Launch l = {grid.x, threads.x, shared, std::vector<std::byte>(k->kernel->parameter_bytes)};
  for (size_t n = 0; n < k->kernel->parameters.size(); ++n) {
    const Parameter& p = k->kernel->parameters[n];
    std::copy_n(static_cast<const std::byte*>(arguments[n]), p.size, l.parameters.begin() + static_cast<std::ptrdiff_t>(p.offset));
  }
  return fake_cuda::launch(stream, [kernel = k->kernel, l = std::move(l)] {
    try {
      machine().run(*kernel, l);
    } catch (const Fault& f) {
      std::fprintf(stderr, "device fault: %s\n", f.what());
      fake_cuda::break_device();
    }
  });
}

struct Configuration {
  dim3 grid, threads;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> t_configurations;

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* device_name, int, uint3*, uint3*, dim3*, dim3*, int*) { names()[host] = device_name; }

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 threads, size_t shared, CUstream_st* stream) {
  t_configurations.push_back({grid, threads, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* threads, size_t* shared, void* stream) {
  if (t_configurations.empty()) return cudaErrorInvalidConfiguration;
  const Configuration c = t_configurations.back();
  t_configurations.pop_back();
  *grid = c.grid;
  *threads = c.threads;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 threads, void** arguments, size_t shared, cudaStream_t stream) {
  return launch(kernel, grid, threads, arguments, shared, stream);
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 threads, void** arguments, size_t shared, cudaStream_t stream) {
  return launch(host, grid, threads, arguments, shared, stream);
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  HostKernel* const k = find_kernel(host);
  if (!k) return fake_cuda::set_error(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || static_cast<size_t>(value) + k->kernel->shared_bytes > kSharedAtMost) {
    return fake_cuda::set_error(cudaErrorInvalidValue);
  }
  k->dynamic_shared_at_most = std::max(k->dynamic_shared_at_most, static_cast<size_t>(value));
  return cudaSuccess;
}

}  // extern "C"
