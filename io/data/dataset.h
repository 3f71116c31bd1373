// Labelled images on disk: a folder of TFRecord files `train*` and `valid*` (file names sorted by byte; links are fine), read at random.
// Opening walks the lengths of all records (8 bytes of memory each); reading checks both CRCs. Files stay closed beyond a fixed number of open ones.
// Throws Error naming the folder or the file and offset, BadRecord for a record's content. read() is thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "detent/io/data/jpeg.h"
#include "detent/io/data/tfrecord.h"

namespace detent::io {

struct Sample {
  Image image;
  int64_t label = 0;  ///< as stored
};

/// What a Loader reads from. read() and where() are called from several threads.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  virtual void read(int64_t record, Sample& sample) const = 0;
  /// For messages: file and offset.
  virtual std::string where(int64_t record) const = 0;
  /// Called (in order, by the consumer) for a record whose content is wrong: counts it, or throws when it must not be skipped.
  virtual void report_bad(int64_t record, const std::string& message) const;
};

/// A record by its file's name, without the folder, and its offset there.
struct RecordPlace {
  std::string file;
  int64_t offset = 0;
};

struct TfRecordOptions {
  /// So many files are read in turns when records come unshuffled; 0: ten for train, one (file after file) for others.
  int64_t interleave = 0;
  /// Broken records left out before the next one is an error. For training only: every validation image counts.
  int64_t skip_bad_records = 0;
  /// Gets one line for each record left out.
  std::function<void(const std::string&)> log = nullptr;
  /// Decoded images kept in memory, up to so many bytes.
  int64_t cache_bytes = 0;
};

class TfRecordDataset final : public Dataset {
 public:
  TfRecordDataset(const std::string& folder, std::string_view prefix, TfRecordOptions options = {});
  ~TfRecordDataset() override;
  int64_t size() const override;
  void read(int64_t record, Sample& sample) const override;
  std::string where(int64_t record) const override;
  void report_bad(int64_t record, const std::string& message) const override;
  int64_t files() const;
  int64_t bad_records() const;                  ///< left out so far
  std::vector<RecordPlace> bad_places() const;  ///< where those are
  /// Counts records that an earlier run left out, whatever skip_bad_records allows; they are not reported again when they are met. Those of other files are ignored.
  void leave_out(const std::vector<RecordPlace>& places);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace detent::io
