// What an embedder relies on: two networks trained in two threads at once, a log of the caller's own, and a library that does not print.
#include <doctest/doctest.h>

#include <filesystem>
#include <regex>
#include <sstream>
#include <thread>

#include "detent/tests/io/support.h"
#include "detent/tests/robust/tiny_run.h"

using namespace detent;
using namespace detent::test;

namespace {

std::vector<float> trained(uint64_t seed) {
  nn::Graph net = tiny_network(seed);
  nn::fold_batch_norms(net);
  quant::QuantSim sim(net);
  Tensor images({kTinyBatch, kTinySize, kTinySize, 3}, DType::f32);
  Rng rng(seed);
  for (int64_t i = 0; i < images.elements(); ++i) images.data<float>()[i] = rng.uniform(-1.0f, 1.0f);
  const Tensor labels = Tensor::from<int64_t>({kTinyBatch}, std::vector<int64_t>{0, 1, 2, 3});
  sim.compute_encodings([&] { net(images); });
  nn::Sgd sgd({.learning_rate = 0.05f});
  nn::Trainer trainer(net, sgd, {.base = 0.05f});
  std::vector<float> v;
  for (int i = 0; i < 10; ++i) v.push_back(trainer.step(images, labels).loss);
  for (nn::Parameter* p : net.parameters()) {
    for (const float x : p->value.to_vector<float>()) v.push_back(x);
  }
  return v;
}

// Code without comments and string literals.
std::string bare(const std::string& code) { return std::regex_replace(code, std::regex(R"(//[^\n]*|/\*[^]*?\*/|"(\\.|[^"\\\n])*")"), ""); }

std::vector<std::filesystem::path> library_files(const std::vector<std::string>& suffixes) {
  std::vector<std::filesystem::path> files;
  for (const char* folder : {"core", "autograd", "nn", "quant", "io", "backends"}) {
    for (const auto& e : std::filesystem::recursive_directory_iterator(std::filesystem::path(DETENT_SOURCE_ROOT) / folder)) {
      for (const std::string& s : suffixes) {
        if (e.path().extension() == s) files.push_back(e.path());
      }
    }
  }
  return files;
}

}  // namespace

TEST_CASE("two graphs and two tapes in concurrent threads give the bits they give alone") {
  const std::vector<float> first = trained(1), second = trained(2);
  CHECK(first != second);
  for (int round = 0; round < 5; ++round) {
    std::vector<float> a, b;
    std::thread other([&] { b = trained(2); });
    a = trained(1);
    other.join();
    CHECK(a == first);
    CHECK(b == second);
  }
}

TEST_CASE("records left out are told to the caller's log and to nobody else") {
  const TempFolder dir;
  write_tiny_data(dir.path());
  std::string file = slurp(dir / "train-00000-of-00002");
  file[40] = static_cast<char>(file[40] ^ 1);
  spill(dir / "train-00000-of-00002", file);
  std::vector<std::string> lines;
  const auto set = std::make_shared<io::TfRecordDataset>(dir.path(), "train", io::TfRecordOptions{.skip_bad_records = 1, .log = [&](const std::string& line) { lines.push_back(line); }});
  io::Loader loader(set, {.batch = 4, .preprocess = io::Preprocess::cifar, .image_size = kTinySize, .classes = 10, .threads = 0});
  int64_t images = 0;
  for (const io::Batch& b : loader) images += b.images.dim(0);
  CHECK(images == 11);
  REQUIRE(lines.size() == 1);
  CHECK_CONTAINS(lines[0], "train-00000-of-00002: record at offset 0");
}

TEST_CASE("the library prints nothing and does not end the process") {
  const std::regex forbidden(R"(\b(std::)?(printf|fprintf|vprintf|puts|fputs|putchar|perror|abort|_?exit|quick_exit|terminate)\s*\(|\bstd::(cout|cerr|clog)\b|\bstd(out|err)\b|\bassert\s*\()");
  int64_t files = 0;
  for (const auto& path : library_files({".h", ".cpp", ".cu", ".cuh", ".inc"})) {
    const std::string code = bare(slurp(path.string()));
    std::smatch m;
    const bool found = std::regex_search(code, m, forbidden);
    CHECK_MESSAGE(!found, path.string() << ": " << (found ? m.str() : ""));
    ++files;
  }
  CHECK(files > 100);
  // The pattern itself works.
  CHECK(std::regex_search(std::string("std::fprintf(stderr"), forbidden));
  CHECK_FALSE(std::regex_search(bare("// abort()\nf(\"printf(\");"), forbidden));
}

TEST_CASE("every installed header says whether threads may share what it declares") {
  const std::string build = slurp(DETENT_SOURCE_ROOT "/meson.build");
  const size_t begin = build.find("install_headers(files("), end = build.find("subdir:", begin);
  REQUIRE(end != std::string::npos);
  const std::string block = build.substr(begin, end - begin);
  const std::regex name("'([^']+\\.h)'"), said("[Tt]hread|Stateless|Plain data|Constants");
  int64_t headers = 0;
  for (std::sregex_iterator it(block.begin(), block.end(), name), last; it != last; ++it) {
    std::istringstream file(slurp(DETENT_SOURCE_ROOT "/" + (*it)[1].str()));
    std::string comment, line;
    while (std::getline(file, line) && line.starts_with("//")) comment += line + "\n";
    CHECK_MESSAGE(std::regex_search(comment, said), (*it)[1].str() << " does not say so in its opening comment");
    ++headers;
  }
  CHECK(headers > 40);
}
