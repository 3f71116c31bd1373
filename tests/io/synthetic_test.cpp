#include "detent/tests/io/support.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <memory>
#include <set>
#include <vector>

#include "detent/core/parallel.h"
#include "detent/io/data/loader.h"
#include "detent/io/data/synthetic.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

struct Data {
  std::vector<float> pixels;
  std::vector<int64_t> labels;
};

Data load(const std::string& folder, const char* part, int64_t size) {
  auto dataset = std::make_shared<TfRecordDataset>(folder, part);
  Loader loader(dataset, {.batch = 50, .preprocess = Preprocess::cifar, .image_size = size, .classes = 10});
  Data d;
  for (const Batch& b : loader) {
    const auto p = b.images.to_vector<float>();
    const auto l = b.labels.to_vector<int64_t>();
    d.pixels.insert(d.pixels.end(), p.begin(), p.end());
    d.labels.insert(d.labels.end(), l.begin(), l.end());
  }
  return d;
}

// Softmax regression on all pixels, stochastic gradient descent; accuracy on `test`.
double linear_accuracy(const Data& train, const Data& test, int64_t features, int epochs, double rate) {
  std::vector<double> w(static_cast<size_t>(10 * (features + 1)), 0.0);
  const auto logits = [&](const float* x, double* z) {
    for (int64_t c = 0; c < 10; ++c) {
      const double* row = w.data() + c * (features + 1);
      double s = row[features];
      for (int64_t i = 0; i < features; ++i) s += row[i] * static_cast<double>(x[i]);
      z[c] = s;
    }
  };
  for (int e = 0; e < epochs; ++e) {
    for (size_t n = 0; n < train.labels.size(); ++n) {
      const float* x = train.pixels.data() + static_cast<int64_t>(n) * features;
      double z[10], sum = 0;
      logits(x, z);
      const double top = *std::max_element(z, z + 10);
      for (double& v : z) sum += v = std::exp(v - top);
      for (int64_t c = 0; c < 10; ++c) {
        const double g = rate * (z[c] / sum - (train.labels[n] == c ? 1.0 : 0.0));
        double* row = w.data() + c * (features + 1);
        for (int64_t i = 0; i < features; ++i) row[i] -= g * static_cast<double>(x[i]);
        row[features] -= g;
      }
    }
  }
  int64_t right = 0;
  for (size_t n = 0; n < test.labels.size(); ++n) {
    double z[10];
    logits(test.pixels.data() + static_cast<int64_t>(n) * features, z);
    right += std::max_element(z, z + 10) - z == test.labels[n];
  }
  return static_cast<double>(right) / static_cast<double>(test.labels.size());
}

}  // namespace

TEST_CASE("the same options give the same files, at any number of threads") {
  const TempFolder a, b;
  const SyntheticOptions o{.train_images = 43, .valid_images = 11, .train_files = 3, .image_size = 32, .seed = 4};
  const int threads = num_threads();
  write_synthetic(a / "deep/folder", o);
  set_num_threads(1);
  write_synthetic(b.path(), o);
  set_num_threads(threads);
  const std::vector<std::string> names = list_folder(b.path());
  CHECK(names == std::vector<std::string>{"labels.txt", "train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003", "valid-00000-of-00001"});
  for (const std::string& n : names) CHECK(slurp(a / ("deep/folder/" + n)) == slurp(b / n));
  SyntheticOptions other = o;
  other.seed = 5;
  write_synthetic(a.path(), other);
  CHECK(slurp(a / names[1]) != slurp(b / names[1]));
}

TEST_CASE("classes are balanced and mixed, and no image comes twice") {
  const TempFolder dir;
  write_synthetic(dir.path(), {.train_images = 200, .valid_images = 50, .image_size = 16});
  const Data train = load(dir.path(), "train", 16), valid = load(dir.path(), "valid", 16);
  CHECK(train.labels.size() == 200);
  CHECK(valid.labels.size() == 50);
  for (int64_t c = 0; c < 10; ++c) {
    CHECK(std::count(train.labels.begin(), train.labels.end(), c) == 20);
    CHECK(std::count(valid.labels.begin(), valid.labels.end(), c) == 5);
  }
  CHECK_FALSE(std::is_sorted(train.labels.begin(), train.labels.begin() + 10));
  std::set<std::vector<float>> seen;
  constexpr std::ptrdiff_t kImage = 16 * 16 * 3;
  for (const Data* d : {&train, &valid}) {
    for (auto p = d->pixels.begin(); p != d->pixels.end(); p += kImage) seen.insert({p, p + kImage});
  }
  CHECK(seen.size() == 250);
}

TEST_CASE("pixels alone do not tell the class: a linear classifier stays under 50 %") {
  const TempFolder dir;
  write_synthetic(dir.path(), {.train_images = 1500, .valid_images = 500, .image_size = 32, .difficulty = 0.0f});  // the easiest setting
  const Data train = load(dir.path(), "train", 32), valid = load(dir.path(), "valid", 32);
  const double accuracy = linear_accuracy(train, valid, 32 * 32 * 3, 8, 2e-4);
  MESSAGE("linear classifier: ", accuracy);
  CHECK(accuracy < 0.5);
  CHECK(linear_accuracy(train, train, 32 * 32 * 3, 8, 2e-4) > 0.2);  // it does learn what it can
}

TEST_CASE("options out of range are refused, and a full disk leaves no broken file") {
  const TempFolder dir;
  CHECK_CONTAINS(error_of([&] { write_synthetic(dir.path(), {.train_images = 0}); }), "0 training");
  CHECK_CONTAINS(error_of([&] { write_synthetic(dir.path(), {.train_images = 2, .train_files = 3}); }), "files for");
  CHECK_CONTAINS(error_of([&] { write_synthetic(dir.path(), {.quality = 0}); }), "quality");
  CHECK_CONTAINS(error_of([&] { write_synthetic(dir.path(), {.difficulty = 2.0f}); }), "difficulty");
  CHECK_CONTAINS(error_of([] { synthetic_image(10, 0, 0, 32, 0.5f); }), "class 10");
  CHECK(list_folder(dir.path()).empty());
  struct Full : FileSystem {
    int writes = 0;
    int64_t write(int fd, const void* src, size_t bytes) override { return ++writes > 2 ? -ENOSPC : FileSystem::write(fd, src, bytes); }
  };
  const UseFileSystem use(std::make_unique<Full>());
  CHECK_CONTAINS(error_of([&] { write_synthetic(dir.path(), {.train_images = 400, .train_files = 4}); }), "No space left");
  for (const std::string& n : list_folder(dir.path())) CHECK_FALSE(is_temporary_name(n));
}
