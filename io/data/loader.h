// Batches of a data set, epoch after epoch. Which images a batch holds and what they look like is a function of the options, the epoch and the batch number:
// threads decode ahead but never change the order or a bit, and seek() continues a run where it was left.
// Throws Error (label outside [0, classes), a record that must not be skipped, a failing disk) from next(), in the order of the records.
// One thread uses a Loader.
#pragma once

#include <cstdint>
#include <iterator>
#include <memory>

#include "detent/core/tensor.h"
#include "detent/io/data/dataset.h"
#include "detent/io/data/preprocess.h"

namespace detent::io {

struct Batch {
  Tensor images;      ///< f32 [n, h, w, 3]
  Tensor labels;      ///< i64 [n], 0-based; always on the host
  int64_t index = 0;  ///< in the epoch
};

struct LoaderOptions {
  int64_t batch = 32;
  bool shuffle = false;  ///< another permutation each epoch
  bool augment = false;  ///< random crop and flip of the preprocessing
  uint64_t seed = 0;
  Preprocess preprocess = Preprocess::keras;
  int64_t image_size = 0;    ///< 0: the preprocessing's own
  int64_t label_offset = 1;  ///< subtracted from the stored label
  int64_t classes = 1000;
  int threads = -1;        ///< that decode; -1: one per core, 0: none, next() decodes
  int64_t limit = 0;       ///< images per epoch, the same ones in each (the first, or with shuffle a random choice); 0: all
  bool drop_last = false;  ///< leave out a last batch that is not full
  int64_t prefetch = 2;    ///< batches decoded ahead
  Device device = {};      ///< where the images arrive; on a GPU the next batch is copied, from page-locked memory, while this one is worked on
};

class Loader {
 public:
  Loader(std::shared_ptr<const Dataset> dataset, LoaderOptions options);
  ~Loader();
  Loader(Loader&&) noexcept;
  Loader& operator=(Loader&&) noexcept;

  const LoaderOptions& options() const;
  int64_t image_size() const;
  int64_t images() const;   ///< per epoch
  int64_t batches() const;  ///< per epoch

  /// Starts an epoch at its first batch, or at any.
  void begin(int64_t epoch) { seek(epoch, 0); }
  void seek(int64_t epoch, int64_t batch);
  /// The next batch; false at the end of the epoch. A batch is smaller when records were skipped; a batch with none left is passed over.
  /// The first call without begin() starts epoch 0.
  bool next(Batch& batch);
  int64_t epoch() const;
  /// The record at a position of an epoch.
  int64_t record_at(int64_t epoch, int64_t position) const;
  /// How long next() waited for decoding, in all.
  double seconds_waiting() const;

  /// `for (const Batch& b : loader)`: each loop is the next epoch, the first one what seek() asked for, else epoch 0.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Batch;
    using difference_type = std::ptrdiff_t;
    using pointer = const Batch*;
    using reference = const Batch&;
    explicit Iterator(Loader* loader) : loader_(loader) { ++*this; }
    const Batch& operator*() const { return batch_; }
    const Batch* operator->() const { return &batch_; }
    Iterator& operator++() {
      batch_ = {};  // its memory serves the next batch
      if (!loader_->next(batch_)) loader_ = nullptr;
      return *this;
    }
    friend bool operator==(const Iterator& it, std::default_sentinel_t) { return it.loader_ == nullptr; }

   private:
    Loader* loader_;
    Batch batch_;
  };
  Iterator begin();
  std::default_sentinel_t end() const { return {}; }

 private:
  bool next_decoded(Batch& batch);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace detent::io
