// JPEG files to RGB bytes and back: libjpeg(-turbo) with its accurate DCT and smooth chroma upsampling (the pixels Pillow and Keras see) when it was found
// at build time, stb_image otherwise. Grey images are expanded to RGB; CMYK is refused; damaged or cut data is an error, never a half-grey image.
// Sizes are checked against the number of bytes before anything is allocated. Throws BadRecord beginning with `where`. Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace detent::io {

/// RGB, [height, width, 3].
struct Image {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;
};

/// The pixels of `image` are reused when they are large enough.
void decode_jpeg(std::span<const uint8_t> jpeg, std::string_view where, Image& image);
std::string encode_jpeg(const Image& image, int quality);
/// "libjpeg" or "stb_image".
const char* jpeg_library();

namespace jpeg {
// A JPEG file cannot hold more pixels than this; with fewer bytes the header lies.
constexpr int64_t kMaxPixels = int64_t{1} << 27;
constexpr int64_t max_pixels(size_t bytes) { return static_cast<int64_t>(bytes) * 1024 + 4096; }
void check_jpeg_size(int64_t height, int64_t width, size_t bytes, std::string_view where);

void decode_with_libjpeg(std::span<const uint8_t> jpeg, std::string_view where, Image& image);
std::string encode_with_libjpeg(const Image& image, int quality);
void decode_with_stb(std::span<const uint8_t> jpeg, std::string_view where, Image& image);
std::string encode_with_stb(const Image& image, int quality);
}  // namespace jpeg

}  // namespace detent::io
