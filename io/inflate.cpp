#include "detent/io/inflate.h"

#include <zlib.h>

#include <algorithm>
#include <limits>

#include "detent/core/error.h"

namespace detent::io {

std::string inflate_zlib(std::string_view stream, size_t size, const std::string& what) {
  constexpr size_t kMost = std::numeric_limits<uInt>::max();
  DETENT_CHECK(stream.size() <= kMost && size < kMost, what, ": ", static_cast<uint64_t>(std::max(stream.size(), size)), " bytes in one compressed piece; 4 GB are the limit");
  std::string out(size + 1, '\0');  // one more: a stream that goes on is noticed
  z_stream z = {};
  DETENT_CHECK(inflateInit(&z) == Z_OK, what, ": no memory to decompress it");
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(stream.data()));
  z.avail_in = static_cast<uInt>(stream.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  const int result = inflate(&z, Z_FINISH);
  const auto written = static_cast<size_t>(z.total_out), read = static_cast<size_t>(z.total_in);
  inflateEnd(&z);
  DETENT_CHECK(result == Z_STREAM_END && written == size, what, ": its compressed data is damaged at byte ", static_cast<uint64_t>(read), " of ", static_cast<uint64_t>(stream.size()));
  out.resize(size);
  return out;
}

}  // namespace detent::io
