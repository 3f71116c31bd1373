// Differentiable operations on Vars. Each checks devices, types and shapes (an Error names the op, the argument and both values), allocates its result,
// runs the kernel of the device and records its gradient when a tape wants it. Feature maps are [n,h,w,c], conv weights [k,r,s,c/groups], dense weights
// [out,in]; all values f32 (or kept in bf16: Conv2dSpec::result). A X_shape function gives the result's shape, or throws the op's error, before anything runs. Axes below 0 count from the end.
// Thread-safe on distinct Vars; a Var belongs to the thread of its tape.
#pragma once

#include <limits>
#include <span>
#include <vector>

#include "detent/autograd/tape.h"
#include "detent/autograd/var.h"
#include "detent/core/backend.h"

namespace detent {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Padding2d {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  friend bool operator==(const Padding2d&, const Padding2d&) = default;
};

// ---- convolution and dense ---------------------------------------------------------------------------------------------------------------------

/// Mean and biased variance over all but the last axis; [c] both.
struct BatchStatistics {
  Tensor mean, var;
};

struct Conv2dSpec {
  int64_t stride[2] = {1, 1};
  Padding2d padding = {};
  int64_t dilation[2] = {1, 1};
  int64_t groups = 1;
  /// Fused clamp of the result; ReLU is [0, inf). Its gradient is that of clip().
  float clamp_min = -kInfinity, clamp_max = kInfinity;
  /// [k] or undefined: the sums are multiplied by it before the bias is added (an evaluated batch norm). For inference; an Error when a gradient is wanted.
  Tensor channel_scale = {};
  /// Of the result's shape, or undefined: added behind the bias and before the clamp (a residual branch). For inference too.
  Tensor addend = {};
  /// Not null: filled with the statistics of the result, gathered while it is computed, for a batch norm that follows. Not with a clamp, a scale, an addend or a target.
  BatchStatistics* statistics = nullptr;
  /// bf16: the result is kept so where the device's kernels take it (Kernels::keeps_bf16); else it is f32. Batch norm, pointwise functions, max pools and sums of such
  /// values are kept so too, other ops make f32 of them; gradients have their values' type. Not with a grid, nor where x or w lies on one.
  DType result = DType::f32;
};
Shape conv2d_shape(const Shape& x, const Shape& w, const Conv2dSpec& spec);
/// bias is [k] or null. A coded x stays coded: the kernel reads its bytes, and they are all that is kept for the backward pass.
Var conv2d(const Var& x, const Var& w, const Var* bias = nullptr, const Conv2dSpec& spec = {});

Shape dense_shape(const Shape& x, const Shape& w);
/// y[n,out] = x[n,in] w[out,in]^T + bias[out]; bias may be null.
Var dense(const Var& x, const Var& w, const Var* bias = nullptr);

// ---- normalisation -----------------------------------------------------------------------------------------------------------------------------

struct BatchNormSpec {
  float eps = 1e-5f;
  float momentum = 0.1f;                                ///< share of the new batch: running = (1 - momentum) * running + momentum * batch
  float clamp_min = -kInfinity, clamp_max = kInfinity;  ///< fused clamp
  const BatchStatistics* statistics = nullptr;          ///< those of x when they are known already (Conv2dSpec::statistics); read when training
};
/// Over the last axis. Training: batch statistics, and the running ones are updated (with the unbiased variance, as PyTorch). Otherwise the running ones.
Var batch_norm(const Var& x, const Var& gamma, const Var& beta, Tensor& running_mean, Tensor& running_var, const BatchNormSpec& spec, bool training);

/// Over the last axis.
Var softmax(const Var& x);

// ---- pointwise ---------------------------------------------------------------------------------------------------------------------------------

/// Any function of core/math/pointwise.h.
Var pointwise(const Var& x, const Pointwise& op);
Var relu(const Var& x);
Var clip(const Var& x, float lo, float hi);
Var leaky_relu(const Var& x, float slope);
/// max(x,0) + slope * min(x,0), slope [c] along the last axis or [1]. No gradient to x at exactly 0.
Var prelu(const Var& x, const Var& slope);
Var sigmoid(const Var& x);
Var tanh(const Var& x);
/// clamp(alpha*x + beta, 0, 1); the defaults are PyTorch's and MobileNetV3's.
Var hard_sigmoid(const Var& x, float alpha = 1.0f / 6.0f, float beta = 0.5f);
Var hard_swish(const Var& x);
Var silu(const Var& x);
Var softplus(const Var& x);
/// factor * x + offset.
Var affine(const Var& x, float factor, float offset);

/// NumPy broadcasting of shapes.
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b);
Var add(const Var& a, const Var& b);
Var sub(const Var& a, const Var& b);
Var mul(const Var& a, const Var& b);
Var div(const Var& a, const Var& b);

// ---- moving elements ---------------------------------------------------------------------------------------------------------------------------

Shape concat_shape(std::span<const Shape> xs, int axis);
Var concat(std::span<const Var> xs, int axis);

/// A slice of every axis as ONNX Slice: negative indices count from the end, then are clamped to the axis; steps may be negative.
struct SliceSpec {
  std::vector<int64_t> starts, ends;
  std::vector<int64_t> steps;  ///< empty: all 1
};
Shape slice_shape(const Shape& x, const SliceSpec& spec);
Var slice(const Var& x, const SliceSpec& spec);
/// Consecutive pieces of the given sizes along an axis.
std::vector<Var> split(const Var& x, int axis, std::span<const int64_t> sizes);

Shape pad_shape(const Shape& x, std::span<const int64_t> before, std::span<const int64_t> after);
/// before and after: added elements for each axis.
Var pad(const Var& x, std::span<const int64_t> before, std::span<const int64_t> after, float value = 0.0f);

/// The value in another device's memory (itself when it is there); the gradient comes back.
Var to_device(const Var& x, Device device);

/// Shares the buffer; a coded value stays coded.
Var reshape(const Var& x, const Shape& shape);
/// The extents before `axis` multiplied, and those from it on: [n,h,w,c] -> [n, h*w*c].
Shape flatten_shape(const Shape& x, int axis = 1);
Var flatten(const Var& x, int axis = 1);

Shape transpose_shape(const Shape& x, std::span<const int> permutation);
/// Axis i of the result is axis permutation[i] of x.
Var transpose(const Var& x, std::span<const int> permutation);

// ---- space -------------------------------------------------------------------------------------------------------------------------------------

struct PoolSpec {
  int64_t kernel[2] = {1, 1};
  int64_t stride[2] = {1, 1};
  Padding2d padding = {};
  int64_t dilation[2] = {1, 1};
  bool ceil_mode = false;          ///< round the extent up, as long as the last window starts inside x or its leading padding
  bool count_include_pad = false;  ///< average pool only
};
Shape pool_shape(const char* op, const Shape& x, const PoolSpec& spec);
/// The first of equal maxima in row order gets the gradient; NaN wins.
Var max_pool(const Var& x, const PoolSpec& spec);
Var average_pool(const Var& x, const PoolSpec& spec);
/// [n,h,w,c] -> [n,1,1,c].
Shape global_average_pool_shape(const Shape& x);
Var global_average_pool(const Var& x);

struct ResizeSpec {
  int64_t height = 0, width = 0;
  ResizeMode mode = ResizeMode::nearest;
  ResizeCoordinates coordinates = ResizeCoordinates::half_pixel;
  bool nearest_floor = true;
};
Shape resize_shape(const Shape& x, const ResizeSpec& spec);
Var resize(const Var& x, const ResizeSpec& spec);

// ---- reductions and losses ---------------------------------------------------------------------------------------------------------------------

Shape reduce_shape(const char* op, const Shape& x, std::span<const int> axes, bool keep_dims);
Var reduce_sum(const Var& x, std::span<const int> axes, bool keep_dims = false);
Var reduce_mean(const Var& x, std::span<const int> axes, bool keep_dims = false);
/// Of all elements: [1].
Var sum(const Var& x);
Var mean(const Var& x);

/// Throws Error for a label outside [0, classes), naming its row; labels in a GPU's memory are not looked at.
void check_labels(const char* op, const Tensor& labels, int64_t classes);
/// Mean over the rows of -log softmax(logits)[label]: [1]. logits [n,c], labels i64 [n], on the logits' device or the host (only there a label that is no class
/// is an Error; on a GPU the loss becomes NaN). Smoothing s: target (1-s) * onehot + s/c.
Var softmax_cross_entropy(const Var& logits, const Tensor& labels, float label_smoothing = 0.0f);
/// Mean of (x - target)^2: [1].
Var mean_squared_error(const Var& x, const Tensor& target);
/// Mean of -t log sigmoid(x) - (1-t) log(1 - sigmoid(x)) on logits, without overflow: [1].
Var binary_cross_entropy(const Var& logits, const Tensor& target);
/// T^2 * mean over rows of KL(softmax(teacher/T) || softmax(student/T)), Hinton et al. 2015: [1]. The teacher gets no gradient.
Var distillation(const Var& student, const Tensor& teacher, float temperature);

// ---- quantization ------------------------------------------------------------------------------------------------------------------------------

/// A tensor of this shape seen by its channels along an axis.
ChannelView channel_view(const Shape& shape, int axis);

enum class EmitCodes : bool { no, yes };

/// x rounded to its grid (one Grid, or one for each channel of the view). Straight-through: dx = dy where x lies within the grid's range, bounds inclusive.
/// With EmitCodes::yes and one grid within 0..255 the result is coded: bytes only, decoded when an op asks for the dense value.
/// resident: Var::resident_grids of the result.
Var fake_quant_ste(const Var& x, std::span<const Grid> grids, const ChannelView& view, EmitCodes emit = EmitCodes::no, const Tensor& resident = {});

/// The same with a learned range: min and max are f32 [channels], from which the caller computed the grids by `spec`. dx = dy where the rounded value lies
/// on the grid; the gradients of min and max follow range_grads_from_sums.
Var fake_quant_learned(const Var& x, const Var& min, const Var& max, std::span<const Grid> grids, const ChannelView& view, const GridSpec& spec,
                       RangeGradient rule = RangeGradient::aimet, EmitCodes emit = EmitCodes::no, const Tensor& resident = {});

/// bias [n] as an integer target holds it: int32 on the grid s_x * s_w of what it is added to (x on one grid, w on one or on n), back in float; as it is where x or
/// w lies on no grid. The gradient passes straight through.
Var round_bias(const Var& bias, const Var& x, const Var& w);

// ---- fused with quantization -------------------------------------------------------------------------------------------------------------------
// What a Plan runs in place of several ops: one byte kept per element for the backward pass instead of two floats. Range gradients see the rounding residual in
// steps of 1/252. Multiplied as floats, the values are those of the several ops bit for bit.

/// How the values of byte grids are multiplied on their way to another. integers: as the integer target does it, sums exact in int32, the bias on their grid, one
/// multiplication, rounded (ONNX Runtime's QLinearConv; core/math/integer_math.h): for weights with zero point 0 and codes within -128..127, unless a sum might leave
/// int32. floats: as values, sums in f32; a GPU multiplies integers in any case.
enum class Products : uint8_t { integers, floats };

/// The per-tensor grid a result is put on, within 0..255. With min and max (each [1]) the range is learned, without them the mask is straight-through.
struct GridTarget {
  Grid grid;
  GridSpec spec;
  RangeGradient rule = RangeGradient::aimet;
  Var min, max;
  Products products = Products::integers;
  Tensor resident = {};  ///< Var::resident_grids of the result
};
/// quantize(clamp(conv2d(x, w) + bias)): a coded Var.
Var conv2d_quantized(const Var& x, const Var& w, const Var* bias, const Conv2dSpec& spec, const GridTarget& target);
/// quantize(clamp(dense(x, w) + bias)).
Var dense_quantized(const Var& x, const Var& w, const Var* bias, const GridTarget& target, float lo = -kInfinity, float hi = kInfinity);
/// global_average_pool(x) of a value on a byte grid: the exact sum of its codes times one factor; in float.
Var global_average_pool_of_codes(const Var& x);
/// quantize(global_average_pool(x)) from the exact sums of codes: x must lie on a byte grid; a coded Var.
Var global_average_pool_quantized(const Var& x, const GridTarget& target);
/// clamp(a + b) of equal shapes; dense or coded.
Var add_clamped(const Var& a, const Var& b, float lo, float hi);
/// quantize(clamp(a + b)): a coded Var.
Var add_quantized(const Var& a, const Var& b, float lo, float hi, const GridTarget& target);

}  // namespace detent
