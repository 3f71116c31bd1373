// From a decoded image to the network's input: resize, crop, flip and normalise, in the three conventions that published weights expect.
//   keras        BGR minus 103.939/116.779/123.68. Evaluation: shorter side to 256 (TensorFlow 1 bilinear), centre crop 224. Training: shorter side to
//                256..512 at random, random crop, flip (VGG preprocessing of TF-slim)
//   torchvision  RGB/255 minus mean over deviation of ImageNet. Evaluation: shorter side to 256 (Pillow bilinear), centre crop 224. Training:
//                random area 8..100 % of aspect 3/4..4/3 resized to 224, flip
//   cifar        the same normalisation. Evaluation: the image as it is. Training: four pixels of the mean colour around it (He et al.
//                2015 §4.2: the mean is subtracted first), random crop, flip
// Sizes other than 224 scale the 256 with them; cifar images of another size are resized first (Pillow bilinear). Thread-safe.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "detent/core/rng.h"
#include "detent/io/data/jpeg.h"

namespace detent::io {

enum class Preprocess : uint8_t { keras, torchvision, cifar };

/// "keras", "torchvision", "cifar"; throws Error naming the nearest for any other.
Preprocess parse_preprocess(std::string_view name);
std::string_view to_string(Preprocess preprocess);

/// Buffers that a thread keeps between images.
struct PreprocessScratch {
  std::vector<uint8_t> bytes, rows;
  std::vector<float> floats;
};

class Preprocessor {
 public:
  /// image_size 0: 224, or 32 for cifar.
  explicit Preprocessor(Preprocess kind, int64_t image_size = 0);
  Preprocess kind() const { return kind_; }
  int64_t image_size() const { return size_; }
  int64_t elements() const { return size_ * size_ * 3; }

  /// Fills f32 [image_size, image_size, 3]; with `rng` the training augmentation, without it the evaluation's.
  void run(const Image& image, float* out, Rng* rng, PreprocessScratch& scratch) const;

 private:
  void keras(const Image& image, float* out, Rng* rng, PreprocessScratch& scratch) const;
  const uint8_t* torchvision(const Image& image, Rng* rng, PreprocessScratch& scratch) const;
  const uint8_t* cifar(const Image& image, PreprocessScratch& scratch) const;
  void shifted(const uint8_t* rgb, float* out, Rng& rng) const;

  Preprocess kind_;
  int64_t size_;
  float table_[3][256];  // byte to normalised value
};

}  // namespace detent::io
