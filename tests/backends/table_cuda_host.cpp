// The CUDA kernels' bodies, run on the host.
#include "kernel_support.h"

namespace detent::cuda_host {
const Kernels& table();
}

const detent::Kernels& detent::test::kernels() { return cuda_host::table(); }
