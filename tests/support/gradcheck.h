// Gradient check: an op against an independent reference in double. Values are compared directly, gradients with central differences of the reference.
// Tolerances follow from float's epsilon, the longest sum in the op and its conditioning; never a bare number.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "detent/autograd/ops.h"
#include "detent/core/rng.h"

namespace detent::test {

/// A dense array in double, row-major: what references compute with.
struct Array {
  Shape shape;
  std::vector<double> v;

  explicit Array(const Shape& s = Shape{1}, double fill = 0.0) : shape(s), v(static_cast<size_t>(s.elements()), fill) {}
  int64_t size() const { return static_cast<int64_t>(v.size()); }
  double& operator[](int64_t i) { return v[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return v[static_cast<size_t>(i)]; }
  /// Offset of an index given for every axis.
  int64_t offset(std::initializer_list<int64_t> index) const {
    int64_t o = 0;
    int axis = 0;
    for (const int64_t i : index) o = o * shape[axis++] + i;
    return o;
  }
  double& at(std::initializer_list<int64_t> index) { return v[static_cast<size_t>(offset(index))]; }
  double at(std::initializer_list<int64_t> index) const { return v[static_cast<size_t>(offset(index))]; }
};

inline Tensor to_tensor(const Array& a) {
  std::vector<float> f(a.v.begin(), a.v.end());
  return Tensor::from<float>(a.shape, f);
}

/// Uniform in [lo,hi], representable in float, at least `gap` away from each kink.
inline Array random_array(const Shape& shape, uint64_t seed, double lo = -2.0, double hi = 2.0, const std::vector<double>& kinks = {}, double gap = 0.01) {
  Rng rng(seed);
  Array a(shape);
  for (double& x : a.v) {
    bool clear = false;
    while (!clear) {
      x = static_cast<double>(rng.uniform(static_cast<float>(lo), static_cast<float>(hi)));
      clear = true;
      for (const double k : kinks) clear = clear && std::abs(x - k) >= gap;
    }
  }
  return a;
}

/// All values distinct, 0.01 apart, in random order: for maxima.
inline Array distinct_array(const Shape& shape, uint64_t seed) {
  Array a(shape);
  for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<double>(static_cast<float>(0.01 * static_cast<double>(i - a.size() / 2)));
  Rng rng(seed);
  for (int64_t i = a.size() - 1; i > 0; --i) std::swap(a.v[static_cast<size_t>(i)], a.v[static_cast<size_t>(rng.below(i + 1))]);
  return a;
}

struct GradCase {
  std::string name;
  std::vector<Array> inputs;
  std::function<Var(std::span<const Var>)> op;
  std::function<Array(const std::vector<Array>&)> reference;
  int64_t terms = 1;       ///< length of the longest sum in the op or its gradients
  double condition = 4.0;  ///< roundings per term, times how much the op magnifies them
};

inline double largest(const std::vector<double>& v) {
  double m = 0.0;
  for (const double x : v) m = std::max(m, std::abs(x));
  return m;
}

/// Every element of `got` within `tolerance` of `wanted`; reports the worst one.
inline void check_close(const std::string& what, const Tensor& got, const Array& wanted, double tolerance) {
  REQUIRE_MESSAGE(got.defined(), what << " is undefined");
  REQUIRE_MESSAGE(got.shape() == wanted.shape, what << ": shape " << text(got.shape(), " instead of ", wanted.shape));
  const std::vector<float> g = got.to_vector<float>();
  int64_t worst = -1;
  double error = tolerance;
  for (int64_t i = 0; i < wanted.size(); ++i) {
    const double e = std::abs(static_cast<double>(g[static_cast<size_t>(i)]) - wanted[i]);
    if (!(e <= error)) {
      worst = i;
      error = e;
      if (std::isnan(e)) break;
    }
  }
  CHECK_MESSAGE(worst < 0, what << ": element " << worst << " is " << g[static_cast<size_t>(std::max<int64_t>(worst, 0))] << ", reference " << wanted[std::max<int64_t>(worst, 0)]
                                << ", tolerance " << tolerance);
}

/// Runs the op on Vars of which those with tracked[i] are watched; returns their gradients for the upstream gradient dy.
inline std::vector<Tensor> gradients(const GradCase& c, const std::vector<bool>& tracked, const Tensor& dy, Tensor* value) {
  Tape tape;
  std::vector<Var> vars;
  for (size_t i = 0; i < c.inputs.size(); ++i) vars.push_back(tracked[i] ? tape.watch(to_tensor(c.inputs[i])) : Var(to_tensor(c.inputs[i])));
  const Var y = c.op(vars);
  if (value) *value = y.dense();
  tape.backward(y, dy);
  std::vector<Tensor> grads;
  for (size_t i = 0; i < vars.size(); ++i) grads.push_back(tracked[i] ? tape.grad(vars[i]) : Tensor());
  return grads;
}

inline double weighted_sum(const Array& y, const Array& dy) {
  double s = 0.0;
  for (int64_t i = 0; i < y.size(); ++i) s += y[i] * dy[i];
  return s;
}

/// d sum(dy * reference) / d input, at up to 160 elements of the input (the others stay NaN).
inline std::vector<double> numeric_gradient(const GradCase& c, size_t input, const Array& dy) {
  constexpr double kStep = 1e-4;
  std::vector<Array> x = c.inputs;
  const int64_t n = x[input].size(), stride = std::max<int64_t>(1, n / 160);
  std::vector<double> g(static_cast<size_t>(n), std::nan(""));
  for (int64_t i = 0; i < n; i += stride) {
    const double centre = x[input][i];
    x[input][i] = centre + kStep;
    const double above = weighted_sum(c.reference(x), dy);
    x[input][i] = centre - kStep;
    const double below = weighted_sum(c.reference(x), dy);
    x[input][i] = centre;
    g[static_cast<size_t>(i)] = (above - below) / (2.0 * kStep);
  }
  return g;
}

inline void gradcheck(const GradCase& c) {
  INFO("case ", c.name);
  constexpr double kEpsilon = 1.1920929e-7;
  const double relative = kEpsilon * c.condition * static_cast<double>(c.terms + 4);
  const Array wanted = c.reference(c.inputs);
  const Array dy = random_array(wanted.shape, 77, -1.0, 1.0);

  Tensor value;
  const std::vector<Tensor> grads = gradients(c, std::vector<bool>(c.inputs.size(), true), to_tensor(dy), &value);
  check_close(c.name + " value", value, wanted, relative * std::max(largest(wanted.v), 1e-3));

  std::vector<Var> constants;
  for (const Array& a : c.inputs) constants.emplace_back(to_tensor(a));
  CHECK_MESSAGE(c.op(constants).dense().to_vector<float>() == value.to_vector<float>(), c.name << ": inference differs from training");

  for (size_t i = 0; i < c.inputs.size(); ++i) {
    const std::string what = c.name + " gradient of input " + std::to_string(i);
    const std::vector<double> numeric = numeric_gradient(c, i, dy);
    std::vector<double> defined;
    for (const double g : numeric) {
      if (!std::isnan(g)) defined.push_back(g);
    }
    REQUIRE_MESSAGE(grads[i].defined(), what << " is undefined");
    REQUIRE_MESSAGE(grads[i].shape() == c.inputs[i].shape, what << " has another shape than the input");
    const std::vector<float> got = grads[i].to_vector<float>();
    // Central differences err by step^2 / 6 of the third derivative and by rounding / step.
    const double tolerance = (relative + 1e-8) * std::max(largest(defined), 1e-2);
    int64_t bad = 0, first = -1;
    for (size_t k = 0; k < numeric.size(); ++k) {
      if (!std::isnan(numeric[k]) && !(std::abs(static_cast<double>(got[k]) - numeric[k]) <= tolerance)) {
        if (!bad++) first = static_cast<int64_t>(k);
      }
    }
    const size_t at = static_cast<size_t>(std::max<int64_t>(first, 0));
    CHECK_MESSAGE(bad == 0, what << ": " << bad << " elements differ, first " << first << ": " << got[at] << " instead of " << numeric[at] << ", tolerance " << tolerance);

    // Wanted alone it must be the same: an op that skips the others' gradients must not change this one (the order of a sum may differ).
    std::vector<bool> only(c.inputs.size(), false);
    only[i] = true;
    Array together(c.inputs[i].shape);
    together.v.assign(got.begin(), got.end());
    check_close(what + ", wanted alone,", gradients(c, only, to_tensor(dy), nullptr)[i], together, relative * std::max(largest(together.v), 1e-2));
  }
}

}  // namespace detent::test
