// Fails the k-th call of every kind that a whole small run makes on files, for every k (here a sample of them; DETENT_FULL_SWEEP=1: every one).
#include <doctest/doctest.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "detent/core/allocator.h"
#include "detent/tests/io/support.h"
#include "detent/tests/robust/tiny_run.h"

using namespace detent;
using namespace detent::test;

namespace {

enum class Call { open, close, size, read, write, truncate, sync, rename, remove, make_folder, sync_folder, list, exists, count };
constexpr const char* kCallNames[] = {"open", "close", "size", "read", "write", "truncate", "sync", "rename", "remove", "make_folder", "sync_folder", "list", "exists"};
constexpr size_t kCalls = static_cast<size_t>(Call::count);

struct Fault {
  Call call = Call::count;
  int64_t at = -1;       // the call of that kind which fails
  int error = 0;         // 0: a short read or write instead
  bool lasting = false;  // and every one behind it
};

// Counts calls and makes the one of `fault` fail.
class FaultyFiles final : public FileSystem {
 public:
  explicit FaultyFiles(const Fault& fault) : fault_(fault) {}
  int64_t counts[kCalls] = {};

  int open(const std::string& path, Open mode) override { return fails(Call::open) ? -fault_.error : FileSystem::open(path, mode); }
  int close(int fd) override {
    const bool failed = fails(Call::close);
    const int r = FileSystem::close(fd);  // the descriptor is gone either way, as Linux has it
    return failed ? -fault_.error : r;
  }
  int64_t size(int fd) override { return fails(Call::size) ? -fault_.error : FileSystem::size(fd); }
  int64_t read_at(int fd, void* dst, size_t bytes, int64_t offset) override {
    if (!fails(Call::read)) return FileSystem::read_at(fd, dst, bytes, offset);
    return fault_.error ? -fault_.error : FileSystem::read_at(fd, dst, (bytes + 1) / 2, offset);
  }
  int64_t write(int fd, const void* src, size_t bytes) override {
    if (!fails(Call::write)) return FileSystem::write(fd, src, bytes);
    return fault_.error ? -fault_.error : FileSystem::write(fd, src, (bytes + 1) / 2);
  }
  int truncate(int fd, int64_t size) override { return fails(Call::truncate) ? -fault_.error : FileSystem::truncate(fd, size); }
  int sync(int fd) override { return fails(Call::sync) ? -fault_.error : FileSystem::sync(fd); }
  int rename(const std::string& from, const std::string& to) override { return fails(Call::rename) ? -fault_.error : FileSystem::rename(from, to); }
  int remove(const std::string& path) override { return fails(Call::remove) ? -fault_.error : FileSystem::remove(path); }
  int make_folder(const std::string& path) override { return fails(Call::make_folder) ? -fault_.error : FileSystem::make_folder(path); }
  int sync_folder(const std::string& path) override { return fails(Call::sync_folder) ? -fault_.error : FileSystem::sync_folder(path); }
  int list(const std::string& folder, std::vector<std::string>& names) override { return fails(Call::list) ? -fault_.error : FileSystem::list(folder, names); }
  int exists(const std::string& path) override { return fails(Call::exists) ? -fault_.error : FileSystem::exists(path); }

 private:
  bool fails(Call call) {
    const int64_t k = counts[static_cast<size_t>(call)]++;
    return call == fault_.call && (k == fault_.at || (fault_.lasting && k > fault_.at));
  }
  Fault fault_;
};

size_t open_descriptors() {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++n;
  return n;
}

using Files = std::map<std::string, std::string>;

Files files_of(const std::string& folder) {
  Files files;
  if (!std::filesystem::exists(folder)) return files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files[entry.path().filename().string()] = slurp(entry.path().string());
  return files;
}

// The runs to disturb: one from the start, one that goes on behind step 1, both into a folder that holds the results of an earlier run.
struct Sweep {
  TempFolder data, work;
  Files expected, before;
  std::map<std::string, std::set<std::string>> whole;  // per name the contents a finished writer may leave
  int64_t faults = 0, errors = 0;

  Sweep() {
    write_tiny_data(data.path());
    reset({});
    TinyRun(data.path(), output()).run();
    expected = files_of(output());
    for (const auto& [name, content] : expected) whole[name].insert(content);
    // Step 1's checkpoint is pruned at the end of a run: stop one before.
    const Files kept = checkpoints_of_all_steps();
    for (const auto& [name, content] : kept) whole[name].insert(content);
    before = {{"m.step-1.ckpt", kept.at("m.step-1.ckpt")}};
    // The log went one step further before it was cut off.
    before["m.log"] = expected.at("m.log").substr(0, expected.at("m.log").find('\n') + 1) + "2 lost";
    for (const char* name : {"m.safetensors", "m.encodings", "m.onnx", "m.qdq.onnx"}) {
      before[name] = "an earlier result";
      whole[name].insert(before[name]);
    }
  }

  std::string output() const { return work / "out"; }

  void reset(const Files& files) const {
    std::filesystem::remove_all(output());
    if (files.empty()) return;
    std::filesystem::create_directory(output());
    for (const auto& [name, content] : files) spill(output() + "/" + name, content);
  }

  Files checkpoints_of_all_steps() const {
    struct Keep final : FileSystem {
      Files files;
      int rename(const std::string& from, const std::string& to) override {
        files[std::filesystem::path(to).filename().string()] = slurp(from);
        return FileSystem::rename(from, to);
      }
    };
    reset({});
    auto keep = std::make_unique<Keep>();
    const Keep& seen = *keep;
    const UseFileSystem use(std::move(keep));
    TinyRun(data.path(), output()).run();
    return seen.files;
  }

  // One run under one fault; what must hold whatever happened.
  void disturb(const Files& start, const Fault& fault) {
    reset(start);
    const int64_t live = host_allocator().stats().live_bytes;
    const size_t descriptors = open_descriptors();
    std::string message;
    bool named = true;
    {
      const UseFileSystem use(std::make_unique<FaultyFiles>(fault));
      try {
        TinyRun(data.path(), output()).run();
      } catch (const Error& e) {
        message = e.what();
        named = !message.empty();
      } catch (...) {
        named = false;
      }
    }
    ++faults;
    errors += !message.empty();
    INFO(std::string(kCallNames[static_cast<size_t>(fault.call)]), " ", fault.at, " fails with ", fault.error, std::string(fault.lasting ? " from there on" : ""), ": ", message);
    CHECK(named);
    CHECK(host_allocator().stats().live_bytes == live);
    CHECK(open_descriptors() == descriptors);
    check_files(start, fault, message);
  }

  void check_files(const Files& start, const Fault& fault, const std::string& message) {
    const Files after = files_of(output());
    for (const auto& file : after) {
      const std::string &name = file.first, &content = file.second;
      // Only a failing removal may leave one, and it says by its name what it is.
      if (is_temporary_name(name)) CHECK(fault.call == Call::remove);
      else if (name == "m.log") CHECK_MESSAGE((expected.at(name).starts_with(content) || (start.contains(name) && start.at(name) == content)), name << " holds something else");
      else CHECK_MESSAGE(whole.at(name).contains(content), name << " is half-written");
    }
    for (const auto& file : start) {
      if (!file.first.ends_with(".ckpt")) CHECK_MESSAGE(after.contains(file.first), file.first << " is lost");
    }
    if (message.empty()) {
      for (const auto& file : expected) CHECK_MESSAGE((after.contains(file.first) && after.at(file.first) == file.second), file.first << " differs after a fault that was no error");
    }
    if (start.empty() && after.empty()) return;
    const std::string newest = io::newest_good_checkpoint(output(), "m");
    if (!start.empty()) CHECK_FALSE(newest.empty());
    if (newest.empty()) return;
    // A new process goes on from there to the same results.
    if (fault.at % 7 == 0) {
      TinyRun(data.path(), output()).run();
      const Files resumed = files_of(output());
      for (const auto& file : expected) CHECK_MESSAGE(resumed.at(file.first) == file.second, file.first << " differs after going on");
    } else {
      TinyRun again(data.path(), output());
      CHECK_NOTHROW(io::load_checkpoint(newest, again.net(), &again.sim(), again.sgd()));
    }
  }

  void all(const Files& start) {
    reset(start);
    int64_t counts[kCalls];
    {
      auto files = std::make_unique<FaultyFiles>(Fault{});
      const FaultyFiles& counted = *files;
      const UseFileSystem use(std::move(files));
      TinyRun(data.path(), output()).run();
      std::copy(std::begin(counted.counts), std::end(counted.counts), std::begin(counts));
    }
    const char* full = std::getenv("DETENT_FULL_SWEEP");
    const int64_t most = full && *full == '1' ? INT64_MAX : 12;  // per kind of fault
    const auto sweep = [&](Call call, int error, bool lasting) {
      const int64_t n = counts[static_cast<size_t>(call)], stride = std::max<int64_t>(1, (n + most - 1) / most);
      for (int64_t k = 0; k < n; k += stride) disturb(start, {call, k, error, lasting});
    };
    for (const int error : {0, EIO}) sweep(Call::read, error, false);
    for (const int error : {0, EIO, ENOSPC, EINTR}) sweep(Call::write, error, false);
    sweep(Call::write, ENOSPC, true);
    sweep(Call::read, EIO, true);
    for (const Call call : {Call::open, Call::close, Call::size, Call::truncate, Call::sync, Call::rename, Call::remove, Call::make_folder, Call::sync_folder, Call::list, Call::exists}) sweep(call, EIO, false);
  }
};

}  // namespace

TEST_CASE("fault sweep: any failing call on files is a named error or makes no difference, and loses nothing") {
  set_num_threads(1);
  Sweep sweep;
  REQUIRE(sweep.expected.size() == 7);
  SUBCASE("a run from the start") { sweep.all({}); }
  SUBCASE("a run that resumes, over earlier results") { sweep.all(sweep.before); }
  MESSAGE("file faults: " << sweep.faults << " swept, " << sweep.errors << " of them named errors, the others made no difference");
  CHECK(sweep.faults > 100);
  CHECK(sweep.errors > 50);
  CHECK(sweep.errors < sweep.faults);
}
