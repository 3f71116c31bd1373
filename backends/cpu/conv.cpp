#include "detent/backends/cpu/kernels.h"

namespace detent::cpu {

void conv2d(const Conv2dArgs& a) { scalar::conv2d(a); }
void conv2d_backward_data(const Conv2dBackwardDataArgs& a) { scalar::conv2d_backward_data(a); }
void conv2d_backward_filter(const Conv2dBackwardFilterArgs& a) { scalar::conv2d_backward_filter(a); }

}  // namespace detent::cpu
