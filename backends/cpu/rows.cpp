#include "detent/backends/cpu/rows.h"

#include "detent/backends/cpu/dense.h"
#include "detent/backends/cpu/isa.h"

namespace detent::cpu {

const RowKernels& row_kernels() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::avx512: return kRowsAvx512;
    case Isa::avx2: return kRowsAvx2;
    case Isa::scalar: break;
  }
#endif
  return kRowsScalar;
}

const DenseKernels& dense_kernels() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::avx512: return kDenseAvx512;
    case Isa::avx2: return kDenseAvx2;
    case Isa::scalar: break;
  }
#endif
  return kDenseScalar;
}

}  // namespace detent::cpu
