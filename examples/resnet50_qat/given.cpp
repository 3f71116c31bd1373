#include "given.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "detent/core/error.h"
#include "detent/core/file.h"
#include "detent/io/encodings.h"
#include "options.h"

namespace qat {

using namespace detent;

namespace {

// "" is not looked at.
void require_file(const char* option, const std::string& path) {
  if (path.empty() || file_exists(path)) return;
  fail(option, " ", path, folder_exists(path) ? ": this is a folder; give a file" : ": no such file");
}

// Size and FNV-1a: two files of one name differ by training, not by design.
std::string fingerprint(const std::string& path) {
  SequentialFile file(path, size_t{1} << 20);
  std::vector<unsigned char> part(size_t{1} << 20);
  uint64_t hash = 0xcbf29ce484222325u;
  while (const size_t n = file.read_some(part.data(), part.size())) {
    for (size_t i = 0; i < n; ++i) hash = (hash ^ part[i]) * 0x100000001b3u;
  }
  return text(file.size(), '-', hash);
}

void require_writable_folder(const char* option, const std::string& folder) {
  try {
    make_folders(folder);
    const AtomicFile probe(join_path(folder, ".writable"));
  } catch (const Error& e) {
    fail(option, " ", folder, ": ", e.what(), "; give a folder that can be written to");
  }
}

// 0, or errno; EWOULDBLOCK when another process has it.
int lock(int fd) {
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

bool is_named(int fd, const std::string& path) {
  struct stat mine, named;
  return ::fstat(fd, &mine) == 0 && ::stat(path.c_str(), &named) == 0 && mine.st_dev == named.st_dev && mine.st_ino == named.st_ino;
}

}  // namespace

quant::QuantConfig load_config(const std::string& name) {
  if (name.empty()) return quant::default_config();
  const bool is_name = name.find('/') == std::string::npos && name.find('.') == std::string::npos;
  if (is_name && !file_exists(name)) return quant::default_config(name);
  require_file("--config", name);
  return quant::parse_config(read_file(name, int64_t{64} << 20), name);
}

quant::EncodingMap read_ranges(const std::string& path) {
  require_file("--encodings", path);
  return path.empty() ? quant::EncodingMap() : io::read_encodings(read_file(path, int64_t{256} << 20), path);
}

std::map<std::string, std::string> contents_of_files(const Options& o) {
  std::map<std::string, std::string> contents;
  for (const auto& [option, path] : {std::pair{"weights", o.weights}, {"arch", o.arch}, {"config", o.config}, {"encodings", o.encodings}}) {
    if (!path.empty() && file_exists(path)) contents[option] = fingerprint(path);
  }
  return contents;
}

void require_files(const Options& o) {
  if (o.imported()) require_file("--arch", o.arch);
  require_file("--weights", o.weights);
  if (o.resume != "auto") require_file("--resume", o.resume);
}

void require_folders(const Options& o) {
  require_writable_folder("--output", o.output);
  if (!o.dump_layers.empty()) require_writable_folder("--dump-layers", o.dump_layers);
}

// The file is removed while it is locked: who opened it before holds a file without a name then, and opens the next one.
RunLock::RunLock(const Options& o) : path_(join_path(o.output, o.prefix + ".lock")) {
  while (!held()) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    DETENT_CHECK(held(), "--output ", o.output, ": cannot open ", path_, ": ", std::generic_category().message(errno), "; remove it when no run goes on, or give another --prefix");
    const int error = lock(fd_);
    if (error == 0 && is_named(fd_, path_)) return;
    ::close(std::exchange(fd_, -1));
    DETENT_CHECK(error != EWOULDBLOCK, "--output ", o.output, ": another run with --prefix ", o.prefix, " is going on; give another --prefix, or wait for its end");
    if (error != 0) {  // no locks here
      ::unlink(path_.c_str());
      return;
    }
  }
}

RunLock::~RunLock() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());
  ::close(fd_);
}

}  // namespace qat
