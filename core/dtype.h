// Element types of tensors. Constants and pure functions: thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

namespace detent {

enum class DType : unsigned char { f32, bf16, u8, s8, i32, i64 };

constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::u8:
    case DType::s8: return 1;
    case DType::bf16: return 2;
    case DType::f32:
    case DType::i32: return 4;
    case DType::i64: return 8;
  }
  return 0;
}

constexpr std::string_view to_string(DType t) {
  constexpr std::string_view names[] = {"f32", "bf16", "u8", "s8", "i32", "i64"};
  return names[static_cast<int>(t)];
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> { static constexpr DType value = DType::f32; };
template <>
struct DTypeOf<uint8_t> { static constexpr DType value = DType::u8; };
template <>
struct DTypeOf<int8_t> { static constexpr DType value = DType::s8; };
template <>
struct DTypeOf<uint16_t> { static constexpr DType value = DType::bf16; };
template <>
struct DTypeOf<int32_t> { static constexpr DType value = DType::i32; };
template <>
struct DTypeOf<int64_t> { static constexpr DType value = DType::i64; };

}  // namespace detent
