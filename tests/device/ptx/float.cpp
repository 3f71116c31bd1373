// Arithmetic of floats. Results that are not numbers are the ISA's one NaN.
#include <cfenv>
#include <cmath>
#include <limits>

#include "lanes.h"

namespace ptx {
namespace {

inline __attribute__((always_inline)) float canonical(float v) {
  if (v == v) return v;
  const uint32_t bits = 0x7FFFFFFFu;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
double canonical(double v) { return v; }

struct Add {
  template <class T>
  static T of(T a, T b) {
    return canonical(a + b);
  }
};
struct Subtract {
  template <class T>
  static T of(T a, T b) {
    return canonical(a - b);
  }
};
struct Multiply {
  template <class T>
  static T of(T a, T b) {
    return canonical(a * b);
  }
};
struct Divide {
  template <class T>
  static T of(T a, T b) {
    return canonical(a / b);
  }
};
struct MultiplyAdd {
  template <class T>
  static T of(T a, T b, T c) {
    return canonical(std::fma(a, b, c));
  }
};
#if defined(__x86_64__)
// With the processor's own instruction, where it has one.
__attribute__((target("avx2,fma"))) void multiply_add_row(float* d, const float* a, const float* b, const float* c) {
  for (int l = 0; l < kLanes; ++l) d[l] = canonical(__builtin_fmaf(a[l], b[l], c[l]));
}
void multiply_add(Warp& w, const Instruction& i, uint32_t mask) {
  static const bool has_it = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!has_it || mask != ~0u) return ternary<float, MultiplyAdd>(w, i, mask);
  multiply_add_row(w.at<float>(i.row[0]), w.at<float>(i.row[1]), w.at<float>(i.row[2]), w.at<float>(i.row[3]));
}
#else
constexpr Run multiply_add = ternary<float, MultiplyAdd>;
#endif

struct Root {
  template <class T>
  static T of(T a) {
    return canonical(std::sqrt(a));
  }
};
struct Reciprocal {
  template <class T>
  static T of(T a) {
    return canonical(T{1} / a);
  }
};
struct Negate {
  template <class T>
  static T of(T a) {
    return -a;
  }
};
struct Absolute {
  template <class T>
  static T of(T a) {
    return std::fabs(a);
  }
};
// The sign of a with the value of b.
struct CopySign {
  template <class T>
  static T of(T a, T b) {
    return std::copysign(b, a);
  }
};
// A NaN gives way to a number, and -0 is less than +0.
struct Most {
  template <class T>
  static T of(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    return a == b ? (std::signbit(a) ? b : a) : (a > b ? a : b);
  }
};
struct Least {
  template <class T>
  static T of(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    return a == b ? (std::signbit(a) ? a : b) : (a < b ? a : b);
  }
};

// Rounded another way than to the nearest.
template <int Mode>
struct Rounding {
  int before = std::fegetround();
  Rounding() { std::fesetround(Mode); }
  ~Rounding() { std::fesetround(before); }
};
struct MultiplyAddDown {
  static float of(float a, float b, float c) {
    const Rounding<FE_DOWNWARD> rounding;
    volatile float x = a, y = b, z = c;
    volatile float r = std::fma(x, y, z);
    return canonical(r);
  }
};
struct AddToZero {
  static float of(float a, float b) {
    const Rounding<FE_TOWARDZERO> rounding;
    volatile float x = a, y = b;
    volatile float r = x + y;
    return canonical(r);
  }
};

// Approximations: their last bits are the device's own; denormals are zero.
float flushed(float v) { return std::fabs(v) < std::numeric_limits<float>::min() ? std::copysign(0.0f, v) : v; }
struct PowerOfTwo {
  static float of(float a) { return canonical(flushed(static_cast<float>(std::exp2(static_cast<double>(flushed(a)))))); }
};
struct ReciprocalRoughly {
  static float of(float a) { return canonical(flushed(1.0f / flushed(a))); }
  // From the upper 32 bits of the number to those of the result.
  static double of(double a) {
    uint64_t bits;
    std::memcpy(&bits, &a, sizeof bits);
    bits &= 0xFFFFFFFF00000000u;
    std::memcpy(&a, &bits, sizeof bits);
    double r = 1.0 / a;
    std::memcpy(&bits, &r, sizeof bits);
    bits &= 0xFFFFFFFF00000000u;
    std::memcpy(&r, &bits, sizeof bits);
    return r;
  }
};

struct Equal {
  static bool of(auto a, auto b) { return a == b; }
};
struct Unequal {
  static bool of(auto a, auto b) { return a < b || a > b; }
};
struct Less {
  static bool of(auto a, auto b) { return a < b; }
};
struct LessOrEqual {
  static bool of(auto a, auto b) { return a <= b; }
};
struct Greater {
  static bool of(auto a, auto b) { return a > b; }
};
struct GreaterOrEqual {
  static bool of(auto a, auto b) { return a >= b; }
};
struct Numbers {
  static bool of(auto a, auto b) { return a == a && b == b; }
};
// As F, or one of them is not a number.
template <class F>
struct Or {
  static bool of(auto a, auto b) { return F::of(a, b) || !Numbers::of(a, b); }
};
struct Never {
  static bool of(auto, auto) { return false; }
};

template <class T>
void add_type(Forms& f, const std::string& type) {
  constexpr Kind k = sizeof(T) == 8 ? Kind::wide : Kind::real;
  f["add.rn." + type] = {binary<T, Add>, same<T>(3), k};
  f["sub.rn." + type] = {binary<T, Subtract>, same<T>(3), k};
  f["mul.rn." + type] = {binary<T, Multiply>, same<T>(3), k};
  f["div.rn." + type] = {binary<T, Divide>, same<T>(3), k};
  f["fma.rn." + type] = {ternary<T, MultiplyAdd>, same<T>(4), k};
  f["sqrt.rn." + type] = {unary<T, Root>, same<T>(2), k};
  f["rcp.rn." + type] = {unary<T, Reciprocal>, same<T>(2), k};
  f["neg." + type] = {unary<T, Negate>, same<T>(2), k};
  f["abs." + type] = {unary<T, Absolute>, same<T>(2), k};
  f["copysign." + type] = {binary<T, CopySign>, same<T>(3), k};
  f["max." + type] = {binary<T, Most>, same<T>(3), k};
  f["min." + type] = {binary<T, Least>, same<T>(3), k};
  const auto put = [&](const char* name, Run run) { f["setp." + std::string(name) + "." + type] = {run, same<T>(0, true), k}; };
  put("eq", compare<T, Equal>), put("ne", compare<T, Unequal>), put("lt", compare<T, Less>), put("le", compare<T, LessOrEqual>);
  put("gt", compare<T, Greater>), put("ge", compare<T, GreaterOrEqual>), put("num", compare<T, Numbers>), put("nan", compare<T, Or<Never>>);
  put("equ", compare<T, Or<Equal>>), put("neu", compare<T, Or<Unequal>>), put("ltu", compare<T, Or<Less>>), put("leu", compare<T, Or<LessOrEqual>>);
  put("gtu", compare<T, Or<Greater>>), put("geu", compare<T, Or<GreaterOrEqual>>);
}

Forms all() {
  Forms f;
  add_type<float>(f, "f32");
  add_type<double>(f, "f64");
  f["fma.rn.f32"].run = multiply_add;
  f["fma.rm.f32"] = {ternary<float, MultiplyAddDown>, "wwww", Kind::real};
  f["add.rz.f32"] = {binary<float, AddToZero>, "www", Kind::real};
  f["ex2.approx.ftz.f32"] = {unary<float, PowerOfTwo>, "ww", Kind::real};
  f["rcp.approx.ftz.f32"] = {unary<float, ReciprocalRoughly>, "ww", Kind::real};
  f["rcp.approx.ftz.f64"] = {unary<double, ReciprocalRoughly>, "dd", Kind::wide};
  return f;
}

}  // namespace

Form float_form(const std::string& name) {
  static const Forms forms = all();
  return find_form(forms, name);
}

}  // namespace ptx
