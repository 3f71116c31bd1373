#include "detent/io/onnx/builder.h"

#include <bit>
#include <limits>

#include "detent/core/error.h"

namespace detent::io::onnx {
namespace {

static_assert(std::endian::native == std::endian::little, "raw_data is little endian");

template <class T>
void put_raw(TensorProto& t, std::span<const int32_t> values) {
  std::string raw(values.size() * sizeof(T), '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    const T v = static_cast<T>(values[i]);
    raw.replace(i * sizeof(T), sizeof(T), reinterpret_cast<const char*>(&v), sizeof(T));
  }
  t.set_raw_data(std::move(raw));
}

void describe(ValueInfoProto& info, const std::string& name, std::span<const int64_t> dims) {
  info.set_name(name);
  auto* type = info.mutable_type()->mutable_tensor_type();
  type->set_elem_type(kFloat);
  type->mutable_shape()->add_dim()->set_dim_param("N");
  for (const int64_t d : dims) type->mutable_shape()->add_dim()->set_dim_value(d);
}

}  // namespace

bool is_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto c = static_cast<uint8_t>(s[i]);
    const size_t n = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
    if (n == 0 || i + n > s.size()) return false;
    uint32_t code = n == 1 ? c : c & (0x7Fu >> n);
    for (size_t k = 1; k < n; ++k) {
      const auto follow = static_cast<uint8_t>(s[i + k]);
      if ((follow & 0xC0) != 0x80) return false;
      code = code << 6 | (follow & 0x3F);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[n] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
    i += n;
  }
  return true;
}

AttributeProto& NodeBuilder::attribute(const char* name, int32_t type) {
  AttributeProto& a = *node_.add_attribute();
  a.set_name(name);
  a.set_type(type);
  return a;
}

NodeBuilder& NodeBuilder::set(const char* name, int64_t value) {
  attribute(name, 2).set_i(value);
  return *this;
}

NodeBuilder& NodeBuilder::set(const char* name, float value) {
  attribute(name, 1).set_f(value);
  return *this;
}

NodeBuilder& NodeBuilder::set(const char* name, const char* value) {
  attribute(name, 3).set_s(value);
  return *this;
}

NodeBuilder& NodeBuilder::set(const char* name, std::span<const int64_t> values) {
  AttributeProto& a = attribute(name, 7);
  for (const int64_t v : values) a.add_ints(v);
  return *this;
}

Builder::Builder() {
  model_.set_producer_name("detent");
  model_.mutable_graph()->set_name("network");
}

const std::string& Builder::keep(const std::string& name) {
  DETENT_CHECK(is_utf8(name), "onnx export: a name is not UTF-8 text");
  DETENT_CHECK(names_.insert(name).second, "onnx export: two values are named \"", name, "\"; names are keys and must be unique");
  return name;
}

std::string Builder::fresh(const std::string& wanted) {
  std::string name = wanted;
  for (int i = 2; !names_.insert(name).second; ++i) name = text(wanted, "_", i);
  return name;
}

NodeBuilder Builder::node(const char* op, const std::string& name, std::vector<std::string> inputs, const std::string& output) {
  NodeProto& n = *model_.mutable_graph()->add_node();
  n.set_op_type(op);
  n.set_name(name);
  for (std::string& i : inputs) n.add_input(std::move(i));
  n.add_output(output);
  return NodeBuilder(n);
}

TensorProto& Builder::initializer(const std::string& name, ElementType type, std::span<const int64_t> dims) {
  TensorProto& t = *model_.mutable_graph()->add_initializer();
  t.set_name(name);
  t.set_data_type(type);
  for (const int64_t d : dims) t.add_dims(d);
  return t;
}

void Builder::floats(const std::string& name, std::span<const int64_t> dims, std::span<const float> values) {
  initializer(name, kFloat, dims).set_raw_data(values.data(), values.size_bytes());
}

void Builder::int64s(const std::string& name, std::span<const int64_t> values) {
  const int64_t dims[] = {static_cast<int64_t>(values.size())};
  initializer(name, kInt64, dims).set_raw_data(values.data(), values.size_bytes());
}

void Builder::integers(const std::string& name, ElementType type, std::span<const int64_t> dims, std::span<const int32_t> values) {
  TensorProto& t = initializer(name, type, dims);
  switch (type) {
    case kUint8: return put_raw<uint8_t>(t, values);
    case kInt8: return put_raw<int8_t>(t, values);
    case kUint16: return put_raw<uint16_t>(t, values);
    case kInt16: return put_raw<int16_t>(t, values);
    case kInt32: return put_raw<int32_t>(t, values);
    default: fail("onnx export: \"", name, "\": element type ", int32_t{type}, " is not an integer type");
  }
}

void Builder::input(const std::string& name, std::span<const int64_t> dims) { describe(*model_.mutable_graph()->add_input(), name, dims); }
void Builder::output(const std::string& name, std::span<const int64_t> dims) { describe(*model_.mutable_graph()->add_output(), name, dims); }

void Builder::metadata(const std::string& key, const std::string& value) {
  Entry& e = *model_.add_metadata_props();
  e.set_key(key);
  e.set_value(value);
}

void Builder::require_opset(int64_t version) { opset_ = std::max(opset_, version); }

std::string Builder::serialize() {
  model_.set_ir_version(opset_ >= 21 ? 10 : 8);
  model_.clear_opset_import();
  model_.add_opset_import()->set_version(opset_);
  DETENT_CHECK(model_.ByteSizeLong() <= static_cast<size_t>(std::numeric_limits<int32_t>::max()), "onnx export: the model has ", model_.ByteSizeLong(), " bytes, and a file holds at most 2 GiB");
  std::string bytes;
  DETENT_CHECK(model_.SerializeToString(&bytes), "onnx export: the model cannot be serialized");
  return bytes;
}

}  // namespace detent::io::onnx
