// Bad input of every kind: exit code 2, one line that says what and where, nothing left in the output folder.
#include <cstdlib>

#include "detent/io/data/crc32c.h"
#include "detent/io/data/example.h"
#include "detent/io/data/jpeg.h"
#include "detent/io/data/tfrecord.h"
#include "detent/tests/program/support.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

struct Bad {
  const char* what;
  Arguments arguments;                ///< behind those of a good run: the last value of an option counts
  std::vector<std::string> mentions;  ///< in the error line
};

std::string frame(const std::string& record) {
  std::string out;
  append_tfrecord(out, record);
  return out;
}

// A data folder of a good valid file and the given train file.
std::string data_folder(const Workshop& w, const std::string& name, const std::string& train) {
  const std::string folder = w / name;
  make_folders(folder);
  spill(folder + "/train-0", train);
  spill(folder + "/valid-0", slurp((w / "data") + "/valid-00000-of-00001"));
  return folder;
}

std::string example_of(int64_t label, bool cut = false) {
  std::string jpeg = encode_jpeg(synthetic_image(3, 1, 0, 32, 0.0f), 90);
  if (cut) jpeg.resize(jpeg.size() / 2);
  return serialize_example(jpeg, label, 32, 32);
}

void check(const Workshop& w, const std::vector<Bad>& rows) {
  for (const Bad& b : rows) {
    INFO(b.what);
    const Outcome o = w.run(w.good("out") + b.arguments);
    INFO("stderr: " << o.err);
    CHECK(o.code == 2);
    CHECK(o.err.starts_with("error: "));
    CHECK(std::count(o.err.begin(), o.err.end(), '\n') == 1);
    CHECK(o.out.empty());
    for (const std::string& m : b.mentions) CHECK_CONTAINS(o.err, m);
    CHECK(names_in(w / "out") == "");
  }
}

}  // namespace

TEST_CASE("bad_options") {
  const Workshop w;
  spill(w / "config.json", R"({"defaults": {"ops": {"is_output_quantised": "True"}}})");
  spill(w / "override.json", R"({"defaults": {"ops": {"is_output_quantized": "True"}}, "overrides": [{"name": "layer9.0.conv1", "output_bitwidth": 4}]})");
  spill(w / "file", "");
  check(w, {
               {"unknown option", {"--foo"}, {"--foo"}},
               {"unknown architecture", {"--arch", "resnet20"}, {"resnet20-cifar10"}},
               {"unknown scheme", {"--quant-scheme", "tf-enhansed"}, {"tf-enhansed", "tf-enhanced"}},
               {"unknown config key", {"--config", w / "config.json"}, {"config.json", "is_output_quantised"}},
               {"unknown shipped config", {"--config", "tensorflow"}, {"tensorflow_default"}},
               {"absent config", {"--config", w / "absent.json"}, {"absent.json"}},
               {"a config that is no JSON", {"--config", w / "weights.safetensors"}, {"weights.safetensors"}},
               {"unknown products", {"--products", "float"}, {"--products \"float\"", "integers", "floats"}},
               {"unknown precision", {"--precision", "fp16"}, {"--precision \"fp16\"", "bf16"}},
               {"1 bit", {"--param-bw", "1"}, {"--param-bw 1"}},
               {"17 bits", {"--output-bw", "17"}, {"--output-bw 17"}},
               {"1 bit at the ends", {"--first-last-bw", "1"}, {"--first-last-bw 1", "2..16"}},
               {"8 bits of a 16-bit float", {"--param-type", "float16", "--param-bw", "8"}, {"--param-bw 8", "float16"}},
               {"unknown number format", {"--output-type", "float61"}, {"float61", "float16"}},
               {"a percentile that drops half", {"--percentile", "49", "--quant-scheme", "percentile"}, {"--percentile 49"}},
               {"no calibration images", {"--calibration-samples", "0"}, {"--calibration-samples 0"}},
               {"an override for no layer", {"--config", w / "override.json"}, {"override.json", "/overrides/0/name", "layer9.0.conv1", "layer1.0.conv1"}},
               {"bits that are no number", {"--output-bw", "x"}, {"--output-bw"}},
               {"no threads", {"--threads", "0"}, {"--threads 0"}},
               {"negative batch", {"--batch", "-1"}, {"--batch -1"}},
               {"NaN learning rate", {"--lr", "nan"}, {"--lr"}},
               {"infinite learning rate", {"--lr", "inf"}, {"--lr"}},
               {"no such schedule", {"--schedule", "linear"}, {"--schedule", "linear", "cosine"}},
               {"steps of a schedule without", {"--schedule", "cosine", "--decay-steps", "2"}, {"--decay-steps", "--schedule cosine"}},
               {"momentum 1", {"--momentum", "1"}, {"--momentum"}},
               {"more than all of the loss", {"--distill", "1.5"}, {"--distill 1.5", "at most 1"}},
               {"a share that is no number", {"--distill", "nan"}, {"--distill"}},
               {"a temperature of nothing", {"--distill", "1", "--distill-temperature", "0"}, {"--distill-temperature 0", "0.1..100"}},
               {"a temperature without a teacher", {"--distill-temperature", "2"}, {"--distill-temperature 2", "--distill"}},
               {"a teacher and nothing to teach", {"--distill", "1", "--epochs", "0"}, {"--distill 1", "--epochs 0"}},
               {"average of more than all steps", {"--average-weights", "1.5"}, {"--average-weights", "1.5"}},
               {"average that is no number", {"--average-weights", "nan"}, {"--average-weights"}},
               {"more epochs than can be counted", {"--epochs", "9223372036854775807"}, {"--epochs 9223372036854775807", "at most"}},
               {"more digits than a number has", {"--decay-steps", "99999999999999999999"}, {"--decay-steps", "at most"}},
               {"an octal number", {"--eval-samples", "020"}, {"--eval-samples 020", "decimal"}},
               {"a hexadecimal number", {"--classes", "0x10"}, {"--classes 0x10", "decimal"}},
               {"a negative seed", {"--seed", "-1"}, {"--seed -1", "0 or more"}},
               {"a seed that cannot be counted", {"--seed", "18446744073709551616"}, {"--seed 18446744073709551616", "at most 18446744073709551615"}},
               {"steps of a rounding that is not learned", {"--adaround-iterations", "5"}, {"--adaround-iterations 5", "also give --adaround"}},
               {"images of a dump that is not written", {"--dump-images", "5"}, {"--dump-images 5", "also give --dump-layers"}},
               {"a percentile of a scheme without", {"--percentile", "99"}, {"--percentile 99", "range-learning-percentile"}},
               {"old ranges for equalized layers", {"--equalize", "yes", "--encodings", w / "config.json"}, {"--equalize yes", "--encodings"}},
               {"more classes than anyone has", {"--classes", "99999999999"}, {"--classes 99999999999"}},
               {"no data folder", {"--data", ""}, {"--data \"\"", "built-in"}},
               {"no output folder", {"--output", ""}, {"--output \"\""}},
               {"a prefix with a line break", {"--prefix", "a\nb"}, {"--prefix", "control character"}},
               {"a prefix that is too long", {"--prefix", std::string(240, 'a')}, {"--prefix", "240"}},
               {"statistics of batch norms that are folded", {"--reestimate-bn", "3"}, {"--reestimate-bn 3", "--batch-norm keep"}},
               {"unknown equalization", {"--equalize", "relu"}, {"--equalize", "relu6"}},
               {"equalization of batch norms left in", {"--equalize", "yes", "--batch-norm", "keep"}, {"--equalize yes", "--batch-norm keep"}},
               {"a dump into a file", {"--dump-layers", w / "file"}, {"--dump-layers", "file"}},
               {"a config that is a folder", {"--config", w / "data"}, {"--config", "folder"}},
               {"integers of 16 bits, batch norms left in", {"--batch-norm", "keep", "--output-bw", "16", "--int8-eval"}, {"a code is a byte"}},
               {"absent encodings", {"--encodings", w / "absent.encodings"}, {"--encodings", "no such file"}},
               {"encodings that are none", {"--encodings", w / "config.json"}, {"config.json", "version"}},
               {"unknown device", {"--device", "tpu"}, {"tpu", "cpu"}},
               {"a device without a number", {"--device", "cuda:"}, {"--device cuda:", "cuda:N"}},
               {"a device that is not there", {"--device", "cuda:97"}, {"--device cuda:97"}},
               {"unknown precision", {"--precision", "fp8"}, {"--precision", "fp8", "bf16"}},
               {"unknown encodings version", {"--encodings-version", "3.0.0"}, {"3.0.0", "2.0.0"}},
               {"unknown preprocessing", {"--preprocess", "kears"}, {"kears"}},
               {"a prefix with a folder", {"--prefix", "a/b"}, {"--prefix"}},
               {"an output folder below a file", {"--output", (w / "file") + "/out"}, {"file"}},
               {"an output folder that is a file", {"--output", w / "file"}, {"file"}},
               {"absent checkpoint", {"--resume", w / "absent.ckpt"}, {"absent.ckpt"}},
               {"a checkpoint that is none", {"--resume", w / "weights.safetensors"}, {"weights.safetensors"}},
           });
}

// A validation set that cannot be read: what is told was found before it was looked at.
TEST_CASE("options_that_do_not_fit_the_network_are_told_before_any_work") {
  const Workshop w;
  const std::string data = data_folder(w, "unread", frame(example_of(1)));
  spill(data + "/valid-0", frame("hello, world"));
  spill(w / "layer.json", R"({"defaults": {"ops": {"is_output_quantized": "True"}}, "overrides": [{"name": "layer9.0.conv1", "output_bitwidth": 4}]})");
  spill(w / "five.json", R"({"defaults": {"ops": {"is_output_quantized": "True"}}, "overrides": [{"name": "layer1.0.conv1", "output_bitwidth": 5}]})");
  spill(w / "other.encodings",
        R"({"version": "1.0.0", "activation_encodings": [{"name": "elsewhere", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": false, "scale": [0.5], "offset": [-3]}],
    "param_encodings": []})");
  spill(w / "four.encodings",
        R"({"version": "1.0.0", "activation_encodings": [{"name": "conv1", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 4, "is_sym": false, "scale": [0.5], "offset": [-3]}],
    "param_encodings": [{"name": "conv1.weight", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 4, "is_sym": true, "scale": [0.5], "offset": [-8]}]})");
  const auto row = [&](const char* what, const Arguments& arguments, std::vector<std::string> mentions) {
    return Bad{what, Arguments{"--data", data} + arguments, std::move(mentions)};
  };
  check(w, {
               row("the data itself", {}, {"unread/valid-0"}),
               row("a pattern that matches nothing", {"--config", w / "layer.json"}, {"layer.json", "layer9.0.conv1"}),
               row("ranges of another network", {"--encodings", w / "other.encodings"}, {"--encodings", "none of its 1 entries"}),
               row("ranges of other widths", {"--encodings", w / "four.encodings"}, {"conv1.weight: 4 bits in the file, 8 here"}),
               row("integers of 16 bits", {"--output-bw", "16", "--int8-eval"}, {"--int8-eval: ", "a code is a byte", "; and "}),
               row("3 bits in a format without", {"--encodings-version", "2.0.0", "--param-bw", "3"}, {"--encodings-version 2.0.0", "3 bits", "write 1.0.0"}),
               row("5 bits of an override", {"--encodings-version", "2.0.0", "--config", w / "five.json"}, {"--encodings-version 2.0.0", "5 bits"}),
           });
  Arguments unweighted = w.good("out") + Arguments{"--resume", "auto", "--data", data};
  unweighted.erase(std::find(unweighted.begin(), unweighted.end(), "--weights"), std::find(unweighted.begin(), unweighted.end(), "--weights") + 2);
  const Outcome nowhere = w.run(unweighted);
  CHECK(nowhere.code == 2);
  CHECK_CONTAINS(nowhere.err, "--resume auto: there is no checkpoint in ");
  const Outcome o = w.run(w.good("out") + Arguments{"--data", data, "--output-bw", "16", "--int8-eval"});
  CHECK(o.err.size() < 800);
}

TEST_CASE("devices_that_cannot_be_used") {
  const Workshop w;
  ::setenv("DETENT_CUDA_MODULE", DETENT_HOST_MODULE, 1);
  const auto with = [&](const char* variable, const char* value, const Bad& bad) {
    ::setenv(variable, value, 1);
    check(w, {bad});
    ::unsetenv(variable);
  };
  with("DETENT_FAKE_CUDA_DRIVER", "0", {"no driver", {"--device", "cuda"}, {"--device cuda", "no NVIDIA driver", "or use the cpu"}});
  with("DETENT_FAKE_CUDA_DRIVER", "12040", {"a driver that is too old", {"--device", "cuda:1"}, {"--device cuda:1", "supports CUDA 12.4", "needs 13.0"}});
  with("DETENT_FAKE_CUDA_DEVICES", "0", {"no GPU", {"--device", "cuda"}, {"--device cuda"}});
  with("DETENT_FAKE_CUDA_DEVICES", "2", {"a GPU that is not there", {"--device", "cuda:2"}, {"--device cuda:2"}});
  with("DETENT_FAKE_CUDA_NO_CODE", "1", {"a GPU there is no code for", {"--device", "cuda"}, {"no code", "-Ddevice_architectures"}});
  ::unsetenv("DETENT_CUDA_MODULE");
}

TEST_CASE("bad_weights") {
  const Workshop w;
  const std::string good = slurp(w / "weights.safetensors");
  spill(w / "cut", good.substr(0, good.size() / 2));
  std::string nan = good;
  const float bad = NAN;
  nan.replace(nan.size() - 4, 4, reinterpret_cast<const char*>(&bad), 4);
  spill(w / "nan", nan);
  spill(w / "w.pth", std::string("PK\x03\x04", 4) + std::string(64, '\0'));
  check(w, {
               {"no file", {"--weights", w / "none"}, {"none"}},
               {"cut", {"--weights", w / "cut"}, {"cut"}},
               {"another network", {"--arch", "resnet18", "--image-size", "32", "--classes", "10"}, {"weights.safetensors", "layer1.0.conv1.weight"}},
               {"another number of classes", {"--classes", "11"}, {"linear.weight", "[11,64]"}},
               {"pickled", {"--weights", w / "w.pth"}, {"w.pth", "never unpickled"}},
               {"a data file", {"--weights", (w / "data") + "/valid-00000-of-00001"}, {"valid-00000-of-00001"}},
               {"NaN", {"--weights", w / "nan"}, {"weights", "1 of ", "are not finite"}},
           });
}

TEST_CASE("bad_data") {
  const Workshop w;
  const std::string good = slurp((w / "data") + "/train-00000-of-00002");
  const std::string whole = frame(example_of(1)), second = std::to_string(whole.size());
  const auto twice = [&](const std::string& bytes) { return whole + bytes; };
  const auto flipped = [](std::string bytes, size_t at) {
    bytes[at] = static_cast<char>(bytes[at] ^ 4);
    return bytes;
  };
  std::string huge(8, '\0');
  huge[7] = 0x40;
  const uint32_t crc = masked_crc(crc32c(huge.data(), 8));
  huge.append(reinterpret_cast<const char*>(&crc), 4);
  std::string no_label = example_of(1);
  const size_t at = no_label.find("image/class/label");
  REQUIRE(at != std::string::npos);
  no_label[at + 16] = 'x';
  make_folders(w / "empty");
  make_folders(w / "train_only");
  spill((w / "train_only") + "/train-0", good);
  std::vector<Bad> rows = {
      {"no folder", {"--data", w / "none"}, {"none"}},
      {"empty folder", {"--data", w / "empty"}, {"empty", "train"}},
      {"no valid file", {"--data", w / "train_only"}, {"train_only", "valid"}},
      {"labels beyond the classes", {"--label-offset", "-5"}, {"label"}},
      {"labels below the classes", {"--label-offset", "9"}, {"label"}},
  };
  const auto row = [&](const char* what, const std::string& name, const std::string& train, std::vector<std::string> mentions) {
    mentions.push_back(mentions.empty() ? name : name + "/train-0");
    rows.push_back({what, {"--data", data_folder(w, name, train)}, mentions});
  };
  row("truncated record", "cut", twice(whole.substr(0, whole.size() - 100)), {second});
  row("flipped bit in the data", "flip_data", twice(flipped(whole, 500)), {second});
  row("flipped bit in the length", "flip_length", twice(flipped(whole, 0)), {second});
  row("huge length with a valid checksum", "huge", twice(huge + std::string(100, '\0')), {second});
  row("no tf.Example", "no_example", twice(frame("hello, world")), {second});
  row("missing feature", "no_label", twice(frame(no_label)), {second, "image/class/label"});
  row("JPEG cut in half", "half", twice(frame(example_of(2, true))), {second});
  row("label outside the classes", "label", twice(frame(example_of(11))), {second, "11"});
  row("an empty file", "nothing", "", {});
  row("random bytes", "random", slurp(w / "weights.safetensors").substr(5000, 3000), {});
  check(w, rows);
}

TEST_CASE("broken_training_records_are_skipped_on_request") {
  const Workshop w;
  std::string train = slurp((w / "data") + "/train-00000-of-00002");
  const std::string folder = data_folder(w, "half", train + frame(example_of(2, true)));
  const Arguments more{"--data", folder, "--max-steps", "4", "--eval-samples", "8"};
  const Outcome one = w.run(w.good("out") + more + Arguments{"--skip-bad-records", "1"});
  INFO(one.err);
  CHECK(one.code == 0);
  const std::string broken = data_folder(w, "broken", frame(example_of(2, true)) + frame(example_of(3, true)));
  const Outcome none = w.run(w.good("none") + Arguments{"--data", broken, "--eval-samples", "8", "--skip-bad-records", "9"});
  CHECK(none.code == 2);
  INFO(none.err);
  CHECK(none.err.find("--data " + broken + ": the 2 training records that were read are broken, all of them") != std::string::npos);
}
