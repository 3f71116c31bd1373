// Instructions whose lanes are independent and whose operands have one type: the shapes of arithmetic.cpp and float.cpp.
#pragma once

#include "machine.h"

namespace ptx {

template <class T, class F>
void unary(Warp& w, const Instruction& i, uint32_t mask) {
  T* const d = w.at<T>(i.row[0]);
  const T* const a = w.at<T>(i.row[1]);
  each(mask, [&](int l) { d[l] = F::of(a[l]); });
}

template <class T, class F>
void binary(Warp& w, const Instruction& i, uint32_t mask) {
  T* const d = w.at<T>(i.row[0]);
  const T *const a = w.at<T>(i.row[1]), *const b = w.at<T>(i.row[2]);
  each(mask, [&](int l) { d[l] = F::of(a[l], b[l]); });
}

template <class T, class F>
void ternary(Warp& w, const Instruction& i, uint32_t mask) {
  T* const d = w.at<T>(i.row[0]);
  const T *const a = w.at<T>(i.row[1]), *const b = w.at<T>(i.row[2]), *const c = w.at<T>(i.row[3]);
  each(mask, [&](int l) { d[l] = F::of(a[l], b[l], c[l]); });
}

template <class T, class F>
void compare(Warp& w, const Instruction& i, uint32_t mask) {
  uint8_t* const d = w.at<uint8_t>(i.row[0]);
  const T *const a = w.at<T>(i.row[1]), *const b = w.at<T>(i.row[2]);
  each(mask, [&](int l) { d[l] = F::of(a[l], b[l]); });
}

/// "pp", "hhh", ...: as many letters of T's width as an instruction has operands.
template <class T>
const char* same(int count, bool predicate_first = false) {
  static const char* const letters[][5] = {{"", "h", "hh", "hhh", "hhhh"}, {"", "w", "ww", "www", "wwww"}, {"", "d", "dd", "ddd", "dddd"}};
  static const char* const compared[] = {"phh", "pww", "pdd"};
  constexpr int size = sizeof(T) == 2 ? 0 : sizeof(T) == 4 ? 1 : 2;
  return predicate_first ? compared[size] : letters[size][count];
}

using Forms = std::map<std::string, Form>;

inline Form find_form(const Forms& forms, const std::string& name) {
  const auto found = forms.find(name);
  return found == forms.end() ? Form{} : found->second;
}

}  // namespace ptx
