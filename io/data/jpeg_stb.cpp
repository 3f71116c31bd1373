#include <algorithm>
#include <cstdlib>
#include <memory>

// One private copy of each library: no symbols leave this file.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS 65535
#include <stb/stb_image.h>
#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

#include "detent/io/data/jpeg.h"
#include "detent/io/data/tfrecord.h"

namespace detent::io::jpeg {
namespace {

struct Header {
  int64_t height = 0, width = 0;
  int components = 0;
  bool tables_fit = true;  // no Huffman table of more than 256 codes: stb_image writes them behind its array
  bool has_end = false;  // an end marker behind the first scan: stb_image takes a cut file for a dark one
};

// The tables of a DHT segment whose content is b[at, end).
bool huffman_tables_fit(std::span<const uint8_t> b, size_t at, size_t end) {
  end = std::min(end, b.size());
  while (at + 17 <= end) {
    size_t codes = 0;
    for (size_t i = 1; i <= 16; ++i) codes += b[at + i];
    if (codes > 256) return false;
    at += 17 + codes;
  }
  return true;
}

Header scan_markers(std::span<const uint8_t> b) {
  Header h;
  size_t at = 2;
  while (at + 4 <= b.size()) {
    if (b[at] != 0xff) return h;
    const int marker = b[at + 1];
    if (marker == 0xff) {  // padding
      ++at;
      continue;
    }
    const size_t length = static_cast<size_t>(b[at + 2]) << 8 | b[at + 3];
    const bool frame = marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    if (frame && at + 10 <= b.size()) {
      h.height = b[at + 5] << 8 | b[at + 6];
      h.width = b[at + 7] << 8 | b[at + 8];
      h.components = b[at + 9];
    }
    if (marker == 0xc4) h.tables_fit = h.tables_fit && huffman_tables_fit(b, at + 4, at + 2 + length);
    at += 2 + length;
    if (marker == 0xda) break;
  }
  // Behind the first scan a marker cannot be mistaken for data: later scans bring tables of their own.
  for (; at + 2 <= b.size(); ++at) {
    h.has_end |= b[at] == 0xff && b[at + 1] == 0xd9;
    if (b[at] == 0xff && b[at + 1] == 0xc4) h.tables_fit = h.tables_fit && (at + 4 > b.size() || huffman_tables_fit(b, at + 4, at + 2 + (static_cast<size_t>(b[at + 2]) << 8 | b[at + 3])));
  }
  return h;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

void append_bytes(void* out, void* data, int size) { static_cast<std::string*>(out)->append(static_cast<const char*>(data), static_cast<size_t>(size)); }

}  // namespace

void decode_with_stb(std::span<const uint8_t> jpeg, std::string_view where, Image& image) {
  if (jpeg.size() < 4 || jpeg[0] != 0xff || jpeg[1] != 0xd8) fail_record(where, ": the image of ", jpeg.size(), " bytes is not a JPEG file");
  const Header h = scan_markers(jpeg);
  if (h.components != 1 && h.components != 3) {
    fail_record(where, ": the JPEG image has ", h.components, " components", h.components == 4 ? " (CMYK)" : "", ", grey or RGB is needed; convert it");
  }
  check_jpeg_size(h.height, h.width, jpeg.size(), where);
  if (!h.has_end) fail_record(where, ": the JPEG image cannot be decoded: Premature end of JPEG file");
  if (!h.tables_fit) fail_record(where, ": the JPEG image cannot be decoded: a Huffman table of more than 256 codes");
  int width = 0, height = 0, components = 0;
  const std::unique_ptr<stbi_uc, Free> rgb(stbi_load_from_memory(jpeg.data(), static_cast<int>(jpeg.size()), &width, &height, &components, 3));
  if (!rgb) fail_record(where, ": the JPEG image cannot be decoded: ", stbi_failure_reason() ? stbi_failure_reason() : "no reason given");
  image.height = height;
  image.width = width;
  image.pixels.assign(rgb.get(), rgb.get() + static_cast<size_t>(height) * static_cast<size_t>(width) * 3);
}

std::string encode_with_stb(const Image& image, int quality) {
  DETENT_CHECK(image.height > 0 && image.width > 0 && image.height <= 65500 && image.width <= 65500 && static_cast<int64_t>(image.pixels.size()) == image.height * image.width * 3,
               "jpeg: an image of ", image.height, "x", image.width, " with ", image.pixels.size(), " bytes cannot be encoded");
  std::string out;
  DETENT_CHECK(stbi_write_jpg_to_func(append_bytes, &out, static_cast<int>(image.width), static_cast<int>(image.height), 3, image.pixels.data(), quality), "jpeg: an image of ",
               image.height, "x", image.width, " cannot be encoded");
  return out;
}

}  // namespace detent::io::jpeg
