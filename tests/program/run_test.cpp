// A whole run: its files and summary, the same bits at any thread count, and after a kill.
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "detent/io/encodings.h"
#include "detent/tests/program/support.h"

using namespace detent;
using namespace detent::test;

namespace {

const char* const kFiles[] = {"m.safetensors", "m.encodings", "m.onnx", "m.qdq.onnx", "m.log.jsonl", "m.summary.json"};

void same_results(const Workshop& w, const std::string& a, const std::string& b) {
  for (const char* name : {"m.safetensors", "m.encodings", "m.onnx", "m.qdq.onnx", "m.log.jsonl"}) {
    const std::string u = slurp((w / a) + "/" + name), v = slurp((w / b) + "/" + name);
    CHECK_MESSAGE((!u.empty() && u == v), name << " differs between " << a << " and " << b);
  }
}

}  // namespace

TEST_CASE("a_run_and_its_summary") {
  const Workshop w;
  const Outcome o = w.run(w.good("one"));
  INFO(o.err);
  REQUIRE(o.code == 0);
  CHECK(o.err.empty());  // quiet
  for (const char* part : {"float", "folded", "calibrated", "trained", "top-1"}) CHECK_CONTAINS(o.out, part);
  std::string files;
  for (const char* f : {"m.encodings", "m.log.jsonl", "m.onnx", "m.qdq.onnx", "m.safetensors", "m.summary.json"}) files += std::string(f) + " ";
  CHECK(names_in(w / "one") == files);

  const auto j = nlohmann::json::parse(slurp((w / "one") + "/m.summary.json"));
  CHECK(j.at("format") == 1);
  CHECK(j.at("arch") == "resnet20-cifar10");
  CHECK(j.at("device") == "cpu");
  CHECK(j.at("threads") == 1);
  CHECK(j.at("seed") == 0);
  CHECK(j.at("images") == nlohmann::json{{"train", 48}, {"valid", 24}, {"calibration", 16}});
  for (const char* stage : {"float", "folded", "ptq", "qat"}) {
    const auto& a = j.at("accuracy").at(stage);
    CHECK(a.at("images") == 24);
    const double top1 = a.at("top1"), top5 = a.at("top5");
    CHECK((top1 >= 0.0 && top1 <= top5 && top5 <= 1.0));
    CHECK(std::abs(top1 * 24.0 - std::round(top1 * 24.0)) < 1e-9);
  }
  CHECK(j.at("accuracy").at("float") == j.at("accuracy").at("folded"));
  CHECK(j.at("quantizers") == nlohmann::json{{"weight", 20}, {"activation", 30}, {"bias", 0}});
  CHECK(j.at("resumed_from_step") == 0);
  for (const char* key : {"float", "ptq", "qat_train"}) CHECK(j.at("seconds").at(key).get<double>() > 0.0);
  for (const char* key : {"eval_float", "eval_quantized", "train_qat"}) CHECK(j.at("images_per_second").at(key).get<double>() > 0.0);
  CHECK(j.at("peak_rss_bytes").get<int64_t>() > 1'000'000);
  for (const char* f : kFiles) CHECK(std::count(j.at("files").begin(), j.at("files").end(), f) == 1);

  std::istringstream log(slurp((w / "one") + "/m.log.jsonl"));
  int64_t steps = 0;
  for (std::string line; std::getline(log, line);) {
    const auto s = nlohmann::json::parse(line);
    CHECK(s.at("step") == ++steps);
    CHECK(std::isfinite(s.at("loss").get<double>()));
    CHECK(s.at("lr").get<double>() == doctest::Approx(1e-3));
  }
  CHECK(steps == 6);
  const quant::EncodingMap map = io::read_encodings(slurp((w / "one") + "/m.encodings"), "m.encodings");
  CHECK(map.params.size() == 20);
  CHECK(map.activations.size() == 30);

  const Outcome two = w.run(w.good("two") + Arguments{"--threads", "2"});
  REQUIRE(two.code == 0);
  same_results(w, "one", "two");
}

TEST_CASE("help_and_version") {
  const Workshop w;
  const Outcome help = w.run({"--help"}), version = w.run({"--version"});
  CHECK(help.code == 0);
  CHECK_CONTAINS(help.out, "--quant-scheme");
  CHECK(version.code == 0);
  CHECK_CONTAINS(version.out, "0.1.0");
}

TEST_CASE("a_killed_run_resumes_to_the_same_bits") {
  const Workshop w;
  const Arguments more{"--epochs", "5", "--checkpoint-every", "4", "--seed", "5"};
  const Outcome whole = w.run(w.good("whole") + more);
  REQUIRE(whole.code == 0);
  for (int kill = 0; kill < 2; ++kill) {
    Process p(w.good("killed") + more + Arguments{"--resume", "auto"}, w / "stdout", w / "stderr");
    const auto checkpoints = [&] {
      std::string all;
      std::istringstream in(names_in(w / "killed"));
      for (std::string n; in >> n;) {
        if (n.ends_with(".ckpt")) all += n + " ";
      }
      return all;
    };
    const std::string had = checkpoints();
    for (int i = 0; i < 6000 && (checkpoints().empty() || checkpoints() == had) && !file_exists((w / "killed") + "/m.summary.json"); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    p.kill_now();
    CHECK(p.wait().code == -SIGKILL);
    CHECK_FALSE(file_exists((w / "killed") + "/m.summary.json"));
    CHECK_FALSE(file_exists((w / "killed") + "/m.safetensors"));
  }
  const Outcome last = w.run(w.good("killed") + more + Arguments{"--resume", "auto"});
  INFO(last.err);
  REQUIRE(last.code == 0);
  same_results(w, "whole", "killed");
  const auto j = nlohmann::json::parse(slurp((w / "killed") + "/m.summary.json"));
  CHECK(j.at("resumed_from_step").get<int64_t>() >= 4);
  CHECK(j.at("accuracy") == nlohmann::json::parse(slurp((w / "whole") + "/m.summary.json")).at("accuracy"));

  // With other options it is refused.
  const Outcome other = w.run(w.good("killed") + more + Arguments{"--resume", "auto", "--lr", "0.5"});
  CHECK(other.code == 2);
  CHECK_CONTAINS(other.err, "--lr");

  // A damaged checkpoint is passed over.
  std::string newest;
  for (const std::string& n : list_folder(w / "killed")) {
    if (n == "m.step-28.ckpt") newest = (w / "killed") + "/" + n;
  }
  REQUIRE_FALSE(newest.empty());
  spill(newest, slurp(newest).substr(0, 5000));
  const Outcome o = w.run(w.good("killed") + more + Arguments{"--resume", "auto"});
  CHECK(o.code == 0);
  CHECK_CONTAINS(o.err, "m.step-28.ckpt");
  same_results(w, "whole", "killed");
}
