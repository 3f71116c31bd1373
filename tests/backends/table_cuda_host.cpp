// The CUDA kernels' bodies, run on the host.
#include "conv_engines.h"
#include "detent/backends/cuda/kernels.h"

using namespace detent;

void test::finish_kernels() {}

const Kernels& test::kernels() { return cuda_host::table(); }

const std::vector<test::ConvEngine>& test::conv_engines() {
  static const std::vector<ConvEngine> engines = table_engines(cuda_host::set_precision, false);
  return engines;
}
