#include "detent/io/data/example.h"

#include <google/protobuf/io/coded_stream.h>

#include <limits>

#include "detent/io/data/tfrecord.h"
#include "example.pb.h"

namespace detent::io {
namespace {

// Unknown fields may be nested groups: the schema itself is six messages deep.
constexpr int kDepthLimit = 16;

// As in a map: of several entries with one key the last counts.
wire::Feature& feature(wire::Example& example, const char* name, std::string_view where) {
  auto& entries = *example.mutable_features()->mutable_feature();
  for (int i = entries.size() - 1; i >= 0; --i) {
    if (entries[i].key() == name) return *entries[i].mutable_value();
  }
  fail_record(where, ": the record has no feature ", name, " (it has ", entries.size(), " others)");
}

wire::Feature& add_feature(wire::Example& example, const char* name) {
  wire::FeatureEntry& entry = *example.mutable_features()->add_feature();
  entry.set_key(name);
  return *entry.mutable_value();
}

const char* kind_name(const wire::Feature& f) {
  switch (f.kind_case()) {
    case wire::Feature::kBytesList:
      return "bytes";
    case wire::Feature::kFloatList:
      return "float";
    case wire::Feature::kInt64List:
      return "int64";
    case wire::Feature::KIND_NOT_SET:
      break;
  }
  return "no kind at all";
}

}  // namespace

Example parse_example(std::span<const uint8_t> record, std::string_view where) {
  if (record.size() > static_cast<size_t>(std::numeric_limits<int>::max())) fail_record(where, ": ", record.size(), " bytes are too many for one example");
  google::protobuf::io::CodedInputStream in(record.data(), static_cast<int>(record.size()));
  in.SetRecursionLimit(kDepthLimit);
  wire::Example example;
  if (!example.ParseFromCodedStream(&in) || !in.ConsumedEntireMessage()) fail_record(where, ": the record is not a tf.Example");

  wire::Feature& encoded = feature(example, "image/encoded", where);
  if (!encoded.has_bytes_list()) fail_record(where, ": feature image/encoded is ", kind_name(encoded), ", bytes are needed");
  if (encoded.bytes_list().value_size() != 1) fail_record(where, ": feature image/encoded has ", encoded.bytes_list().value_size(), " values, one is needed");
  const wire::Feature& label = feature(example, "image/class/label", where);
  if (!label.has_int64_list()) fail_record(where, ": feature image/class/label is ", kind_name(label), ", int64 is needed");
  if (label.int64_list().value_size() != 1) fail_record(where, ": feature image/class/label has ", label.int64_list().value_size(), " values, one is needed");

  Example out;
  out.label = label.int64_list().value(0);
  out.encoded = std::move(*encoded.mutable_bytes_list()->mutable_value(0));
  return out;
}

std::string serialize_example(std::string_view jpeg, int64_t label, int64_t height, int64_t width) {
  wire::Example example;
  add_feature(example, "image/class/label").mutable_int64_list()->add_value(label);
  add_feature(example, "image/encoded").mutable_bytes_list()->add_value(std::string(jpeg));
  add_feature(example, "image/format").mutable_bytes_list()->add_value("JPEG");
  add_feature(example, "image/height").mutable_int64_list()->add_value(height);
  add_feature(example, "image/width").mutable_int64_list()->add_value(width);
  std::string bytes;
  DETENT_CHECK(example.SerializeToString(&bytes), "example: ", jpeg.size(), " bytes of JPEG cannot be serialized");
  return bytes;
}

}  // namespace detent::io
