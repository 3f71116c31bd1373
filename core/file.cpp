#include "detent/core/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "detent/core/error.h"

namespace detent {
namespace {

constexpr std::string_view kTemporaryMark = ".tmp-";

int result(int r) { return r < 0 ? -errno : r; }

std::string reason(int64_t code) { return std::generic_category().message(static_cast<int>(-code)); }

std::unique_ptr<FileSystem>& injected() {
  static std::unique_ptr<FileSystem> fs;
  return fs;
}

int look_up(const std::string& path) {
  const int r = file_system().exists(path);
  DETENT_CHECK(r >= 0, "cannot look up ", path, ": ", reason(r));
  return r;
}

template <class Call>
int64_t retried(Call&& call) {
  int64_t r;
  do {
    r = call();
  } while (r == -EINTR);
  return r;
}

}  // namespace

int FileSystem::open(const std::string& path, Open mode) {
  // O_NONBLOCK: opening a pipe by mistake must not wait for its other end.
  const int flags = mode == Open::read ? O_RDONLY | O_NONBLOCK : O_WRONLY | O_CREAT | (mode == Open::create ? O_TRUNC : O_APPEND);
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (fd < 0) return -errno;
  struct stat st;
  int error = ::fstat(fd, &st) < 0 ? errno : 0;
  if (!error && S_ISDIR(st.st_mode)) error = EISDIR;
  if (!error && mode == Open::read && !S_ISREG(st.st_mode)) error = EINVAL;
  if (!error) return fd;
  ::close(fd);
  return -error;
}

int FileSystem::close(int fd) { return result(::close(fd)); }

int64_t FileSystem::size(int fd) {
  struct stat st;
  return ::fstat(fd, &st) < 0 ? -errno : static_cast<int64_t>(st.st_size);
}

int64_t FileSystem::read_at(int fd, void* dst, size_t bytes, int64_t offset) {
  const ssize_t n = ::pread(fd, dst, bytes, offset);
  return n < 0 ? -errno : n;
}

int64_t FileSystem::write(int fd, const void* src, size_t bytes) {
  const ssize_t n = ::write(fd, src, bytes);
  return n < 0 ? -errno : n;
}

int FileSystem::truncate(int fd, int64_t size) { return result(::ftruncate(fd, size)); }
int FileSystem::sync(int fd) { return result(::fsync(fd)); }
int FileSystem::rename(const std::string& from, const std::string& to) { return result(std::rename(from.c_str(), to.c_str())); }
int FileSystem::remove(const std::string& path) { return result(::unlink(path.c_str())); }
int FileSystem::make_folder(const std::string& path) { return result(::mkdir(path.c_str(), 0777)); }

int FileSystem::sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -errno;
  const int r = result(::fsync(fd));
  ::close(fd);
  return r;
}

int FileSystem::list(const std::string& folder, std::vector<std::string>& names) {
  const auto close = [](DIR* d) { ::closedir(d); };
  const std::unique_ptr<DIR, decltype(close)> dir(::opendir(folder.c_str()), close);  // the names may find no memory
  if (!dir) return -errno;
  errno = 0;
  while (const dirent* e = ::readdir(dir.get())) {
    names.emplace_back(e->d_name);
    errno = 0;
  }
  return -errno;
}

int FileSystem::exists(const std::string& path) {
  struct stat st;
  if (::stat(path.c_str(), &st) < 0) return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
  return S_ISDIR(st.st_mode) ? 2 : 1;
}

FileSystem& file_system() {
  static FileSystem posix;
  return injected() ? *injected() : posix;
}

std::unique_ptr<FileSystem> exchange_file_system(std::unique_ptr<FileSystem> other) { return std::exchange(injected(), std::move(other)); }

RandomAccessFile::RandomAccessFile(std::string path) : path_(std::move(path)) {
  FileSystem& fs = file_system();
  fd_ = static_cast<int>(retried([&] { return fs.open(path_, FileSystem::Open::read); }));
  DETENT_CHECK(fd_ >= 0, "cannot open ", path_, ": ", reason(fd_));
  size_ = fs.size(fd_);
  if (size_ < 0) {
    fs.close(fd_);
    fail("cannot read the size of ", path_, ": ", reason(size_));
  }
}

RandomAccessFile::~RandomAccessFile() { file_system().close(fd_); }

size_t RandomAccessFile::read_some(int64_t offset, void* dst, size_t bytes) const {
  size_t done = 0;
  while (done < bytes) {
    const int64_t at = offset + static_cast<int64_t>(done);
    const int64_t n = retried([&] { return file_system().read_at(fd_, static_cast<char*>(dst) + done, bytes - done, at); });
    DETENT_CHECK(n >= 0, "cannot read ", path_, " at offset ", at, ": ", reason(n));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

void RandomAccessFile::read(int64_t offset, void* dst, size_t bytes) const {
  const size_t n = read_some(offset, dst, bytes);
  DETENT_CHECK(n == bytes, path_, ": the file ends at offset ", offset + static_cast<int64_t>(n), ", ", bytes, " bytes were expected at offset ", offset, "; is it cut off?");
}

SequentialFile::SequentialFile(std::string path, size_t buffer_bytes) : file_(std::move(path)), buffer_(std::max<size_t>(buffer_bytes, 16)) {}

size_t SequentialFile::read_some(void* dst, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const int64_t ahead = offset_ - buffer_begin_;
    if (ahead < 0 || ahead >= static_cast<int64_t>(buffer_fill_)) {
      buffer_begin_ = offset_;
      buffer_fill_ = 0;
      buffer_fill_ = file_.read_some(offset_, buffer_.data(), buffer_.size());
      if (buffer_fill_ == 0) break;
      continue;
    }
    const size_t n = std::min(bytes - done, buffer_fill_ - static_cast<size_t>(ahead));
    std::memcpy(static_cast<char*>(dst) + done, buffer_.data() + ahead, n);
    done += n;
    offset_ += static_cast<int64_t>(n);
  }
  return done;
}

void SequentialFile::read(void* dst, size_t bytes) {
  const int64_t begin = offset_;
  const size_t n = read_some(dst, bytes);
  DETENT_CHECK(n == bytes, path(), ": the file ends at offset ", offset_, ", ", bytes, " bytes were expected at offset ", begin, "; is it cut off?");
}

bool SequentialFile::read_line(std::string& line, size_t limit) {
  line.clear();
  const int64_t begin = offset_;
  char c;
  while (read_some(&c, 1) == 1) {
    if (c == '\n') return true;
    DETENT_CHECK(line.size() < limit, path(), ": the line at offset ", begin, " is longer than ", limit, " bytes");
    line.push_back(c);
  }
  return !line.empty();
}

OutputFile::OutputFile(std::string path, FileSystem::Open mode, size_t buffer_bytes) : path_(std::move(path)), capacity_(buffer_bytes) {
  DETENT_CHECK(mode != FileSystem::Open::read, "output file ", path_, ": opened for reading");
  FileSystem& fs = file_system();
  buffer_.reserve(capacity_);
  fd_ = static_cast<int>(retried([&] { return fs.open(path_, mode); }));
  DETENT_CHECK(fd_ >= 0, "cannot create ", path_, ": ", reason(fd_));
  if (mode == FileSystem::Open::append) offset_ = fs.size(fd_);
  if (offset_ < 0) {
    fs.close(fd_);
    fail("cannot read the size of ", path_, ": ", reason(offset_));
  }
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) file_system().close(fd_);
}

void OutputFile::write_through(const char* src, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const int64_t n = retried([&] { return file_system().write(fd_, src + done, bytes - done); });
    DETENT_CHECK(n > 0, "cannot write ", path_, " at offset ", offset_, ": ", n == 0 ? std::string("nothing was written") : reason(n));
    done += static_cast<size_t>(n);
    offset_ += n;
  }
}

void OutputFile::write(const void* src, size_t bytes) {
  DETENT_CHECK(fd_ >= 0, "write to ", path_, ": the file is closed");
  const char* p = static_cast<const char*>(src);
  if (buffer_.size() + bytes > capacity_) flush();
  if (bytes >= capacity_) return write_through(p, bytes);
  buffer_.insert(buffer_.end(), p, p + bytes);
}

void OutputFile::flush() {
  // Emptied first: after a failure the same bytes must not be written again behind their first part.
  std::vector<char> pending;
  pending.swap(buffer_);
  write_through(pending.data(), pending.size());
  pending.clear();
  buffer_.swap(pending);
}

void OutputFile::sync() {
  flush();
  const int64_t r = retried([&] { return file_system().sync(fd_); });
  DETENT_CHECK(r >= 0, "cannot write ", path_, " to the disk: ", reason(r));
}

void OutputFile::truncate(int64_t size) {
  flush();
  const int64_t r = retried([&] { return file_system().truncate(fd_, size); });
  DETENT_CHECK(r >= 0, "cannot cut ", path_, " to ", size, " bytes: ", reason(r));
  offset_ = size;
}

void OutputFile::close() {
  if (fd_ < 0) return;
  flush();
  const int r = file_system().close(std::exchange(fd_, -1));
  DETENT_CHECK(r >= 0 || r == -EINTR, "cannot close ", path_, ": ", reason(r));
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  static std::atomic<unsigned> counter{0};
  temporary_ = text(path_, kTemporaryMark, static_cast<int64_t>(::getpid()), "-", counter.fetch_add(1));
  // An unwritable name should be reported now and under its own name, not after an hour's work.
  DETENT_CHECK(file_system().exists(path_) != 2, "cannot create ", path_, ": a folder has this name");
  try {
    file_ = std::make_unique<OutputFile>(temporary_);
  } catch (...) {
    file_system().remove(temporary_);
    throw;
  }
}

AtomicFile::~AtomicFile() {
  file_.reset();
  if (!done_) file_system().remove(temporary_);
}

void AtomicFile::commit() {
  DETENT_CHECK(!done_, "commit of ", path_, ": committed before");
  FileSystem& fs = file_system();
  file_->sync();
  file_->close();
  const int r = fs.rename(temporary_, path_);
  DETENT_CHECK(r >= 0, "cannot rename ", temporary_, " to ", path_, ": ", reason(r));
  done_ = true;
  // The name itself reaches the disk with its folder; some file systems cannot sync folders, and the data is safe already.
  const size_t slash = path_.rfind('/');
  fs.sync_folder(slash == std::string::npos ? "." : slash == 0 ? "/" : path_.substr(0, slash));
}

bool is_temporary_name(std::string_view name) {
  const size_t at = name.rfind(kTemporaryMark);
  if (at == std::string_view::npos) return false;
  const std::string_view tail = name.substr(at + kTemporaryMark.size());
  return !tail.empty() && tail.find_first_not_of("0123456789-") == std::string_view::npos;
}

std::string read_file(const std::string& path, int64_t limit) {
  const RandomAccessFile file(path);
  DETENT_CHECK(file.size() <= limit, path, ": ", file.size(), " bytes, at most ", limit, " are read at once; is it the right file?");
  std::string bytes(static_cast<size_t>(file.size()), '\0');
  file.read(0, bytes.data(), bytes.size());
  return bytes;
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

std::vector<std::string> list_folder(const std::string& folder) {
  std::vector<std::string> names;
  const int r = file_system().list(folder, names);
  DETENT_CHECK(r >= 0, "cannot list folder ", folder, ": ", reason(r));
  std::erase_if(names, [](const std::string& n) { return n == "." || n == ".."; });
  std::sort(names.begin(), names.end());
  return names;
}

// "Cannot tell" is not "no": a file passed over for it would be missing without a word.
bool file_exists(const std::string& path) { return look_up(path) == 1; }
bool folder_exists(const std::string& path) { return look_up(path) == 2; }

void remove_file(const std::string& path) {
  const int r = file_system().remove(path);
  DETENT_CHECK(r >= 0, "cannot remove ", path, ": ", reason(r));
}

void make_folders(const std::string& path) {
  for (size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
    const std::string part = path.substr(0, at);
    if (!part.empty() && !folder_exists(part)) {
      const int r = file_system().make_folder(part);
      // Another process may have made it meanwhile.
      DETENT_CHECK(r >= 0 || folder_exists(part), "cannot make folder ", part, ": ", reason(r));
    }
    if (at == std::string::npos) return;
  }
}

std::string join_path(std::string_view folder, std::string_view name) {
  if (folder.empty()) return std::string(name);
  return folder.back() == '/' ? text(folder, name) : text(folder, "/", name);
}

}  // namespace detent
