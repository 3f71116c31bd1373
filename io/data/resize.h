// The two image resizers that published accuracies were measured with. Both take a window of the result, so that a crop costs only its own pixels.
// RGB bytes [h,w,3] in. Thread-safe. Throws Error when a size or the window is wrong.
#pragma once

#include <cstdint>
#include <vector>

#include "detent/io/data/jpeg.h"

namespace detent::io {

/// A rectangle of RGB bytes inside an image.
struct ImageView {
  const uint8_t* pixels = nullptr;
  int64_t height = 0, width = 0;
  int64_t row_bytes = 0;
  ImageView() = default;
  ImageView(const Image& image) : pixels(image.pixels.data()), height(image.height), width(image.width), row_bytes(image.width * 3) {}
  ImageView crop(int64_t y, int64_t x, int64_t h, int64_t w) const;
};

/// The part of the resized image that is wanted.
struct Window {
  int64_t y = 0, x = 0, height = 0, width = 0;
};

/// TensorFlow 1's ResizeBilinear with align_corners = false and half_pixel_centers = false: output pixel i reads input position i * in / out, no antialiasing.
/// out: f32 [window.height, window.width, 3], values as the input's (0..255), not rounded.
void resize_tf1_bilinear(const ImageView& in, int64_t height, int64_t width, const Window& window, float* out);

/// Pillow's BILINEAR (what torchvision's Resize does to a PIL image): triangle filter widened by the scale, weights of 22 fractional bits,
/// rounded to a byte after the horizontal and again after the vertical pass. The pixels are Pillow's
/// to the bit; where width and height change by different factors its versions order the passes differently, and single pixels are one grey level apart.
/// out: u8 [window.height, window.width, 3].
void resize_pil_bilinear(const ImageView& in, int64_t height, int64_t width, const Window& window, uint8_t* out, std::vector<uint8_t>& scratch);

}  // namespace detent::io
