// Slow: what only shows after a long time.
#include <doctest/doctest.h>

#include <cstdio>
#include <fstream>

#include "detent/core/allocator.h"
#include "detent/tests/io/support.h"
#include "detent/tests/robust/tiny_run.h"

using namespace detent;
using namespace detent::test;

namespace {

// From the kernel, not from the library's own counters.
int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

}  // namespace

TEST_CASE("two thousand steps need no more memory than two") {
  const TempFolder dir;
  write_tiny_data(dir.path());
  nn::Graph net = tiny_network();
  nn::fold_batch_norms(net);
  quant::QuantSim sim(net);
  io::Loader loader(std::make_shared<io::TfRecordDataset>(dir.path(), "train"),
                    {.batch = kTinyBatch, .shuffle = true, .augment = true, .preprocess = io::Preprocess::cifar, .image_size = kTinySize, .classes = 10, .threads = 2});
  sim.compute_encodings([&] {
    for (const io::Batch& b : loader) net(b.images);
  });
  nn::Sgd sgd({.learning_rate = 0.01f});
  nn::Trainer trainer(net, sgd, {.base = 0.01f});
  AllocStats second;
  int64_t resident = 0;
  while (trainer.steps_done() < 2000) {
    for (const io::Batch& b : loader) {
      const nn::StepInfo info = trainer.step(b.images, b.labels);
      if (info.step == 2) host_allocator().reset_peak(), second = host_allocator().stats();
      if (info.step == 100) resident = resident_bytes();
      if (info.step == 2000) break;
    }
  }
  const AllocStats last = host_allocator().stats();
  MESSAGE("allocations after step 2: " << second.raw_allocations << ", after step 2000: " << last.raw_allocations << "; resident after step 100: " << resident << ", 2000: " << resident_bytes());
  // The loader's batches come and go with its threads' timing: a few blocks more at most, never one a step.
  CHECK(last.raw_allocations - second.raw_allocations <= 16);
  CHECK(last.live_bytes + last.cached_bytes <= second.live_bytes + second.cached_bytes + (1 << 16));
  CHECK(resident_bytes() <= resident + (2 << 20));
}

TEST_CASE("a million records stream through at constant memory") {
  constexpr int64_t kRecords = 1'000'000;
  const TempFolder dir;
  {
    const std::string record = io::serialize_example(io::encode_jpeg(io::synthetic_image(2, 0, 0, 8, 0.0f), 50), 3, 8, 8);
    io::TfRecordWriter writer(dir / "train-00000-of-00001");
    for (int64_t i = 0; i < kRecords; ++i) writer.write(record);
    writer.finish();
  }
  io::Loader loader(std::make_shared<io::TfRecordDataset>(dir.path(), "train"),
                    {.batch = 1000, .shuffle = true, .preprocess = io::Preprocess::cifar, .image_size = 8, .classes = 10, .threads = 2});
  int64_t images = 0, early = 0;
  for (const io::Batch& b : loader) {
    images += b.images.dim(0);
    if (b.index == 20) early = resident_bytes();
  }
  MESSAGE("resident after 21,000 records: " << early << ", after a million: " << resident_bytes());
  CHECK(images == kRecords);
  CHECK(resident_bytes() <= early + (4 << 20));
}
