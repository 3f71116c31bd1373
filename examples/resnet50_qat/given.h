// Files and folders that options name: looked at before any work begins, so that hours of it are not lost to a name mistyped. Errors name the option.
#pragma once

#include <map>
#include <string>

#include "detent/quant/config.h"
#include "detent/quant/encoding.h"

namespace qat {

struct Options;

/// --config: a file, a shipped name, or "" for the default.
detent::quant::QuantConfig load_config(const std::string& name);
/// --encodings.
detent::quant::EncodingMap read_ranges(const std::string& path);
/// What tells the contents of --weights, --arch FILE, --config and --encodings apart, by option; what is not a file is left out.
std::map<std::string, std::string> contents_of_files(const Options& options);
/// The files that options name for reading.
void require_files(const Options& options);
/// The folders that results go into are made, when they are not there, and tried.
void require_folders(const Options& options);

/// One run at a time writes files of a prefix: the file PREFIX.lock in --output is locked as long as this lives. The system unlocks it with the process, however that ends.
class RunLock {
 public:
  explicit RunLock(const Options& options);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  /// False where the file system has no locks: other runs cannot be told from dead ones then.
  bool held() const { return fd_ >= 0; }

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace qat
