// conv2d, dense: values and gradients against the definition in double.
#include "detent/tests/support/gradcheck.h"

using namespace detent;
using namespace detent::test;

namespace {

// By the definition, output by output; x reads as 0 outside the image.
Array conv_reference(const Array& x, const Array& w, const Array* bias, const Conv2dSpec& s, int64_t oh, int64_t ow) {
  const int64_t k = w.shape[0], per_group = w.shape[3], k_per_group = k / s.groups;
  Array y(Shape{x.shape[0], oh, ow, k});
  int64_t out = 0;
  for (int64_t n = 0; n < x.shape[0]; ++n)
    for (int64_t i = 0; i < oh; ++i)
      for (int64_t j = 0; j < ow; ++j)
        for (int64_t f = 0; f < k; ++f) {
          double total = bias ? (*bias)[f] : 0.0;
          for (int64_t r = 0; r < w.shape[1]; ++r)
            for (int64_t q = 0; q < w.shape[2]; ++q) {
              const int64_t h = i * s.stride[0] + r * s.dilation[0] - s.padding.top, v = j * s.stride[1] + q * s.dilation[1] - s.padding.left;
              if (h < 0 || v < 0 || h >= x.shape[1] || v >= x.shape[2]) continue;
              for (int64_t c = 0; c < per_group; ++c) total += x.at({n, h, v, f / k_per_group * per_group + c}) * w.at({f, r, q, c});
            }
          y[out++] = std::min(std::max(total, static_cast<double>(s.clamp_min)), static_cast<double>(s.clamp_max));
        }
  return y;
}

struct Row {
  const char* name;
  Shape x, w;
  Conv2dSpec spec;
  int64_t oh, ow;
  bool bias;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> table = {
      {"1x1", {2, 3, 3, 5}, {7, 1, 1, 5}, {}, 3, 3, true},
      {"1x1 wide", {1, 3, 2, 65}, {67, 1, 1, 65}, {}, 3, 2, true},
      {"1x1 stride 2", {1, 5, 4, 3}, {4, 1, 1, 3}, {.stride = {2, 2}}, 3, 2, false},
      {"3x3 same", {2, 5, 4, 3}, {8, 3, 3, 3}, {.padding = {1, 1, 1, 1}}, 5, 4, true},
      {"3x3 stride 2", {1, 7, 6, 4}, {5, 3, 3, 4}, {.stride = {2, 2}, .padding = {1, 1, 1, 1}}, 4, 3, true},
      {"3x3 stride 2, padding after (TensorFlow SAME)", {1, 6, 6, 2}, {3, 3, 3, 2}, {.stride = {2, 2}, .padding = {0, 0, 1, 1}}, 3, 3, false},
      {"7x7 stride 2", {1, 11, 9, 3}, {4, 7, 7, 3}, {.stride = {2, 2}, .padding = {3, 3, 3, 3}}, 6, 5, false},
      {"dilation", {1, 8, 7, 2}, {3, 3, 2, 2}, {.padding = {2, 1, 2, 1}, .dilation = {2, 3}}, 8, 6, true},
      {"unequal strides and padding", {1, 6, 9, 2}, {3, 2, 3, 2}, {.stride = {1, 3}, .padding = {1, 0, 0, 2}}, 6, 3, true},
      {"groups", {1, 4, 4, 6}, {9, 3, 3, 2}, {.padding = {1, 1, 1, 1}, .groups = 3}, 4, 4, true},
      {"depthwise", {1, 5, 5, 17}, {17, 3, 3, 1}, {.stride = {2, 1}, .padding = {1, 1, 1, 1}, .groups = 17}, 3, 5, true},
      {"depthwise multiplier 2", {1, 4, 3, 3}, {6, 3, 3, 1}, {.padding = {1, 1, 1, 1}, .groups = 3}, 4, 3, false},
      {"clamp 0..6", {1, 4, 4, 3}, {5, 3, 3, 3}, {.padding = {1, 1, 1, 1}, .clamp_min = 0.0f, .clamp_max = 6.0f}, 4, 4, true},
  };
  return table;
}

}  // namespace

TEST_CASE("conv2d_matches_its_definition") {
  for (const Row& r : rows()) {
    CHECK_MESSAGE(conv2d_shape(r.x, r.w, r.spec) == Shape({r.x[0], r.oh, r.ow, r.w[0]}), r.name);
    std::vector<Array> inputs = {random_array(r.x, 1), random_array(r.w, 2, -1, 1)};
    if (r.bias) inputs.push_back(random_array(Shape{r.w[0]}, 3));
    gradcheck({.name = r.name,
               .inputs = inputs,
               .op = [&r](std::span<const Var> v) { return conv2d(v[0], v[1], r.bias ? &v[2] : nullptr, r.spec); },
               .reference = [&r](const std::vector<Array>& v) { return conv_reference(v[0], v[1], r.bias ? &v[2] : nullptr, r.spec, r.oh, r.ow); },
               .terms = std::max(r.w.elements() / r.w[0], r.x[0] * r.oh * r.ow)});
  }
}

TEST_CASE("dense_matches_its_definition") {
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 7, 5}, {2, 129, 127}, {9, 16, 10}};
  for (const auto& [n, in, out] : sizes) {
    gradcheck({.name = text("dense ", n, " ", in, " ", out),
               .inputs = {random_array(Shape{n, in}, 4), random_array(Shape{out, in}, 5), random_array(Shape{out}, 6)},
               .op = [](std::span<const Var> v) { return dense(v[0], v[1], &v[2]); },
               .reference =
                   [](const std::vector<Array>& v) {
                     Array y(Shape{v[0].shape[0], v[1].shape[0]});
                     for (int64_t i = 0; i < y.size(); ++i) {
                       const int64_t row = i / y.shape[1], column = i % y.shape[1];
                       y[i] = v[2][column];
                       for (int64_t k = 0; k < v[0].shape[1]; ++k) y[i] += v[0].at({row, k}) * v[1].at({column, k});
                     }
                     return y;
                   },
               .terms = std::max({n, in, out})});
  }
}

TEST_CASE("conv2d_reads_codes_as_the_values_they_stand_for") {
  const Grid grid{0.05f, 37, 0, 255};
  std::vector<uint8_t> codes(2 * 5 * 5 * 3);
  Rng rng(9);
  for (uint8_t& c : codes) c = static_cast<uint8_t>(rng.below(256));
  const Var coded(Coded{Tensor::from<uint8_t>(Shape{2, 5, 5, 3}, codes), grid});
  const Tensor w = to_tensor(random_array(Shape{4, 3, 3, 3}, 10, -1, 1));
  const Conv2dSpec spec{.stride = {2, 2}, .padding = {1, 1, 1, 1}};
  std::vector<float> y[2], dw[2];
  for (int i = 0; i < 2; ++i) {
    Tape tape;
    const Var v = tape.watch(w);
    const Var x = i ? Var(coded.dense()) : coded;
    const Var out = conv2d(x, v, nullptr, spec);
    tape.backward(out, Tensor::full(out.shape(), 0.5f));
    y[i] = out.dense().to_vector<float>();
    dw[i] = tape.grad(v).to_vector<float>();
  }
  // 27 products up to 255*0.05 and 18 pixels.
  for (size_t i = 0; i < y[0].size(); ++i) CHECK(std::abs(y[0][i] - y[1][i]) <= 27 * 12.75 * 1.2e-7 * 27);
  for (size_t i = 0; i < dw[0].size(); ++i) CHECK(std::abs(dw[0][i] - dw[1][i]) <= 18 * 12.75 * 1.2e-7 * 18);
}

TEST_CASE("bias_alone_gets_its_gradient") {
  Tape tape;
  const Var b = tape.watch(Tensor::zeros(Shape{2}));
  const Var y = conv2d(Var(Tensor::full(Shape{1, 2, 3, 1}, 1.0f)), Var(Tensor::full(Shape{2, 1, 1, 1}, 1.0f)), &b);
  tape.backward(y, Tensor::full(y.shape(), 2.0f));
  CHECK(tape.grad(b).to_vector<float>() == std::vector<float>{12.0f, 12.0f});
}
