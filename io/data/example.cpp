#include "detent/io/data/example.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <limits>

#include "detent/io/data/tfrecord.h"
#include "example.pb.h"

namespace detent::io {
namespace {

// Unknown fields may be nested groups: the schema itself is six messages deep.
constexpr int kDepthLimit = 16;

const wire::Feature& feature(const wire::Example& example, const char* name, std::string_view where) {
  const auto& map = example.features().feature();
  const auto it = map.find(name);
  if (it == map.end()) fail_record(where, ": the record has no feature ", name, " (it has ", map.size(), " others)");
  return it->second;
}

const char* kind_name(const wire::Feature& f) {
  switch (f.kind_case()) {
    case wire::Feature::kBytesList: return "bytes";
    case wire::Feature::kFloatList: return "float";
    case wire::Feature::kInt64List: return "int64";
    case wire::Feature::KIND_NOT_SET: break;
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

  const wire::Feature& encoded = feature(example, "image/encoded", where);
  if (!encoded.has_bytes_list()) fail_record(where, ": feature image/encoded is ", kind_name(encoded), ", bytes are needed");
  if (encoded.bytes_list().value_size() != 1) fail_record(where, ": feature image/encoded has ", encoded.bytes_list().value_size(), " values, one is needed");
  const wire::Feature& label = feature(example, "image/class/label", where);
  if (!label.has_int64_list()) fail_record(where, ": feature image/class/label is ", kind_name(label), ", int64 is needed");
  if (label.int64_list().value_size() != 1) fail_record(where, ": feature image/class/label has ", label.int64_list().value_size(), " values, one is needed");

  Example out;
  out.label = label.int64_list().value(0);
  auto& map = *example.mutable_features()->mutable_feature();
  out.encoded = std::move(*map["image/encoded"].mutable_bytes_list()->mutable_value(0));
  return out;
}

std::string serialize_example(std::string_view jpeg, int64_t label, int64_t height, int64_t width) {
  wire::Example example;
  auto& map = *example.mutable_features()->mutable_feature();
  map["image/encoded"].mutable_bytes_list()->add_value(std::string(jpeg));
  map["image/format"].mutable_bytes_list()->add_value("JPEG");
  map["image/class/label"].mutable_int64_list()->add_value(label);
  map["image/height"].mutable_int64_list()->add_value(height);
  map["image/width"].mutable_int64_list()->add_value(width);
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream out(&stream);
    out.SetSerializationDeterministic(true);
    DETENT_CHECK(example.SerializeToCodedStream(&out), "example: ", jpeg.size(), " bytes of JPEG cannot be serialized");
  }
  return bytes;
}

}  // namespace detent::io
