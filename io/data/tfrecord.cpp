#include "detent/io/data/tfrecord.h"

#include <cstring>

#include "detent/io/data/crc32c.h"

namespace detent::io {
namespace {

constexpr int64_t kHeader = kTfRecordHeaderBytes, kFooter = kTfRecordFooterBytes;

template <class T>
T load_le(const uint8_t* p) {
  T v = 0;
  for (size_t i = 0; i < sizeof(T); ++i) v |= static_cast<T>(p[i]) << (8 * i);
  return v;
}

template <class T>
void append_le(std::string& out, T v) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(v >> (8 * i)));
}

// The data's length as the header tells, known to fit the file.
int64_t checked_length(const RandomAccessFile& file, int64_t offset, const uint8_t* header) {
  if (load_le<uint32_t>(header + 8) != masked_crc32c(header, 8)) {
    fail_record(file.path(), ": record at offset ", offset, ": the checksum of the length is wrong; the file is damaged or is no TFRecord file");
  }
  const auto length = load_le<uint64_t>(header);
  const auto room = static_cast<uint64_t>(file.size() - offset - kHeader);
  if (length > room || room - length < static_cast<uint64_t>(kFooter)) {
    fail_record(file.path(), ": record at offset ", offset, " is cut off: it is said to hold ", length, " bytes, the file ends ", room, " bytes behind its header");
  }
  return static_cast<int64_t>(length);
}

void check_header_fits(const RandomAccessFile& file, int64_t offset) {
  DETENT_CHECK(offset >= 0 && offset <= file.size(), file.path(), ": no record at offset ", offset, ", the file has ", file.size(), " bytes");
  const int64_t room = file.size() - offset;
  if (room < kHeader + kFooter) fail_record(file.path(), ": record at offset ", offset, " is cut off: ", room, " bytes are left in the file");
}

void check_data(const RandomAccessFile& file, int64_t offset, const uint8_t* data, int64_t length) {
  if (load_le<uint32_t>(data + length) != masked_crc32c(data, static_cast<size_t>(length))) {
    fail_record(file.path(), ": record at offset ", offset, ": the checksum of its ", length, " bytes is wrong; the file is damaged");
  }
}

}  // namespace

TfRecordIndex index_tfrecord(const RandomAccessFile& file) {
  constexpr int64_t kPage = 4096;
  TfRecordIndex index;
  std::vector<uint8_t> page(kPage);
  int64_t page_begin = 0, page_end = 0, offset = 0;
  index.offsets.push_back(0);
  try {
    while (offset < file.size()) {
      check_header_fits(file, offset);
      if (offset < page_begin || offset + kHeader > page_end) {
        page_begin = offset;
        page_end = offset + static_cast<int64_t>(file.read_some(offset, page.data(), page.size()));
        if (page_end < offset + kHeader) fail_record(file.path(), ": record at offset ", offset, " is cut off: the file has become shorter");
      }
      offset += kHeader + checked_length(file, offset, page.data() + (offset - page_begin)) + kFooter;
      index.offsets.push_back(static_cast<uint64_t>(offset));
    }
  } catch (const BadRecord& e) {
    index.broken_frame = e.what();
  }
  index.offsets.shrink_to_fit();
  return index;
}

int64_t read_tfrecord(const RandomAccessFile& file, int64_t offset, std::vector<uint8_t>& record) {
  check_header_fits(file, offset);
  uint8_t header[kHeader];
  file.read(offset, header, kHeader);
  const int64_t length = checked_length(file, offset, header);
  record.resize(static_cast<size_t>(length + kFooter));
  file.read(offset + kHeader, record.data(), record.size());
  check_data(file, offset, record.data(), length);
  record.resize(static_cast<size_t>(length));
  return offset + kHeader + length + kFooter;
}

void read_tfrecord(const RandomAccessFile& file, int64_t offset, int64_t end, std::vector<uint8_t>& scratch, std::span<const uint8_t>& record) {
  DETENT_CHECK(end - offset >= kHeader + kFooter && end <= file.size(), file.path(), ": record at offset ", offset, " to ", end, ": the file has changed since it was opened");
  scratch.resize(static_cast<size_t>(end - offset));
  file.read(offset, scratch.data(), scratch.size());
  const int64_t length = checked_length(file, offset, scratch.data());
  DETENT_CHECK(length == end - offset - kHeader - kFooter, file.path(), ": record at offset ", offset, ": its length has changed from ", end - offset - kHeader - kFooter, " to ",
               length, " since the file was opened");
  check_data(file, offset, scratch.data() + kHeader, length);
  record = {scratch.data() + kHeader, static_cast<size_t>(length)};
}

void append_tfrecord(std::string& out, std::string_view record) {
  const size_t begin = out.size();
  append_le<uint64_t>(out, record.size());
  append_le<uint32_t>(out, masked_crc32c(out.data() + begin, 8));
  out.append(record);
  append_le<uint32_t>(out, masked_crc32c(record.data(), record.size()));
}

void TfRecordWriter::write(std::string_view record) {
  frame_.clear();
  append_tfrecord(frame_, record);
  file_.write(frame_);
}

}  // namespace detent::io
