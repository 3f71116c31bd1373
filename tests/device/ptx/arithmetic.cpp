// Integers, bits, predicates, moves and selections.
#include <limits>
#include <type_traits>

#include "lanes.h"

namespace ptx {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Sums and products are those of the unsigned type: they wrap.
struct Add {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
  }
};
struct Subtract {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
  }
};
struct MultiplyLow {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(static_cast<Unsigned<T>>(a) * static_cast<Unsigned<T>>(b));
  }
};
struct MultiplyHigh {
  static int32_t of(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<int64_t>(a) * b >> 32); }
  static uint32_t of(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
};
struct MultiplyAdd {
  template <class T>
  static T of(T a, T b, T c) {
    return Add::of(MultiplyLow::of(a, b), c);
  }
};
// A divisor of zero is not defined by the ISA.
struct Divide {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) return static_cast<T>(~T{0});
    if (std::is_signed_v<T> && static_cast<int64_t>(b) == -1) return Subtract::of(T{0}, a);
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) return static_cast<T>(~T{0});
    if (std::is_signed_v<T> && static_cast<int64_t>(b) == -1) return 0;
    return static_cast<T>(a % b);
  }
};
struct Least {
  template <class T>
  static T of(T a, T b) {
    return a < b ? a : b;
  }
};
struct Most {
  template <class T>
  static T of(T a, T b) {
    return a > b ? a : b;
  }
};
struct And {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct ExclusiveOr {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};
struct Not {
  template <class T>
  static T of(T a) {
    return static_cast<T>(~a);
  }
};
struct NotPredicate {
  static uint8_t of(uint8_t a) { return a == 0; }
};
struct Negate {
  template <class T>
  static T of(T a) {
    return Subtract::of(T{0}, a);
  }
};
struct Same {
  template <class T>
  static T of(T a) {
    return a;
  }
};

struct Equal {
  template <class T>
  static bool of(T a, T b) {
    return a == b;
  }
};
struct Unequal {
  template <class T>
  static bool of(T a, T b) {
    return a != b;
  }
};
struct Less {
  template <class T>
  static bool of(T a, T b) {
    return a < b;
  }
};
struct LessOrEqual {
  template <class T>
  static bool of(T a, T b) {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  static bool of(T a, T b) {
    return a > b;
  }
};
struct GreaterOrEqual {
  template <class T>
  static bool of(T a, T b) {
    return a >= b;
  }
};

// Amounts have 32 bits, and those beyond the width shift everything out.
template <class T, bool left>
void shift(Warp& w, const Instruction& i, uint32_t mask) {
  T* const d = w.at<T>(i.row[0]);
  const T* const a = w.at<T>(i.row[1]);
  const uint32_t* const b = w.at<uint32_t>(i.row[2]);
  constexpr uint32_t kBits = sizeof(T) * 8;
  each(mask, [&](int l) {
    const uint32_t n = b[l];
    if (left) {
      d[l] = n >= kBits ? T{0} : static_cast<T>(static_cast<Unsigned<T>>(a[l]) << n);
    } else {
      d[l] = n < kBits ? static_cast<T>(a[l] >> n) : static_cast<T>(a[l] >> (kBits - 1) >> 1);
    }
  });
}

template <class Wide, class T>
void multiply_wide(Warp& w, const Instruction& i, uint32_t mask) {
  Wide* const d = w.at<Wide>(i.row[0]);
  const T *const a = w.at<T>(i.row[1]), *const b = w.at<T>(i.row[2]);
  each(mask, [&](int l) { d[l] = static_cast<Wide>(a[l]) * static_cast<Wide>(b[l]); });
}

template <class T>
void select(Warp& w, const Instruction& i, uint32_t mask) {
  T* const d = w.at<T>(i.row[0]);
  const T *const a = w.at<T>(i.row[1]), *const b = w.at<T>(i.row[2]);
  const uint8_t* const p = w.at<uint8_t>(i.row[3]);
  each(mask, [&](int l) { d[l] = p[l] ? a[l] : b[l]; });
}

// A register to another; or one of 64 bits and two of 32, or one of 32 and two of 16: the low half comes first.
void move_bits(Warp& w, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    if (i.operands == 2) {
      w.put(i, 0, l, w.bits(i, 1, l));
    } else if (i.width[0] > i.width[1]) {
      w.put(i, 0, l, w.bits(i, 1, l) | w.bits(i, 2, l) << i.width[1] * 8);
    } else {
      const uint64_t v = w.bits(i, 2, l);
      w.put(i, 0, l, v);
      w.put(i, 1, l, v >> i.width[0] * 8);
    }
  }
}

template <class T>
void add_integers(Forms& f, const std::string& type) {
  constexpr Kind k = sizeof(T) == 8 ? Kind::wide : Kind::integer;
  f["add." + type] = {binary<T, Add>, same<T>(3), k};
  f["sub." + type] = {binary<T, Subtract>, same<T>(3), k};
  f["mul.lo." + type] = {binary<T, MultiplyLow>, same<T>(3), k};
  f["mad.lo." + type] = {ternary<T, MultiplyAdd>, same<T>(4), k};
  f["div." + type] = {binary<T, Divide>, same<T>(3), k};
  f["rem." + type] = {binary<T, Remainder>, same<T>(3), k};
  f["min." + type] = {binary<T, Least>, same<T>(3), k};
  f["max." + type] = {binary<T, Most>, same<T>(3), k};
  f["neg." + type] = {unary<T, Negate>, same<T>(2), k};
}

template <class T>
void add_bits(Forms& f, const std::string& type) {
  constexpr Kind k = sizeof(T) == 8 ? Kind::wide : Kind::integer;
  f["and." + type] = {binary<T, And>, same<T>(3), k};
  f["or." + type] = {binary<T, Or>, same<T>(3), k};
  f["xor." + type] = {binary<T, ExclusiveOr>, same<T>(3), k};
  f["not." + type] = {unary<T, Not>, same<T>(2), k};
}

template <class T>
void add_compared(Forms& f, const std::string& type) {
  const auto put = [&](const char* name, Run run) { f["setp." + std::string(name) + "." + type] = {run, same<T>(0, true), Kind::integer}; };
  put("eq", compare<T, Equal>), put("ne", compare<T, Unequal>), put("lt", compare<T, Less>);
  put("le", compare<T, LessOrEqual>), put("gt", compare<T, Greater>), put("ge", compare<T, GreaterOrEqual>);
}

template <class T>
void add_moved(Forms& f, const std::string& type) {
  f["mov." + type] = {unary<T, Same>, same<T>(2), Kind::integer};
  static const std::string letters = std::string(same<T>(3)) + "p";
  f["selp." + type] = {select<T>, letters.c_str(), Kind::integer};
}

Forms all() {
  Forms f;
  add_integers<int16_t>(f, "s16"), add_integers<uint16_t>(f, "u16");
  add_integers<int32_t>(f, "s32"), add_integers<uint32_t>(f, "u32");
  add_integers<int64_t>(f, "s64"), add_integers<uint64_t>(f, "u64");
  add_bits<uint16_t>(f, "b16"), add_bits<uint32_t>(f, "b32"), add_bits<uint64_t>(f, "b64");
  add_compared<int16_t>(f, "s16"), add_compared<uint16_t>(f, "u16"), add_compared<uint16_t>(f, "b16");
  add_compared<int32_t>(f, "s32"), add_compared<uint32_t>(f, "u32"), add_compared<uint32_t>(f, "b32");
  add_compared<int64_t>(f, "s64"), add_compared<uint64_t>(f, "u64"), add_compared<uint64_t>(f, "b64");
  for (const char* type : {"u16", "s16"}) add_moved<uint16_t>(f, type);
  for (const char* type : {"u32", "s32", "f32"}) add_moved<uint32_t>(f, type);
  for (const char* type : {"u64", "s64", "f64"}) add_moved<uint64_t>(f, type);
  add_moved<uint16_t>(f, "b16"), add_moved<uint32_t>(f, "b32"), add_moved<uint64_t>(f, "b64");
  f["mov.b16"] = {unary<uint16_t, Same>, "hh", Kind::integer};
  f["mov.b32"] = f["mov.b64"] = {move_bits, ".*", Kind::integer};
  f["mov.pred"] = {unary<uint8_t, Same>, "pp", Kind::integer};
  f["not.pred"] = {unary<uint8_t, NotPredicate>, "pp", Kind::integer};
  f["and.pred"] = {binary<uint8_t, And>, "ppp", Kind::integer};
  f["or.pred"] = {binary<uint8_t, Or>, "ppp", Kind::integer};
  f["xor.pred"] = {binary<uint8_t, ExclusiveOr>, "ppp", Kind::integer};
  f["mul.hi.s32"] = {binary<int32_t, MultiplyHigh>, "www", Kind::integer};
  f["mul.hi.u32"] = {binary<uint32_t, MultiplyHigh>, "www", Kind::integer};
  f["mul.wide.s32"] = {multiply_wide<int64_t, int32_t>, "dww", Kind::wide};
  f["mul.wide.u32"] = {multiply_wide<uint64_t, uint32_t>, "dww", Kind::wide};
  f["shl.b32"] = {shift<uint32_t, true>, "www", Kind::integer};
  f["shl.b64"] = {shift<uint64_t, true>, "ddw", Kind::wide};
  f["shr.u32"] = {shift<uint32_t, false>, "www", Kind::integer};
  f["shr.s32"] = {shift<int32_t, false>, "www", Kind::integer};
  f["shr.u64"] = {shift<uint64_t, false>, "ddw", Kind::wide};
  f["shr.s64"] = {shift<int64_t, false>, "ddw", Kind::wide};
  return f;
}

}  // namespace

Form arithmetic_form(const std::string& name) {
  static const Forms forms = all();
  return find_form(forms, name);
}

}  // namespace ptx
