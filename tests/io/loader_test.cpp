#include "detent/tests/io/support.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "detent/io/data/dataset.h"
#include "detent/io/data/example.h"
#include "detent/io/data/loader.h"
#include "detent/io/data/shuffle.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

// Labels 1, 2, ...; every image is a constant that tells its record. Some records take longer than others, so that threads finish out of order.
struct CountingDataset : Dataset {
  int64_t n;
  std::set<int64_t> bad, io_error;
  bool skip = false, uneven = false;
  mutable std::mutex mutex;
  mutable std::vector<int64_t> reported;
  explicit CountingDataset(int64_t records) : n(records) {}
  int64_t size() const override { return n; }
  std::string where(int64_t record) const override { return text("memory: record ", record); }
  void read(int64_t record, Sample& s) const override {
    if (uneven && record % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1 + record % 4));
    if (bad.contains(record)) throw BadRecord(text("bad ", record));
    if (io_error.contains(record)) fail("disk ", record);
    s.label = record + 1;
    s.image.height = s.image.width = 8;
    s.image.pixels.resize(8 * 8 * 3);
    for (size_t i = 0; i < s.image.pixels.size(); ++i) s.image.pixels[i] = static_cast<uint8_t>(record * 31 + static_cast<int64_t>(i));
  }
  void report_bad(int64_t record, const std::string& message) const override {
    const std::lock_guard lock(mutex);
    reported.push_back(record);
    if (!skip) throw BadRecord(message);
  }
};

LoaderOptions small(int64_t batch) {
  LoaderOptions o;
  o.batch = batch;
  o.preprocess = Preprocess::cifar;
  o.image_size = 8;
  o.classes = 1 << 30;
  o.threads = 2;
  return o;
}

struct Seen {
  std::vector<int64_t> labels, sizes, indexes;
  std::vector<float> pixels;
  friend bool operator==(const Seen&, const Seen&) = default;
  void add(const Batch& b) {
    const auto l = b.labels.to_vector<int64_t>();
    const auto p = b.images.to_vector<float>();
    labels.insert(labels.end(), l.begin(), l.end());
    pixels.insert(pixels.end(), p.begin(), p.end());
    sizes.push_back(b.images.dim(0));
    indexes.push_back(b.index);
  }
};

Seen drain(Loader& loader) {
  Seen s;
  for (Batch b; loader.next(b);) s.add(b);
  return s;
}

Seen epoch(Loader& loader, int64_t e, int64_t batch = 0) {
  loader.seek(e, batch);
  return drain(loader);
}

}  // namespace

TEST_CASE("a permutation holds every number once, at any length") {
  for (int64_t n = 1; n < 300; n += 1 + n / 20) {
    const Permutation p(n, 7, static_cast<uint64_t>(n));
    std::set<int64_t> seen;
    for (int64_t i = 0; i < n; ++i) seen.insert(p(i));
    CHECK(seen.size() == static_cast<size_t>(n));
    CHECK(*seen.begin() == 0);
    CHECK(*seen.rbegin() == n - 1);
  }
  const Permutation large(int64_t{1} << 40, 1, 1);
  CHECK(large(12345) != large(12346));
  CHECK(large((int64_t{1} << 40) - 1) < (int64_t{1} << 40));
}

TEST_CASE("a permutation is random: places are uniform and neighbours part") {
  // Chi-square of where element 0..9 of ten lands over 5,000 streams: 99 cells less the two margins leave 81 degrees of freedom; 145 is far above 99.99 %.
  constexpr int kStreams = 5000, kSize = 10;
  int counts[kSize][kSize] = {};
  for (int s = 0; s < kStreams; ++s) {
    const Permutation p(kSize, 3, static_cast<uint64_t>(s));
    for (int i = 0; i < kSize; ++i) ++counts[i][p(i)];
  }
  double chi2 = 0;
  for (const auto& row : counts) {
    for (const int c : row) chi2 += (c - kStreams / kSize) * (c - kStreams / kSize) / static_cast<double>(kStreams / kSize);
  }
  CHECK(chi2 < 145);
  const Permutation p(10000, 3, 4);
  int near = 0;
  for (int i = 0; i + 1 < 10000; ++i) near += std::abs(p(i) - p(i + 1)) < 10;
  CHECK(near < 60);  // about 18 expected
}

TEST_CASE("batches in order, the last one partial or dropped") {
  auto data = std::make_shared<CountingDataset>(23);
  Loader loader(data, small(5));
  CHECK(loader.batches() == 5);
  const Seen s = drain(loader);
  CHECK(s.sizes == std::vector<int64_t>{5, 5, 5, 5, 3});
  CHECK(s.indexes == std::vector<int64_t>{0, 1, 2, 3, 4});
  for (int64_t i = 0; i < 23; ++i) CHECK(s.labels[static_cast<size_t>(i)] == i);
  LoaderOptions o = small(5);
  o.drop_last = true;
  Loader dropping(data, o);
  CHECK(drain(dropping).sizes == std::vector<int64_t>{5, 5, 5, 5});
  CHECK(dropping.images() == 20);
}

TEST_CASE("the same bits at any number of threads") {
  auto data = std::make_shared<CountingDataset>(61);
  data->uneven = true;
  LoaderOptions o = small(7);
  o.shuffle = o.augment = true;
  o.seed = 5;
  o.threads = 0;
  Loader alone(data, o);
  const Seen first = epoch(alone, 0), second = epoch(alone, 1);
  CHECK(first.labels != second.labels);
  for (const int threads : {1, 2, 4, 16}) {
    o.threads = threads;
    o.prefetch = threads == 4 ? 1 : 3;
    Loader loader(data, o);
    CHECK(epoch(loader, 0) == first);
    CHECK(epoch(loader, 1) == second);
    CHECK(epoch(loader, 0) == first);
  }
}

TEST_CASE("shuffling is a function of seed and epoch, and holds every record once") {
  auto data = std::make_shared<CountingDataset>(100);
  LoaderOptions o = small(9);
  o.shuffle = true;
  std::set<std::vector<int64_t>> orders;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    o.seed = seed;
    Loader loader(data, o);
    for (int64_t e = 0; e < 3; ++e) {
      std::vector<int64_t> order = epoch(loader, e).labels;
      for (int64_t i = 0; i < 100; ++i) CHECK(order[static_cast<size_t>(i)] == loader.record_at(e, i));
      orders.insert(order);
      std::sort(order.begin(), order.end());
      for (int64_t i = 0; i < 100; ++i) CHECK(order[static_cast<size_t>(i)] == i);
    }
  }
  CHECK(orders.size() == 9);
}

TEST_CASE("seek continues where another loader was") {
  auto data = std::make_shared<CountingDataset>(50);
  LoaderOptions o = small(8);
  o.shuffle = o.augment = true;
  Loader whole(data, o);
  Seen rest;
  whole.begin(2);
  Batch b;
  for (int i = 0; i < 3; ++i) REQUIRE(whole.next(b));
  rest = drain(whole);
  Loader resumed(data, o);
  CHECK(epoch(resumed, 2, 3) == rest);
  CHECK(epoch(resumed, 2, 7).sizes.empty());
  CHECK_THROWS_AS(resumed.seek(2, 8), Error);
}

TEST_CASE("augmentation follows seed, epoch and record, not the position") {
  auto data = std::make_shared<CountingDataset>(20);
  LoaderOptions o = small(1);
  o.augment = true;
  Loader ordered(data, o);
  const Seen a = epoch(ordered, 1);
  o.shuffle = true;
  Loader shuffled(data, o);
  const Seen b = epoch(shuffled, 1);
  constexpr size_t kImage = 8 * 8 * 3;
  for (size_t i = 0; i < 20; ++i) {
    const auto record = static_cast<size_t>(b.labels[i]);
    CHECK(std::equal(b.pixels.begin() + static_cast<std::ptrdiff_t>(i * kImage), b.pixels.begin() + static_cast<std::ptrdiff_t>((i + 1) * kImage),
                     a.pixels.begin() + static_cast<std::ptrdiff_t>(record * kImage)));
  }
  CHECK(epoch(ordered, 2).pixels != a.pixels);
}

TEST_CASE("a limit takes the same images in each epoch, chosen at random when shuffled") {
  auto data = std::make_shared<CountingDataset>(1000);
  LoaderOptions o = small(10);
  o.limit = 25;
  Loader first(data, o);
  const Seen head = drain(first);
  CHECK(head.labels.size() == 25);
  CHECK(head.labels.back() == 24);
  o.shuffle = true;
  Loader random(data, o);
  std::vector<int64_t> a = epoch(random, 0).labels, b = epoch(random, 1).labels;
  CHECK(a != b);
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  CHECK(a == b);
  CHECK(a.back() > 500);
  o.limit = 5000;
  CHECK(Loader(data, o).images() == 1000);
}

TEST_CASE("for loops walk one epoch each, from where seek pointed") {
  auto data = std::make_shared<CountingDataset>(10);
  LoaderOptions o = small(4);
  o.shuffle = true;
  Loader loader(data, o), reference(data, o);
  for (int64_t e = 0; e < 3; ++e) {
    Seen s;
    for (const Batch& b : loader) s.add(b);
    CHECK(s == epoch(reference, e));
    CHECK(loader.epoch() == e);
  }
  loader.seek(7, 1);
  Seen s;
  for (const Batch& b : loader) s.add(b);
  CHECK(s == epoch(reference, 7, 1));
  for (const Batch& b : loader) {
    CHECK(b.index == 0);
    break;
  }
  CHECK(loader.epoch() == 8);
}

TEST_CASE("a bad record is an error at its batch, again and again, until another start") {
  for (const int threads : {0, 3}) {
    auto data = std::make_shared<CountingDataset>(40);
    data->bad = {17, 30};
    LoaderOptions o = small(4);
    o.threads = threads;
    Loader loader(data, o);
    Batch b;
    for (int i = 0; i < 4; ++i) REQUIRE(loader.next(b));
    for (int i = 0; i < 2; ++i) CHECK(error_of([&] { loader.next(b); }) == "bad 17");
    CHECK(data->reported == std::vector<int64_t>{17});
    loader.seek(0, 5);
    CHECK(loader.next(b));
  }
}

TEST_CASE("skipped records leave smaller batches and empty ones out") {
  auto data = std::make_shared<CountingDataset>(12);
  data->bad = {1, 3, 4, 5, 11};
  data->skip = true;
  Loader loader(data, small(3));
  const Seen s = drain(loader);
  CHECK(s.labels == std::vector<int64_t>{0, 2, 6, 7, 8, 9, 10});
  CHECK(s.sizes == std::vector<int64_t>{2, 3, 2});
  CHECK(s.indexes == std::vector<int64_t>{0, 2, 3});
  CHECK(data->reported == std::vector<int64_t>{1, 3, 4, 5, 11});
  LoaderOptions o = small(1);
  Loader single(std::make_shared<CountingDataset>(3), o);
  const Seen plain = drain(single);
  CHECK(std::equal(plain.pixels.begin(), plain.pixels.begin() + 192, s.pixels.begin()));      // record 0
  CHECK(std::equal(plain.pixels.begin() + 384, plain.pixels.end(), s.pixels.begin() + 192));  // record 2 moved up
}

TEST_CASE("a failing disk is never skipped") {
  auto data = std::make_shared<CountingDataset>(12);
  data->io_error = {5};
  data->skip = true;
  Loader loader(data, small(3));
  CHECK(error_of([&] { drain(loader); }) == "disk 5");
}

TEST_CASE("a label outside the classes is an error with its record") {
  auto data = std::make_shared<CountingDataset>(12);
  LoaderOptions o = small(4);
  o.classes = 10;
  Loader many(data, o);
  CHECK_CONTAINS(error_of([&] { drain(many); }), "memory: record 10: label 11 minus the label offset 1 is not in 0..9");
  o.label_offset = 2;
  Loader few(data, o);
  CHECK_CONTAINS(error_of([&] { drain(few); }), "memory: record 0: label 1 minus the label offset 2");
  o.label_offset = std::numeric_limits<int64_t>::min();
  Loader extreme(data, o);
  CHECK_CONTAINS(error_of([&] { drain(extreme); }), "record 0");
}

TEST_CASE("options that make no sense are refused") {
  auto data = std::make_shared<CountingDataset>(12);
  const auto with = [&](auto set) {
    LoaderOptions o = small(4);
    set(o);
    return error_of([&] { Loader(data, o); });
  };
  CHECK_CONTAINS(with([](auto& o) { o.batch = 0; }), "batch 0");
  CHECK_CONTAINS(with([](auto& o) { o.batch = -1; }), "batch -1");
  CHECK_CONTAINS(with([](auto& o) { o.classes = 0; }), "classes 0");
  CHECK_CONTAINS(with([](auto& o) { o.limit = -1; }), "limit -1");
  CHECK_CONTAINS(with([](auto& o) { o.image_size = -1; }), "image size");
  CHECK_CONTAINS(with([](auto& o) { o.threads = -2; }), "threads -2");
  CHECK_CONTAINS(error_of([&] { Loader(nullptr, {}); }), "no data set");
  CHECK_CONTAINS(error_of([&] { Loader(std::make_shared<CountingDataset>(0), {}); }), "empty");
}

TEST_CASE("waiting is measured, and a loader can go while its threads work") {
  auto data = std::make_shared<CountingDataset>(64);
  data->uneven = true;
  for (int i = 0; i < 20; ++i) {
    Loader loader(data, small(16));
    Batch b;
    if (i % 2) loader.next(b);
    loader.begin(i);
    if (i % 4 == 3) {
      drain(loader);
      CHECK(loader.seconds_waiting() > 0.0);
    }
  }
}
