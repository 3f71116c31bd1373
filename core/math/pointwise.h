// Pointwise functions with their derivatives, once, for host and device. fwd(x) is the value, bwd(x, y, dy) is dy * f'(x) with y = f(x).
// To add one: write the functor, add a line to DETENT_POINTWISE_LIST and a row to tests/autograd/pointwise_test.cpp (a missing row fails that test). Pure functions: thread-safe.
#pragma once

#include <cmath>
#include <cstdint>

#include "detent/core/math/hd.h"

namespace detent {

// a and b are the functor's parameters; templated on the scalar so that tests evaluate the same text in double.
struct Identity {
  template <class T> static DETENT_HD T fwd(T x, T, T) { return x; }
  template <class T> static DETENT_HD T bwd(T, T, T dy, T, T) { return dy; }
};
/// clamp to [a,b]; ReLU is [0,inf), ReLU6 [0,6]. NaN passes through; the bounds themselves give no gradient (as PyTorch's ReLU at 0).
struct Clip {
  template <class T> static DETENT_HD T fwd(T x, T a, T b) { return x < a ? a : (x > b ? b : x); }
  template <class T> static DETENT_HD T bwd(T x, T, T dy, T a, T b) { return x <= a || x >= b ? T(0) : dy; }
};
struct LeakyRelu {
  template <class T> static DETENT_HD T fwd(T x, T a, T) { return x < T(0) ? a * x : x; }
  template <class T> static DETENT_HD T bwd(T x, T, T dy, T a, T) { return x < T(0) ? a * dy : dy; }
};
struct Sigmoid {
  template <class T> static DETENT_HD T fwd(T x, T, T) {
    using std::exp;
    return T(1) / (T(1) + exp(-x));
  }
  template <class T> static DETENT_HD T bwd(T, T y, T dy, T, T) { return dy * y * (T(1) - y); }
};
struct Tanh {
  template <class T> static DETENT_HD T fwd(T x, T, T) {
    using std::tanh;
    return tanh(x);
  }
  template <class T> static DETENT_HD T bwd(T, T y, T dy, T, T) { return dy * (T(1) - y * y); }
};
/// ONNX HardSigmoid: clamp(a*x + b, 0, 1).
struct HardSigmoid {
  template <class T> static DETENT_HD T fwd(T x, T a, T b) {
    const T v = a * x + b;
    return v < T(0) ? T(0) : (v > T(1) ? T(1) : v);
  }
  template <class T> static DETENT_HD T bwd(T x, T, T dy, T a, T b) {
    const T v = a * x + b;
    return v <= T(0) || v >= T(1) ? T(0) : a * dy;
  }
};
/// x * clamp(x/6 + 1/2, 0, 1).
struct HardSwish {
  template <class T> static DETENT_HD T fwd(T x, T, T) { return x * HardSigmoid::fwd(x, T(1) / T(6), T(0.5)); }
  template <class T> static DETENT_HD T bwd(T x, T, T dy, T, T) {
    return x <= T(-3) ? T(0) : (x >= T(3) ? dy : dy * (x / T(3) + T(0.5)));
  }
};
/// x * sigmoid(x).
struct Silu {
  template <class T> static DETENT_HD T fwd(T x, T, T) { return x * Sigmoid::fwd(x, T(0), T(0)); }
  template <class T> static DETENT_HD T bwd(T x, T, T dy, T, T) {
    const T s = Sigmoid::fwd(x, T(0), T(0));
    return dy * (s + x * s * (T(1) - s));
  }
};
/// log(1 + exp(x)), without overflow.
struct Softplus {
  template <class T> static DETENT_HD T fwd(T x, T, T) {
    using std::exp;
    using std::log1p;
    return (x > T(0) ? x : T(0)) + log1p(exp(x > T(0) ? -x : x));
  }
  template <class T> static DETENT_HD T bwd(T x, T, T dy, T, T) { return dy * Sigmoid::fwd(x, T(0), T(0)); }
};
/// a*x + b.
struct Affine {
  template <class T> static DETENT_HD T fwd(T x, T a, T b) { return a * x + b; }
  template <class T> static DETENT_HD T bwd(T, T, T dy, T a, T) { return a * dy; }
};

// Generates the PointwiseKind enumerators, the names, and each backend's dispatch.
#define DETENT_POINTWISE_LIST(X) \
  X(identity, Identity)          \
  X(clip, Clip)                  \
  X(leaky_relu, LeakyRelu)       \
  X(sigmoid, Sigmoid)            \
  X(tanh, Tanh)                  \
  X(hard_sigmoid, HardSigmoid)   \
  X(hard_swish, HardSwish)       \
  X(silu, Silu)                  \
  X(softplus, Softplus)          \
  X(affine, Affine)

enum class PointwiseKind : uint8_t {
#define DETENT_X(name, functor) name,
  DETENT_POINTWISE_LIST(DETENT_X)
#undef DETENT_X
};

/// Crosses the kernel table: which function, and its parameters.
struct Pointwise {
  PointwiseKind kind = PointwiseKind::identity;
  float a = 0.0f;
  float b = 0.0f;
};

constexpr const char* name_of(PointwiseKind k) {
  constexpr const char* names[] = {
#define DETENT_X(name, functor) #name,
      DETENT_POINTWISE_LIST(DETENT_X)
#undef DETENT_X
  };
  return names[static_cast<int>(k)];
}

/// Calls fn.template operator()<Functor>() for the kind.
template <class Fn>
constexpr void visit_pointwise(PointwiseKind kind, Fn&& fn) {
  switch (kind) {
#define DETENT_X(name, functor) \
  case PointwiseKind::name: fn.template operator()<functor>(); break;
    DETENT_POINTWISE_LIST(DETENT_X)
#undef DETENT_X
  }
}

}  // namespace detent
