// tf.Example: the features image/encoded (one bytes value) and image/class/label (one int64) of a record.
// Throws BadRecord, beginning with `where`, when a feature is missing, of another kind or not single. Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace detent::io {

struct Example {
  std::string encoded;  ///< the JPEG file
  int64_t label = 0;    ///< as in the record
};

/// `where` names file and offset.
Example parse_example(std::span<const uint8_t> record, std::string_view where);

/// A record with image/encoded, image/class/label, image/height, image/width and image/format; the same bytes for the same arguments.
std::string serialize_example(std::string_view jpeg, int64_t label, int64_t height, int64_t width);

}  // namespace detent::io
