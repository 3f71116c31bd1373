// A file system in memory: readers that take a path are fed bytes without a disk. Every path names the same bytes; what is written is kept. Not thread-safe.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "detent/core/file.h"

namespace detent::fuzz {

class MemoryFiles final : public FileSystem {
 public:
  explicit MemoryFiles(std::string& bytes) : bytes_(bytes) {}
  int open(const std::string&, Open mode) override {
    if (mode == Open::create) bytes_.clear();
    return 1 << 20;
  }
  int close(int) override { return 0; }
  int64_t size(int) override { return static_cast<int64_t>(bytes_.size()); }
  int64_t read_at(int, void* dst, size_t n, int64_t offset) override {
    if (offset < 0) return -EINVAL;
    const size_t at = std::min(bytes_.size(), static_cast<size_t>(offset)), count = std::min(n, bytes_.size() - at);
    std::memcpy(dst, bytes_.data() + at, count);
    return static_cast<int64_t>(count);
  }
  int64_t write(int, const void* src, size_t n) override {
    bytes_.append(static_cast<const char*>(src), n);
    return static_cast<int64_t>(n);
  }
  int truncate(int, int64_t) override { return 0; }
  int sync(int) override { return 0; }
  int rename(const std::string&, const std::string&) override { return 0; }
  int remove(const std::string&) override { return 0; }
  int make_folder(const std::string&) override { return 0; }
  int sync_folder(const std::string&) override { return 0; }
  int list(const std::string&, std::vector<std::string>&) override { return 0; }
  int exists(const std::string&) override { return 1; }

 private:
  std::string& bytes_;
};

/// Puts one in place for a scope.
class UseMemoryFiles {
 public:
  explicit UseMemoryFiles(std::string& bytes) : previous_(exchange_file_system(std::make_unique<MemoryFiles>(bytes))) {}
  ~UseMemoryFiles() { exchange_file_system(std::move(previous_)); }
  UseMemoryFiles(const UseMemoryFiles&) = delete;
  UseMemoryFiles& operator=(const UseMemoryFiles&) = delete;

 private:
  std::unique_ptr<FileSystem> previous_;
};

}  // namespace detent::fuzz
