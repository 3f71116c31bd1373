#include "detent/io/data/dataset.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "detent/core/parallel.h"
#include "detent/io/data/example.h"

namespace detent::io {
namespace {

// Records of several files in turns: a segment is a run of rounds in which the same files still have records.
struct Segment {
  int64_t first = 0;  // record number
  int64_t round = 0;  // index inside each file
  size_t files_begin = 0, files_count = 0;
};

struct Place {
  size_t file;
  int64_t index;
};

class Interleave {
 public:
  void build(const std::vector<TfRecordIndex>& indexes, size_t cycle) {
    for (size_t begin = 0; begin < indexes.size(); begin += cycle) add_group(indexes, begin, std::min(begin + cycle, indexes.size()));
  }

  int64_t size() const { return size_; }

  Place operator()(int64_t record) const {
    const auto next = std::upper_bound(segments_.begin(), segments_.end(), record, [](int64_t r, const Segment& s) { return r < s.first; });
    const Segment& s = *(next - 1);
    const auto count = static_cast<int64_t>(s.files_count);
    const int64_t k = record - s.first;
    return {files_[s.files_begin + static_cast<size_t>(k % count)], s.round + k / count};
  }

 private:
  void add_group(const std::vector<TfRecordIndex>& indexes, size_t begin, size_t end) {
    std::set<int64_t> ends;
    for (size_t f = begin; f < end; ++f) ends.insert(indexes[f].size());
    int64_t round = 0;
    for (const int64_t stop : ends) {
      if (stop == round) continue;
      Segment s{size_, round, files_.size(), 0};
      for (size_t f = begin; f < end; ++f) {
        if (indexes[f].size() > round) files_.push_back(f);
      }
      s.files_count = files_.size() - s.files_begin;
      segments_.push_back(s);
      size_ += (stop - round) * static_cast<int64_t>(s.files_count);
      round = stop;
    }
  }

  std::vector<Segment> segments_;
  std::vector<size_t> files_;
  int64_t size_ = 0;
};

// A data set may have more files than a process may open.
class OpenFiles {
 public:
  std::shared_ptr<const RandomAccessFile> get(size_t file, const std::string& path) {
    {
      std::lock_guard lock(mutex_);
      if (file >= files_.size()) files_.resize(file + 1);
      if (files_[file]) return files_[file];
    }
    auto opened = std::make_shared<const RandomAccessFile>(path);
    std::lock_guard lock(mutex_);
    if (files_[file]) return files_[file];
    if (open_.size() >= kMaxOpen) {
      // The oldest goes; a thread that reads from it still holds it.
      files_[open_[oldest_]].reset();
      open_[oldest_] = file;
      oldest_ = (oldest_ + 1) % kMaxOpen;
    } else {
      open_.push_back(file);
    }
    return files_[file] = std::move(opened);
  }

 private:
  static constexpr size_t kMaxOpen = 128;
  std::mutex mutex_;
  std::vector<std::shared_ptr<const RandomAccessFile>> files_;
  std::vector<size_t> open_;
  size_t oldest_ = 0;
};

// Decoded images by record, filled until the limit; never evicted.
class Cache {
 public:
  Cache(int64_t limit, int64_t records) : limit_(limit), slots_(limit > 0 ? static_cast<size_t>(records) : 0) {}
  ~Cache() {
    for (auto& s : slots_) delete s.load();
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  bool get(int64_t record, Sample& sample) const {
    if (slots_.empty()) return false;
    const Sample* s = slots_[static_cast<size_t>(record)].load(std::memory_order_acquire);
    if (!s) return false;
    sample.label = s->label;
    sample.image.height = s->image.height;
    sample.image.width = s->image.width;
    sample.image.pixels.assign(s->image.pixels.begin(), s->image.pixels.end());
    return true;
  }

  void put(int64_t record, const Sample& sample) {
    if (slots_.empty()) return;
    const auto bytes = static_cast<int64_t>(sizeof(Sample) + sample.image.pixels.size());
    if (used_.fetch_add(bytes) + bytes > limit_) {
      used_.fetch_sub(bytes);
      return;
    }
    auto copy = std::make_unique<Sample>(sample);
    const Sample* none = nullptr;
    if (slots_[static_cast<size_t>(record)].compare_exchange_strong(none, copy.get(), std::memory_order_release)) {
      copy.release();
    } else {
      used_.fetch_sub(bytes);
    }
  }

 private:
  int64_t limit_;
  std::atomic<int64_t> used_{0};
  std::vector<std::atomic<const Sample*>> slots_;
};

std::vector<std::string> find_files(const std::string& folder, std::string_view prefix) {
  DETENT_CHECK(folder_exists(folder), "data folder ", folder, ": no such folder; give the folder that holds the TFRecord files train* and valid*");
  std::vector<std::string> paths;
  const std::vector<std::string> names = list_folder(folder);
  for (const std::string& name : names) {
    if (name.starts_with(prefix) && !is_temporary_name(name) && file_exists(join_path(folder, name))) paths.push_back(join_path(folder, name));
  }
  DETENT_CHECK(!paths.empty(), "data folder ", folder, ": none of its ", names.size(), " files has a name that begins with ", prefix,
               "; give the folder that holds the TFRecord files train* and valid*");
  return paths;
}

}  // namespace

void Dataset::report_bad(int64_t, const std::string& message) const { throw BadRecord(message); }

struct TfRecordDataset::Impl {
  TfRecordOptions options;
  std::vector<std::string> paths;
  std::vector<TfRecordIndex> indexes;
  Interleave order;
  mutable OpenFiles open;
  std::unique_ptr<Cache> cache;

  mutable std::mutex bad_mutex;
  mutable std::set<std::pair<size_t, int64_t>> bad;  // file and offset: a record met again is not counted again

  std::string name(size_t file) const { return paths[file].substr(paths[file].rfind('/') + 1); }
  int64_t offset(Place p) const { return static_cast<int64_t>(indexes[p.file].offsets[static_cast<size_t>(p.index)]); }
  int64_t end(Place p) const { return static_cast<int64_t>(indexes[p.file].offsets[static_cast<size_t>(p.index) + 1]); }

  void leave_out(size_t file, int64_t offset, const std::string& message) const {
    std::lock_guard lock(bad_mutex);
    if (bad.contains({file, offset})) return;
    const auto limit = options.skip_bad_records;
    if (static_cast<int64_t>(bad.size()) >= limit) {
      if (limit == 0) fail_record(message);
      fail_record(message, "; ", limit, limit == 1 ? " bad record was" : " bad records were", " to be skipped, this is one more");
    }
    bad.insert({file, offset});
    if (options.log) options.log(text("skipped: ", message));
  }
};

TfRecordDataset::TfRecordDataset(const std::string& folder, std::string_view prefix, TfRecordOptions options) : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;
  DETENT_CHECK(options.interleave >= 0 && options.skip_bad_records >= 0 && options.cache_bytes >= 0, "data folder ", folder, ": interleave ", options.interleave,
               ", skip_bad_records ", options.skip_bad_records, " and cache_bytes ", options.cache_bytes, " must not be negative");
  m.options = std::move(options);
  m.paths = find_files(folder, prefix);
  m.indexes.resize(m.paths.size());
  parallel_chunks(static_cast<int64_t>(m.paths.size()), [&](int64_t i) { m.indexes[static_cast<size_t>(i)] = index_tfrecord(RandomAccessFile(m.paths[static_cast<size_t>(i)])); });
  for (size_t f = 0; f < m.indexes.size(); ++f) {
    const auto& broken = m.indexes[f].broken_frame;
    if (broken) m.leave_out(f, static_cast<int64_t>(m.indexes[f].offsets.back()), *broken);
  }
  const int64_t cycle = m.options.interleave ? m.options.interleave : prefix == "train" ? 10 : 1;
  m.order.build(m.indexes, static_cast<size_t>(cycle));
  DETENT_CHECK(m.order.size() > 0, "data folder ", folder, ": the ", m.paths.size(), " files ", prefix, "* hold no records");
  m.cache = std::make_unique<Cache>(m.options.cache_bytes, m.order.size());
}

TfRecordDataset::~TfRecordDataset() = default;

int64_t TfRecordDataset::size() const { return impl_->order.size(); }
int64_t TfRecordDataset::files() const { return static_cast<int64_t>(impl_->paths.size()); }

int64_t TfRecordDataset::bad_records() const {
  std::lock_guard lock(impl_->bad_mutex);
  return static_cast<int64_t>(impl_->bad.size());
}

std::vector<RecordPlace> TfRecordDataset::bad_places() const {
  std::lock_guard lock(impl_->bad_mutex);
  std::vector<RecordPlace> places;
  for (const auto& [file, offset] : impl_->bad) places.push_back({impl_->name(file), offset});
  return places;
}

void TfRecordDataset::leave_out(const std::vector<RecordPlace>& places) {
  std::lock_guard lock(impl_->bad_mutex);
  for (const RecordPlace& p : places) {
    for (size_t f = 0; f < impl_->paths.size(); ++f) {
      if (impl_->name(f) == p.file) impl_->bad.insert({f, p.offset});
    }
  }
}

std::string TfRecordDataset::where(int64_t record) const {
  const Place p = impl_->order(record);
  return text(impl_->paths[p.file], ": record at offset ", impl_->offset(p));
}

void TfRecordDataset::read(int64_t record, Sample& sample) const {
  const Impl& m = *impl_;
  DETENT_CHECK(record >= 0 && record < size(), "data set: record ", record, " of ", size());
  if (m.cache->get(record, sample)) return;
  const Place p = m.order(record);
  thread_local std::vector<uint8_t> frame;
  std::span<const uint8_t> data;
  read_tfrecord(*m.open.get(p.file, m.paths[p.file]), m.offset(p), m.end(p), frame, data);
  const std::string at = where(record);
  const Example example = parse_example(data, at);
  sample.label = example.label;
  decode_jpeg({reinterpret_cast<const uint8_t*>(example.encoded.data()), example.encoded.size()}, at, sample.image);
  m.cache->put(record, sample);
}

void TfRecordDataset::report_bad(int64_t record, const std::string& message) const {
  const Place p = impl_->order(record);
  impl_->leave_out(p.file, impl_->offset(p), message);
}

}  // namespace detent::io
