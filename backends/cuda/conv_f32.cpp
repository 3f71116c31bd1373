// Convolution tiles in strict f32.
#define DETENT_POLICY StrictF32
#include "detent/backends/cuda/conv_float.inl"
