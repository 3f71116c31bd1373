// Every function of core/math/pointwise.h in double against an independent formula, and its derivative against central differences;
// then the op on the tape. A kind without a row fails.
#include "detent/core/math/pointwise.h"

#include <set>

#include "detent/tests/support/gradcheck.h"

using namespace detent;
using namespace detent::test;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Row {
  PointwiseKind kind;
  double a, b;
  std::function<double(double)> f;
  std::vector<double> kinks;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> table = {
      {PointwiseKind::identity, 0, 0, [](double x) { return x; }, {}},
      {PointwiseKind::clip, 0, kInf, [](double x) { return (x + std::abs(x)) / 2; }, {0}},
      {PointwiseKind::clip, 0, 6, [](double x) { return std::fmin(std::fmax(x, 0.0), 6.0); }, {0, 6}},
      {PointwiseKind::clip, -1.5, 0.25, [](double x) { return std::fmin(std::fmax(x, -1.5), 0.25); }, {-1.5, 0.25}},
      {PointwiseKind::leaky_relu, 0.125, 0, [](double x) { return 0.5625 * x + 0.4375 * std::abs(x); }, {0}},
      {PointwiseKind::leaky_relu, -0.25, 0, [](double x) { return 0.375 * x + 0.625 * std::abs(x); }, {0}},
      {PointwiseKind::sigmoid, 0, 0, [](double x) { return 0.5 + 0.5 * std::tanh(x / 2); }, {}},
      {PointwiseKind::tanh, 0, 0, [](double x) { return 1 - 2 / (std::exp(2 * x) + 1); }, {}},
      {PointwiseKind::hard_sigmoid, 0.25, 0.5, [](double x) { return std::fmax(0.0, std::fmin(1.0, x / 4 + 0.5)); }, {-2, 2}},
      {PointwiseKind::hard_swish, 0, 0, [](double x) { return x * std::fmin(std::fmax(x + 3, 0.0), 6.0) / 6; }, {-3, 3}},
      {PointwiseKind::silu, 0, 0, [](double x) { return x / (1 + std::exp(-x)); }, {}},
      {PointwiseKind::softplus, 0, 0, [](double x) { return std::log(1 + std::exp(x)); }, {}},
      {PointwiseKind::affine, -1.75, 0.375, [](double x) { return 0.375 - 1.75 * x; }, {}},
  };
  return table;
}

std::vector<double> points(const Row& r) {
  std::vector<double> xs;
  for (int i = -400; i <= 400; ++i) {
    const double x = 0.02 * i + 0.003;
    bool clear = true;
    for (const double k : r.kinks) clear = clear && std::abs(x - k) > 1e-3;
    if (clear) xs.push_back(x);
  }
  return xs;
}

}  // namespace

TEST_CASE("every_pointwise_kind_has_a_row") {
  std::set<PointwiseKind> covered;
  for (const Row& r : rows()) covered.insert(r.kind);
#define DETENT_X(name, functor) CHECK_MESSAGE(covered.count(PointwiseKind::name) == 1, "no row for " #name);
  DETENT_POINTWISE_LIST(DETENT_X)
#undef DETENT_X
}

TEST_CASE("pointwise_functors_match_their_definition_in_double") {
  for (const Row& r : rows()) {
    visit_pointwise(r.kind, [&]<class F>() {
      for (const double x : points(r)) {
        const double y = F::fwd(x, r.a, r.b);
        CHECK_MESSAGE(std::abs(y - r.f(x)) <= 1e-9, name_of(r.kind) << "(" << x << ") = " << y << ", definition " << r.f(x));
        const double h = 1e-5, numeric = (r.f(x + h) - r.f(x - h)) / (2 * h);
        const double got = F::bwd(x, y, 1.0, r.a, r.b);
        CHECK_MESSAGE(std::abs(got - numeric) <= 1e-8, name_of(r.kind) << "'(" << x << ") = " << got << ", central difference " << numeric);
        CHECK(F::bwd(x, y, -2.5, r.a, r.b) == doctest::Approx(-2.5 * got).epsilon(1e-14));
      }
    });
  }
}

TEST_CASE("pointwise_ops_match_the_reference_on_the_tape") {
  for (const Row& r : rows()) {
    for (const int64_t n : {1, 7, 127, 128, 129, 1000}) {
      const Pointwise op{r.kind, static_cast<float>(r.a), static_cast<float>(r.b)};
      gradcheck({.name = text(name_of(r.kind), " n=", n),
                 .inputs = {random_array(Shape{n}, 5 + static_cast<uint64_t>(n), -7, 7, r.kinks)},
                 .op = [op](std::span<const Var> x) { return pointwise(x[0], op); },
                 .reference =
                     [&r](const std::vector<Array>& x) {
                       Array y = x[0];
                       for (double& v : y.v) v = r.f(v);
                       return y;
                     },
                 .terms = 1});
    }
  }
}

TEST_CASE("pointwise_edges") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor x = Tensor::from(Shape{5}, {nan, -kInfinity, kInfinity, 0.0f, 6.0f});
  Tape tape;
  const Var v = tape.watch(x);
  const Var y = clip(v, 0.0f, 6.0f);
  const std::vector<float> got = y.dense().to_vector<float>();
  CHECK(std::isnan(got[0]));
  CHECK(std::vector<float>(got.begin() + 1, got.end()) == std::vector<float>{0, 6, 0, 6});
  tape.backward(y, Tensor::full(Shape{5}, 1.0f));
  const std::vector<float> d = tape.grad(v).to_vector<float>();
  CHECK(std::vector<float>(d.begin() + 1, d.end()) == std::vector<float>{0, 0, 0, 0});  // the bounds give no gradient
  CHECK(softplus(Var(Tensor::from(Shape{3}, {100.0f, -200.0f, 0.0f}))).dense().to_vector<float>() == std::vector<float>{100.0f, 0.0f, std::log(2.0f)});
  CHECK_THROWS_WITH_AS(clip(v, 1.0f, 0.0f), doctest::Contains("clip: the lower bound 1 is above the upper bound 0"), Error);
}
