#include "detent/io/data/preprocess.h"

#include <algorithm>
#include <cmath>

#include "detent/core/error.h"
#include "detent/io/data/resize.h"

namespace detent::io {
namespace {

constexpr std::string_view kNames[] = {"keras", "torchvision", "cifar"};
constexpr float kBgrMean[3] = {103.939f, 116.779f, 123.68f};
constexpr float kMean[3] = {0.485f, 0.456f, 0.406f};
constexpr float kDeviation[3] = {0.229f, 0.224f, 0.225f};
constexpr int64_t kCifarPad = 4;

// A side given for 224 pixels, at another image size.
int64_t scaled_side(int64_t side, int64_t size) { return (side * size + 112) / 224; }

struct Size {
  int64_t height, width;
};

// TF-slim: both sides times side/shorter in float, rounded half to even.
Size slim_size(const Image& image, int64_t side) {
  const auto h = static_cast<float>(image.height), w = static_cast<float>(image.width);
  const float scale = static_cast<float>(side) / std::min(h, w);
  return {std::max<int64_t>(static_cast<int64_t>(std::nearbyint(h * scale)), 1), std::max<int64_t>(static_cast<int64_t>(std::nearbyint(w * scale)), 1)};
}

// torchvision: the longer side rounded down.
Size torchvision_size(const Image& image, int64_t side) {
  if (image.height <= image.width) return {side, side * image.width / image.height};
  return {side * image.height / image.width, side};
}

// torchvision's CenterCrop rounds half to even: Python's round.
int64_t centred(int64_t whole, int64_t part) { return static_cast<int64_t>(std::nearbyint(static_cast<double>(whole - part) / 2.0)); }

struct Box {
  int64_t y, x, height, width;
};

// An area of 8..100 % with an aspect of 3/4..4/3; after ten misses the largest centred part of a permitted aspect (torchvision's RandomResizedCrop).
Box random_area(const Image& image, Rng& rng) {
  const auto h = static_cast<double>(image.height), w = static_cast<double>(image.width);
  const double low = std::log(3.0 / 4.0), high = std::log(4.0 / 3.0);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double area = h * w * (0.08 + 0.92 * static_cast<double>(rng.uniform()));
    const double aspect = std::exp(low + (high - low) * static_cast<double>(rng.uniform()));
    const auto bw = static_cast<int64_t>(std::nearbyint(std::sqrt(area * aspect)));
    const auto bh = static_cast<int64_t>(std::nearbyint(std::sqrt(area / aspect)));
    if (bw < 1 || bh < 1 || bw > image.width || bh > image.height) continue;
    const int64_t y = rng.below(image.height - bh + 1);
    return {y, rng.below(image.width - bw + 1), bh, bw};
  }
  Box box{0, 0, image.height, image.width};
  const double aspect = w / h;
  if (aspect < 3.0 / 4.0) box.height = std::max<int64_t>(static_cast<int64_t>(std::nearbyint(w / (3.0 / 4.0))), 1);
  if (aspect > 4.0 / 3.0) box.width = std::max<int64_t>(static_cast<int64_t>(std::nearbyint(h * (4.0 / 3.0))), 1);
  box.y = (image.height - box.height) / 2;
  box.x = (image.width - box.width) / 2;
  return box;
}

void flip_rows(uint8_t* pixels, int64_t size) {
  for (int64_t y = 0; y < size; ++y, pixels += size * 3) {
    for (int64_t l = 0, r = size - 1; l < r; ++l, --r) std::swap_ranges(pixels + l * 3, pixels + l * 3 + 3, pixels + r * 3);
  }
}

}  // namespace

Preprocess parse_preprocess(std::string_view name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kNames[i]) return static_cast<Preprocess>(i);
  }
  fail("preprocess: ", name, " is not one of keras, torchvision, cifar", nearest_name(name, kNames, 3));
}

std::string_view to_string(Preprocess preprocess) { return kNames[static_cast<int>(preprocess)]; }

Preprocessor::Preprocessor(Preprocess kind, int64_t image_size) : kind_(kind), size_(image_size ? image_size : kind == Preprocess::cifar ? 32 : 224) {
  DETENT_CHECK(size_ >= 1 && size_ <= 8192, "image size: ", size_, " is not in 1..8192");
  for (int c = 0; c < 3; ++c) {
    for (int v = 0; v < 256; ++v) table_[c][v] = (static_cast<float>(v) / 255.0f - kMean[c]) / kDeviation[c];
  }
}

void Preprocessor::run(const Image& image, float* out, Rng* rng, PreprocessScratch& scratch) const {
  DETENT_CHECK(image.height > 0 && image.width > 0 && static_cast<int64_t>(image.pixels.size()) == image.height * image.width * 3, "preprocess: an image of ", image.height, "x",
               image.width, " with ", image.pixels.size(), " bytes");
  if (kind_ == Preprocess::keras) return keras(image, out, rng, scratch);
  const uint8_t* rgb = kind_ == Preprocess::torchvision ? torchvision(image, rng, scratch) : cifar(image, scratch);
  if (kind_ == Preprocess::cifar && rng) return shifted(rgb, out, *rng);
  for (int64_t i = 0; i < size_ * size_; ++i) {
    for (int c = 0; c < 3; ++c) out[i * 3 + c] = table_[c][rgb[i * 3 + c]];
  }
}

void Preprocessor::keras(const Image& image, float* out, Rng* rng, PreprocessScratch& scratch) const {
  int64_t side = scaled_side(256, size_);
  if (rng) side += rng->below(scaled_side(512, size_) - side + 1);
  const Size size = slim_size(image, side);
  Window window{(size.height - size_) / 2, (size.width - size_) / 2, size_, size_};
  bool flip = false;
  if (rng) {
    window.y = rng->below(size.height - size_ + 1);
    window.x = rng->below(size.width - size_ + 1);
    flip = rng->below(2) == 1;
  }
  scratch.floats.resize(static_cast<size_t>(elements()));
  resize_tf1_bilinear(image, size.height, size.width, window, scratch.floats.data());
  for (int64_t y = 0; y < size_; ++y) {
    const float* row = scratch.floats.data() + y * size_ * 3;
    for (int64_t x = 0; x < size_; ++x, out += 3) {
      const float* rgb = row + (flip ? size_ - 1 - x : x) * 3;
      for (int c = 0; c < 3; ++c) out[c] = rgb[2 - c] - kBgrMean[c];
    }
  }
}

const uint8_t* Preprocessor::torchvision(const Image& image, Rng* rng, PreprocessScratch& scratch) const {
  scratch.bytes.resize(static_cast<size_t>(elements()));
  if (!rng) {
    const Size size = torchvision_size(image, scaled_side(256, size_));
    const Window window{centred(size.height, size_), centred(size.width, size_), size_, size_};
    resize_pil_bilinear(image, size.height, size.width, window, scratch.bytes.data(), scratch.rows);
  } else {
    const Box box = random_area(image, *rng);
    resize_pil_bilinear(ImageView(image).crop(box.y, box.x, box.height, box.width), size_, size_, {0, 0, size_, size_}, scratch.bytes.data(), scratch.rows);
    if (rng->below(2) == 1) flip_rows(scratch.bytes.data(), size_);
  }
  return scratch.bytes.data();
}

const uint8_t* Preprocessor::cifar(const Image& image, PreprocessScratch& scratch) const {
  if (image.height == size_ && image.width == size_) return image.pixels.data();
  scratch.bytes.resize(static_cast<size_t>(elements()));
  const Size size = torchvision_size(image, size_);
  const Window window{centred(size.height, size_), centred(size.width, size_), size_, size_};
  resize_pil_bilinear(image, size.height, size.width, window, scratch.bytes.data(), scratch.rows);
  return scratch.bytes.data();
}

// The border is of the normalised image: zeros, the mean colour. Around the bytes it would be black, which no image's background is.
void Preprocessor::shifted(const uint8_t* rgb, float* out, Rng& rng) const {
  const int64_t dy = rng.below(2 * kCifarPad + 1) - kCifarPad, dx = rng.below(2 * kCifarPad + 1) - kCifarPad;
  const bool flip = rng.below(2) == 1;
  for (int64_t y = dy; y < size_ + dy; ++y) {
    for (int64_t i = 0; i < size_; ++i, out += 3) {
      const int64_t x = (flip ? size_ - 1 - i : i) + dx;
      const bool inside = y >= 0 && y < size_ && x >= 0 && x < size_;
      for (int c = 0; c < 3; ++c) out[c] = inside ? table_[c][rgb[(y * size_ + x) * 3 + c]] : 0.0f;
    }
  }
}

}  // namespace detent::io
