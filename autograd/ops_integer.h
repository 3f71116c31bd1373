// Operations of integer execution: codes in, codes out, with ONNX Runtime's arithmetic (core/math/integer_math.h). For inference: nothing is recorded, and
// a wanted gradient is an Error. Only devices with integer kernels have them (today the cpu). Codes are bytes: a grid with codes below 0 is shifted to
// begin at 0 (byte_grid), which changes no value. Errors name the op and the argument. Thread-safe on distinct Vars.
#pragma once

#include <optional>
#include <span>

#include "detent/autograd/ops.h"
#include "detent/core/math/integer_math.h"

namespace detent {

/// At most 256 codes.
bool fits_byte(const Grid& grid);
/// The same grid with its codes moved to begin at 0 when it has some below; throws Error when it does not fit a byte.
Grid byte_grid(const Grid& grid);
/// x as codes of byte_grid(grid): as it is when it has them already, else rounded.
Var to_codes(const Var& x, const Grid& grid);

/// Weights, bias and scales of a convolution or dense layer, prepared for the device's kernel.
struct IntegerFilter {
  ConvGeometry geometry;  ///< n, h, w, oh and ow are the call's
  Conv2dSpec spec;
  Shape w_shape;
  Grid input, output;     ///< byte grids
  CodeRange range;        ///< what the fused clamp leaves of the output's codes
  Tensor packed, offset, multiplier;
};

/// What an integer layer is made from: weights on grids (one, or one per output channel) with zero point 0 and codes within -128..127.
struct FilterSource {
  Tensor w;                       ///< f32 values on their grids: [k,r,s,c/groups], or [out,in]
  std::span<const Grid> w_grids;
  Tensor bias;                    ///< f32 [k] or undefined
  Conv2dSpec spec;                ///< stride, padding, dilation, groups and clamp
  Grid input, output;
};
/// Empty when the layer can run on integers, else why not: weight codes that do not fit, or sums that could leave int32.
std::string refusal(const FilterSource& source);
/// Throws Error with the refusal when there is one.
IntegerFilter prepare_filter(const FilterSource& source);

/// x [n,h,w,c], or [n,in] for a dense layer, on the filter's input grid.
Var conv2d_integer(const Var& x, const IntegerFilter& filter);
/// clamp(a + b) on the grid; a and b coded, of one shape.
Var add_integer(const Var& a, const Var& b, float lo, float hi, const Grid& output);
/// The codes of x through a table of 256 entries; the result lies on byte_grid(output).
Var regrid_codes(const Var& x, std::span<const uint8_t> table, const Grid& output);

}  // namespace detent
