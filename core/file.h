// Files: every byte the library reads or writes goes through FileSystem, so that tests can make any call fail.
// The classes above it finish short reads and writes, retry EINTR and throw Error with path, offset and the system's reason.
// Sizes and offsets are bytes. RandomAccessFile may be shared by threads; the writers may not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace detent {

/// The system calls the library makes on files; the default implementation is POSIX. Results are >= 0, or -errno.
class FileSystem {
 public:
  enum class Open { read, create, append };
  virtual ~FileSystem() = default;
  virtual int open(const std::string& path, Open mode);  ///< a descriptor; create truncates; regular files only
  virtual int close(int fd);
  virtual int64_t size(int fd);
  virtual int64_t read_at(int fd, void* dst, size_t bytes, int64_t offset);  ///< may be short; 0 at the end
  virtual int64_t write(int fd, const void* src, size_t bytes);              ///< may be short
  virtual int truncate(int fd, int64_t size);
  virtual int sync(int fd);
  virtual int rename(const std::string& from, const std::string& to);
  virtual int remove(const std::string& path);
  virtual int make_folder(const std::string& path);
  virtual int sync_folder(const std::string& path);
  virtual int list(const std::string& folder, std::vector<std::string>& names);
  virtual int exists(const std::string& path);  ///< 0: no, 1: file, 2: folder
};

FileSystem& file_system();
/// Puts another file system in place and returns the previous one (null: the default). For tests; not while files are in use.
std::unique_ptr<FileSystem> exchange_file_system(std::unique_ptr<FileSystem> other);

/// A file read at any offset, from any thread.
class RandomAccessFile {
 public:
  explicit RandomAccessFile(std::string path);
  ~RandomAccessFile();
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;
  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  ///< when it was opened
  /// Reads up to `bytes` bytes; less only at the end of the file.
  size_t read_some(int64_t offset, void* dst, size_t bytes) const;
  /// Reads exactly `bytes` bytes; throws when the file ends before.
  void read(int64_t offset, void* dst, size_t bytes) const;

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

/// A file read from its beginning, buffered.
class SequentialFile {
 public:
  explicit SequentialFile(std::string path, size_t buffer_bytes = 64 * 1024);
  const std::string& path() const { return file_.path(); }
  int64_t size() const { return file_.size(); }
  int64_t offset() const { return offset_; }
  void seek(int64_t offset) { offset_ = offset; }
  /// Less than `bytes` only at the end of the file.
  size_t read_some(void* dst, size_t bytes);
  void read(void* dst, size_t bytes);
  /// One line without its newline; false at the end. Throws when a line is longer than `limit`.
  bool read_line(std::string& line, size_t limit = 1 << 20);

 private:
  RandomAccessFile file_;
  std::vector<char> buffer_;
  int64_t buffer_begin_ = 0, offset_ = 0;
  size_t buffer_fill_ = 0;
};

/// A file written from its beginning (create) or its end (append), buffered. Close it: the destructor drops errors and unwritten bytes.
class OutputFile {
 public:
  explicit OutputFile(std::string path, FileSystem::Open mode = FileSystem::Open::create, size_t buffer_bytes = 64 * 1024);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  const std::string& path() const { return path_; }
  int64_t offset() const { return offset_; }  ///< bytes in the file once flushed
  void write(const void* src, size_t bytes);
  void write(std::string_view bytes) { write(bytes.data(), bytes.size()); }
  void flush();                 ///< to the system
  void sync();                  ///< to the disk
  void truncate(int64_t size);  ///< drops what is behind; append mode only
  void close();                 ///< flush and close

 private:
  void write_through(const char* src, size_t bytes);
  std::string path_;
  int fd_ = -1;
  int64_t offset_ = 0;
  size_t capacity_;
  std::vector<char> buffer_;
};

/// A file that appears under its name only when complete: written under a temporary name in the same folder, synced, renamed by commit().
/// Without commit() (an exception, for instance) the temporary file is removed and an older file of the name stays as it was.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  const std::string& path() const { return path_; }
  int64_t offset() const { return file_->offset(); }
  void write(const void* src, size_t bytes) { file_->write(src, bytes); }
  void write(std::string_view bytes) { file_->write(bytes); }
  void commit();

 private:
  std::string path_, temporary_;
  std::unique_ptr<OutputFile> file_;
  bool done_ = false;
};

/// True when the name is that of a temporary file of AtomicFile, left behind by a killed process.
bool is_temporary_name(std::string_view name);

std::string read_file(const std::string& path, int64_t limit = int64_t{1} << 32);
void write_file_atomically(const std::string& path, std::string_view bytes);
inline void write_file_atomically(const std::string& path, std::span<const uint8_t> bytes) {
  write_file_atomically(path, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}
/// Names in a folder without "." and "..", sorted by byte.
std::vector<std::string> list_folder(const std::string& folder);
/// Throw Error when the system cannot tell.
bool file_exists(const std::string& path);
bool folder_exists(const std::string& path);
void remove_file(const std::string& path);
/// Makes a folder and those above it; existing ones are fine.
void make_folders(const std::string& path);
/// folder + "/" + name, or name when the folder is empty.
std::string join_path(std::string_view folder, std::string_view name);

}  // namespace detent
