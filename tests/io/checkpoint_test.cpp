// Checkpoints: the same bits back, and nothing touched by a file that is not intact.
#include "detent/io/checkpoint.h"

#include <functional>

#include "detent/core/bytes.h"
#include "detent/io/data/crc32c.h"
#include "detent/io/safetensors.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/tests/io/support.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::io;
using namespace detent::test;

namespace {

const Progress kProgress{.step = 5, .epoch = 1, .batch = 2, .options = "{\"a\": 1}", .report = "text \"quoted\"\n"};

// A network in the middle of quantized training.
struct Run {
  nn::Graph graph;
  std::unique_ptr<quant::QuantSim> sim;
  nn::Sgd sgd{{.learning_rate = 0.01f}};
  nn::Schedule schedule{.base = 0.01f};

  explicit Run(uint64_t seed, const quant::QuantSimOptions& options = {.scheme = quant::Scheme::range_learning_tf_enhanced}) : graph(small_network()) {
    randomize(graph, seed);
    nn::fold_batch_norms(graph);
    sim = std::make_unique<quant::QuantSim>(graph, options);
  }
  void calibrate() {
    sim->compute_encodings([&] { graph(random_tensor({4, 8, 8, 3}, 5)); });
  }
  void train(int from, int to) {
    nn::Trainer trainer(graph, sgd, schedule);
    for (int i = from; i < to; ++i) trainer.step(random_tensor({4, 8, 8, 3}, static_cast<uint64_t>(100 + i)), class_labels(4, 4));
  }
  void train_and_save(int steps, const std::string& path) {
    calibrate();
    train(0, steps);
    save_checkpoint(path, graph, sim.get(), sgd, kProgress);
  }
  // Everything that a checkpoint holds, as bytes.
  std::string fingerprint() {
    std::string all;
    const auto put = [&](const Tensor& t) { all.append(reinterpret_cast<const char*>(t.raw()), static_cast<size_t>(t.bytes())); };
    for (const auto& [name, t] : graph.state()) put(*t);
    for (const quant::Placement& p : sim->placements()) all += p.quantizer->save();
    for (const auto& [name, t] : sgd.state()) all += name, put(t);
    return all + std::to_string(sgd.steps_done());
  }
};

}  // namespace

TEST_CASE("checkpoint_goes_on_to_the_same_bits") {
  const TempFolder folder;
  Run a(1);
  a.train_and_save(5, folder / "a.ckpt");
  Run b(2);  // other weights, nothing calibrated
  const Progress p = load_checkpoint(folder / "a.ckpt", b.graph, b.sim.get(), b.sgd);
  CHECK(p.step == 5);
  CHECK(p.epoch == 1);
  CHECK(p.batch == 2);
  CHECK(p.options == kProgress.options);
  CHECK(p.report == kProgress.report);
  CHECK(read_progress(folder / "a.ckpt").step == 5);
  CHECK(a.fingerprint() == b.fingerprint());
  a.train(5, 9);
  b.train(5, 9);
  CHECK(a.fingerprint() == b.fingerprint());
  // The same run writes the same file.
  save_checkpoint(folder / "b.ckpt", b.graph, b.sim.get(), b.sgd, kProgress);
  save_checkpoint(folder / "a.ckpt", a.graph, a.sim.get(), a.sgd, kProgress);
  CHECK(slurp(folder / "a.ckpt") == slurp(folder / "b.ckpt"));
}

TEST_CASE("damaged_checkpoints_change_nothing") {
  const TempFolder folder;
  Run a(1);
  a.calibrate();
  a.train(0, 2);
  save_checkpoint(folder / "good.ckpt", a.graph, a.sim.get(), a.sgd, kProgress);
  const std::string good = slurp(folder / "good.ckpt");
  Run b(2);
  b.calibrate();
  const std::string before = b.fingerprint();
  const auto refused = [&](const std::string& bytes, size_t at) {
    spill(folder / "bad.ckpt", bytes);
    const std::string m = message_of([&] { load_checkpoint(folder / "bad.ckpt", b.graph, b.sim.get(), b.sgd); });
    CHECK_MESSAGE(m.find("bad.ckpt") != std::string::npos, "at byte " << at << ": '" << m << "'");
  };
  for (size_t n = 0; n < good.size(); n += 97) refused(good.substr(0, n), n);
  refused(good.substr(0, good.size() - 1), good.size() - 1);
  refused(good + '\0', good.size());
  for (size_t at = 0; at < good.size(); at += at < 200 ? 1 : 61) {
    std::string flipped = good;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << (at % 8)));
    refused(flipped, at);
  }
  CHECK(b.fingerprint() == before);
  spill(folder / "bad.ckpt", good);
  load_checkpoint(folder / "bad.ckpt", b.graph, b.sim.get(), b.sgd);
  CHECK(a.fingerprint() == b.fingerprint());
}

TEST_CASE("checkpoints_of_another_network_change_nothing") {
  const TempFolder folder;
  Run a(1);
  a.train_and_save(2, folder / "a.ckpt");
  const auto refuse = [&](Run& b) {
    b.calibrate();
    const std::string before = b.fingerprint();
    const std::string m = message_of([&] { load_checkpoint(folder / "a.ckpt", b.graph, b.sim.get(), b.sgd); });
    CHECK_MENTIONS(m, "quantizer");
    CHECK(b.fingerprint() == before);
  };
  Run per_channel(3, {.scheme = quant::Scheme::range_learning_tf_enhanced, .config = quant::default_config("integer")});
  refuse(per_channel);
  Run float_weights(3, {.param_bits = 32});
  refuse(float_weights);
  // Right quantizers, wrong weights: the quantizers come back too.
  Sections s = read_checkpoint_file(folder / "a.ckpt");
  s["weights"] = safetensors_bytes(std::vector<NamedTensor>{{"elsewhere", Tensor::zeros(Shape{1})}});
  write_checkpoint_file(folder / "a.ckpt", s);
  Run same(4);
  same.calibrate();
  const std::string before = same.fingerprint();
  CHECK_MENTIONS(message_of([&] { load_checkpoint(folder / "a.ckpt", same.graph, same.sim.get(), same.sgd); }), "elsewhere");
  CHECK(same.fingerprint() == before);
}

TEST_CASE("a_checkpoint_of_another_kind_of_optimizer_is_refused") {
  const TempFolder folder;
  Run a(1);
  a.train_and_save(2, folder / "a.ckpt");
  const std::string before = a.fingerprint();
  nn::Adam adam({.learning_rate = 0.01f});
  nn::Sgd plain({.momentum = 0.0f}), same({.momentum = 0.5f});
  CHECK_MENTIONS(message_of([&] { load_checkpoint(folder / "a.ckpt", a.graph, a.sim.get(), adam); }), "its optimizer is sgd with momentum, this one is adam");
  CHECK_MENTIONS(message_of([&] { load_checkpoint(folder / "a.ckpt", a.graph, a.sim.get(), plain); }), "this one is sgd;");
  CHECK(adam.steps_done() == 0);
  CHECK(a.fingerprint() == before);
  CHECK_NOTHROW(load_checkpoint(folder / "a.ckpt", a.graph, a.sim.get(), same));
  CHECK(same.steps_done() == 2);
}

TEST_CASE("sections_that_contradict_themselves_change_nothing") {
  const TempFolder folder;
  Run a(1), per_channel(1, {.scheme = quant::Scheme::range_learning_tf, .config = quant::default_config("integer")});
  a.calibrate();
  a.train(0, 2);
  per_channel.calibrate();
  const auto refused = [&](Run& run, const char* words, const std::function<void(Sections&)>& change) {
    save_checkpoint(folder / "a.ckpt", run.graph, run.sim.get(), run.sgd, kProgress);
    Sections s = read_checkpoint_file(folder / "a.ckpt");
    change(s);
    write_checkpoint_file(folder / "a.ckpt", s);
    const std::string before = run.fingerprint();
    CHECK_CONTAINS(message_of([&] { load_checkpoint(folder / "a.ckpt", run.graph, run.sim.get(), run.sgd); }), std::string(words));
    CHECK(run.fingerprint() == before);
  };
  const auto replace = [](std::string& s, const std::string& from, const std::string& to) {
    const size_t at = s.find(from);
    REQUIRE(at != std::string::npos);
    s.replace(at, from.size(), to);
  };
  for (const char* key : {"\"step\":", "\"epoch\":", "\"batch\":"}) {
    refused(a, "negative progress", [&](Sections& s) { replace(s["progress"], key, std::string(key) + "-"); });
  }
  refused(a, "section \"progress\": ", [&](Sections& s) { s["progress"] = "{}"; });
  refused(a, "section \"weights\" is missing", [&](Sections& s) { s.erase("weights"); });
  refused(a, "section \"optimizer\" has no step count", [&](Sections& s) { replace(s["optimizer"], "\"steps\"", "\"stops\""); });
  refused(a, "-2 steps done", [&](Sections& s) { s["optimizer"] = safetensors_bytes({}, {{"steps", "-2"}}); });
  refused(a, "optimizer state \"conv1.weight/momentum\" is", [&](Sections& s) { s["optimizer"] = safetensors_bytes(std::vector<NamedTensor>{{"conv1.weight/momentum", Tensor::zeros({1})}}, {{"steps", "2"}}); });
  // As many ranges as another network has channels.
  refused(per_channel, "ranges, this network", [&](Sections& s) {
    ByteWriter out;
    out.put<uint64_t>(per_channel.sim->placements().size());
    for (const quant::Placement& p : per_channel.sim->placements()) {
      quant::Quantizer narrow(p.name, p.quantizer->spec());
      if (p.parameter) narrow.encode(Tensor::full({2, 3, 3, 2}, 0.5f));
      out.put_string(p.name);
      out.put_string((p.parameter ? narrow : *p.quantizer).save());
    }
    s["quantizers"] = out.take();
  });
}

TEST_CASE("a_section_that_comes_twice_is_refused") {
  const TempFolder folder;
  write_checkpoint_file(folder / "a.ckpt", {{"a", "payload"}, {"b", "payload"}});
  // With every checksum right: the second section is the first one again.
  const std::string good = slurp(folder / "a.ckpt"), head = good.substr(8, 8), section = good.substr(16, 4 + 1 + 8 + 7 + 4);
  uint32_t all = crc32c(head.data(), head.size());
  for (int i = 0; i < 2; ++i) {
    all = crc32c(section.data() + 4, 1, all);
    all = crc32c(section.data() + 5, 8, all);
    all = crc32c(section.data() + section.size() - 4, 4, all);
  }
  const uint32_t tail = masked_crc(all);
  spill(folder / "a.ckpt", good.substr(0, 16) + section + section + std::string(reinterpret_cast<const char*>(&tail), 4));
  CHECK_CONTAINS(message_of([&] { read_checkpoint_file(folder / "a.ckpt"); }), "section \"a\" appears twice");
}

TEST_CASE("the_newest_good_checkpoint") {
  const TempFolder folder;
  CHECK(newest_good_checkpoint(folder / "absent", "m").empty());
  Run a(1);
  a.calibrate();
  for (const int64_t step : {9, 10, 100}) {
    Progress p = kProgress;
    p.step = step;
    save_checkpoint(folder / checkpoint_name("m", step), a.graph, a.sim.get(), a.sgd, p);
  }
  for (const char* name : {"m.step-x.ckpt", "m.step-.ckpt", "n.step-500.ckpt", "m.step-700.ckpt.part", "m.step--5.ckpt.x"}) spill(folder / name, "none");
  CHECK(list_checkpoints(folder.path(), "m") == std::vector<std::string>{folder / "m.step-100.ckpt", folder / "m.step-10.ckpt", folder / "m.step-9.ckpt"});
  CHECK(newest_good_checkpoint(folder.path(), "m") == folder / "m.step-100.ckpt");
  spill(folder / "m.step-100.ckpt", slurp(folder / "m.step-100.ckpt").substr(0, 1000));
  spill(folder / "m.step-200.ckpt", "");
  std::vector<std::string> skipped;
  CHECK(newest_good_checkpoint(folder.path(), "m", &skipped) == folder / "m.step-10.ckpt");
  REQUIRE(skipped.size() == 2);
  CHECK_CONTAINS(skipped[0], "step-200");
  CHECK_CONTAINS(skipped[1], "step-100");
  prune_checkpoints(folder.path(), "m", 2, 10);  // what is later is another run's
  CHECK(list_checkpoints(folder.path(), "m").size() == 4);
  prune_checkpoints(folder.path(), "m", 1, 100);
  CHECK(list_checkpoints(folder.path(), "m") == std::vector<std::string>{folder / "m.step-200.ckpt", folder / "m.step-100.ckpt"});
  CHECK(slurp(folder / "n.step-500.ckpt") == "none");
}
