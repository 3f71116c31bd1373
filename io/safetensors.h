// safetensors files: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes without holes or overlap.
// The bytes may come from anywhere: sizes are checked before allocation, and memory stays within a small multiple of the file's size.
// Throws Error naming the file, the tensor and both values. Stateless, thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "detent/core/tensor.h"

namespace detent::io {

struct NamedTensor {
  std::string name;
  Tensor tensor;
  std::string stored_dtype = {};  ///< as the file spells it ("F16"); set by reading, ignored by writing
};

using Metadata = std::map<std::string, std::string>;

struct SafeTensors {
  std::vector<NamedTensor> tensors;  ///< in the order of their bytes
  Metadata metadata;

  /// The tensor of that name, or null.
  const Tensor* find(std::string_view name) const;
};

/// nearest: F32, BF16, U8, I8, I32, I64 as they are; F16 and F64 as f32; BOOL as u8; I16 and U16 as i32; U32 and U64 as i64 (an error past its range).
/// f32: everything converted, rounding to nearest.
enum class TensorTypes : uint8_t { nearest, f32 };

SafeTensors load_safetensors(const std::string& path, TensorTypes types = TensorTypes::nearest);
/// The same from memory; `name` stands for the path in messages.
SafeTensors parse_safetensors(std::span<const uint8_t> bytes, TensorTypes types = TensorTypes::nearest, std::string_view name = "safetensors data");
/// True when the bytes begin like a safetensors file: a length and an opening brace. Nine bytes suffice.
bool is_safetensors(std::span<const uint8_t> first_bytes);

/// The file's bytes: the same tensors and metadata give the same bytes. Larger element types come first, otherwise the given order is kept, so that every
/// tensor is aligned to its element size. Throws Error for duplicate names, names that are not UTF-8 and undefined tensors.
std::string safetensors_bytes(std::span<const NamedTensor> tensors, const Metadata& metadata = {});
/// Writes under a temporary name and renames: a finished file is never lost to a failed write.
void save_safetensors(const std::string& path, std::span<const NamedTensor> tensors, const Metadata& metadata = {});

}  // namespace detent::io
