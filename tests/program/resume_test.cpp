// What a run keeps of its work: stops at any time, other runs in the same folder, logs, left-overs.
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "detent/io/checkpoint.h"
#include "detent/io/data/example.h"
#include "detent/io/data/jpeg.h"
#include "detent/io/data/tfrecord.h"
#include "detent/tests/program/support.h"

using namespace detent;
using namespace detent::test;

namespace {

constexpr auto kPoll = std::chrono::milliseconds(2);

bool has(const Workshop& w, const std::string& file) { return file_exists(w / file); }

std::vector<int64_t> steps_in(const std::string& log) {
  std::vector<int64_t> steps;
  std::istringstream in(slurp(log));
  for (std::string line; std::getline(in, line);) steps.push_back(nlohmann::json::parse(line).at("step").get<int64_t>());
  return steps;
}

nlohmann::json summary(const Workshop& w, const std::string& folder) { return nlohmann::json::parse(slurp((w / folder) + "/m.summary.json")); }

}  // namespace

TEST_CASE("a_stop_or_a_kill_behind_training_goes_on_from_its_end") {
  const Workshop w;
  w.prolong_validation();
  for (const char* batch_norm : {"keep", "fold"}) {
    const Arguments more{"--batch-norm", batch_norm, "--seed", "5", "--lr", "0.01"};
    const std::string whole = std::string("whole-") + batch_norm;
    REQUIRE(w.run(w.good(whole) + more).code == 0);
    CHECK_FALSE(has(w, whole + "/m.step-6.ckpt"));
    for (const int signal : {SIGTERM, SIGKILL}) {
      CAPTURE(batch_norm);
      CAPTURE(signal);
      const std::string stopped = text(batch_norm, signal);
      Process p(w.good(stopped) + more, w / "stdout", w / "stderr");
      while (p.running() && !has(w, stopped + "/m.step-6.ckpt")) std::this_thread::sleep_for(kPoll);
      p.send(signal);
      const Outcome o = p.wait();
      CHECK(o.code == (signal == SIGTERM ? 3 : -SIGKILL));
      CHECK_FALSE(has(w, stopped + "/m.summary.json"));
      REQUIRE(has(w, stopped + "/m.step-6.ckpt"));
      const Outcome last = w.run(w.good(stopped) + more + Arguments{"--resume", "auto"});
      INFO(last.err);
      REQUIRE(last.code == 0);
      same_results(w, whole, stopped);
      CHECK(summary(w, stopped).at("accuracy") == summary(w, whole).at("accuracy"));
    }
  }
}

TEST_CASE("biases_that_only_their_correction_made_are_resumed") {
  const Workshop w;
  const Arguments corrected{"--batch-norm", "keep", "--reestimate-bn", "2", "--correct-biases", "8", "--max-steps", "4", "--eval-samples", "8"};
  REQUIRE(w.run(w.good("whole") + corrected + Arguments{"--checkpoint-every", "2"}).code == 0);
  const Outcome o = w.run(w.good("again") + corrected + Arguments{"--resume", (w / "whole") + "/m.step-2.ckpt"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  for (const char* name : {"/m.safetensors", "/m.encodings", "/m.qdq.onnx"}) CHECK(slurp((w / "whole") + name) == slurp((w / "again") + name));

  CHECK(summary(w, "whole").at("options").at("reestimate-bn") == 2);
  const Outcome other = w.run(w.good("again") + corrected + Arguments{"--reestimate-bn", "3", "--resume", (w / "whole") + "/m.step-2.ckpt"});
  CHECK(other.code == 2);
  CHECK_CONTAINS(other.err, "--reestimate-bn 2, this run has 3");
  // A checkpoint of before that was compared, and skip-bad-records was.
  io::Sections sections = io::read_checkpoint_file((w / "whole") + "/m.step-2.ckpt");
  auto progress = nlohmann::json::parse(sections["progress"]);
  auto options = nlohmann::json::parse(progress.at("options").get<std::string>());
  REQUIRE(options.erase("reestimate-bn") == 1);
  options["skip-bad-records"] = 7;
  progress["options"] = options.dump();
  sections["progress"] = progress.dump();
  io::write_checkpoint_file(w / "old.ckpt", sections);
  const Outcome old = w.run(w.good("again") + corrected + Arguments{"--resume", w / "old.ckpt"});
  INFO(old.err);
  CHECK(old.code == 0);
}

TEST_CASE("a_stop_that_cannot_save_what_was_trained_is_an_error") {
  const Workshop w;
  w.prolong_validation();
  make_folders((w / "a") + "/m.step-2.ckpt");
  Process p(w.good("a") + Arguments{"--max-steps", "2"}, w / "stdout", w / "stderr");
  while (p.running() && slurp(w / "stderr").empty()) std::this_thread::sleep_for(kPoll);
  p.send(SIGTERM);
  const Outcome o = p.wait();
  CHECK(o.code == 2);
  CHECK_CONTAINS(o.err, "warning: the trained network has no checkpoint until it is exported");
  CHECK_CONTAINS(o.err, "error: stopped behind the training");
}

TEST_CASE("a_checkpoint_that_was_given_stays_however_its_path_is_spelled") {
  const Workshop w;
  const Arguments brief{"--max-steps", "2", "--eval-samples", "8"};
  REQUIRE(w.run(w.good("a") + brief + Arguments{"--checkpoint-every", "2"}).code == 0);
  const std::string checkpoint = slurp((w / "a") + "/m.step-2.ckpt");
  const Outcome o = w.run(w.good("./a") + brief + Arguments{"--resume", (w / "a") + "/m.step-2.ckpt"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  REQUIRE(has(w, "a/m.step-2.ckpt"));
  CHECK(slurp((w / "a") + "/m.step-2.ckpt") == checkpoint);
  // Nor is one removed that another run wrote at the same step.
  REQUIRE(w.run(w.good("a") + brief + Arguments{"--lr", "0.01"}).code == 0);
  CHECK(has(w, "a/m.step-2.ckpt"));
}

TEST_CASE("a_record_that_cannot_be_read_costs_none_of_the_steps_before_it") {
  const Workshop w;
  // Met somewhere in the first epoch.
  const std::string train = (w / "data") + "/train-00000-of-00002", whole = slurp(train);
  std::string jpeg = io::encode_jpeg(io::synthetic_image(3, 1, 0, 32, 0.0f), 90);
  jpeg.resize(jpeg.size() / 2);
  std::string broken = whole;
  io::append_tfrecord(broken, io::serialize_example(jpeg, 1, 32, 32));
  spill(train, broken);
  const Arguments brief{"--epochs", "2", "--eval-samples", "8", "--batch", "4", "--calibration-samples", "1", "--seed", "4"};
  REQUIRE(w.run(w.good("whole") + brief + Arguments{"--skip-bad-records", "1"}).code == 0);
  const Outcome o = w.run(w.good("parts") + brief);
  INFO(o.err);
  CHECK(o.code == 2);
  CHECK(std::count(o.err.begin(), o.err.end(), '\n') == 1);
  CHECK_CONTAINS(o.err, "train-00000-of-00002: record at offset ");
  const std::string said = "go on with --resume ";
  const size_t at = o.err.find(said);
  REQUIRE(at != std::string::npos);
  const std::string checkpoint = o.err.substr(at + said.size(), o.err.find('\n', at) - at - said.size());
  REQUIRE(file_exists(checkpoint));
  CHECK(steps_in((w / "parts") + "/m.log.jsonl").size() > 0);
  // Resumed and at once at the record again: nothing new to save.
  const Outcome again = w.run(w.good("parts") + brief + Arguments{"--resume", "auto"});
  CHECK(again.code == 2);
  CHECK_CONTAINS(again.err, checkpoint);
  const Outcome rest = w.run(w.good("parts") + brief + Arguments{"--resume", "auto", "--skip-bad-records", "1"});
  INFO(rest.err);
  REQUIRE(rest.code == 0);
  same_results(w, "whole", "parts");
  CHECK(summary(w, "parts").at("bad_records_skipped") == 1);
}

TEST_CASE("broken_records_and_times_are_counted_over_all_parts_of_a_run") {
  const Workshop w;
  const std::string train = (w / "data") + "/train-00000-of-00002";
  std::string broken = slurp(train);
  io::append_tfrecord(broken, io::serialize_example("no image", 1, 32, 32));
  spill(train, broken);
  // 49 records in 4 steps an epoch; each meets the broken one.
  const Arguments brief{"--eval-samples", "8", "--batch", "16", "--calibration-samples", "1", "--checkpoint-every", "4", "--epochs", "2"};
  REQUIRE(w.run(w.good("a") + brief + Arguments{"--max-steps", "4", "--skip-bad-records", "1"}).code == 0);
  const auto report = nlohmann::json::parse(io::read_progress((w / "a") + "/m.step-4.ckpt").report);
  CHECK(report.at("bad_records").size() == 1);
  CHECK(report.at("seconds").at("qat_train").get<double>() > 0.0);
  const Outcome fewer = w.run(w.good("a") + brief + Arguments{"--resume", "auto"});
  CHECK(fewer.code == 2);
  CHECK_CONTAINS(fewer.err, "1 broken record was left out before it, --skip-bad-records 0 allows fewer");
  Arguments loud = w.good("a") + brief + Arguments{"--resume", "auto", "--skip-bad-records", "1"};
  loud.erase(std::find(loud.begin(), loud.end(), "--quiet"));
  const Outcome rest = w.run(loud);
  INFO(rest.err);
  REQUIRE(rest.code == 0);
  CHECK(rest.err.find("skipped: ") == std::string::npos);  // told once
  CHECK_CONTAINS(rest.err, "train: 98 of 98 images");
  CHECK(summary(w, "a").at("bad_records_skipped") == 1);
  CHECK(summary(w, "a").at("seconds").at("qat_train") > report.at("seconds").at("qat_train"));
}

TEST_CASE("a_log_that_cannot_be_written_does_not_end_training") {
  const Workshop w;
  const std::string log = (w / "a") + "/m.log.jsonl";
  Process p(w.good("a") + Arguments{"--epochs", "100000", "--batch", "1", "--eval-samples", "8"}, w / "stdout", w / "stderr");
  const auto limit_files = [&](rlim_t bytes) {
    const rlimit limit{bytes, RLIM_INFINITY};
    REQUIRE(p.limit(RLIMIT_FSIZE, limit) == 0);
  };
  constexpr rlim_t kBytes = 1500;  // the warning has room
  while (p.running() && (!file_exists(log) || slurp(log).size() <= kBytes)) std::this_thread::sleep_for(kPoll);
  limit_files(kBytes);
  while (p.running() && slurp(w / "stderr").empty()) std::this_thread::sleep_for(kPoll);
  limit_files(RLIM_INFINITY);
  CHECK(p.running());
  const size_t steps = steps_in(log).size();
  p.send(SIGTERM);
  const Outcome o = p.wait();
  CHECK(o.code == 3);
  CHECK_CONTAINS(o.err, "warning: training goes on without its log: cannot write " + log);
  CHECK_CONTAINS(o.err, "continue with --resume ");
  CHECK(steps_in(log).size() == steps);
}

// What a hang-up means to the programs that are started meanwhile, however this test was started (nohup ignores it for all that follows).
class HangupScope {
 public:
  explicit HangupScope(void (*meaning)(int)) : before_(std::signal(SIGHUP, meaning)) {}
  ~HangupScope() { std::signal(SIGHUP, before_); }
  HangupScope(const HangupScope&) = delete;
  HangupScope& operator=(const HangupScope&) = delete;

 private:
  void (*before_)(int);
};

TEST_CASE("a_terminal_that_closes_and_a_pipe_that_nobody_reads_save_first") {
  const HangupScope ends(SIG_DFL);
  const Workshop w;
  const std::string log = (w / "a") + "/m.log.jsonl", pipe = w / "pipe";
  Arguments endless = w.good("a") + Arguments{"--epochs", "100000", "--eval-samples", "8", "--resume", "auto"};
  const auto until_trains = [&](const Process& p) {
    const std::string before = file_exists(log) ? slurp(log) : std::string();
    while (p.running() && (!file_exists(log) || slurp(log).size() <= before.size())) std::this_thread::sleep_for(kPoll);
  };
  {
    Process p(endless, w / "stdout", w / "stderr");
    until_trains(p);
    p.send(SIGHUP);
    p.send(SIGHUP);  // the shell's, too
    const Outcome o = p.wait();
    CHECK(o.code == 3);
    CHECK_CONTAINS(o.err, "continue with --resume ");
  }
  endless.erase(std::find(endless.begin(), endless.end(), "--quiet"));
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  const size_t steps = steps_in(log).size();
  {
    Process p(endless, w / "stdout", pipe);
    until_trains(p);
    ::close(reader);
    p.send(SIGINT);
    CHECK(p.wait().code == 3);
  }
  CHECK(steps_in(log).size() > steps);
  CHECK(has(w, text("a/m.step-", steps_in(log).size(), ".ckpt")));
  const HangupScope nohup(SIG_IGN);
  Process p(w.good("b") + Arguments{"--max-steps", "2", "--eval-samples", "8"}, w / "stdout", w / "stderr");
  for (int i = 0; i < 20 && p.running(); ++i) {
    p.send(SIGHUP);
    std::this_thread::sleep_for(kPoll);
  }
  CHECK(p.wait().code == 0);
}

TEST_CASE("checkpoints_of_another_run_in_the_folder_are_neither_continued_nor_a_reason_to_drop_ones_own") {
  const Workshop w;
  const Arguments every{"--checkpoint-every", "2"};
  REQUIRE(w.run(w.good("a") + every + Arguments{"--epochs", "2"}).code == 0);
  CHECK(names_in(w / "a").find("m.step-12.ckpt") != std::string::npos);
  const Arguments other = w.good("a") + every + Arguments{"--lr", "0.0005"};
  REQUIRE(w.run(other + Arguments{"--max-steps", "4"}).code == 0);
  for (const char* kept : {"a/m.step-2.ckpt", "a/m.step-4.ckpt", "a/m.step-12.ckpt"}) CHECK_MESSAGE(has(w, kept), kept);
  const Outcome on = w.run(other + Arguments{"--resume", "auto"});
  INFO(on.err);
  REQUIRE(on.code == 0);
  CHECK(summary(w, "a").at("resumed_from_step") == 4);
  CHECK_CONTAINS(on.err, "passed over");
  CHECK_CONTAINS(on.err, "--lr 0.001, this run has 5e-04");
  CHECK_CONTAINS(on.err, "m.step-4.ckpt");
  // Other weights under the same name.
  nn::Graph g = nn::models::resnet20_cifar10();
  nn::initialize(g, {.seed = 2});
  io::save_weights(g, w / "weights.safetensors");
  const Outcome foreign = w.run(other + Arguments{"--resume", (w / "a") + "/m.step-6.ckpt"});
  CHECK(foreign.code == 2);
  CHECK_CONTAINS(foreign.err, "--weights had another content");
  // What was trained is not exported as if it was not.
  const Outcome untrained = w.run(w.good("b") + every + Arguments{"--max-steps", "2"});
  REQUIRE(untrained.code == 0);
  const Outcome none = w.run(w.good("b") + every + Arguments{"--epochs", "0", "--resume", "auto"});
  CHECK(none.code == 2);
  CHECK_CONTAINS(none.err, "--max-steps 2");
}

TEST_CASE("a_run_does_not_go_on_from_beyond_its_end_nor_on_other_data") {
  const Workshop w;
  const Arguments every{"--checkpoint-every", "2", "--eval-samples", "8"};
  REQUIRE(w.run(w.good("a") + every + Arguments{"--max-steps", "4"}).code == 0);
  const auto refused = [&](const Arguments& more, const std::string& why) {
    const Outcome o = w.run(w.good("a") + every + more);
    CHECK(o.code == 2);
    CHECK_CONTAINS(o.err, why);
  };
  refused({"--max-steps", "3", "--resume", (w / "a") + "/m.step-4.ckpt"}, "holds 4 steps, --epochs 1 and --max-steps 3 ask for 3; give at least 4");
  refused({"--max-steps", "1", "--resume", "auto"}, "m.step-4.ckpt: it holds 4 steps");
  const Outcome earlier = w.run(w.good("a") + every + Arguments{"--max-steps", "3", "--resume", "auto"});
  INFO(earlier.err);
  CHECK(earlier.code == 0);
  CHECK_CONTAINS(earlier.err, "passed over");
  CHECK(summary(w, "a").at("resumed_from_step") == 2);
  // The same records in one file less; then fewer.
  const std::string first = (w / "data") + "/train-00000-of-00002", second = (w / "data") + "/train-00001-of-00002", half = slurp(first);
  spill(first, half + slurp(second));
  remove_file(second);
  refused({"--resume", "auto"}, "it was trained on 48 images in 2 files, --data ");
  spill(first, half);
  refused({"--resume", (w / "a") + "/m.step-4.ckpt"}, "now has 24 in 1; give the same data");
}

TEST_CASE("one_run_at_a_time_has_a_prefix_in_a_folder") {
  const Workshop w;
  const std::string log = (w / "a") + "/m.log.jsonl";
  const Arguments brief{"--epochs", "0", "--eval-samples", "8", "--calibration-samples", "8"};
  Process first(w.good("a") + Arguments{"--epochs", "100000"}, w / "stdout1", w / "stderr1");
  while (first.running() && (!file_exists(log) || slurp(log).empty())) std::this_thread::sleep_for(kPoll);
  const Outcome second = w.run(w.good("a"));
  CHECK(second.code == 2);
  CHECK_CONTAINS(second.err, "another run with --prefix m is going on; give another --prefix");
  CHECK(w.run(w.good("a") + brief + Arguments{"--prefix", "n"}).code == 0);
  CHECK(w.run(w.good("b") + brief).code == 0);
  CHECK(first.running());
  CHECK_FALSE(slurp(log).empty());
  first.kill_now();
  first.wait();
  CHECK(has(w, "a/m.lock"));
  const Outcome next = w.run(w.good("a") + brief);
  INFO(next.err);
  CHECK(next.code == 0);
  CHECK_FALSE(has(w, "a/m.lock"));
}

TEST_CASE("a_log_is_there_while_training_and_has_each_step_once_when_resumed_elsewhere") {
  const Workshop w;
  const Arguments every{"--checkpoint-every", "1", "--keep-checkpoints", "9"};
  REQUIRE(w.run(w.good("a") + every + Arguments{"--max-steps", "3"}).code == 0);
  REQUIRE(w.run(w.good("b") + every + Arguments{"--max-steps", "6", "--resume", (w / "a") + "/m.step-2.ckpt"}).code == 0);
  REQUIRE(w.run(w.good("b") + every + Arguments{"--max-steps", "5", "--resume", (w / "b") + "/m.step-4.ckpt"}).code == 0);
  CHECK(steps_in((w / "b") + "/m.log.jsonl") == std::vector<int64_t>{3, 4, 5});

  Process p(w.good("watched") + Arguments{"--epochs", "100000"}, w / "stdout", w / "stderr");
  const std::string log = (w / "watched") + "/m.log.jsonl";
  while (p.running() && (!file_exists(log) || slurp(log).empty())) std::this_thread::sleep_for(kPoll);
  CHECK(p.running());
  p.kill_now();
  p.wait();
  CHECK(steps_in(log).front() == 1);
}

TEST_CASE("left_overs_are_removed_when_nobody_writes_them_any_more_and_no_other_runs") {
  const Workshop w;
  make_folders(w / "a");
  const std::string alive = text("m.safetensors.tmp-", ::getpid(), "-0");
  for (const std::string& name : {std::string("m.onnx.tmp-999999999-0"), std::string("m.step-7.ckpt.tmp-999999999-3"), std::string(".writable.tmp-999999999-1"), alive,
                                  std::string("m.w4.onnx.tmp-999999999-0"), std::string("m.step-x.ckpt.tmp-999999999-0")})
    spill((w / "a") + "/" + name, "half");
  REQUIRE(w.run(w.good("a") + Arguments{"--epochs", "0"}).code == 0);
  const std::string left = names_in(w / "a");
  CHECK(left.find("m.onnx.tmp-") == std::string::npos);
  CHECK(left.find("m.step-7") == std::string::npos);
  CHECK(left.find(".writable") == std::string::npos);
  CHECK_CONTAINS(left, alive);
  CHECK_CONTAINS(left, "m.w4.onnx.tmp-");
  CHECK_CONTAINS(left, "m.step-x.ckpt.tmp-");
}

TEST_CASE("a_table_that_cannot_be_printed_is_an_error_and_the_results_are_there") {
  const Workshop w;
  const Outcome o = Process(w.good("a") + Arguments{"--epochs", "0"}, "/dev/full", w / "stderr").wait();
  CHECK(o.code == 2);
  CHECK_CONTAINS(o.err, "standard output; the results are in ");
  CHECK(has(w, "a/m.qdq.onnx"));
}
