// TFRecord files: records framed as u64 length, masked CRC-32C of the length, data, masked CRC-32C of the data (little endian).
// Lengths are checked against the file's size before anything is allocated; both CRCs are always checked.
// Broken content throws BadRecord naming file and offset; a failing disk throws Error. Reading is thread-safe, writing is not.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "detent/core/error.h"
#include "detent/core/file.h"

namespace detent::io {

/// A record's content is wrong: the kind of error that `skip_bad_records` may skip.
class BadRecord : public Error {
 public:
  using Error::Error;
};

template <class... Args>
[[noreturn]] void fail_record(const Args&... args) {
  throw BadRecord(text(args...));
}

constexpr int64_t kTfRecordHeaderBytes = 12, kTfRecordFooterBytes = 4;

/// Where the records of a file begin. Eight bytes a record.
struct TfRecordIndex {
  std::vector<uint64_t> offsets;            ///< of the records, then the end of the last one
  std::optional<std::string> broken_frame;  ///< why nothing behind the last record can be reached, when the file does not end there
  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

/// Walks the lengths of a file (reading a page around each); the data is not read.
TfRecordIndex index_tfrecord(const RandomAccessFile& file);

/// The data of the record at `offset`, into `record`. Returns the offset behind the record.
int64_t read_tfrecord(const RandomAccessFile& file, int64_t offset, std::vector<uint8_t>& record);

/// The same when the index tells where the record ends: one read.
void read_tfrecord(const RandomAccessFile& file, int64_t offset, int64_t end, std::vector<uint8_t>& scratch, std::span<const uint8_t>& record);

/// Appends a framed record to `out`.
void append_tfrecord(std::string& out, std::string_view record);

/// Writes a file that appears under its name when finish() is called.
class TfRecordWriter {
 public:
  explicit TfRecordWriter(std::string path) : file_(std::move(path)) {}
  void write(std::string_view record);
  void finish() { file_.commit(); }

 private:
  AtomicFile file_;
  std::string frame_;
};

}  // namespace detent::io
