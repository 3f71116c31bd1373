// AIMET encodings files: write 0.6.1, 1.0.0 and 2.0.0, read these and 0.4.0 to 0.6.2 and 2.1.0, from and to one EncodingMap. Thread-safe.
// Offsets: 0.6.1 and 1.0.0 hold qmin - zero_point (minus the zero point on the unsigned grid); 2.0.0 holds y_zero_point and an integer type.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "detent/quant/encoding.h"

namespace detent::io {

/// Names in the order "0.6.1", "1.0.0", "2.0.0".
const std::vector<std::string>& encodings_versions();

/// The file's text; scales are written so that reading gives the same bits. Throws Error for an unknown version or a grid that version cannot hold.
std::string write_encodings(const quant::EncodingMap& map, std::string_view version = "1.0.0");

/// Reads text of any version; `source_name` appears in messages. Throws Error with the JSON path for anything malformed, too deep or too large.
/// A 2.0.0 file does not say what is a parameter: entries with an axis or a signed type become params. Entries this library has no grid for
/// (blockwise, LPBQ, vector, fp8) are an Error.
quant::EncodingMap read_encodings(std::string_view text, std::string_view source_name);

}  // namespace detent::io
