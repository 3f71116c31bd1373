// Convolution tiles in bf16.
#define DETENT_POLICY Bf16Words
#include "detent/backends/cuda/conv_float.inl"
