#include "detent/io/data/synthetic.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "detent/core/error.h"
#include "detent/core/file.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"
#include "detent/io/data/example.h"
#include "detent/io/data/shuffle.h"
#include "detent/io/data/tfrecord.h"

namespace detent::io {
namespace {

constexpr float kPi = 3.14159265f;

struct Colour {
  float rgb[3];
};

Colour random_colour(Rng& rng) { return {{rng.uniform(10, 245), rng.uniform(10, 245), rng.uniform(10, 245)}}; }

float distance(const Colour& a, const Colour& b) { return std::hypot(a.rgb[0] - b.rgb[0], a.rgb[1] - b.rgb[1], a.rgb[2] - b.rgb[2]); }

// A colour at least `contrast` away from others.
Colour unlike(Rng& rng, float contrast, const Colour& a, const Colour& b) {
  Colour best = random_colour(rng);
  for (int i = 0; i < 20 && std::min(distance(best, a), distance(best, b)) < contrast; ++i) {
    const Colour other = random_colour(rng);
    if (std::min(distance(other, a), distance(other, b)) > std::min(distance(best, a), distance(best, b))) best = other;
  }
  return best;
}

float fraction(float v) { return v - std::floor(v); }

// What a point of the figure shows, in its own coordinates (about the unit disc): nothing, the first or the second colour.
enum class Ink : uint8_t { none, first, second };

Ink textured(bool second) { return second ? Ink::second : Ink::first; }

Ink figure(int64_t label, float u, float v, float period, float wobble) {
  const float r = std::sqrt(u * u + v * v);
  const auto shape = [](bool inside) { return inside ? Ink::first : Ink::none; };
  switch (label) {
    case 0:
      return shape(r < 0.9f);
    case 1:
      return shape(r < 1.0f && r > 0.58f);
    case 2:
      return shape(std::max(std::fabs(u), std::fabs(v)) < 0.8f);
    case 3:
      return shape(v > -0.55f && v < 1.1f - 1.8f * std::fabs(u));
    case 4: {
      const float spike = std::fabs(fraction(std::atan2(v, u) * 5.0f / (2.0f * kPi)) - 0.5f) * 2.0f;
      return shape(r < 0.42f + 0.68f * spike * spike);
    }
    case 5:
      return shape(std::min(std::fabs(u), std::fabs(v)) < 0.27f && r < 1.0f);
    default:
      break;
  }
  // A patch of any outline: only its texture tells.
  if (r > 1.18f) return Ink::none;
  const float angle = r > 0.72f ? std::atan2(v, u) : 0.0f;
  if (r > 0.72f && r > 0.95f + 0.15f * std::sin(3.0f * angle + wobble) + 0.08f * std::sin(5.0f * angle - 2.0f * wobble)) return Ink::none;
  const float a = u / period, b = v / period;
  if (label == 6) return textured(fraction(a) < 0.5f);
  if (label == 7) return textured((fraction(a * 0.7f) < 0.5f) != (fraction(b * 0.7f) < 0.5f));
  if (label == 8) return textured((fraction(a) - 0.5f) * (fraction(a) - 0.5f) + (fraction(b) - 0.5f) * (fraction(b) - 0.5f) < 0.09f);
  return textured(fraction(r / period) < 0.5f);
}

struct Canvas {
  int64_t size;
  std::vector<float> rgb;
  void blend(int64_t x, int64_t y, const Colour& c, float cover) {
    float* p = rgb.data() + (y * size + x) * 3;
    for (int k = 0; k < 3; ++k) p[k] += (c.rgb[k] - p[k]) * cover;
  }
};

// A slope between two colours with a slow wave in it.
void paint_ground(Canvas& canvas, const Colour& a, const Colour& b, Rng& rng) {
  const float angle = rng.uniform(0, 2 * kPi), wave = rng.uniform(0, 2 * kPi), pitch = rng.uniform(2, 6);
  const float dx = std::cos(angle), dy = std::sin(angle);
  for (int64_t y = 0; y < canvas.size; ++y) {
    for (int64_t x = 0; x < canvas.size; ++x) {
      const float u = static_cast<float>(x) / static_cast<float>(canvas.size) - 0.5f, v = static_cast<float>(y) / static_cast<float>(canvas.size) - 0.5f;
      const float t = 0.5f + 0.5f * (u * dx + v * dy) + 0.15f * std::sin(pitch * (u * dy - v * dx) + wave);
      for (int k = 0; k < 3; ++k) canvas.rgb[static_cast<size_t>((y * canvas.size + x) * 3 + k)] = a.rgb[k] + (b.rgb[k] - a.rgb[k]) * std::clamp(t, 0.0f, 1.0f);
    }
  }
}

// Short strokes and specks that belong to no class.
void paint_clutter(Canvas& canvas, int count, Rng& rng) {
  const auto size = static_cast<float>(canvas.size);
  for (int i = 0; i < count; ++i) {
    const Colour c = random_colour(rng);
    const float x0 = rng.uniform(0, size), y0 = rng.uniform(0, size), angle = rng.uniform(0, 2 * kPi);
    const float length = rng.uniform(0.02f, 0.3f) * size, half_width = rng.uniform(0.008f, 0.03f) * size;
    const float dx = std::cos(angle), dy = std::sin(angle), reach = length + half_width + 1;
    const auto last = canvas.size - 1;
    for (int64_t y = std::max<int64_t>(0, static_cast<int64_t>(y0 - reach)); y <= std::min(last, static_cast<int64_t>(y0 + reach)); ++y) {
      for (int64_t x = std::max<int64_t>(0, static_cast<int64_t>(x0 - reach)); x <= std::min(last, static_cast<int64_t>(x0 + reach)); ++x) {
        const float px = static_cast<float>(x) - x0, py = static_cast<float>(y) - y0;
        const float along = std::clamp(px * dx + py * dy, 0.0f, length);
        const float away = std::hypot(px - along * dx, py - along * dy);
        canvas.blend(x, y, c, std::clamp(half_width + 0.5f - away, 0.0f, 1.0f));
      }
    }
  }
}

struct Placement {
  float x, y, scale, angle, stretch, period, wobble;
};

void paint_figure(Canvas& canvas, int64_t label, const Placement& p, const Colour& first, const Colour& second) {
  constexpr int kSamples = 3;  // a side, for smooth edges
  const float dx = std::cos(p.angle), dy = std::sin(p.angle);
  const float reach = 1.25f * p.scale * std::max(p.stretch, 1.0f / p.stretch) + 1.0f;
  const auto first_pixel = [&](float at) { return std::max<int64_t>(0, static_cast<int64_t>(at - reach)); };
  const auto end_pixel = [&](float at) { return std::min(canvas.size, static_cast<int64_t>(at + reach) + 1); };
  for (int64_t y = first_pixel(p.y); y < end_pixel(p.y); ++y) {
    for (int64_t x = first_pixel(p.x); x < end_pixel(p.x); ++x) {
      int ones = 0, twos = 0;
      for (int s = 0; s < kSamples * kSamples; ++s) {
        const float px = static_cast<float>(x) + (static_cast<float>(s % kSamples) + 0.5f) / kSamples - p.x;
        const float py = static_cast<float>(y) + (static_cast<float>(s / kSamples) + 0.5f) / kSamples - p.y;
        const float u = (px * dx + py * dy) / (p.scale * p.stretch), v = (py * dx - px * dy) / p.scale * p.stretch;
        if (u * u + v * v > 1.25f * 1.25f) continue;
        const Ink ink = figure(label, u, v, p.period, p.wobble);
        ones += ink == Ink::first;
        twos += ink == Ink::second;
      }
      if (ones + twos == 0) continue;
      Colour c;
      for (int k = 0; k < 3; ++k) c.rgb[k] = (first.rgb[k] * static_cast<float>(ones) + second.rgb[k] * static_cast<float>(twos)) / static_cast<float>(ones + twos);
      canvas.blend(x, y, c, static_cast<float>(ones + twos) / (kSamples * kSamples));
    }
  }
}

// Nearly normal: the sum of eight bytes, which one draw gives.
float bell(Rng& rng) {
  constexpr float kMean = 8 * 127.5f, kDeviation = 209.0215f;  // sqrt(8 * (256^2 - 1) / 12)
  const uint64_t bits = rng.next();
  int sum = 0;
  for (int i = 0; i < 64; i += 8) sum += static_cast<int>(bits >> i & 0xff);
  return (static_cast<float>(sum) - kMean) / kDeviation;
}

std::string shard_name(std::string_view prefix, int64_t i, int64_t n) {
  const auto padded = [](int64_t v) {
    const std::string s = std::to_string(v);
    return std::string(s.size() < 5 ? 5 - s.size() : 0, '0') + s;
  };
  return text(prefix, "-", padded(i), "-of-", padded(n));
}

// Images [begin, end) of one numbering over both parts, so that none is in both.
void write_shard(const std::string& path, int64_t begin, int64_t end, const SyntheticOptions& o) {
  constexpr int64_t kBlock = 256;
  TfRecordWriter writer(path);
  std::vector<std::string> records;
  for (int64_t block = begin; block < end; block += kBlock) {
    records.resize(static_cast<size_t>(std::min(kBlock, end - block)));
    parallel_chunks(static_cast<int64_t>(records.size()), [&](int64_t i) {
      const int64_t index = block + i;
      // Each ten images hold every class once, in an order of their own.
      const int64_t label = Permutation(kSyntheticClasses, o.seed, static_cast<uint64_t>(index / kSyntheticClasses))(index % kSyntheticClasses);
      const Image image = synthetic_image(label, o.seed, index, o.image_size, o.difficulty);
      records[static_cast<size_t>(i)] = serialize_example(encode_jpeg(image, o.quality), label + 1, o.image_size, o.image_size);
    });
    for (const std::string& r : records) writer.write(r);
  }
  writer.finish();
}

}  // namespace

Image synthetic_image(int64_t label, uint64_t seed, int64_t index, int64_t size, float difficulty) {
  DETENT_CHECK(label >= 0 && label < kSyntheticClasses, "synthetic image: class ", label, " is not in 0..", kSyntheticClasses - 1);
  DETENT_CHECK(size >= 8 && size <= 4096, "synthetic image: size ", size, " is not in 8..4096");
  DETENT_CHECK(difficulty >= 0.0f && difficulty <= 1.0f, "synthetic image: difficulty ", difficulty, " is not in 0..1");
  Rng rng(seed, Rng::mix(static_cast<uint64_t>(index) + 0x73796e7468ull));
  Canvas canvas{size, std::vector<float>(static_cast<size_t>(size * size * 3))};
  const auto side = static_cast<float>(size);

  const float contrast = 200.0f - 100.0f * difficulty;
  const Colour ground = random_colour(rng);
  Colour other = random_colour(rng);
  for (int k = 0; k < 3; ++k) other.rgb[k] = ground.rgb[k] + 0.4f * (other.rgb[k] - ground.rgb[k]);
  paint_ground(canvas, ground, other, rng);
  paint_clutter(canvas, static_cast<int>(16.0f * difficulty), rng);

  const Colour first = unlike(rng, contrast, ground, other);
  const Colour second = unlike(rng, contrast, first, first);
  Placement p;
  p.scale = side * rng.uniform(0.38f - 0.16f * difficulty, 0.43f);
  p.x = rng.uniform(p.scale * 0.9f, side - p.scale * 0.9f);
  p.y = rng.uniform(p.scale * 0.9f, side - p.scale * 0.9f);
  p.angle = kPi * (0.1f + 0.9f * difficulty) * rng.uniform(-1, 1);
  p.stretch = rng.uniform(1.0f - 0.15f * difficulty, 1.0f + 0.15f * difficulty);
  p.period = std::max(rng.uniform(0.38f, 0.55f), 6.0f / p.scale);  // in units of the figure; never finer than six pixels
  p.wobble = rng.uniform(0, 2 * kPi);
  paint_figure(canvas, label, p, first, second);

  const float noise = 2.0f + 24.0f * difficulty;
  Image image{size, size, std::vector<uint8_t>(canvas.rgb.size())};
  for (size_t i = 0; i < canvas.rgb.size(); ++i) image.pixels[i] = static_cast<uint8_t>(std::clamp(std::nearbyint(canvas.rgb[i] + noise * bell(rng)), 0.0f, 255.0f));
  return image;
}

void write_synthetic(const std::string& folder, const SyntheticOptions& o) {
  DETENT_CHECK(o.train_images >= 1 && o.valid_images >= 1, "synthetic data: ", o.train_images, " training and ", o.valid_images, " validation images; at least one of each");
  DETENT_CHECK(o.train_files >= 1 && o.train_files <= o.train_images && o.valid_files >= 1 && o.valid_files <= o.valid_images, "synthetic data: ", o.train_files, " and ",
               o.valid_files, " files for ", o.train_images, " and ", o.valid_images, " images");
  DETENT_CHECK(o.quality >= 1 && o.quality <= 100, "synthetic data: JPEG quality ", o.quality, " is not in 1..100");
  make_folders(folder);
  const auto write_part = [&](std::string_view prefix, int64_t files, int64_t first, int64_t images) {
    for (int64_t f = 0; f < files; ++f) {
      write_shard(join_path(folder, shard_name(prefix, f, files)), first + images * f / files, first + images * (f + 1) / files, o);
    }
  };
  write_part("train", o.train_files, 0, o.train_images);
  write_part("valid", o.valid_files, o.train_images, o.valid_images);
  std::string names;
  for (const std::string_view n : kSyntheticNames) names += text(n, "\n");
  write_file_atomically(join_path(folder, "labels.txt"), names);
}

}  // namespace detent::io
