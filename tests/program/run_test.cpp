// A whole run: its files and summary, the same bits at any thread count, and after a kill.
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "detent/io/data/example.h"
#include "detent/io/data/jpeg.h"
#include "detent/io/data/tfrecord.h"
#include "detent/io/encodings.h"
#include "detent/io/safetensors.h"
#include "detent/tests/program/support.h"

using namespace detent;
using namespace detent::test;

namespace {

const char* const kFiles[] = {"m.safetensors", "m.encodings", "m.onnx", "m.qdq.onnx", "m.log.jsonl", "m.summary.json"};

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

TEST_CASE("a_cosine_ends_at_zero_and_is_continued_with_its_own_end_only") {
  const Workshop w;
  const Arguments cosine{"--schedule", "cosine", "--epochs", "2", "--lr", "0.01", "--checkpoint-every", "5"};
  const Outcome o = w.run(w.good("cosine") + cosine + Arguments{"--max-steps", "5"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  std::istringstream log(slurp((w / "cosine") + "/m.log.jsonl"));
  int64_t step = 0;
  for (std::string line; std::getline(log, line); ++step) {
    const double turn = std::acos(-1.0) * static_cast<double>(step) / 12.0;  // two epochs of six steps
    CHECK(nlohmann::json::parse(line).at("lr").get<double>() == doctest::Approx(0.01 * (1.0 + std::cos(turn)) / 2.0));
  }
  CHECK(step == 5);
  const Outcome longer = w.run(w.good("cosine") + Arguments{"--schedule", "cosine", "--epochs", "3", "--lr", "0.01", "--resume", "auto"});
  CHECK(longer.code == 2);
  CHECK_CONTAINS(longer.err, "--epochs 2");
}

TEST_CASE("the_float_network_teaches_also_a_resumed_run") {
  const Workshop w;
  const Arguments taught{"--param-bw", "4", "--output-bw", "4", "--epochs", "2", "--lr", "0.001", "--checkpoint-every", "5", "--distill", "0.8", "--distill-temperature", "2"};
  const Outcome whole = w.run(w.good("whole") + taught);
  INFO(whole.err);
  REQUIRE(whole.code == 0);
  const auto options = nlohmann::json::parse(slurp((w / "whole") + "/m.summary.json")).at("options");
  CHECK(options.at("distill").get<double>() == doctest::Approx(0.8));
  CHECK(options.at("distill-temperature").get<double>() == 2.0);
  REQUIRE(w.run(w.good("parts") + taught + Arguments{"--max-steps", "5"}).code == 0);
  const Outcome rest = w.run(w.good("parts") + taught + Arguments{"--resume", "auto"});
  INFO(rest.err);
  REQUIRE(rest.code == 0);
  same_results(w, "whole", "parts");

  const Arguments untaught(taught.begin(), taught.end() - 4);
  REQUIRE(w.run(w.good("untaught") + untaught).code == 0);
  CHECK(slurp((w / "untaught") + "/m.log.jsonl") != slurp((w / "whole") + "/m.log.jsonl"));
  const Outcome other = w.run(w.good("parts") + untaught + Arguments{"--resume", "auto"});
  CHECK(other.code == 2);
  CHECK_CONTAINS(other.err, "--distill");
  // A checkpoint does not hold the teacher.
  Arguments alone = w.good("parts") + taught + Arguments{"--resume", "auto"};
  alone.erase(std::find(alone.begin(), alone.end(), "--weights"), std::find(alone.begin(), alone.end(), "--weights") + 2);
  const Outcome orphan = w.run(alone);
  CHECK(orphan.code == 2);
  CHECK_CONTAINS(orphan.err, "also give --weights");
}

TEST_CASE("16_bit_floats_percentiles_and_dumps_of_both_networks") {
  const Workshop w;
  const Arguments brief{"--max-steps", "2", "--eval-samples", "8"};
  const Outcome half = w.run(w.good("half") + brief + Arguments{"--param-type", "float16", "--output-type", "bfloat16", "--print-quantizers"});
  INFO(half.err);
  REQUIRE(half.code == 0);
  CHECK_CONTAINS(half.out, "Wfloat16Abfloat16");
  CHECK_CONTAINS(half.out, "bfloat16");
  const auto j = nlohmann::json::parse(slurp((w / "half") + "/m.summary.json"));
  CHECK(j.at("param_type") == "float16");
  CHECK(j.at("output_bw") == 16);
  const quant::EncodingMap map = io::read_encodings(slurp((w / "half") + "/m.encodings"), "m.encodings");
  CHECK(map.params.size() == 20);
  for (const quant::Encoding& e : map.activations) CHECK((e.is_float && e.bits == 16));

  // Weights alone in floats, activations on a grid of 8 bits; every value is written twice, as codes and as the float network has it.
  const Outcome mixed = w.run(w.good("mixed") + brief +
                              Arguments{"--param-type", "bfloat16", "--quant-scheme", "percentile", "--percentile", "99", "--dump-layers", w / "dump", "--dump-images", "8"});
  INFO(mixed.err);
  REQUIRE(mixed.code == 0);
  const quant::EncodingMap tight = io::read_encodings(slurp((w / "mixed") + "/m.encodings"), "m.encodings");
  const Outcome all = w.run(w.good("all") + brief + Arguments{"--param-type", "bfloat16", "--quant-scheme", "percentile", "--percentile", "100"});
  REQUIRE(all.code == 0);
  const quant::EncodingMap wide = io::read_encodings(slurp((w / "all") + "/m.encodings"), "m.encodings");
  int narrower = 0;
  for (const quant::Encoding& e : tight.activations) {
    CHECK_FALSE(e.is_float);
    narrower += e.grids[0].scale < 0.95f * wide.find(e.name)->grids[0].scale;
  }
  CHECK(narrower > 20);
  const auto codes = nlohmann::json::parse(slurp((w / "dump") + "/layers.json")), floats = nlohmann::json::parse(slurp((w / "dump") + "/float/layers.json"));
  CHECK(codes.dump().find("uint8") != std::string::npos);
  CHECK(floats.dump().find("uint8") == std::string::npos);
}

TEST_CASE("int8_eval_reports_the_accuracy_of_integer_execution") {
  const Workshop w;
  const Arguments brief{"--max-steps", "2", "--config", "integer", "--int8-eval"};
  const Outcome good = w.run(w.good("int8") + brief);
  INFO(good.err);
  REQUIRE(good.code == 0);
  CHECK_CONTAINS(good.out, "in integers W8A8");
  const auto j = nlohmann::json::parse(slurp((w / "int8") + "/m.summary.json"));
  CHECK(j.at("accuracy").at("int8").at("images") == 24);
  // The simulation multiplies the same integers.
  CHECK(j.at("accuracy").at("int8").at("top1") == j.at("accuracy").at("qat").at("top1"));
  CHECK(j.at("images_per_second").at("eval_int8").get<double>() > 0.0);
  // Told before anything is trained.
  const Outcome wide = w.run(w.good("wide") + brief + Arguments{"--output-bw", "16"});
  CHECK(wide.code == 2);
  CHECK_CONTAINS(wide.err, "a code is a byte");
  CHECK_FALSE(file_exists((w / "wide") + "/m.log.jsonl"));
}

TEST_CASE("products_as_floats_and_gradients_in_bf16") {
  const Workshop w;
  const auto accuracies = [&](const std::string& name, const Arguments& more) {
    const Outcome o = w.run(w.good(name) + Arguments{"--max-steps", "3"} + more);
    INFO(o.err);
    REQUIRE(o.code == 0);
    return nlohmann::json::parse(slurp((w / name) + "/m.summary.json")).at("accuracy");
  };
  const nlohmann::json integers = accuracies("integers", {}), floats = accuracies("floats", {"--products", "floats"});
  CHECK(integers.at("float") == floats.at("float"));
  const auto weights = [&](const std::string& name) { return slurp((w / name) + "/m.safetensors"); };
  // One pass differs by codes at ties, three steps by no more than that brings; the same run gives the same bits.
  CHECK(std::abs(integers.at("ptq").at("top1").get<double>() - floats.at("ptq").at("top1").get<double>()) <= 0.1);
  CHECK(accuracies("again", {}) == integers);
  CHECK(weights("again") == weights("integers"));
  // On every processor, whatever it multiplies.
  const nlohmann::json rounded = accuracies("bf16", {"--precision", "bf16"});
  // Judged in f32: what comes before training is the same.
  for (const char* stage : {"float", "folded", "ptq"}) CHECK(rounded.at(stage) == integers.at(stage));
  CHECK(weights("bf16") != weights("integers"));
}

TEST_CASE("the_result_is_an_average_unless_the_last_step_is_asked_for") {
  const Workshop w;
  REQUIRE(w.run(w.good("average")).code == 0);
  REQUIRE(w.run(w.good("last") + Arguments{"--average-weights", "0"}).code == 0);
  CHECK(slurp((w / "average") + "/m.log.jsonl") == slurp((w / "last") + "/m.log.jsonl"));  // training is the same
  for (const char* file : {"m.safetensors", "m.encodings", "m.qdq.onnx"}) CHECK(slurp((w / "average") + "/" + file) != slurp((w / "last") + "/" + file));
  // Of six steps the average holds mostly the last ones: close to their weights.
  const io::SafeTensors average = io::load_safetensors((w / "average") + "/m.safetensors"), last = io::load_safetensors((w / "last") + "/m.safetensors");
  const std::vector<float> a = average.find("conv1.weight")->to_vector<float>(), b = last.find("conv1.weight")->to_vector<float>();
  REQUIRE(a.size() == b.size());
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    size += std::abs(static_cast<double>(b[i]));
  }
  CHECK(difference > 0.0);
  CHECK(difference < 0.05 * size);
}

TEST_CASE("what_is_left_out_is_told") {
  const Workshop w;
  const Arguments brief{"--epochs", "0", "--eval-samples", "8"};
  spill(w / "nothing.json", R"({"defaults": {}})");
  const Outcome nothing = w.run(w.good("nothing") + brief + Arguments{"--config", w / "nothing.json"});
  CHECK(nothing.code == 0);
  CHECK_CONTAINS(nothing.err, "warning: the configuration leaves nothing quantized");
  CHECK(nlohmann::json::parse(slurp((w / "nothing") + "/m.summary.json")).at("quantizers") == nlohmann::json{{"weight", 0}, {"activation", 0}, {"bias", 0}});

  // Encodings of another network: what does not match is named; when nothing does, it is an error.
  REQUIRE(w.run(w.good("own") + brief).code == 0);
  const std::string own = slurp((w / "own") + "/m.encodings");
  auto strange = nlohmann::json::parse(own);
  strange["activation_encodings"][0]["name"] = "elsewhere";
  spill(w / "strange.encodings", strange.dump());
  const Outcome some = w.run(w.good("some") + brief + Arguments{"--encodings", w / "strange.encodings"});
  CHECK(some.code == 0);
  CHECK_CONTAINS(some.err, "1 entries are no quantizers of this network: elsewhere");
  for (const char* list : {"activation_encodings", "param_encodings"}) {
    for (auto& e : strange[list]) e["name"] = "other." + e["name"].get<std::string>();
  }
  spill(w / "strange.encodings", strange.dump());
  const Outcome none = w.run(w.good("none") + brief + Arguments{"--encodings", w / "strange.encodings"});
  CHECK(none.code == 2);
  CHECK_CONTAINS(none.err, "none of its 50 entries is a quantizer of this network");
}

TEST_CASE("batch_norms_left_in_are_frozen_measured_anew_and_folded_into_the_scales") {
  const Workshop w;
  for (const char* scheme : {"range-learning-tf", "tf"}) {
    INFO(scheme);
    const Arguments keep{"--batch-norm", "keep", "--freeze-bn-after", "3", "--reestimate-bn", "2", "--quant-scheme", scheme, "--config", "per_channel_default"};
    const Outcome o = w.run(w.good(scheme) + keep);
    INFO(o.err);
    REQUIRE(o.code == 0);
    const auto j = nlohmann::json::parse(slurp((w / scheme) + "/m.summary.json"));
    CHECK_FALSE(j.at("accuracy").contains("folded"));
    CHECK(j.at("accuracy").contains("qat"));
    const quant::EncodingMap map = io::read_encodings(slurp((w / scheme) + "/m.encodings"), "m.encodings");
    CHECK(map.find("layer1.0.conv2") != nullptr);  // the batch norm's quantizer sits behind the convolution again
    CHECK(map.find("layer1.0.bn2") == nullptr);
    CHECK(map.find("layer1.0.conv2.weight")->grids.size() == 16);
    CHECK(slurp((w / scheme) + "/m.qdq.onnx").find("BatchNormalization") == std::string::npos);
  }
}

TEST_CASE("layers are equalized, roundings learned and biases corrected before training, and a resumed run does not do it again") {
  const Workshop w;
  const Arguments tools{"--equalize", "yes", "--adaround", "12", "--adaround-iterations", "5", "--correct-biases", "16",
                        "--param-bw", "4",   "--epochs",   "2",  "--checkpoint-every",    "6", "--sensitivity",    "8"};
  const Outcome plain = w.run(w.good("plain") + Arguments{"--param-bw", "4", "--epochs", "0"});
  const Outcome o = w.run(w.good("whole") + tools);
  REQUIRE(plain.code == 0);
  INFO(o.err);
  REQUIRE(o.code == 0);
  const auto summary = nlohmann::json::parse(slurp((w / "whole") + "/m.summary.json"));
  CHECK(summary.at("options").at("equalize") == "yes");
  CHECK(summary.at("options").at("correct-biases") == 16);
  CHECK(summary.at("options").at("param-bw") == 4);
  CHECK(summary.at("sensitivity").size() == 50);
  CHECK(summary.at("options").at("adaround") == 12);
  CHECK(summary.at("adaround").size() == 20);
  for (const auto& l : summary.at("adaround")) CHECK(l.at("error_learned").get<double>() <= l.at("error_nearest").get<double>());
  CHECK_CONTAINS(o.out, summary.at("sensitivity")[0].at("name").get<std::string>());
  // Only weights between the two layers of a block moved, so equalization shows in their grids and nowhere before.
  const quant::EncodingMap a = io::read_encodings(slurp((w / "whole") + "/m.encodings"), "whole"), b = io::read_encodings(slurp((w / "plain") + "/m.encodings"), "plain");
  CHECK(std::abs(a.find("layer1.0.conv1.weight")->grids[0].scale / b.find("layer1.0.conv1.weight")->grids[0].scale - 1.0f) > 0.05f);
  const Outcome again = w.run(w.good("again") + tools + Arguments{"--resume", (w / "whole") + "/m.step-6.ckpt"});
  INFO(again.err);
  REQUIRE(again.code == 0);
  for (const char* name : {"/m.safetensors", "/m.encodings", "/m.qdq.onnx"}) CHECK(slurp((w / "whole") + name) == slurp((w / "again") + name));
  CHECK(nlohmann::json::parse(slurp((w / "again") + "/m.summary.json")).at("adaround") == summary.at("adaround"));
  const Outcome other = w.run(w.good("again") + Arguments{"--param-bw", "4", "--epochs", "2", "--resume", (w / "whole") + "/m.step-6.ckpt"});
  CHECK(other.code == 2);
  CHECK_CONTAINS(other.err, "--adaround 12");
}

// On a GPU when there is one, else on the module of tests/device.
TEST_CASE("a_run_on_a_device_follows_the_cpu_and_repeats_to_the_bit") {
  const Workshop w;
  // The third step is the first that a recording gives. On the host its bodies are slow.
  const Arguments brief{"--max-steps", "3", "--eval-samples", "8", "--calibration-samples", "8"}, on_device = brief + Arguments{"--device", "cuda:0", "--precision", "f32"};
  const Outcome cpu = w.run(w.good("cpu") + brief);
  if (!device_available({DeviceType::cuda, 0})) ::setenv("DETENT_CUDA_MODULE", DETENT_HOST_MODULE, 1);
  const Outcome one = w.run(w.good("one") + on_device), two = w.run(w.good("two") + on_device);
  ::unsetenv("DETENT_CUDA_MODULE");
  INFO(one.err);
  REQUIRE(cpu.code == 0);
  REQUIRE(one.code == 0);
  REQUIRE(two.code == 0);
  same_results(w, "one", "two");
  const auto summary = nlohmann::json::parse(slurp((w / "one") + "/m.summary.json")), reference = nlohmann::json::parse(slurp((w / "cpu") + "/m.summary.json"));
  CHECK(summary.at("device") == "cuda");
  CHECK(summary.at("quantizers") == reference.at("quantizers"));
  // Scales: a sum in another order moves an activation's extreme in its last bits, a trained range a little more.
  const quant::EncodingMap a = io::read_encodings(slurp((w / "one") + "/m.encodings"), "one"), b = io::read_encodings(slurp((w / "cpu") + "/m.encodings"), "cpu");
  REQUIRE(a.activations.size() == b.activations.size());
  REQUIRE(a.params.size() == b.params.size());
  for (const quant::Encoding& e : b.activations) {
    CAPTURE(e.name);
    const quant::Encoding* other = a.find(e.name);
    REQUIRE(other);
    for (size_t i = 0; i < e.grids.size(); ++i) CHECK(other->grids[i].scale == doctest::Approx(static_cast<double>(e.grids[i].scale)).epsilon(1e-2));
  }
}

TEST_CASE("help_and_version") {
  const Workshop w;
  const Outcome help = w.run({"--help"}), version = w.run({"--version"});
  CHECK(help.code == 0);
  for (const char* part : {"--quant-scheme", "network of --arch trained on it first", "before the first step there is nothing to save"}) CHECK_CONTAINS(help.out, part);
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
    while (p.running() && (checkpoints().empty() || checkpoints() == had)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
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
  CHECK_CONTAINS(o.err, "m.step-28.ckpt: ");
  CHECK_CONTAINS(o.err, "warning: going on from the one before, ");
  same_results(w, "whole", "killed");
}

TEST_CASE("training_that_lost_the_network_is_warned_of") {
  const Workshop w;
  // The network says 3 to everything, and all validation images are a 3 (stored from 1 on): until it is trained on labels of all kinds, in large steps.
  nn::Graph g = nn::models::resnet20_cifar10();
  nn::initialize(g, {.seed = 1});
  auto& linear = dynamic_cast<nn::Dense&>(*g.find("linear")->module);
  linear.weight.value.zero();
  linear.bias.value.data<float>()[3] = 5.0f;
  io::save_weights(g, w / "threes.safetensors");
  std::string valid;
  for (int64_t i = 0; i < 24; ++i) io::append_tfrecord(valid, io::serialize_example(io::encode_jpeg(io::synthetic_image(3, 1, i, 32, 0.0f), 90), 3 + 1, 32, 32));
  spill((w / "data") + "/valid-00000-of-00001", valid);
  const Outcome lost = w.run(w.good("lost") + Arguments{"--weights", w / "threes.safetensors", "--lr", "2", "--epochs", "2", "--average-weights", "0"});
  INFO(lost.err);
  REQUIRE(lost.code == 0);
  CHECK_CONTAINS(lost.err, "warning: training ended at ");
  CHECK_CONTAINS(lost.err, "the calibrated network was at 100 %: --lr 2 is too high");
  const Outcome fine = w.run(w.good("fine") + Arguments{"--weights", w / "threes.safetensors", "--lr", "1e-6"});
  REQUIRE(fine.code == 0);
  CHECK(fine.err == "");
}

TEST_CASE("a_run_that_diverges_names_the_layer_and_the_last_good_checkpoint") {
  const Workshop w;
  // Nothing quantized: a float network does not survive this learning rate (quantizers bound what follows them).
  spill(w / "none.json", R"({"defaults": {"ops": {}, "params": {}}, "params": {}, "op_type": {}, "supergroups": [], "model_input": {}, "model_output": {}})");
  const Outcome o = w.run(w.good("diverged") + Arguments{"--epochs", "10", "--checkpoint-every", "1", "--lr", "1e3", "--config", w / "none.json"});
  INFO(o.err);
  CHECK(o.code == 2);
  CHECK_CONTAINS(o.err, "the first value that is not finite is \"");
  const std::string said = "the last good checkpoint is ";
  const size_t at = o.err.find(said);
  REQUIRE(at != std::string::npos);
  CHECK(file_exists(o.err.substr(at + said.size(), o.err.find('\n', at) - at - said.size())));
  CHECK_FALSE(file_exists((w / "diverged") + "/m.safetensors"));
}

TEST_CASE("weights_that_are_not_finite_are_neither_saved_nor_exported") {
  const Workshop w;
  // The only step leaves infinities behind, and no further one looks at them.
  const Outcome o = w.run(w.good("infinite") + Arguments{"--max-steps", "1", "--lr", "3e38"});
  INFO(o.err);
  CHECK(o.code == 2);
  CHECK_CONTAINS(o.err, "are not finite; training has diverged, lower the learning rate");
  CHECK_FALSE(file_exists((w / "infinite") + "/m.safetensors"));
  CHECK_FALSE(file_exists((w / "infinite") + "/m.log.jsonl"));
}
