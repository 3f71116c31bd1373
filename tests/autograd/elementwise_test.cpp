// Binary ops with broadcasting, prelu, and the ops that move elements, against NumPy-style references in double.
#include "detent/tests/support/gradcheck.h"

using namespace detent;
using namespace detent::test;

namespace {

// The multi-index of element i of a shape.
std::vector<int64_t> index_of(const Shape& s, int64_t i) {
  std::vector<int64_t> at(static_cast<size_t>(s.rank()));
  for (int d = s.rank() - 1; d >= 0; --d) {
    at[static_cast<size_t>(d)] = i % s[d];
    i /= s[d];
  }
  return at;
}

int64_t flat(const Shape& s, const std::vector<int64_t>& at) {
  int64_t o = 0;
  for (int d = 0; d < s.rank(); ++d) o = o * s[d] + at[static_cast<size_t>(d)];
  return o;
}

double broadcast_read(const Array& a, std::vector<int64_t> at) {
  at.erase(at.begin(), at.end() - a.shape.rank());
  for (int d = 0; d < a.shape.rank(); ++d) at[static_cast<size_t>(d)] = a.shape[d] == 1 ? 0 : at[static_cast<size_t>(d)];
  return a[flat(a.shape, at)];
}

using Rule = std::function<double(double, double)>;

struct BinaryRow {
  const char* name;
  Var (*op)(const Var&, const Var&);
  Rule rule;
};

}  // namespace

TEST_CASE("binary_ops_broadcast_as_numpy") {
  const BinaryRow ops[] = {
      {"add", add, [](double a, double b) { return a + b; }},
      {"sub", sub, [](double a, double b) { return a - b; }},
      {"mul", mul, [](double a, double b) { return a * b; }},
      {"div", div, [](double a, double b) { return a / b; }},
  };
  const Shape shapes[][3] = {
      {{129}, {129}, {129}},
      {{2, 3, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}},
      {{2, 3, 4, 5}, {5}, {2, 3, 4, 5}},
      {{2, 3, 4, 5}, {1}, {2, 3, 4, 5}},
      {{2, 3, 4, 5}, {2, 1, 1, 5}, {2, 3, 4, 5}},
      {{3, 1, 5}, {2, 1, 4, 1}, {2, 3, 4, 5}},
      {{1}, {7}, {7}},
      {{1, 1}, {1}, {1, 1}},
      {{2, 1, 2, 1, 2, 1}, {1, 3, 1, 3, 1, 3}, {2, 3, 2, 3, 2, 3}},
  };
  for (const BinaryRow& r : ops) {
    for (const auto& [a, b, out] : shapes) {
      CHECK(broadcast_shape(r.name, a, b) == out);
      gradcheck({.name = text(r.name, " ", a, " ", b),
                 .inputs = {random_array(a, 1), random_array(b, 2, 0.5, 2)},
                 .op = [&r](std::span<const Var> v) { return r.op(v[0], v[1]); },
                 .reference =
                     [&r, shape = out](const std::vector<Array>& v) {
                       Array y(shape);
                       for (int64_t i = 0; i < y.size(); ++i) y[i] = r.rule(broadcast_read(v[0], index_of(shape, i)), broadcast_read(v[1], index_of(shape, i)));
                       return y;
                     },
                 .terms = std::max(out.elements() / a.elements(), out.elements() / b.elements())});
    }
  }
}

TEST_CASE("prelu_has_a_slope_for_each_channel") {
  for (const int64_t slopes : {int64_t{1}, int64_t{7}}) {
    gradcheck({.name = text("prelu ", slopes),
               .inputs = {random_array(Shape{2, 3, 3, 7}, 1, -2, 2, {0}), random_array(Shape{slopes}, 2, -0.5, 0.5)},
               .op = [](std::span<const Var> v) { return prelu(v[0], v[1]); },
               .reference =
                   [](const std::vector<Array>& v) {
                     Array y = v[0];
                     for (int64_t i = 0; i < y.size(); ++i) y[i] = y[i] >= 0 ? y[i] : y[i] * v[1][i % v[1].size()];
                     return y;
                   },
               .terms = 126});
  }
}

TEST_CASE("concat_and_split_are_inverse") {
  for (const int axis : {0, 1, -1}) {
    const int at = axis < 0 ? 2 : axis;
    std::vector<Shape> shapes(3, Shape{2, 3, 4});
    shapes[1].set(at, 1);
    shapes[2].set(at, 5);
    gradcheck({.name = text("concat ", axis),
               .inputs = {random_array(shapes[0], 1), random_array(shapes[1], 2), random_array(shapes[2], 3)},
               .op = [axis](std::span<const Var> v) { return concat(v, axis); },
               .reference =
                   [at, shapes](const std::vector<Array>& v) {
                     Array y(concat_shape(shapes, at));
                     for (int64_t i = 0; i < y.size(); ++i) {
                       std::vector<int64_t> index = index_of(y.shape, i);
                       size_t piece = 0;
                       while (index[static_cast<size_t>(at)] >= shapes[piece][at]) index[static_cast<size_t>(at)] -= shapes[piece++][at];
                       y[i] = v[piece][flat(shapes[piece], index)];
                     }
                     return y;
                   }});
  }
  const Var x(to_tensor(random_array(Shape{2, 9, 3}, 4)));
  const int64_t sizes[] = {2, 0, 7};
  const std::vector<Var> parts = split(x, 1, sizes);
  REQUIRE(parts.size() == 3);
  CHECK(parts[1].shape() == Shape{2, 0, 3});
  CHECK(concat(parts, 1).dense().to_vector<float>() == x.dense().to_vector<float>());
  const int64_t short_sizes[] = {2, 3};
  CHECK_THROWS_WITH_AS(split(x, 1, short_sizes), doctest::Contains("split: the sizes add up to 5, axis 1 of x [2,9,3] has 9"), Error);
}

TEST_CASE("slice_follows_onnx") {
  struct Row {
    SliceSpec spec;
    std::vector<std::vector<int64_t>> picked;  // indices along each axis
  };
  const std::vector<Row> rows = {
      {{{0, 1, 2}, {2, 4, 5}, {}}, {{0, 1}, {1, 2, 3}, {2, 3, 4}}},
      {{{0, -3, -2}, {1, -1, 1000}, {}}, {{0}, {1, 2}, {4, 5}}},
      {{{0, 0, 0}, {2, 4, 6}, {1, 2, 4}}, {{0, 1}, {0, 2}, {0, 4}}},
      {{{-1, 3, 5}, {-1000, 0, -1000}, {-1, -2, -5}}, {{1, 0}, {3, 1}, {5, 0}}},
      {{{0, 1000, 1}, {1, -1000, 2}, {1000000000000, -1, INT64_MAX}}, {{0}, {3, 2, 1, 0}, {1}}},
  };
  const Shape from{2, 4, 6};
  for (const Row& r : rows) {
    const Shape to{static_cast<int64_t>(r.picked[0].size()), static_cast<int64_t>(r.picked[1].size()), static_cast<int64_t>(r.picked[2].size())};
    CHECK(slice_shape(from, r.spec) == to);
    gradcheck({.name = text("slice to ", to),
               .inputs = {random_array(from, 1)},
               .op = [&r](std::span<const Var> v) { return slice(v[0], r.spec); },
               .reference =
                   [&r, to](const std::vector<Array>& v) {
                     Array y(to);
                     int64_t o = 0;
                     for (const int64_t i : r.picked[0])
                       for (const int64_t j : r.picked[1])
                         for (const int64_t k : r.picked[2]) y[o++] = v[0].at({i, j, k});
                     return y;
                   }});
  }
  CHECK(slice_shape(from, {{1, 3, 0}, {1, 2, 0}, {}}) == Shape{0, 0, 0});
  CHECK_THROWS_WITH_AS(slice_shape(from, {{0, 0, 0}, {1, 1, 1}, {1, 0, 1}}), doctest::Contains("slice: step 0 on axis 1"), Error);
  CHECK_THROWS_WITH_AS(slice_shape(from, {{0}, {1}, {}}), doctest::Contains("x [2,4,6] has 3 axes"), Error);
}

TEST_CASE("pad_surrounds_with_the_value") {
  const int64_t before[] = {0, 1, 2}, after[] = {1, 0, 3};
  gradcheck({.name = "pad",
             .inputs = {random_array(Shape{2, 3, 4}, 1)},
             .op = [&](std::span<const Var> v) { return pad(v[0], before, after, -0.5f); },
             .reference =
                 [](const std::vector<Array>& v) {
                   Array y(Shape{3, 4, 9}, -0.5);
                   for (int64_t i = 0; i < 2; ++i)
                     for (int64_t j = 0; j < 3; ++j)
                       for (int64_t k = 0; k < 4; ++k) y.at({i, j + 1, k + 2}) = v[0].at({i, j, k});
                   return y;
                 }});
  const int64_t negative[] = {0, -1, 0};
  CHECK_THROWS_WITH_AS(pad_shape(Shape{1, 2, 3}, negative, before), doctest::Contains("pad: padding -1 and 1 on axis 1 must not be negative"), Error);
}

TEST_CASE("transpose_and_reshape_move_the_gradient_back") {
  const std::vector<std::vector<int>> permutations = {{0, 1, 2, 3}, {0, 3, 1, 2}, {3, 2, 1, 0}, {1, 0, 3, 2}};
  for (const std::vector<int>& p : permutations) {
    const Shape from{2, 3, 4, 5};
    gradcheck({.name = text("transpose ", p[0], p[1], p[2], p[3]),
               .inputs = {random_array(from, 1)},
               .op = [&p](std::span<const Var> v) { return transpose(v[0], p); },
               .reference =
                   [&p, from](const std::vector<Array>& v) {
                     Array y(Shape{from[p[0]], from[p[1]], from[p[2]], from[p[3]]});
                     for (int64_t i = 0; i < v[0].size(); ++i) {
                       const std::vector<int64_t> at = index_of(from, i);
                       std::vector<int64_t> to(4);
                       for (size_t d = 0; d < 4; ++d) to[d] = at[static_cast<size_t>(p[d])];
                       y[flat(y.shape, to)] = v[0][i];
                     }
                     return y;
                   }});
  }
  gradcheck({.name = "flatten",
             .inputs = {random_array(Shape{2, 3, 4, 5}, 1)},
             .op = [](std::span<const Var> v) { return flatten(v[0]); },
             .reference =
                 [](const std::vector<Array>& v) {
                   Array y(Shape{2, 60});
                   y.v = v[0].v;
                   return y;
                 }});
  const int repeated[] = {0, 0};
  CHECK_THROWS_WITH_AS(transpose_shape(Shape{2, 3}, repeated), doctest::Contains("entry 0 of the permutation is outside or repeated"), Error);
  CHECK(flatten_shape(Shape{2, 3, 4}, 3) == Shape{24, 1});
  const Var coded(Coded{Tensor::zeros(Shape{2, 6}, DType::u8), {0.5f, 3, 0, 255}});
  const Var shaped = reshape(coded, Shape{3, 4});
  REQUIRE(shaped.coded());
  CHECK(shaped.coded()->codes.shares_buffer(coded.coded()->codes));
}
