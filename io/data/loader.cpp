#include "detent/io/data/loader.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "detent/io/data/shuffle.h"
#include "detent/io/data/upload.h"

namespace detent::io {
namespace {

// Streams of the seed: the choice of images, the order of each epoch, the augmentation of each image.
constexpr uint64_t kChoiceStream = 0x63686f696365, kOrderStream = 0x6f72646572, kAugmentStream = 0x6175676d656e74;

uint64_t stream(uint64_t purpose, int64_t epoch, int64_t record) {
  return Rng::mix(Rng::mix(purpose + static_cast<uint64_t>(epoch) * 0x9e3779b97f4a7c15ull) + static_cast<uint64_t>(record));
}

// A batch on its way: rows are claimed by threads, then all done.
struct Slot {
  Batch batch;
  int64_t first = 0, rows = 0;  // positions in the epoch
  int64_t claimed = 0, done = 0;
  std::vector<std::exception_ptr> errors;
};

struct Scratch {
  Sample sample;
  PreprocessScratch preprocess;
};

LoaderOptions checked(LoaderOptions o, int64_t records) {
  DETENT_CHECK(o.batch >= 1 && o.batch <= 1 << 20, "loader: batch ", o.batch, " is not in 1..1048576");
  DETENT_CHECK(o.classes >= 1, "loader: classes ", o.classes, " is not positive");
  DETENT_CHECK(o.limit >= 0, "loader: limit ", o.limit, " is negative");
  DETENT_CHECK(o.threads >= -1 && o.threads <= 1024, "loader: threads ", o.threads, " is not in -1..1024");
  DETENT_CHECK(o.prefetch >= 1 && o.prefetch <= 1024, "loader: prefetch ", o.prefetch, " is not in 1..1024");
  DETENT_CHECK(records > 0, "loader: the data set is empty");
  if (o.threads < 0) o.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 64u));
  if (o.limit == 0 || o.limit > records) o.limit = records;
  return o;
}

}  // namespace

struct Loader::Impl {
  Impl(std::shared_ptr<const Dataset> data, const LoaderOptions& o)
      : dataset(std::move(data)),
        options(checked(o, dataset->size())),
        preprocessor(options.preprocess, options.image_size),
        choice(dataset->size(), options.seed, kChoiceStream),
        order(options.limit, options.seed, kOrderStream) {
    batches = options.drop_last ? options.limit / options.batch : (options.limit + options.batch - 1) / options.batch;
    // Small images are taken several at a time: a claim costs a lock.
    rows_per_claim = preprocessor.elements() <= 64 * 64 * 3 ? 8 : 1;
    depth = options.prefetch + options.threads * rows_per_claim / options.batch;
  }

  ~Impl() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (std::thread& t : threads) t.join();
  }

  int64_t record_at(const Permutation& epoch_order, int64_t position) const {
    if (!options.shuffle) return position;
    const int64_t p = epoch_order(position);
    return options.limit == dataset->size() ? p : choice(p);
  }

  void fill_row(Slot& slot, int64_t row, Scratch& scratch) {
    const int64_t record = record_at(order, slot.first + row);
    Sample& s = scratch.sample;
    dataset->read(record, s);
    // Unsigned differences wrap instead of overflowing.
    const auto label = static_cast<int64_t>(static_cast<uint64_t>(s.label) - static_cast<uint64_t>(options.label_offset));
    DETENT_CHECK(label >= 0 && label < options.classes, dataset->where(record), ": label ", s.label, " minus the label offset ", options.label_offset, " is not in 0..",
                 options.classes - 1, "; check the number of classes and the label offset");
    slot.batch.labels.data<int64_t>()[row] = label;
    Rng rng(options.seed, stream(kAugmentStream, epoch, record));
    preprocessor.run(s.image, slot.batch.images.data<float>() + row * preprocessor.elements(), options.augment ? &rng : nullptr, scratch.preprocess);
  }

  void fill(Slot& slot, int64_t begin, int64_t end, Scratch& scratch) {
    for (int64_t row = begin; row < end; ++row) {
      try {
        fill_row(slot, row, scratch);
      } catch (...) {
        slot.errors[static_cast<size_t>(row)] = std::current_exception();
      }
    }
  }

  // Below: with the mutex held.

  bool can_open() const { return running && next_batch < batches && static_cast<int64_t>(slots.size()) < depth; }
  bool has_work() const { return running && (can_open() || (!slots.empty() && slots.back().claimed < slots.back().rows)); }

  void open_slot() {
    Slot s;
    s.first = next_batch * options.batch;
    s.rows = std::min(options.batch, options.limit - s.first);
    s.batch.index = next_batch++;
    const int64_t side = preprocessor.image_size();
    s.errors.resize(static_cast<size_t>(s.rows));
    try {
      s.batch.images = Tensor({s.rows, side, side, 3});
      s.batch.labels = Tensor({s.rows}, DType::i64);
    } catch (...) {
      s.errors[0] = std::current_exception();
      s.claimed = s.done = s.rows;
    }
    slots.push_back(std::move(s));
  }

  // Fills some rows of the newest batch, opening one when all are claimed.
  void work_once(std::unique_lock<std::mutex>& lock, Scratch& scratch) {
    if (slots.empty() || slots.back().claimed == slots.back().rows) open_slot();
    Slot& slot = slots.back();  // a deque keeps it in place
    const int64_t begin = slot.claimed, end = std::min(begin + rows_per_claim, slot.rows);
    slot.claimed = end;
    if (has_work()) wake.notify_one();
    ++in_flight;
    lock.unlock();
    fill(slot, begin, end, scratch);
    lock.lock();
    --in_flight;
    slot.done += end - begin;
    if (slot.done == slot.rows || in_flight == 0) ready.notify_all();
  }

  void thread_loop() {
    Scratch scratch;
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return stop || has_work(); });
      if (stop) return;
      work_once(lock, scratch);
    }
  }

  void restart(int64_t at_epoch, int64_t at_batch) {
    std::unique_lock lock(mutex);
    running = false;
    if (ahead) uploader->finish();  // its memory may be given to others from here on
    ahead.reset();
    ready.wait(lock, [&] { return in_flight == 0; });
    slots.clear();
    epoch = at_epoch;
    next_batch = at_batch;
    order = Permutation(options.limit, options.seed, stream(kOrderStream, epoch, 0));
    failure = nullptr;
    running = started = true;
    if (threads.empty()) {
      for (int i = 0; i < options.threads; ++i) threads.emplace_back([this] { thread_loop(); });
    }
    wake.notify_one();
  }

  // The oldest batch once all its rows are done; false at the end of the epoch.
  bool take(Slot& out) {
    const auto before = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex);
    while (slots.empty() || slots.front().done < slots.front().rows) {
      if (slots.empty() && next_batch >= batches) return false;
      if (options.threads == 0) {
        work_once(lock, own_scratch);
      } else {
        wake.notify_one();
        ready.wait(lock, [&] { return !slots.empty() && slots.front().done == slots.front().rows; });
      }
    }
    out = std::move(slots.front());
    slots.pop_front();
    if (has_work()) wake.notify_one();
    waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
    return true;
  }

  // True when the next batch can be had without waiting for a decoder.
  bool decoded() {
    std::lock_guard lock(mutex);
    return !slots.empty() && slots.front().done == slots.front().rows;
  }

  // Closes the gaps that bad records left; throws when they must not be skipped.
  void settle(Slot& slot) {
    Batch& b = slot.batch;
    int64_t kept = 0;
    for (int64_t row = 0; row < slot.rows; ++row) {
      if (const std::exception_ptr& e = slot.errors[static_cast<size_t>(row)]) {
        try {
          std::rethrow_exception(e);
        } catch (const BadRecord& bad) {
          dataset->report_bad(record_at(order, slot.first + row), bad.what());
        }
        continue;
      }
      if (kept != row) {
        const int64_t n = preprocessor.elements();
        std::memcpy(b.images.data<float>() + kept * n, b.images.data<float>() + row * n, static_cast<size_t>(n) * sizeof(float));
        b.labels.data<int64_t>()[kept] = b.labels.data<int64_t>()[row];
      }
      ++kept;
    }
    if (kept == slot.rows) return;
    b.images = b.images.rows(0, kept);
    b.labels = b.labels.rows(0, kept);
  }

  std::shared_ptr<const Dataset> dataset;
  LoaderOptions options;
  Preprocessor preprocessor;
  Permutation choice, order;
  int64_t batches = 0, rows_per_claim = 1, depth = 2;
  std::exception_ptr failure;
  double waited = 0.0;
  std::unique_ptr<Uploader> uploader;  // when batches go to another device
  std::optional<Batch> ahead;          // on its way there
  bool started = false, seeked = false;
  Scratch own_scratch;

  std::mutex mutex;
  std::condition_variable wake, ready;  // for the threads; for the consumer
  std::deque<Slot> slots;
  int64_t epoch = 0, next_batch = 0;
  int in_flight = 0;
  bool running = false, stop = false;
  std::vector<std::thread> threads;
};

Loader::Loader(std::shared_ptr<const Dataset> dataset, LoaderOptions options) {
  DETENT_CHECK(dataset, "loader: no data set");
  impl_ = std::make_unique<Impl>(std::move(dataset), options);
}
Loader::~Loader() = default;
Loader::Loader(Loader&&) noexcept = default;
Loader& Loader::operator=(Loader&&) noexcept = default;

const LoaderOptions& Loader::options() const { return impl_->options; }
int64_t Loader::image_size() const { return impl_->preprocessor.image_size(); }
int64_t Loader::images() const { return impl_->options.drop_last ? impl_->batches * impl_->options.batch : impl_->options.limit; }
int64_t Loader::batches() const { return impl_->batches; }
int64_t Loader::epoch() const { return impl_->epoch; }
double Loader::seconds_waiting() const { return impl_->waited; }

void Loader::seek(int64_t epoch, int64_t batch) {
  DETENT_CHECK(epoch >= 0 && batch >= 0 && batch <= impl_->batches, "loader: batch ", batch, " of epoch ", epoch, " was asked for, an epoch has ", impl_->batches, " batches");
  impl_->restart(epoch, batch);
  impl_->seeked = true;
}

Loader::Iterator Loader::begin() {
  if (!impl_->seeked) impl_->restart(impl_->started ? impl_->epoch + 1 : 0, 0);
  impl_->seeked = false;
  return Iterator(this);
}

bool Loader::next(Batch& batch) {
  Impl& m = *impl_;
  if (m.options.device.type == DeviceType::cpu) return next_decoded(batch);
  if (!m.started) m.restart(0, 0);
  if (!m.uploader) m.uploader = std::make_unique<Uploader>(m.options.device);
  const auto start = [&m](Batch& b) { b.images = m.uploader->start(b.images); };
  if (!m.ahead) {
    Batch first;
    if (!next_decoded(first)) return false;
    start(first);
    m.ahead = std::move(first);
  }
  m.uploader->finish();
  batch = std::move(*m.ahead);
  m.ahead.reset();
  m.seeked = false;
  if (!m.failure && m.decoded()) {
    try {
      Batch next;
      if (next_decoded(next)) {
        start(next);
        m.ahead = std::move(next);
      }
    } catch (...) {
      m.failure = std::current_exception();  // of the batch after this one
    }
  }
  return true;
}

bool Loader::next_decoded(Batch& batch) {
  Impl& m = *impl_;
  if (!m.started) m.restart(0, 0);
  m.seeked = false;
  if (m.failure) std::rethrow_exception(m.failure);
  try {
    Slot slot;
    do {
      if (!m.take(slot)) return false;
      m.settle(slot);
    } while (slot.batch.labels.dim(0) == 0);
    batch = std::move(slot.batch);
    return true;
  } catch (...) {
    // Asking again must not step over the failed batch.
    m.failure = std::current_exception();
    throw;
  }
}

int64_t Loader::record_at(int64_t epoch, int64_t position) const {
  DETENT_CHECK(position >= 0 && position < impl_->options.limit, "loader: position ", position, " of ", impl_->options.limit);
  return impl_->record_at(Permutation(impl_->options.limit, impl_->options.seed, stream(kOrderStream, epoch, 0)), position);
}

}  // namespace detent::io
