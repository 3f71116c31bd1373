// What the convolution drivers share: scratch memory, a convolution seen as sums over taps of input rows, and the entry points per instruction set.
// Work is cut by shape alone; every output element is summed in one fixed order.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "detent/backends/cpu/conv_isa.h"
#include "detent/core/allocator.h"
#include "detent/core/backend.h"
#include "detent/core/math/conv_gather.h"

namespace detent::cpu {

/// Floats (or pointers) from host_allocator(), returned at the end of the scope.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : bytes_(static_cast<size_t>(n) * sizeof(T)), p_(bytes_ ? static_cast<T*>(host_allocator().allocate(bytes_)) : nullptr) {}
  ~Scratch() {
    if (p_) host_allocator().release(p_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return p_; }

 private:
  size_t bytes_;
  T* p_;
};

/// One block of scratch per thread at work, taken by tasks while they run. Allocated up front, so the number of allocations does not depend on timing.
class Slots {
 public:
  explicit Slots(int64_t bytes_each);
  ~Slots();
  Slots(const Slots&) = delete;
  Slots& operator=(const Slots&) = delete;

  class Lease {
   public:
    explicit Lease(Slots& slots);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    char* get() const { return p_; }

   private:
    Slots& slots_;
    int slot_;  // -1: allocated for this lease
    char* p_;
  };

 private:
  size_t each_;
  int count_;
  char* block_;
  std::atomic<uint64_t> free_;
};

/// Where the rows of a Gather are: input row `first_row` (of n * in_h) starts at base; each row holds left + in_w + right pixels.
template <class T>
struct InputViewOf {
  const T* base = nullptr;
  int64_t first_row = 0, pitch = 0, left = 0, right = 0;
};
using InputView = InputViewOf<float>;

/// Table entries of positions [p0, p1): rows[t * row_stride + p - p0]; kTilePad more are set to `zero`. out[p - p0] (unless null) is the output position.
/// T: float, uint8_t or uint16_t.
template <class T>
void fill_rows(const Gather& g, const InputViewOf<T>& x, int64_t p0, int64_t p1, const T* zero, const T** rows, int64_t row_stride, int64_t* out);

/// Rows of more pixels are staged once and for all: several chunks of pixels lie in each, and would stage the whole row again.
constexpr int64_t kLongRow = 1024;

/// The input rows that positions [p0, p1) need: [first, last) of n * in_h.
struct RowRange {
  int64_t first = 0, last = 0;
};
RowRange rows_needed(const Gather& g, int64_t p0, int64_t p1);

/// Rows [range) of the input, floats or other, as f32 with zero borders, as the InputView says (base is not read).
void stage_rows(const ConvIsa& isa, const Gather& g, const ConvInput& input, RowRange range, const InputView& view, float* dst);

/// How n vectors are cut into panels of nearly equal width.
struct Panels {
  int64_t count = 0, base = 0, extra = 0;
  Panels(int64_t vectors, int max_nv) : count((vectors + max_nv - 1) / max_nv), base(vectors / (count ? count : 1)), extra(vectors % (count ? count : 1)) {}
  int width(int64_t i) const { return static_cast<int>(base + (i < extra ? 1 : 0)); }
  int64_t start(int64_t i) const { return i * base + (i < extra ? i : extra); }
};

/// Weights of a gather: element (group, tap row, tap col, depth i, output channel j). One of stride_i, stride_j is 1.
struct WeightView {
  const float* w = nullptr;
  int64_t group = 0, tap_row = 0, tap_col = 0, stride_i = 0, stride_j = 0;
};

struct Bf16Isa;

/// Of f32, or of bf16 where x is null.
inline ConvInput values_input(const float* x, const uint16_t* x16) {
  ConvInput in;
  in.x = x;
  in.x16 = x16;
  return in;
}

/// Values that are read as words of bf16 pairs (conv_bf16.h): [rows][2 * in_c], each times the scale of its column (or null); x, or x16, which are words already.
struct JoinedInput {
  const Bf16Isa* isa = nullptr;
  const float* x = nullptr;
  const float* scale = nullptr;
  const uint16_t* x16 = nullptr;
};

/// y = epilogue(sum over taps and depth of x * w): the common core of forward, backward-data and gemm. Without input.x, and with borders, the rows are staged.
struct GatherConv {
  Gather gather;
  ConvInput input;
  JoinedInput joined;                           // instead of input, where it has an isa
  WeightView weights;
  int64_t groups = 1, depth = 0, channels = 0;  // per group
  int64_t left = 0, right = 0;                  // zero borders to be staged
  Epilogue epilogue;
  float* mean = nullptr;                        // of Conv2dArgs
  float* var = nullptr;

  /// What is multiplied: `in`, or `words` where they have an isa.
  void reads(const ConvInput& in, const JoinedInput& words);
};
void run_gather(const ConvIsa& isa, const GatherConv& c);

/// The vector epilogue computes codes in float: whether that is exact.
bool codes_in_float(const Epilogue& e);
/// channels: of all groups; a tile writes those of one group.
TileEpilogue tile_epilogue(const Epilogue& e, int64_t channels, int64_t groups, int64_t pixels, int vector);

/// With `joined` in place of the input, or of dy, over words: the geometry counts them, and the weights are words too.
void conv2d(const ConvIsa& isa, const Conv2dArgs& a, const JoinedInput& joined = {});
void conv2d_backward_data(const ConvIsa& isa, const Conv2dBackwardDataArgs& a, const JoinedInput& joined = {});
/// Backward-data with all phases of the strides at once, for few channels. `joined`: dy as words, the geometry and w as they are, k is even.
bool joins_phases(const ConvGeometry& g);
void backward_data_joined(const ConvIsa& isa, const Conv2dBackwardDataArgs& a, const JoinedInput& joined = {});
void conv2d_backward_filter(const ConvIsa& isa, const Conv2dBackwardFilterArgs& a);
void depthwise_forward(const ConvIsa& isa, const Conv2dArgs& a);
void depthwise_backward_data(const ConvIsa& isa, const Conv2dBackwardDataArgs& a);
void depthwise_backward_filter(const ConvIsa& isa, const Conv2dBackwardFilterArgs& a);
void gemm(const ConvIsa& isa, const GemmArgs& a);

/// The kernels of isa(), or null: use the scalar twins.
const ConvIsa* conv_isa();

}  // namespace detent::cpu
