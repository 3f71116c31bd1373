// Fails the k-th operator new (and, in a second sweep, every one from the k-th on) of a training step, of each reader and of a whole small run:
// std::bad_alloc or a named error comes out, nothing leaks, nothing is left half-done. A sample of the k, and no code that goes through nlohmann-json or Protocol
// Buffers: neither survives a refusal (failing_new.cpp). DETENT_FULL_SWEEP=1 (scripts/fault_sweep, on a release build): every k of everything, their own requests spared.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <new>

#include "detent/core/allocator.h"
#include "detent/core/error.h"
#include "detent/tests/fuzz/targets.h"
#include "detent/tests/io/support.h"
#include "detent/tests/robust/failing_new.h"
#include "detent/tests/robust/tiny_run.h"

using namespace detent;
using namespace detent::test;

namespace {

using Mode = FailingNew::Mode;

/// What came out of a disturbed call.
enum class Outcome { done, error, bad_alloc, other };

template <class Fn>
Outcome outcome_of(Mode mode, int64_t at, Fn&& fn) {
  const FailingNew failing(mode, at);
  try {
    fn();
    FailingNew::stop();
    return Outcome::done;
  } catch (const Error& e) {
    FailingNew::stop();
    return e.what()[0] ? Outcome::error : Outcome::other;
  } catch (const std::bad_alloc&) {
    FailingNew::stop();
    return Outcome::bad_alloc;
  } catch (...) {
    FailingNew::stop();
    return Outcome::other;
  }
}

struct Counts {
  int64_t calls = 0, swept = 0, done = 0, errors = 0, refused = 0, spared = 0;
  void add(Outcome o) {
    ++swept;
    spared += FailingNew::spared();
    done += o == Outcome::done;
    errors += o == Outcome::error;
    refused += o == Outcome::bad_alloc;
  }
  std::string told() const { return text(calls, " calls of operator new, ", swept, " swept: ", refused, " std::bad_alloc, ", errors, " named errors, ", done, " without effect", spared ? text(", ", spared, " requests inside nlohmann-json and Protocol Buffers spared") : std::string()); }
};

bool full_sweep() {
  const char* full = std::getenv("DETENT_FULL_SWEEP");
  return full && *full == '1';
}

int64_t stride_for(int64_t calls, int64_t most) { return full_sweep() ? 1 : std::max<int64_t>(1, (calls + most - 1) / most); }

bool without_foreign_code(std::string_view target) { return target == "tfrecord" || target == "jpeg" || target == "estimator" || target == "keras_h5"; }

int64_t calls_of(const std::function<void()>& fn) {
  const FailingNew counting(Mode::count, 0);
  fn();
  return FailingNew::calls();
}

struct Data {
  Tensor images = Tensor({kTinyBatch, kTinySize, kTinySize, 3}, DType::f32);
  Tensor labels = Tensor({kTinyBatch}, DType::i64);
  Data() {
    Rng rng(3);
    for (int64_t i = 0; i < images.elements(); ++i) images.data<float>()[i] = rng.uniform(-1.0f, 1.0f);
    for (int64_t i = 0; i < kTinyBatch; ++i) labels.data<int64_t>()[i] = i;
  }
};

struct Step {
  nn::Graph net = tiny_network();
  std::unique_ptr<quant::QuantSim> sim;
  nn::Adam adam;
  std::unique_ptr<nn::Trainer> trainer;
  Step(bool quantized, const Data& data) : adam({.learning_rate = 0.01f}) {
    nn::fold_batch_norms(net);
    if (quantized) {
      sim = std::make_unique<quant::QuantSim>(net);
      sim->compute_encodings([&] { net(data.images); });
    }
    trainer = std::make_unique<nn::Trainer>(net, adam, nn::Schedule{.base = 0.01f});
  }
  std::vector<float> parameters() {
    std::vector<float> all;
    for (nn::Parameter* p : net.parameters()) {
      for (const float v : p->value.to_vector<float>()) all.push_back(v);
    }
    return all;
  }
};

std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  if (!std::filesystem::exists(folder)) return files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files[entry.path().filename().string()] = slurp(entry.path().string());
  return files;
}

size_t open_descriptors() {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++n;
  return n;
}

}  // namespace

TEST_CASE("new sweep: a training step without memory changes nothing, leaks nothing and can be repeated") {
  set_num_threads(1);
  const Data data;
  for (const bool quantized : {false, true}) {
    Counts counts;
    std::vector<float> expected;
    {
      Step step(quantized, data);
      counts.calls = calls_of([&] { step.trainer->step(data.images, data.labels); });
      expected = step.parameters();
    }
    CHECK(counts.calls > 100);
    for (const Mode mode : {Mode::once, Mode::lasting}) {
      for (int64_t k = 0; k < counts.calls; k += stride_for(counts.calls, 400)) {
        INFO("call ", k, std::string(mode == Mode::once ? " fails" : " and those behind it fail"), std::string(quantized ? ", quantized" : ""));
        const int64_t live = host_allocator().stats().live_bytes, blocks = new_blocks();
        {
          Step step(quantized, data);
          const std::vector<float> before = step.parameters();
          const Outcome o = outcome_of(mode, k, [&] { step.trainer->step(data.images, data.labels); });
          counts.add(o);
          CHECK(o != Outcome::other);
          if (o != Outcome::done) {
            CHECK(step.parameters() == before);
            step.trainer->step(data.images, data.labels);
          }
          CHECK(step.parameters() == expected);
        }
        CHECK(host_allocator().stats().live_bytes == live);
        host_allocator().trim();
        CHECK(new_blocks() <= blocks);
      }
    }
    MESSAGE(std::string(quantized ? "quantized" : "float") << " step: " << counts.told());
    CHECK(counts.refused > 100);
  }
}

// The fuzz targets hold their own promises: a checkpoint that cannot be loaded changes nothing, what was read can be written.
TEST_CASE("new sweep: a checkpoint that is loaded without memory changes nothing") {
  set_num_threads(1);
  const Data data;
  const TempFolder folder;
  const std::string path = folder / "early.ckpt";
  Step step(true, data);
  const auto state = [&] {
    std::string s;
    for (const auto& [name, t] : step.net.state()) s.append(static_cast<const char*>(t->raw()), static_cast<size_t>(t->bytes()));
    for (const quant::Placement& p : step.sim->placements()) s += p.quantizer->save();
    for (const auto& [name, t] : step.adam.state()) s += name + std::string(static_cast<const char*>(t.raw()), static_cast<size_t>(t.bytes()));
    return s + std::to_string(step.adam.steps_done());
  };
  const auto load = [&] { io::load_checkpoint(path, step.net, step.sim.get(), step.adam); };
  step.trainer->step(data.images, data.labels);
  io::save_checkpoint(path, step.net, step.sim.get(), step.adam, {.step = 1, .epoch = 0, .batch = 1, .options = "{}", .report = "{}"});
  const std::string early = state();
  step.trainer->step(data.images, data.labels);
  const std::string late = state();
  REQUIRE(early != late);
  Counts counts;
  counts.calls = calls_of(load);
  CHECK((state() == early));
  // What is loaded is parsed first: the end of it is ours.
  for (int64_t k = full_sweep() ? 0 : counts.calls - 100; k < counts.calls; ++k) {
    INFO("call ", k, " of ", counts.calls);
    step.trainer->step(data.images, data.labels);
    REQUIRE((state() == late));
    const Outcome o = outcome_of(Mode::once, k, load);
    counts.add(o);
    CHECK(o != Outcome::other);
    CHECK((state() == (o == Outcome::done ? early : late)));
    load();
    CHECK((state() == early));
  }
  MESSAGE("loading a checkpoint: " << counts.told());
  CHECK(counts.refused > 50);
}

TEST_CASE("new sweep: readers without memory throw, and leak nothing") {
  set_num_threads(1);
  for (const fuzz::Target& t : fuzz::targets()) {
    if (!full_sweep() && !without_foreign_code(t.name)) continue;
    const std::string folder = std::string(DETENT_SOURCE_ROOT "/tests/fuzz/corpus/") + t.name;
    Counts counts;
    for (const std::string& name : list_folder(folder)) {
      const std::string seed = read_file(join_path(folder, name));
      const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(seed.data()), seed.size());
      const auto undisturbed = [&] {
        try {
          t.run(bytes);
        } catch (const Error&) {  // a seed of a finding
        }
      };
      undisturbed();  // what a target keeps is made by its first run
      const int64_t calls = calls_of(undisturbed);
      counts.calls += calls;
      for (const Mode mode : {Mode::once, Mode::lasting}) {
        for (int64_t k = 0; k < calls; k += stride_for(calls, 60)) {
          INFO(std::string(t.name), " ", name, ": call ", k, std::string(mode == Mode::once ? " fails" : " and those behind it fail"));
          const int64_t live = host_allocator().stats().live_bytes, blocks = new_blocks();
          const Outcome o = outcome_of(mode, k, [&] { t.run(bytes); });
          counts.add(o);
          CHECK(o != Outcome::other);
          // As if nothing had been; a network that a target keeps may hold the gradients of a step that was cut short until the next one.
          undisturbed();
          CHECK(host_allocator().stats().live_bytes == live);
          CHECK(new_blocks() <= blocks + 16);  // the allocator's lists of free blocks may grow
        }
      }
    }
    MESSAGE(std::string(t.name) << ": " << counts.told());
    CHECK(counts.refused + counts.spared >= counts.swept / 2);
  }
}

TEST_CASE("new sweep: a run without memory leaves no half-written file, no descriptor and no memory behind") {
  if (!full_sweep()) return;  // its files are JSON and ONNX
  set_num_threads(1);
  const TempFolder data, work;
  write_tiny_data(data.path());
  const std::string output = work / "out";
  const auto run = [&] { TinyRun(data.path(), output).run(); };
  // The contents that a finished writer leaves under each name, those of checkpoints that are pruned later too.
  std::map<std::string, std::string> whole;
  struct Keep final : FileSystem {
    std::map<std::string, std::string>& files;
    explicit Keep(std::map<std::string, std::string>& f) : files(f) {}
    int rename(const std::string& from, const std::string& to) override {
      files[std::filesystem::path(to).filename().string()] = slurp(from);
      return FileSystem::rename(from, to);
    }
  };
  {
    const UseFileSystem use(std::make_unique<Keep>(whole));
    run();
  }
  Counts counts;
  std::filesystem::remove_all(output);
  counts.calls = calls_of(run);
  for (const Mode mode : {Mode::once, Mode::lasting}) {
    for (int64_t k = 0; k < counts.calls; k += stride_for(counts.calls, 150)) {
      INFO("call ", k, std::string(mode == Mode::once ? " fails" : " and those behind it fail"));
      std::filesystem::remove_all(output);
      const int64_t live = host_allocator().stats().live_bytes;
      const size_t descriptors = open_descriptors();
      const Outcome o = outcome_of(mode, k, run);
      counts.add(o);
      CHECK(o != Outcome::other);
      CHECK(host_allocator().stats().live_bytes == live);
      CHECK(open_descriptors() == descriptors);
      for (const auto& [name, content] : files_of(output)) {
        const std::string file = name;
        if (file != "m.log") CHECK_MESSAGE((whole.contains(file) && whole.at(file) == content), file << " is half-written");
      }
      if (k % 8 == 0) {
        // A new process goes on from there to the same results.
        run();
        const auto files = files_of(output);
        for (const char* name : {"m.safetensors", "m.encodings", "m.onnx", "m.qdq.onnx"}) CHECK_MESSAGE(files.at(name) == whole.at(name), std::string(name) << " differs after going on");
      }
    }
  }
  MESSAGE("a run: " << counts.told());
  CHECK(counts.refused > 100);
}
