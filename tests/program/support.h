// Runs resnet50_qat as a process on a small data set made here: drawn figures of 32x32 and a ResNet-20 with fresh weights.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "detent/io/data/synthetic.h"
#include "detent/io/weights.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/tests/io/support.h"

namespace detent::test {

struct Outcome {
  int code = -1;  ///< exit code; -N when signal N ended it
  std::string out, err;
};

using Arguments = std::vector<std::string>;

class Process {
 public:
  Process(const Arguments& arguments, const std::string& out, const std::string& err) : out_(out), err_(err) {
    std::vector<std::string> all{DETENT_PROGRAM};
    // A cross-built program is run by an emulator, as this test is (scripts/test_aarch64).
    if (const char* wrapper = std::getenv("DETENT_EXE_WRAPPER")) all.insert(all.begin(), wrapper);
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& a : all) argv.push_back(a.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), 1);
      ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), 2);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  Outcome wait() {
    int status = 0;
    REQUIRE(::waitpid(pid_, &status, 0) == pid_);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), text_of(out_), text_of(err_)};
  }
  bool running() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
  }
  void send(int signal) { ::kill(pid_, signal); }
  int limit(__rlimit_resource resource, const rlimit& limit) const { return ::prlimit(pid_, resource, &limit, nullptr); }
  void kill_now() { send(SIGKILL); }

 private:
  // "" of a device or a pipe.
  static std::string text_of(const std::string& path) { return std::filesystem::is_regular_file(path) ? slurp(path) : std::string(); }
  std::string out_, err_;
  pid_t pid_ = -1;
};

/// The folder of a test: data/, weights.safetensors.
class Workshop {
 public:
  Workshop() {
    io::write_synthetic(folder_ / "data", {.train_images = 48, .valid_images = 24, .train_files = 2, .valid_files = 1, .image_size = 32, .seed = 3});
    nn::Graph g = nn::models::resnet20_cifar10();
    nn::initialize(g, {.seed = 1});
    io::save_weights(g, folder_ / "weights.safetensors");
  }
  std::string operator/(const std::string& name) const { return folder_ / name; }
  /// A good command line with its output in `output`.
  Arguments good(const std::string& output) const {
    return {"--arch", "resnet20-cifar10", "--data", folder_ / "data", "--weights", folder_ / "weights.safetensors", "--quant-scheme", "range-learning-tf", "--batch", "8", "--calibration-samples", "16",
            "--threads", "1", "--device", "cpu", "--quiet", "--prefix", "m", "--output", folder_ / output};
  }
  /// Sixty times the images: time to be stopped in.
  void prolong_validation() const {
    const std::string valid = (folder_ / "data") + "/valid-00000-of-00001", once = slurp(valid);
    std::string many;
    for (int i = 0; i < 60; ++i) many += once;
    spill(valid, many);
  }
  Outcome run(const Arguments& arguments) const { return Process(arguments, folder_ / "stdout", folder_ / "stderr").wait(); }

 private:
  TempFolder folder_;
};

inline Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Names in a folder, "" when it is absent.
inline std::string names_in(const std::string& folder) {
  std::string all;
  if (folder_exists(folder)) {
    for (const std::string& n : list_folder(folder)) all += n + " ";
  }
  return all;
}

/// Two runs' files hold the same bytes.
inline void same_results(const Workshop& w, const std::string& a, const std::string& b) {
  for (const char* name : {"m.safetensors", "m.encodings", "m.onnx", "m.qdq.onnx", "m.log.jsonl"}) {
    const std::string u = slurp((w / a) + "/" + name), v = slurp((w / b) + "/" + name);
    CHECK_MESSAGE((!u.empty() && u == v), name << " differs between " << a << " and " << b);
  }
}

}  // namespace detent::test
