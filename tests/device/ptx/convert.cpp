// cvt: between integers, between floats, and from one to the other.
#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {
namespace {

using Table = std::map<std::string, Form>;

// A lane's value, whatever type it is.
template <class T>
T in(const Warp& w, const Instruction& i, int lane) {
  return w.get<T>(i, 1, lane);
}
template <class T>
void out(Warp& w, const Instruction& i, int lane, T v) {
  if constexpr (std::is_same_v<T, float>) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    w.put(i, 0, lane, v == v ? bits : 0x7FFFFFFFu);
  } else if constexpr (std::is_same_v<T, double>) {
    uint64_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    w.put(i, 0, lane, bits);
  } else {
    w.put(i, 0, lane, v);
  }
}

enum class To { nearest, zero, down, up };

template <To to, class T>
T whole(T v) {
  if constexpr (to == To::nearest) return std::nearbyint(v);
  if constexpr (to == To::zero) return std::trunc(v);
  if constexpr (to == To::down) return std::floor(v);
  return std::ceil(v);
}

template <class D, class S>
void plain(Warp& w, const Instruction& i, uint32_t mask) {
  if (std::is_integral_v<D> && i.width[0] == sizeof(D) && i.width[1] == sizeof(S)) {
    D* const d = w.at<D>(i.row[0]);
    const S* const s = w.at<S>(i.row[1]);
    each(mask, [&](int l) { d[l] = static_cast<D>(s[l]); });
    return;
  }
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    out(w, i, l, static_cast<D>(in<S>(w, i, l)));
  }
}

template <class T, To to>
void to_whole(Warp& w, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    out(w, i, l, whole<to>(in<T>(w, i, l)));
  }
}

// What is beyond the integer's range becomes its end; NaN becomes 0, or the sign bit where doubles or 64 bits are concerned.
template <class D, class S, To to>
void to_integer(Warp& w, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    const double v = whole<to>(static_cast<double>(in<S>(w, i, l)));
    D d;
    if (v != v) {
      d = sizeof(D) == 8 || sizeof(S) == 8 ? static_cast<D>(uint64_t{1} << (sizeof(D) * 8 - 1)) : D{0};
    } else if (v < static_cast<double>(std::numeric_limits<D>::min())) {
      d = std::numeric_limits<D>::min();
    } else if (v >= std::ldexp(1.0, std::numeric_limits<D>::digits)) {
      d = std::numeric_limits<D>::max();
    } else {
      d = static_cast<D>(v);
    }
    out(w, i, l, d);
  }
}

void saturated(Warp& w, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    const float v = in<float>(w, i, l);
    out(w, i, l, v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f);
  }
}

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

// 10 bits of fraction, ties away from zero.
void to_tf32(Warp& w, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    const float v = in<float>(w, i, l);
    const uint32_t bits = bits_of(v);
    w.put(i, 0, l, v != v ? 0x7FFFFFFFu : std::isinf(v) ? bits : (bits + 0x1000u) & 0xFFFFE000u);
  }
}

uint32_t bfloat(float v) {
  if (v != v) return 0x7FFFu;
  const uint32_t bits = bits_of(v), low = bits & 0xFFFFu, up = bits >> 16;
  return low > 0x8000u || (low == 0x8000u && (up & 1u)) ? up + 1 : up;
}
// The first operand goes to the upper half.
void to_bfloats(Warp& w, const Instruction& i, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const int l = __builtin_ctz(mask);
    w.put(i, 0, l, bfloat(w.get<float>(i, 1, l)) << 16 | bfloat(w.get<float>(i, 2, l)));
  }
}

template <class D>
void add_from_integers(Table& t, const std::string& d, Kind kind) {
  t[d + "u8"] = {plain<D, uint8_t>, "..", kind}, t[d + "s8"] = {plain<D, int8_t>, "..", kind};
  t[d + "u16"] = {plain<D, uint16_t>, "..", kind}, t[d + "s16"] = {plain<D, int16_t>, "..", kind};
  t[d + "u32"] = {plain<D, uint32_t>, "..", kind}, t[d + "s32"] = {plain<D, int32_t>, "..", kind};
  t[d + "u64"] = {plain<D, uint64_t>, "..", kind}, t[d + "s64"] = {plain<D, int64_t>, "..", kind};
}

template <class T>
void add_whole(Table& t, const std::string& type, Kind kind) {
  const std::string both = "." + type + "." + type;
  t["cvt.rni" + both] = {to_whole<T, To::nearest>, "..", kind}, t["cvt.rzi" + both] = {to_whole<T, To::zero>, "..", kind};
  t["cvt.rmi" + both] = {to_whole<T, To::down>, "..", kind}, t["cvt.rpi" + both] = {to_whole<T, To::up>, "..", kind};
}

template <class D>
void add_to_integer(Table& t, const std::string& d) {
  t["cvt.rni." + d + ".f32"] = {to_integer<D, float, To::nearest>, "..", Kind::real}, t["cvt.rzi." + d + ".f32"] = {to_integer<D, float, To::zero>, "..", Kind::real};
  t["cvt.rni." + d + ".f64"] = {to_integer<D, double, To::nearest>, "..", Kind::wide}, t["cvt.rzi." + d + ".f64"] = {to_integer<D, double, To::zero>, "..", Kind::wide};
}

Table all() {
  Table t;
  add_from_integers<uint8_t>(t, "cvt.u8.", Kind::integer), add_from_integers<int8_t>(t, "cvt.s8.", Kind::integer);
  add_from_integers<uint16_t>(t, "cvt.u16.", Kind::integer), add_from_integers<int16_t>(t, "cvt.s16.", Kind::integer);
  add_from_integers<uint32_t>(t, "cvt.u32.", Kind::integer), add_from_integers<int32_t>(t, "cvt.s32.", Kind::integer);
  add_from_integers<uint64_t>(t, "cvt.u64.", Kind::wide), add_from_integers<int64_t>(t, "cvt.s64.", Kind::wide);
  add_from_integers<float>(t, "cvt.rn.f32.", Kind::real), add_from_integers<double>(t, "cvt.rn.f64.", Kind::wide);
  add_whole<float>(t, "f32", Kind::real), add_whole<double>(t, "f64", Kind::wide);
  add_to_integer<int32_t>(t, "s32"), add_to_integer<uint32_t>(t, "u32"), add_to_integer<int64_t>(t, "s64"), add_to_integer<uint64_t>(t, "u64");
  t["cvt.f64.f32"] = {plain<double, float>, "dw", Kind::wide};
  t["cvt.rn.f32.f64"] = {plain<float, double>, "wd", Kind::wide};
  t["cvt.sat.f32.f32"] = {saturated, "ww", Kind::real};
  t["cvt.rna.tf32.f32"] = {to_tf32, "ww", Kind::real};
  t["cvt.rn.bf16x2.f32"] = {to_bfloats, "www", Kind::real};
  return t;
}

}  // namespace

Form conversion_form(const std::string& name) {
  static const Table table = all();
  const auto found = table.find(name);
  return found == table.end() ? Form{} : found->second;
}

}  // namespace ptx
