// The kernel table: one plain struct of function pointers per backend. Arguments are PODs over device memory.
// The op layer infers shapes, validates and allocates; kernels only fill, check nothing and throw nothing (a name ending in _acc accumulates).
// Pointers are to memory of the device but for those said to be the host's, which may change as soon as the kernel returns.
// A backend that keeps_bf16 takes bfloat16 in place of some values: a pointer whose name ends in 16 then stands for the one without, which is null. All values of a call
// that is not a convolution are of one type.
// A Grid is given by value. Beside it stands `resident`: in work that is recorded and replayed with other grids, where the device finds the present one; else null.
// Images are [n,h,w,c]; conv weights [k,r,s,c/groups]; matrices are row-major. Kernels are called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "detent/core/allocator.h"
#include "detent/core/device.h"
#include "detent/core/math/conv_geometry.h"
#include "detent/core/math/pointwise.h"
#include "detent/core/math/quant_math.h"
#include "detent/core/math/resize_math.h"

namespace detent {

/// What happens to an accumulator before it is stored: * scale, + bias, + addend, clamp (ReLU is [0,inf)), quantize. Unused parts are null or infinite.
struct Epilogue {
  const float* scale = nullptr;  // [k] or null: the accumulator is multiplied first (an evaluated batch norm), fused with the bias: fma(acc, scale, bias)
  const float* bias = nullptr;   // [k] or null
  const float* addend = nullptr; // another tensor of the result's shape, or null
  float clamp_min = -std::numeric_limits<float>::infinity();
  float clamp_max = std::numeric_limits<float>::infinity();  // NaN passes through the clamp
  bool quantize = false;
  Grid grid;                    // per tensor
  const Grid* resident = nullptr;
  float* y = nullptr;           // dense result; after quantization dequantize(q). May be null when codes are asked for
  uint16_t* y16 = nullptr;      // instead of y, without quantization
  uint8_t* codes = nullptr;     // q as a byte (qmin >= 0, qmax <= 255), or null
  int8_t* residual = nullptr;   // for the backward pass, or null: residual_byte of quant_math.h
  bool mask_on_value = false;   // residual_byte's on_value
};

/// The input of a convolution: dense f32 or bf16, or codes of a grid; codes read as scale * (q - zero_point).
struct ConvInput {
  const float* x = nullptr;
  const uint8_t* codes = nullptr;
  Grid grid;
  const Grid* resident = nullptr;
  const uint16_t* x16 = nullptr;
};

/// The grids that a convolution's weights lie on, when they do: w = dequantize(q), zero point 0, -magnitude <= q < magnitude. A backend may then multiply the integers q
/// and apply the scales to the sum; magnitude 0: nothing is known.
struct WeightGrid {
  const Grid* grids = nullptr;  // in the memory of the kernels' device: [k], or one
  bool per_channel = false;
  int32_t magnitude = 0;
};

struct Conv2dArgs {
  ConvGeometry geometry;
  ConvInput input;
  const float* w = nullptr;
  Epilogue epilogue;
  WeightGrid w_grid = {};
  // [k] both, or null: mean and biased variance of the result over its pixels, as BatchNormStatsArgs has them. For an epilogue of no more than a bias.
  float* mean = nullptr;
  float* var = nullptr;
};

struct Conv2dBackwardDataArgs {
  ConvGeometry geometry;
  const float* dy = nullptr;
  const float* w = nullptr;
  float* dx = nullptr;
  WeightGrid w_grid = {};
  const uint16_t* dy16 = nullptr;
  uint16_t* dx16 = nullptr;
};

struct Conv2dBackwardFilterArgs {
  ConvGeometry geometry;
  ConvInput input;
  const float* dy = nullptr;
  float* dw = nullptr;
  float* dbias = nullptr;  // [k] or null
  const uint16_t* dy16 = nullptr;
};

/// y[m,n] = alpha * op(a) * op(b) + beta * y; op(a) is [m,k], op(b) is [k,n].
struct GemmArgs {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  float alpha = 1.0f, beta = 0.0f;
  const float* a = nullptr;
  const float* b = nullptr;
  float* y = nullptr;
};

/// y = op(x); backward dx = dy * op'(x). The functors are in core/math/pointwise.h.
struct PointwiseArgs {
  Pointwise op;
  const float* x = nullptr;
  const float* y = nullptr;   // backward: the forward's result
  const float* dy = nullptr;  // backward only
  float* out = nullptr;
  int64_t n = 0;
  const uint16_t *x16 = nullptr, *dy16 = nullptr;  // backward: x16 stands for x and y
  uint16_t* out16 = nullptr;
};

enum class BinaryOp : uint8_t { add, sub, mul, div };

constexpr int kMaxLoopRank = 6;

/// A loop nest with element strides for each operand; stride 0 broadcasts. Innermost dimension last.
struct LoopNest {
  int rank = 0;
  int64_t extent[kMaxLoopRank] = {};
  int64_t a_stride[kMaxLoopRank] = {};
  int64_t b_stride[kMaxLoopRank] = {};
  int64_t y_stride[kMaxLoopRank] = {};
};

struct BinaryArgs {
  BinaryOp op = BinaryOp::add;
  LoopNest loop;
  const float* a = nullptr;
  const float* b = nullptr;
  float* y = nullptr;
};

/// y = copy of a over a loop nest with arbitrary (also negative) strides: slice, pad, concat, transpose. element_bytes is 1, 2, 4 or 8.
struct StridedCopyArgs {
  LoopNest loop;  // a_stride and y_stride are used
  int64_t element_bytes = 4;
  const void* a = nullptr;
  void* y = nullptr;
};

/// y[...] = sum of a over the dimensions whose y_stride is 0 (y has as many elements as the others span). Fixed order.
struct ReduceSumArgs {
  LoopNest loop;  // a_stride and y_stride are used
  const float* a = nullptr;
  float* y = nullptr;
  int64_t y_elements = 0;
};

struct PoolArgs {
  ConvGeometry geometry;      // k == c
  const float* x = nullptr;
  float* y = nullptr;
  int32_t* index = nullptr;   // max: h*W+w of the winner (first in row order wins; NaN wins)
  bool count_include_pad = false;
  int64_t pad_bottom = 0, pad_right = 0;  // average with count_include_pad counts explicit padding only
  const uint16_t* x16 = nullptr;          // max only
  uint16_t* y16 = nullptr;
};

/// The epilogue's codes and residual [n,c], of the mean over all pixels of codes x [n,pixels,c] on the grid `from`: their exact sums, by QLinearGlobalAveragePool's
/// formula; or, where the epilogue does not quantize, y: the sums times one factor. It has neither scale, bias, addend nor clamp; pixels <= kMaxAveragePixels.
struct AverageCodesArgs {
  int64_t n = 0, pixels = 0, c = 0;
  const uint8_t* x = nullptr;
  Grid from;
  const Grid* resident = nullptr;  // of `from`
  Epilogue epilogue;
};

struct PoolBackwardArgs {
  ConvGeometry geometry;
  const float* dy = nullptr;
  float* dx = nullptr;
  const int32_t* index = nullptr;
  bool count_include_pad = false;
  int64_t pad_bottom = 0, pad_right = 0;
  const uint16_t* dy16 = nullptr;  // max only
  uint16_t* dx16 = nullptr;
};

/// Batch norm over rows of [rows,c]. Statistics are mean and biased variance, gathered as mean and M2 per block and merged (Chan et al. 1983).
struct BatchNormStatsArgs {
  int64_t rows = 0, c = 0;
  const float* x = nullptr;
  float* mean = nullptr;
  float* var = nullptr;
  const uint16_t* x16 = nullptr;
};

/// y = (x - mean) * (gamma / sqrt(var + eps)) + beta, then clamp to [clamp_min, clamp_max] (infinite: none).
struct BatchNormArgs {
  int64_t rows = 0, c = 0;
  float eps = 1e-5f;
  const float* x = nullptr;
  const float* mean = nullptr;
  const float* var = nullptr;
  const float* gamma = nullptr;  // may be null: 1
  const float* beta = nullptr;   // may be null: 0
  float clamp_min = -std::numeric_limits<float>::infinity();
  float clamp_max = std::numeric_limits<float>::infinity();
  float* y = nullptr;
  const uint16_t* x16 = nullptr;
  uint16_t* y16 = nullptr;
};

/// training: gradient through the batch statistics; else mean and var are constants.
/// With a finite clamp dy is masked first: elements whose result, computed again from x as batch_norm does, is <= clamp_min or >= clamp_max give no gradient.
struct BatchNormBackwardArgs {
  int64_t rows = 0, c = 0;
  float eps = 1e-5f;
  bool training = true;
  const float* x = nullptr;
  const float* dy = nullptr;
  const float* mean = nullptr;
  const float* var = nullptr;
  const float* gamma = nullptr;  // may be null: 1
  const float* beta = nullptr;   // may be null: 0; read with a clamp only
  float clamp_min = -std::numeric_limits<float>::infinity();
  float clamp_max = std::numeric_limits<float>::infinity();
  float* dx = nullptr;       // may be null
  float* dgamma = nullptr;   // may be null
  float* dbeta = nullptr;    // may be null
  const uint16_t *x16 = nullptr, *dy16 = nullptr;
  uint16_t* dx16 = nullptr;
};

/// A tensor seen as [outer, channels, inner] for per-channel work; per tensor: channels == 1.
struct ChannelView {
  int64_t outer = 1, channels = 1, inner = 1;
};

struct FakeQuantArgs {
  ChannelView view;
  const float* x = nullptr;
  const Grid* grids = nullptr;  // [channels]
  float* y = nullptr;           // may be null when codes are asked for
  void* codes = nullptr;        // u8 when qmin >= 0, else s8; null: none
};

/// y = scale * (codes - zero_point).
struct DequantizeArgs {
  const uint8_t* codes = nullptr;
  Grid grid;
  const Grid* resident = nullptr;
  float* y = nullptr;
  int64_t n = 0;
};

/// v = a + b, elementwise, through the epilogue (without scale, bias and addend). In bf16 both operands are, and so is the result.
struct AddArgs {
  int64_t n = 0;
  ConvInput a, b;
  Epilogue epilogue;
};

/// Backward of an epilogue with quantize over rows of [rows,c], from what it kept: dx = dy where the residual lets it pass, else 0; sums as in
/// FakeQuantBackwardArgs, per tensor; dbias is the sum of dx over the rows.
struct QuantizedBackwardArgs {
  int64_t rows = 0, c = 0;
  const uint8_t* codes = nullptr;
  const int8_t* residual = nullptr;
  Grid grid;
  const Grid* resident = nullptr;
  float clamp_min = -std::numeric_limits<float>::infinity();  // the epilogue's
  float clamp_max = std::numeric_limits<float>::infinity();
  const float* dy = nullptr;
  float* dx = nullptr;           // may be dy
  float* dbias = nullptr;        // [c] or null
  double* scale_sum = nullptr;   // one each, or null
  double* clip_sum = nullptr;
  const uint16_t* dy16 = nullptr;
  uint16_t* dx16 = nullptr;
};

/// dmin[c] and dmax[c] = range_grads_from_sums of quant_math.h, from the sums of a backward pass and the bounds: no sum is read on the host.
struct RangeGradsArgs {
  int64_t channels = 0;
  const double* scale_sum = nullptr;
  const double* clip_sum = nullptr;
  const float* min = nullptr;
  const float* max = nullptr;
  GridSpec spec;
  RangeGradient rule = RangeGradient::aimet;
  float* dmin = nullptr;
  float* dmax = nullptr;
};

/// y[k] = round_to_accumulator_grid(b[k], the scale of input, the scale of grids[k], or of the only one).
struct RoundBiasArgs {
  int64_t n = 0;
  const float* b = nullptr;
  Grid input;
  const Grid* resident = nullptr;  // of `input`
  const Grid* grids = nullptr;
  bool per_channel = false;
  float* y = nullptr;
};

/// dx = dy inside the grid (decided on the rounded value; with mask_on_value on x itself: scale*(qmin-z) <= x <= scale*(qmax-z)), else 0.
/// Per channel: scale_sum = sum dy * (inside ? rint(x/s) - x/s : q - z), clip_sum = sum dy * (1 - inside). A NaN x gives neither.
/// range_grads_from_sums in quant_math.h turns the sums into dmin and dmax.
struct FakeQuantBackwardArgs {
  ChannelView view;
  const float* x = nullptr;
  const float* dy = nullptr;
  const Grid* grids = nullptr;  // [channels]
  bool mask_on_value = false;   // plain straight-through estimator; the sums are then not asked for
  float* dx = nullptr;          // may be null
  double* scale_sum = nullptr;  // [channels] or null
  double* clip_sum = nullptr;   // [channels] or null
};

/// Per channel minimum and maximum; nan[c] counts NaNs, which are left out of min and max. Empty: min = +inf, max = -inf.
struct MinMaxArgs {
  ChannelView view;
  const float* x = nullptr;
  float* min = nullptr;
  float* max = nullptr;
  int64_t* nan = nullptr;
};

/// counts[i] += number of x with bin i = clamp-free round-half-away(x/width - lo/width) in float, as AIMET's core counts; values outside are dropped, or
/// counted in the end bins when clamp_ends.
struct HistogramArgs {
  const float* x = nullptr;
  int64_t n = 0;
  float lo = 0.0f, width = 1.0f;
  int bins = 512;
  bool centred = true;     // false: bin = floor((x - lo) / width)
  bool clamp_ends = false;
  double* counts = nullptr;
};

struct ResizeArgs {
  int64_t n = 0, h = 0, w = 0, c = 0, oh = 0, ow = 0;
  ResizeMode mode = ResizeMode::nearest;
  ResizeCoordinates coordinates = ResizeCoordinates::half_pixel;
  bool nearest_floor = true;  // false: round_prefer_floor
  const float* x = nullptr;   // backward: dy
  float* y = nullptr;         // backward: dx
};

/// Rows of [rows,c].
struct SoftmaxArgs {
  int64_t rows = 0, c = 0;
  const float* x = nullptr;   // backward: y
  const float* dy = nullptr;  // backward only
  float* y = nullptr;         // backward: dx
};

/// Cross-entropy of softmax(logits / temperature) with integer labels (null: with the distribution target). loss[rows]; dlogits = (p - t) * row_scale / temperature.
struct CrossEntropyArgs {
  int64_t rows = 0, c = 0;
  const float* logits = nullptr;
  const int64_t* labels = nullptr;
  const float* target = nullptr;  // [rows,c]
  float temperature = 1.0f;
  float label_smoothing = 0.0f;   // labels only
  float* loss = nullptr;          // [rows], or null
  float row_scale = 1.0f;
  float* dlogits = nullptr;       // [rows,c], or null
};

struct SgdTensor {
  float* w = nullptr;
  const float* g = nullptr;
  float* momentum = nullptr;  // null: plain SGD
  float* average = nullptr;   // moved to the new w by `newest`; null: none
  int64_t n = 0;
  float learning_rate = 0.0f;
  float weight_decay = 0.0f;
};

/// v = momentum * v + (g + wd * w); w -= lr * (nesterov ? g + wd*w + momentum * v : v). As PyTorch and TensorFlow's Momentum.
struct SgdArgs {
  const SgdTensor* tensors = nullptr;  // the host's
  int64_t count = 0;
  float momentum = 0.0f;
  bool nesterov = false;
  float newest = 1.0f;  // newest_share of optimizer_math.h
};

struct AdamTensor {
  float* w = nullptr;
  const float* g = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  float* average = nullptr;
  int64_t n = 0;
  float learning_rate = 0.0f;
  float weight_decay = 0.0f;
};

/// Kingma & Ba 2015; decoupled: weight decay as in AdamW (Loshchilov & Hutter 2019). step counts from 1.
struct AdamArgs {
  const AdamTensor* tensors = nullptr;  // the host's
  int64_t count = 0;
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;
  bool decoupled = false;
  int64_t step = 1;
  float newest = 1.0f;
};

/// How convolutions and matrix products of floats multiply; sums are f32 in any case, and integers (codes, WeightGrid) are never rounded. tf32 and bf16 round both
/// factors to 11 and 8 bits; a backend without such products computes in f32. In bf16 values between layers are kept so too (Backend::keeps_bf16).
enum class Precision : uint8_t { f32, tf32, bf16 };

/// "f32", "tf32" or "bf16"; throws Error for another name.
Precision precision_named(std::string_view name);

struct FloatSpan {
  const float* x = nullptr;
  int64_t n = 0;
};

struct Kernels {
  const char* name;
  void (*fill)(float* y, float value, int64_t n);
  void (*accumulate)(float* y, const float* x, int64_t n);               // y += x
  void (*accumulate16)(uint16_t* y, const uint16_t* x, int64_t n);        // the same in bf16, the sum rounded
  void (*narrow)(uint16_t* y, const float* x, int64_t n);                 // y = x rounded to bf16
  void (*widen)(float* y, const uint16_t* x, int64_t n);                  // y = x, which is bf16
  void (*scale)(float* y, const float* x, float factor, int64_t n);       // y = factor * x
  /// nonfinite[i] = infinities and NaNs of spans[i]; both arrays are the host's.
  void (*count_nonfinite)(const FloatSpan* spans, int64_t count, int64_t* nonfinite);
  /// y = the spans one after the other; the array of spans is the host's.
  void (*gather)(const FloatSpan* spans, int64_t count, float* y);
  void (*conv2d)(const Conv2dArgs&);
  void (*conv2d_backward_data)(const Conv2dBackwardDataArgs&);
  void (*conv2d_backward_filter)(const Conv2dBackwardFilterArgs&);
  void (*gemm)(const GemmArgs&);
  void (*pointwise)(const PointwiseArgs&);
  void (*pointwise_backward)(const PointwiseArgs&);
  void (*binary)(const BinaryArgs&);
  void (*strided_copy)(const StridedCopyArgs&);
  void (*reduce_sum)(const ReduceSumArgs&);
  void (*max_pool)(const PoolArgs&);
  void (*max_pool_backward)(const PoolBackwardArgs&);
  void (*average_pool)(const PoolArgs&);
  void (*average_pool_backward)(const PoolBackwardArgs&);
  void (*average_codes)(const AverageCodesArgs&);
  void (*batch_norm_stats)(const BatchNormStatsArgs&);
  void (*batch_norm)(const BatchNormArgs&);
  void (*batch_norm_backward)(const BatchNormBackwardArgs&);
  void (*fake_quant)(const FakeQuantArgs&);
  void (*dequantize)(const DequantizeArgs&);
  void (*fake_quant_backward)(const FakeQuantBackwardArgs&);
  void (*add)(const AddArgs&);
  void (*quantized_backward)(const QuantizedBackwardArgs&);
  void (*range_grads)(const RangeGradsArgs&);
  void (*round_bias)(const RoundBiasArgs&);
  void (*min_max)(const MinMaxArgs&);
  void (*histogram_acc)(const HistogramArgs&);
  void (*resize)(const ResizeArgs&);
  void (*resize_backward)(const ResizeArgs&);
  void (*softmax)(const SoftmaxArgs&);
  void (*softmax_backward)(const SoftmaxArgs&);
  void (*cross_entropy)(const CrossEntropyArgs&);
  void (*sgd_step)(const SgdArgs&);
  void (*adam_step)(const AdamArgs&);
  bool keeps_bf16;  ///< conv2d, pointwise, max_pool, batch_norm, their gradients, add and quantized_backward take values in bf16
};

struct IntegerKernels;

/// A device's memory and kernels.
class Backend {
 public:
  virtual ~Backend() = default;
  /// How float products are computed by the kernels launched from now on. A GPU begins with tf32, the cpu with f32; a backend that does not know a precision stays in
  /// f32. In bf16 the cpu keeps values and gradients so; it multiplies floats as bf16 where the processor gains by it (AVX-512 BF16 of AMD), else in f32.
  virtual void set_precision(Precision) {}
  virtual Precision precision() const { return Precision::f32; }
  /// Whether training keeps values and gradients in bf16 now: the kernels take them, and that is the precision.
  bool keeps_bf16() const { return precision() == Precision::bf16 && kernels().keeps_bf16; }
  virtual CachingAllocator& allocator() = 0;
  /// Also makes the device the calling thread's current one: use the table at once, not after that of another device.
  virtual const Kernels& kernels() const = 0;
  /// Those of integer execution (core/integer_kernels.h), or null: the device has none.
  virtual const IntegerKernels* integer_kernels() const { return nullptr; }
  virtual void copy(void* dst, Device dst_device, const void* src, Device src_device, size_t bytes) = 0;
  virtual void zero(void* dst, size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual const char* description() const = 0;  ///< processor or GPU and the instruction set in use

  /// Host memory that start_upload() reads; page-locked where the device wants it. Throws Error when there is none.
  virtual void* allocate_pinned(size_t bytes);
  virtual void release_pinned(void* p, size_t bytes) noexcept;
  /// Begins a copy to the device beside its other work. What the device is given after finish_upload() sees it; the source may change after wait_for_upload().
  virtual void start_upload(void* dst, const void* pinned, size_t bytes);
  virtual void finish_upload() {}
  virtual void wait_for_upload() noexcept {}

  /// Recording of what this thread gives the device, to be run again as one. Memory that is allocated meanwhile stays the recording's own.
  virtual bool records() const { return false; }
  virtual bool recording() const { return false; }
  virtual void begin_recording();
  /// `keep`: false drops what was recorded and returns null. Throws Error when the device refuses.
  virtual void* end_recording(bool keep);
  virtual void replay(void* recording);
  virtual void drop_recording(void* recording) noexcept;

  void* allocate(size_t bytes) { return allocator().allocate(bytes); }
  void release(void* p, size_t bytes) noexcept { allocator().release(p, bytes); }
};

/// The backend of a device; throws Error when it is not built in or the device does not exist.
Backend& backend(Device device);

/// f32 for products of floats on a device while it lives: where a result is judged or kept rather than trained on.
class FullPrecision {
 public:
  explicit FullPrecision(Device device) : backend_(backend(device)), before_(backend_.precision()) { backend_.set_precision(Precision::f32); }
  ~FullPrecision() { backend_.set_precision(before_); }
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  Backend& backend_;
  Precision before_;
};

/// True when backend(device) would succeed; otherwise *why (when not null) is what its Error would say.
bool device_available(Device device, std::string* why = nullptr);

}  // namespace detent
