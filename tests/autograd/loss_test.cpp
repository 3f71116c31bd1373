// Reductions and losses against their definitions in double.
#include "detent/tests/support/gradcheck.h"

using namespace detent;
using namespace detent::test;

namespace {

Array scalar(double v) { return Array(Shape{1}, v); }

double log_softmax(const Array& x, int64_t row, int64_t k, double temperature = 1.0) {
  double total = 0.0;
  for (int64_t i = 0; i < x.shape[1]; ++i) total += std::exp((x.at({row, i}) - x.at({row, k})) / temperature);
  return -std::log(total);
}

Tensor labels_of(int64_t rows, int64_t classes) {
  std::vector<int64_t> l(static_cast<size_t>(rows));
  for (size_t i = 0; i < l.size(); ++i) l[i] = static_cast<int64_t>((i * 7 + 3) % static_cast<size_t>(classes));
  return Tensor::from<int64_t>(Shape{rows}, l);
}

}  // namespace

TEST_CASE("reductions_match_their_definition") {
  struct Row {
    std::vector<int> axes;
    bool keep;
    Shape out;
  };
  const Row rows[] = {{{1, 2}, true, {2, 1, 1, 5}}, {{1, 2}, false, {2, 5}},      {{-1}, false, {2, 3, 4}},
                      {{0, 1, 2, 3}, false, {1}},   {{0, 2}, true, {1, 3, 1, 5}}, {{}, false, {2, 3, 4, 5}}};
  const Shape from{2, 3, 4, 5};
  for (const Row& r : rows) {
    for (const bool averaged : {false, true}) {
      CHECK(reduce_shape("reduce_sum", from, r.axes, r.keep) == r.out);
      gradcheck({.name = text(averaged ? "reduce_mean " : "reduce_sum ", r.out),
                 .inputs = {random_array(from, 1)},
                 .op = [&](std::span<const Var> v) { return averaged ? reduce_mean(v[0], r.axes, r.keep) : reduce_sum(v[0], r.axes, r.keep); },
                 .reference =
                     [&](const std::vector<Array>& v) {
                       Array y(r.out);
                       bool gone[4] = {};
                       for (const int a : r.axes) gone[(a + 4) % 4] = true;
                       for (int64_t i = 0; i < v[0].size(); ++i) {
                         const int64_t at[] = {i / 60, i / 20 % 3, i / 5 % 4, i % 5};
                         int64_t o = 0;
                         for (int d = 0; d < 4; ++d) o = gone[d] ? o : o * from[d] + at[d];
                         y[o] += averaged ? v[0][i] * static_cast<double>(y.size()) / 120.0 : v[0][i];
                       }
                       return y;
                     },
                 .terms = 120});
    }
  }
  for (const int64_t n : {1, 7, 127, 128, 129, 5000}) {
    gradcheck({.name = text("sum ", n),
               .inputs = {random_array(Shape{n}, 1)},
               .op = [](std::span<const Var> v) { return sum(v[0]); },
               .reference =
                   [](const std::vector<Array>& v) {
                     double s = 0.0;
                     for (const double x : v[0].v) s += x;
                     return scalar(s);
                   },
               .terms = n});
    gradcheck({.name = text("mean ", n),
               .inputs = {random_array(Shape{n}, 1)},
               .op = [](std::span<const Var> v) { return mean(v[0]); },
               .reference =
                   [](const std::vector<Array>& v) {
                     double s = 0.0;
                     for (const double x : v[0].v) s += x / static_cast<double>(v[0].size());
                     return scalar(s);
                   },
               .terms = n});
  }
}

TEST_CASE("softmax_cross_entropy_matches_its_definition") {
  for (const auto& row : {std::pair<int64_t, int64_t>{1, 2}, {7, 10}, {3, 129}, {2, 1}}) {
    const auto& rows = row.first;
    const auto& classes = row.second;
    for (const float smoothing : {0.0f, 0.125f, 1.0f}) {
      gradcheck({.name = text("cross entropy ", rows, "x", classes, " smoothing ", smoothing),
                 .inputs = {random_array(Shape{rows, classes}, 1, -4, 4)},
                 .op = [=](std::span<const Var> v) { return softmax_cross_entropy(v[0], labels_of(rows, classes), smoothing); },
                 .reference =
                     [=](const std::vector<Array>& v) {
                       const std::vector<int64_t> labels = labels_of(rows, classes).to_vector<int64_t>();
                       double loss = 0.0;
                       for (int64_t r = 0; r < rows; ++r)
                         for (int64_t k = 0; k < classes; ++k) {
                           const double t = (k == labels[static_cast<size_t>(r)] ? 1.0 - smoothing : 0.0) + smoothing / static_cast<double>(classes);
                           loss -= t * log_softmax(v[0], r, k) / static_cast<double>(rows);
                         }
                       return scalar(loss);
                     },
                 .terms = rows + classes});
    }
  }
}

TEST_CASE("losses_do_not_overflow") {
  const Tensor labels = Tensor::from<int64_t>(Shape{1}, std::vector<int64_t>{1});
  CHECK(softmax_cross_entropy(Var(Tensor::from(Shape{1, 2}, {1e4f, -1e4f})), labels).dense().item() == 2e4f);
  CHECK(softmax_cross_entropy(Var(Tensor::from(Shape{1, 2}, {-1e4f, 1e4f})), labels).dense().item() == 0.0f);
  CHECK(binary_cross_entropy(Var(Tensor::from(Shape{1}, {1e4f})), Tensor::from(Shape{1}, {0.0f})).dense().item() == 1e4f);
  CHECK(binary_cross_entropy(Var(Tensor::from(Shape{1}, {1e4f})), Tensor::from(Shape{1}, {1.0f})).dense().item() == 0.0f);
  CHECK(std::isnan(softmax_cross_entropy(Var(Tensor::from(Shape{1, 2}, {std::nanf(""), 0.0f})), labels).dense().item()));
}

TEST_CASE("labels_outside_the_classes_are_errors") {
  const Var logits(Tensor::zeros(Shape{2, 3}));
  CHECK_THROWS_WITH_AS(softmax_cross_entropy(logits, Tensor::from<int64_t>(Shape{2}, std::vector<int64_t>{0, 3})), doctest::Contains("label 3 of row 1 is outside the 3 classes"),
                       Error);
  CHECK_THROWS_WITH_AS(softmax_cross_entropy(logits, Tensor::from<int64_t>(Shape{2}, std::vector<int64_t>{-1, 0})), doctest::Contains("label -1 of row 0"), Error);
  CHECK_THROWS_WITH_AS(softmax_cross_entropy(logits, Tensor::zeros(Shape{2})), doctest::Contains("labels is f32[2], i64 wanted"), Error);
  CHECK_THROWS_WITH_AS(softmax_cross_entropy(logits, Tensor::zeros(Shape{3}, DType::i64)), doctest::Contains("labels has shape [3], [2] wanted"), Error);
}

TEST_CASE("mean_squared_error_matches_its_definition") {
  const Array target = random_array(Shape{4, 33}, 2);
  gradcheck({.name = "mse",
             .inputs = {random_array(Shape{4, 33}, 1)},
             .op = [&](std::span<const Var> v) { return mean_squared_error(v[0], to_tensor(target)); },
             .reference =
                 [&](const std::vector<Array>& v) {
                   double s = 0.0;
                   for (int64_t i = 0; i < target.size(); ++i) s += std::pow(v[0][i] - target[i], 2) / static_cast<double>(target.size());
                   return scalar(s);
                 },
             .terms = 132});
}

TEST_CASE("binary_cross_entropy_matches_its_definition") {
  const Array target = random_array(Shape{5, 13}, 2, 0, 1);
  gradcheck({.name = "bce",
             .inputs = {random_array(Shape{5, 13}, 1, -6, 6)},
             .op = [&](std::span<const Var> v) { return binary_cross_entropy(v[0], to_tensor(target)); },
             .reference =
                 [&](const std::vector<Array>& v) {
                   double s = 0.0;
                   for (int64_t i = 0; i < target.size(); ++i) {
                     const double p = 1.0 / (1.0 + std::exp(-v[0][i]));
                     s -= (target[i] * std::log(p) + (1 - target[i]) * std::log(1 - p)) / static_cast<double>(target.size());
                   }
                   return scalar(s);
                 },
             .terms = 65});
}

TEST_CASE("distillation_is_the_tempered_divergence") {
  const Array teacher = random_array(Shape{4, 11}, 2, -5, 5);
  for (const float temperature : {1.0f, 2.0f, 4.5f}) {
    gradcheck({.name = text("distillation ", temperature),
               .inputs = {random_array(Shape{4, 11}, 1, -5, 5)},
               .op = [&](std::span<const Var> v) { return distillation(v[0], to_tensor(teacher), temperature); },
               .reference =
                   [&](const std::vector<Array>& v) {
                     const double t = static_cast<double>(temperature);
                     double s = 0.0;
                     for (int64_t r = 0; r < 4; ++r)
                       for (int64_t k = 0; k < 11; ++k) {
                         const double lp = log_softmax(teacher, r, k, t), lq = log_softmax(v[0], r, k, t);
                         s += t * t * std::exp(lp) * (lp - lq) / 4.0;
                       }
                     return scalar(s);
                   },
               .terms = 44});
  }
  CHECK(std::abs(distillation(Var(to_tensor(teacher)), to_tensor(teacher), 3.0f).dense().item()) <= 9 * 11 * 1.2e-7 * 4);
}
