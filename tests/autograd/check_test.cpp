// Errors of the ops: each names the op, the argument and both values.
#include <doctest/doctest.h>

#include "detent/autograd/op_support.h"

using namespace detent;

namespace {
Var zeros(const Shape& s) { return Var(Tensor::zeros(s)); }
}  // namespace

TEST_CASE("shape_errors_name_op_argument_and_values") {
  const Var x = zeros({1, 4, 4, 6}), w = zeros({8, 3, 3, 6});
  const Var bias = zeros({7});
  CHECK_THROWS_WITH_AS(conv2d(x, zeros({8, 3, 3, 5})), doctest::Contains("conv2d: w [8,3,3,5] has 5 input channels, x [1,4,4,6] in 1 groups gives 6"), Error);
  CHECK_THROWS_WITH_AS(conv2d(zeros({4, 6}), w), doctest::Contains("conv2d: x has shape [4,6], rank 4 wanted"), Error);
  CHECK_THROWS_WITH_AS(conv2d(x, w, &bias), doctest::Contains("conv2d: bias has shape [7], [8] wanted"), Error);
  CHECK_THROWS_WITH_AS(conv2d(x, w, nullptr, {.stride = {0, 1}}), doctest::Contains("conv2d: stride 0"), Error);
  CHECK_THROWS_WITH_AS(conv2d(x, w, nullptr, {.padding = {-1, 0, 0, 0}}), doctest::Contains("conv2d: padding top -1"), Error);
  CHECK_THROWS_WITH_AS(conv2d(x, w, nullptr, {.groups = 4}), doctest::Contains("4 groups do not divide the 6 channels"), Error);
  CHECK_THROWS_WITH_AS(conv2d(zeros({1, 2, 2, 6}), w), doctest::Contains("does not fit into x [1,2,2,6]"), Error);
  CHECK_THROWS_WITH_AS(dense(zeros({2, 3}), zeros({4, 5})), doctest::Contains("dense: w [4,5] takes 5 inputs, x [2,3] has 3"), Error);
  CHECK_THROWS_WITH_AS(add(zeros({2, 3}), zeros({2})), doctest::Contains("add: a [2,3] and b [2] do not broadcast: extents 3 and 2 at axis -1"), Error);
  CHECK_THROWS_WITH_AS(prelu(x, zeros({5})), doctest::Contains("prelu: slope has shape [5]"), Error);
  CHECK_THROWS_WITH_AS(reshape(x, Shape{95}), doctest::Contains("96"), Error);
  const Var parts[] = {zeros({2, 3}), zeros({3, 3})};
  CHECK_THROWS_WITH_AS(concat(parts, 1), doctest::Contains("concat along axis 1: value 0 has shape [2,3] and value 1 [3,3]"), Error);
  CHECK_THROWS_WITH_AS(concat(parts, 2), doctest::Contains("concat: axis 2 is outside a value of rank 2"), Error);
  CHECK_THROWS_WITH_AS(resize(x, {.height = 0, .width = 4}), doctest::Contains("resize: size 0x4"), Error);
  CHECK_THROWS_WITH_AS(mean_squared_error(zeros({2}), Tensor::zeros(Shape{3})), doctest::Contains("target has shape [3], [2] wanted"), Error);
  CHECK_THROWS_WITH_AS(distillation(zeros({2, 2}), Tensor::zeros(Shape{2, 2}), 0.0f), doctest::Contains("temperature 0 must be above 0"), Error);
  Tensor mean = Tensor::zeros(Shape{6}), var = Tensor::zeros(Shape{5});
  CHECK_THROWS_WITH_AS(batch_norm(x, zeros({6}), zeros({6}), mean, var, {}, true), doctest::Contains("batch_norm: running_var has shape [5], [6] wanted"), Error);
  var = Tensor::zeros(Shape{6});
  CHECK_THROWS_WITH_AS(batch_norm(zeros({1, 6}), zeros({6}), zeros({6}), mean, var, {}, true), doctest::Contains("gives 1 values per channel"), Error);
}

TEST_CASE("types_and_undefined_values_are_errors") {
  const Var codes(Tensor::zeros(Shape{2, 3}, DType::u8));
  CHECK_THROWS_WITH_AS(relu(codes), doctest::Contains("clip: x is u8[2,3], f32 wanted"), Error);
  CHECK_THROWS_WITH_AS(relu(Var()), doctest::Contains("clip: x is undefined"), Error);
  CHECK_THROWS_WITH_AS(add(zeros({2}), Var()), doctest::Contains("add: b is undefined"), Error);
}

TEST_CASE("loop_nests_merge_what_lies_together") {
  const Shape s{2, 3, 4, 5};
  const ops::Strides own = ops::strides_of(s);
  CHECK(ops::loop_over(s, own, own, own).rank == 1);
  CHECK(ops::loop_over(s, own, own, own).extent[0] == 120);
  const LoopNest bias = ops::loop_over(s, own, ops::broadcast_strides(Shape{5}, s), own);
  CHECK(bias.rank == 2);
  CHECK(bias.extent[0] == 24);
  CHECK(bias.b_stride[0] == 0);
  CHECK(bias.b_stride[1] == 1);
  CHECK(ops::loop_over(Shape{1, 1}, {}, {}, {}).rank == 1);
}

TEST_CASE("empty_values_pass_through") {
  CHECK(relu(zeros({0, 3})).shape() == Shape{0, 3});
  CHECK(add(zeros({0, 3}), zeros({3})).shape() == Shape{0, 3});
  CHECK(sum(zeros({0})).dense().item() == 0.0f);
  CHECK(conv2d(zeros({0, 4, 4, 2}), zeros({3, 1, 1, 2})).shape() == Shape{0, 4, 4, 3});
  CHECK_THROWS_AS(mean(zeros({0})), Error);
}
