#include "detent/io/data/jpeg.h"

#include "detent/io/data/tfrecord.h"

namespace detent::io {

void jpeg::check_jpeg_size(int64_t height, int64_t width, size_t bytes, std::string_view where) {
  if (height < 1 || width < 1) fail_record(where, ": the JPEG image is said to be ", height, "x", width);
  if (height * width > kMaxPixels || height * width > max_pixels(bytes)) {
    fail_record(where, ": the JPEG image is said to be ", height, "x", width, ", too large for ", bytes, " bytes");
  }
}

#if DETENT_LIBJPEG
void decode_jpeg(std::span<const uint8_t> bytes, std::string_view where, Image& image) { jpeg::decode_with_libjpeg(bytes, where, image); }
std::string encode_jpeg(const Image& image, int quality) { return jpeg::encode_with_libjpeg(image, quality); }
const char* jpeg_library() { return "libjpeg"; }
#else
void decode_jpeg(std::span<const uint8_t> bytes, std::string_view where, Image& image) { jpeg::decode_with_stb(bytes, where, image); }
std::string encode_jpeg(const Image& image, int quality) { return jpeg::encode_with_stb(image, quality); }
const char* jpeg_library() { return "stb_image"; }
#endif

}  // namespace detent::io
