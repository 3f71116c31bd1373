#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

#include <jpeglib.h>
// The codes of the library's messages.
#include <jerror.h>

#include "detent/io/data/jpeg.h"
#include "detent/io/data/tfrecord.h"

namespace detent::io::jpeg {
namespace {

// libjpeg reports through callbacks that must not return; exceptions must not cross its C frames. So: note the message, jump, throw on this side.
struct ErrorManager {
  jpeg_error_mgr base;  // first: libjpeg hands back a pointer to it
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr info) {
  auto* manager = reinterpret_cast<ErrorManager*>(info->err);
  manager->base.format_message(info, manager->message);
  std::longjmp(manager->jump, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level >= 0) return;  // a trace
  // Oddities that leave the pixels whole; every other warning means that some of them are invented.
  const int code = info->err->msg_code;
  if (code == JWRN_EXTRANEOUS_DATA || code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM) return;
  on_error(info);
}

void discard_message(j_common_ptr) {}

void use(ErrorManager& manager, jpeg_error_mgr*& slot) {
  slot = jpeg_std_error(&manager.base);
  manager.base.error_exit = on_error;
  manager.base.emit_message = on_message;
  manager.base.output_message = discard_message;
  manager.message[0] = 0;
}

struct Decoder {
  jpeg_decompress_struct info{};
  jpeg_progress_mgr progress{};
  ErrorManager errors{};
  Decoder() { use(errors, info.err); }
  ~Decoder() { jpeg_destroy_decompress(&info); }
};

// A progressive file may hold thousands of tiny scans, each of which costs a pass over the image.
void limit_scans(j_common_ptr info) {
  constexpr int kMaxScans = 500;
  if (info->is_decompressor && reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMaxScans) {
    auto* manager = reinterpret_cast<ErrorManager*>(info->err);
    std::snprintf(manager->message, sizeof manager->message, "more than %d scans", kMaxScans);
    std::longjmp(manager->jump, 1);
  }
}

// The functions that call setjmp own no C++ objects: nothing is left undestroyed by the jump.
bool read_header(Decoder& d, const uint8_t* bytes, size_t size) {
  if (setjmp(d.errors.jump)) return false;
  jpeg_create_decompress(&d.info);
  d.progress.progress_monitor = limit_scans;
  d.info.progress = &d.progress;
  jpeg_mem_src(&d.info, bytes, static_cast<unsigned long>(size));
  jpeg_read_header(&d.info, TRUE);
  return true;
}

bool read_rows(Decoder& d, uint8_t* pixels) {
  if (setjmp(d.errors.jump)) return false;
  d.info.out_color_space = JCS_RGB;
  d.info.dct_method = JDCT_ISLOW;
  d.info.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&d.info);
  const size_t row_bytes = static_cast<size_t>(d.info.output_width) * 3;
  while (d.info.output_scanline < d.info.output_height) {
    JSAMPROW row = pixels + d.info.output_scanline * row_bytes;
    jpeg_read_scanlines(&d.info, &row, 1);
  }
  jpeg_finish_decompress(&d.info);
  return true;
}

struct Encoder {
  jpeg_compress_struct info{};
  ErrorManager errors{};
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  Encoder() { use(errors, info.err); }
  ~Encoder() {
    jpeg_destroy_compress(&info);
    std::free(bytes);
  }
};

bool write_image(Encoder& e, const Image& image, int quality) {
  if (setjmp(e.errors.jump)) return false;
  jpeg_create_compress(&e.info);
  jpeg_mem_dest(&e.info, &e.bytes, &e.size);
  e.info.image_width = static_cast<JDIMENSION>(image.width);
  e.info.image_height = static_cast<JDIMENSION>(image.height);
  e.info.input_components = 3;
  e.info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&e.info);
  jpeg_set_quality(&e.info, quality, TRUE);
  jpeg_start_compress(&e.info, TRUE);
  while (e.info.next_scanline < e.info.image_height) {
    auto* row = const_cast<JSAMPROW>(image.pixels.data() + static_cast<size_t>(e.info.next_scanline) * static_cast<size_t>(image.width) * 3);
    jpeg_write_scanlines(&e.info, &row, 1);
  }
  jpeg_finish_compress(&e.info);
  return true;
}

}  // namespace

void decode_with_libjpeg(std::span<const uint8_t> jpeg, std::string_view where, Image& image) {
  if (jpeg.size() < 4 || jpeg[0] != 0xff || jpeg[1] != 0xd8) fail_record(where, ": the image of ", jpeg.size(), " bytes is not a JPEG file");
  Decoder d;
  if (!read_header(d, jpeg.data(), jpeg.size())) fail_record(where, ": the JPEG image cannot be read: ", d.errors.message);
  const int space = d.info.jpeg_color_space;
  if (space != JCS_GRAYSCALE && space != JCS_YCbCr && space != JCS_RGB) {
    fail_record(where, ": the JPEG image has ", d.info.num_components, " components", space == JCS_CMYK || space == JCS_YCCK ? " (CMYK)" : "",
                ", grey or RGB is needed; convert it");
  }
  check_jpeg_size(d.info.image_height, d.info.image_width, jpeg.size(), where);
  image.height = d.info.image_height;
  image.width = d.info.image_width;
  image.pixels.resize(static_cast<size_t>(image.height * image.width * 3));
  if (!read_rows(d, image.pixels.data())) fail_record(where, ": the JPEG image cannot be decoded: ", d.errors.message);
}

std::string encode_with_libjpeg(const Image& image, int quality) {
  DETENT_CHECK(image.height > 0 && image.width > 0 && image.height <= 65500 && image.width <= 65500 && static_cast<int64_t>(image.pixels.size()) == image.height * image.width * 3,
               "jpeg: an image of ", image.height, "x", image.width, " with ", image.pixels.size(), " bytes cannot be encoded");
  Encoder e;
  DETENT_CHECK(write_image(e, image, quality), "jpeg: an image of ", image.height, "x", image.width, " cannot be encoded: ", std::string_view(e.errors.message));
  return std::string(reinterpret_cast<const char*>(e.bytes), e.size);
}

}  // namespace detent::io::jpeg
