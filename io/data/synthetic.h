// The built-in data set: ten classes of drawn figures (shapes and textures) at random place, size, angle and colours over clutter and noise, so that pixels
// one by one tell next to nothing and a convolutional network learns them within a few hundred steps. Written as JPEG TFRecords like any other data set.
// An image is a function of seed, index and options only. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "detent/io/data/jpeg.h"

namespace detent::io {

constexpr int64_t kSyntheticClasses = 10;
constexpr std::array<std::string_view, kSyntheticClasses> kSyntheticNames = {"disc", "ring", "square", "triangle", "star", "cross", "stripes", "checks", "dots", "waves"};

struct SyntheticOptions {
  int64_t train_images = 8000, valid_images = 1000;
  int64_t train_files = 4, valid_files = 1;
  int64_t image_size = 64;
  uint64_t seed = 0;
  float difficulty = 0.05f;  ///< 0: large, nearly upright figures on plain ground; 1: small ones at any angle, faint, much clutter and noise
  int quality = 90;          ///< of the JPEG files
};

/// A figure of class `label` (0..9), RGB [size, size, 3]; another one for each index.
Image synthetic_image(int64_t label, uint64_t seed, int64_t index, int64_t size, float difficulty);

/// Writes train-0000x-of-0000y, valid-0000x-of-0000y (labels from 1, classes balanced and mixed) and labels.txt into a folder, making it.
/// Each file appears only when complete; the same options give the same bytes. Throws Error for options out of range and when writing fails.
void write_synthetic(const std::string& folder, const SyntheticOptions& options);

}  // namespace detent::io
