// The backward pass of fused quantization against sums in double, from codes and residual bytes.
#include "detent/core/math/half.h"
#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

namespace {

struct Case {
  int64_t rows, c;
};

// Columns around the 4096 elements that are summed in floats, and rows that are no multiple of anything.
constexpr Case kCases[] = {{1, 1}, {7, 1}, {1, 7}, {129, 3}, {1000, 16}, {4097, 1}, {5, 4095}, {3, 4096}, {3, 4097}, {2, 9001}, {700, 130}, {3000, 64}, {70000, 1}, {2, 65536}};

}  // namespace

TEST_CASE("quantized_backward: gradient, range sums and bias in one pass") {
  const Grid grid{0.1f, 37, 0, 255};
  const float clamp_min = -0.53f, clamp_max = 2.12f;  // codes 32 (-5.3 rounds by 0.3) and 58 (21.2 rounds by -0.2)
  for (const Case& t : kCases) {
    CAPTURE(t.rows);
    CAPTURE(t.c);
    const int64_t n = t.rows * t.c;
    const std::vector<float> dy = random_values(n, -1, 1, 9);
    std::vector<uint8_t> codes(static_cast<size_t>(n));
    std::vector<int8_t> residual(codes.size());
    std::vector<float> want(codes.size());
    std::vector<double> bias(static_cast<size_t>(t.c)), size(bias);
    double scale = 0.0, clip = 0.0, scale_size = 0.0;
    Rng rng(3, static_cast<uint64_t>(n));
    for (size_t i = 0; i < codes.size(); ++i) {
      const float kind = rng.uniform(0.0f, 3.0f);
      const double g = static_cast<double>(dy[i]);
      codes[i] = static_cast<uint8_t>(rng.uniform(0.0f, 255.99f));
      double term = 0.0;
      if (kind < 1.0f) {  // outside the grid: the code at its end, no gradient
        codes[i] = codes[i] < 128 ? 0 : 255;
        residual[i] = -128;
        term = g * (static_cast<int>(codes[i]) - 37);
        clip += g;
      } else if (kind < 1.5f) {  // behind a clamp
        residual[i] = -127;
        codes[i] = codes[i] < 128 ? 32 : 58;
        term = g * (codes[i] == 32 ? 0.3 : -0.2);
      } else {
        residual[i] = static_cast<int8_t>(std::floor(rng.uniform(-126.0f, 127.0f)));
        want[i] = dy[i];
        term = g * residual[i] / 252.0;
      }
      scale += term;
      scale_size += std::abs(term);
      bias[i % static_cast<size_t>(t.c)] += static_cast<double>(want[i]);
      size[i % static_cast<size_t>(t.c)] += std::abs(static_cast<double>(want[i]));
    }
    std::vector<double> sums(2);  // of the heap, where a GPU may write
    double &got_scale = sums[0], &got_clip = sums[1];
    QuantizedBackwardArgs a;
    a.rows = t.rows, a.c = t.c, a.codes = codes.data(), a.residual = residual.data(), a.grid = grid, a.clamp_min = clamp_min, a.clamp_max = clamp_max, a.dy = dy.data();
    a.scale_sum = &got_scale, a.clip_sum = &got_clip;
    const auto gradient = [&](float* out) {
      a.dx = out;
      kernels().quantized_backward(a);
    };
    CHECK(same_bits(run_guarded<float>(n, gradient), want));
    const double plain_scale = got_scale, plain_clip = got_clip;
    std::vector<float> dx(dy.size());
    a.dx = dx.data();
    const std::vector<float> got_bias = run_guarded<float>(t.c, [&](float* out) {
      a.dbias = out;
      kernels().quantized_backward(a);
    });
    CHECK(same_bits(dx, want));
    CHECK(got_scale == plain_scale);
    CHECK(got_clip == plain_clip);
    CHECK(std::abs(got_scale - scale) <= 1e-5 * scale_size);
    CHECK(std::abs(got_clip - clip) <= 1e-5 * static_cast<double>(n));
    for (size_t j = 0; j < bias.size(); ++j) {
      if (!(std::abs(static_cast<double>(got_bias[j]) - bias[j]) <= 2e-6 * (size[j] + 1e-3))) FAIL_CHECK("bias ", j, ": ", got_bias[j], " not ", bias[j]);
    }
    // In place, as the tape runs it.
    dx = dy;
    a.dbias = nullptr;
    a.dy = dx.data();
    kernels().quantized_backward(a);
    CHECK(same_bits(dx, want));
    // Unaligned; and the CPU's bits.
    Guarded<float> shifted(n + 1);
    std::vector<float> shifted_dy(1);
    shifted_dy.insert(shifted_dy.end(), dy.begin(), dy.end());
    a.dy = shifted_dy.data() + 1;
    a.dx = shifted.data() + 1;
    kernels().quantized_backward(a);
    CHECK((shifted.intact() && std::equal(want.begin(), want.end(), shifted.data() + 1)));
    CHECK(got_scale == plain_scale);
    CHECK(got_clip == plain_clip);
    backend(Device{}).kernels().quantized_backward(a);
    CHECK(got_scale == plain_scale);
    CHECK(got_clip == plain_clip);
    // In bf16, in place: sums and bias are those of the same values in f32.
    if (!kernels().keeps_bf16) continue;
    std::vector<uint16_t> words(dy.size());
    for (size_t i = 0; i < words.size(); ++i) words[i] = bfloat_bits(dy[i]), dx[i] = bfloat_value(words[i]);
    std::vector<float> bias32(bias.size()), bias16(bias.size());
    a.dy = a.dx = dx.data();
    a.dbias = bias32.data();
    kernels().quantized_backward(a);
    const double scale32 = got_scale, clip32 = got_clip;
    a.dy = a.dx = nullptr;
    a.dy16 = a.dx16 = words.data();
    a.dbias = bias16.data();
    kernels().quantized_backward(a);
    CHECK(got_scale == scale32);
    CHECK(got_clip == clip32);
    CHECK(bias16 == bias32);
    for (size_t i = 0; i < words.size(); ++i) {
      if (bfloat_value(words[i]) != dx[i]) FAIL_CHECK("element ", i, ": ", bfloat_value(words[i]), " not ", dx[i]);
    }
  }
}
