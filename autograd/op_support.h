// What the differentiable ops share: argument checks, loop nests over shapes, and small tensor arithmetic for backward passes. Internal to autograd/.
#pragma once

#include <initializer_list>

#include "detent/autograd/ops.h"

namespace detent::ops {

struct Arg {
  const char* name;
  const Var& var;
};

/// Every argument is f32 and on one device, which is returned; the Error names the op and the arguments.
Device check_args(const char* op, std::initializer_list<Arg> args);
/// A tensor argument (labels, targets, running statistics) of this type and shape on this device.
void check_tensor(const char* op, const char* name, const Tensor& t, DType dtype, const Shape& shape, Device device);
void check_rank(const char* op, const char* name, const Shape& shape, int rank);
void check_shape(const char* op, const char* name, const Shape& got, const Shape& wanted);
/// An axis of a value of this rank, counted from the end when negative.
int check_axis(const char* op, int axis, int rank);

const Kernels& kernels(Device device);

/// Row-major strides in elements, by axis.
struct Strides {
  int64_t at[Shape::kMaxRank] = {};
};
Strides strides_of(const Shape& shape);
/// Strides that read `shape` as if it had the extents of `out` (NumPy broadcasting): 0 along repeated axes.
Strides broadcast_strides(const Shape& shape, const Shape& out);
/// The nest over `extents`, with neighbouring dimensions merged wherever every operand allows it.
LoopNest loop_over(const Shape& extents, const Strides& a, const Strides& b, const Strides& y);

/// y[...] = a[...] over the extents, from an element offset on each side.
void strided_copy(const Shape& extents, const Tensor& a, int64_t a_offset, const Strides& a_strides, Tensor& y, int64_t y_offset, const Strides& y_strides);
/// a (op) b with broadcasting.
Tensor binary(BinaryOp op, const Tensor& a, const Tensor& b);
Tensor scaled(const Tensor& x, float factor);
Tensor apply(const Pointwise& op, const Tensor& x);
/// dy * op'(x); `saved` stands for x and for y, whichever the function's derivative reads. Of dy's type.
/// Written to `dx` when given, which may be dy.
Tensor apply_backward(const Pointwise& op, const Tensor& saved, const Tensor& dy, Tensor dx = {});
/// x summed over the axes along which `shape` was broadcast to x's; x itself when nothing was.
Tensor reduce_to(const Tensor& x, const Shape& shape);
/// x repeated along the axes where its extent is 1 or missing.
Tensor broadcast_to(const Tensor& x, const Shape& shape);

/// Memory for a gradient of dy's shape: dy's own when nothing else reads it. Kernels that go element by element may write over what they read.
Tensor reuse(const Tensor& dy);

/// The value as kernels of its device may read it: in bf16 where it is kept so and they take that, else dense.
const Tensor& values_of(const Var& x);
/// The elements of a tensor by its type; null for the other type, and for an undefined tensor.
inline const float* floats_in(const Tensor& t) { return t.defined() && t.dtype() == DType::f32 ? t.data<float>() : nullptr; }
inline float* floats_in(Tensor& t) { return t.defined() && t.dtype() == DType::f32 ? t.data<float>() : nullptr; }
inline const uint16_t* words_in(const Tensor& t) { return t.defined() && t.dtype() == DType::bf16 ? t.data<uint16_t>() : nullptr; }
inline uint16_t* words_in(Tensor& t) { return t.defined() && t.dtype() == DType::bf16 ? t.data<uint16_t>() : nullptr; }

/// What an op keeps of an input it reads dense (also in bf16) or coded.
struct Kept {
  Tensor x;
  Grid grid;
  Tensor resident;
  ConvInput input() const;
};
Kept keep(const Var& x);
/// The same for kernels that take bf16.
Kept keep_values(const Var& x);
/// True when the value lies on one grid of bytes; codes_of gives them.
bool on_byte_grid(const Var& x);
Kept codes_of(const Var& x);

/// Grids in the memory of the device, where kernels read them: `resident` if defined, else a copy, so that the backward pass sees the grid of its forward.
Tensor placed(std::span<const Grid> grids, const Tensor& resident, Device device);

/// Gives the gradients of a learned range to the sink at inputs `at` and `at + 1`, as far as they are wanted. sums: scale sums, then clip sums, doubles in the
/// memory of i64 [2, channels].
void add_range_grads(const Tensor& sums, const Tensor& min, const Tensor& max, const GridSpec& spec, RangeGradient rule, GradSink& sink, int at);

/// A result on its way to a grid: buffers, the part of an Epilogue, and the backward pass to the value before quantization.
class ToGrid {
 public:
  /// `keep_residual`: a gradient will be wanted.
  ToGrid(const char* op, const Shape& shape, Device device, const GridTarget& target, bool keep_residual);
  /// The epilogue's clamp is set: the backward pass goes by it.
  void fill(Epilogue& epilogue);
  Var result() const;
  bool learned() const { return min_.defined(); }
  /// Gradient before quantization from `dy`; gives those of min and max to the sink at inputs `at` and `at + 1` when the range is learned.
  /// column_sum: [c] or null; the gradient's sum over all but the last axis, found in the same pass.
  Tensor backward(const Tensor& dy, GradSink& sink, int at, Tensor* column_sum = nullptr) const;

 private:
  Tensor codes_, residual_;
  DType gradient_ = DType::f32;
  Grid grid_;
  Tensor resident_;
  GridSpec spec_;
  RangeGradient rule_;
  Tensor min_, max_;  // undefined: the range is not learned
  float clamp_min_ = -std::numeric_limits<float>::infinity(), clamp_max_ = std::numeric_limits<float>::infinity();
};

}  // namespace detent::ops
