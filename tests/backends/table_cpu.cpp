#include "kernel_support.h"

const detent::Kernels& detent::test::kernels() { return backend(Device{}).kernels(); }
