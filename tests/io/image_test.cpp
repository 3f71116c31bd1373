#include "detent/tests/io/support.h"

#include <array>
#include <cmath>
#include <cstring>
#include <set>
#include <sstream>
#include <vector>

#include "detent/io/data/jpeg.h"
#include "detent/io/data/preprocess.h"
#include "detent/io/data/resize.h"
#include "detent/io/data/tfrecord.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

// What tests/golden/images.py wrote.
struct Golden {
  std::string name;
  std::vector<int64_t> numbers;
  std::string bytes;
  std::vector<float> floats() const {
    std::vector<float> v(bytes.size() / 4);
    std::memcpy(v.data(), bytes.data(), v.size() * 4);
    return v;
  }
  std::span<const uint8_t> data() const { return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}; }
};

const std::vector<Golden>& goldens() {
  static const std::vector<Golden> all = [] {
    std::vector<Golden> v;
    std::ifstream in(DETENT_SOURCE_ROOT "/tests/io/images.golden", std::ios::binary);
    REQUIRE(in.good());
    for (std::string line; std::getline(in, line);) {
      std::istringstream words(line);
      Golden g;
      words >> g.name;
      for (int64_t n; words >> n;) g.numbers.push_back(n);
      g.bytes.resize(static_cast<size_t>(g.numbers.back()));
      g.numbers.pop_back();
      in.read(g.bytes.data(), static_cast<std::streamsize>(g.bytes.size()));
      v.push_back(g);
    }
    return v;
  }();
  return all;
}

template <class Fn>
int for_each(const std::string& name, Fn&& fn) {
  int n = 0;
  for (const Golden& g : goldens()) {
    if (g.name == name) ++n, fn(g);
  }
  return n;
}

// The formula of images.py.
Image picture(int64_t h, int64_t w) {
  Image image{h, w, {}};
  for (int64_t y = 0; y < h; ++y) {
    for (int64_t x = 0; x < w; ++x) {
      for (int64_t c = 0; c < 3; ++c) {
        const auto noise = static_cast<int64_t>(((static_cast<uint64_t>(y * 7919 + x * 104729 + c * 1299709) * 2654435761u) & 0xffffffffu) >> 27);
        image.pixels.push_back(static_cast<uint8_t>(3 * x + 2 * y * (c + 1) + 60 * ((x > w / 2) ^ (y > h / 3)) + noise));
      }
    }
  }
  return image;
}

double worst(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double w = 0;
  for (size_t i = 0; i < a.size(); ++i) w = std::max(w, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return w;
}

std::vector<float> evaluate(Preprocess kind, int64_t size, const Image& image) {
  const Preprocessor p(kind, size);
  std::vector<float> out(static_cast<size_t>(p.elements()));
  PreprocessScratch scratch;
  p.run(image, out.data(), nullptr, scratch);
  return out;
}

using Decode = void (*)(std::span<const uint8_t>, std::string_view, Image&);

void check_damaged(Decode decode) {
  Image image;
  const auto decoded = [&](const std::string& s) {
    return error_of([&] { decode({reinterpret_cast<const uint8_t*>(s.data()), s.size()}, "file.x: record at offset 77", image); });
  };
  const Golden* good = nullptr;
  const Golden* progressive = nullptr;
  for_each("jpeg-420", [&](const Golden& g) { good = &g; });
  for_each("jpeg-progressive", [&](const Golden& g) { progressive = &g; });
  REQUIRE(good);
  REQUIRE(progressive);
  CHECK(decoded(good->bytes).empty());
  for (const Golden* g : {good, progressive}) {
    for (size_t n = 0; n + 2 <= g->bytes.size(); n += 5) CHECK_CONTAINS(decoded(g->bytes.substr(0, n)), "file.x: record at offset 77: the ");
  }
  CHECK_CONTAINS(decoded("\x89PNG\r\n and so on"), "is not a JPEG file");
  CHECK(for_each("cmyk", [&](const Golden& g) { CHECK_CONTAINS(decoded(g.bytes), "4 components (CMYK)"); }) == 1);
  // A header that promises 65,500 x 65,500 pixels.
  std::string huge = good->bytes;
  const size_t frame = huge.find("\xff\xc0");
  REQUIRE(frame != std::string::npos);
  huge.replace(frame + 5, 4, std::string("\xff\xdc\xff\xdc"));
  CHECK_CONTAINS(decoded(huge), "65500x65500, too large");
  std::string flat = good->bytes;
  flat.replace(frame + 5, 4, std::string("\x00\x00\x00\x05", 4));
  CHECK_FALSE(decoded(flat).empty());
  // Noise in the file must give an error or an image, never worse; the sanitizer build watches.
  uint64_t r = 1;
  for (int i = 0; i < 300; ++i) {
    std::string noisy = good->bytes;
    for (int k = 0; k < 4; ++k) {
      r = r * 6364136223846793005u + 1442695040888963407u;
      noisy[(r >> 33) % noisy.size()] = static_cast<char>(r >> 25);
    }
    const std::string message = decoded(noisy);
    CHECK((message.empty() || message.find("offset 77") != std::string::npos));
  }
}

}  // namespace

TEST_CASE("Pillow's bilinear resize to the bit, whole and in windows") {
  CHECK(for_each("pil", [](const Golden& g) {
          const auto& n = g.numbers;
          CAPTURE(n[0]);
          CAPTURE(n[1]);
          CAPTURE(n[2]);
          CAPTURE(n[3]);
          const Image in = picture(n[0], n[1]);
          std::vector<uint8_t> out(g.bytes.size()), scratch;
          resize_pil_bilinear(in, n[2], n[3], {0, 0, n[2], n[3]}, out.data(), scratch);
          CHECK(std::memcmp(out.data(), g.bytes.data(), out.size()) == 0);
          for (const Window w : {Window{n[2] / 3, n[3] / 4, n[2] - n[2] / 3, n[3] - n[3] / 4}, Window{n[2] / 2, n[3] / 2, 1, 1}}) {
            std::vector<uint8_t> part(static_cast<size_t>(w.height * w.width * 3));
            resize_pil_bilinear(in, n[2], n[3], w, part.data(), scratch);
            for (int64_t y = 0; y < w.height; ++y) {
              CHECK(std::memcmp(part.data() + y * w.width * 3, g.bytes.data() + ((w.y + y) * n[3] + w.x) * 3, static_cast<size_t>(w.width * 3)) == 0);
            }
          }
        }) == 9);
}

TEST_CASE("a crop is resized as if it were an image of its own") {
  const Image in = picture(40, 30);
  Image cut{20, 11, {}};
  for (int64_t y = 0; y < 20; ++y) cut.pixels.insert(cut.pixels.end(), in.pixels.begin() + ((y + 7) * 30 + 5) * 3, in.pixels.begin() + ((y + 7) * 30 + 16) * 3);
  std::vector<uint8_t> a(16 * 16 * 3), b(16 * 16 * 3), scratch;
  resize_pil_bilinear(ImageView(in).crop(7, 5, 20, 11), 16, 16, {0, 0, 16, 16}, a.data(), scratch);
  resize_pil_bilinear(cut, 16, 16, {0, 0, 16, 16}, b.data(), scratch);
  CHECK(a == b);
  CHECK_THROWS_AS(ImageView(in).crop(30, 0, 20, 10), Error);
  CHECK_THROWS_AS(resize_pil_bilinear(in, 16, 16, {1, 0, 16, 16}, a.data(), scratch), Error);
}

TEST_CASE("TensorFlow 1's bilinear resize") {
  CHECK(for_each("tf1", [](const Golden& g) {
          const auto& n = g.numbers;
          std::vector<float> out(static_cast<size_t>(n[2] * n[3] * 3));
          resize_tf1_bilinear(picture(n[0], n[1]), n[2], n[3], {0, 0, n[2], n[3]}, out.data());
          CHECK(worst(out, g.floats()) < 2e-3);
          const Window w{n[2] / 3, n[3] / 4, n[2] - n[2] / 3, n[3] - n[3] / 4};
          std::vector<float> part(static_cast<size_t>(w.height * w.width * 3));
          resize_tf1_bilinear(picture(n[0], n[1]), n[2], n[3], w, part.data());
          for (int64_t y = 0; y < w.height; ++y) {
            CHECK(std::memcmp(part.data() + y * w.width * 3, out.data() + ((w.y + y) * n[3] + w.x) * 3, static_cast<size_t>(w.width * 3) * 4) == 0);
          }
        }) == 9);
}

TEST_CASE("evaluation preprocessing equals torchvision's and the Keras example's") {
  CHECK(for_each("torchvision", [](const Golden& g) { CHECK(worst(evaluate(Preprocess::torchvision, 32, picture(g.numbers[0], g.numbers[1])), g.floats()) < 1e-6); }) == 4);
  CHECK(for_each("keras", [](const Golden& g) { CHECK(worst(evaluate(Preprocess::keras, 32, picture(g.numbers[0], g.numbers[1])), g.floats()) < 2e-3); }) == 4);
  CHECK(for_each("cifar", [](const Golden& g) { CHECK(worst(evaluate(Preprocess::cifar, 0, picture(32, 32)), g.floats()) < 1e-6); }) == 1);
  CHECK(evaluate(Preprocess::cifar, 16, picture(40, 20)).size() == 16 * 16 * 3);
}

TEST_CASE("cifar training crops are those of the image padded with the mean colour, all of them, flipped half the time") {
  const Preprocessor p(Preprocess::cifar, 8);
  PreprocessScratch scratch;
  const Image image = picture(8, 8);
  std::set<std::vector<float>> seen;
  std::vector<float> out(static_cast<size_t>(p.elements()));
  for (uint64_t i = 0; i < 4000; ++i) {
    Rng rng(1, i);
    p.run(image, out.data(), &rng, scratch);
    seen.insert(out);
  }
  CHECK(seen.size() == 9 * 9 * 2);
  int found = 0;
  for_each("padded", [&](const Golden& g) {
    for (const auto& s : seen) found += worst(s, g.floats()) < 1e-6;
  });
  CHECK(found == 4);
}

TEST_CASE("training crops stay inside, vary, and repeat with the same random numbers") {
  for (const Preprocess kind : {Preprocess::keras, Preprocess::torchvision}) {
    const Preprocessor p(kind, 28);
    PreprocessScratch scratch;
    std::set<std::vector<float>> seen;
    std::vector<float> out(static_cast<size_t>(p.elements())), again(out.size());
    const std::array<std::array<int64_t, 2>, 4> sizes = {{{50, 70}, {70, 40}, {1, 300}, {300, 2}}};
    for (uint64_t i = 0; i < 80; ++i) {
      const Image image = picture(sizes[i % 4][0], sizes[i % 4][1]);
      Rng a(1, i), b(1, i);
      p.run(image, out.data(), &a, scratch);
      p.run(image, again.data(), &b, scratch);
      CHECK(out == again);
      for (const float v : out) {
        if (kind == Preprocess::keras) {
          CHECK((v >= -123.7f && v <= 151.1f));
        } else {
          CHECK((v >= -2.2f && v <= 2.7f));
        }
      }
      if (i % 4 < 2) seen.insert(out);
    }
    CHECK(seen.size() == 40);
  }
}

TEST_CASE("names of preprocessings") {
  for (const Preprocess kind : {Preprocess::keras, Preprocess::torchvision, Preprocess::cifar}) CHECK(parse_preprocess(to_string(kind)) == kind);
  CHECK_CONTAINS(error_of([] { parse_preprocess("kears"); }), "nearest: keras");
}

TEST_CASE("libjpeg gives Pillow's pixels") {
  if (std::string(jpeg_library()) != "libjpeg") {
    MESSAGE("skipped: built without libjpeg");
    return;
  }
  for (size_t i = 0; i + 1 < goldens().size(); ++i) {
    const Golden &file = goldens()[i], &pixels = goldens()[i + 1];
    if (!file.name.starts_with("jpeg-")) continue;
    CAPTURE(file.name);
    Image image;
    decode_jpeg(file.data(), "golden", image);
    CHECK(image.height == pixels.numbers[0]);
    CHECK(image.width == pixels.numbers[1]);
    CHECK(std::equal(image.pixels.begin(), image.pixels.end(), pixels.data().begin(), pixels.data().end()));
  }
}

TEST_CASE("stb_image comes near Pillow's pixels") {
#if DETENT_TEST_STB
  for (size_t i = 0; i + 1 < goldens().size(); ++i) {
    const Golden &file = goldens()[i], &pixels = goldens()[i + 1];
    if (!file.name.starts_with("jpeg-")) continue;
    CAPTURE(file.name);
    Image image;
    jpeg::decode_with_stb(file.data(), "golden", image);
    REQUIRE(image.pixels.size() == pixels.bytes.size());
    double sum = 0;
    for (size_t k = 0; k < image.pixels.size(); ++k) sum += std::abs(image.pixels[k] - pixels.data()[k]);
    CHECK(sum / static_cast<double>(image.pixels.size()) < 1.0);
  }
#else
  MESSAGE("skipped: built without stb_image");
#endif
}

TEST_CASE("damaged, cut, foreign and lying JPEG files are errors that name their place") { check_damaged(decode_jpeg); }

TEST_CASE("the same of stb_image") {
#if DETENT_TEST_STB
  check_damaged(jpeg::decode_with_stb);
#else
  MESSAGE("skipped: built without stb_image");
#endif
}

TEST_CASE("an encoded image comes back nearly as it was") {
  Image smooth{24, 40, {}};
  for (int y = 0; y < 24; ++y) {
    for (int x = 0; x < 40; ++x) {
      for (const int v : {4 * x, 6 * y, 100}) smooth.pixels.push_back(static_cast<uint8_t>(v));
    }
  }
  const auto check = [&](const std::string& bytes) {
    Image back;
    decode_jpeg({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "memory", back);
    REQUIRE(back.pixels.size() == smooth.pixels.size());
    double sum = 0;
    for (size_t i = 0; i < back.pixels.size(); ++i) sum += std::abs(back.pixels[i] - smooth.pixels[i]);
    CHECK(sum / static_cast<double>(back.pixels.size()) < 3.0);
  };
  check(encode_jpeg(smooth, 92));
#if DETENT_TEST_STB
  check(jpeg::encode_with_stb(smooth, 92));
#endif
  CHECK_THROWS_AS(encode_jpeg(Image{3, 3, {}}, 90), Error);
}
