// Convolution tiles in TF32.
#define DETENT_POLICY Tf32
#include "detent/backends/cuda/conv_float.inl"
