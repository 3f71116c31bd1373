#include "detent/tests/fuzz/targets.h"

#include <cstdlib>
#include <cstring>

#include "detent/core/error.h"
#include "detent/core/parallel.h"
#include "detent/io/data/example.h"
#include "detent/io/data/jpeg.h"
#include "detent/io/data/preprocess.h"
#include "detent/io/data/tfrecord.h"
#include "detent/io/encodings.h"
#include "detent/io/keras_h5.h"
#include "detent/io/onnx/export.h"
#include "detent/io/onnx/import.h"
#include "detent/io/weights.h"
#include "detent/quant/config.h"
#include "detent/quant/estimators/estimator.h"
#include "detent/tests/fuzz/memory_files.h"
#include "detent/tests/robust/tiny_run.h"

namespace detent::fuzz {
namespace {

using Bytes = std::span<const uint8_t>;

std::string_view chars(Bytes b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

// A broken promise is a finding: abort() is what the fuzzer and the tests both see.
void promise(bool holds) {
  if (!holds) std::abort();
}

void tfrecord(Bytes in) {
  std::string file(chars(in));
  const UseMemoryFiles use(file);
  const RandomAccessFile f("fuzz");
  const io::TfRecordIndex index = io::index_tfrecord(f);
  promise(index.offsets.size() <= in.size() / 16 + 1);
  std::vector<uint8_t> scratch;
  std::span<const uint8_t> record;
  std::string broken = index.broken_frame.value_or("");
  for (int64_t i = 0; i < index.size(); ++i) {
    const auto begin = static_cast<int64_t>(index.offsets[static_cast<size_t>(i)]), end = static_cast<int64_t>(index.offsets[static_cast<size_t>(i) + 1]);
    try {
      promise(io::read_tfrecord(f, begin, scratch) == end);
      io::read_tfrecord(f, begin, end, scratch, record);
      promise(static_cast<int64_t>(record.size()) == end - begin - io::kTfRecordHeaderBytes - io::kTfRecordFooterBytes);
    } catch (const io::BadRecord& e) {
      broken = e.what();
    }
  }
  DETENT_CHECK(broken.empty(), broken);
}

void example(Bytes in) {
  const io::Example e = io::parse_example(in, "fuzz");
  promise(e.encoded.size() <= in.size());
}

void jpeg(Bytes in) {
  io::Image image;
  io::decode_jpeg(in, "fuzz", image);
  promise(static_cast<int64_t>(image.pixels.size()) == image.height * image.width * 3 && image.height > 0 && image.width > 0);
  // On to the network's input, at a size that keeps it quick.
  std::vector<float> out(16 * 16 * 3);
  io::PreprocessScratch scratch;
  for (const auto kind : {io::Preprocess::keras, io::Preprocess::torchvision, io::Preprocess::cifar}) {
    if (image.height * image.width > (1 << 20)) break;
    Rng rng(image.height);
    io::Preprocessor(kind, 16).run(image, out.data(), &rng, scratch);
  }
}

void safetensors(Bytes in) {
  const io::SafeTensors a = io::parse_safetensors(in, io::TensorTypes::nearest, "fuzz");
  // What was read can be written, and reads back the same.
  const std::string bytes = io::safetensors_bytes(a.tensors, a.metadata);
  const io::SafeTensors b = io::parse_safetensors({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, io::TensorTypes::nearest, "fuzz");
  promise(b.tensors.size() == a.tensors.size() && b.metadata == a.metadata);
  for (const io::NamedTensor& t : a.tensors) {
    const Tensor* same = b.find(t.name);
    promise(same && same->shape() == t.tensor.shape() && same->dtype() == t.tensor.dtype() && (t.tensor.bytes() == 0 || std::memcmp(same->raw(), t.tensor.raw(), static_cast<size_t>(t.tensor.bytes())) == 0));
  }
  io::parse_safetensors(in, io::TensorTypes::f32, "fuzz");
}

void encodings(Bytes in) {
  const quant::EncodingMap map = io::read_encodings(chars(in), "fuzz");
  for (const std::string& version : io::encodings_versions()) {
    std::string text_;
    try {
      text_ = io::write_encodings(map, version);
    } catch (const Error&) {
      continue;  // a grid this version has no words for
    }
    io::read_encodings(text_, "fuzz, written again");
  }
}

void config(Bytes in) {
  const quant::QuantConfig c = quant::parse_config(chars(in), "fuzz");
  for (const char* op : {"Conv", "Gemm", "Relu", "Add"}) {
    static_cast<void>(c.quantizes_output(op) + c.quantizes_input(op) + c.per_channel_params(op) + c.quantizes_param(op, "weight") + c.symmetric_param(op, "bias"));
  }
  static_cast<void>(c.override_for("layer1.0.conv1"));
}

std::unique_ptr<quant::RangeEstimator> estimator_of_kind(size_t kind) {
  constexpr quant::Scheme kSchemes[] = {quant::Scheme::tf, quant::Scheme::tf_enhanced, quant::Scheme::percentile, quant::Scheme::mse, quant::Scheme::moving_average};
  quant::EstimatorOptions options;
  options.bins = 64;
  return quant::make_estimator(quant::estimator_of(kSchemes[kind % std::size(kSchemes)]), options);
}

// Calibration statistics out of a checkpoint; the first byte chooses whose.
void estimator(Bytes in) {
  if (in.empty()) return;
  const auto e = estimator_of_kind(in[0]);
  try {
    e->load(chars(in.subspan(1)));
  } catch (const Error&) {
    promise(!e->seen());
    throw;
  }
  promise(e->save() == chars(in.subspan(1)));
  if (!e->seen()) return;
  e->ranges(GridSpec{});
  if (e->channels() > 16) return;
  e->observe(Tensor::full({4, e->channels()}, 0.25f), ChannelView{4, e->channels(), 1});
  e->ranges(GridSpec{});
}

// A small network in training: what a checkpoint is loaded into.
struct Trained {
  nn::Graph net = test::tiny_network();
  std::unique_ptr<quant::QuantSim> sim;
  nn::Sgd sgd{{.learning_rate = 0.01f}};
  Tensor images = Tensor::full({2, test::kTinySize, test::kTinySize, 3}, 0.5f);
  Tensor labels = Tensor::from<int64_t>({2}, std::vector<int64_t>{0, 1});

  Trained() {
    set_num_threads(1);
    nn::fold_batch_norms(net);
    sim = std::make_unique<quant::QuantSim>(net, quant::QuantSimOptions{.scheme = quant::Scheme::range_learning_tf, .config = quant::default_config("per_channel_default")});
    sim->compute_encodings([&] { net(images); });
    step();
  }
  void step() {
    try {
      nn::Trainer trainer(net, sgd, {.base = 0.01f});
      trainer.step(images, labels);
    } catch (const Error&) {
      // A checkpoint may hold numbers that no training survives.
    }
  }
  std::string state() {
    std::string s;
    for (const auto& [name, t] : net.state()) s.append(static_cast<const char*>(t->raw()), static_cast<size_t>(t->bytes()));
    for (const quant::Placement& p : sim->placements()) s += p.quantizer->save();
    return s;
  }
  std::string checkpoint() {
    std::string bytes;
    const UseMemoryFiles use(bytes);
    io::save_checkpoint("fuzz", net, sim.get(), sgd, {.step = 1, .epoch = 0, .batch = 1, .options = "{}", .report = "{}"});
    return bytes;
  }
};

Trained& trained() {
  static Trained& t = *new Trained;
  return t;
}

// A checkpoint that cannot be loaded changes nothing; one that can is used for a step.
void load(std::string bytes) {
  Trained& t = trained();
  static const std::string good = t.checkpoint();
  static const std::string before = t.state();
  static bool changed = false;  // left so when there was no memory to go back with
  const auto go_back = [&] {
    std::string again = good;
    const UseMemoryFiles use(again);
    io::load_checkpoint("fuzz", t.net, t.sim.get(), t.sgd);
    promise(t.state() == before);
    changed = false;
  };
  if (changed) go_back();
  changed = true;
  try {
    const UseMemoryFiles use(bytes);
    io::load_checkpoint("fuzz", t.net, t.sim.get(), t.sgd);
  } catch (...) {
    promise(t.state() == before);
    changed = false;
    throw;
  }
  t.step();
  go_back();
}

void checkpoint(Bytes in) { load(std::string(chars(in))); }

// The same behind the checksums, which no fuzzer gets past: sections as `name NUL u32 length payload`, framed here.
void checkpoint_sections(Bytes in) {
  io::Sections sections;
  std::string_view rest = chars(in);
  while (!rest.empty()) {
    const size_t end = rest.find('\0');
    if (end == std::string_view::npos || rest.size() - end - 1 < 4) break;
    uint32_t size;
    std::memcpy(&size, rest.data() + end + 1, 4);
    const std::string_view payload = rest.substr(end + 5, size);
    sections[std::string(rest.substr(0, end))] = payload;
    rest.remove_prefix(end + 5 + payload.size());
  }
  std::string bytes;
  {
    const UseMemoryFiles use(bytes);
    io::write_checkpoint_file("fuzz", sections);
  }
  load(std::move(bytes));
}

// Whatever load_weights recognises by content.
void weights(Bytes in) {
  static nn::Graph& net = *new nn::Graph(test::tiny_network());
  std::string file(chars(in));
  const UseMemoryFiles use(file);
  io::load_weights(net, "fuzz");
}

// A network read from anywhere can be run, as long as it is small: what its arithmetic costs at most is elements x parameters.
void run_once(nn::Graph& g) {
  double elements = 0.0;
  for (int i = 0; i < g.value_count(); ++i) elements += static_cast<double>(g.value({i}).shape.elements());
  if (elements * static_cast<double>(g.parameter_count() + 1) > 1e8) return;
  const NoGrad no_grad;
  std::vector<Var> inputs;
  for (const nn::Value v : g.inputs()) inputs.emplace_back(Tensor::full(g.value(v).shape, 0.5f));
  const std::vector<Var> outputs = g.forward({}, inputs);
  promise(outputs.size() == g.outputs().size());
  for (size_t i = 0; i < outputs.size(); ++i) promise(outputs[i].dense().shape() == g.value(g.outputs()[i]).shape);
}

// External data is found in a file that holds the input's bytes.
void onnx(Bytes in) {
  std::string file(chars(in));
  const UseMemoryFiles use(file);
  io::OnnxNetwork net = io::parse_onnx(chars(in), "fuzz", "folder", {.image_size = 8});
  for (const quant::Encoding& e : net.encodings.activations) promise(!e.grids.empty() && is_valid(e.grids[0]));
  run_once(net.graph);
  io::onnx_bytes(net.graph);
}

void keras_h5(Bytes in) {
  for (const io::NamedTensor& t : io::parse_keras_h5(chars(in), "fuzz")) promise(!t.name.empty() && t.tensor.defined());
}

// Of an input's size: JSON trees and protobuf objects take some ten times their text, a JPEG byte may stand for a thousand pixels, checkpoints are held three times.
constexpr Target kTargets[] = {
    {"tfrecord", tfrecord, 8},   {"example", example, 64},         {"jpeg", jpeg, 8192},
    {"safetensors", safetensors, 128}, {"encodings", encodings, 256},    {"config", config, 256},
    {"estimator", estimator, 128},     {"checkpoint", checkpoint, 128},   {"checkpoint_sections", checkpoint_sections, 128}, {"weights", weights, 128},
    {"onnx", onnx, 512},               {"keras_h5", keras_h5, 128},
};

using Seeds = std::vector<std::pair<std::string, std::string>>;

std::string small_jpeg() { return io::encode_jpeg(io::synthetic_image(3, 1, 0, 16, 0.1f), 80); }

Seeds weight_seeds() {
  nn::Graph net = test::tiny_network();
  const std::vector<io::NamedTensor> tensors = io::weights_of(net);
  return {{"tiny", io::safetensors_bytes(tensors, {{"format", "pt"}})}};
}

// A quantized network in both forms, and the goldens: every operator that is read.
Seeds onnx_seeds() {
  Seeds all = {{"tiny.onnx", io::onnx_bytes(trained().net)}, {"tiny.qdq.onnx", io::onnx_bytes(trained().net, io::OnnxQuantization::qdq)}};
  for (const char* name : {"activations", "images_last", "quantized", "shuffle", "spread", "windows"}) all.emplace_back(text(name, ".onnx"), read_file(text(DETENT_SOURCE_ROOT "/tests/golden/onnx/", name, ".onnx")));
  return all;
}

Seeds sections_seeds() {
  std::string bytes = trained().checkpoint(), out;
  const UseMemoryFiles use(bytes);
  for (const auto& [name, payload] : io::read_checkpoint_file("seed")) {
    const auto size = static_cast<uint32_t>(payload.size());
    out += name + '\0' + std::string(reinterpret_cast<const char*>(&size), 4) + payload;
  }
  return {{"tiny", out}};
}

}  // namespace

std::span<const Target> targets() { return kTargets; }

const Target& target(std::string_view name) {
  std::string known;
  for (const Target& t : kTargets) {
    if (t.name == name) return t;
    known += text(" ", t.name);
  }
  fail("no fuzz target \"", name, "\"; there are", known);
}

Seeds seeds(std::string_view name) {
  const std::string jpeg_file = small_jpeg(), record = io::serialize_example(jpeg_file, 4, 16, 16);
  if (name == "tfrecord") {
    std::string one, two;
    io::append_tfrecord(one, "");
    io::append_tfrecord(two, record);
    io::append_tfrecord(two, "second");
    return {{"empty_record", one}, {"two_records", two}};
  }
  if (name == "example") return {{"image", record}, {"no_image", io::serialize_example("", 1, 0, 0)}};
  if (name == "jpeg") return {{"16x16", jpeg_file}, {"9x9", io::encode_jpeg(io::synthetic_image(1, 2, 3, 9, 0.5f), 30)}};
  if (name == "safetensors") {
    const std::vector<io::NamedTensor> mixed = {{"a", Tensor::full({2, 3}, 1.5f)}, {"b", Tensor::from<int64_t>({2}, std::vector<int64_t>{1, -1})}, {"scalar", Tensor::full({}, 2.0f)}, {"none", Tensor({0, 4}, DType::u8)}};
    return {{"mixed", io::safetensors_bytes(mixed, {{"format", "pt"}})}};
  }
  if (name == "weights") return weight_seeds();
  if (name == "config") return {{"tensorflow_default.json", std::string(quant::default_config_text("tensorflow_default"))}, {"integer.json", std::string(quant::default_config_text("integer"))}};
  if (name == "encodings") {
    Seeds all;
    for (const std::string& version : io::encodings_versions()) all.emplace_back(version + ".json", io::write_encodings(trained().sim->encodings(), version));
    return all;
  }
  if (name == "estimator") {
    Seeds all;
    for (char kind = 0; kind < 5; ++kind) {
      const auto e = estimator_of_kind(static_cast<size_t>(kind));
      e->observe(Tensor::from({6}, {-1.0f, 0.0f, 0.5f, 0.25f, 2.0f, -0.125f}));
      all.emplace_back(text("kind", static_cast<int>(kind)), kind + e->save());
    }
    return all;
  }
  if (name == "onnx") return onnx_seeds();
  if (name == "keras_h5") return {};  // tests/golden/make_keras.py writes them
  if (name == "checkpoint") return {{"tiny", trained().checkpoint()}};
  if (name == "checkpoint_sections") return sections_seeds();
  fail("no seeds for \"", name, "\"");
}

}  // namespace detent::fuzz
