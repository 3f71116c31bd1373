// Builds an ONNX model piece by piece: unique names, initializers, nodes. Internal to io/onnx; used by one thread.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "detent/core/shape.h"
#include "onnx.pb.h"

namespace detent::io::onnx {

/// TensorProto.data_type.
enum ElementType : int32_t { kFloat = 1, kUint8 = 2, kInt8 = 3, kUint16 = 4, kInt16 = 5, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10, kDouble = 11, kBfloat16 = 16, kUint4 = 21, kInt4 = 22 };

/// Metadata key before a parameter's name: "qmin,qmax" of a grid that is narrower than the type its codes are stored in.
inline constexpr std::string_view kCodesKey = "detent.codes:";

bool is_utf8(std::string_view s);

class NodeBuilder {
 public:
  explicit NodeBuilder(NodeProto& node) : node_(node) {}
  NodeBuilder& set(const char* name, int64_t value);
  NodeBuilder& set(const char* name, float value);
  NodeBuilder& set(const char* name, const char* value);
  NodeBuilder& set(const char* name, std::span<const int64_t> values);

 private:
  AttributeProto& attribute(const char* name, int32_t type);
  NodeProto& node_;
};

class Builder {
 public:
  Builder();
  /// Takes a name that must stay as it is. Throws Error when it is in use.
  const std::string& keep(const std::string& name);
  /// `wanted`, with a number behind it when it is in use.
  std::string fresh(const std::string& wanted);

  NodeBuilder node(const char* op, const std::string& name, std::vector<std::string> inputs, const std::string& output);
  /// Initializers; the name must have been taken. `dims` empty: a scalar.
  void floats(const std::string& name, std::span<const int64_t> dims, std::span<const float> values);
  void int64s(const std::string& name, std::span<const int64_t> values);
  void integers(const std::string& name, ElementType type, std::span<const int64_t> dims, std::span<const int32_t> values);

  /// A float value of the network with a symbolic batch; `dims` without the batch.
  void input(const std::string& name, std::span<const int64_t> dims);
  void output(const std::string& name, std::span<const int64_t> dims);
  void require_opset(int64_t version);
  void metadata(const std::string& key, const std::string& value);

  /// The finished model. Throws Error when it does not fit 2 GiB.
  std::string serialize();

 private:
  TensorProto& initializer(const std::string& name, ElementType type, std::span<const int64_t> dims);
  ModelProto model_;
  std::set<std::string> names_;
  int64_t opset_ = 17;
};

}  // namespace detent::io::onnx
